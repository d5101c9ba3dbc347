"""Densities, weights and places of samples against closed forms, loops and nerfacc."""

import importlib.util
import math

import pytest
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d import volume


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [5.0, 30.0, 120.0])
def test_the_density_is_the_laplace_distribution_with_all_its_digits(k: float) -> None:
    sdf = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)
    psi = torch.distributions.Laplace(*torch.tensor([0.0, 1 / k], dtype=torch.float64)).cdf(-sdf)
    torch.testing.assert_close(volume.volsdf_density(sdf, k), k * psi)
    far = torch.tensor([0.4, 0.6])
    wanted = 0.5 * k * torch.exp(-k * far.double())  # of single precision too, where 1/2 + 1/2 expm1 has no digits left
    torch.testing.assert_close(volume.volsdf_density(far, k).double(), wanted, rtol=1e-5, atol=0)
    deep = volume.volsdf_density(torch.tensor([-1e9, -100.0, 100.0, 1e9]), k)
    assert deep.tolist() == [k, k, 0.0, 0.0]


def test_the_density_has_its_slope_on_the_surface_too() -> None:
    sdf = torch.tensor([-0.1, 0.0, 0.1], dtype=torch.float64, requires_grad=True)
    k = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    volume.volsdf_density(sdf, k).sum().backward()
    wanted = -200 * torch.exp(-20 * sdf.detach().abs())
    torch.testing.assert_close(sdf.grad, wanted)
    away = torch.tensor([-0.1, 0.05, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(volume.volsdf_density, (away, k))


def test_weights_are_those_of_a_loop_over_the_intervals() -> None:
    density, edges = draw(2, 5, 7) * 8, draw(5, 8, seed=1).sort(-1).values
    found = volume.render_weights(density, edges)
    for p in range(2):
        for r in range(5):
            left = 1.0
            for i in range(7):
                alpha = 1 - math.exp(-float(density[p, r, i]) * float(edges[r, i + 1] - edges[r, i]))
                assert abs(float(found[p, r, i]) - left * alpha) < 1e-12
                left *= 1 - alpha
    whole = 1 - torch.exp(-(density * edges.diff(dim=-1)).sum(-1))
    torch.testing.assert_close(found.sum(-1), whole)
    values = draw(2, 5, 7, 4, seed=2)
    torch.testing.assert_close(volume.accumulate(found, values), torch.einsum("prs,prsc->prc", found, values))


def test_walls_hide_what_is_behind_and_empty_intervals_weigh_nothing() -> None:
    density = torch.tensor([0.0, torch.inf, 3.0, torch.inf])
    assert volume.render_weights(density, torch.arange(5.0)).tolist() == [0.0, 1.0, 0.0, 0.0]
    edges = torch.tensor([0.0, 1.0, 1.0, 2.0])
    weights = volume.render_weights(torch.full((3,), 50.0), edges)
    assert weights[1] == 0 and weights.sum() == 1
    steep = torch.full((3,), 1e10, requires_grad=True)
    volume.render_weights(steep, torch.arange(4.0)).sum().backward()
    assert steep.grad is not None and steep.grad.isfinite().all()


def test_a_slab_of_constant_density_has_its_opacity_and_depth() -> None:
    near, far = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 2.5, 4.0]).double()
    sigma = torch.tensor([0.3, 5.0, 2.0]).double()
    edges = volume.stratified_edges(near, far, 400, draw(3, 399))
    weights = volume.render_weights(sigma[:, None].expand(-1, 400), edges)
    length = far - near
    opacity = 1 - torch.exp(-sigma * length)
    torch.testing.assert_close(weights.sum(-1), opacity)
    depth = (
        near + 1 / sigma - torch.exp(-sigma * length) * (far + 1 / sigma)
    )  # integral of t sigma exp(-sigma (t-near))
    torch.testing.assert_close((weights * volume.middles(edges)).sum(-1), depth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nerfacc_gives_the_same_numbers_and_gradients(dtype: torch.dtype) -> None:
    pytest.importorskip("nerfacc")
    own, other = volume.compositing("own"), volume.compositing("nerfacc")
    edges = volume.stratified_edges(draw(9), 1 + draw(9, seed=1), 33, draw(9, 32, seed=2)).to(dtype)
    values, pull = draw(4, 9, 33, 3, seed=3).to(dtype), draw(4, 9, 3, seed=4).to(dtype)
    made = []
    for functions in (own, other):
        density = (draw(4, 9, 33, seed=5) * 40).to(dtype).requires_grad_()
        weights = functions.weights(density, edges)
        sums = functions.accumulate(weights, values)
        (sums * pull).sum().backward()
        made.append((weights, sums, functions.accumulate(weights, values[:1, :1]), density.grad))
    for mine, theirs in zip(*made, strict=True):
        assert mine is not None and theirs is not None
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_the_backend_is_chosen_or_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="compositing is 'cuda'; it must be"):
        volume.compositing("cuda")  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert volume.compositing("auto").weights is volume.render_weights
    with pytest.raises(UserError, match=r"pip install 'diffdistill\[text3d\]'"):
        volume.compositing("nerfacc")


