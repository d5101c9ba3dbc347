"""A sheet of all prompts of an evaluation, the worst first: three views of each object, with its numbers.

    python bench/text_to_3d_pictures.py --model assets/text3d --measured runs/measured --out sheet.jpg

Prompts are in the order of their IoU with the true object, or of their PSNR where there is none. Views are rendered
from the field, at 20 degrees of elevation and 120 degrees apart. Above each stand its prompt, IoU, PSNR in dB, and R@1
in per cent of its 24 views; a prompt in brackets was held out from training.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from diffdistill.cli.main import guard
from diffdistill.errors import UserError
from diffdistill.files import write_atomic
from diffdistill.text3d.evaluation.fingerprints import digest_of_model
from diffdistill.text3d.model import load_model
from diffdistill.text3d.ring_pictures import Ring, field_pictures

AT_ONCE = 8


def main() -> None:
    """Render the objects, and draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--measured", type=Path, required=True, help="folder that `diffdistill text3d eval` made")
    parser.add_argument("--side", type=int, default=64, help="of a view, in pixels")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--first", type=int, help="only so many of the worst")
    parser.add_argument("--out", type=Path, required=True, help="the sheet, .png or .jpg")
    o = parser.parse_args()
    file = o.measured / "rows.json"
    if not file.is_file():
        raise UserError(f"{o.measured} holds no rows.json; diffdistill text3d eval --out {o.measured} writes it")
    measured = json.loads(file.read_text())
    if measured["settings"]["model"] != digest_of_model(o.model):
        raise UserError(f"{o.measured} has the numbers of another model than {o.model}")
    rows: list[dict[str, Any]] = measured["rows"]
    key = "iou" if all("iou" in row for row in rows) else "psnr_db"
    rows = sorted(rows, key=lambda row: float(row[key]))[: o.first]
    model, cells = load_model(o.model), []
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        field = model([row["prompt"] for row in part])
        views = field_pictures(field, model.sharpness, Ring(views=3, size=o.side)).pictures
        cells += [_cell(row, made) for row, made in zip(part, views, strict=True)]
    height, width = cells[0].size[1], cells[0].size[0]
    lines = -(-len(cells) // o.columns)
    sheet = Image.new("RGB", (o.columns * width, lines * height), "white")
    for k, cell in enumerate(cells):
        sheet.paste(cell, (k % o.columns * width, k // o.columns * height))
    data = io.BytesIO()
    sheet.save(data, "PNG" if o.out.suffix.lower() == ".png" else "JPEG", quality=88)
    o.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(o.out, data.getvalue())


def _cell(row: dict[str, Any], views: np.ndarray) -> Image.Image:
    """An object (3, S, S, 3) uint8 below its numbers."""
    side = views.shape[1]
    cell = Image.new("RGB", (3 * side + 8, side + 26), "white")
    name = row["prompt"] if row["split"] == "trained" else f"({row['prompt']})"
    numbers = f"IoU {row['iou']:.2f}  " if "iou" in row else ""
    numbers += f"{row['psnr_db']:.1f} dB  {100 * row['recall_at_1']:.0f} %"
    draw = ImageDraw.Draw(cell)
    draw.text((2, 0), name, fill="black")
    draw.text((2, 11), numbers, fill=(110, 110, 110))
    cell.paste(Image.fromarray(np.concatenate(list(views), 1)), (0, 24))
    return cell


if __name__ == "__main__":
    sys.exit(guard(main))
