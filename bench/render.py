"""The baked path against textbook rendering of the same field, at equal image error; and memory against rays.

    python bench/render.py --objects 8 --repeats 3

The field is a triplane with a network of two layers, as generators make them. Textbook rendering asks it at each sample
of each ray in the box, as threestudio does between two planes; the baked path leaves out what lies outside of the ball
in it, and so does `--region ball`. Errors are root mean squares of colours, against textbook rendering with 512 samples
a ray; textbook rendering is timed with the fewest samples whose error is at most that of the baked path. Seconds are of
the processor, the best of the repeats, which alternate; on a busy machine only their ratios mean something. The baked
path is timed with a ring of cameras that is used again, and with a ring that is made anew. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.cli.main import guard
from diffdistill.errors import UserError
from diffdistill.text3d.baked import bake, render_baked
from diffdistill.text3d.baked_views import Grid, bake_views
from diffdistill.text3d.camera_ranges import CameraRanges
from diffdistill.text3d.cameras import Cameras, Region, interval
from diffdistill.text3d.field import Field, FieldValues
from diffdistill.text3d.render import Renderer, RenderSettings

RANGES = CameraRanges(elevation_deg=(-15.0, 50.0), distance=(3.0, 3.0), fov_deg=(40.0, 40.0))
REFERENCE = 512  # samples a ray
TRIED = range(8, 129, 2)


class Triplane(nn.Module):
    """P objects: the sum of three planes of features at a point, two layers, and a sphere to begin with."""

    radius = 1.0

    def __init__(self, objects: int, channels: int = 16, side: int = 32, hidden: int = 32) -> None:
        super().__init__()
        coarse = torch.randn(objects * 3, channels, 8, 8)
        planes = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
        self.planes = nn.Parameter(planes.view(objects, 3, channels, side, side))
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, 4)

    def __len__(self) -> int:
        return len(self.planes)

    def sdf(self, points: Tensor) -> Tensor:
        return self(points).sdf

    def forward(self, points: Tensor) -> FieldValues:
        objects, _, channels = self.planes.shape[:3]
        points = points.expand(objects, -1, -1)
        places = torch.stack([points[..., [0, 1]], points[..., [0, 2]], points[..., [1, 2]]], 1)
        found = F.grid_sample(self.planes.flatten(0, 1), places.flatten(0, 1)[:, :, None], align_corners=True)
        features = found.view(objects, 3, channels, -1).sum(1).transpose(1, 2)
        made = self.second(F.relu(self.first(features)))
        return FieldValues(points.norm(dim=-1) - 0.5 + 0.3 * made[..., 0].tanh(), (4 * made[..., 1:]).sigmoid())


def textbook(
    field: Field, cameras: Cameras, size: int, samples: int, sharpness: float, region: Region = "box"
) -> Tensor:
    """Images (P, V, 3, H, W) on white, by asking the field at every sample of every ray, in one piece."""
    rays = cameras.rays(size, size)
    found = interval(rays, field.radius, region)
    hits = (found.hit.flatten() if region == "ball" else torch.ones_like(found.hit).flatten()).nonzero()[:, 0]
    origins, directions = (part.reshape(-1, 3).index_select(0, hits) for part in rays)
    near, far = (part.flatten().index_select(0, hits) for part in (found.near, found.far))
    length = (far - near) / samples
    places = near[:, None] + length[:, None] * (torch.arange(samples, device=near.device) + 0.5)
    points = origins[:, None] + places[..., None] * directions[:, None]
    sdf, colours = field(points.view(1, -1, 3))
    sdf, colours = sdf.view(len(field), -1, samples), colours.view(len(field), -1, samples, 3)
    density = sharpness * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() * sharpness))
    alpha = 1 - torch.exp(-density * length[:, None])
    left = torch.cumprod(1 - alpha, -1)
    weights = alpha * torch.cat([torch.ones_like(left[..., :1]), left[..., :-1]], -1)
    seen = (weights[..., None] * colours).sum(-2) + 1 - weights.sum(-1, keepdim=True)
    image = seen.new_ones(len(field), len(cameras) * size**2, 3).index_copy(1, hits, seen)
    return image.view(len(field), len(cameras), size, size, 3).movedim(-1, 2)


def errors(o: argparse.Namespace, field: Triplane, grid: Grid, cameras: Cameras) -> dict[str, Any]:
    """Errors of the baked path, and of textbook rendering with as many samples as it takes to be as good."""
    with torch.no_grad():
        wanted = textbook(field, cameras, o.error_size, REFERENCE, o.sharpness, o.region)
        views = bake_views(cameras, grid, o.error_size, o.error_size, o.samples)
        off = render_baked(bake(field, grid), views, o.sharpness).colour - wanted
        found: dict[str, Any] = {"baked": _rms(off), "textbook": {}, "contrast": _rms(wanted - 1)}
        for samples in TRIED:
            error = _rms(textbook(field, cameras, o.error_size, samples, o.sharpness, o.region) - wanted)
            found["textbook"][samples] = error
            if error <= found["baked"]:
                return {**found, "equal_at": samples}
    raise UserError(f"textbook rendering with {samples} samples a ray is not as good yet; no equal error to time at")


def _rms(values: Tensor) -> float:
    return round(float(values.square().mean().sqrt()), 5)


def times(o: argparse.Namespace, field: Triplane, grid: Grid, cameras: Cameras, samples: int) -> dict[str, Any]:
    """Seconds of each way, forward alone, and forward and backward to the field's parameters."""
    kept = bake_views(cameras, grid, o.size, o.size, o.samples, keep_transpose=True)

    def anew() -> Tensor:
        views = bake_views(cameras, grid, o.size, o.size, o.samples)
        return render_baked(bake(field, grid), views, o.sharpness).colour

    ways: dict[str, Callable[[], Tensor]] = {
        "textbook": lambda: textbook(field, cameras, o.size, samples, o.sharpness, o.region),
        "ring_reused": lambda: render_baked(bake(field, grid), kept, o.sharpness).colour,
        "ring_new": anew,
    }
    best: dict[str, dict[str, float]] = {way: {} for way in ways}
    for turn in range(o.repeats + 1):
        for way, render in ways.items():
            for what in ("forward", "both"):
                with torch.set_grad_enabled(what == "both"):
                    started = time.process_time()
                    made = render()
                    if what == "both":
                        made.square().mean().backward()
                    taken = time.process_time() - started
                if turn or o.repeats < 2:  # the first turn warms up
                    best[way][what] = min(taken, best[way].get(what, taken))
    rays = len(field) * len(cameras) * o.size**2
    return {
        "milliseconds": {way: {what: round(1000 * x, 1) for what, x in row.items()} for way, row in best.items()},
        "rays_per_second": {way: {what: round(rays / x) for what, x in row.items()} for way, row in best.items()},
        "times_as_fast": {
            way: {what: round(best["textbook"][what] / x, 1) for what, x in best[way].items()}
            for way in ("ring_reused", "ring_new")
        },
        "samples": {"textbook": samples, "baked": o.samples},
        "ring_mib": round(kept.nbytes / 2**20, 1),
    }


