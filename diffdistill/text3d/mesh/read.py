"""Meshes back from files that `export` wrote, turned to the axes of a field again.

Notable:
- GLB is read here, and not by trimesh, which would round the linear colours of vertices to 8 bits;
- what the format does not store exactly comes back rounded: colours of vertices to a level in PLY and OBJ.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.linear import to_srgb
from diffdistill.text3d.mesh.packages import needed
from diffdistill.text3d.mesh.triangles import Mesh, TexturedMesh

_NUMBERS = {5121: "<u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_PARTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
MAX_TEXTURE_PIXELS = 2**26
_DAMAGED = (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, RecursionError, struct.error)
_TO_FIELD = [2, 0, 1]  # from +y up and +z to the front: (x, y, z) to (z, x, y)


def load_mesh(path: str | os.PathLike[str]) -> Mesh | TexturedMesh:
    """Read a mesh that `save_mesh` wrote.

    Args:
        path: a .glb, .obj or .ply file. What an OBJ names is read from its own folder.

    Returns:
        The mesh, +z up and the front to +x; the order of vertices and faces is that of the file.

    Raises:
        UserError: the file is not there, is damaged, or holds something else than one mesh of this kind; or trimesh
            is missing.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    if ending not in (".glb", ".obj", ".ply"):
        raise UserError(f"{path} ends in {ending or 'nothing'}; meshes are read from .glb, .obj or .ply")
    try:
        return mesh_of_glb(path.read_bytes()) if ending == ".glb" else _by_trimesh(path, ending)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged, or was not written by this package ({error!r})") from error


def mesh_of_glb(data: bytes) -> Mesh | TexturedMesh:
    """The mesh in the bytes of a GLB file of one mesh with one primitive.

    Raises:
        UserError: they are not such a file.
        ValueError, KeyError, IndexError, TypeError: the file is damaged.
    """
    magic, version, length = struct.unpack_from("<4sII", data)
    if magic != b"glTF" or version != 2 or length > len(data):
        raise UserError("this is not a GLB file of glTF 2.0, or a part of it is missing")
    size, kind = struct.unpack_from("<I4s", data, 12)
    if kind != b"JSON":
        raise UserError("the GLB file does not begin with its JSON")
    tree = json.loads(data[20 : 20 + size])
    binary = memoryview(data)[28 + size :]
    parts = [part for mesh in tree["meshes"] for part in mesh["primitives"]]
    if len(parts) != 1 or parts[0].get("mode", 4) != 4:
        raise UserError(f"the file holds {len(parts)} meshes; one, of triangles, is read")
    attributes: Mapping[str, int] = parts[0]["attributes"]
    found = {name: _numbers(tree, binary, number) for name, number in attributes.items()}
    vertices = found["POSITION"][:, _TO_FIELD]
    faces = _numbers(tree, binary, parts[0]["indices"]).reshape(-1, 3)
    if "TEXCOORD_0" in found:
        uv = found["TEXCOORD_0"] * [1, -1] + [0, 1]  # glTF's v goes down
        material = tree["materials"][parts[0]["material"]]["pbrMetallicRoughness"]
        image = tree["images"][tree["textures"][material["baseColorTexture"]["index"]]["source"]]
        texture = _pixels(bytes(_view(tree, binary, image["bufferView"])))
        return TexturedMesh(vertices, faces, found["NORMAL"][:, _TO_FIELD], uv.clip(0, 1), texture)
    if "COLOR_0" not in found:
        raise UserError("the mesh has neither colours of vertices nor a texture")
    return Mesh(vertices, faces, to_srgb(found["COLOR_0"][:, :3].astype(np.float64)).clip(0, 1))


def _view(tree: Any, binary: memoryview, number: int) -> memoryview:
    view = tree["bufferViews"][number]
    start = view.get("byteOffset", 0)
    found = binary[start : start + view["byteLength"]]
    if len(found) != view["byteLength"] or "byteStride" in view:
        raise UserError("a part of the file is missing, or its numbers are interleaved")
    return found


def _numbers(tree: Any, binary: memoryview, number: int) -> np.ndarray:
    """An accessor as an array (count, parts); integers that stand for [0, 1] become floats."""
    accessor = tree["accessors"][number]
    kind, parts = _NUMBERS[accessor["componentType"]], _PARTS[accessor["type"]]
    data = _view(tree, binary, accessor["bufferView"])
    values = np.frombuffer(data, kind, accessor["count"] * parts, accessor.get("byteOffset", 0))
    values = values.reshape(accessor["count"], parts)
    return values / np.float64(np.iinfo(kind).max) if accessor.get("normalized") else values


def _pixels(data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise UserError(f"the texture has more than the {MAX_TEXTURE_PIXELS:,} pixels that are read") from error
    with picture:
        return _levels(picture)


def _levels(picture: Any) -> np.ndarray:
    """A picture of PIL as (H, W, 3) uint8, which is decoded here and not before its size is known."""
    if picture.width * picture.height > MAX_TEXTURE_PIXELS:
        raise UserError(
            f"the texture has {picture.width} x {picture.height} pixels; at most {MAX_TEXTURE_PIXELS:,} are read"
        )
    return np.asarray(picture.convert("RGB"))


def _by_trimesh(path: Path, ending: str) -> Mesh | TexturedMesh:
    found = needed("trimesh").load(path, force="mesh", process=False, maintain_order=True)
    vertices = np.asarray(found.vertices)
    if ending == ".ply":
        return Mesh(vertices, np.asarray(found.faces), np.asarray(found.visual.vertex_colors)[:, :3] / 255)
    vertices = vertices[:, _TO_FIELD]
    if found.visual.kind == "texture":
        # trimesh would compute normals anew, without knowing that both sides of a seam are one
        lines = (line.split()[1:] for line in path.read_text().splitlines() if line.startswith("vn "))
        normals = np.array(list(lines), np.float64)[:, _TO_FIELD]
        texture = _levels(found.visual.material.image)
        return TexturedMesh(vertices, np.asarray(found.faces), normals, np.asarray(found.visual.uv).clip(0, 1), texture)
    return Mesh(vertices, np.asarray(found.faces), np.asarray(found.visual.vertex_colors)[:, :3] / 255)
