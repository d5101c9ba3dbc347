"""Parameter groups, clipping and updates that are left out, against torch's own AdamW and clipping."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffdistill.errors import UserError
from diffdistill.methods import OptimizerSettings, ParameterGroup, Phase
from diffdistill.training.clock import RecordOrder
from diffdistill.training.loop import Trainer
from diffdistill.training.optimizers import clip_gradients, make_optimizer, set_learning_rates, step_where
from diffdistill.training.settings import TrainingSettings

sys.path.insert(0, str(Path(__file__).parent))
from small_method import Small  # noqa: E402


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))


def give_gradients(module: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in module.parameters():
        p.grad = scale * torch.randn(p.shape, generator=generator)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


# ---- parameter groups -----------------------------------------------------------------------------------------


def test_a_group_is_trained_as_a_network_of_its_own_would_be() -> None:
    """Each parameter moves as under an AdamW that has its learning rate and weight decay for all."""
    groups = (ParameterGroup(r"^2\.", 1e-1, 0.5), ParameterGroup("bias", 1e-2))
    settings = OptimizerSettings(1e-3, (0.9, 0.99), weight_decay=0.1, groups=groups)
    grouped, plain = network(), {rate: network() for rate in (1e-1, 1e-2, 1e-3)}
    optimizer = make_optimizer("student", grouped, settings)
    alone = {
        rate: torch.optim.AdamW(
            module.parameters(), rate, (0.9, 0.99), weight_decay=0.5 if rate == 1e-1 else 0.1, fused=True
        )
        for rate, module in plain.items()
    }
    for step, factor in enumerate((1.0, 0.5, 0.25)):
        set_learning_rates(optimizer, settings, factor)
        give_gradients(grouped, step)
        optimizer.step()
        for rate, each in alone.items():
            each.param_groups[0]["lr"] = rate * factor
            give_gradients(plain[rate], step)
            each.step()
    # the first pattern that is found in a name takes the parameter, so the last bias is in the first group
    rates = {"0.weight": 1e-3, "0.bias": 1e-2, "2.weight": 1e-1, "2.bias": 1e-1}
    for name, p in grouped.named_parameters():
        assert torch.equal(p, plain[rates[name]].get_parameter(name)), name


@pytest.mark.parametrize("patterns", [("nowhere",), ("weight", "0.weight")])
def test_a_group_that_takes_nothing_is_an_error(patterns: tuple[str, ...]) -> None:
    settings = OptimizerSettings(1e-3, groups=tuple(ParameterGroup(p, 1e-2) for p in patterns))
    with pytest.raises(UserError, match=rf"'{patterns[-1]}' takes no parameter of the network student"):
        make_optimizer("student", network(), settings)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("(", 1e-2), "is no regular expression"),
        (("a", 0.0), "a learning rate is 0.0"),
        (("a", 1e-2, -1.0), "weight_decay is -1.0"),
    ],
)
def test_bad_groups_are_one_line(values: tuple, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ParameterGroup(*values)


# ---- clipping and updates left out ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.5, 1.0, 3.7, 41.0, 1e6, math.inf])
def test_clipping_is_torchs_own_above_the_limit_and_nothing_within_it(limit: float) -> None:
    for scale in (1e-3, 0.3, 1.0, 30.0):
        ours, theirs = network(), network()
        give_gradients(ours, 1, scale)
        give_gradients(theirs, 1, scale)
        before = [p.grad.clone() for p in ours.parameters() if p.grad is not None]
        norm = clip_gradients(ours.parameters(), limit)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        assert torch.equal(norm, expected)
        other = [p.grad for p in theirs.parameters()] if norm + 1e-6 > limit else before
        assert all(torch.equal(p.grad, g) for p, g in zip(ours.parameters(), other, strict=True))


@pytest.mark.parametrize("limit", [1 / 3, 0.7, 1.0, 41.0, 47.0, 1e6])
def test_a_norm_just_within_the_limit_changes_no_bit(limit: float) -> None:
    """There limit * (1 / norm), as torch computes it, may round to below 1."""
    p = nn.Parameter(torch.zeros(3))
    for below in range(4):
        value = torch.tensor(limit - 1e-6, dtype=torch.float64).float()
        for _ in range(below):
            value = torch.nextafter(value, torch.tensor(0.0))
        p.grad = torch.stack([value, torch.zeros(()), torch.zeros(())])
        if value.item() + 1e-6 <= limit:
            clip_gradients([p], limit)
            assert torch.equal(p.grad[0], value)


def test_an_update_left_out_leaves_weights_moments_and_step_counts() -> None:
    """Steps 1 and 3 alone are made: as though 0, 2 and 4, whose gradients are not numbers, had never been."""
    skipping, plain = network(), network()
    settings = OptimizerSettings(1e-2)
    one, two = make_optimizer("a", skipping, settings), make_optimizer("b", plain, settings)
    for step in range(5):
        bad = step % 2 == 0
        give_gradients(skipping, step, math.nan if bad else 1.0)
        before = weights(skipping)
        step_where(one, torch.tensor(not bad))
        assert torch.equal(before, weights(skipping)) == bad
        if not bad:
            give_gradients(plain, step)
            two.step()
    assert torch.equal(weights(skipping), weights(plain))
    for a, b in zip(skipping.parameters(), plain.parameters(), strict=True):
        assert all(torch.equal(one.state[a][key], two.state[b][key]) for key in ("step", "exp_avg", "exp_avg_sq"))


# ---- phases of several networks -------------------------------------------------------------------------------


class Joint(Small):
    """Both networks learn the same target in one phase."""

    def phases(self, step):
        return [Phase("both", ("student", "fake"), self._both)]

    def _both(self, batch, random, carry):
        x, target = random.normal("x", (4,)), batch["record"] / 10
        losses = [(self.networks[name](x) - target).square().mean() for name in ("student", "fake")]
        return sum(losses) * (math.nan if self.step == self.poison_at else 1.0), {}


class Apart(Joint):
    """The same, a phase a network."""

    def phases(self, step):
        return [Phase(name, name, lambda b, r, c, name=name: self._one(name, b, r)) for name in ("student", "fake")]

    def _one(self, name, batch, random):
        return (self.networks[name](random.normal("x", (4,))) - batch["record"] / 10).square().mean(), {}


def run(method: Small, folder: Path, **more) -> Trainer:
    folder.mkdir()
    trainer = Trainer(method, TrainingSettings(64, batch_size=8, log_every=1, cpu=True, **more), folder)
    trainer.fit()
    return trainer


def test_a_phase_of_two_networks_is_two_phases_of_one(tmp_path: Path) -> None:
    """Where their gradients are independent; each is clipped by its own norm, which the limit here is below."""
    joint, apart = (
        run(kind(), tmp_path / kind.__name__, max_grad_norm=1e-2, gradient_accumulation_steps=2)
        for kind in (Joint, Apart)
    )
    for name in ("student", "fake"):
        assert torch.equal(weights(joint.state.networks[name]), weights(apart.state.networks[name]))
    assert '"both/student/grad_norm"' in (tmp_path / "Joint" / "log.jsonl").read_text()


def test_no_network_of_a_phase_is_updated_where_its_loss_is_not_finite(tmp_path: Path) -> None:
    trainer = run(Joint(poison_at=5), tmp_path / "run", on_nonfinite="skip")
    steps = {o.state[p]["step"].item() for o in trainer.state.optimizers.values() for p in o.state}
    assert steps == {7.0} and trainer.state.skipped == 1


def test_a_phase_of_whole_batches_refuses_accumulation(tmp_path: Path) -> None:
    class Whole(Small):
        def phases(self, step):
            return [Phase("student", "student", self._student, whole_batch=True)]

    settings = TrainingSettings(16, batch_size=8, gradient_accumulation_steps=2, cpu=True)
    with pytest.raises(UserError, match="gradient_accumulation_steps is 2, and the phase student looks at a whole"):
        Trainer(Whole(), settings, tmp_path)


# ---- waiting for the device -----------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Notes each time the host reads a value of a tensor, for which it waits where that is on a device."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.seen: list[str] = []
        for name in ("tolist", "numpy", "cpu"):
            patch.setattr(torch.Tensor, name, self._noting(getattr(torch.Tensor, name)))

    def _noting(self, method: Any) -> Any:
        def noting(tensor: torch.Tensor, *args: Any) -> Any:
            self.seen.append(method.__name__)
            return method(tensor, *args)

        return noting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Small, Joint])
@pytest.mark.parametrize("more", [{}, {"max_grad_norm": 1e-3}, {"on_nonfinite": "skip", "max_minutes": 1e6}])
def test_a_step_waits_for_the_device_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Small], more: dict[str, object]
) -> None:
    trainer = Trainer(kind(), TrainingSettings(80, batch_size=8, cpu=True, **more), tmp_path)  # type: ignore[arg-type]
    trainer.order = RecordOrder(1000, seed=0)
    trainer.order.record(0)  # the order of an epoch, which is made on the host
    for _ in range(3):
        with monkeypatch.context() as patch, Reads(patch) as reads:
            assert not trainer.clock.out_of_time(trainer.accelerator)
            trainer.train_step()
        assert reads.seen == ["tolist"]
