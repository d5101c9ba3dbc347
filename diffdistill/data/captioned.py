"""Captioned images for training, from any source: a folder, a zip, an npz, tar shards or the emoji set.

The caption of an image is in a file beside it (NAME.txt, NAME.caption or NAME.json), or in a file of captions that
names the images. All images are read into memory, as uint8 and in one size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from diffdistill.errors import UserError
from diffdistill.launched import rank_and_processes

if TYPE_CHECKING:
    from diffdistill.data.source import Source

MOST_BYTES = 8 << 30  # of images in memory


@dataclass(frozen=True)
class CaptionedData:
    """Where captioned images are.

    Args:
        source: a folder, .zip, .npz or .tar of images, or a folder laid out as assets/emoji.
        captions: a file of captions, "FILE.csv::COLUMN" to name the column; null for those beside the images.
        size: side in pixels; images are cropped to a square and resized to it. null for the size that the model asks
            for. Where the model asks for none, images stay as they are and must have one size.
    """

    source: str | None = "assets/emoji"
    captions: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.source is not None and not self.source.strip():
            raise UserError("source is empty; name a folder, .zip, .npz or .tar of images")
        if self.size is not None and self.size < 1:
            raise UserError(f"size is {self.size}; it must be a number of pixels from 1, or null")


class NoCaptionsError(UserError):
    """Images have no captions, where captions are needed."""


@dataclass(frozen=True)
class CaptionedImages:
    """Captioned images in memory.

    Attributes:
        images: uint8 tensor of shape (N, 3, H, W).
        names: N captions. Where there are styles, the captions are without them.
        styles: N words for the style of drawing; None for images without styles.
    """

    images: Tensor
    names: list[str]
    styles: list[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: Sequence[int]) -> CaptionedImages:
        """Some of the images, in the order of `rows`."""
        styles = None if self.styles is None else [self.styles[i] for i in rows]
        return CaptionedImages(self.images[list(rows)], [self.names[i] for i in rows], styles)

    @property
    def captions(self) -> list[str]:
        """N captions; where there are styles, "NAME, STYLE"."""
        if self.styles is None:
            return self.names
        return [f"{name}, {style}" for name, style in zip(self.names, self.styles, strict=True)]


def load_captioned(data: CaptionedData, size: tuple[int, int] | None = None, captioned: bool = True) -> CaptionedImages:
    """Read captioned images.

    Args:
        data: where they are.
        size: height and width that the model asks for; `data.size` must agree.
        captioned: whether captions are needed; otherwise all captions are empty.

    Raises:
        UserError: there is no source or no caption, an image is damaged, images have several sizes where no size is
            asked for, the size is not the model's, or the images take more memory than is allowed.
    """
    if data.source is None:
        raise UserError("source is null; name a folder, .zip, .npz or .tar of images")
    if data.size is not None:
        if size is not None and size != (data.size, data.size):
            raise UserError(f"size is {data.size}, and the model takes images of {size[0]} by {size[1]} pixels")
        size = (data.size, data.size)
    enlarge = data.size is not None
    if (Path(data.source) / "concepts.tsv").is_file():
        if data.captions is not None:
            raise UserError(f"captions is {data.captions}; the emoji set {data.source} has captions of its own")
        from diffdistill.data.emoji import load_emoji

        emoji = load_emoji(data.source)
        return CaptionedImages(_sized(emoji.images, size, enlarge, data.source), emoji.names, emoji.styles)
    from diffdistill.data.sources import open_source

    source = open_source(data.source)
    captions = _captions(source, data) if captioned else [""] * len(source)
    return CaptionedImages(_read(source, size, enlarge), captions)


def load_split(source: str | Path, split: str = "train") -> CaptionedImages:
    """One part of an emoji set.

    Args:
        source: a folder laid out as assets/emoji.
        split: "train" for the images to train on, "heldout" for those that are kept from training, "all" for both.

    Raises:
        UserError: the folder is of another kind, or there is no such part.
    """
    from diffdistill.data.emoji import load_emoji

    emoji = load_emoji(source, split)
    return CaptionedImages(emoji.images, emoji.names, emoji.styles)


def _captions(source: Source, data: CaptionedData) -> list[str]:
    if data.captions is not None:
        from diffdistill.data.captions import captions_for, captions_of_file

        texts, how = captions_for(captions_of_file(data.captions), source, len(source))
        if how.get("paired_by") == "order" and rank_and_processes()[0] == 0:
            print(f"note: captions of {data.captions} are paired with images by order", file=sys.stderr, flush=True)
        return texts
    found = source.captions()
    if found is None:
        raise NoCaptionsError(
            f"{data.source} has no captions; put a NAME.txt beside each image, or name a file of captions in `captions`"
        )
    return found


def _read(source: Source, size: tuple[int, int] | None, enlarge: bool) -> Tensor:
    """All images, (N, 3, H, W)."""
    from diffdistill.data.loading import batches

    n = len(source)
    kept: Tensor | None = None

    def prepare(image: Tensor) -> Tensor:
        if size is None:
            return image
        _refuse_enlarging(image, size, enlarge)
        return fitted(image, size)

    with tqdm(total=n, desc="images", unit="img", disable=n < 500) as bar:
        for batch in batches(source, range(n), prepare=prepare):
            images = batch.images
            assert isinstance(images, Tensor)
            if kept is None:
                needed = n * images[0].numel()
                if needed > MOST_BYTES:
                    raise UserError(
                        f"{source.name}: {n} images of {images.shape[2]} by {images.shape[3]} pixels take "
                        f"{needed / 2**30:.1f} GiB; at most {MOST_BYTES >> 30} GiB are read into memory: take fewer, "
                        "or set size"
                    )
                kept = torch.empty(n, *images.shape[1:], dtype=torch.uint8)
            if kept.shape[1:] != images.shape[1:]:
                sizes = " and ".join(f"{w} by {h}" for _, h, w in (kept.shape[1:], images.shape[1:]))
                raise UserError(f"{source.name} holds images of {sizes} pixels; set size to crop and resize them")
            kept[batch.indices] = images
            bar.update(len(batch.indices))
    assert kept is not None, "a source holds one image at the least"
    return kept


def fitted(image: Tensor, size: Sequence[int]) -> Tensor:
    """The largest part of the right shape from the middle of an image, resized by antialiased bicubic interpolation.

    Args:
        image: uint8 tensor of shape (3, H, W).
        size: height and width that are wanted. An image that has them already is returned as it is.

    Returns:
        uint8 tensor of shape (3, *size).
    """
    height, width = image.shape[-2:]
    wanted_height, wanted_width = size
    if (height, width) == (wanted_height, wanted_width):
        return image
    scale = min(height / wanted_height, width / wanted_width)
    h, w = min(height, round(wanted_height * scale)), min(width, round(wanted_width * scale))
    top, left = (height - h) // 2, (width - w) // 2
    part = image[:, top : top + h, left : left + w]
    if (h, w) == (wanted_height, wanted_width):
        return part.contiguous()
    made = interpolate(part[None].float(), size=(wanted_height, wanted_width), mode="bicubic", antialias=True)
    return made[0].round().clamp(0, 255).byte()


def _refuse_enlarging(image: Tensor, size: tuple[int, int], enlarge: bool) -> None:
    """Raise ValueError for an image that is smaller than the model's, unless its user asks for that size."""
    height, width = image.shape[-2:]
    if not enlarge and (height < size[0] or width < size[1]):
        raise ValueError(  # `batches` adds the image's name
            f"the image has {width} by {height} pixels, but the model takes {size[1]} by {size[0]}; to enlarge smaller "
            f"images, set size to {min(size)}"
        )


def _sized(images: Tensor, size: tuple[int, int] | None, enlarge: bool, name: str) -> Tensor:
    if size is None or images.shape[-2:] == size:
        return images
    try:
        _refuse_enlarging(images[0], size, enlarge)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    return torch.stack([fitted(image, size) for image in images])
