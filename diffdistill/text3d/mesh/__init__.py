"""Meshes of fields: triangles, files, textures, pictures, and a page to look at them.

    Field --extract--> Mesh --texture--> TexturedMesh
                         `------------------`--> save_mesh (GLB, OBJ, PLY), save_page (HTML), rasterised --> save_gif

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from diffdistill.lazy import lazy_names

if TYPE_CHECKING:
    from diffdistill.text3d.mesh.export import glb_bytes, load_mesh, save_mesh
    from diffdistill.text3d.mesh.extract import ExtractSettings, extract_mesh, extract_meshes, mesh_from_grid
    from diffdistill.text3d.mesh.page import save_page
    from diffdistill.text3d.mesh.queries import field_colour
    from diffdistill.text3d.mesh.rasterise import View, rasterised
    from diffdistill.text3d.mesh.texture import TextureSettings, textured
    from diffdistill.text3d.mesh.triangles import EmptyMeshError, Mesh, TexturedMesh
    from diffdistill.text3d.mesh.turntable import save_gif, save_mp4, save_strip

__all__ = [
    "EmptyMeshError",
    "ExtractSettings",
    "Mesh",
    "TextureSettings",
    "TexturedMesh",
    "View",
    "extract_mesh",
    "extract_meshes",
    "field_colour",
    "mesh_from_grid",
    "glb_bytes",
    "load_mesh",
    "rasterised",
    "save_gif",
    "save_mesh",
    "save_mp4",
    "save_page",
    "save_strip",
    "textured",
]

_MODULES = {
    "export": ("glb_bytes", "load_mesh", "save_mesh"),
    "extract": ("ExtractSettings", "extract_mesh", "extract_meshes", "mesh_from_grid"),
    "page": ("save_page",),
    "queries": ("field_colour",),
    "rasterise": ("View", "rasterised"),
    "texture": ("TextureSettings", "textured"),
    "triangles": ("EmptyMeshError", "Mesh", "TexturedMesh"),
    "turntable": ("save_gif", "save_mp4", "save_strip"),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
