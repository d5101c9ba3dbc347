"""What models draw of the same captions and noises: a sheet in which each column is a caption.

    python bench/noises.py --out sheet.jpg "teacher=assets/teacher:50:3" "student, 1 step=assets/student:1:1"

A model is NAME=PATH:STEPS:GUIDANCE. Captions are spread evenly over the training captions of the emoji set. Each model
starts from the same noise at the same place of the sheet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffdistill.cli.paths import find
from diffdistill.data.emoji import load_emoji
from diffdistill.data.save import save_labelled_grids
from diffdistill.models.generate import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=PATH:STEPS:GUIDANCE")
    parser.add_argument("--captions", type=int, default=12)
    parser.add_argument("--noises", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help="the sheet, .png or .jpg")
    o = parser.parse_args()
    known = sorted(set(load_emoji(find("assets/emoji")).captions))
    captions = [known[i * len(known) // o.captions] for i in range(o.captions)]
    sheet = {}
    for model in o.models:
        name, _, rest = model.partition("=")
        if rest.count(":") < 2:
            parser.error(f"{model!r} is no NAME=PATH:STEPS:GUIDANCE, such as student=assets/student:1:1")
        path, steps, guidance = rest.rsplit(":", 2)
        rows = [
            torch.cat(list(generate(find(path), captions, int(steps), float(guidance), seed=o.captions * noise)))
            for noise in range(o.noises)
        ]
        sheet[name] = torch.cat(rows)
    save_labelled_grids(o.out, sheet, columns=o.captions)
    print("\n".join(captions))


if __name__ == "__main__":
    main()
