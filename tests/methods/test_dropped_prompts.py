"""What the fake score learns where the prompt is dropped: SiD's samples are then those of the empty prompt."""

from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline as tiny
import torch
from made import made
from torch import Tensor

from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import DMD2, SiD, SwiftBrush
from diffdistill.methods import judge as module
from diffdistill.methods.student import OneStepStudent

N = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dropped")
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    tiny.save_tiny_pipeline(folder / "teacher")
    return folder


def build(kind: type, folder: Path, **more: Any) -> Any:
    return made(kind, teacher__source=str(folder / "teacher"), prompts=str(folder / "prompts.txt"), **more)


def prompted(z: Tensor, cond: Tensor) -> Tensor:
    """A student whose sample says which prompt it was made with, and from which noise."""
    return z + 100 * cond.mean((1, 2)).view(-1, 1, 1, 1)


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(x0, cond) that the fake score is given, a pair an update, with the student above."""
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(denoiser: Any, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor, weight: str) -> Tensor:
        seen.append((x0, cond))
        return x0.new_zeros(())

    monkeypatch.setattr(module, "denoising_loss", loss)
    monkeypatch.setattr(OneStepStudent, "x0", lambda self, network, z, cond: prompted(z, cond))
    return seen


def run(method: Any, indices: range, **more: Any) -> dict[str, Any]:
    random, carry = SampleRandom(0, indices), dict(more)
    batch = method.batch([i % 2 for i in indices], random)
    for phase in method.phases(method.judge.warmup):
        if phase.trains == "fake":
            phase.loss(batch, random, carry)
    return {"random": random, "batch": batch, "carry": carry}


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("judged", [True, False])
def test_dropped_rows_are_samples_of_the_empty_prompt(folder: Path, learnt: list, judged: bool, updates: int) -> None:
    method = build(SiD, folder, fake__drop_text=0.4, fake__updates=updates)
    x0 = torch.randn(N, *method.teacher.latent_shape)
    done = run(method, range(N), **({"x0": x0} if judged else {}))
    random, cond = done["random"], done["batch"]["cond"]
    assert len(learnt) == updates
    for k, (found, told) in enumerate(learnt):
        dropped = random.bernoulli(f"fake_drop/{k}", 0.4)
        assert 0 < dropped.sum() < N
        null = method.null.expand_as(cond)
        assert torch.equal(told[dropped], null[dropped]) and torch.equal(told[~dropped], cond[~dropped])
        z = random.normal(f"z/{k}", method.teacher.latent_shape)
        torch.testing.assert_close(found[dropped], prompted(z, null)[dropped])
        kept = x0 if judged and k == 0 else prompted(z, cond)
        torch.testing.assert_close(found[~dropped], kept[~dropped], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "more"),
    [(SiD, {"fake__drop_text": 0.0}), (SwiftBrush, {"fake__drop_text": 0.4}), (DMD2, {"fake__drop_text": 0.4})],
)
def test_without_it_the_samples_are_those_just_judged(folder: Path, learnt: list, kind: type, more: dict) -> None:
    method = build(kind, folder, **more)
    x0 = torch.randn(N, *method.teacher.latent_shape)
    run(method, range(N), x0=x0)
    assert learnt[0][0] is x0


@pytest.mark.parametrize("parts", [[range(8), range(8, 16)], [range(5), range(5, 6), range(6, 16)]])
def test_samples_do_not_depend_on_how_the_batch_is_spread(folder: Path, learnt: list, parts: list[range]) -> None:
    method = build(SiD, folder, fake__drop_text=0.4)
    x0 = torch.randn(N, *method.teacher.latent_shape)
    for part in [range(N), *parts]:
        run(method, part, x0=x0[list(part)])
    whole, *rest = (found for found, _ in learnt)
    torch.testing.assert_close(torch.cat(rest), whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scales", "share"),
    [
        ({}, 0.1),
        ({"guidance_scale": 1.0}, 0.0),
        ({"guidance_scale": 4.5, "fake__guidance_scale": 1.0}, 0.0),
        ({"guidance_scale": 4.5, "fake__guidance_scale": 1.0, "fake__train_guidance_scale": 2.0}, 0.1),
        ({"guidance_scale": 4.5, "fake__train_guidance_scale": 1.0}, 0.1),
        ({"guidance_scale": 1.0, "fake__drop_text": 0.25}, 0.25),
        ({"fake__drop_text": 0.0}, 0.0),
    ],
)
def test_a_tenth_is_dropped_where_the_fake_score_is_guided(folder: Path, scales: dict, share: float) -> None:
    judge = build(SiD, folder, **scales).judge
    assert judge.fake.dropped(judge.guidance_scale) == share


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(folder: Path, share: float) -> None:
    with pytest.raises(UserError, match=f"drop_text is {share}"):
        build(SiD, folder, fake__drop_text=share)
