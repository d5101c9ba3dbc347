"""A captioned image set of eight things in two styles, laid out as assets/emoji, for unit tests."""

from pathlib import Path

import numpy as np

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "yellow": (230, 200, 40)}


def save_tiny_pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir(parents=True)
    names = [f"{colour} {thing}" for thing in ("apple", "car") for colour in COLOURS]
    (folder / "concepts.tsv").write_text("".join(f"{i:x}\t{name}\n" for i, name in enumerate(names)))
    (folder / "heldout.txt").write_text("\n")
    for style, margin in (("noto", 12), ("twemoji", 18)):
        sheet = np.full((64, 64 * len(names), 3), 255, np.uint8)
        for i, name in enumerate(names):
            colour, thing = name.split()
            top = 32 if thing == "car" else margin
            sheet[top : 64 - margin, 64 * i + margin : 64 * (i + 1) - margin] = COLOURS[colour]
        Image.fromarray(sheet).save(folder / f"{style}.webp", lossless=True)
    return folder
