"""Named real 3D models, as coloured points on their surfaces.

The models are those of the library "BlendSwap-CC-0" of the Debian package sweethome3d-furniture (public domain, CC0).
`train/things.py` fetches it.

    .sh3f --archive--> OBJ, textures --turned, catalogue's size, +z up--> triangles --by area--> points

Notable:
- an OBJ file has +y up and +z to the front. Its unit is of no account: the catalogue states the size of each model;
- the models of `MODELS` were chosen by eye: they can be told apart at 32 pixels, and keep their form when they are
  tinted. Names are of two words at most, and differ from those of procedural things. Two models of the library,
  winchesterArmchair and winchesterSofa, carry a licence of their own (CC-BY-3.0) and are not among them;
- a tinted model keeps its light and dark parts: its luma, over the 90th percentile of its luma, times the colour.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.things.archive import Entry, FurnitureArchive
from diffdistill.text3d.things.procedural import REACH
from diffdistill.text3d.things.splatting import SurfacePoints

MODELS: dict[str, str] = {  # a name, and the folder of the model
    "rocking horse": "caballito",
    "coffee cup": "caffe_final",
    "biplane": "cartoon_biplane",
    "deer": "deer",
    "desk lamp": "desklamp",
    "mixer": "kitchenaid",
    "baby bottle": "mamadeira",
    "wooden chair": "oakChair",
    "round table": "oakTable",
    "plastic cup": "plasticCup",
    "recliner": "relaxChair",
    "table fan": "tableFan",
    "teddy bear": "teddyBear",
    "milk carton": "tetrapak",
    "toilet": "toiletsUnit",
    "parasol": "umbrella",
    "washbasin": "washbasin",
    "deck chair": "deckChair",
    "barrel": "barrel",
    "crate": "crate",
    "potted plant": "littlePlant",
    "basketball": "basketball",
    "umbrella": "umbrellaFolded",
    "fire extinguisher": "fireExtinguisher",
    "potty": "potty",
    "armchair": "armchair2",
    "cradle": "babyRockingBed",
    "bed": "bed3",
    "beer mug": "beerGlass",
    "chicken": "chicken",
    "horse": "horse2",
    "bench": "bench",
    "cactus": "cactus",
    "swing": "childSwing",
    "dustbin": "dustbin",
    "forklift": "forkLift",
    "handbag": "handbag",
    "motorbike": "motorbike",
    "shipping container": "shippingContainer",
    "sofa": "sofa2",
    "wheelbarrow": "wheelbarrow",
    "bootie": "bootie",
    "cupcake": "cupcake",
    "hot dog": "hotDog",
    "stone lantern": "lantern",
    "stool": "stool2",
    "wooden figure": "woodToy",
    "office chair": "armchair",
}
MAX_FACES = 500_000
MAX_TEXTURE_PIXELS = 16_000_000
MAX_POINTS = 20_000_000
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_TO_OURS = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # +z of OBJ, its front, is our +x; its +y is our +z
_GREY = 0.7  # of a material without a colour


def model_points(archive: FurnitureArchive, name: str, per_area: float, seed: int = 0) -> SurfacePoints:
    """Points of a named model, spread evenly over its surface.

    Args:
        archive: the library.
        name: a key of `MODELS`.
        per_area: points for each unit of area, in our units, in which the model just fits the ball of `REACH`.
        seed: of the places of the points.

    Raises:
        UserError: there is no such model, or it has no surface, too many faces or a texture that is too large.
    """
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}; the models are {', '.join(MODELS)}")
    if MODELS[name] not in archive.entries:
        raise UserError(f"{archive.path} has no model in a folder {MODELS[name]!r}, which {name!r} is made of")
    entry = archive.entries[MODELS[name]]
    return surface_points(archive.read(entry.model), archive.beside(entry), entry, per_area, seed)


def surface_points(
    obj: bytes, files: Mapping[str, bytes], entry: Entry, per_area: float, seed: int = 0
) -> SurfacePoints:
    """Points on the surface of an OBJ model; see `model_points`.

    Args:
        obj: the OBJ file.
        files: its materials and textures by name.
        entry: the size and the rotation of the model.
        per_area: points for each unit of area.
        seed: of the places of the points.
    """
    parts = _parts(obj, files, entry.model)
    turn = np.array(entry.rotation).reshape(3, 3)
    corners = [part.triangles @ turn.T for part in parts]
    everything = np.concatenate([c.reshape(-1, 3) for c in corners])
    low, high = everything.min(0), everything.max(0)
    scale = np.array(entry.size) / np.maximum(high - low, 1e-9)  # no size in the catalogue is 0
    reach = np.linalg.norm((everything - (low + high) / 2) * scale, axis=1).max()
    generator = np.random.default_rng(seed)
    turned = np.array(_TO_OURS).T
    placed = [(corner - (low + high) / 2) * scale * (REACH / reach) @ turned for corner in corners]
    points = per_area * sum(float(_areas(corner).sum()) for corner in placed)
    if points > MAX_POINTS:  # faces may lie on one another, so the box does not bound the area
        raise UserError(f"{entry.model} would be drawn by {points:,.0f} points; at most {MAX_POINTS:,} are taken")
    sampled = [_sampled(part, corner, per_area, generator) for part, corner in zip(parts, placed, strict=True)]
    positions, normals, colours = (
        torch.from_numpy(np.concatenate(x).astype(np.float32)) for x in zip(*sampled, strict=True)
    )
    if not positions.isfinite().all() or not normals.isfinite().all():
        raise UserError(f"{entry.model} has corners that are not finite")
    return SurfacePoints(positions, normals, colours)


def luma(colours: Tensor, dim: int) -> Tensor:
    """The luma of sRGB colours, which lie along one dimension."""
    weights = torch.tensor(LUMA, device=colours.device, dtype=colours.dtype)
    return torch.movedim(colours, dim, -1) @ weights


def luma_of_white(views: Tensor) -> float:
    """What becomes the full colour when a model is tinted: the 90th percentile of the luma of its opaque pixels.

    Args:
        views: (V, 4, S, S) in [0, 1], with alpha.

    Raises:
        UserError: the model is black, or is nowhere opaque.
    """
    bright = luma(views[:, :3], 1)[views[:, 3] > 0.99].sort().values
    white = float(bright[int(0.9 * (len(bright) - 1))]) if len(bright) else 0.0
    if white < 1 / 255:
        raise UserError("the model is black or cannot be seen, so that it cannot be tinted")
    return white


def _parts(obj: bytes, files: Mapping[str, bytes], name: str) -> list[Any]:
    """The meshes of the model, one for each material."""
    try:
        import trimesh
    except ImportError as error:
        raise UserError("3D models are read by trimesh: pip install 'diffdistill[text3d]'") from error
    for file, data in files.items():
        if not file.lower().endswith(".mtl"):
            _check_texture(f"the texture {file} of {name}", data)
    try:
        scene = trimesh.load_scene(io.BytesIO(obj), file_type="obj", resolver=dict(files), process=False)
        parts = [part for part in scene.geometry.values() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except Exception as error:  # trimesh raises many kinds of error for a damaged file
        raise UserError(f"{name} is no readable OBJ file: {error}") from error
    faces = sum(len(part.faces) for part in parts)
    if not 0 < faces <= MAX_FACES:
        raise UserError(f"{name} has {faces:,} faces; it should have 1 to {MAX_FACES:,}")
    return parts


def _check_texture(name: str, data: bytes) -> None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = picture.width * picture.height
    except Exception as error:  # Pillow raises many kinds of error for a damaged file
        raise UserError(f"{name} is no readable picture: {error}") from error
    if pixels > MAX_TEXTURE_PIXELS:
        raise UserError(f"{name} has {pixels:,} pixels; at most {MAX_TEXTURE_PIXELS:,} are read")


def _areas(corners: np.ndarray) -> np.ndarray:
    """Areas (F,) of triangles (F, 3, 3)."""
    sides = corners[:, 1:] - corners[:, :1]
    found: np.ndarray = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2
    return found


def _sampled(
    part: Any, corners: np.ndarray, per_area: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, normals and colours of points on triangles (F, 3, 3)."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    across, area = np.cross(b - a, c - a), _areas(corners)
    total = float(area.sum())
    if not total > 0:
        return np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3))
    count = max(16, round(per_area * total))
    where = (np.arange(count) + generator.random(count)) * (total / count)  # one point for each equal share of the area
    face = np.searchsorted(np.cumsum(area), where, side="right").clip(0, len(area) - 1)
    share, other = np.sqrt(generator.random(count)), generator.random(count)
    weights = np.stack([1 - share, share * (1 - other), share * other], 1)  # uniform in the triangle
    positions = (weights[:, :, None] * corners[face]).sum(1)
    normals = across[face] / np.maximum(2 * area[face], 1e-30)[:, None]
    return positions, normals, _colours(part, face, weights)


def _colours(part: Any, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The colours of points: of the texture where there is one, or else of the material."""
    material = getattr(part.visual, "material", None)
    texture, uv = getattr(material, "image", None), getattr(part.visual, "uv", None)
    if texture is not None and uv is not None and len(uv) == len(part.vertices):
        pixels = np.asarray(texture.convert("RGB"))
        at = (weights[:, :, None] * np.nan_to_num(uv[part.faces[face]])).sum(1)
        at = np.stack([1 - at[:, 1], at[:, 0]], 1) % 1  # rows are counted from above; a texture repeats
        row, column = (np.floor(at * pixels.shape[:2]).astype(int).clip(0, np.array(pixels.shape[:2]) - 1)).T
        return pixels[row, column] / 255
    diffuse = getattr(material, "diffuse", None)
    flat = np.full(3, _GREY) if diffuse is None else np.asarray(diffuse)[:3] / 255
    return np.broadcast_to(flat, (len(face), 3))
