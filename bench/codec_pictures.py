"""A sheet of crops: the original, this codec, and AVIF with at most as many bytes. One row a photograph.

    python bench/codec_pictures.py --codec assets/codec --images runs/photographs/heldout --rate 0.1 --out sheet.png \
        --places astronaut:150:20 rocket:250:230

A place is a name and the left and upper edge of the crop. A name alone takes the crop where this codec differs most
from the original. Without --places every photograph has a row, with such a crop.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from diffdistill.cli.main import guard
from diffdistill.codec import Codec
from diffdistill.data.save import save_labelled_grids
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError
from diffdistill.evaluation.rate.classic import CLASSIC
from diffdistill.evaluation.rate.crops import most_different
from diffdistill.evaluation.rate.search import best_within


def main() -> None:
    """Make files of equal size, and draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", type=Path, required=True, help="folder of a saved codec")
    parser.add_argument("--images", required=True, help="photographs")
    parser.add_argument("--rate", type=float, default=0.1, help="most bits a pixel of this codec's files")
    parser.add_argument("--side", type=int, default=192, help="of a crop, in pixels")
    parser.add_argument("--places", nargs="+", help="NAME or NAME:LEFT:TOP")
    parser.add_argument("--out", type=Path, required=True, help="the sheet, .png or .jpg")
    o = parser.parse_args()
    codec, source = Codec(o.codec), open_source(o.images)
    numbers = {Path(source.label(i)).stem: i for i in range(len(source))}
    grids = {}
    for place in o.places or numbers:
        name, *at = place.split(":")
        if name not in numbers or len(at) not in (0, 2) or not all(x.isdecimal() for x in at):
            raise UserError(
                f"--places has {place!r}; it must be NAME or NAME:LEFT:TOP, with one of {', '.join(numbers)}"
            )
        label, crops = _row(codec, source.read(numbers[name]), o.rate, [int(x) for x in at], o.side)
        grids[f"{name}  {label}"] = crops
        print(json.dumps({"image": name, "files": label}), flush=True)
    save_labelled_grids(o.out, grids, 3)


def _row(codec: Codec, image: torch.Tensor, rate: float, at: list[int], side: int) -> tuple[str, torch.Tensor]:
    """The label, and the original, this codec's and AVIF's crops: (3, 3, side, side) in [0, 1]."""
    avif: Any = CLASSIC["avif"]
    pixels, analysed = image[0].numel(), codec.analyse(image)
    own = best_within(lambda quality: codec.encode(analysed, quality), int(rate * pixels / 8))
    other = best_within(lambda quality: avif.encode(image, quality), len(own.data))
    made, rival = codec.decode(own.data), avif.decode(other.data)
    left, top = at or most_different(made, image, side)
    crops = [x[:, top : top + side, left : left + side].float() / 255 for x in (image, made, rival)]
    if crops[0].shape[1:] != (side, side):
        raise UserError(f"a crop of {side} pixels at {left}:{top} is not inside of {image.shape[2]} x {image.shape[1]}")
    if not own.fits or not other.fits:
        raise UserError(
            f"{'AVIF' if own.fits else 'this codec'} has no file of at most {rate:g} bits a pixel; raise --rate"
        )
    bits = [f"{8 * len(within.data) / pixels:.3f}" for within in (own, other)]
    return f"original | ours, {bits[0]} bits a pixel | AVIF, {bits[1]}", torch.stack(crops)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guard(main))
