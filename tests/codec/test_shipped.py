"""The codec in assets/codec: golden files give the integers that they gave when they were made, by both decoders.

`python tests/codec/test_shipped.py` makes the golden files again, for a new model.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import plain_decoder
import pytest
import torch
from small_codec import picture

from diffdistill.codec import Codec
from diffdistill.codec.bitstream import from_bytes
from diffdistill.codec.codec import checksum

ASSET = Path(__file__).parents[2] / "assets" / "codec"
GOLDEN = Path(__file__).parent / "golden"
CASES = {"low": (5, 100, 150), "middle": (50, 64, 130), "high": (95, 65, 100)}  # quality, height, width


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(ASSET)


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in ASSET.iterdir()) <= 12e6


@pytest.mark.parametrize("name", list(CASES))
def test_golden_integers(codec: Codec, name: str) -> None:
    expected = json.loads((GOLDEN / "integers.json").read_text())[name]
    data = (GOLDEN / f"{name}.ddc").read_bytes()
    assert zlib.crc32(data) == expected["file"]
    coded = from_bytes(data)
    found = codec.read_integers(coded)
    assert checksum(found) == expected["integers"] == coded.integers_crc
    read = plain_decoder.decode(data, plain_decoder.model_of(ASSET))
    assert read["z"] == found.z.tolist() and read["r"] == found.r.tolist()
    quality, height, width = CASES[name]
    assert (read["quality"], read["height"], read["width"]) == (quality, height, width)


def test_quality_buys_bytes_and_nearness(codec: Codec) -> None:
    image = picture(192, 256, 3)
    sizes, errors = [], []
    for quality in (0, 50, 100):
        data = codec.encode(image, quality)
        sizes.append(len(data))
        errors.append(float((codec.decode(data).float() - image.float()).square().mean()))
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)


def make_golden() -> None:
    """Encode the cases with the shipped codec, and note what the files hold."""
    torch.set_num_threads(1)
    codec, noted = Codec(ASSET), {}
    GOLDEN.mkdir(exist_ok=True)
    for name, (quality, height, width) in CASES.items():
        data = codec.encode(picture(height, width, seed=height), quality, check_integers=True)
        (GOLDEN / f"{name}.ddc").write_bytes(data)
        found = codec.read_integers(from_bytes(data))
        assert np.abs(found.r).sum() > 0
        noted[name] = {"file": zlib.crc32(data), "integers": checksum(found)}
    (GOLDEN / "integers.json").write_text(json.dumps(noted, indent=1) + "\n")


if __name__ == "__main__":
    make_golden()
