"""The codec beside JPEG, WebP, AVIF and JPEG XL on photographs: bits at equal quality, values at equal rates.

    python bench/codec_rates.py --codec assets/codec --images runs/photographs/heldout --out runs/codec_rates

`diffdistill codec eval` measures in the same way and makes a page. This script prints JSON, and goes on in a folder
that holds rows of another model: rows are made again where the images, the settings, the model or Pillow changed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffdistill.cli.codec.eval import QUALITIES, read_photographs
from diffdistill.cli.main import guard
from diffdistill.codec import Codec
from diffdistill.errors import UserError
from diffdistill.evaluation.rate.classic import CLASSIC
from diffdistill.evaluation.rate.comparison import Comparison
from diffdistill.evaluation.rate.curves import bd_rate, value_at
from diffdistill.evaluation.rate.measures import OURS, check_metrics, check_sizes
from diffdistill.evaluation.rate.summary import curve, mean_curve

NATURAL = ("astronaut", "coffee", "chelsea", "motorcycle", "rocket", "china", "flower", "hopper")
BETWEEN = (0.08, 0.3)  # bits a pixel, of the rival


def main() -> None:
    """Measure, and print the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", type=Path, default=Path("assets/codec"), help="folder of a saved codec")
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--vgg", action="store_true", help="also ST-LPIPS of VGG, which is slow")
    parser.add_argument("--rivals", nargs="+", choices=list(CLASSIC), default=list(CLASSIC), help="only these codecs")
    parser.add_argument("--names", nargs="+", help="only these images")
    parser.add_argument("--qualities", type=int, nargs="+", default=QUALITIES, help="of the codec")
    o = parser.parse_args()
    found = read_photographs(o.images)
    images = {Path(label).stem: image for label, image in found.items()}
    if len(images) < len(found):
        raise UserError(f"two photographs of {o.images} have one name but for its ending or folder; rename one")
    if o.names:
        if missing := [name for name in o.names if name not in images]:
            raise UserError(f"{o.images} has no photograph {missing[0]!r}; there are {', '.join(images)}")
        images = {name: images[name] for name in o.names}
    metrics = check_metrics(["psnr", "ms_ssim", "st_alex", *(["st_vgg"] if o.vgg else [])])
    check_sizes(images, metrics)
    codec, rivals = Codec(o.codec), {name: CLASSIC[name] for name in o.rivals}
    rows = Comparison(images, codec, codec.identity, o.qualities, rivals, metrics, o.out).curves()
    names = [name for name in NATURAL if name in images] or list(images)
    about = {"photographs": names, "bpp_of_rival": BETWEEN}
    print(json.dumps({**about, **summary(rows, names, [metric.key for metric in metrics], rivals)}, indent=1))


def summary(
    rows: Sequence[dict[str, Any]], names: Sequence[str], metrics: Sequence[str], rivals: Iterable[str]
) -> dict[str, Any]:
    """Mean curve, BD-rates by photograph, and values at equal rates: AVIF's too, if it is one of the rivals."""
    rows = [row for row in rows if row["image"] in names]
    curves = {key: mean_curve(rows, OURS, key) for key in metrics}
    points = {quality: {"bpp": round(bpp, 4)} for quality, bpp, _ in curves[metrics[0]]}
    for key, found in curves.items():
        for quality, _, value in found:
            points[quality][key] = round(value, 4)
    said: dict[str, Any] = {"curve": points, "bd_rate_percent": {}, "at": {}}
    for key in metrics:
        mine = {name: curve(rows, OURS, name, key) for name in names}
        for rival in rivals:
            each = [100 * bd_rate(*mine[n], *curve(rows, rival, n, key), key, BETWEEN) for n in names]
            good = [value for value in each if not math.isnan(value)]
            mean = round(sum(good) / len(good), 1) if good else None
            said["bd_rate_percent"][f"{key} {rival}"] = [mean, [_rounded(value, 0) for value in each]]
        for rate in (0.1, 0.125, 0.15, 0.175, 0.2, 0.3, 0.4):
            for codec in (OURS, *({"avif"} & set(rivals))):
                each = [value_at(*curve(rows, codec, n, key), rate, key) for n in names]
                said["at"][f"{key} {rate} {codec}"] = [_rounded(value, 3) for value in each]
    return said


def _rounded(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guard(main))
