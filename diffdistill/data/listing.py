"""Which of many files are images, their order, the captions beside them, and which files are left out and why.

A folder, a zip and a tar follow one rule:

- an image is a file whose ending is one of `PICTURES`, in capitals or not;
- hidden files are left out: their name, or that of a folder they are in, starts with a dot or is in `SYSTEM`;
- a file beside an image that has its name and an ending of `CAPTIONS`, in capitals or not, is the image's caption;
- names are ordered as a person would order them: runs of digits by their value, so 2.png comes before 10.png.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Generic, TypeVar

PICTURES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".gif", ".avif",
)  # fmt: skip
CAPTIONS = (".txt", ".caption", ".json")  # if there are several, the first one counts
SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")  # of macOS, Synology, Windows
_DIGITS = re.compile(r"([0-9]+)")

Place = TypeVar("Place")


@dataclass
class Listing(Generic[Place]):
    """Files, sorted into images, captions and those that are left out.

    Attributes:
        pictures: names of the images and the places of their bytes, in order.
        captions: for the name of an image, the files of captions beside it, in the order of `CAPTIONS`.
        left_out: how many files were left out, by reason.
    """

    pictures: list[tuple[str, Place]]
    captions: dict[str, list[tuple[str, Place]]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def normal(name: str) -> str:
    """A name in the form in which names are compared: NFC, with / between folders and no ./ in front.

    >>> normal("./set\\\\e\\u0301.png") == "set/\\u00e9.png"
    True
    """
    return _plain(unicodedata.normalize("NFC", name))


def order_of(name: str) -> tuple[tuple[str | int, ...], str]:
    """The key by which names are sorted: runs of digits by their value, the rest by its characters.

    >>> sorted(["10.png", "2.png", "a10/1.png", "a9/1.png"], key=order_of)
    ['2.png', '10.png', 'a9/1.png', 'a10/1.png']
    """
    name = normal(name)
    key: list[str | int] = []
    for i, part in enumerate(_DIGITS.split(name)):
        if i % 2:  # as a length and the digits, because the number may be too long for an integer
            part = part.lstrip("0")
            key += [len(part), part]
        else:
            key.append(part)
    return tuple(key), name


def ending(name: str) -> str:
    """The ending of a name in small letters: ".png" for "a/b.PNG"."""
    return PurePosixPath(name).suffix.lower()


def without_ending(name: str) -> str:
    """The name of an image without its ending; any other name as it is."""
    return name[: -len(ending(name))] if ending(name) in PICTURES else name


def arrange(files: Iterable[tuple[str, Place | None]]) -> Listing[Place]:
    """Sort files into images, captions and those that are left out.

    Args:
        files: names, with / or \\ between folders, and the places of their bytes; None where a link leads to nothing.
            If two files have the same name, the later one counts, as it does when an archive is unpacked.
    """
    left_out: Counter[str] = Counter()
    kept: dict[str, Place] = {}
    for written, place in files:
        name = _plain(written)
        if hidden(name):
            left_out["hidden"] += 1
            continue
        if place is None:
            left_out["no file, such as a broken link"] += 1
            continue
        if name in kept:
            left_out["replaced by a later one of the same name"] += 1
        kept[name] = place
    pictures = sorted(((n, p) for n, p in kept.items() if ending(n) in PICTURES), key=lambda item: order_of(item[0]))
    texts = {name[: -len(ending(name))] + ending(name): name for name in kept if ending(name) in CAPTIONS}
    captions: dict[str, list[tuple[str, Place]]] = {}
    beside = set()
    for name, _ in pictures:
        own = [texts[without_ending(name) + suffix] for suffix in CAPTIONS if without_ending(name) + suffix in texts]
        found = [(text, kept[text]) for text in own]
        if found:
            captions[name] = found
            beside |= {n for n, _ in found}
    for name in kept:
        if ending(name) not in PICTURES and name not in beside:
            left_out[f"not an image: {ending(name) or 'no ending'}"] += 1
    return Listing(pictures, captions, left_out)


def with_links(files: Sequence[tuple[str, Place]], links: Sequence[tuple[str, str]]) -> list[tuple[str, Place | None]]:
    """The files of an archive, with the files that its links lead to: one file, or all files of a folder.

    Args:
        files: names and places.
        links: names and targets, both as paths inside the archive. The place of a link that leads to nothing is None.

    >>> with_links([("a/0.png", 7)], [("b.png", "a/0.png"), ("c", "./a"), ("d.png", "gone.png"), ("a/round", "a")])
    [('a/0.png', 7), ('b.png', 7), ('c/0.png', 7), ('d.png', None)]
    """
    places = {_plain(name): place for name, place in files}
    found: list[tuple[str, Place | None]] = list(files)
    for name, target in links:
        to = _plain(posixpath.normpath(target))
        if to in places:
            found.append((name, places[to]))
        elif not _plain(name).startswith(f"{to}/"):  # a link to a folder that it lies in is not entered
            inside = [n for n in places if n.startswith(f"{to}/")]
            found += [(name + n.removeprefix(to), places[n]) for n in inside] or [(name, None)]
    return found


def _plain(name: str) -> str:
    """With / between folders, and no ./ in front."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def hidden(name: str) -> bool:
    """Whether a name, or a folder in it, starts with a dot or is in `SYSTEM`."""
    return any(part.startswith(".") or part in SYSTEM for part in name.split("/"))
