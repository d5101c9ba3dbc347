"""A pipeline's files found: in a folder, or in a repository of the hub.

Of a repository only the files that are read are downloaded. Where the hub is not reached, the cached copy is taken, and
an error about a file that is missing says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffdistill.errors import UserError

from .families import family_of
from .pipeline_folder import WEIGHTS, Part, PipelineFolder, first_line, read_object, variants


def open_pipeline(source: str, variant: str | None = None) -> PipelineFolder:
    """Find a pipeline's files; those of a hub id are downloaded, or taken from the cache.

    Args:
        source: folder or hub id.
        variant: of the weights' files, where a part has it; None for the plain files where there are any.

    Raises:
        UserError: nothing there, no pipeline, or in a repository a class of pipeline that is not supported.
    """
    folder, where = Path(source), ""
    if not folder.is_dir():
        local = folder.exists() or folder.parent.is_dir()  # beside other folders: a slip of the pen, not a hub id
        if local or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise UserError(f"no teacher at {source}: expected a pipeline folder or a hub id such as owner/name")
        folder, where = _snapshot(source, variant)
    return PipelineFolder(source, folder, _index(source, folder, where), where, wanted_variant=variant)


def _index(source: str, folder: Path, where: str = "") -> dict[str, Any]:
    """What model_index.json says."""
    file, refusal = folder / "model_index.json", f"no diffusers pipeline at {source}: model_index.json"
    if not file.is_file():
        raise UserError(f"{refusal} is missing{where}")
    return read_object(file, refusal)


def _snapshot(source: str, variant: str | None) -> tuple[Path, str]:
    """The snapshot of a repository with the files that are read, and what to add to "is missing"."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        names: list[str] | None = HfApi().list_repo_files(source)
    except (GatedRepoError, RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"no teacher at {source}: the hub has none, or not for this user: {first_line(error)}"
        ) from error
    except Exception:  # offline by setting, or no way to the hub: each version of its client raises something else
        names = None
    where = "" if names is not None else " in the cached copy, and the hub is not reached (offline)"
    try:
        if names is None:
            return Path(snapshot_download(source, local_files_only=True)), where
        index = Path(snapshot_download(source, allow_patterns=["model_index.json"]))
        parts = family_of(_index(source, index).get("_class_name"), source).parts
        return Path(snapshot_download(source, allow_patterns=wanted_files(names, parts, variant))), where
    except UserError:
        raise
    except Exception as error:
        partial = getattr(error, "snapshot_path", None)  # of a cached copy that lacks files, perhaps none that are read
        if names is None and partial:
            return Path(partial), where
        if names is None:
            raise UserError(
                f"no teacher at {source}: the hub is not reached (offline), and the cache has no copy; "
                "name a folder, or download it once"
            ) from error
        raise UserError(f"no teacher at {source}: its files cannot be downloaded: {first_line(error)}") from error


def wanted_files(names: Iterable[str], parts: Mapping[str, Part], variant: str | None = None) -> list[str]:
    """Of a repository's files those that are read: settings, and of each network the weights that would be loaded.

    Args:
        names: of all files.
        parts: of the pipeline's family, by subfolder.
        variant: as of `open_pipeline`.
    """
    every = list(names)
    whole = ("scheduler/", *(f"{name}/" for name, part in parts.items() if part.tokenizer))
    wanted = [name for name in every if name == "model_index.json" or name.startswith(whole)]
    for part in (name for name, part in parts.items() if not part.tokenizer):
        inside = [name.removeprefix(f"{part}/") for name in every if name.startswith(f"{part}/")]
        found = variants(inside)
        kept = {variant} if variant in found else {None} if None in found else found  # several: refused once there
        for name in inside:
            weights = WEIGHTS.fullmatch(name)
            if name.endswith(".json") or (weights and weights["variant"] in kept):
                wanted.append(f"{part}/{name}")
    return wanted
