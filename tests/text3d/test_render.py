"""Images against closed forms, and against themselves in chunks, in batches and from another backend."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from text3d.analytic_fields import Blobs, Boxes, Constant, Spheres
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.background import LearnedBackground, harmonics
from diffdistill.text3d.cameras import Cameras, interval
from diffdistill.text3d.regularisers import eikonal
from diffdistill.text3d.render import Rendered, Renderer, RenderSettings

FRONT = Cameras.of([0.0], [0.0], [3.0], [40.0]).to(torch.float64)
ROUND = Cameras.of([10.0, -20.0, 60.0], [20.0, 130.0, -100.0], [3.0, 2.5, 3.5], [40.0, 50.0, 35.0]).to(torch.float64)
COLOURS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.7, 0.3], [0.2, 0.3, 0.8]]).double()
MIDDLES = torch.tensor([[0.0, 0.0, 0.0], [0.2, -0.1, 0.1], [-0.2, 0.1, 0.3]]).double()


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spheres(count: int = 3, slope: float = 0.2) -> Spheres:
    sizes = torch.tensor([0.6, 0.4, 0.5]).double()
    return Spheres(sizes[:count], MIDDLES[:count], COLOURS[:count], slope=slope)


def blobs(count: int = 3) -> Blobs:
    return Blobs(torch.tensor([0.4, 0.3, 0.5]).double()[:count], MIDDLES[:count], COLOURS[:count], slope=0.2)


def same(found: Rendered, wanted: Rendered, atol: float = 1e-6) -> None:
    for name in ("colour", "opacity", "depth", "normals"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=atol, rtol=0)


@pytest.mark.parametrize("region", ["box", "ball"])
def test_a_constant_density_is_seen_as_thick_as_the_box_is(region: str) -> None:
    settings = RenderSettings(samples=500, sharpness=2.0, region=region, background=(0.0, 0.0, 1.0))  # type: ignore[arg-type]
    distances = torch.tensor([0.2, -0.3]).double()
    field = Constant(distances, torch.tensor([[1.0, 0.5, 0.0]] * 2).double())
    found = Renderer(settings)(field, ROUND, 6, 5)
    near, far, hit = interval(ROUND.rays(6, 5), 1.0, region)  # type: ignore[arg-type]
    assert hit.any()
    for p, distance in enumerate(distances.tolist()):
        sigma = 2 * (0.5 * math.exp(-2 * distance) if distance > 0 else 1 - 0.5 * math.exp(2 * distance))
        opacity = 1 - torch.exp(-sigma * (far - near))
        depth = near + 1 / sigma - (1 - opacity) * (far + 1 / sigma)
        torch.testing.assert_close(found.opacity[p], opacity)
        torch.testing.assert_close(found.depth[p], depth, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.colour[p, :, 1], 0.5 * opacity)
        torch.testing.assert_close(found.colour[p, :, 2], 1 - opacity)


@pytest.mark.parametrize("normals", ["analytic", "differences"])
def test_a_hard_sphere_has_its_silhouette_depth_and_normals(normals: str) -> None:
    settings = RenderSettings(samples=1000, sharpness=3000.0, normals=normals, step=1e-4, ray_chunk=100)  # type: ignore[arg-type]
    with torch.no_grad():
        found = Renderer(settings)(spheres(slope=0.0), ROUND, 16, 16, normals=True)
    origins, directions = ROUND.rays(16, 16)
    for p, (size, middle) in enumerate(zip((0.6, 0.4, 0.5), MIDDLES, strict=True)):
        from_middle = origins - middle
        along = (from_middle * directions).sum(-1)
        apart = (from_middle - along[..., None] * directions).norm(dim=-1)
        silhouette, clear = apart < size, (apart - size).abs() > 0.02
        assert torch.equal(found.opacity[p][clear] > 0.5, silhouette[clear]) and 0.02 < silhouette.double().mean() < 0.5
        torch.testing.assert_close(found.opacity[p][clear], silhouette[clear].double(), atol=1e-3, rtol=0)
        inner = apart < size - 0.05
        depth = -along - (size**2 - apart.square()).clamp_min(0).sqrt()
        torch.testing.assert_close(found.depth[p][inner], depth[inner], atol=2e-3, rtol=0)
        assert found.normals is not None
        wanted = (from_middle + depth[..., None] * directions) / size
        torch.testing.assert_close(found.normals[p].movedim(1, -1)[inner], wanted[inner], atol=1e-2, rtol=0)
        colour = torch.where(silhouette[..., None], COLOURS[p], torch.ones(3).double())
        torch.testing.assert_close(found.colour[p].movedim(1, -1)[clear], colour[clear], atol=1e-3, rtol=0)


def test_a_hard_box_has_flat_faces() -> None:
    settings = RenderSettings(samples=400, sharpness=3000.0, normals="analytic")
    half = torch.tensor([[0.3, 0.5, 0.2]]).double()
    found = Renderer(settings)(Boxes(half, COLOURS[:1]), FRONT, 32, 32, normals=True)
    origins, directions = FRONT.rays(32, 32)
    on_face = origins + directions * ((0.3 - origins[..., :1]) / directions[..., :1])
    margin = (on_face.abs() - half[0])[..., 1:].amax(-1)
    front = margin < -0.02
    torch.testing.assert_close(found.depth[0][front], (on_face - origins).norm(dim=-1)[front], atol=2e-2, rtol=0)
    assert found.normals is not None and not (found.opacity[0][margin > 0.02] > 1e-3).any() and int(front.sum()) > 40
    facing = torch.tensor([1.0, 0.0, 0.0]).double().expand(int(front.sum()), 3)
    torch.testing.assert_close(found.normals[0].movedim(1, -1)[front], facing, atol=1e-3, rtol=0)


def test_the_textbook_loop_of_the_benchmark_makes_the_same_image() -> None:
    spec = importlib.util.spec_from_file_location("bench_render", Path(__file__).parents[2] / "bench" / "render.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    for field in (spheres(), blobs()):
        wanted = bench.textbook(field, ROUND, 9, 20, 15.0)
        found = Renderer(RenderSettings(samples=20, sharpness=15.0))(field, ROUND, 9, 9)
        torch.testing.assert_close(found.colour, wanted, atol=1e-12, rtol=0)


def test_more_samples_come_nearer_to_the_integral() -> None:
    """Each four-fold number of samples takes the error down by much more than four."""
    images = [
        Renderer(RenderSettings(samples=samples, sharpness=20.0))(blobs(), ROUND, 8, 8).colour
        for samples in (16, 64, 256, 2048)
    ]
    errors = [float((image - images[-1]).abs().mean()) for image in images[:-1]]
    assert errors[1] < errors[0] / 8 and errors[2] < errors[1] / 8 and errors[2] < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        RenderSettings(samples=9, sharpness=8.0, compositing="own"),
        RenderSettings(samples=9, sharpness=8.0, normals="analytic", region="ball"),
        RenderSettings(samples=9, sharpness=8.0, normals="differences", ray_chunk=5),
    ],
)
def test_gradients_are_those_of_finite_differences(settings: RenderSettings) -> None:
    camera, pull = ROUND[:1], uniforms(2, 1, 8, 4, 4)

    def loss(widths: Tensor, middles: Tensor, colour: Tensor, behind: Tensor) -> Tensor:
        field = Blobs(widths, middles, colour, slope=0.2)
        found = Renderer(settings)(field, camera, 4, 4, background=behind, normals=True, jitter=uniforms(1, 4, 4, 2))
        assert found.normals is not None
        parts = (found.colour, found.opacity[:, :, None], found.depth[:, :, None], found.normals)
        return (torch.cat(parts, 2) * pull).sum()

    given = (torch.tensor([0.4, 0.3]).double(), MIDDLES[:2].clone(), COLOURS[:2].clone(), uniforms(1, 3))
    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in given), atol=1e-6, fast_mode=True)


def gradients(
    settings: RenderSettings, cameras: Cameras | list[Cameras], jitter: Tensor
) -> tuple[Rendered, list[Tensor]]:
    """An image and the gradients of a loss of all that is rendered."""
    given = [torch.tensor([0.4, 0.3, 0.5]).double(), MIDDLES.clone(), COLOURS.clone()]
    for x in given:
        x.requires_grad_()
    made = Renderer(settings)(Blobs(*given, slope=0.2), cameras, 7, 6, jitter=jitter, normals=True, keep_samples=True)
    assert made.normals is not None and made.samples is not None and made.samples.gradients is not None
    loss = made.colour.square().mean() + made.depth.mean() + made.normals.square().mean()
    loss = loss + eikonal(made.samples.gradients) + (made.samples.weights * made.samples.places).square().mean()
    return made, list(torch.autograd.grad(loss, given))


@pytest.mark.parametrize("own_cameras", [False, True])
@pytest.mark.parametrize("resampled", [0, 6])
def test_chunks_change_nothing(resampled: int, own_cameras: bool) -> None:
    settings = RenderSettings(samples=8, resampled=resampled, sharpness=10.0)
    cameras: Cameras | list[Cameras] = [ROUND, ROUND[[1, 2, 0]], ROUND[[2, 2, 1]]] if own_cameras else ROUND
    jitter = uniforms(3, 3, 7, 6, 2) if own_cameras else uniforms(3, 7, 6, 2)
    whole, of_whole = gradients(settings, cameras, jitter)
    parts, of_parts = gradients(dataclasses.replace(settings, ray_chunk=10), cameras, jitter)
    same(parts, whole)
    for one, other in zip(of_parts, of_whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        field = blobs()
        found = Renderer(dataclasses.replace(settings, ray_chunk=10))(field, cameras, 7, 6, jitter=jitter, normals=True)
    torch.testing.assert_close(found.colour, whole.colour.detach(), atol=1e-6, rtol=0)


def kept_bytes(settings: RenderSettings, side: int) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    field = Blobs(torch.tensor([0.4]).requires_grad_(), MIDDLES[:1].float(), COLOURS[:1].float())
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        Renderer(settings)(field, FRONT.to(torch.float32), side, side)
    return total


def test_chunks_keep_the_rays_and_not_the_samples() -> None:
    whole, chunked = RenderSettings(samples=64), RenderSettings(samples=64, ray_chunk=64)
    assert kept_bytes(whole, 32) > 10 * kept_bytes(whole, 8) > 0
    rays = int(interval(FRONT.rays(32, 32), 1.0).hit.sum())
    assert kept_bytes(chunked, 32) < rays * 200  # origins, directions, sums: less than one value a sample
    assert kept_bytes(whole, 32) > rays * 64 * 4 * 10


def test_rays_that_miss_are_not_asked_for() -> None:
    field, wide = spheres(1), Cameras.of([0.0], [0.0], [3.0], [70.0]).to(torch.float64)
    found = Renderer(RenderSettings(samples=10))(field, wide, 16, 16)
    hit = interval(wide.rays(16, 16), 1.0).hit
    assert field.asked == 10 * int(hit.sum()) < 10 * 16 * 16
    assert (found.colour[0].movedim(1, -1)[~hit] == 1).all() and not found.opacity[0][~hit].any()


@pytest.mark.parametrize("resampled", [0, 5])
def test_a_batch_of_objects_is_each_by_itself(resampled: int) -> None:
    render = Renderer(RenderSettings(samples=12, resampled=resampled, sharpness=15.0))
    jitter, behind = uniforms(3, 3, 5, 5, 2), uniforms(3, 3, 3)
    own = [ROUND, ROUND[[1, 2, 0]], ROUND[[2, 0, 1]]]
    shared = render(blobs(), ROUND, 5, 5, background=behind, jitter=jitter[0], normals=True)
    apart = render(blobs(), own, 5, 5, background=behind, jitter=jitter, normals=True)
    for p in range(3):
        field = Blobs(
            torch.tensor([0.4, 0.3, 0.5]).double()[p : p + 1], MIDDLES[p : p + 1], COLOURS[p : p + 1], slope=0.2
        )
        for many, cameras, moved in ((shared, ROUND, jitter[0]), (apart, own[p], jitter[p])):
            alone = render(field, cameras, 5, 5, background=behind[p : p + 1], jitter=moved, normals=True)
            assert many.normals is not None
            same(alone, Rendered(*(part[p : p + 1] for part in many[:4] if part is not None)), 1e-12)


def test_nerfacc_composes_the_same_image() -> None:
    pytest.importorskip("nerfacc")
    for region in ("box", "ball"):
        made = [
            Renderer(RenderSettings(samples=24, resampled=8, compositing=backend, region=region))(  # type: ignore[arg-type]
                spheres(), ROUND, 10, 10, normals=True
            )
            for backend in ("own", "nerfacc")
        ]
        same(*made)


def test_differences_and_derivatives_agree_on_normals() -> None:
    found = []
    for how, step in (("analytic", 1.0), ("differences", 0.01), ("differences", 0.001)):
        settings = RenderSettings(samples=32, normals=how, step=step)  # type: ignore[arg-type]
        with torch.no_grad():
            found.append(Renderer(settings)(spheres(), ROUND, 8, 8, normals=True).normals)
    exact, coarse, fine = found
    assert exact is not None and coarse is not None and fine is not None and not exact.requires_grad
    coarse_error, fine_error = float((coarse - exact).abs().max()), float((fine - exact).abs().max())
    assert coarse_error < 0.02 and fine_error < coarse_error / 8  # of first order in the step
    automatic = Renderer(RenderSettings(samples=32))
    with torch.no_grad():
        assert torch.equal(automatic(spheres(), ROUND, 8, 8, normals=True).normals, exact)
    same_as = automatic(spheres(), ROUND, 8, 8, normals=True).normals
    assert same_as is not None and torch.equal(same_as, coarse)


def test_backgrounds_stand_where_nothing_is() -> None:
    far = Constant(torch.tensor([9.0, 9.0]).double(), COLOURS[:2])
    render = Renderer(RenderSettings(samples=4, sharpness=50.0, background=(0.1, 0.2, 0.3)))
    constant = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)[:, None, None].expand(2, 3, 3, 3, 5)
    assert torch.equal(render(far, ROUND, 3, 5).colour, constant)
    for behind in (uniforms(3), uniforms(3, 3), uniforms(2, 3, 3), uniforms(1, 3, 3)):
        wanted = behind.expand(2, 3, 3)[..., None, None].expand(2, 3, 3, 3, 5)
        assert torch.equal(render(far, ROUND, 3, 5, background=behind).colour, wanted)
    picture = uniforms(1, 3, 3, 3, 5)
    assert torch.equal(render(far, ROUND, 3, 5, background=picture).colour, picture.expand(2, -1, -1, -1, -1))
    torch.manual_seed(0)
    learned = LearnedBackground().double()
    found = render(far, [ROUND, ROUND[[2, 1, 0]]], 3, 5, background=learned).colour
    wanted = learned(ROUND.rays(3, 5).directions).movedim(-1, 1)
    torch.testing.assert_close(found, torch.stack([wanted, wanted.flip(0)]))
    found.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned.parameters())
    for wrong in ((4,), (2, 3), (3, 3, 3), (2, 3, 4)):
        with pytest.raises(UserError, match="the background is"):
            render(far, ROUND, 3, 5, background=uniforms(*wrong))


def test_the_harmonics_are_orthonormal() -> None:
    """By Gauss and Legendre's rule for z, and even angles around it, exact for these degrees."""
    nodes, weights = (torch.tensor([-math.sqrt(0.6), 0.0, math.sqrt(0.6)]), torch.tensor([5, 8, 5]) / 9)
    angles = torch.arange(8) * (2 * math.pi / 8)
    z, angle = torch.meshgrid(nodes, angles, indexing="ij")
    flat = (1 - z.square()).sqrt()
    found = harmonics(torch.stack([flat * angle.cos(), flat * angle.sin(), z], -1))
    gram = torch.einsum("zak,zal,z->kl", found, found, weights) * (2 * math.pi / 8)
    torch.testing.assert_close(gram, torch.eye(9), atol=1e-5, rtol=0)


