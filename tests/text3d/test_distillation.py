"""Gradients of the distillation in a field's parameters, through rendering, against exact Gaussian priors.

For data N(mu, v^2 I) and x_t = alpha x0 + sigma eps, the exact noise prediction is g + k eps, with

    g = alpha sigma (x0 - mu) / (alpha^2 v^2 + sigma^2),    k = sigma^2 / (alpha^2 v^2 + sigma^2)

So each residual is known in closed form, and its gradient in the parameters is its product with the Jacobian of the
renderer. All is in float64, but for a network with random weights.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from text3d.analytic_fields import Boxes, Spheres
from text3d.tiny_priors import GaussianViews, gaussian_prior, random_prior
from torch import Tensor, nn

from diffdistill.diffusion import PerpNeg
from diffdistill.distill import SampleRandom
from diffdistill.methods.judge import Judge
from diffdistill.methods.settings import FakeScore, JudgedTimes
from diffdistill.text3d.baked import bake, render_baked
from diffdistill.text3d.baked_views import BakedRings, Grid, bake_views
from diffdistill.text3d.fields.feature_field import FeatureField
from diffdistill.text3d.fields.heads import HeadSettings, SharedHeads
from diffdistill.text3d.fields.planes import Planes
from diffdistill.text3d.prior import MultiViewPrior, without_words
from diffdistill.text3d.render import Renderer, RenderSettings
from diffdistill.text3d.things.catalogue import Prompt
from diffdistill.text3d.things.true_field import TrueField
from diffdistill.text3d.things.viewpoints import ring_starts, ring_views, view_cameras

PROMPTS = ["a red ball", "a blue box"]
SIDE, SAMPLES, K = 6, 10, 15.0  # pixels of a view, samples of a ray, sharpness
SCALE, ETA, TIMES = 3.0, 0.8, JudgedTimes(0.2, 0.8)
WEIGHTS = {"sigma2": lambda a, s: s**2, "uniform": lambda a, s: torch.ones_like(s), "alpha_sigma": lambda a, s: a * s}
RANDOM = SampleRandom(0, [4, 9])


def cameras(start: tuple[float, float] = (0.1, 0.6)) -> Any:
    azimuth, elevation = ring_views(*ring_starts(torch.tensor([start])))
    return view_cameras(azimuth[0], elevation[0]).to(torch.float64)


class Scene:
    """Two objects on triplanes with their own backgrounds, seen from one ring, and a prior that wants two others."""

    def __init__(self, dense: bool = False) -> None:
        draw = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        torch.manual_seed(0)
        self.heads = SharedHeads(HeadSettings((8,), joint=True, sphere=0.6), 12).double()
        self.planes = nn.Parameter(noise(2, 3, 4, 5, 5))
        for chain in self.heads.chains:
            chain[-1].data = 0.1 * noise(*chain[-1].shape)  # more than the small start, so that all is of one size
        self.parameters = [self.planes, *self.heads.parameters()]
        self.dense, self.cameras = dense, cameras()
        self.grid = Grid(7, 1.0, dtype=torch.float64)
        self.views = bake_views(self.cameras, self.grid, SIDE, SIDE, SAMPLES)
        self.background = torch.tensor([[1.0, 1.0, 1.0], [0.2, 0.7, 0.4]], dtype=torch.float64)
        wanted = [
            Spheres(torch.tensor([0.5]), torch.tensor([[0.1, 0.0, 0.2]]), torch.tensor([[0.9, 0.1, 0.2]])),
            Boxes(torch.tensor([[0.3, 0.5, 0.4]]), torch.tensor([[0.1, 0.2, 0.8]])),
        ]
        seen = [render_baked(bake(shape, self.grid), self.views, K, (0.0, 0.0, 0.0)) for shape in wanted]
        self.prior = gaussian_prior(torch.cat([a.colour for a in seen]), torch.cat([a.opacity for a in seen]))
        camera = torch.stack([self.cameras.azimuth_deg, self.cameras.elevation_deg], -1).expand(2, -1, -1)
        self.cond: Any = self.prior.condition(PROMPTS, camera, self.background)

    def x0(self) -> Tensor:
        field = FeatureField(Planes(self.planes), self.heads(), 2, 1.0, self.planes.device)
        if self.dense:  # the ball is what the baked grid has; two chunks, which are computed anew in the backward pass
            render = Renderer(RenderSettings(SAMPLES, sharpness=K, ray_chunk=60, region="ball", compositing="own"))
            return 2 * render(field, self.cameras, SIDE, SIDE, background=self.background[:, None]).colour - 1
        behind = self.background[:, None, :, None, None]
        return 2 * render_baked(bake(field, self.grid), self.views, K, behind).colour - 1

    def gradients(self, loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])

    def chained(self, gradient: Tensor) -> Tensor:
        """A gradient on x0, times the renderer's Jacobian."""
        made = torch.autograd.grad(self.x0(), self.parameters, grad_outputs=gradient)
        return torch.cat([g.flatten() for g in made])

    def moved(self, by: Tensor) -> None:
        sizes = [p.numel() for p in self.parameters]
        for p, part in zip(self.parameters, by.split(sizes), strict=True):
            p.data += part.view_as(p)