def memory(o: argparse.Namespace) -> dict[str, Any]:
    """MiB that a forward and backward pass takes at its peak; each row is larger than the one before, or equals it."""
    field, cameras, side = Triplane(1), Cameras.of([20.0], [30.0], [3.0], [40.0]), o.memory_size
    chunked = RenderSettings(samples=16, ray_chunk=side * side)
    rows = (("rays", side, chunked), ("rays_x16_in_chunks", 4 * side, chunked))
    rows += (("rays_x16_at_once", 4 * side, RenderSettings(samples=16, ray_chunk=1 << 30)),)
    few = RenderSettings(samples=16, ray_chunk=side * side // 4)
    Renderer(few)(field, cameras, side, side).colour.sum().backward()  # loads what is loaded at the first use
    before, found = _peak(), {}
    for name, size, settings in rows:
        Renderer(settings)(field, cameras, size, size).colour.square().mean().backward()
        found[name] = round(_peak() - before, 1)
    return {"n_rays": side * side, **found}


def _peak() -> float:
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, and return what is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=8, help="prompts of a step, which share a ring of four views")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--samples", type=int, default=32, help="of a ray, in the baked path")
    parser.add_argument("--resolution", type=int, default=32, help="nodes along a side of the grid")
    parser.add_argument("--sharpness", type=float, default=60.0)
    parser.add_argument(
        "--region", choices=("box", "ball"), default="box",
        help="where textbook rendering samples: in the box, on all rays, or on those that meet the ball in it alone",
    )  # fmt: skip
    parser.add_argument("--error-size", type=int, default=16, help="pixels of the images whose errors are measured")
    parser.add_argument("--memory-size", type=int, default=32, help="pixels of the smaller image of the memory's part")
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    used = memory(o)  # first, since a peak never falls
    field, grid = Triplane(o.objects), Grid(o.resolution)
    cameras = RANGES.draw_rings(torch.rand(1, 5))
    equal = errors(o, field, grid, cameras)
    found = {
        "setting": {key: value for key, value in vars(o).items() if key != "repeats"},
        "error": equal,
        **times(o, field, grid, cameras, equal["equal_at"]),
        "peak_mib": used,
    }
    return found


if __name__ == "__main__":
    sys.exit(guard(lambda: print(json.dumps(main()))))
