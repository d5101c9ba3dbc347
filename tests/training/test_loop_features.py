"""Rates, clock, clipping, precision, grids and trackers of the loop against what can be worked out by hand."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from diffdistill.methods import Validation
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

sys.path.insert(0, str(Path(__file__).parent))
from small_method import Small  # noqa: E402


class Pictured(Small):
    """Shows one weight of the student as the grey of an image; notes the progress it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []
        with torch.no_grad():
            self.networks["student"].weight.copy_(torch.full((4, 4), 0.5))

    def begin_step(self, step):
        self.told.append(self.progress)
        super().begin_step(step)

    def validate(self):
        return Validation(self.networks["student"].weight[0, 0].repeat(2, 3, 4, 4))


@pytest.fixture(autouse=True)
def own_precision():
    """accelerate keeps one precision a process; each run here may have another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def build(run: Path, samples: int = 64, method: Small | None = None, resume: str | None = None, **more) -> Trainer:
    settings = TrainingSettings(**{"samples": samples, "batch_size": 8, "log_every": 1, "cpu": True, **more})
    return Trainer(method or Small(), settings, run, resume)


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# ---- learning rate and clock ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, {0: 1.0, 400: 1.0, 792: 1.0}),
        ({"warmup_samples": 80}, {0: 0.1, 32: 0.5, 72: 1.0, 400: 1.0}),
        ({"lr_schedule": "cosine", "lr_final": 0.2}, {0: 1.0, 200: 0.2 + 0.8 * (2 + 2**0.5) / 4, 400: 0.6, 800: 0.2}),
        ({"lr_schedule": "cosine", "lr_final": 0.0}, {400: 0.5, 600: (2 - 2**0.5) / 4, 800: 0.0}),
        ({"lr_schedule": "cosine", "lr_final": 0.2, "warmup_samples": 1600}, {0: 1 / 200, 400: 0.6 * 51 / 200}),
    ],
)  # fmt: skip
def test_the_rate_at_given_samples(tmp_path: Path, settings: dict, factors: dict[int, float]) -> None:
    trainer = build(tmp_path, 800, **settings)
    for trainer.clock.samples, factor in factors.items():
        assert trainer.clock.learning_rate_factor() == pytest.approx(factor, abs=1e-12)


def test_the_optimisers_get_that_rate(tmp_path: Path) -> None:
    trainer = build(tmp_path, 32, lr_schedule="cosine", lr_final=0.2, warmup_samples=16)
    seen: dict[str, list[float]] = {"student": [], "fake": []}
    for name, optimizer in trainer.state.optimizers.items():
        optimizer.register_step_pre_hook(
            lambda optimizer, *_, rates=seen[name]: rates.append(optimizer.param_groups[0]["lr"])
        )
    trainer.fit()
    quarter = 2**0.5 / 2  # cos(pi / 4)
    expected = [0.5 * 1.0, 0.6 + 0.4 * quarter, 0.6, 0.6 - 0.4 * quarter]
    for rates in seen.values():
        assert rates == pytest.approx([1e-2 * factor for factor in expected])


@pytest.mark.parametrize(
    ("max_minutes", "samples", "clock", "progress"),
    [
        (0.0, 200, 1e9, 0.25),  # no limit: the clock does not count
        (2.0, 200, 12.0, 0.25),  # samples are ahead
        (2.0, 200, 60.0, 0.5),  # the clock is
        (2.0, 200, 999.0, 1.0),  # and never beyond the end
    ],
)
def test_progress_is_that_of_samples_or_clock(
    tmp_path: Path, max_minutes: float, samples: int, clock: float, progress: float
) -> None:
    trainer = build(tmp_path, 800, max_minutes=max_minutes, lr_schedule="cosine", lr_final=0.0)
    trainer.clock.samples, trainer.clock.limited_seconds = samples, clock
    assert trainer.clock.progress() == progress
    assert trainer.clock.learning_rate_factor() == pytest.approx(math.cos(math.pi * progress / 2) ** 2)


def test_a_run_out_of_minutes_stops_with_a_checkpoint_and_stays_so(tmp_path: Path, monkeypatch) -> None:
    method = Pictured()
    trainer = build(tmp_path, 80, method, max_minutes=1.0)
    monkeypatch.setattr(trainer.clock, "seconds", lambda: 12.0 * trainer.clock.step)  # 5 steps a minute of 10
    trainer.fit()
    assert method.told == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-0000000040"]
    assert (tmp_path / "export" / "student.safetensors").exists()

    again = Pictured()
    build(tmp_path, 80, again, "latest", max_minutes=1.0).fit()
    assert again.told == []
    longer = Pictured()
    build(tmp_path, 80, longer, "latest", max_minutes=1e6).fit()
    assert longer.told == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


# ---- gradients and precision ----------------------------------------------------------------------------------


def gradients(trainer: Trainer) -> dict[str, list[torch.Tensor]]:
    """Filled during the run: the flat gradient that each optimiser gets at each step."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in trainer.state.optimizers}

    def note(name: str, optimizer: torch.optim.Optimizer) -> None:
        seen[name].append(torch.cat([p.grad.flatten().clone() for p in optimizer.param_groups[0]["params"]]))

    for name, optimizer in trainer.state.optimizers.items():
        optimizer.register_step_pre_hook(lambda optimizer, *_, name=name: note(name, optimizer))
    return seen


