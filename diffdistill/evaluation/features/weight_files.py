"""Weight files of feature extractors: where they are looked for, their hashes, and where to get them.

Notable:
- a file is hashed before it is read, and its hash goes into the protocol of every number made with it;
- a file is downloaded only where `weights="download"` asks for it;
- a file other than the published one is accepted only where the caller allows it, by its hash or by `True`.
"""

import hashlib
import importlib.util
import os
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from diffdistill.errors import UserError
from diffdistill.files import user_cache

FOLDER_VARIABLE = "DIFFDISTILL_WEIGHTS"
_PIECE = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights.

    Args:
        title: what it holds, for messages.
        name: its file name; in `cache_folder()` it may lie in a subfolder, "folder/file".
        sha256: its full hash; None where no hash is known, so that the file cannot be checked.
        url: where `weights="download"` fetches it; "" where a download is not offered.
        get: how to get it otherwise, as the end of the sentence "get the file ...".
    """

    title: str
    name: str
    sha256: str | None
    url: str = ""
    get: str = ""

    @property
    def advice(self) -> str:
        """How to get the file, as the end of an error message."""
        pinned = f"sha256 {self.sha256}" if self.sha256 else "no sha256 known to check it against"
        then = 'pass weights=PATH, or weights="download"' if self.url else "pass weights=PATH"
        return f"get {Path(self.name).name} ({pinned}) {self.get or f'from {self.url}'}, then {then}"


def cache_folder() -> Path:
    """The folder of weights: $DIFFDISTILL_WEIGHTS, or `weights` in `user_cache()`."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder)
    return user_cache() / "weights"


def hub_cached(repo: str, name: str) -> list[Path]:
    """A Hugging Face repository's file in the hub's own cache, if it is there; it needs no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name)
    return [Path(found)] if isinstance(found, str) else []


def find(file: WeightFile, weights: str | os.PathLike[str] | None = None, also: Iterable[Path] = ()) -> Path:
    """The path of a weight file.

    Args:
        file: the file to find.
        weights: its path, or a folder that holds it under its name; "download" fetches it into `cache_folder()` where
            it is not there yet; None looks in `cache_folder()` and `also`.
        also: more places to look, such as another tool's cache.

    Raises:
        UserError: the file is in none of the places, or could not be downloaded.
    """
    kept = cache_folder() / file.name
    if weights == "download":
        return kept if kept.is_file() else download(file)
    if weights is not None:
        path = Path(weights)
        places = [path / Path(file.name).name if path.is_dir() else path]
    else:
        places = [kept, *also]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{file.title} weights not found: no file {' or '.join(map(str, places))}; {file.advice}")


def packaged(package: str, name: str) -> Path | None:
    """A file of an installed package, which is located but never imported; None where there is no such package."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / name


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for an error that a user reads."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check(file: WeightFile, path: Path, allow_other: bool | str = False) -> str:
    """Hash a weight file and refuse a wrong one.

    Args:
        file: the published file.
        path: the file that was found.
        allow_other: True accepts any file (fine-tuned weights, or random ones for a test); a sha256 accepts the file
            that has it.

    Returns:
        The sha256 of the file.

    Raises:
        UserError: the hash is neither the published nor the allowed one.
    """
    digest = sha256_of(path)
    if isinstance(allow_other, str):
        if digest != allow_other.lower():
            raise UserError(f"wrong {file.title} weights in {path}: sha256 is {digest}, asked for {allow_other}")
    elif not allow_other and file.sha256 is not None and digest != file.sha256:
        raise UserError(
            f"wrong {file.title} weights in {path}: sha256 is {digest}, should be {file.sha256}; {file.advice} "
            f'(or allow_other_weights="{digest}" if this file is meant)'
        )
    return digest


def download(file: WeightFile, folder: Path | None = None) -> Path:
    """Download a weight file, check it, and keep it under its name; a failed download leaves nothing behind.

    Args:
        file: the file to download.
        folder: where it is kept; `cache_folder()` by default.

    Raises:
        UserError: no URL is known, the network failed, or the downloaded file is not the published one.
    """
    if not file.url:
        raise UserError(f"{file.title} weights cannot be downloaded; {file.advice}")
    target = (cache_folder() if folder is None else folder) / file.name
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(file.url, timeout=60) as stream, part.open("wb") as out:
            while piece := stream.read(_PIECE):
                digest.update(piece)
                out.write(piece)
        if file.sha256 is not None and digest.hexdigest() != file.sha256:
            raise UserError(f"{file.url} gave a file of sha256 {digest.hexdigest()}, should be {file.sha256}")
        os.replace(part, target)
    except OSError as error:  # URLError is one
        raise UserError(f"could not download {file.url} ({error}); {file.advice}") from error
    finally:
        part.unlink(missing_ok=True)
    return target
