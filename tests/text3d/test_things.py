"""Primitives are distances, things have the form that their names say, and views show them as closed forms do."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.things import primitives
from diffdistill.text3d.things.catalogue import COLOURS, Prompt
from diffdistill.text3d.things.procedural import FAR, JITTERS, REACH, THINGS, mean_instance
from diffdistill.text3d.things.sphere_tracing import traced_views
from diffdistill.text3d.things.true_field import TrueField
from diffdistill.text3d.things.viewpoints import DISTANCE, FOV_DEG, reference_views, shade

TANGENT = math.tan(math.radians(FOV_DEG / 2))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(name: str, points: Tensor, instance: Tensor | None = None) -> Tensor:
    """To the surface of a thing."""
    return torch.minimum(*THINGS[name].parts(points, mean_instance() if instance is None else instance))


def angles(*pairs: tuple[float, float]) -> tuple[Tensor, Tensor]:
    azimuth, elevation = torch.tensor(pairs).unbind(1)
    return azimuth, elevation


def on_outline(corners: list[tuple[float, float]], each: int = 4000) -> Tensor:
    """Points on the edges of a polygon."""
    ends = torch.tensor(corners, dtype=torch.float64)
    share = torch.linspace(0, 1, each, dtype=torch.float64)[None, :, None]
    return (ends[:, None] * (1 - share) + ends.roll(-1, 0)[:, None] * share).reshape(-1, 2)


# primitives


@pytest.mark.parametrize("turned", [False, True])
def test_a_concave_polygon_against_brute_force(turned: bool) -> None:
    corners = [(-0.8, -0.6), (0.7, -0.6), (0.7, 0.5), (0.4, 0.5), (0.3, -0.2), (-0.2, -0.2), (-0.3, 0.6), (-0.8, 0.5)]
    at = torch.rand(600, 2, generator=seeded(), dtype=torch.float64) * 2.4 - 1.2
    found = primitives.polygon(*at.unbind(-1), corners[::-1] if turned else corners)
    assert (found.abs() - torch.cdist(at, on_outline(corners)).amin(1)).abs().max() < 1e-3
    spokes = torch.tensor(corners, dtype=torch.float64)[None] - at[:, None]
    angle = torch.atan2(spokes[..., 1], spokes[..., 0])
    steps = (angle.roll(-1, 1) - angle + math.pi) % (2 * math.pi) - math.pi
    assert torch.equal(found < 0, (steps.sum(1) / (2 * math.pi)).round().abs() == 1)  # by the winding number


def test_a_half_disc_against_brute_force() -> None:
    turn = torch.linspace(0, math.pi, 20000, dtype=torch.float64)
    arc = 0.7 * torch.stack([turn.cos(), turn.sin()], -1)
    outline = torch.cat([arc, on_outline([(-0.7, 0.0), (0.7, 0.0)])])
    at = torch.rand(600, 2, generator=seeded(), dtype=torch.float64) * 2.4 - 1.2
    found = primitives.half_disc(*at.unbind(-1), 0.7)
    assert (found.abs() - torch.cdist(at, outline).amin(1)).abs().max() < 1e-3
    assert torch.equal(found < 0, (at.norm(dim=1) < 0.7) & (at[:, 1] > 0))


def test_solids_against_closed_forms() -> None:
    at = torch.rand(2000, 3, generator=seeded(), dtype=torch.float64) * 4 - 2
    x, y, z = at.unbind(-1)
    assert torch.allclose(primitives.ball(x, y, z, 0.6), at.norm(dim=1) - 0.6)
    half = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)
    nearest = at.clamp(-half, half)  # of a box, from outside
    inside = (half - at.abs()).amin(1)
    box = torch.where(inside > 0, -inside, (at - nearest).norm(dim=1))
    assert torch.allclose(primitives.box(x, y, z, 0.9, 0.5, 0.3), box)
    assert torch.allclose(primitives.extruded(primitives.rectangle(x, y, 0.9, 0.5), z, 0.3), box)
    rounded = primitives.box(x, y, z, 0.9, 0.5, 0.3, rounding=0.1)
    smaller = primitives.box(x, y, z, 0.8, 0.4, 0.2)
    assert torch.allclose(rounded, smaller - 0.1)
    circle = 0.7 * torch.nn.functional.normalize(at[:, :2], dim=1)
    middle = torch.cat([circle, torch.zeros_like(z)[:, None]], 1)
    assert torch.allclose(primitives.torus(x, y, z, 0.7, 0.2), (at - middle).norm(dim=1) - 0.2)
    joined = primitives.union(primitives.ball(x - 1, y, z, 0.5), primitives.ball(x + 1, y, z, 0.5))
    assert torch.allclose(joined, torch.minimum((at - torch.tensor([1.0, 0, 0])).norm(dim=1),
                                                (at + torch.tensor([1.0, 0, 0])).norm(dim=1)) - 0.5)  # fmt: skip


def test_a_turned_polygon_is_the_cone() -> None:
    """The distance to a cone outside of it, by its generating line, its rim and its base."""
    at = torch.rand(4000, 3, generator=seeded(), dtype=torch.float64) * 3 - 1.5
    r, h = 0.5 * (0.5 + 0.62), 0.5 * (0.6 + 0.7)
    rho, z = at[:, :2].norm(dim=1), at[:, 2]
    along = torch.tensor([r, -2 * h], dtype=torch.float64)  # from the tip to the rim
    share = (((rho * along[0] + (z - h) * along[1]) / along.square().sum()).clamp(0, 1))[:, None]
    slope = (torch.stack([rho, z - h], 1) - share * along).norm(dim=1)
    base = torch.stack([(rho - r).clamp_min(0), z + h], 1).norm(dim=1)
    found = THINGS["cone"].parts(at, mean_instance().double()).main
    inside = (z > -h) & (rho < r * (h - z) / (2 * h))
    assert torch.allclose(found, torch.minimum(slope, base) * torch.where(inside, -1, 1), atol=1e-6)


# things


@pytest.mark.parametrize("name", THINGS)
def test_distances_have_slope_1_and_lead_to_the_surface(name: str) -> None:
    at = (torch.rand(6000, 3, generator=seeded(1), dtype=torch.float64) * 2.2 - 1.1).requires_grad_()
    found = distance(name, at, mean_instance().double())
    (slope,) = torch.autograd.grad(found.sum(), at)
    outside = found > 1e-3
    length = slope.norm(dim=1)
    assert (length - 1).abs()[outside].max() < 1e-6
    if name != "mug":  # where the handle is cut off, the value is a lower bound
        nearest = (at - found[:, None] * slope)[outside]
        assert distance(name, nearest, mean_instance().double()).abs().max() < 1e-5


def test_all_instances_lie_in_the_ball() -> None:
    """Outside a distance is exact, or smaller, so a positive one on the sphere means that nothing crosses it there."""
    k = torch.arange(1500) + 0.5
    z, turn = 1 - 2 * k / len(k), k * math.pi * (1 + 5**0.5)
    sphere = REACH * torch.stack([(1 - z * z).sqrt() * turn.cos(), (1 - z * z).sqrt() * turn.sin(), z], -1)
    instances = torch.tensor(list(itertools.product((0.0, 1.0), repeat=JITTERS)))[:, None]
    for name, thing in THINGS.items():
        least = torch.minimum(*thing.parts(sphere, instances))
        assert least.shape == (32, 1500) and least.min() > 0, name
        middle = thing.parts(torch.zeros(1, 3) + torch.tensor([0.0, 0.0, 0.3]), mean_instance())
        assert torch.minimum(*middle).abs().max() < REACH, name


def test_proportions_follow_the_jitters() -> None:
    tip = torch.tensor([[0.0, 0.0, 2.0]])
    for u, height in ((0.0, 0.6), (0.5, 0.65), (1.0, 0.7)):
        instance = torch.tensor([0.5, u, 0.5, 0.5, 0.5])
        assert abs(distance("cone", tip, instance).item() - (2 - height)) < 1e-6
    both = torch.rand(2, 1, JITTERS, generator=seeded())  # instances broadcast against points
    points = torch.rand(1, 50, 3, generator=seeded(1)) * 2 - 1
    for name in THINGS:
        found = distance(name, points, both)
        assert torch.equal(found[1], distance(name, points[0], both[1, 0]))
    with pytest.raises(UserError, match="an instance has 5 numbers, and this one has 4"):
        THINGS["ball"].parts(points, torch.zeros(4))


def components(filled: np.ndarray) -> int:
    return int(ndimage.label(filled)[1])


def test_tables_and_chairs_have_four_legs_and_mugs_and_rings_a_hole() -> None:
    line = torch.linspace(-1, 1, 100)
    y, x = torch.meshgrid(line, line, indexing="ij")
    low = torch.stack([x, y, torch.full_like(x, -0.35)], -1)
    upright = torch.stack([torch.zeros_like(x), x, y], -1)
    for instance in torch.rand(8, JITTERS, generator=seeded()):
        for name, legs in (("table", 4), ("chair", 4), ("lamp", 1), ("mushroom", 1)):
            assert components((distance(name, low, instance) < 0).numpy()) == legs, name
        for name, holes in (("mug", 1), ("ring", 1), ("house", 0)):
            outside = (traced_views(THINGS[name], instance, *angles((0.0, 0.0)), 64, 1)[0, 2] == 0).numpy()
            assert components(outside) == 1 + holes, name  # what is around it, and what is seen through it
    section = distance("mug", upright) > 0
    assert components(section.numpy()) == 2  # outside, and between handle and cup; there is no cavity below the coffee


def test_a_ray_through_the_handle_hits_nothing() -> None:
    """The middle of the hole lies between the wall of the mug, at radius 0.475 about y = -0.18, and the loop."""
    along = torch.linspace(-2, 2, 801)
    middle = -0.18 + 0.475 + (0.29 - 0.075) / 2
    ray = torch.stack([along, torch.full_like(along, middle), torch.zeros_like(along)], -1)
    assert distance("mug", ray).min() > 0.05
    assert distance("mug", ray - torch.tensor([0.0, 2 * middle, 0.0])).min() < 0  # on the other side is the cup
    assert distance("mug", ray + torch.tensor([0.0, 0.185, 0.0])).min() < 0  # the tube of the handle


def test_fronts_face_x() -> None:
    at = torch.tensor([[-0.33, 0.0, 0.4], [0.33, 0.0, 0.4]])
    assert distance("chair", at)[0] < 0 < distance("chair", at)[1]  # the back is behind, the open side in front
    roof = torch.tensor([[-0.3, 0.0, 0.35], [0.4, 0.0, 0.35]])
    assert distance("car", roof)[0] < 0 < distance("car", roof)[1]  # the bonnet is in front
    views = traced_views(THINGS["house"], mean_instance(), *angles((0.0, 0.0), (180.0, 0.0)), 32)
    assert views[0, 1, 16:].sum() > views[1, 1, 16:].sum() + 10  # the door
    assert all(
        (THINGS[name].parts(torch.zeros(1, 3), mean_instance()).second == FAR) for name in ("ball", "cube", "cone")
    )


# views of procedural things


def test_the_silhouette_of_the_ball_is_its_projection() -> None:
    size, radius = 64, 0.69
    view = traced_views(THINGS["ball"], mean_instance(), *angles((40.0, 25.0)), size, 1)[0]
    place = ((torch.arange(size) + 0.5) / size * 2 - 1) * TANGENT
    square = place[:, None].square() + place.square()
    apart = DISTANCE * (square / (1 + square)).sqrt()  # of the ray from the origin
    wrong = view[2] != (apart < radius).float()
    assert (apart - radius)[wrong].abs().max() < 2.1e-3  # a ray that is so near counts as a hit
    away = DISTANCE / (1 + square).sqrt() - (radius**2 - apart.square()).clamp_min(0).sqrt()  # along the ray
    turn = torch.tensor([math.radians(40.0), math.radians(25.0)])
    out = torch.stack([turn[1].cos() * turn[0].cos(), turn[1].cos() * turn[0].sin(), turn[1].sin()])
    right = torch.stack([-turn[0].sin(), turn[0].cos(), torch.tensor(0.0)])
    up = torch.linalg.cross(out, right)
    inner = place[None, :, None] * right - place[:, None, None] * up - out
    hits = DISTANCE * out + away[..., None] * torch.nn.functional.normalize(inner, dim=-1)
    well = apart < 0.95 * radius
    assert (view[0] - shade(hits / radius))[well].abs().max() < 5e-3
    fine = traced_views(THINGS["ball"], mean_instance(), *angles((0.0, 0.0)), 32, 4)[0, 2]
    seen = radius / (DISTANCE**2 - radius**2) ** 0.5 / TANGENT  # its radius, where half the image is 1
    assert abs(fine.mean().item() - math.pi * seen**2 / 4) < 2e-3


def test_a_view_is_made_of_parts_and_the_rest() -> None:
    azimuth, elevation = reference_views()
    for name in ("table", "house", "ball"):
        view = traced_views(THINGS[name], mean_instance(), azimuth[8:10], elevation[8:10], 24, 2)
        shades, alpha = view[:, 0] + view[:, 1], view[:, 2]
        assert (shades <= alpha + 1e-6).all() and (shades >= 0.45 * alpha - 1e-6).all()
        assert (view[:, 1] > 0).any() == (name != "ball")
        assert torch.equal(alpha * 4, (alpha * 4).round())  # of 2 x 2 rays


def test_views_show_the_true_field() -> None:
    """At the points where rays hit, the field's colours are those of the composed view, and its distance is 0."""
    prompts = [Prompt("mug", "green"), Prompt("mushroom", "red")]
    field, size = TrueField(prompts), 48
    place = ((torch.arange(size) + 0.5) / size * 2 - 1) * TANGENT
    inner = torch.stack([-torch.ones(size, size), place.expand(size, size), -place[:, None].expand(size, size)], -1)
    rays = torch.nn.functional.normalize(inner, dim=-1).reshape(-1, 3)
    at = torch.tensor([DISTANCE, 0.0, 0.0]).expand(2, size * size, 3)
    for _ in range(60):
        at = at + field.sdf(at)[..., None] * rays
    values = field(at)
    for p, prompt in enumerate(prompts):
        view = traced_views(THINGS[prompt.thing], mean_instance(), *angles((0.0, 0.0)), size, 1)[0]
        main, second = torch.tensor(COLOURS[prompt.colour or ""]), torch.tensor(THINGS[prompt.thing].companion)
        image = view[0, ..., None] * main + view[1, ..., None] * second
        hit = (view[2].flatten() > 0) & (values.sdf[p].abs() < 2e-3)
        assert hit.sum() > 0.95 * view[2].sum()
        differing = (image.reshape(-1, 3) - values.colour[p]).abs().amax(1)[hit] > 0.02
        assert differing.float().mean() < 0.03  # where a step of 2e-3 crosses an edge
    shared = field(torch.rand(1, 7, 3, generator=seeded()))
    assert shared.sdf.shape == (2, 7) and shared.colour.shape == (2, 7, 3) and len(field) == 2
    with pytest.raises(UserError, match="'a piano' has no true field"):
        TrueField([Prompt("piano")])
