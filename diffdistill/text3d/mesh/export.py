"""Meshes to files: GLB, PLY, and OBJ.

    file   up and front   colours of vertices           texture
    .glb   +y, +z         COLOR_0, float, linear        PNG inside of the file, sRGB
    .obj   +y, +z         beside positions, sRGB        name.mtl and name.png beside it
    .ply   +z, +x         uint8, sRGB                   not written

Notable:
- glTF and most readers of OBJ take +y for up, and what looks to +z for the front. So an object stands upright in
  Blender and in a browser, and shows the side that azimuth 0 sees. PLY has no such habit: positions are the field's;
- by the glTF specification (2.0, section 3.9.2), colours of vertices are linear light, and textures are sRGB. In uint8,
  linear light would lose the dark colours (the first level is 13 of sRGB), so it is written as float;
- the default material of glTF is a metal, so one that is not is written, also for colours of vertices. (Of a file with
  both, trimesh keeps the colours as an attribute of `scene.geometry`, and loses them where it joins a scene;)
- the order of vertices and faces is kept.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.linear import to_levels, to_linear
from diffdistill.text3d.mesh.packages import needed
from diffdistill.text3d.mesh.read import load_mesh
from diffdistill.text3d.mesh.triangles import Mesh, TexturedMesh, vertex_normals
from diffdistill.text3d.mesh.written import write_files

__all__ = ["glb_bytes", "load_mesh", "save_mesh"]

_ROUGH = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
_NAME = "mesh"


def save_mesh(mesh: Mesh | TexturedMesh, path: str | os.PathLike[str], overwrite: bool = False) -> list[Path]:
    """Write a mesh, in the format that the ending names.

    Args:
        mesh: with colours of vertices, or with a texture.
        path: ends in .glb, .obj, or (without a texture) .ply. Folders on the way are made.
        overwrite: whether files that are there are replaced.

    Returns:
        The files written; for an OBJ with a texture these are three, the OBJ last.

    Raises:
        UserError: the ending is another, a file is there already, the mesh has no faces, or trimesh is missing.
    """
    path = Path(path)
    if not len(mesh.faces):
        raise UserError(f"{path}: the mesh has no faces, so it is not written")
    ending = path.suffix.lower()
    if ending == ".glb":
        files = {path: glb_bytes(mesh)}
    elif ending == ".obj":
        files = _obj_files(mesh, path)
    elif ending == ".ply" and isinstance(mesh, Mesh):
        files = {path: _ply_bytes(mesh)}
    elif ending == ".ply":
        raise UserError(f"{path}: a mesh with a texture is written as .glb or .obj, not as .ply")
    else:
        raise UserError(f"{path} ends in {ending or 'nothing'}; meshes are written as .glb, .obj or .ply")
    write_files(files, overwrite)
    return list(files)


def glb_bytes(mesh: Mesh | TexturedMesh) -> bytes:
    """A mesh as a GLB file: glTF 2.0 in one piece.

    Raises:
        UserError: trimesh is missing.
    """
    made = _upright(mesh)
    if isinstance(mesh, TexturedMesh):
        visual = needed("trimesh.visual")
        material = visual.material.PBRMaterial(baseColorTexture=_picture(mesh.texture), name=_NAME, **_ROUGH)
        made.visual = visual.TextureVisuals(uv=mesh.uv, material=material)
    else:
        made.vertex_attributes["_COLOR_0"] = to_linear(mesh.colours).astype(np.float32)
    data: bytes = made.export(file_type="glb", include_normals=True, tree_postprocessor=_finish)
    return data


def _finish(tree: dict[str, Any]) -> None:
    """What trimesh does not write: colours as floats, a material for them, and who made the file."""
    tree["asset"]["generator"] = "diffdistill"
    for primitive in (part for mesh in tree["meshes"] for part in mesh["primitives"]):
        attributes = primitive["attributes"]
        if "_COLOR_0" in attributes:
            attributes["COLOR_0"] = attributes.pop("_COLOR_0")
            tree["materials"] = [{"name": _NAME, "pbrMetallicRoughness": {"baseColorFactor": [1.0] * 4, **_ROUGH}}]
            primitive["material"] = 0


def _upright(mesh: Mesh | TexturedMesh) -> Any:
    """A mesh of trimesh without colours, +y up and +z to the front: (x, y, z) to (y, z, x)."""
    normals = mesh.normals if isinstance(mesh, TexturedMesh) else vertex_normals(mesh.vertices, mesh.faces)
    return needed("trimesh").Trimesh(
        mesh.vertices[:, [1, 2, 0]], mesh.faces, vertex_normals=normals[:, [1, 2, 0]], process=False
    )


def _ply_bytes(mesh: Mesh) -> bytes:
    levels = to_levels(mesh.colours)
    made = needed("trimesh").Trimesh(mesh.vertices, mesh.faces, vertex_colors=levels, process=False)
    data: bytes = made.export(file_type="ply", vertex_normal=False)
    return data


def _obj_files(mesh: Mesh | TexturedMesh, path: Path) -> dict[Path, bytes]:
    made, name, files = _upright(mesh), path.stem, {}
    export_obj = needed("trimesh.exchange.obj").export_obj
    if isinstance(mesh, TexturedMesh):
        visual, picture = needed("trimesh.visual"), _picture(mesh.texture)
        made.visual = visual.TextureVisuals(uv=mesh.uv, material=visual.material.SimpleMaterial(picture, name=name))
        text, _ = export_obj(made, include_normals=True, return_texture=True, mtl_name=f"{name}.mtl", header=None)
        data = io.BytesIO()
        picture.save(data, "PNG", optimize=True)
        lines = (f"newmtl {name}", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "d 1", "illum 1", f"map_Kd {name}.png")
        files[path.with_name(f"{name}.png")] = data.getvalue()
        files[path.with_name(f"{name}.mtl")] = ("\n".join(lines) + "\n").encode()
    else:
        needed("trimesh.visual")
        made.visual.vertex_colors = to_levels(mesh.colours)
        text = export_obj(made, include_normals=True, header=None)
    files[path] = text.encode() + b"\n"
    return files


def _picture(texture: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(np.asarray(texture))
