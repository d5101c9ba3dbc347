"""The codec beside JPEG, WebP, AVIF and JPEG XL on photographs: bytes, distances, and bits at equal quality.

    python bench/codec_rates.py --codec assets/codec --images runs/photographs/heldout --out runs/codec_rates

Every row is a real file: its bytes, and the metrics of what it decodes to, rounded to 8 bits. Rows of the classic
codecs are kept in OUT, and are made again if the images, the settings or Pillow change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.cli.main import guard
from diffdistill.codec import Codec
from diffdistill.data.sources import open_source
from diffdistill.evaluation.pairs.perceptual import st_lpips
from diffdistill.evaluation.pairs.pixels import ms_ssim, psnr
from diffdistill.evaluation.rate.classic import CLASSIC
from diffdistill.evaluation.rate.curves import bd_rate, value_at
from diffdistill.files import write_json_atomic

QUALITIES = (0, 15, 30, 45, 60, 75, 90, 100)
NATURAL = ("astronaut", "coffee", "chelsea", "motorcycle", "rocket", "china", "flower", "hopper")


def main() -> None:
    """Measure, and print the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", type=Path, default=Path("assets/codec"), help="folder of a saved codec")
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--vgg", action="store_true", help="also ST-LPIPS of VGG, which is slow")
    parser.add_argument("--names", nargs="+", help="only these images")
    parser.add_argument("--qualities", type=int, nargs="+", default=QUALITIES, help="of the codec")
    o = parser.parse_args()
    source = open_source(o.images)
    images = {Path(source.label(i)).stem: source.read(i) for i in range(len(source))}
    if o.names:
        images = {name: images[name] for name in o.names}
    measure = Measure(o.vgg)
    rows = {name: _kept(o.out / f"{name}.json", lambda name=name: _classic(name, images, measure), images, o.vgg)
            for name in CLASSIC}  # fmt: skip
    codec = Codec(o.codec)
    rows["ours"] = []
    for label, image in images.items():
        for quality in o.qualities:
            data = codec.encode(image, quality)
            rows["ours"].append({"image": label, "quality": quality, **measure(image, codec.decode(data), data)})
    write_json_atomic(o.out / "ours.json", rows["ours"])
    print(json.dumps(summary(rows, [n for n in NATURAL if n in images]), indent=1))


class Measure:
    """Bytes and metrics of a reconstruction."""

    def __init__(self, vgg: bool) -> None:
        self.distances = {"st_alex": st_lpips("alex")} | ({"st_vgg": st_lpips("vgg")} if vgg else {})

    def __call__(self, image: Tensor, made: Tensor, data: bytes) -> dict[str, Any]:
        """bpp, psnr_db, ms_ssim and the distances."""
        x, y = image[None], made[None]
        found = {"bytes": len(data), "bpp": 8 * len(data) / image[0].numel(), "psnr_db": float(psnr(x, y))}
        found["ms_ssim"] = float(ms_ssim(x, y))
        return found | {name: float(distance(x, y)) for name, distance in self.distances.items()}


def _classic(name: str, images: dict[str, Tensor], measure: Measure) -> list[dict[str, Any]]:
    codec, rows = CLASSIC[name], []
    for label, image in images.items():
        for quality in codec.qualities:
            data = codec.encode(image, quality)
            rows.append({"image": label, "quality": quality, **measure(image, codec.decode(data), data)})
    return rows


def _kept(file: Path, make: Any, images: dict[str, Tensor], vgg: bool) -> list[dict[str, Any]]:
    import PIL

    pixels = {name: hashlib.sha256(image.contiguous().numpy().data).hexdigest() for name, image in images.items()}
    made_from = {"pixels": pixels, "codec": repr(CLASSIC[file.stem]), "pillow": PIL.__version__, "vgg": vgg}
    if file.is_file() and (kept := json.loads(file.read_text()))["made_from"] == made_from:
        found: list[dict[str, Any]] = kept["rows"]
        return found
    rows: list[dict[str, Any]] = make()
    write_json_atomic(file, {"made_from": made_from, "rows": rows})
    return rows


def summary(rows: dict[str, list[dict[str, Any]]], names: list[str]) -> dict[str, Any]:
    """BD-rates by photograph, and values at equal rates."""
    metrics = [m for m in ("st_alex", "st_vgg", "ms_ssim", "psnr_db") if all(m in r for r in rows["ours"])]
    found: dict[str, Any] = {"curve": {}, "bd_rate_percent": {}, "at": {}}

    def curve(codec: str, name: str, metric: str) -> tuple[list[float], list[float]]:
        own = [row for row in rows[codec] if row["image"] == name and metric in row]
        return [row["bpp"] for row in own], [row[metric] for row in own]

    for quality in sorted({row["quality"] for row in rows["ours"]}):
        own = [row for row in rows["ours"] if row["quality"] == quality and row["image"] in names]
        found["curve"][quality] = {k: round(sum(r[k] for r in own) / len(own), 4) for k in ("bpp", *metrics)}
    for metric in metrics:
        for rival in CLASSIC:
            each = [
                100 * bd_rate(*curve("ours", n, metric), *curve(rival, n, metric), metric, (0.08, 0.3)) for n in names
            ]
            good = [v for v in each if not math.isnan(v)]
            mean = round(sum(good) / len(good), 1) if good else None
            found["bd_rate_percent"][f"{metric} {rival}"] = [mean, [None if math.isnan(v) else round(v) for v in each]]
        for rate in (0.1, 0.15, 0.2, 0.3, 0.4):
            for codec in ("ours", "avif"):
                each = [value_at(*curve(codec, n, metric), rate, metric) for n in names]
                found["at"][f"{metric} {rate} {codec}"] = [None if math.isnan(v) else round(v, 3) for v in each]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guard(main))
