"""Runs of text to 3D resume exactly, a model comes back from its file, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from text3d.tiny_priors import TINY, WORDS, add_tiny_generators, random_prior
from text3d.tiny_text_to_3d import PROMPTS, build, constant, gradient, save_things
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.methods.settings import FakeScore
from diffdistill.methods.text_to_3d import Judging, Regularisers, Rendering
from diffdistill.text3d.model import load_model
from diffdistill.text3d.prior import save_prior
from diffdistill.text3d.regularisers import LinearSchedule
from diffdistill.text3d.words import Vocabulary
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_generators(monkeypatch)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_things(tmp_path_factory.mktemp("text3d"))


def last(run: Path, group: str) -> dict[str, Tensor]:
    return load_file(run / "checkpoint-0000000012" / f"{group}.safetensors")


def test_a_resumed_run_ends_in_the_same_weights(things: Path, tmp_path: Path) -> None:
    """Bit for bit, the fake score too; and micro-batches change no more than the rounding of sums does."""
    settings = {"checkpoint_every": 6, "cpu": True, "warmup_samples": 3, "lr_schedule": "cosine"}
    more = {"judging__residual": "vsd", "optimizer__learning_rate": 1e-2}
    for run in ("whole", "resumed", "parts"):
        (tmp_path / run).mkdir()
    whole = TrainingSettings(12, batch_size=3, validate_every=6, **settings)  # type: ignore[arg-type]
    Trainer(build(things, prepare=False, **more), whole, tmp_path / "whole").fit()
    middle = str(tmp_path / "whole" / "checkpoint-0000000006")
    Trainer(build(things, seed=1, prepare=False, **more), whole, tmp_path / "resumed", resume=middle).fit()
    for group in ("generator", "fake", "generator.optimizer", "fake.optimizer", "ema"):
        a, b = last(tmp_path / "whole", group), last(tmp_path / "resumed", group)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), group
    start = dict(build(things, prepare=False).networks["generator"].named_parameters())
    moved = last(tmp_path / "whole", "generator")
    assert all((moved[key] - p).abs().max() > 0 for key, p in start.items())
    shown = list((tmp_path / "whole").rglob("*.png"))
    assert len(shown) >= 2
    parts = TrainingSettings(12, batch_size=3, gradient_accumulation_steps=3, **settings)  # type: ignore[arg-type]
    Trainer(build(things, prepare=False, **more), parts, tmp_path / "parts").fit()
    for key, value in last(tmp_path / "parts", "generator").items():
        torch.testing.assert_close(value, moved[key], rtol=0, atol=2e-3)  # Adam magnifies rounding
    assert (tmp_path / "whole" / "export" / "model.safetensors").is_file()


@torch.no_grad()
def test_an_exported_model_is_the_same_field_to_half_precision(things: Path, tmp_path: Path) -> None:
    for name in TINY:
        method = build(things, name)
        method.export(tmp_path / name)
        again = load_model(tmp_path / name)
        points = method.grid.points[None]
        fields = [model(PROMPTS)(points) for model in (method.networks["generator"], again)]
        for a, b in zip(*fields, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
        stored = again.state_dict()
        for key, value in method.networks["generator"].state_dict().items():
            assert torch.equal(value.half().float(), stored[key]), key
        assert again.sharpness == 200.0 and again.name == name and again.embedder.vocabulary == WORDS
        assert not any(p.requires_grad for p in again.parameters())


def test_the_grid_of_validation_shows_each_prompt_from_four_sides(things: Path) -> None:
    method = build(things)
    shown = method.validate()
    assert shown.images.shape == (4 * len(PROMPTS), 3, 64, 64)
    corners = shown.images[:, :, 0, 0]
    torch.testing.assert_close(corners, torch.ones_like(corners))  # on white
    share = torch.pi * (64 * 0.97 / 4) ** 2 / 64**2  # of a sphere of half the ball's size, about
    for name in ("least_opacity", "most_opacity"):
        assert shown.numbers[name] == pytest.approx(share, rel=0.3)
    assert torch.equal(method.validate().images, shown.images)
    build(things, seed=1)  # other weights of another method change nothing
    assert torch.equal(method.validate().images, shown.images)


def test_many_prompts_are_shown_by_some(things: Path, tmp_path: Path) -> None:
    many = [f"a {a} {b}" for a in ("red", "blue") for b in ("ball", "box")] * 7
    (tmp_path / "many.txt").write_text("\n".join(many))
    method = build(things, prompts=str(tmp_path / "many.txt"))
    assert len(method) == 28 and method.validate().images.shape[0] == 4 * 12


def test_autocast_to_bfloat16_gives_about_the_same_gradient(things: Path) -> None:
    method = build(things)
    exact = gradient(method, [0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient(method, [0, 1])
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.99


# ---- content and bad settings ---------------------------------------------------------------------------------


def test_content_follows_the_prior_and_the_prompts(things: Path, tmp_path: Path) -> None:
    before = dict(build(things, prepare=False).content)
    assert before.keys() == {"prior", "prompts"}

    def changed(**more: Any) -> list[str]:
        after = build(things, prepare=False, **more).content
        return [name for name in before if before[name] != after[name]]

    (tmp_path / "same.txt").write_text("\r\n".join(PROMPTS))
    (tmp_path / "other.txt").write_text("\n".join(PROMPTS[::-1]))
    assert changed(prompts=str(tmp_path / "same.txt")) == []
    assert changed(prompts=str(tmp_path / "other.txt")) == ["prompts"]
    prior = random_prior()
    prior.backbone.out.bias.data[0] += 0.01
    save_prior(prior, tmp_path / "weights")
    assert changed(prior=str(tmp_path / "weights")) == ["prior"]
    save_prior(random_prior(vocabulary=Vocabulary(("blue", "red", "ball", "box"))), tmp_path / "words")
    assert changed(prior=str(tmp_path / "words")) == ["prior"]
    save_prior(random_prior(), tmp_path / "copy")
    assert changed(prior=str(tmp_path / "copy"), rendering__rings=1) == []


def test_a_prior_or_prompts_that_do_not_fit_are_refused(things: Path, tmp_path: Path) -> None:
    save_prior(random_prior(views=3), tmp_path / "three")
    (tmp_path / "unknown.txt").write_text("a red ball\na red bal\n")
    (tmp_path / "long.txt").write_text("red blue red ball\n")
    (tmp_path / "none.txt").write_text("the\n")
    for more, said in (
        ({"prior": str(tmp_path / "three")}, "denoises 3 views at once, and a ring has 4"),
        ({"prior": str(tmp_path / "missing")}, "there is no multi-view prior at .*missing"),
        ({"prompts": str(tmp_path / "unknown.txt")}, "'bal' of the prompt 'a red bal'; did you mean 'ball'"),
        ({"prompts": str(tmp_path / "long.txt")}, "has 4 words; the model takes 3 at most"),
        ({"prompts": str(tmp_path / "none.txt")}, "'the' has no word"),
        ({"prompts": str(tmp_path / "missing.txt")}, "missing.txt"),
        ({"generator": "hyper_smal"}, "did you mean hyper_small"),
        ({"judging__residual": "vsd", "judging__fake": FakeScore("lora")}, "fake.network is 'lora'; with a prior"),
    ):
        with pytest.raises(UserError, match=said):
            build(things, prepare=False, **more)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Judging(residual="sdss"), "residual is 'sdss'; it must be sds, csd, asd or vsd"),  # type: ignore[arg-type]
        (lambda: Judging(residual="nfsd"), "residual is 'nfsd'"),  # type: ignore[arg-type]
        (lambda: Judging(weight="sigma"), "judging.weight 'sigma'.*Did you mean 'sigma2'"),
        (lambda: Judging(eta=-0.1), "eta is -0.1"),
        (lambda: Judging("asd", finish="vsd"), "judging.finish is 'vsd'; it must be sds, csd or null"),  # type: ignore[arg-type]
        (lambda: Judging("vsd", finish="sds"), "with vsd it must be null"),
        (lambda: Judging("asd", finish="sds", finish_from=1.5), "finish_from is 1.5"),
        (lambda: Judging(guidance_scale=LinearSchedule(0, 3, -1, 1)), "guidance_scale is -1"),
        (lambda: Judging(guidance_scale=constant(float("nan"))), "guidance_scale is nan"),
        (lambda: Judging("vsd", fake=FakeScore(updates=2)), "fake.updates is 2; in text to 3D it is 1"),
        (lambda: Judging("vsd", fake=FakeScore(warmup=5)), "fake.warmup is 5"),
        (lambda: Judging("vsd", fake=FakeScore(sample_dropped=True)), "sample_dropped is True"),
        (lambda: Judging("vsd", fake=FakeScore(train_guidance_scale=None)), "train_guidance_scale is None"),
        (lambda: Rendering(resolution=3), "resolution is 3; it must be from 4 to 256"),
        (lambda: Rendering(samples=0), "samples is 0; it must be from 1 to 1024"),
        (lambda: Rendering(rings=-1), "rings is -1; it must be from 0 to 4096"),
        (lambda: Rendering(sharpness=LinearSchedule(0, 20, 0, 1)), "sharpness is 0; it must be a number above 0"),
        (lambda: Rendering(sharpness=constant(float("inf"))), "sharpness is inf"),
        (lambda: Rendering(share_of_white=1.5), "share_of_white is 1.5"),
        (lambda: Regularisers(sparsity=constant(-1.0)), "regularisers.sparsity is -1.0; a weight is a number from 0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(make: Any, said: str) -> None:
    with pytest.raises((UserError, ValueError), match=said):
        make()
