"""What a source of pictures is: one index a picture, read when asked for.

Notable:
- a source never holds all its pictures (an npz that is compressed aside); memory does not grow with their number;
- index i is the same picture on every machine and process;
- `digest` is a hash of the contents, which references are cached by.
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
    """Pictures by index.

    Attributes:
        name: what was asked for, for messages and reports.
        together: whether a batch is made at once (a generator's), not picture by picture in threads.
        left_out: how many files were left out, by reason.
        captions_from: where `captions` takes them from, for the report.
        decoding: another one wherever the same files would give other pixels.
    """

    name: str
    together: bool = False
    left_out: Counter[str] = Counter()
    decoding: bytes = b""
    captions_from: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, index: int) -> str:
        """The picture's own name."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """The stored form of a picture."""

    def read(self, index: int) -> Tensor:
        """One picture as a uint8 Tensor of shape (3, H, W).

        Raises:
            CorruptPictureError: it cannot be decoded, or `decode` refuses it.
        """
        return decode(self.read_bytes(index), f"{self.name}: {self.label(index)}")

    def path(self, index: int) -> str | None:
        """The picture's path inside the source, by which it is paired; None where it has none."""
        return None

    def captions(self) -> list[str] | None:
        """Each picture's caption, where the source knows them.

        Raises:
            UserError: it knows those of some pictures alone, or one cannot be read.
        """
        return None

    def made_from(self) -> dict[str, Any]:
        """What a report says of where the pictures come from, beside their name."""
        return {}

    def read_many(self, indices: Sequence[int]) -> list[Tensor]:
        """Several pictures, in the order asked for."""
        return [self.read(index) for index in indices]

    def digest(self) -> str:
        """16 hex digits of a hash over the names and contents of all pictures, and how their files are decoded."""
        found = hashlib.sha256(self.decoding)
        for i in range(len(self)):
            try:
                content = hashlib.sha256(self.read_bytes(i)).digest()
            except CorruptPictureError:  # for whoever measures it to stop at or to leave out
                content = b"unreadable"
            found.update(self.label(i).encode("utf-8", "surrogateescape") + b"\0" + content)
        return found.hexdigest()[:16]
