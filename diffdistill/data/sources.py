"""Opens the source of images at a path: a folder, a zip, an npz, webdataset shards or an emoji set."""

from __future__ import annotations

from pathlib import Path

from diffdistill.data.arrays import Emoji, Npz
from diffdistill.data.files import Folder, Shards, Zip, walk
from diffdistill.data.listing import PICTURES, hidden
from diffdistill.data.source import Source
from diffdistill.errors import UserError


def open_source(path: str | Path) -> Source:
    """The source at a path: a folder of images, a .zip, a .npz, a .tar, a folder of .tar shards, or an emoji set.

    Raises:
        UserError: there is nothing at the path, a file of another kind, no image, or a damaged archive.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there are no images at {path}")
    kind = path.suffix.lower()
    source: Source
    if path.is_dir() and (path / "concepts.tsv").is_file():
        source = Emoji(path)
    elif path.is_dir():
        files = walk(path)
        shards = [file for name, file in files if name.lower().endswith(".tar") and not hidden(name)]
        folder = Folder(path, [item for item in files if item[1] not in set(shards)])
        if shards and len(folder):
            raise UserError(f"{path} holds {len(folder)} images and {len(shards)} .tar files; name one or the other")
        source = Shards(path, shards, folder.left_out) if shards else folder
    elif kind == ".zip":
        source = Zip(path)
    elif kind == ".npz":
        source = Npz(path)
    elif kind == ".tar":
        source = Shards(path, [path])
    else:
        raise UserError(f"{path} is no folder, .zip, .npz or .tar of images")
    if len(source) == 0:
        found = "".join(f"; {n} left out, {reason}" for reason, n in sorted(source.left_out.items()))
        raise UserError(f"{path} holds no image; images are files that end in {', '.join(PICTURES)}{found}")
    return source
