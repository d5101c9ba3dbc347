"""Cameras against projections, marched rays and the published distributions."""

import math

import pytest
import torch

from diffdistill.errors import UserError
from diffdistill.text3d.camera_ranges import SCALEDREAMER_MV, SCALEDREAMER_SD, CameraRanges, orbit, wrapped
from diffdistill.text3d.cameras import (
    Cameras,
    Interval,
    Rays,
    ball_interval,
    box_interval,
    interval,
    require_sight,
)


def drawn(count: int, ranges: CameraRanges = SCALEDREAMER_SD, seed: int = 0) -> Cameras:
    return ranges.draw(torch.rand(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_the_front_is_seen_from_x_with_y_to_the_right_and_z_up() -> None:
    front = Cameras.of([0.0], [0.0], [2.0], [90.0])
    wanted = [[0.0, 0.0, 1.0, 2.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    torch.testing.assert_close(front.to_world()[0], torch.tensor(wanted))
    origins, directions = front.rays(2, 4)
    assert torch.equal(origins, torch.tensor([2.0, 0.0, 0.0]).expand(1, 2, 4, 3))
    in_plane = -directions[0, :, :, 1:] / directions[0, :, :, :1]  # where rays meet the plane a unit before the camera
    columns = torch.tensor([-1.5, -0.5, 0.5, 1.5])  # of a width twice the height, which 90 degrees make 2
    torch.testing.assert_close(in_plane[0, :, 0], columns)
    torch.testing.assert_close(in_plane[:, 0, 1], torch.tensor([0.5, -0.5]))  # the top row looks up
    back, side, above = Cameras.of([0.0, 0.0, 90.0], [180.0, 90.0, 0.0], [1.0] * 3, [40.0] * 3).positions()
    for found, place in ((back, [-1.0, 0.0, 0.0]), (side, [0.0, 1.0, 0.0]), (above, [0.0, 0.0, 1.0])):
        torch.testing.assert_close(found, torch.tensor(place), atol=1e-6, rtol=0)


def test_matrices_are_rotations_also_at_the_poles() -> None:
    cameras = drawn(50)
    poles = Cameras.of([90.0, -90.0], [30.0, -170.0], [1.0, 2.0], [40.0, 50.0]).to(torch.float64)
    for some in (cameras, poles):
        turn = some.to_world()[:, :3, :3]
        torch.testing.assert_close(turn @ turn.mT, torch.eye(3, dtype=turn.dtype).expand_as(turn))
        torch.testing.assert_close(torch.linalg.det(turn), torch.ones(len(some), dtype=turn.dtype))
        torch.testing.assert_close(some.positions(), some.distance[:, None] * turn[:, :, 2])


def test_points_on_a_ray_are_projected_into_its_pixel() -> None:
    cameras, (height, width) = drawn(20), (6, 10)
    origins, directions = cameras.rays(height, width)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(20, height, width, dtype=torch.float64))
    points = origins + directions * torch.rand(20, height, width, 1, dtype=torch.float64).add(0.1)
    ones = torch.ones_like(points[..., :1])
    inner = torch.einsum("vij,vhwj->vhwi", torch.linalg.inv(cameras.to_world()), torch.cat([points, ones], -1))
    focal = height / 2 / torch.tan(torch.deg2rad(cameras.fov_deg) / 2)[:, None, None]
    column = width / 2 + focal * inner[..., 0] / -inner[..., 2]
    row = height / 2 - focal * inner[..., 1] / -inner[..., 2]
    torch.testing.assert_close(row, (torch.arange(height).double() + 0.5)[None, :, None].expand_as(row))
    torch.testing.assert_close(column, (torch.arange(width).double() + 0.5).expand_as(column))


def marched(rays: Rays, inside: torch.Tensor, step: float) -> Interval:
    """First and last place of each ray that is inside, by trying many: `inside` is (..., steps)."""
    steps = inside.shape[-1]
    first = inside.to(torch.uint8).argmax(-1) * step
    last = (steps - 1 - inside.flip(-1).to(torch.uint8).argmax(-1)) * step
    hit = inside.any(-1)
    return Interval(first * hit, last * hit, hit)


def test_boxes_and_balls_are_entered_and_left_where_a_march_says() -> None:
    draw = torch.Generator().manual_seed(1)
    origins = torch.randn(400, 3, generator=draw, dtype=torch.float64) * 1.2
    directions = torch.randn(400, 3, generator=draw, dtype=torch.float64)
    directions[:120] = torch.eye(3, dtype=torch.float64).repeat(40, 1) * directions[:120].sign()  # along the axes
    directions[120:160, 1] = 0  # along a face
    rays = Rays(origins, directions / directions.norm(dim=-1, keepdim=True))
    radius, step = 0.9, 1e-3
    points = rays.origins[:, None] + (torch.arange(8000) * step)[None, :, None] * rays.directions[:, None]
    for find, inside in (
        (box_interval, (points.abs() < radius).all(-1)),
        (ball_interval, points.norm(dim=-1) < radius),
    ):
        found, wanted = find(rays, radius), marched(rays, inside, step)
        short = found.far - found.near < 2 * step  # a march may step over a corner
        assert torch.equal(found.hit[~short], wanted.hit[~short]) and 40 < int(found.hit.sum()) < 360
        assert not (wanted.hit & ~found.hit).any()
        both = found.hit & wanted.hit
        assert (found.near - wanted.near)[both].abs().max() < step * 1.01
        assert (found.far - wanted.far)[both].abs().max() < step * 1.01
        started = inside[:, 0]
        assert started.any() and not found.near[started].any() and found.hit[started].all()
        assert not found.near[~found.hit].any() and not found.far[~found.hit].any()


def test_rays_along_a_face_or_through_an_edge_are_not_a_number_nowhere() -> None:
    origins = torch.tensor([[3.0, 1.0, 0.0], [3.0, 0.5, 0.0], [3.0, 1.5, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    directions = torch.tensor([[-1.0, 0.0, 0.0]] * 4 + [[1.0, 0.0, 0.0]])
    near, far, hit = box_interval(Rays(origins, directions), 1.0)
    assert hit.tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]  # on the face; inside; outside; from the face; away from it
    assert near.tolist() == [0.0, 2.0, 0.0, 0.0, 0.0] and far.tolist() == [0.0, 4.0, 0.0, 2.0, 0.0]
    edge = torch.tensor([[1.0, -1.0, 0.0]]) / math.sqrt(2)
    assert not box_interval(Rays(torch.tensor([[0.0, 2.0, 0.0]]), edge), 1.0).hit.any()


def test_the_published_cameras_have_the_published_distribution() -> None:
    mv, sd = drawn(200_000, SCALEDREAMER_MV), drawn(200_000, SCALEDREAMER_SD)
    size = mv.distance * torch.tan(torch.deg2rad(mv.fov_deg) / 2)
    assert size.min() >= 0.8 and size.max() <= 1.0 and 7.5 < mv.distance.max() < 7.6
    # with a far plane of 4, so many cameras do not see a ball of .8, or are beyond it altogether (measured elsewhere)
    assert abs(float((mv.distance > 4.8).double().mean()) - 0.139) < 0.003
    assert abs(float((mv.distance > 4.0).double().mean()) - 0.231) < 0.003
    for found, low, high in (
        (sd.distance, 1.0, 1.5),
        (sd.fov_deg, 40.0, 70.0),
        (sd.azimuth_deg, -180.0, 180.0),
        (mv.elevation_deg, 0.0, 30.0),
        (mv.fov_deg, 15.0, 60.0),
    ):
        ordered = found.sort().values  # uniform: the largest distance between the two distributions
        even = torch.linspace(low, high, len(ordered), dtype=torch.float64)
        assert (ordered - even).abs().max() < 0.005 * (high - low)
    ends = torch.deg2rad(torch.tensor([-10.0, 45.0, 10.0], dtype=torch.float64))
    low, high, middle = ends.sin()
    wanted = 0.5 * (20 / 55) + 0.5 * (middle - low) / (high - low)  # half by degrees, half by area
    assert abs(float((sd.elevation_deg < 10).double().mean() - wanted)) < 0.004


def test_all_published_cameras_see_the_box() -> None:
    for ranges in (SCALEDREAMER_MV, SCALEDREAMER_SD):
        cameras = drawn(500, ranges)
        for region in ("box", "ball"):
            found = interval(cameras.rays(4, 4), 2.0, region)
            require_sight(cameras, found.hit, 2.0)
            within = cameras.positions().abs().amax(-1) < 2 if region == "box" else cameras.distance < 2
            assert torch.equal((found.near == 0).all(-1).all(-1), within)


def test_drawing_is_a_function_of_the_uniform_numbers() -> None:
    middle = torch.full((1, 5), 0.5)
    found = CameraRanges(share_on_sphere=0.0).draw(middle)
    assert [float(x) for x in (found.elevation_deg, found.azimuth_deg, found.distance, found.fov_deg)] == [
        17.5,
        0.0,
        1.25,
        55.0,
    ]
    sphere = CameraRanges(elevation_deg=(-90.0, 90.0), share_on_sphere=1.0)
    uniforms = torch.zeros(3, 5)
    uniforms[:, 1] = torch.tensor([0.0, 0.75, 1.0])
    torch.testing.assert_close(sphere.draw(uniforms).elevation_deg, torch.tensor([-90.0, 30.0, 90.0]))
    even = CameraRanges(even_azimuths=True).draw(torch.rand(8, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(((even.azimuth_deg + 180) / 45).floor(), torch.arange(8.0))


def test_rings_stand_evenly_around_and_share_the_rest() -> None:
    draw = torch.Generator().manual_seed(0)
    uniforms, jitter = torch.rand(6, 5, generator=draw), torch.rand(6, 4, generator=draw)
    still = SCALEDREAMER_MV.draw_rings(uniforms)
    alone = SCALEDREAMER_MV.draw(uniforms)
    torch.testing.assert_close(still.azimuth_deg[::4], wrapped(alone.azimuth_deg))
    for found, first in ((still.elevation_deg, alone.elevation_deg), (still.distance, alone.distance)):
        assert torch.equal(found.view(6, 4), first[:, None].expand(-1, 4))
    turns = wrapped(still.azimuth_deg.view(6, 4).diff(dim=1))
    torch.testing.assert_close(turns, torch.full((6, 3), 90.0))
    assert still.azimuth_deg.min() >= -180 and still.azimuth_deg.max() < 180
    moved = SCALEDREAMER_MV.draw_rings(uniforms, jitter=jitter, jitter_deg=10.0)
    away = wrapped(moved.azimuth_deg - still.azimuth_deg).view(6, 4)
    torch.testing.assert_close(away, (2 * jitter - 1) * 10, atol=1e-4, rtol=0)
    six = SCALEDREAMER_MV.draw_rings(uniforms[:1], views=6)
    torch.testing.assert_close(wrapped(six.azimuth_deg.diff()), torch.full((5,), 60.0))


def test_an_orbit_goes_round_from_the_front() -> None:
    found = orbit(4, [0.0, 20.0], 3.0, 40.0)
    assert found.azimuth_deg.tolist() == [0.0, 90.0, -180.0, -90.0] * 2
    assert found.elevation_deg.tolist() == [0.0] * 4 + [20.0] * 4 and len(found[2:5]) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (([0.0, 91.0], [0.0, 0.0], [1.0, 1.0], [40.0, 40.0]), r"elevation_deg of camera 1 is 91; .* \[-90, 90\]"),
        (([0.0, 0.0], [0.0, math.nan], [1.0, 1.0], [40.0, 40.0]), "azimuth_deg of camera 1 is nan; it must be finite"),
        (([0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [40.0, 40.0]), "distance of camera 0 is 0; it must be above 0"),
        (([0.0, 0.0], [0.0, 0.0], [1.0, math.inf], [40.0, 40.0]), "distance of camera 1 is inf"),
        (([0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [40.0, 180.0]), "fov_deg of camera 1 is 180; .* between 0 and 180"),
        (([0.0], [0.0, 0.0], [1.0, 1.0], [40.0, 40.0]), r"elevation_deg of cameras is \(1,\) .* each of 2 cameras"),
    ],
)
def test_what_cannot_be_a_camera_is_named(values: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Cameras.of(*values)


def test_a_camera_that_sees_nothing_is_named() -> None:
    cameras = Cameras.of([0.0, 10.0], [0.0, 30.0], [3.0, 7.5], [40.0, 120.0])
    hit = box_interval(cameras.rays(2, 2), 1.0).hit
    wanted = (
        r"camera 1 \(elevation 10, azimuth 30, distance 7.5, field of view 120 degrees\) sees nothing .* 2x2 pixels"
    )
    with pytest.raises(UserError, match=wanted):
        require_sight(cameras, hit, 1.0)
    require_sight(cameras[:1], hit[:1], 1.0)
    with pytest.raises(UserError, match="0 x 4 pixels"):
        cameras.rays(0, 4)


def test_rays_are_the_same_under_autocast() -> None:
    cameras = Cameras.of([0.0, 10.0], [0.0, 30.0], [3.0, 3.0], [40.0, 50.0])
    plain = cameras.rays(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        cast = cameras.rays(5, 6)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_ranges_and_uniform_numbers_are_checked() -> None:
    for wrong, message in (
        ({"distance": (2.0, 1.0)}, "distance of cameras is from 2 to 1"),
        ({"share_on_sphere": 1.5}, "share_on_sphere is 1.5"),
        ({"fov_deg": (0.0, 50.0)}, "fov_deg of camera 0 is 0"),
    ):
        with pytest.raises(UserError, match=message):
            CameraRanges(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"uniforms of cameras is \(2, 4\); it must be \(n, 5\)"):
        SCALEDREAMER_SD.draw(torch.rand(2, 4))
    with pytest.raises(UserError, match="a ring has 0 cameras"):
        SCALEDREAMER_SD.draw_rings(torch.rand(2, 5), views=0)
