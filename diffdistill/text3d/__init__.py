"""Text to 3D: generators that make an object from a prompt in one pass, rendering, and meshes.

    from diffdistill.text3d import generate_object, load_text_to_3d, save_mesh

    model = load_text_to_3d()
    save_mesh(generate_object(model, "a red mug").mesh, "mug.glb")

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from diffdistill.lazy import lazy_names

if TYPE_CHECKING:
    from diffdistill.text3d.mesh import (
        EmptyMeshError,
        ExtractSettings,
        Mesh,
        TexturedMesh,
        TextureSettings,
        glb_bytes,
        load_mesh,
        save_mesh,
        save_page,
    )
    from diffdistill.text3d.model import TextTo3DModel, save_model
    from diffdistill.text3d.objects import (
        GeneratedObject,
        ObjectSettings,
        generate_field,
        generate_object,
        load_text_to_3d,
    )
    from diffdistill.text3d.ring_pictures import FieldPictures, Ring, field_pictures, mesh_pictures, save_turn

__all__ = [
    "EmptyMeshError",
    "ExtractSettings",
    "FieldPictures",
    "GeneratedObject",
    "Mesh",
    "ObjectSettings",
    "Ring",
    "TextTo3DModel",
    "TextureSettings",
    "TexturedMesh",
    "field_pictures",
    "generate_field",
    "generate_object",
    "glb_bytes",
    "load_mesh",
    "load_text_to_3d",
    "mesh_pictures",
    "save_mesh",
    "save_model",
    "save_page",
    "save_turn",
]

_MODULES = {
    "mesh": (
        "EmptyMeshError",
        "ExtractSettings",
        "Mesh",
        "TextureSettings",
        "TexturedMesh",
        "glb_bytes",
        "load_mesh",
        "save_mesh",
        "save_page",
    ),
    "model": ("TextTo3DModel", "save_model"),
    "objects": ("GeneratedObject", "ObjectSettings", "generate_field", "generate_object", "load_text_to_3d"),
    "ring_pictures": ("FieldPictures", "Ring", "field_pictures", "mesh_pictures", "save_turn"),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
