"""A pipeline's files found: in a folder, or in a repository of the hub.

Of a repository only the files that are read are downloaded. Where the hub is not reached, the cached copy is taken, and
an error about a file that is missing says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffdistill.errors import UserError

from .pipeline_folder import NETWORKS, WEIGHTS, PipelineFolder, first_line, read_object, variants


def open_pipeline(source: str) -> PipelineFolder:
    """Find a pipeline's files; those of a hub id are downloaded, or taken from the cache.

    Raises:
        UserError: nothing there, or no pipeline.
    """
    folder, where = Path(source), ""
    if not folder.is_dir():
        local = folder.exists() or folder.parent.is_dir()  # beside other folders: a slip of the pen, not a hub id
        if local or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise UserError(f"no teacher at {source}: expected a pipeline folder or a hub id such as owner/name")
        folder, where = _snapshot(source)
    file, refusal = folder / "model_index.json", f"no Stable-Diffusion-class pipeline at {source}: model_index.json"
    if not file.is_file():
        raise UserError(f"{refusal} is missing{where}")
    return PipelineFolder(source, folder, read_object(file, refusal), where)


def _snapshot(source: str) -> tuple[Path, str]:
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
        return Path(snapshot_download(source, allow_patterns=wanted_files(names))), where
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


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that are read: settings, and of each network the weights that would be loaded."""
    every = list(names)
    wanted = [name for name in every if name == "model_index.json" or name.startswith(("scheduler/", "tokenizer/"))]
    for part in NETWORKS:
        inside = [name.removeprefix(f"{part}/") for name in every if name.startswith(f"{part}/")]
        found = variants(inside)
        kept = {None} if None in found else found  # several without plain ones: refused once they are there
        for name in inside:
            weights = WEIGHTS.fullmatch(name)
            if name.endswith(".json") or (weights and weights["variant"] in kept):
                wanted.append(f"{part}/{name}")
    return wanted