def line(network: GaussianViews, x0: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
    """(g, k) of a Gaussian."""
    alpha, sigma = levels(network.schedule, t)
    variance = alpha**2 * network.deviation(cond) ** 2 + sigma**2
    return alpha * sigma * (x0 - network.mean(cond)) / variance, sigma**2 / variance


def levels(schedule: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    return schedule.alpha(t).view(-1, 1, 1, 1, 1), schedule.sigma(t).view(-1, 1, 1, 1, 1)


def drawn(prior: MultiViewPrior, shape: Any, eta: float = ETA) -> tuple[Tensor, Tensor, Tensor]:
    """The noise, the time and the later time that a judge draws."""
    low, high = TIMES.first
    t = prior.schedule.timestep(RANDOM.uniform("time"), low, high)
    later = prior.schedule.later(t, RANDOM.uniform("later"), eta, low)
    return RANDOM.normal("noise", shape).double(), t, later


def guided(network: GaussianViews, x0: Tensor, t: Tensor, cond: Any, scale: float) -> tuple[Tensor, Tensor]:
    null = {**cond, "words": torch.zeros_like(cond["words"])}
    both = zip(line(network, x0, t, null), line(network, x0, t, cond), strict=True)
    g, k = (empty + scale * (full - empty) for empty, full in both)
    return g, k


def fake_of(judge: Judge) -> GaussianViews:
    """A fake score that is no longer the teacher."""
    networks: dict[str, Any] = {}
    judge.add_networks(networks, {})
    network: GaussianViews = networks["fake"]
    network.shift.data += 0.3
    network.spread.data += 0.2
    return network


@pytest.mark.parametrize("dense", [False, True], ids=["baked", "dense"])
@pytest.mark.parametrize(
    ("residual", "weight"), [("sds", "sigma2"), ("csd", "uniform"), ("asd", "sigma2"), ("vsd", "alpha_sigma")]
)
def test_the_gradient_is_the_residual_times_the_jacobian_of_the_renderer(
    residual: str, weight: str, dense: bool
) -> None:
    scene = Scene(dense)
    judge = Judge(scene.prior, TIMES, SCALE, FakeScore() if residual == "vsd" else None)  # type: ignore[arg-type]
    teacher: Any = scene.prior.backbone
    fake = fake_of(judge) if residual == "vsd" else None
    null = without_words(scene.cond)
    loss, _ = judge.loss(scene.x0(), scene.cond, RANDOM, residual=residual, weight=weight, eta=ETA, null=null)
    found = scene.gradients(loss)

    x0 = scene.x0().detach()
    eps, t, later = drawn(scene.prior, x0.shape[1:])
    assert bool((later > t).all())
    g, k = guided(teacher, x0, t, scene.cond, SCALE)
    if residual == "csd":
        (g_c, k_c), (g_0, k_0) = line(teacher, x0, t, scene.cond), line(teacher, x0, t, null)
        value = g_c - g_0 + (k_c - k_0) * eps
    elif residual == "sds":
        value = g + (k - 1) * eps
    else:  # the second term has the same noise; the fake score is guided as the teacher is
        other = line(teacher, x0, later, scene.cond) if fake is None else guided(fake, x0, t, scene.cond, SCALE)
        value = g - other[0] + (k - other[1]) * eps
    gradient = WEIGHTS[weight](*levels(scene.prior.schedule, t)) * value / x0.numel()
    expected = scene.chained(gradient)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))

    way = torch.randn(len(found), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = []
    with torch.no_grad():  # and without automatic differentiation
        for step in (1e-6, -2e-6):
            scene.moved(step * way)
            sums.append((scene.x0() * gradient).sum())
    torch.testing.assert_close(found @ way, (sums[0] - sums[1]) / 2e-6, rtol=1e-5, atol=0)


def loss_of(prior: MultiViewPrior, x0: Tensor, cond: Any, residual: str, eta: float, scale: float) -> Tensor:
    judge = Judge(prior, TIMES, scale)  # type: ignore[arg-type]
    null = without_words(cond)
    return judge.loss(x0, cond, RANDOM, residual=residual, weight="sigma2", eta=eta, null=null)[0]


@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_asd_without_a_shift_is_csd_times_the_guidance_less_one(scale: float) -> None:
    """For an exact prior and for a network with random weights, in the field's parameters."""
    scene = Scene()
    asd = scene.gradients(loss_of(scene.prior, scene.x0(), scene.cond, "asd", 0.0, scale))
    csd = scene.gradients(loss_of(scene.prior, scene.x0(), scene.cond, "csd", 0.0, scale))
    torch.testing.assert_close(asd, (scale - 1) * csd, rtol=1e-9, atol=1e-12)
    shifted = scene.gradients(loss_of(scene.prior, scene.x0(), scene.cond, "asd", ETA, scale))
    assert (shifted - asd).norm() > 0.05 * csd.norm()

    network = random_prior(size=16)
    x0 = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cond = {name: part.float() if part.is_floating_point() else part for name, part in scene.cond.items()}
    of = {name: loss_of(network, x0, cond, name, 0.0, scale) for name in ("asd", "csd")}
    a, c = (torch.autograd.grad(of[name], x0)[0] for name in ("asd", "csd"))
    torch.testing.assert_close(a, (scale - 1) * c, rtol=1e-3, atol=1e-5 * float(c.abs().max()))
    assert c.abs().max() > 0


class Recorder(nn.Module):
    """A network that keeps what it was asked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.asked: list[tuple[Tensor, Tensor, Any]] = []

    def forward(self, x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        self.asked.append((x_t, time, cond))
        made: Tensor = self.inner(x_t, time, cond)
        return made


def test_both_terms_of_asd_share_the_noise_and_guidance_keeps_the_cameras() -> None:
    scene = Scene()
    recorder: Any = Recorder(scene.prior.backbone)
    scene.prior.backbone = recorder
    x0 = scene.x0().detach()
    loss_of(scene.prior, x0, scene.cond, "asd", ETA, SCALE)
    eps, t, later = drawn(scene.prior, x0.shape[1:])
    (now, times, cond), (then, times_later, cond_later) = recorder.asked  # null and prompt in one pass, then the later
    assert times.tolist() == [*t.tolist()] * 2 and times_later.tolist() == later.tolist()
    for x_t, time, rows in ((now[:2], t, slice(0, 2)), (now[2:], t, slice(2, 4)), (then, later, None)):
        alpha, sigma = levels(scene.prior.schedule, time)
        torch.testing.assert_close((x_t - alpha * x0) / sigma, eps, rtol=0, atol=1e-12)
        told = cond_later if rows is None else {name: part[rows] for name, part in cond.items()}
        for name in ("camera", "background"):
            assert torch.equal(told[name], scene.cond[name]), name
    assert torch.equal(cond["words"], torch.cat([torch.zeros_like(scene.cond["words"]), scene.cond["words"]]))
    assert torch.equal(cond_later["words"], scene.cond["words"])


def test_the_empty_prompt_is_refused_where_there_are_no_words() -> None:
    for cond in (None, torch.zeros(2, 3), {"camera": torch.zeros(2, 4, 2)}):
        with pytest.raises(ValueError, match="the part words"):
            without_words(cond)


def test_perp_neg_leads_away_from_another_object_but_not_from_the_prompt() -> None:
    """e_0 + s (d - w (n - (<n, d> / <d, d>) d)), d = e_c - e_0, n = e_neg - e_0; so its part along d is that of s d."""
    scene, share = Scene(), 0.8
    network: Any = scene.prior.backbone
    other: Any = scene.prior.condition(PROMPTS[::-1], scene.cond["camera"], scene.background)
    null = without_words(scene.cond)
    judge = Judge(scene.prior, TIMES, SCALE)  # type: ignore[arg-type]
    negatives = PerpNeg([other], [share])
    loss, _ = judge.loss(
        scene.x0(), scene.cond, RANDOM, residual="sds", weight="uniform", null=null, perp_neg=negatives
    )
    found = scene.gradients(loss)
    x0 = scene.x0().detach()
    eps, t, _ = drawn(scene.prior, x0.shape[1:])
    e_0, e_c, e_n = (g + k * eps for g, k in (line(network, x0, t, cond) for cond in (null, scene.cond, other)))
    away = torch.empty_like(e_0)
    for i in range(2):  # for each object over all of its views together
        d, n = (e_c - e_0)[i], (e_n - e_0)[i]
        away[i] = n - (n * d).sum() / (d * d).sum() * d
    value = e_0 + SCALE * (e_c - e_0 - share * away) - eps
    expected = scene.chained(value / x0.numel())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    plain = scene.gradients(loss_of(scene.prior, scene.x0(), scene.cond, "sds", ETA, SCALE))
    assert (plain - found).norm() > 0.01 * found.norm()


# ---- a whole fit ----------------------------------------------------------------------------------------------

STEPS, RINGS = 150, 4


@pytest.mark.parametrize("residual", ["sds", "csd", "asd"])
def test_a_triplane_comes_to_the_views_that_a_gaussian_prior_wants(residual: str) -> None:
    """The error of images falls to a 25th in 150 steps, from the rings that are judged and from one that is not."""
    side = 12
    starts = SampleRandom(0, range(RINGS + 1)).uniform("ring", (2,)).tolist()
    grid = Grid(side)
    pool = BakedRings([cameras((a, e)).to(torch.float32) for a, e in starts], grid, side, side, side)
    with torch.no_grad():
        truth = bake(TrueField([Prompt("table", "red")]), grid)
        wanted = [render_baked(truth, views, 20.0) for views in pool]
        on_black = [render_baked(truth, views, 20.0, (0.0, 0.0, 0.0)) for views in pool]
    priors = [gaussian_prior(seen.colour.double(), seen.opacity.double(), (0.1, 1.0)) for seen in on_black]
    torch.manual_seed(0)
    heads, planes = SharedHeads(HeadSettings((32,), joint=True), 24), nn.Parameter(0.1 * torch.randn(1, 3, 8, 16, 16))
    optimiser = torch.optim.Adam([planes, *heads.parameters()], 0.02, (0.5, 0.9))

    def images(views: Any) -> Tensor:
        field = FeatureField(Planes(planes), heads(), 1, 1.0, planes.device)
        return render_baked(bake(field, grid), views, 20.0).colour

    @torch.no_grad()
    def errors() -> list[float]:
        return [float((images(views) - seen.colour).square().mean()) for views, seen in zip(pool, wanted, strict=True)]

    before = errors()
    for step in range(STEPS):
        views, prior = pool[step % RINGS], priors[step % RINGS]
        camera = torch.stack([views.cameras.azimuth_deg, views.cameras.elevation_deg], -1)[None]
        cond = prior.condition(["ball"], camera, torch.ones(1, 3))
        judge = Judge(prior, JudgedTimes(0.02, 0.2), 7.5)  # type: ignore[arg-type]
        loss, _ = judge.loss(
            2 * images(views) - 1, cond, SampleRandom(0, [step]), residual=residual, weight="sigma2",
            null=without_words(cond),
        )  # fmt: skip
        optimiser.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / STEPS))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = errors()
    assert sum(after[:RINGS]) < sum(before[:RINGS]) / 25
    assert after[RINGS] < before[RINGS] / 25
