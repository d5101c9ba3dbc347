"""Text to 3D with large teachers, as tiny stand-ins of the same classes: gradients by hand, runs, saved models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from text3d.tiny_priors import add_tiny_generators
from text3d.tiny_teachers import KINDS, PROMPTS, build, save_teachers
from text3d.tiny_text_to_3d import build as build_with_prior
from text3d.tiny_text_to_3d import save_things
from torch import Tensor

from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods.base import OptimizerSettings
from diffdistill.methods.settings import FakeScore, LoraSettings
from diffdistill.methods.text_to_3d_settings import DenseRendering, Judging, Regularisers, Rendering
from diffdistill.text3d.baked_views import bake_views
from diffdistill.text3d.model import load_model, save_model
from diffdistill.text3d.objects import generate_field
from diffdistill.text3d.regularisers import LinearSchedule
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

GUIDED = {"judging__guidance_scale": LinearSchedule.constant(7.5), "judging__eta": 0.5}
LORA = FakeScore("lora", OptimizerSettings(1e-2), lora=LoraSettings(2, 4.0), drop_text=0.5)


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_generators(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teachers(tmp_path_factory.mktemp("teachers"))


def constant(value: float) -> LinearSchedule:
    return LinearSchedule.constant(value)


def gradients(method: Any, indices: list[int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The gradients of the first phase by network, for samples of these indices; and what it carries to the next."""
    random, carry = SampleRandom(0, indices), {}
    batch = method.batch([i % len(PROMPTS) for i in indices], random)
    loss, _ = method.phases(0)[0].loss(batch, random, carry)
    names = [name for name in method.networks if name != "fake"]
    found = {}
    for name in names:
        parameters = list(method.networks[name].parameters())
        each = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        found[name] = torch.cat([g.flatten() for g in each])
    return found, {"batch": batch, "random": random, "carry": carry}


def moved(method: Any) -> None:
    """Move the fake score, which starts as the teacher: variational score distillation then has no gradient."""
    for name, p in method.networks["fake"].named_parameters() if "fake" in method.networks else ():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    assert expected.norm() > 0
    assert (found - expected).norm() < tolerance * expected.norm()


# ---- a step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("perp_neg", [0.5, 0.0, None])
def test_a_step_of_asd_with_stable_diffusion_put_together_by_hand(place: Path, perp_neg: float | None) -> None:
    """Two views of each of two objects: rendered, enlarged, encoded; e_null + s (d + sum of w perp) - e later."""
    directions = {"mode": "words"} if perp_neg is None else {"mode": "perp_neg", "strength": perp_neg}
    more = {f"teacher__directions__{name}": value for name, value in directions.items()}
    method = build(place, judging__residual="asd", rendering__dense__views=2, **GUIDED, **more)
    method.progress = 0.25
    method.begin_step(5)
    found, parts = gradients(method, [7, 8])
    batch, pipeline = parts["batch"], method.teacher.teacher.pipeline
    views, random = batch["views"], parts["random"].views(2)
    made = method.views.renderer(
        method.networks["generator"](PROMPTS[1:]), views.groups, 8, 8, sharpness=20 + 180 * 0.25 / 0.8,
        background=batch["background"][:, None, :, None, None], jitter=views.jitter,
    )  # fmt: skip
    x0 = method.teacher.encode(made.colour.flatten(0, 1)[:, None])
    low, high = 0.6 - 0.3 * 0.25, 0.98 - 0.28 * 0.25
    schedule = method.teacher.schedule
    t = schedule.timestep(random.uniform("time"), low, high)
    later, eps = schedule.later(t, random.uniform("later"), 0.5, low), random.normal("noise", x0.shape[1:])
    assert len(set(t.tolist())) > 1 and bool((later >= t).all())

    @torch.no_grad()
    def noise(at: Tensor, text: Tensor) -> Tensor:
        alpha, sigma = (level(at).float().view(-1, 1, 1, 1) for level in (schedule.alpha, schedule.sigma))
        unet = pipeline.components["unet"]
        made: Tensor = unet(alpha * x0 + sigma * eps, at, encoder_hidden_states=text.expand(4, -1, -1)).sample
        return made

    text = batch["cond"]["text"]
    null, full = noise(t, batch["null"]["text"]), noise(t, text)
    towards = full - null
    if perp_neg is None:
        assert batch["perp_neg"] is None
    else:
        for negative, weight in zip(batch["perp_neg"].negatives, batch["perp_neg"].weights, strict=True):
            away = noise(t, negative["text"]) - null
            for i in range(4):
                share = (away[i] * (full - null)[i]).sum() / (full - null)[i].square().sum()
                towards[i] -= weight[i] * (away[i] - share * (full - null)[i])
    if not perp_neg:  # perp-neg of no strength is plain guidance
        torch.testing.assert_close(towards, full - null)
    residual = null + 7.5 * towards - noise(later, text)
    wanted = schedule.sigma(t).float().view(-1, 1, 1, 1) ** 2 * residual / 4  # four rows
    each = torch.autograd.grad(x0, list(method.networks["generator"].parameters()), grad_outputs=wanted)
    close(found["generator"], torch.cat([g.flatten() for g in each]))