def test_the_gradient_is_clipped_to_its_norm_and_keeps_its_direction(tmp_path: Path) -> None:
    seen = {}
    for name, limit in (("clipped", 1e-3), ("whole", math.inf)):
        (tmp_path / name).mkdir()
        trainer = build(tmp_path / name, 32, max_grad_norm=limit)
        seen[name] = gradients(trainer)
        trainer.fit()
        logged = log_of(tmp_path / name)
        for network, steps in seen[name].items():
            assert len(steps) == 4
            for gradient, line in zip(steps, logged, strict=True):
                before = line[f"{network}/grad_norm"]
                assert before > 1e-2  # else the limit would not show; what is logged is the norm before the clipping
                assert gradient.norm().item() == pytest.approx(min(before, limit), rel=1e-3)
    first, same = seen["clipped"]["student"][0], seen["whole"]["student"][0]
    torch.testing.assert_close(first / first.norm(), same / same.norm())


def test_a_gradient_within_the_limit_is_left_to_the_bit(tmp_path: Path) -> None:
    seen = []
    for name, limit in (("high", 1e6), ("none", math.inf)):
        (tmp_path / name).mkdir()
        trainer = build(tmp_path / name, 32, max_grad_norm=limit)
        seen.append(gradients(trainer))
        trainer.fit()
    for network, steps in seen[0].items():
        assert all(torch.equal(a, b) for a, b in zip(steps, seen[1][network], strict=True))


def test_bf16_computes_in_it_and_keeps_float32_weights(tmp_path: Path) -> None:
    for precision in ("no", "bf16"):
        (tmp_path / precision).mkdir()
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = build(tmp_path / precision, 64, mixed_precision=precision)
        trainer.fit()
        tensors, _ = trainer.state.capture()
        kept = [t for group, members in tensors.items() if "rng" not in group for t in members.values()]
        assert {t.dtype for t in kept} == {torch.float32} and trainer.precision == precision
    whole, half = (log_of(tmp_path / precision) for precision in ("no", "bf16"))
    for key in ("student/loss", "fake/loss"):
        # bf16 has 8 bits: the first losses agree to about 2^-8, and not to float32's 2^-24
        assert 1e-6 < abs(half[0][key] / whole[0][key] - 1) < 2e-2
        assert half[-1][key] == pytest.approx(whole[-1][key], rel=0.1)


# ---- grids and trackers ---------------------------------------------------------------------------------------


def grey(path: Path) -> int:
    (value,) = {pixel for _, pixel in Image.open(path).crop((0, 0, 8, 4)).convert("L").getcolors()}
    return value