def test_edges_fill_the_ray_and_stay_in_order() -> None:
    near, far = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.5]])
    even = volume.stratified_edges(near, far, 4)
    torch.testing.assert_close(even[:, 0], torch.tensor([[1, 1.25, 1.5, 1.75, 2], [0, 0.125, 0.25, 0.375, 0.5]]))
    for jitter in (draw(2, 1, 1), draw(2, 1, 3), torch.zeros(1), torch.ones(1)):
        edges = volume.stratified_edges(near, far, 4, jitter.float())
        assert (edges.diff(dim=-1) >= 0).all() and edges.shape == (2, 1, 5)
        assert torch.equal(edges[..., 0], near) and torch.equal(edges[..., -1], far)
        away = (edges - even)[..., 1:-1] / (far - near)[..., None] * 4
        torch.testing.assert_close(away, (jitter.float() - 0.5).expand_as(away))
    assert volume.stratified_edges(near, far, 1, draw(2, 1, 1).float()).shape == (2, 1, 2)
    with pytest.raises(UserError, match="a ray has 0 samples"):
        volume.stratified_edges(near, far, 0)


def cumulated(edges: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """The share of the weights before places, of one ray; uniform within an interval."""
    share = ((places[:, None] - edges[:-1]) / edges.diff()).clamp(0, 1)
    return (share * weights).sum(-1) / weights.sum()


def test_places_are_the_inverse_of_the_cumulated_weights() -> None:
    edges, weights = draw(3, 9).sort(-1).values, draw(3, 8, seed=1) ** 4
    weights[:, 2:4] = 0
    for jitter in (None, draw(3, 1, seed=2), draw(3, 50, seed=3)):
        found = volume.resampled_edges(edges, weights, 50, jitter, even=0.0)
        assert (found.diff(dim=-1) >= 0).all()
        wanted = (torch.arange(50) + (0.5 if jitter is None else jitter)) / 50
        for r in range(3):
            torch.testing.assert_close(cumulated(edges[r], weights[r], found[r]), wanted.expand(3, 50)[r].double())
    assert not ((found > edges[:, 2:3]) & (found < edges[:, 4:5])).any()  # nothing where no weight is


def test_rays_without_weights_are_sampled_evenly_and_missed_rays_nowhere() -> None:
    edges = torch.tensor([[0.0, 1.0, 4.0], [0.0, 0.0, 0.0]])
    found = volume.resampled_edges(edges, torch.zeros(2, 2), 8)
    torch.testing.assert_close(found[0], (torch.arange(8) + 0.5) / 2)
    assert found[1].tolist() == [0.0] * 8
    shared = volume.resampled_edges(edges[:1], torch.zeros(5, 1, 2), 8)  # of five objects
    torch.testing.assert_close(shared, found[:1].expand(5, 1, 8))
    some = volume.resampled_edges(edges[:1], torch.tensor([[0.99, 0.0]]), 100, even=0.04)
    assert int((some > 1).sum()) == 3  # .03 of 1.03


def test_merged_edges_are_all_of_them_in_order() -> None:
    edges, more = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.1, 1.5, 1.7])
    assert volume.merged_edges(edges, more).tolist() == pytest.approx([0.0, 0.1, 1.0, 1.5, 1.7, 2.0])


def test_samples_are_won_by_putting_them_where_the_weights_are() -> None:
    """A thin wall at .503: the depth of 16 + 16 samples against that of 32 even ones."""

    def depth(edges: Tensor) -> float:
        sigma = volume.volsdf_density((volume.middles(edges) - 0.503).abs() - 0.01, 200.0)
        return float((volume.render_weights(sigma, edges) * volume.middles(edges)).sum())

    near, far = torch.zeros(1).double(), torch.ones(1).double()
    truth = depth(volume.stratified_edges(near, far, 20_000))
    edges = volume.stratified_edges(near, far, 16)
    sigma = volume.volsdf_density((volume.middles(edges) - 0.503).abs() - 0.01, 200.0)
    weights = volume.render_weights(sigma, edges)
    chosen = volume.merged_edges(edges, volume.resampled_edges(edges, weights, 16))
    assert chosen.shape[-1] == 33
    assert abs(depth(chosen) - truth) < 0.5 * abs(depth(volume.stratified_edges(near, far, 32)) - truth)
