"""Finds the files of a pipeline, in a folder or in a repository of the hub.

Only the files of a repository that are read are downloaded. If the hub cannot be reached, the cached copy is used, and
an error about a missing file says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from diffdistill.errors import UserError

from .families import family_of
from .pipeline_folder import WEIGHTS, Part, PipelineFolder, first_line, read_object, variants


def open_pipeline(
    source: str | Path, variant: str | None = None, only: Collection[str] | None = None
) -> PipelineFolder:
    """Find the files of a pipeline; those of a hub id are downloaded, or taken from the cache.

    Args:
        source: folder or hub id.
        variant: variant of the weight files, for parts that have it; None for the plain files where there are any.
        only: names of the parts that are downloaded; None for all that the pipeline's family has.

    Raises:
        UserError: there is nothing at `source`, it is no pipeline, or a repository has a pipeline class that is not
            supported.
    """
    source = str(source)
    folder, where = Path(source), ""
    if not folder.is_dir():
        local = folder.exists() or folder.parent.is_dir()  # beside other folders: a mistyped folder, not a hub id
        if local or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise UserError(f"there is no model at {source}: expected a pipeline folder or a hub id such as owner/name")
        folder, where = _snapshot(source, variant, only)
    return PipelineFolder(source, folder, _index(source, folder, where), where, wanted_variant=variant)


def _index(source: str, folder: Path, where: str = "") -> dict[str, Any]:
    """The content of model_index.json."""
    file, refusal = folder / "model_index.json", f"there is no diffusers pipeline at {source}: model_index.json"
    if not file.is_file():
        product = source.rstrip("/") + "/export"
        run = f"; this is a run, whose product is {product}" if (folder / "export" / file.name).is_file() else ""
        raise UserError(f"{refusal} is missing{where}{run}")
    return read_object(file, refusal)


def _snapshot(source: str, variant: str | None, only: Collection[str] | None = None) -> tuple[Path, str]:
    """The snapshot of a repository with the files that are read, and what an error adds to "is missing"."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        names: list[str] | None = HfApi().list_repo_files(source)
    except (GatedRepoError, RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"there is no model at {source}: the hub has none, or does not give it to this user: {first_line(error)}"
        ) from error
    except (
        Exception
    ):  # the hub is off by a setting or cannot be reached; each version of its client raises another error
        names = None
    where = "" if names is not None else " in the cached copy, and the hub cannot be reached (offline)"
    try:
        if names is None:
            return Path(snapshot_download(source, local_files_only=True)), where
        index = Path(snapshot_download(source, allow_patterns=["model_index.json"]))
        parts = family_of(_index(source, index).get("_class_name"), source).parts
        parts = {name: part for name, part in parts.items() if only is None or name in only}
        return Path(snapshot_download(source, allow_patterns=wanted_files(names, parts, variant))), where
    except UserError:
        raise
    except Exception as error:
        partial = getattr(error, "snapshot_path", None)  # a cached copy that lacks files, perhaps none that are read
        if names is None and partial:
            return Path(partial), where
        if names is None:
            raise UserError(
                f"there is no model at {source}: the hub cannot be reached (offline), and the cache has no copy; "
                "name a folder, or download it once"
            ) from error
        raise UserError(f"the files of the model {source} cannot be downloaded: {first_line(error)}") from error


def wanted_files(names: Iterable[str], parts: Mapping[str, Part], variant: str | None = None) -> list[str]:
    """The files of a repository that are read: settings, and for each network the weights that would be loaded.

    Args:
        names: names of all files.
        parts: the parts of the pipeline's family, by subfolder.
        variant: see `open_pipeline`.
    """
    every = list(names)
    whole = ("scheduler/", *(f"{name}/" for name, part in parts.items() if part.tokenizer))
    wanted = [name for name in every if name == "model_index.json" or name.startswith(whole)]
    for part in (name for name, part in parts.items() if not part.tokenizer):
        inside = [name.removeprefix(f"{part}/") for name in every if name.startswith(f"{part}/")]
        found = variants(inside)
        kept = {variant} if variant in found else {None} if None in found else found  # several are refused when loaded
        for name in inside:
            weights = WEIGHTS.fullmatch(name)
            if name.endswith(".json") or (weights and weights["variant"] in kept):
                wanted.append(f"{part}/{name}")
    return wanted
