"""The interface of a source of images. An image has an index and is read when it is asked for.

Notable:
- a source does not hold all its images in memory (an npz is the exception), so memory does not grow with their number;
- index i is the same image on every machine and in every process;
- `digest` is a hash of the contents; caches of references depend on it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffdistill.data.decode import CorruptPictureError, decode


class Source(ABC):
    """Images by index.

    Attributes:
        name: the path as it was given, for messages and reports.
        together: whether a batch is made at once, as a generator does, and not image by image in threads.
        left_out: how many files were left out, by reason.
        captions_from: where `captions` takes the captions from, for the report.
        decoding: names how files are decoded; part of the digest, so that it changes when pixels would.
    """

    name: str
    together: bool = False
    left_out: Counter[str] = Counter()
    decoding: bytes = b""
    captions_from: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def label(self, index: int) -> str:
        """The image's own name."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """The stored form of an image."""

    def read(self, index: int) -> Tensor:
        """One image as a uint8 Tensor of shape (3, H, W).

        Raises:
            CorruptPictureError: it cannot be decoded, or `decode` refuses it.
        """
        return decode(self.read_bytes(index), f"{self.name}: {self.label(index)}")

    def path(self, index: int) -> str | None:
        """The image's path inside the source, by which it is paired with captions; None where it has no path."""
        return None

    def captions(self) -> list[str] | None:
        """The caption of each image; None where the source has no captions.

        Raises:
            UserError: only some images have captions, or a caption cannot be read.
        """
        return None

    def made_from(self) -> dict[str, Any]:
        """What a report says about the origin of the images, beside their name."""
        return {}

    def read_many(self, indices: Sequence[int]) -> list[Tensor]:
        """Several images, in the order of `indices`."""
        return [self.read(index) for index in indices]

    def digest(self) -> str:
        """A hash of the names and contents of all images, and of how their files are decoded; 16 hex digits."""
        found = hashlib.sha256(self.decoding)
        for i in range(len(self)):
            try:
                content = hashlib.sha256(self.read_bytes(i)).digest()
            except CorruptPictureError:  # whoever reads the image decides whether to stop or to leave it out
                content = b"unreadable"
            found.update(self.label(i).encode("utf-8", "surrogateescape") + b"\0" + content)
        return found.hexdigest()[:16]
