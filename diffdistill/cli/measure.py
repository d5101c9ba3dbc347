"""`diffdistill measure --images FOLDER`: quick distances of a folder of PNGs to real pictures, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.paths import check_writable, find
from diffdistill.errors import UserError

FEWEST = 3  # an unbiased kernel distance and its standard error need three


def main(argv: Sequence[str]) -> None:
    """Print `{generated: {kd, kd_se, fd, n, ...}, floor: {...}, protocol: {...}}` on stdout.

    As many real pictures as there are generated ones (half of them, where they are fewer) are set aside, drawn
    once: they make the floor. The others are the reference of both rows.

    Raises:
        UserError: an empty or missing folder, pictures of several sizes, missing weights.
    """
    parser = OneLineParser(prog="diffdistill measure", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of PNG pictures")
    parser.add_argument("--reference", default="assets/emoji", help="an emoji set, or a folder of PNG pictures")
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    options = parser.parse_args(list(argv))
    if options.out is not None and options.out.exists():
        raise UserError(f"{options.out} is there already; name another")
    if options.out is not None:
        check_writable(options.out, "--out")

    from diffdistill.evaluation import MobileNetFeatures, quick_numbers, write_json_atomic

    images = _read_folder(options.images)
    reference = Path(find(options.reference))
    extract = MobileNetFeatures()
    real = extract(_read_reference(reference), progress=True)
    generated = extract(images, progress=True)
    aside, rest = _split(real, len(generated))
    report = {
        "generated": quick_numbers(generated, rest),
        "floor": None if aside is None else quick_numbers(aside, rest),
        "protocol": {**extract.protocol, "images": str(options.images), "reference": str(options.reference)},
    }
    if options.out is not None:
        write_json_atomic(options.out, report)
    print(json.dumps(report, indent=1))


def _split(real: Any, n: int) -> tuple[Any, Any]:
    """The pictures set aside (None where they would be too few) and the reference."""
    import torch

    size = min(n, len(real) // 2)
    if size < FEWEST:
        return None, real
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    return real[order[:size]], real[order[size:]]


def _read_reference(folder: Path) -> Any:
    from diffdistill.data.emoji import load_emoji

    return load_emoji(folder).images if (folder / "concepts.tsv").is_file() else _read_folder(folder)


def _read_folder(folder: Path) -> Any:
    """The folder's PNGs (a grid.png aside) in order of name, as a uint8 Tensor of shape (N, 3, H, W)."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    files = sorted(file for file in folder.glob("*.png") if file.name != "grid.png")
    if len(files) < FEWEST:
        raise UserError(f"{folder} holds {len(files)} PNG pictures; at least {FEWEST} are needed")
    pixels = []
    for file in files:
        try:
            with Image.open(file) as picture:
                pixels.append(np.asarray(picture.convert("RGB")))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"{file} is not a readable picture: {error}") from error
        if pixels[-1].shape != pixels[0].shape:
            (h, w), (first_h, first_w) = pixels[-1].shape[:2], pixels[0].shape[:2]
            raise UserError(f"{file} is {w}x{h}, {files[0].name} {first_w}x{first_h}; all must have one size")
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