def test_grids_show_the_average_at_their_samples_and_leave_the_run_alone(tmp_path: Path) -> None:
    seen, shadow = tmp_path / "seen", tmp_path / "shadow"
    averages, latest, weights = {0: 0.5}, {0: 0.5}, {}
    for run, every in ((seen, 20), (shadow, 0)):
        run.mkdir()
        trainer = build(run, 80, Pictured(), validate_every=every, ema_decay=0.9)
        step, ema = trainer.train_step, trainer.state.ema

        def noting(step=step, trainer=trainer, ema=ema):
            values = step()
            latest[trainer.clock.samples] = trainer.state.networks["student"].weight[0, 0].item()
            averages[trainer.clock.samples] = ema.shadow["weight"][0, 0].item()
            return values

        trainer.train_step = noting  # type: ignore[method-assign]
        trainer.fit()
        weights[run] = {name: p.detach() for name, p in trainer.state.networks["student"].named_parameters()}
    # multiples of 20 are first reached at 24, 40, 64 and 80
    grids = {int(path.stem): grey(path) for path in (seen / "grids").glob("*.png")}
    assert sorted(grids) == [0, 24, 40, 64, 80] and not (shadow / "grids").exists()
    expected, others = ({k: round(255 * min(max(v[k], 0), 1)) for k in grids} for v in (averages, latest))
    assert grids == expected != others
    assert all(torch.equal(p, weights[shadow][name]) for name, p in weights[seen].items())


def test_tensorboard_has_the_log_and_the_grids(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("torch.utils.tensorboard")
    more = {"validate_every": 40, "log_every": 3, "report_to": ("tensorboard",)}
    build(tmp_path, 80, Pictured(), **more).fit()
    logged = log_of(tmp_path)
    assert [line["samples"] for line in logged] == [24, 48, 72, 80]  # each third step, and the last
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    keys = {key for key in logged[0] if key not in ("samples", "step")}
    assert {"student/loss", "fake/loss", "student/grad_norm", "seconds"} <= keys == set(events.Tags()["scalars"])
    for key in keys:
        scalars = events.Scalars(key)
        assert [scalar.step for scalar in scalars] == [24, 48, 72, 80]
        assert [scalar.value for scalar in scalars] == pytest.approx([line[key] for line in logged], rel=1e-6)
    (tag,) = {tag.rpartition("/")[0] or tag for tag in events.Tags()["images"]}
    pictures = [events.Images(name) for name in events.Tags()["images"]]
    assert tag == "validation"
    assert all([picture.step for picture in steps] == [0, 40, 80] for steps in pictures)


# ---- products on the way --------------------------------------------------------------------------------------


def test_products_on_the_way_are_what_a_run_cut_there_exports(tmp_path: Path) -> None:
    """Of the average at their samples, and the run itself goes on as it would have."""
    every, plain, cut = (tmp_path / name for name in ("every", "plain", "cut"))
    for run in (every, plain, cut):
        run.mkdir()
    build(every, 64, ema_decay=0.9, export_every=24).fit()
    build(plain, 64, ema_decay=0.9).fit()
    trainer = build(cut, 64, ema_decay=0.9)
    while trainer.clock.samples < 24:
        trainer.train_step()
    cut_short = trainer.folder.export()
    assert sorted(p.name for p in every.glob("*export*")) == ["export", "export-0000000024", "export-0000000048"]
    file = "student.safetensors"
    assert (every / "export-0000000024" / file).read_bytes() == (cut_short / file).read_bytes()
    assert (every / "export" / file).read_bytes() == (plain / "export" / file).read_bytes()


def test_cpu_seconds_go_on_where_a_run_was_cut(tmp_path: Path) -> None:
    build(tmp_path, 64, checkpoint_every=32).fit()
    stored = build(tmp_path, 64, resume="latest").clock.cpu_seconds()
    logged = [line["cpu_seconds"] for line in log_of(tmp_path)]
    assert logged == sorted(logged) and stored >= logged[-1] - 0.006 and stored > 0  # logged to hundredths
