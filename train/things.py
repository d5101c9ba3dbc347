"""Views of named things: `python train/things.py --out FOLDER` renders procedural things, and `--models` real ones.

    FOLDER/NAME.npz        rings of 4 views, and 24 reference views, of one thing
    FOLDER/settings.json   what they were rendered with

Notable:
- a run that was stopped goes on where it was: things whose file is there are kept. A folder that was rendered with
  other settings is refused;
- the real models are those of the Debian package sweethome3d-furniture, library BlendSwap-CC-0 (public domain, CC0). It
  is fetched by `apt-get download`, and nothing is installed. `--packages FOLDER` takes a .deb file that is there
  already, and `--archive FILE` the library itself; then nothing is fetched;
- all views of 64 pixels can be read at 32 pixels too, so one folder serves both.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.main import guard
from diffdistill.data.debian import unpacked
from diffdistill.errors import UserError
from diffdistill.files import write_atomic, write_json_atomic
from diffdistill.text3d.things.archive import FurnitureArchive
from diffdistill.text3d.things.models3d import MODELS
from diffdistill.text3d.things.procedural import THINGS
from diffdistill.text3d.things.rendering import RenderSettings, model_views, procedural_views
from diffdistill.text3d.things.view_files import ThingViews, read_views, views_as_bytes

PACKAGE = "sweethome3d-furniture"
LIBRARY = "usr/share/sweethome3d/furniture/BlendSwap-CC-0.sh3f"
SETTINGS = "settings.json"


def main() -> None:
    """Render what is not there yet, and print how many things and bytes the folder has."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make, or to go on with")
    parser.add_argument("--models", action="store_true", help="the real 3D models instead of the procedural things")
    parser.add_argument("--archive", type=Path, help="the library of models, BlendSwap-CC-0.sh3f")
    parser.add_argument("--packages", type=Path, help=f"a folder with the .deb file of {PACKAGE}")
    for field in dataclasses.fields(RenderSettings):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help=f"by default {field.default}")
    o = parser.parse_args()
    settings = RenderSettings(**{field.name: getattr(o, field.name) for field in dataclasses.fields(RenderSettings)})
    if not o.models:
        if o.archive or o.packages:
            raise UserError("--archive and --packages are for --models")
        report = _render(o.out, settings, "procedural", list(THINGS), lambda name: procedural_views(name, settings))
    else:
        with tempfile.TemporaryDirectory() as work:
            file = o.archive or unpacked(PACKAGE, o.packages, Path(work), "--packages", "--archive") / LIBRARY
            if not file.is_file():
                raise UserError(f"{file} is not there")
            origin = {"library": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "licence": "CC0"}
            with FurnitureArchive(file) as archive:
                report = _render(
                    o.out,
                    settings,
                    f"models {origin['sha256']}",
                    list(MODELS),
                    lambda name: model_views(archive, name, settings, origin),
                )
    print(json.dumps(report))


def _render(
    out: Path, settings: RenderSettings, kind: str, names: list[str], render: Callable[[str], ThingViews]
) -> dict[str, Any]:
    wanted: dict[str, Any] = {"kind": kind, **dataclasses.asdict(settings)}
    _begin(out, wanted)
    kept = 0
    for name in (bar := tqdm(names, unit="thing")):
        bar.set_postfix_str(name)
        file = out / f"{name}.npz"
        if file.exists():
            there = read_views(file)  # a damaged one is said at once
            if (there.name, there.size, len(there.rings)) != (name, settings.size, settings.instances * settings.rings):
                raise UserError(
                    f"{file} holds views of another thing, size or number; delete it, or take another folder"
                )
            kept += 1
        else:
            with torch.inference_mode():
                write_atomic(file, views_as_bytes(render(name)))
    views = len(names) * (4 * settings.instances * settings.rings + 24)
    size = sum((out / f"{name}.npz").stat().st_size for name in names)
    return {"things": len(names), "kept": kept, "views": views, "megabytes": round(size / 1e6, 2)}


def _begin(out: Path, wanted: dict[str, Any]) -> None:
    """Refuse a folder of other settings or other files, and note the settings in a new one."""
    file = out / SETTINGS
    if file.is_file():
        try:
            found = json.loads(file.read_text())
            differing = [key for key in wanted if found.get(key) != wanted[key]]
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        if differing:
            key = differing[0]
            raise UserError(
                f"{out} was rendered with {key} {found.get(key)}, and not {wanted[key]}; take another folder"
            )
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    elif out.exists() and any(not inside.name.startswith(".") for inside in out.iterdir()):  # of a run that was killed
        raise UserError(f"{out} is not empty, and was not made by this script; take another folder")
    else:
        write_json_atomic(file, wanted)


if __name__ == "__main__":
    sys.exit(guard(main))