def test_a_step_of_csd_with_mvdream_put_together_by_hand(place: Path) -> None:
    """One time for the four views of an object, which the network sees together, each with its camera."""
    method = build(place, "mvdream", judging__residual="csd", **GUIDED)
    found, parts = gradients(method, [3, 4])
    batch, random = parts["batch"], parts["random"]
    groups = batch["views"].groups
    for group in groups:  # rings of ScaleDreamer's: 90 degrees apart, of one elevation
        turns = (group.azimuth_deg - group.azimuth_deg[0]) % 360
        torch.testing.assert_close(turns, torch.tensor([0.0, 90.0, 180.0, 270.0]), rtol=0, atol=1e-3)
        assert len(set(group.elevation_deg.tolist())) == 1 == len(set(group.distance.tolist()))
    assert groups[0].elevation_deg[0] != groups[1].elevation_deg[0]
    generator = method.networks["generator"]
    made = method.views.renderer(
        generator([PROMPTS[0], PROMPTS[1]]), groups, 8, 8, sharpness=20.0,
        background=batch["background"][:, None, :, None, None], jitter=batch["views"].jitter,
    )  # fmt: skip
    x0 = method.teacher.encode(made.colour)
    schedule = method.teacher.schedule
    t = schedule.timestep(random.uniform("time"), 0.6, 0.98)
    eps = random.normal("noise", x0.shape[1:])
    alpha, sigma = (level(t).float().view(-1, 1, 1, 1, 1) for level in (schedule.alpha, schedule.sigma))
    unet = method.teacher.backbone.inner
    camera = torch.cat([group.to_world() for group in groups])
    camera[:, :3, 3] /= camera[:, :3, 3].norm(dim=1, keepdim=True)

    @torch.no_grad()
    def noise(prompts: list[str]) -> Tensor:
        text = method.teacher.teacher.embed([prompt for prompt in prompts for _ in range(4)])
        x_t = (alpha * x0 + sigma * eps).flatten(0, 1)
        time, labels = t.repeat_interleave(4), camera.flatten(1)
        value: Tensor = unet(x_t, time, encoder_hidden_states=text, class_labels=labels).sample
        return value.view_as(x0)

    residual = noise([PROMPTS[0], PROMPTS[1]]) - noise(["", ""])
    each = torch.autograd.grad(
        x0, list(generator.parameters()), grad_outputs=sigma**2 * residual / 8
    )  # two rows of four views
    close(found["generator"], torch.cat([g.flatten() for g in each]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", ["sds", "csd", "asd", "vsd"])
def test_gradients_of_all_residuals_reach_what_is_trained(place: Path, kind: str, residual: str) -> None:
    terms = {f"regularisers__{name}": constant(0.1) for name in ("eikonal", "orientation", "z_variance", "sparsity")}
    method = build(
        place, kind, "voxel_tiny", judging__residual=residual, judging__fake=LORA, **terms, **GUIDED,
        rendering__dense__background="learned", rendering__dense__share_of_plain=0.0,
    )  # fmt: skip
    moved(method)
    found, parts = gradients(method, [0, 1])
    assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in found.values())
    phases = method.phases(0)
    assert phases[0].trains == ("generator", "background") and len(phases) == 1 + (residual == "vsd")
    bare = build(place, kind, "voxel_tiny", judging__residual=residual, judging__fake=LORA, **GUIDED)
    moved(bare)
    plain, _ = gradients(bare, [0, 1])
    assert (plain["generator"] - found["generator"]).norm() > 1e-3 * plain["generator"].norm()
    if residual == "vsd":
        loss, _ = phases[1].loss(parts["batch"], parts["random"], parts["carry"])
        loss.backward()
        trained = {name: p for name, p in method.networks["fake"].named_parameters() if p.requires_grad}
        assert all(bool(p.grad is not None and p.grad.isfinite().all()) for p in trained.values())
        assert any("lora_B" in name and float(p.grad.abs().max()) > 0 for name, p in trained.items())
        if kind == "sd":
            assert float(trained["camera.out.weight"].grad.abs().max()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_fake_score_is_told_the_camera_and_the_teacher_stays_as_it_was(place: Path, kind: str) -> None:
    method = build(place, kind, judging__residual="vsd", judging__fake=LORA, **GUIDED)
    random = SampleRandom(0, [0])
    batch = method.batch([0], random)
    rows = len(batch["cond"]["camera"])
    x_t, t = torch.randn(rows, *((4, 4, 4) if kind == "sd" else (4, 4, 4, 4))), torch.full((rows,), 500)
    before = method.judge.teacher_score(x_t, t, batch["cond"]).value
    assert torch.equal(method.judge.fake_score(x_t, t, batch["cond"]).value, before)  # at the start they are one
    moved(method)
    assert torch.equal(method.judge.teacher_score(x_t, t, batch["cond"]).value, before)
    turned = {**batch["cond"], "camera": batch["cond"]["camera"].flip(0 if kind == "sd" else 1)}
    fake = method.judge.fake_score
    assert (fake(x_t, t, batch["cond"]).value - before).abs().max() > 1e-3
    assert (fake(x_t, t, batch["cond"]).value - fake(x_t, t, turned).value).abs().max() > 1e-4
    if kind == "sd":
        assert torch.equal(method.judge.teacher_score(x_t, t, turned).value, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_three_gives_the_mean_of_three_gradients(place: Path, kind: str) -> None:
    """So a run does not depend on micro-batches: cameras, backgrounds and terms are those of each sample."""
    names = ("sparsity", "opaque", "eikonal", "orientation", "z_variance")
    terms = {f"regularisers__{name}": constant(0.1) for name in names}
    given: dict[str, Any] = {**GUIDED, **terms, "rendering__dense__background": "learned"}
    method = build(place, kind, judging__residual="asd", **given)
    single = [gradients(method, [i])[0] for i in range(3)]
    together, _ = gradients(method, [0, 1, 2])
    assert (single[0]["generator"] - single[1]["generator"]).norm() > 0
    for name, found in together.items():
        close(found, torch.stack([each[name] for each in single]).mean(0))


def test_a_prior_can_be_asked_through_the_dense_renderer(tmp_path: Path) -> None:
    """It keeps the prior's rings, and its images are about those of the baked renderer on a fine grid."""
    things = save_things(tmp_path)
    given = {"rendering__dense__samples": 48, "rendering__dense__resampled": 0, "rendering__share_of_white": 1.0}
    dense = build_with_prior(things, rendering__renderer="dense", **given)
    baked = build_with_prior(things, rendering__resolution=32, rendering__share_of_white=1.0)
    drawn = dense.views.draw(SampleRandom(0, [0]), 0)
    ring = drawn.groups[0]
    assert ring.distance.tolist() == [3.0] * 4 and ring.fov_deg.tolist() == [40.0] * 4
    field = dense.networks["generator"](["a red ball"])
    white = torch.ones(1, 3)
    a = dense.views.render(field, drawn, 20.0, white, ())
    b = baked.views.render(field, bake_views(ring, baked.grid, 16, 16, 48), 20.0, white, ())
    assert float((a.colour - b.colour).detach().abs().mean()) < 0.01
    assert float(gradients(dense, [0, 1])[0]["generator"].norm()) > 0


# ---- runs -----------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_in_the_same_weights_and_its_model_is_read_again(place: Path, tmp_path: Path) -> None:
    """Generator, background, adapters and camera embedding, bit for bit; the model finds its text encoder."""
    settings = TrainingSettings(8, batch_size=2, checkpoint_every=4, validate_every=4, cpu=True, ema_decay=0.5)
    more = {"judging__residual": "vsd", "judging__fake": LORA, "rendering__dense__background": "learned"}
    for run in ("whole", "resumed"):
        (tmp_path / run).mkdir()
    Trainer(build(place, prepare=False, **more), settings, tmp_path / "whole").fit()
    middle = str(tmp_path / "whole" / "checkpoint-0000000004")
    Trainer(build(place, prepare=False, **more), settings, tmp_path / "resumed", resume=middle).fit()
    ends = [tmp_path / run / "checkpoint-0000000008" for run in ("whole", "resumed")]
    for group in ("generator", "background", "fake", "generator.optimizer", "fake.optimizer", "ema"):
        a, b = (load_file(end / f"{group}.safetensors") for end in ends)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), group
    start = dict(build(place, prepare=False, **more).networks["generator"].named_parameters())
    after = load_file(ends[0] / "generator.safetensors")
    assert all(after[key].isfinite().all() and (after[key] - p).abs().max() > 0 for key, p in start.items())
    assert list((tmp_path / "whole").rglob("*.png"))
    again = load_model(tmp_path / "whole" / "export")
    assert again.embedder.dim == 16 and not any("text" in key for key in again.state_dict())
    points = 2 * torch.rand(1, 9, 3, generator=torch.Generator().manual_seed(0)) - 1
    made = generate_field(again, ["red apple", "a green apple"])(points)  # a prompt that no run had, too
    assert made.sdf.shape == (2, 9) and (made.sdf[0] - made.sdf[1]).abs().max() > 0


def test_a_saved_model_refuses_another_text_encoder_or_none(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "sd", tmp_path / "teacher")
    method = build(place, teacher__source=str(tmp_path / "teacher"))
    save_model(method.networks["generator"], tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    saved = json.loads(file.read_text())
    assert saved["text_encoder"]["source"] == str(tmp_path / "teacher") and "vocabulary" not in saved
    with torch.no_grad():
        models = method.networks["generator"], load_model(file.parent)
        ours, again = (model(PROMPTS)(torch.zeros(1, 1, 3)).sdf for model in models)
    torch.testing.assert_close(ours, again, rtol=0, atol=2e-3)
    shutil.move(tmp_path / "teacher", tmp_path / "moved")
    with pytest.raises(
        UserError, match="text encoder that the model was trained with cannot be read: there is no model"
    ):
        load_model(tmp_path / "model")
    saved["text_encoder"]["source"] = str(tmp_path / "moved")
    file.write_text(json.dumps(saved))
    load_model(tmp_path / "model")  # which is what the message says
    saved["text_encoder"]["digest"] = "0" * 16
    file.write_text(json.dumps(saved))
    with pytest.raises(UserError, match="the model was trained with 0000"):
        load_model(tmp_path / "model")


# ---- what cannot be ------------------------------------------------------------------------------------------


def test_settings_that_do_not_fit_the_teacher_are_refused(place: Path, tmp_path: Path) -> None:
    things = save_things(tmp_path)
    for more, said in (
        ({"rendering__renderer": "baked"}, "renderer is baked, which is for a prior"),
        ({"prior": str(things / "prior")}, "one teacher, prior or teacher.source; both are set"),
        ({"teacher__source": None}, "neither is set"),
        ({"teacher__directions__mode": "perp_neg", "judging__residual": "csd"}, "csd is not guided"),
        ({"teacher__directions__mode": "perp_neg", "judging__finish": "csd"}, "csd is not guided"),
        ({"teacher__source": str(place / "mvdream"), "rendering__dense__views": 6}, "a multiple of 4"),
    ):
        with pytest.raises(UserError, match=said):
            build(place, prepare=False, **more)  # type: ignore[arg-type]
    for more, said in (
        ({"regularisers__orientation": constant(1.0)}, "orientation needs rendering.renderer dense"),
        ({"rendering__renderer": "dense", "rendering__dense__background": "learned"}, "told one colour"),
    ):
        with pytest.raises(UserError, match=said):
            build_with_prior(things, prepare=False, **more)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="gradient_checkpointing"):
        build(place, prepare=False).enable_gradient_checkpointing()
    build(place, prepare=False, judging__residual="vsd").enable_gradient_checkpointing()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Judging(reduction="sum"), "reduction is 'sum'; it must be mean or batch"),  # type: ignore[arg-type]
        (lambda: Rendering(renderer="bake"), "renderer is 'bake'; it must be baked or dense"),  # type: ignore[arg-type]
        (lambda: DenseRendering(size=0), "rendering.dense.size is 0; it must be 1 or more"),
        (lambda: DenseRendering(share_of_plain=2.0), "share_of_plain is 2.0"),
        (lambda: DenseRendering(background="sky"), "background is 'sky'; it must be colour or learned"),  # type: ignore[arg-type]
        (lambda: Regularisers(z_variance=constant(-1.0)), "regularisers.z_variance is -1.0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()
