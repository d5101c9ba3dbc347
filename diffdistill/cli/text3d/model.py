"""The text-to-3D model that a command runs with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from diffdistill.cli.paths import find
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.text3d.model import TextTo3DModel

SHIPPED = "assets/text3d"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a model and a device."""
    parser.add_argument(
        "-m", "--model", default=SHIPPED, help=f"folder of a trained model (default: the one that ships, {SHIPPED})"
    )
    parser.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")


def open_model(options: argparse.Namespace) -> TextTo3DModel:
    """The model that the options name.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = find(options.model)
    if not Path(folder).is_dir():
        default = ", the default," if options.model == SHIPPED else ""
        raise UserError(f"there is no text-to-3D model at {options.model}: this folder{default} is not there; "
                        "name another by --model")  # fmt: skip

    from diffdistill.text3d.objects import load_text_to_3d

    return load_text_to_3d(folder, options.device)
