"""The embedded image set: emoji in two drawing styles, 64 pixels, captioned.

A caption is "NAME, STYLE" ("red apple, noto"). Held-out concepts, in both styles, are in no training split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError

STYLES = ("noto", "twemoji")
SIZE = 64
MAX_SHEET_PIXELS = 64_000_000


@dataclass(frozen=True)
class EmojiSet:
    """images: uint8 Tensor of shape (N, 3, 64, 64); names and styles: one string a picture."""

    images: Tensor
    names: list[str]
    styles: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def captions(self) -> list[str]:
        return [f"{name}, {style}" for name, style in zip(self.names, self.styles, strict=True)]

    def subset(self, keep: list[int]) -> EmojiSet:
        return EmojiSet(self.images[keep], [self.names[i] for i in keep], [self.styles[i] for i in keep])


def load_emoji(root: str | Path, split: str = "train") -> EmojiSet:
    """Read a folder laid out as `assets/emoji`.

    Args:
        root: folder with concepts.tsv, heldout.txt and one STYLE.webp sheet per style.
        split: "train", "heldout" or "all".

    Raises:
        UserError: a missing file, or a sheet whose size does not fit the list of concepts.
    """
    root = Path(root)
    if split not in ("train", "heldout", "all"):
        raise UserError(f"split is {split!r}; it must be train, heldout or all")
    for file in ("concepts.tsv", "heldout.txt", *(f"{style}.webp" for style in STYLES)):
        if not (root / file).is_file():
            raise UserError(f"{root} is not an emoji set: {file} is missing")
    table = [line.split("\t") for line in (root / "concepts.tsv").read_text(encoding="utf-8").splitlines()]
    if any(len(row) < 2 for row in table):
        raise UserError(f"{root / 'concepts.tsv'}: every line should be CODE, a tab and NAME")
    concepts = [row[1] for row in table]
    held_out = set((root / "heldout.txt").read_text().splitlines())
    images = torch.cat([_sheet(root / f"{style}.webp", len(concepts)) for style in STYLES])
    whole = EmojiSet(images, concepts * len(STYLES), [style for style in STYLES for _ in concepts])
    wanted = {"train": (False,), "heldout": (True,), "all": (False, True)}[split]
    return whole.subset([i for i, name in enumerate(whole.names) if (name in held_out) in wanted])


def _sheet(path: Path, n: int) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            columns = width // SIZE
            if width * height > MAX_SHEET_PIXELS or width % SIZE or height % SIZE or columns * (height // SIZE) < n:
                raise UserError(f"{path} is {width}x{height}: not a sheet of {n} pictures of {SIZE} pixels")
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable picture: {error}") from error
    cells = pixels.reshape(height // SIZE, SIZE, columns, SIZE, 3).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(cells.reshape(-1, 3, SIZE, SIZE)[:n].copy())
