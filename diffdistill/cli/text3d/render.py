"""`diffdistill text3d render --prompt "a red mug" -o mug.png`: pictures around objects, straight from their fields."""

from __future__ import annotations

import re
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.text3d.model import add_model, open_model
from diffdistill.cli.text3d.outputs import Output, check_ending, check_outputs, writing
from diffdistill.cli.text3d.ring import TURNS, add_ring, check_fps, ring_of
from diffdistill.cli.text3d.said import say
from diffdistill.cli.text3d.wanted import Wanted, add_wanted, check_prompts, wanted
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.text3d.model import TextTo3DModel
    from diffdistill.text3d.ring_pictures import FieldPictures, Ring

AT_ONCE = 8  # objects
EMPTY = 0.005  # mean opacity of an object's pictures, below which it is said that nothing is seen


def main(argv: Sequence[str]) -> None:
    """Make pictures around the objects of prompts, without a mesh: a strip, a turn, or a folder of PNGs.

    Raises:
        UserError: bad input, a field that diverged, or a file that is in the way. No file is left half-written.
    """
    parser = OneLineParser(prog="diffdistill text3d render", description=(main.__doc__ or "").splitlines()[0])
    add_wanted(parser)
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        help="a .png, with a row for each object; a .gif or .mp4, in which they turn; or a folder of PNGs",
    )
    add_model(parser)
    add_ring(parser, "of the pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file")
    o = parser.parse_args(list(argv))
    objects, out = wanted(o), Path(o.out)
    folder = out.is_dir() or o.out.endswith("/") or not out.suffix
    if not folder:
        check_ending(out, "--out", TURNS)
        check_outputs([Output(out, "--out")], o.overwrite)
    fps = check_fps(o, None if folder else out)
    ring = ring_of(o, None if folder else out)
    if folder:
        check_outputs([Output(path, "--out") for each in objects for path in _files(out, each, ring)], o.overwrite)
    model = open_model(o)
    check_prompts(model, objects)

    import numpy as np

    from diffdistill.text3d.ring_pictures import FieldPictures, save_turn

    begin = time.perf_counter()
    parts = [_pictures(model, objects[i : i + AT_ONCE], ring) for i in range(0, len(objects), AT_ONCE)]
    made = FieldPictures(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    with writing():
        if folder:
            _write_folder(out, objects, made, ring, o)
            return
        save_turn(made.pictures, out, fps, o.overwrite)
    took, means = time.perf_counter() - begin, made.opacity.mean(1)
    numbers = {"objects": len(objects), "views": ring.views, "opacity": means.round(4).tolist()}
    empty = [each.prompt for each, mean in zip(objects, means, strict=True) if mean < EMPTY]
    line = f"{ring.views} views around {len(objects)} object{'s' * (len(objects) > 1)}  {took:.2f} s"
    line += f"  (nothing is seen of {', '.join(map(repr, empty))})" if empty else ""
    say(out, numbers | {"bytes": out.stat().st_size, "seconds": round(took, 3)}, line, o.json)


def _pictures(model: TextTo3DModel, objects: Sequence[Wanted], ring: Ring) -> FieldPictures:
    from diffdistill.text3d.objects import generate_field
    from diffdistill.text3d.ring_pictures import field_pictures

    field = generate_field(model, [each.prompt for each in objects], [each.seed for each in objects])
    try:
        return field_pictures(field, model.sharpness, ring)
    except UserError as error:  # which names an object by its number
        found = re.sub(r"^object (\d+):", lambda number: f"{objects[int(number[1])].prompt!r}:", str(error))
        raise UserError(found) from error


def _files(folder: Path, each: Wanted, ring: Ring) -> list[Path]:
    return [folder / f"{each.name}-{k:02d}.png" for k in range(ring.views)]


def _write_folder(out: Path, objects: Sequence[Wanted], made: FieldPictures, ring: Ring, o: Namespace) -> None:
    """Write a PNG for each view; with --overwrite, in place of all views of these objects that are there."""
    from diffdistill.text3d.mesh.turntable import save_strip

    azimuths = ring.cameras(1.0).azimuth_deg.tolist()
    for each, pictures, opacity in zip(objects, made.pictures, made.opacity, strict=True):
        for old in out.glob("*.png") if o.overwrite else ():
            view = re.fullmatch(rf"{re.escape(each.name)}-\d{{2,3}}\.png", old.name)
            if view and not old.with_suffix(".mtl").exists():  # a texture has a material beside it
                old.unlink()
        for k, path in enumerate(_files(out, each, ring)):
            save_strip([pictures[k]], path)
            numbers: dict[str, Any] = {"prompt": each.prompt, "azimuth_deg": round(azimuths[k], 3)}
            numbers |= {"elevation_deg": ring.elevation_deg, "opacity": round(float(opacity[k]), 4)}
            nothing = "  (nothing is seen)" if opacity[k] < EMPTY else ""
            say(path, numbers, f"{each.prompt} from {azimuths[k]:g} degrees{nothing}", o.json)
