"""Fashion-MNIST as captioned images: `python train/fashion_mnist.py --out FOLDER`.

    FOLDER/train.npz   60,000 images of 32 x 32 pixels, dark on white; the 28 x 28 original has a margin of 2 pixels
    FOLDER/train.csv   the name of what each image shows, one of ten, in the order of the images
    FOLDER/test.npz, FOLDER/test.csv   the same of the 10,000 test images
    FOLDER/names.txt   the ten names, as prompts

The original is that of the Debian package dataset-fashion-mnist (MIT licence). It is fetched by `apt-get download`, and
nothing is installed. `--package FILE` takes a .deb file that is there already, and `--files FOLDER` the four .gz files;
then nothing is fetched.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.main import guard
from diffdistill.data.debian import unpacked
from diffdistill.errors import UserError
from diffdistill.files import write_atomic

PACKAGE = "dataset-fashion-mnist"
INSIDE = "usr/share/datasets/fashion-mnist"
NAMES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PARTS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
SIDE, MARGIN = 28, 2


def main() -> None:
    """Write both parts, and print how many images they have."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--package", type=Path, help=f"the .deb file of {PACKAGE}")
    parser.add_argument("--files", type=Path, help="a folder with the four .gz files of the set")
    o = parser.parse_args()
    targets = [o.out / f"{part}.{ending}" for part in PARTS for ending in ("npz", "csv")]
    targets.append(o.out / "names.txt")
    if there := [file for file in targets if file.exists()]:
        raise UserError(f"{there[0]} is there already; delete it, or name another folder")
    with tempfile.TemporaryDirectory() as work:
        folder = o.files or unpacked(PACKAGE, o.package, Path(work), "--package", "--files") / INSIDE
        made = {part: _read(folder, stem, n) for part, (stem, n) in PARTS.items()}
    o.out.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in made.items():
        write_atomic(o.out / f"{part}.npz", _as_npz(images))
        lines = "".join(f"{NAMES[label]}\n" for label in labels)
        write_atomic(o.out / f"{part}.csv", ("caption\n" + lines).encode())
    write_atomic(o.out / "names.txt", "".join(f"{name}\n" for name in NAMES).encode())
    print(json.dumps({part: len(labels) for part, (_, labels) in made.items()}))


def _read(folder: Path, stem: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) in uint8, dark on white, and their labels (N,)."""
    pixels = _numbers(folder / f"{stem}-images-idx3-ubyte.gz", 16, n * SIDE * SIDE).reshape(n, SIDE, SIDE)
    labels = _numbers(folder / f"{stem}-labels-idx1-ubyte.gz", 8, n)
    if labels.max() >= len(NAMES):
        raise UserError(f"{folder}: a label is {labels.max()}; labels go from 0 to {len(NAMES) - 1}")
    wide = np.pad(255 - pixels, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), constant_values=255)
    return np.repeat(wide[..., None], 3, axis=-1), labels


def _numbers(file: Path, header: int, n: int) -> np.ndarray:
    try:
        with gzip.open(file) as opened:
            found = opened.read(header + n + 1)
    except (OSError, EOFError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if len(found) != header + n:
        raise UserError(f"{file} holds {len(found):,} bytes or more; expected {header + n:,}")
    return np.frombuffer(found, np.uint8, offset=header)


def _as_npz(images: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(guard(main))
