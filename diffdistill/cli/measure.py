"""`diffdistill measure --images FOLDER`: quick distances of a folder of PNGs to the real emoji, as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from diffdistill.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Print `{generated: {kd, kd_se, fd, n, ...}, floor: {...}, protocol: {...}}` on stdout.

    Raises:
        UserError: an empty or missing folder, pictures of several sizes, missing weights.
    """
    parser = argparse.ArgumentParser(prog="diffdistill measure", description=main.__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of PNG pictures")
    parser.add_argument("--reference", type=Path, default=Path("assets/emoji"), help="folder of the emoji set")
    options = parser.parse_args(argv)

    import numpy as np
    import torch
    from PIL import Image

    from diffdistill.data.emoji import load_emoji
    from diffdistill.evaluation import MobileNetFeatures, quick_numbers, real_floor

    files = sorted(options.images.glob("*.png"))
    if len(files) < 2:
        raise UserError(f"{options.images} holds {len(files)} PNG pictures; at least 2 are needed")
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    if len({p.shape for p in pixels}) > 1:
        raise UserError(f"the pictures in {options.images} have several sizes; they must have one")
    extract = MobileNetFeatures()
    generated = extract(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), progress=True)
    real = extract(load_emoji(options.reference).images, progress=True)
    report = {
        "generated": quick_numbers(generated, real),
        "floor": real_floor(real),
        "protocol": extract.protocol,
    }
    print(json.dumps(report, indent=1))