def test_sharpness_can_be_given_by_the_call() -> None:
    field = Spheres(torch.tensor([0.5]), torch.zeros(1, 3), COLOURS[:1].float())
    cameras = ROUND.to(torch.float32)
    soft, hard = (Renderer(RenderSettings(sharpness=k))(field, cameras, 6, 6) for k in (5.0, 80.0))
    given = Renderer(RenderSettings(sharpness=5.0))(field, cameras, 6, 6, sharpness=80.0)
    same(given, hard, 0.0)
    assert (soft.opacity - hard.opacity).abs().max() > 0.1
    same(Renderer()(field, cameras, 6, 6, sharpness=torch.tensor(80.0)), hard)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "samples of the renderer is 0; it must be 1 or more"),
        ({"resampled": -1}, "resampled of the renderer is -1"),
        ({"ray_chunk": 0}, "ray_chunk of the renderer is 0"),
        ({"sharpness": -3.0}, "sharpness of the renderer is -3; it must be above 0"),
        ({"region": "cube"}, "region of the renderer is 'cube'"),
        ({"normals": "none"}, "normals of the renderer is 'none'"),
        ({"background": (0.0, 0.0, 2.0)}, "background of the renderer is"),
    ],
)
def test_settings_that_cannot_be_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RenderSettings(**wrong)  # type: ignore[arg-type]


def test_what_does_not_fit_is_named() -> None:
    render = Renderer()
    with pytest.raises(UserError, match=r"3 objects are rendered from \[3, 3\] cameras"):
        render(spheres(), [ROUND, ROUND], 4, 4)
    with pytest.raises(UserError, match=r"jitter is \(4, 4, 2\); it must be \(3, 4, 4, 2\)"):
        render(spheres(), ROUND, 4, 4, jitter=uniforms(4, 4, 2))
    blind = Cameras.of([0.0, 0.0], [0.0, 0.0], [3.0, 30.0], [40.0, 150.0]).to(torch.float64)
    with pytest.raises(UserError, match="camera 1 .* sees nothing"):
        render(spheres(), blind, 4, 4)
