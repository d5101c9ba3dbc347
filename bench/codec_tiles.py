"""A large image through `diffdistill codec encode` and `decode`: seconds, peak memory, and errors along tiles' seams.

    python bench/codec_tiles.py --codec assets/codec --image photo.jpg --size 5312 2988 --out runs/codec_tiles

The image is resized to the size, and each command runs in a process of its own. Errors are mean absolute differences
from the image, in levels of 0 to 255: in bands of 64 pixels along the middles of all overlaps, and elsewhere. As a
picture is not the same everywhere, the same is measured of a decoder without tiles (`--whole`, some 200 bytes a pixel).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffdistill.cli.main import guard
from diffdistill.codec import Codec
from diffdistill.codec.tiles import TILE, padded, spans

COMMAND = """
import resource, sys
from diffdistill.cli.main import main
code = main(["codec", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform != "darwin" else 1024), file=sys.stderr)
sys.exit(code)
"""
BAND = 64  # pixels


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", type=Path, default=Path("assets/codec"), help="folder of a saved codec")
    parser.add_argument("--image", type=Path, required=True, help="a photograph")
    parser.add_argument("--size", type=int, nargs=2, default=(5312, 2988), help="width and height in pixels")
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--whole", action="store_true", help="decode without tiles too")
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    source, coded, again = o.out / "image.png", o.out / "image.ddc", o.out / "again.png"
    with Image.open(o.image) as opened:
        opened.convert("RGB").resize(tuple(o.size), Image.Resampling.LANCZOS).save(source, compress_level=1)
    found: dict[str, Any] = {"size": list(o.size), "quality": o.quality}
    found["encode"] = run("encode", str(source), "-o", str(coded), "-m", str(o.codec), "-q", str(o.quality))
    found["decode"] = run("decode", str(coded), "-o", str(again), "-m", str(o.codec))
    image, made = pixels(source), pixels(again)
    found["bytes"] = coded.stat().st_size
    found["tiles"] = seams(image, made)
    if o.whole:
        whole = Codec(o.codec, tile=padded(max(o.size))).decode(coded.read_bytes())
        found["whole"] = seams(image, whole)
        away = (whole.short() - made.short()).abs()
        found["largest_difference_from_whole"] = int(away.max())
        found["share_that_differs"] = round(float((away > 0).float().mean()), 5)
    print(json.dumps(found, indent=1))


def run(*argv: str) -> dict[str, float]:
    """Wall seconds and peak resident MiB of a command in a process of its own."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *argv, "--overwrite"], check=True, capture_output=True, text=True
    )
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_mib": round(int(done.stderr.split()[-1]) / 1024, 1),
    }


def pixels(file: Path) -> Tensor:
    """uint8 (3, H, W) of an image file."""
    with Image.open(file) as opened:
        return torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1)


def seams(image: Tensor, made: Tensor, tile: int = TILE) -> dict[str, float]:
    """Mean absolute error along the seams and away from them, and the ratio of both.

    Args:
        image: uint8 (3, H, W).
        made: what was decoded, of the same shape.
        tile: side of the largest tile, in pixels.
    """
    near = torch.zeros(image.shape[1:], dtype=torch.bool)
    for side, lines in ((0, near), (1, near.T)):
        tiles = spans(padded(image.shape[1 + side]), tile)
        for (_, end), (begin, _) in zip(tiles, tiles[1:], strict=False):
            middle = (begin + end) // 2
            lines[middle - BAND // 2 : middle + BAND // 2] = True
    error = (image.short() - made.short()).abs().float().mean(0)
    along, away = float(error[near].mean()), float(error[~near].mean())
    return {"along": round(along, 4), "away": round(away, 4), "ratio": round(along / away, 4)}


if __name__ == "__main__":
    sys.exit(guard(main))
