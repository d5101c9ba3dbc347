"""`diffdistill codec bench`: how long encoding and decoding take, and where the time of decoding goes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.codec.model import add_model, open_model
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def main(argv: Sequence[str]) -> None:
    """Time the codec, AVIF, and CompressAI's models where they are installed, on one image; medians of several runs.

    Raises:
        UserError: bad input, or an interpreter without compressai was named.
    """
    parser = OneLineParser(prog="diffdistill codec bench", description=(main.__doc__ or "").splitlines()[0])
    add_model(parser)
    parser.add_argument("--size", type=_size, default=(768, 512), help="of the image (default: 768x512)")
    parser.add_argument("--image", help="a photograph, which is resized; by default noise with a photograph's spectrum")
    parser.add_argument("-q", "--quality", type=int, default=50, help="0 (smallest) to 100 (best); 50 by default")
    parser.add_argument("--runs", type=int, default=5, help="how many are counted, after one that is not (default: 5)")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; by default its own choice")
    parser.add_argument("--compressai_python", metavar="PATH", help="an interpreter that has the package compressai")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    o = parser.parse_args(list(argv))
    if not 0 <= o.quality <= 100:
        raise UserError(f"--quality is {o.quality}; it must be in [0, 100]")
    for name in ("runs", "threads"):
        if getattr(o, name) is not None and getattr(o, name) < 1:
            raise UserError(f"--{name} is {getattr(o, name)}; it must be at least 1")

    import torch

    from diffdistill.cli.codec.timing import has_compressai, time_avif, time_codec, time_compressai

    if o.threads:
        torch.set_num_threads(o.threads)
    codec = open_model(o)
    image = _noise(o.size) if o.image is None else _resized(o.image, o.size)
    own = time_codec(codec, image, o.quality, o.runs)
    avif = time_avif(image, own["bytes"], o.runs)
    others = [{"codec": "AVIF" if avif["fits"] else "AVIF, its smallest file", **avif}]
    if python := o.compressai_python or has_compressai():
        others += time_compressai(python, o.size, o.runs)
    width, height = o.size
    found: dict[str, Any] = {"size": f"{width}x{height}", "threads": torch.get_num_threads(), "device": o.device}
    found |= {"quality": o.quality, "runs": o.runs, "codec": own, "others": others}
    for row in (own, *others):
        for way in ("encode", "decode"):
            row[f"{way}_megapixels_a_second"] = width * height / 1e6 / row[f"{way}_s"]
    print(json.dumps(found) if o.json else "\n".join(_lines(found)))


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or min(int(found[1]), int(found[2])) < 1:
        raise UserError(f"--size is {text!r}; it must be width x height, such as 768x512")
    return int(found[1]), int(found[2])


def _noise(size: tuple[int, int]) -> Tensor:
    """Noise whose amplitude falls as one over the frequency, as that of photographs does; uint8 (3, H, W)."""
    import torch

    width, height = size
    draw = torch.Generator().manual_seed(0)
    waves = torch.fft.rfft2(torch.randn(3, height, width, generator=draw))
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / max(size))
    pixels = torch.fft.irfft2(waves / frequency, s=(height, width))
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std(correction=0).clamp_min(1e-9)
    return pixels.clamp(0, 255).round().to(torch.uint8)


def _resized(path: str, size: tuple[int, int]) -> Tensor:
    import torch
    from torch.nn import functional as F

    from diffdistill.data.decode import decode

    try:
        with open(path, "rb") as file:
            image = decode(file.read(), path)
    except OSError as error:
        raise UserError(f"--image {path} cannot be read: {error.strerror}") from error
    made = F.interpolate(image[None].float(), size=size[::-1], mode="bicubic", antialias=True)[0]
    return made.clamp(0, 255).round().to(torch.uint8)


def _lines(found: dict[str, Any]) -> list[str]:
    own, split = found["codec"], found["codec"]["split_s"]
    lines = [
        f"{found['size']} pixels, quality {found['quality']}, on {found['device']} with {found['threads']} threads; "
        f"medians of {found['runs']} runs. AVIF takes as many threads as it likes.",
        "",
        f"{'':24}{'bytes':>10}{'encode':>12}{'decode':>12}{'MP/s in':>10}{'MP/s out':>10}",
    ]
    for name, row in (("this codec", own), *((row["codec"], row) for row in found["others"])):
        speed = f"{row['encode_megapixels_a_second']:>10.2f}{row['decode_megapixels_a_second']:>10.2f}"
        times = f"{1000 * row['encode_s']:>9.0f} ms{1000 * row['decode_s']:>9.0f} ms"
        lines.append(f"{name:24}{row['bytes']:>10,}{times}{speed}")
    whole = sum(split.values())
    words = {
        "entropy": "entropy decoding",
        "context": "hyper-latent and context",
        "decoder": "decoder network",
        "overhead": "overhead",
    }
    lines += ["", "Where decoding spends its time, with clocks in it:"]
    lines += [f"  {words[k]:26}{1000 * v:>8.1f} ms{100 * v / whole:>7.1f} %" for k, v in split.items()]
    lines.append(
        f"Decoding takes {own['decode_over_networks']:.2f} times its bare networks, which take "
        f"{1000 * own['networks_s']:.0f} ms."
    )
    if own["peak_mib"] is not None:
        whose = "the process" if found["device"] == "cpu" else "the device"
        lines.append(f"The peak memory of {whose} while decoding is {own['peak_mib']:,.0f} MiB.")
    if len(found["others"]) > 1:
        lines.append("CompressAI's models have random weights, so their bytes say nothing.")
    return lines
