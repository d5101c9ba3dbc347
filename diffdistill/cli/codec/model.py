"""The codec that a command runs with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from diffdistill.cli.paths import find

if TYPE_CHECKING:
    from diffdistill.codec import Codec

SHIPPED = "assets/codec"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a codec and a device."""
    parser.add_argument(
        "-m", "--model", default=SHIPPED, help=f"folder of a trained codec (default: the one that ships, {SHIPPED})"
    )
    parser.add_argument("--device", default="cpu", help="where the networks run (default: cpu)")


def open_model(options: argparse.Namespace) -> Codec:
    """The codec that the options name.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from diffdistill.codec import Codec

    return Codec(find(options.model), options.device)
