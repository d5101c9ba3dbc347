"""Whether a file's integers depend on how the networks run: threads, batches, autocast, memory layout, device.

    python bench/codec_exact.py --codec runs/codec_small/export --images runs/photographs/heldout --crops 1000

For each crop the scale indexes are computed from its z in every way, and compared with those of one thread in float64.
The file is decoded again too. One JSON line says how many crops and indexes differed, which must be 0.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffdistill.cli.main import guard
from diffdistill.codec import Codec
from diffdistill.codec.bitstream import from_bytes
from diffdistill.data.photographs import load_photographs, random_crop


def main() -> None:
    """Compare, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", type=Path, required=True, help="folder of a saved codec")
    parser.add_argument("--images", required=True, help="photographs")
    parser.add_argument("--crops", type=int, default=1000, help="number of crops")
    parser.add_argument("--side", type=int, default=128, help="side of a crop in pixels")
    o = parser.parse_args()
    codec, images = Codec(o.codec), load_photographs(o.images, o.side).images
    draw = np.random.default_rng(0)
    ways = _ways(codec)
    differing = dict.fromkeys([*ways, "decoded file"], 0)
    for i in tqdm(range(o.crops), unit="crop"):
        crop = random_crop(images[i % len(images)], o.side, draw.random(8).tolist())
        quality = int(draw.integers(0, 101))
        torch.set_num_threads(1)
        found, _ = codec.integers(crop, quality)
        z, of = torch.from_numpy(found.z)[None].float(), torch.tensor([float(quality)])
        for name, way in ways.items():
            differing[name] += int((way(z, of).cpu().numpy() != found.indexes).sum())
        read = codec.read_integers(from_bytes(codec.encode(crop, quality)))
        differing["decoded file"] += sum(int((a != b).sum()) for a, b in zip(read, found, strict=True))
    print(json.dumps({"crops": o.crops, "side": o.side, "differing": differing}))


def _ways(codec: Codec) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    scales = codec.network.latent_codec.scales

    def threads(n: int) -> Callable[[Tensor, Tensor], Tensor]:
        def way(z: Tensor, quality: Tensor) -> Tensor:
            torch.set_num_threads(n)
            return scales(z, quality)[0]

        return way

    def autocast(z: Tensor, quality: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return scales(z.bfloat16(), quality)[0]

    found = {
        "1 thread": threads(1),
        "2 threads": threads(2),
        "batch of 3": lambda z, quality: scales(torch.cat([z.flip(1), z, -z]), quality.repeat(3))[1],
        "channels last": lambda z, q: scales(z.contiguous(memory_format=torch.channels_last), q)[0],
        "bfloat16 autocast": autocast,
        "without oneDNN": lambda z, quality: _without_onednn(scales, z, quality),
    }
    if torch.cuda.is_available():
        gpu = copy.deepcopy(scales).to("cuda")
        found["GPU"] = lambda z, quality: gpu(z.cuda(), quality.cuda())[0]
    return found


def _without_onednn(scales: torch.nn.Module, z: Tensor, quality: Tensor) -> Tensor:
    with torch.backends.mkldnn.flags(enabled=False):
        made: Tensor = scales(z, quality)[0]
        return made


if __name__ == "__main__":
    sys.exit(guard(main))
