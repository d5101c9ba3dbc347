"""The options that say how pictures around objects are made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.cli.arguments import as_options
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.text3d.ring_pictures import Ring

TURNS = (".png", ".gif", ".mp4")
MOVING = (".gif", ".mp4")
STILL_VIEWS, MOVING_VIEWS = 8, 36
FPS = 12.0
NAMES = ("views", "size", "elevation", "fps")


def add_ring(parser: argparse.ArgumentParser, whose: str) -> None:
    """Add the options --views, --size, --elevation and --fps."""
    parser.add_argument(
        "--views",
        type=int,
        help=f"{whose}: views around an object (default: {STILL_VIEWS}, or {MOVING_VIEWS} for .gif and .mp4)",
    )
    parser.add_argument("--size", type=int, help=f"{whose}: side of a view in pixels (default: 128)")
    parser.add_argument("--elevation", type=float, help=f"{whose}: degrees from which it is seen (default: 20)")
    parser.add_argument("--fps", type=float, help=f"{whose}: views a second of a .gif or .mp4 (default: {FPS:g})")


def check_fps(options: argparse.Namespace, path: Path | None) -> float:
    """Views a second.

    Raises:
        UserError: the number is out of its range, or was given for a file that does not move.
    """
    if options.fps is None:
        return FPS
    if path is None or path.suffix.lower() not in MOVING:
        raise UserError("--fps is for a .gif or .mp4")
    if not 0.01 <= options.fps <= 50:  # a GIF cannot show a view for longer than 655 seconds
        raise UserError(f"--fps is {options.fps:g}; it must be from 0.01 to 50")
    return float(options.fps)


def ring_of(options: argparse.Namespace, path: Path | None) -> Ring:
    """The ring of cameras that the options describe, for the pictures that go to `path`; None for a folder.

    Raises:
        UserError: a number is out of its range.
    """
    from diffdistill.text3d.ring_pictures import Ring

    moves = path is not None and path.suffix.lower() in MOVING
    given: dict[str, Any] = {"views": MOVING_VIEWS if moves else STILL_VIEWS}
    for name, value in (("views", options.views), ("size", options.size), ("elevation_deg", options.elevation)):
        if value is not None:
            given[name] = value
    with as_options(views="--views", size="--size", elevation_deg="--elevation"):
        return Ring(**given)
