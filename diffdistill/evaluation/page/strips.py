"""The PNG files beside a sweep's record, which are not trusted: paths, sizes and contents are checked.

Sizes are read from headers before pixels are decoded. The image that is passed on is encoded again from its pixels, so
nothing else in a file is passed on with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from diffdistill.errors import UserError
from diffdistill.evaluation.page.read import shortened
from diffdistill.evaluation.page.record import MAX_NAME, MAX_PIXELS, MAX_PNG_BYTES, PICTURE_SIDE


@dataclass(frozen=True)
class Strip:
    """A row of images as it is shown.

    Attributes:
        png: its bytes.
        width, height: in pixels.
        side: side of one image in the file, in pixels.
    """

    png: bytes
    width: int
    height: int
    side: int


def read_strip(folder: Path, name: str, columns: int, rows: int = 1) -> Strip:
    """Read a PNG of square images, `rows` by `columns`; images above `PICTURE_SIDE` pixels are made smaller.

    Raises:
        UserError: the path leaves the folder, or the file is missing, no PNG, too large or of another shape.
    """
    from PIL import Image

    from diffdistill.data.decode import CorruptPictureError, decode

    path = folder / name
    inside = PurePosixPath(name)
    odd = inside.is_absolute() or ".." in inside.parts or any(c in "\\:" or not c.isprintable() for c in name)
    if odd or inside.suffix != ".png" or len(name) > MAX_NAME:
        raise UserError(f"{folder / 'sweep.json'}: {shortened(name)} is not a path of a .png inside the sweep's folder")
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} leads out of the sweep's folder")
        if not path.is_file():
            raise UserError(f"{path}, which sweep.json names, is not there")
        if path.stat().st_size > MAX_PNG_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes; a strip has at most {MAX_PNG_BYTES}")
        pixels = decode(path.read_bytes(), "it", ("PNG",), MAX_PIXELS)
    except (OSError, RuntimeError, CorruptPictureError) as error:  # RuntimeError: links in a circle
        raise UserError(f"{path} is not a readable PNG: {error}") from error
    _, height, width = pixels.shape
    side = height // rows
    if side * rows != height or side * columns != width:
        raise UserError(f"{path} is {width}x{height}: not {rows} x {columns} square images")
    shown = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if side > PICTURE_SIDE:
        shown = shown.resize((PICTURE_SIDE * columns, PICTURE_SIDE * rows), Image.Resampling.LANCZOS)
    out = BytesIO()
    shown.save(out, format="PNG", optimize=True)
    return Strip(out.getvalue(), shown.width, shown.height, side)
