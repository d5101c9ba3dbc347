"""The embedded image set: captioned emoji of 64 x 64 pixels in two drawing styles.

A caption is "NAME, STYLE" ("red apple, noto"). The held-out concepts are not in the training split, in either style.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffdistill.data.decode import decode
from diffdistill.data.text_files import decode_text, lines_of
from diffdistill.errors import UserError

STYLES = ("noto", "twemoji")
SIZE = 64


@dataclass(frozen=True)
class EmojiSet:
    """Captioned images.

    Attributes:
        images: uint8 Tensor of shape (N, 3, 64, 64).
        names: N names of what is drawn, such as "red apple".
        styles: N words for the style of drawing.
    """

    images: Tensor
    names: list[str]
    styles: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def captions(self) -> list[str]:
        """N captions, "NAME, STYLE"."""
        return [f"{name}, {style}" for name, style in zip(self.names, self.styles, strict=True)]

    def subset(self, keep: list[int]) -> EmojiSet:
        """The images at these indices, in this order."""
        return EmojiSet(self.images[keep], [self.names[i] for i in keep], [self.styles[i] for i in keep])


def load_emoji(root: str | Path, split: str = "train") -> EmojiSet:
    """Read a folder laid out as `assets/emoji`.

    Args:
        root: folder with concepts.tsv, heldout.txt and one sheet STYLE.webp for each style.
        split: "train", "heldout" or "all".

    Raises:
        UserError: a file is missing or cannot be read, or the size of a sheet does not fit the list of concepts.
    """
    root = Path(root)
    if split not in ("train", "heldout", "all"):
        raise UserError(f"split is {split!r}; it must be train, heldout or all")
    for file in ("concepts.tsv", "heldout.txt", *(f"{style}.webp" for style in STYLES)):
        if not (root / file).is_file():
            raise UserError(f"{root} is not an emoji set: {file} is missing")
    table = [line.split("\t") for line in _lines(root / "concepts.tsv")]
    if any(len(row) < 2 for row in table):
        raise UserError(f"{root / 'concepts.tsv'}: every line should be CODE, a tab and NAME")
    concepts = [row[1] for row in table]
    held_out = set(_lines(root / "heldout.txt"))
    images = torch.cat([_sheet(root / f"{style}.webp", len(concepts)) for style in STYLES])
    whole = EmojiSet(images, concepts * len(STYLES), [style for style in STYLES for _ in concepts])
    wanted = {"train": (False,), "heldout": (True,), "all": (False, True)}[split]
    return whole.subset([i for i, name in enumerate(whole.names) if (name in held_out) in wanted])


def groups(root: str | Path) -> dict[str, str]:
    """The group of each concept by its name, such as "animal": the part of its category before a dash.

    Raises:
        UserError: concepts.tsv has no third column.
    """
    table = [line.split("\t") for line in _lines(Path(root) / "concepts.tsv")]
    if any(len(row) < 3 for row in table):
        raise UserError(f"{Path(root) / 'concepts.tsv'}: a line has no category; it should be CODE, NAME and CATEGORY")
    return {row[1]: row[2].split("-")[0] for row in table}


def _lines(path: Path) -> list[str]:
    return lines_of(decode_text(path.read_bytes(), str(path)))


def _sheet(path: Path, n: int) -> Tensor:
    pixels = decode(path.read_bytes(), str(path))
    _, height, width = pixels.shape
    columns = width // SIZE
    if width % SIZE or height % SIZE or columns * (height // SIZE) < n:
        raise UserError(f"{path} is {width}x{height}: not a sheet of {n} images of {SIZE} pixels")
    cells = pixels.view(3, height // SIZE, SIZE, columns, SIZE).permute(1, 3, 0, 2, 4)
    return cells.reshape(-1, 3, SIZE, SIZE)[:n].clone()
