"""The bytes of files beside what they must hold: the entropy under the stored tables, and the model's own estimate.

    python bench/codec_bytes.py --codec assets/codec --images runs/photographs/heldout

One row a photograph and quality. The last line has the largest of (bytes - 24) / entropy and (bytes - 24) / estimate.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from diffdistill.cli.main import guard
from diffdistill.codec import Codec
from diffdistill.codec.codec import Integers
from diffdistill.codec.coder import OFFSET, TOTAL
from diffdistill.codec.scales import Z_MOST
from diffdistill.data.sources import open_source

HEADER = 24  # bytes that a file may have beside its integers


def main() -> None:
    """Encode, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", type=Path, required=True, help="folder of a saved codec")
    parser.add_argument("--images", required=True, help="photographs")
    parser.add_argument("--qualities", type=int, nargs="+", default=(0, 25, 50, 75, 100))
    o = parser.parse_args()
    codec, source = Codec(o.codec), open_source(o.images)
    worst = {"of_entropy": 0.0, "of_estimate": 0.0}
    for number in range(len(source)):
        image = source.read(number)
        for quality in o.qualities:
            size, entropy, estimate = of_file(codec, image, quality)
            ratios = {"of_entropy": (size - HEADER) / entropy, "of_estimate": (size - HEADER) / estimate}
            worst = {name: max(value, ratios[name]) for name, value in worst.items()}
            row = {"image": source.label(number), "quality": quality, "bytes": size, "entropy_bytes": round(entropy, 1)}
            print(json.dumps({**row, **{name: round(value, 5) for name, value in ratios.items()}}), flush=True)
    print(json.dumps({"largest": {name: round(value, 5) for name, value in worst.items()}}))


@torch.inference_mode()
def of_file(codec: Codec, image: torch.Tensor, quality: int) -> tuple[int, float, float]:
    """Bytes of the file, bytes of its entropy under the tables, and bytes that training estimates."""
    found, _ = codec.integers(image, quality)
    multiple = codec.network.multiple
    padded = torch.nn.functional.pad(
        image[None].float() / 255, (0, -image.shape[2] % multiple, 0, -image.shape[1] % multiple), "replicate"
    )
    coded = codec.network.latent_codec.rounded(codec.network.encode(padded), torch.tensor([float(quality)]))
    estimate = float(coded.y_bits.sum() + coded.z_bits.sum()) / 8
    return len(codec.encode(image, quality)), table_bits(codec, found, quality) / 8, estimate


def table_bits(codec: Codec, found: Integers, quality: int) -> float:
    """Entropy of integers under the stored tables; an escaped value takes 16 bits beside its escape."""
    span = 100 // (codec.network.settings.levels - 1)
    level = codec.z_tables[(quality + span // 2) // span]
    bits = -sum(np.log2(table[row.ravel() + Z_MOST] / TOTAL).sum() for table, row in zip(level, found.z, strict=True))
    for index, table in enumerate(codec.r_tables):
        if not index:
            continue  # these values are not coded
        r, half = found.r[found.indexes == index], (len(table) - 2) // 2
        outside = np.abs(r) > half
        bits -= np.log2(table[np.where(outside, len(table) - 1, r + half)] / TOTAL).sum()
        bits += (2 * OFFSET - 1).bit_length() * outside.sum()
    return float(bits)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guard(main))
