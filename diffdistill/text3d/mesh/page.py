"""Objects on one HTML page that can be turned by hand: a single file, which needs no network.

    template  <--  titles, GLB files in base64, the viewer `@google/model-viewer` (gzip, base64), and its licences

Notable:
- the viewer is a part of the package (`viewer/`, 0.3 MB): neither this code nor the page downloads anything. The page
  forbids itself to do so, by a Content-Security-Policy;
- the browser unpacks the viewer (Chrome from 80, Firefox from 113, Safari from 16.4) and needs WebGL 2; where it
  cannot, the page says why;
- the light on the object is the viewer's own, so colours are brighter and darker than those of the mesh.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.export import glb_bytes
from diffdistill.text3d.mesh.triangles import Mesh, TexturedMesh
from diffdistill.text3d.mesh.written import write_files

_OPTIONS = (
    'camera-controls touch-action="pan-y" auto-rotate interaction-prompt="none" shadow-intensity="0.6" '
    'shadow-softness="0.9" environment-image="neutral" tone-mapping="neutral" exposure="1"'
)
_HEIGHT_ALONE, _HEIGHT_OF_SEVERAL = "48rem", "22rem"


def save_page(
    objects: Sequence[tuple[str, Mesh | TexturedMesh | bytes]],
    path: str | os.PathLike[str],
    title: str = "Text to 3D",
    overwrite: bool = False,
) -> None:
    """Write a page that shows objects.

    Args:
        objects: for each object what it is, such as its prompt, and the mesh, or the bytes of a GLB file.
        path: ends in .html.
        title: of the page.
        overwrite: whether a file that is there is replaced.

    Raises:
        UserError: there are no objects, bytes are not a GLB file, the ending is another, the file is there already, or
            trimesh is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}; it must end in .html")
    write_files({path: page_of(objects, title).encode()}, overwrite)


def page_of(objects: Sequence[tuple[str, Mesh | TexturedMesh | bytes]], title: str = "Text to 3D") -> str:
    """The page that `save_page` writes, with the same arguments and errors."""
    if not objects:
        raise UserError("a page needs at least one object")
    folder = files(__package__) / "viewer"
    packed = (folder / "model-viewer.min.js.gz").read_bytes()
    parts = {
        "title": html.escape(title),
        "height": _HEIGHT_ALONE if len(objects) == 1 else _HEIGHT_OF_SEVERAL,
        "figures": "\n".join(_figure(name, mesh) for name, mesh in objects),
        "viewer": base64.b64encode(packed).decode(),
        "licences": (folder / "LICENSES.txt").read_text(encoding="utf-8"),
    }
    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], template)  # once over it, so no part is searched


def _figure(name: str, mesh: Mesh | TexturedMesh | bytes) -> str:
    data = mesh if isinstance(mesh, bytes) else glb_bytes(mesh)
    if data[:4] != b"glTF":
        raise UserError(f"{name}: the bytes given are not a GLB file")
    text, inside = html.escape(name), base64.b64encode(data).decode()
    return (
        f'<figure><model-viewer alt="{text}" {_OPTIONS} src="data:model/gltf-binary;base64,{inside}"></model-viewer>'
        f"<figcaption>{text}</figcaption></figure>"
    )
