"""`diffdistill text3d generate --prompt "a red mug" -o mug.glb`: prompts to meshes, a page, and a turntable."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.cli.arguments import OneLineParser, as_options
from diffdistill.cli.text3d.model import add_model, open_model
from diffdistill.cli.text3d.outputs import Output, check_ending, check_outputs, is_folder, writing
from diffdistill.cli.text3d.ring import NAMES, TURNS, add_ring, check_fps, ring_of
from diffdistill.cli.text3d.said import say
from diffdistill.cli.text3d.wanted import Wanted, add_wanted, check_prompts, wanted
from diffdistill.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from diffdistill.text3d.objects import ObjectSettings
    from diffdistill.text3d.ring_pictures import Ring

FORMATS = (".glb", ".ply", ".obj")
PAGES = (".html", ".htm")


@dataclass
class Shown:
    """What the page and the turntable show: objects as GLB files with their titles, and pictures around each."""

    objects: list[tuple[str, bytes]] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)


def main(argv: Sequence[str]) -> None:
    """Make 3D objects of prompts: one file, or a folder of files that are named after their prompts.

    Raises:
        UserError: bad input, an object without a surface, or a file that is in the way. No file is left half-written.
    """
    o = _parser().parse_args(list(argv))
    objects = wanted(o)
    folder = is_folder(o.out, len(objects), FORMATS)
    if o.format is not None and not folder:
        raise UserError(f"--format is for a folder; --out {o.out} names the file's ending")
    ending = f".{o.format or 'glb'}" if folder else Path(o.out).suffix.lower()
    if o.texture is not None and ending == ".ply":
        raise UserError("--texture is for .glb and .obj; a .ply has colours of vertices")
    files = [Path(o.out) / f"{each.name}{ending}" if folder else Path(o.out) for each in objects]
    page, turntable = (None if name is None else Path(name) for name in (o.page, o.turntable))
    _check_files(o, files, ending == ".obj" and o.texture is not None, page, turntable)
    fps = check_fps(o, turntable)

    settings = _settings(o)
    ring = ring_of(o, turntable) if turntable else None
    _check_packages(o)
    model = open_model(o)
    check_prompts(model, objects)

    from diffdistill.text3d.mesh.export import glb_bytes, save_mesh
    from diffdistill.text3d.objects import generate_object
    from diffdistill.text3d.ring_pictures import mesh_pictures

    shown = Shown()

    def make(each: Wanted, path: Path) -> None:
        begin = time.perf_counter()
        made = generate_object(model, each.prompt, each.seed, settings)
        beside = save_mesh(made.mesh, path, o.overwrite)[:-1]
        took = time.perf_counter() - begin
        if page:
            title = each.prompt if o.n == 1 else f"{each.prompt} ({each.seed})"
            shown.objects.append((title, glb_bytes(made.mesh)))
        if ring:
            shown.pictures.append(mesh_pictures(made.mesh, ring, made.field.radius))
        vertices, faces = len(made.mesh.vertices), len(made.mesh.faces)
        numbers: dict[str, Any] = {"prompt": each.prompt, "seed": each.seed, "vertices": vertices, "faces": faces}
        numbers |= {"watertight": made.watertight, "bytes": path.stat().st_size, "seconds": round(took, 3)}
        numbers |= {"beside": [str(other) for other in beside]} if beside else {}
        closed = "watertight" if made.watertight else "not watertight"
        say(path, numbers, f"{vertices:,} vertices  {faces:,} faces  {closed}  {took:.2f} s", o.json)

    failed = _all(objects, files, make)
    with writing():
        _write_shown(o, shown, page, turntable, ring, fps)
    if failed:
        raise UserError(failed[0] if len(objects) == 1 else f"{len(failed)} of {len(objects)} objects failed")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="diffdistill text3d generate", description=(main.__doc__ or "").splitlines()[0])
    add_wanted(parser)
    parser.add_argument(
        "-o", "--out", required=True, help="a .glb, .ply or .obj file, or a folder, with a file for each object"
    )
    add_model(parser)
    parser.add_argument("--format", choices=("glb", "ply", "obj"), help="of the files in a folder (default: glb)")
    parser.add_argument("--resolution", type=int, help="samples of marching cubes along an object (default: 96)")
    parser.add_argument("--faces", type=int, help="most faces (default: no limit, or 10,000 with --texture)")
    parser.add_argument(
        "--texture", type=int, metavar="SIZE", help="a texture of SIZE x SIZE in place of colours of vertices"
    )
    parser.add_argument("--largest", action="store_true", help="keep the largest connected part alone")
    parser.add_argument("--page", metavar="HTML", help="also write a page that shows the objects, and needs no network")
    parser.add_argument(
        "--turntable", metavar="FILE", help="also write views around the objects: a strip (.png), .gif or .mp4"
    )
    add_ring(parser, "of --turntable")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file")
    return parser


def _check_files(
    o: argparse.Namespace, files: Sequence[Path], with_texture_files: bool, page: Path | None, turntable: Path | None
) -> None:
    """Refuse outputs that cannot be written, before any work."""
    outputs = [Output(path, "--out") for path in files]
    if with_texture_files:  # which stand beside an OBJ
        outputs += [Output(path.with_suffix(ending), "--texture") for path in files for ending in (".mtl", ".png")]
    if page:
        check_ending(page, "--page", PAGES)
        outputs.append(Output(page, "--page"))
    if turntable:
        check_ending(turntable, "--turntable", TURNS)
        outputs.append(Output(turntable, "--turntable"))
    elif given := [name for name in NAMES if getattr(o, name) is not None]:
        raise UserError(f"--{given[0]} is for --turntable, which is not given")
    check_outputs(outputs, o.overwrite)


def _settings(o: argparse.Namespace) -> ObjectSettings:
    from diffdistill.text3d.mesh.extract import ExtractSettings
    from diffdistill.text3d.mesh.texture import TextureSettings
    from diffdistill.text3d.objects import RESOLUTION, ObjectSettings

    with as_options(resolution="--resolution", faces="--faces"):
        resolution = RESOLUTION if o.resolution is None else o.resolution
        mesh = ExtractSettings(resolution=resolution, faces=o.faces, largest_component=o.largest)
        return ObjectSettings(mesh, None if o.texture is None else TextureSettings(size=o.texture))


def _check_packages(o: argparse.Namespace) -> None:
    """Refuse what a missing package would stop, before the work that would be lost."""
    from diffdistill.text3d.mesh.packages import needed

    modules = ["skimage.measure", "scipy.sparse", "trimesh"]
    modules += ["xatlas"] if o.texture is not None else []
    modules += ["fast_simplification"] if o.texture is not None or o.faces is not None else []
    for module in modules:
        needed(module)


def _all(objects: Sequence[Wanted], files: Sequence[Path], make: Callable[[Wanted, Path], None]) -> list[str]:
    """Make all objects; returns the errors. One that fails is said at once, and the others go on."""
    failed = []
    for each, path in zip(objects, files, strict=True):
        try:
            with writing():
                make(each, path)
        except UserError as error:
            failed.append(str(error))
            if len(objects) > 1:
                print(f"diffdistill: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return failed


def _write_shown(
    o: argparse.Namespace, shown: Shown, page: Path | None, turntable: Path | None, ring: Ring | None, fps: float
) -> None:
    """Write the page and the turntable, of the objects that could be made."""
    from diffdistill.text3d.mesh.page import save_page
    from diffdistill.text3d.ring_pictures import save_turn

    count = max(len(shown.objects), len(shown.pictures))
    if not count:
        return
    many = f"{count} object" + "s" * (count > 1)
    if page:
        title = shown.objects[0][0] if count == 1 else "Text to 3D"
        save_page(shown.objects, page, title, o.overwrite)
        say(page, {"objects": count, "bytes": page.stat().st_size}, f"a page with {many}", o.json)
    if turntable and ring:
        import numpy as np

        save_turn(np.stack(shown.pictures), turntable, fps, o.overwrite)
        numbers = {"objects": count, "views": ring.views, "bytes": turntable.stat().st_size}
        say(turntable, numbers, f"{ring.views} views around {many}", o.json)
