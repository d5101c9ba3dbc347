"""A step of text to 3D: its gradient is the residual chained through its own parts, put together by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from text3d.tiny_priors import TINY, WORDS, add_tiny_generators
from text3d.tiny_text_to_3d import PROMPTS, build, constant, gradient, save_things
from torch import Tensor

from diffdistill.distill import SampleRandom
from diffdistill.methods.settings import FakeScore
from diffdistill.text3d.baked import bake, render_baked
from diffdistill.text3d.regularisers import LinearSchedule


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_generators(monkeypatch)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_things(tmp_path_factory.mktemp("text3d"))


def levels(schedule: Any, t: Tensor) -> list[Tensor]:
    return [level(t).float().view(-1, 1, 1, 1, 1) for level in (schedule.alpha, schedule.sigma)]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert expected.norm() > 0
    assert (found - expected).norm() < tolerance * expected.norm()


# ---- what a step does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["sds", "csd", "asd", "vsd"])
def test_the_gradient_is_that_of_the_parts_put_together_by_hand(things: Path, residual: str) -> None:
    method = build(things, judging__residual=residual, judging__eta=0.5, regularisers__eikonal=constant(0.0))
    method.progress = 0.25
    method.begin_step(5)
    if residual == "vsd":
        for p in method.networks["fake"].parameters():
            p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    random = SampleRandom(0, [7, 8])
    batch = method.batch([0, 1], random)
    model, prior = method.networks["generator"], method.prior
    backgrounds = batch["background"]
    for i in range(2):  # white, or a colour of the sample's own
        white = bool(SampleRandom(0, [7 + i]).uniform("white") < 0.5)
        colour = torch.ones(3) if white else SampleRandom(0, [7 + i]).uniform("background", (3,))[0].float()
        assert torch.equal(backgrounds[i], colour)
    cameras = batch["views"].cameras
    images = render_baked(
        bake(model(PROMPTS[:2]), method.grid), batch["views"], 20 + 180 * 0.25 / 0.8, backgrounds[:, None, :]
    ).colour
    x0 = 2 * images - 1
    cond: Any = {
        "words": WORDS.ids(PROMPTS[:2]),
        "camera": torch.stack([cameras.azimuth_deg, cameras.elevation_deg], -1).expand(2, 4, 2),
        "background": backgrounds,
    }
    null = {**cond, "words": torch.zeros_like(cond["words"])}
    low, high = 0.6 - 0.3 * 0.25, 0.98 - 0.28 * 0.25
    t = prior.schedule.timestep(random.uniform("time"), low, high)
    later = prior.schedule.later(t, random.uniform("later"), 0.5, low)
    eps, scale = random.normal("noise", x0.shape[1:]), 3 - 1.5 * 0.25

    @torch.no_grad()
    def noise(network: Any, at: Tensor, condition: Any) -> Tensor:
        alpha, sigma = levels(prior.schedule, at)
        x_t = alpha * x0 + sigma * eps
        made: Tensor = alpha * network(x_t, at, condition) + sigma * x_t  # of a v-prediction
        return made

    def guided(network: Any) -> Tensor:
        empty, full = noise(network, t, null), noise(network, t, cond)
        return empty + scale * (full - empty)

    other = {
        "sds": lambda: eps,
        "csd": lambda: guided(prior.backbone) - noise(prior.backbone, t, cond) + noise(prior.backbone, t, null),
        "asd": lambda: noise(prior.backbone, later, cond),
        "vsd": lambda: noise(method.networks["fake"], t, cond),  # without guidance, as published
    }[residual]()
    wanted = levels(prior.schedule, t)[1] ** 2 * (guided(prior.backbone) - other) / x0.numel()
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(x0, parameters, grad_outputs=wanted)])
    loss, logs = method.phases(0)[0].loss(batch, random, {})
    found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    close(found, expected, 1e-3)
    assert 0 < float(logs["opacity"]) < 1
    assert [phase.trains for phase in method.phases(0)] == ["generator", "fake"][: 1 + (residual == "vsd")]


@pytest.mark.parametrize("generator", list(TINY))
def test_a_batch_of_three_gives_the_mean_of_three_gradients(things: Path, generator: str) -> None:
    """With all terms, so a term that looks at the whole batch would show; the ring is the step's, not a sample's."""
    terms = {f"regularisers__{name}": constant(0.1) for name in ("sparsity", "opaque", "eikonal")}
    method = build(things, generator, rendering__rings=0, **terms)
    method.begin_step(3)
    single = [gradient(method, [i]) for i in range(3)]
    close(gradient(method, [0, 1, 2]), torch.stack(single).mean(0))
    assert (single[0] - single[1]).norm() > 0.01 * single[0].norm()


def test_the_ring_belongs_to_the_step(things: Path) -> None:
    """Rings of the pool are drawn alike, and micro-batches and processes, which have other samples, see the same."""
    method = build(things, rendering__rings=3)
    counts = [0, 0, 0]
    for step in range(150):
        method.begin_step(step)
        first, second = (method.batch([0], SampleRandom(0, [index]))["views"] for index in (step * 2, step * 2 + 1))
        assert first is second
        counts[list(method.pool).index(first)] += 1
    assert min(counts) > 30
    fresh = build(things, rendering__rings=0)
    angles = set()
    for step in range(5):
        fresh.begin_step(step)
        a, b = (fresh.batch([0], SampleRandom(0, [index]))["views"] for index in (step * 2, step * 2 + 1))
        assert torch.equal(a.places, b.places) and torch.equal(a.cameras.azimuth_deg, b.cameras.azimuth_deg)
        angles.add(float(a.cameras.azimuth_deg[0]))
    assert len(angles) == 5


def test_regularisers_are_added_with_their_weights(things: Path) -> None:
    plain = build(things, regularisers__eikonal=constant(0.0))
    random = SampleRandom(0, [0, 1])

    def loss_of(method: Any) -> tuple[Tensor, dict[str, Tensor]]:
        made: tuple[Tensor, dict[str, Tensor]] = method.phases(0)[0].loss(method.batch([0, 1], random), random, {})
        return made

    bare, logs = loss_of(plain)
    assert not {"sparsity", "opaque", "eikonal"} & logs.keys()
    weights = {"sparsity": 0.5, "opaque": 0.25, "eikonal": 2.0}
    full, logs = loss_of(build(things, **{f"regularisers__{name}": constant(w) for name, w in weights.items()}))
    torch.testing.assert_close(full, bare + sum(w * logs[name] for name, w in weights.items()))
    batch = plain.batch([0, 1], random)
    field = plain.networks["generator"](PROMPTS[:2])
    opacity = render_baked(bake(field, plain.grid), batch["views"], 20.0).opacity
    torch.testing.assert_close(logs["sparsity"], (opacity.square() + 0.01).sqrt().mean().detach())
    entropy = torch.distributions.Bernoulli(opacity.clamp(1e-3, 1 - 1e-3)).entropy().mean()
    torch.testing.assert_close(logs["opaque"], entropy.detach(), rtol=1e-4, atol=1e-5)
    # slopes of the grid's cells, by asking the field at the corners of each
    spacing, lowest = 2 / 7, plain.grid.points[plain.grid.corners[:, 0].long()]
    sdf = field.sdf(lowest[None])
    slopes = torch.stack([(field.sdf((lowest + spacing * axis)[None]) - sdf) / spacing for axis in torch.eye(3)], -1)
    torch.testing.assert_close(logs["eikonal"], (slopes.norm(dim=-1) - 1).square().mean().detach(), rtol=1e-4, atol=0)


def test_schedules_go_from_their_first_to_their_last_numbers(things: Path) -> None:
    method = build(things, regularisers__sparsity=LinearSchedule(0.5, 1.0, 3.0, 1.0))
    for progress, guidance, sharpness, times, weight in (
        (0.0, 3.0, 20.0, (0.6, 0.98), 1.0),
        (0.25, 2.625, 76.25, (0.525, 0.91), 1.0),
        (0.75, 1.875, 188.75, (0.375, 0.77), 2.0),
        (1.0, 1.5, 200.0, (0.3, 0.7), 3.0),
    ):
        method.progress = progress
        method.begin_step(0)
        assert method.judge.guidance_scale == pytest.approx(guidance)
        assert method.judge.range == pytest.approx(times)
        assert method._sharpness == pytest.approx(sharpness)
        assert method._now(method.regularisers.sparsity) == pytest.approx(weight)
    still = build(
        things, judging__guidance_scale=constant(2.0), rendering__sharpness=constant(30.0),
        judging__times__t_min_final=None, judging__times__t_max_final=None,
    )  # fmt: skip
    still.progress = 0.5
    still.begin_step(0)
    gradient(still, [0])
    assert not still.progress_was_read  # so such a run may be made longer


def test_a_run_may_finish_with_another_residual(things: Path) -> None:
    method = build(things, judging__residual="asd", judging__finish="sds", judging__finish_from=0.6)
    alone = {name: build(things, judging__residual=name) for name in ("asd", "sds")}
    for progress, residual in ((0.5, "asd"), (0.6, "sds"), (0.9, "sds")):
        for one in (method, *alone.values()):
            one.progress = progress
            one.begin_step(3)
        assert torch.equal(gradient(method, [0, 1]), gradient(alone[residual], [0, 1]))


def test_the_fake_score_learns_the_views_that_were_judged(things: Path) -> None:
    """With the cameras, backgrounds and words of the step; a sample that loses its words keeps the others."""
    fake = FakeScore(weight="v", drop_text=1.0)
    method = build(things, judging__residual="vsd", judging__fake=fake)
    random, carry = SampleRandom(0, [3, 4]), {}
    batch = method.batch([0, 1], random)
    student, learner = method.phases(0)
    student.loss(batch, random, carry)
    assert carry["x0"].shape == (2, 4, 3, 16, 16) and not carry["x0"].requires_grad
    loss, _ = learner.loss(batch, random, carry)
    schedule, x0 = method.prior.schedule, carry["x0"]
    t = schedule.timestep(random.uniform("fake_time/0"), 0.0, 1.0)
    alpha, sigma = levels(schedule, t)
    eps = random.normal("fake_noise/0", x0.shape[1:])
    null = {**batch["cond"], "words": torch.zeros_like(batch["cond"]["words"])}
    v = method.networks["fake"](alpha * x0 + sigma * eps, t, null)
    torch.testing.assert_close(loss, (v - (alpha * eps - sigma * x0)).square().mean())
    before = [p.clone() for p in method.prior.backbone.parameters()]
    loss.backward()
    assert all(p.grad is None for p in method.prior.backbone.parameters())
    assert all(p.grad is not None for p in method.networks["fake"].parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, method.networks["fake"].parameters(), strict=True))
