"""`diffdistill codec eval PHOTOS -o OUT`: the codec beside JPEG, WebP, AVIF and JPEG XL, as a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.codec.model import add_model, open_model
from diffdistill.cli.paths import check_writable, find
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.rate.comparison import Comparison

QUALITIES = (0, 15, 30, 45, 60, 75, 90, 100)
IN_WORDS = {
    "photographs": "photographs",
    "model": "model",
    "qualities": "--qualities",
    "rivals": "--rivals",
    "metrics": "--metrics",
    "bpp": "--bpp",
    "measured_by": "way of measuring",
    "pillow": "version of Pillow",
    "pillow_jxl": "version of the plug-in for JPEG XL",
}


def main(argv: Sequence[str]) -> None:
    """Measure the codec and classic codecs on photographs, and write a page, index.html, with rows.json and table.csv.

    Raises:
        UserError: bad input, or OUT holds something else.
    """
    o = _options(argv)

    from tqdm import tqdm

    from diffdistill.evaluation.rate.comparison import Comparison
    from diffdistill.evaluation.rate.measures import check_metrics, check_sizes
    from diffdistill.evaluation.rate.table import csv_table
    from diffdistill.evaluation.rate_page.report import html_page
    from diffdistill.files import write_atomic, write_json_atomic

    metrics, rivals = check_metrics(o.metrics), _rivals(o.rivals)
    images = read_photographs(find(o.photos))
    check_sizes(images, metrics)
    codec = open_model(o)
    comparison = Comparison(images, codec, codec.identity, o.qualities, rivals, metrics, o.out, o.bpp)
    _claim(o.out, comparison)
    with tqdm(total=comparison.steps(), unit="point", disable=o.quiet) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update()

        comparison.step = step
        record: dict[str, Any] = {"settings": comparison.settings, "rows": comparison.curves()}
        record["equal_bytes"] = comparison.equal_bytes()
        record["kd"] = comparison.patch_kd() if any(metric.option == "kd" for metric in metrics) else []
    write_json_atomic(o.out / "rows.json", record)
    table = csv_table(record["rows"], record["equal_bytes"], record["kd"], metrics)
    write_atomic(o.out / "table.csv", table.encode())
    write_atomic(o.out / "index.html", html_page(record).encode())
    print(o.out / "index.html")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="diffdistill codec eval", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("photos", metavar="PHOTOS", help="a folder, .zip or .tar of photographs")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a folder; a run that was interrupted goes on")
    add_model(parser)
    parser.add_argument(
        "--qualities", type=_numbers, default=list(QUALITIES), help="of the codec's curve, such as 0,30,60,90"
    )
    parser.add_argument("--rivals", type=_words, default=["jpeg", "webp", "avif", "jxl"], help="such as jpeg,avif")
    parser.add_argument(
        "--metrics",
        type=_words,
        default=["psnr", "ms_ssim", "st_alex", "kd"],
        help="of psnr,ms_ssim,st_alex,st_vgg,kd; by default all but st_vgg, which takes 40 s a megapixel",
    )
    parser.add_argument("--bpp", type=float, default=0.2, help="bits a pixel of files at equal bytes (default: 0.2)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    o = parser.parse_args(list(argv))
    if not 0 < o.bpp < float("inf"):
        raise UserError(f"--bpp is {o.bpp:g}; it must be above 0")
    wrong = [quality for quality in o.qualities if not 0 <= quality <= 100]
    if wrong or len(o.qualities) < 2:
        raise UserError(f"--qualities is {o.qualities}; it must be two or more whole numbers from 0 to 100")
    check_writable(o.out, "--out")
    if Path(o.photos).is_dir() and o.out.resolve().is_relative_to(Path(o.photos).resolve()):
        raise UserError(f"--out {o.out} lies inside of {o.photos}, whose photographs are read; name a folder elsewhere")
    return o


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(text: str) -> list[int]:
    try:
        return sorted({int(word) for word in _words(text)})
    except ValueError as error:
        raise UserError(f"--qualities is {text!r}; it must be whole numbers with commas, such as 0,50,100") from error


def _rivals(names: Sequence[str]) -> dict[str, Any]:
    """Classic codecs by name, each of which can encode here."""
    import torch

    from diffdistill.evaluation.rate.classic import CLASSIC

    for name in names:
        if name not in CLASSIC:
            raise UserError(f"unknown rival {name!r}; there are {', '.join(CLASSIC)}")
        try:
            CLASSIC[name].encode(torch.zeros(3, 16, 16, dtype=torch.uint8), 20)
        except UserError as error:
            raise UserError(f"{error}, or leave {name} out of --rivals") from error
    if not names:
        raise UserError(f"--rivals names none; there are {', '.join(CLASSIC)}")
    return {name: CLASSIC[name] for name in CLASSIC if name in names}


def read_photographs(path: str) -> dict[str, Tensor]:
    """Photographs by name, uint8 tensors of shape (3, H, W), in the order of their names.

    Raises:
        UserError: there are none, or one is damaged.
    """
    from diffdistill.data.sources import open_source

    source = open_source(path)
    return {source.label(i): source.read(i) for i in range(len(source))}


def _claim(out: Path, comparison: Comparison) -> None:
    """Make the folder and note its settings, or raise UserError where it holds something else."""
    from diffdistill.files import write_json_atomic

    file, settings = out / "settings.json", json.loads(json.dumps(comparison.settings))
    if file.is_file():
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
            other = [words for key, words in IN_WORDS.items() if there.get(key) != settings[key]]
        except (ValueError, AttributeError):
            other = ["settings that cannot be read"]
        if other:
            raise UserError(f"{out} is there already, with other {' and '.join(other)}; name another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is there already and holds no comparison; name another folder")
    else:
        write_json_atomic(file, settings)
