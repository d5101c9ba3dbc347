"""Loads the parts of a diffusers pipeline from its folder, or one network from a folder of its own.

A family says which parts a pipeline has, and of which classes they are (`models.families`).

Notable:
- each part is loaded from safetensors alone, in the dtype that is asked for, whatever its stored dtype. A part that is
  incomplete is refused;
- a part with files of only one variant (`diffusion_pytorch_model.fp16.safetensors`) is loaded from that variant. If
  there are plain files too, these are loaded unless a variant is asked for;
- whatever error a library raises for such files becomes one line that names the part;
- the class of a scheduler may need a package that is not installed. Training does not need the scheduler itself, so the
  pipeline is loaded, and sampling says what is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch

from diffdistill.errors import UserError

# name[-shard][.variant][-shard].safetensors; in older files the number of the shard comes before the variant
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?(\.(?P<variant>[^./]+?))?(-\d{5}-of-\d{5})?\.safetensors"
)


@dataclass(frozen=True)
class Part:
    """The part of a pipeline in one of its subfolders.

    Attributes:
        classes: names of the classes that are supported.
        library: the library of these classes, "diffusers" or "transformers".
        tokenizer: whether the part is a tokenizer; otherwise it is a network.
        optional: whether a pipeline may lack the part; its index then says null.
    """

    classes: tuple[str, ...]
    library: Literal["diffusers", "transformers"]
    tokenizer: bool = False
    optional: bool = False


@dataclass(frozen=True)
class PipelineFolder:
    """The files of a pipeline. For a network in a folder of its own, the part is ".".

    Attributes:
        source: the folder or hub id, as it was given.
        folder: the folder that holds the files.
        index: the content of model_index.json; empty for a network in a folder of its own.
        missing_where: what an error adds to "is missing".
        noun: what an error calls the pipeline.
        kind: what an error says is expected in the folder.
        wanted_variant: the variant to load, for parts that have it; None for the plain files.
    """

    source: str
    folder: Path
    index: dict[str, Any]
    missing_where: str = ""
    noun: str = "teacher"
    kind: str = "diffusers pipeline"
    wanted_variant: str | None = None

    def path(self, name: str) -> Path:
        """The path of a file that must exist.

        Raises:
            UserError: it does not exist.
        """
        if not (self.folder / name).is_file():
            raise UserError(
                f"there is no {self.kind} at {self.source}: {PurePosixPath(name)} is missing{self.missing_where}"
            )
        return self.folder / name

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a settings file.

        Raises:
            UserError: the file is missing, or holds no JSON object.
        """
        return read_object(self.path(name), f"there is no {self.kind} at {self.source}: {PurePosixPath(name)}")

    def weights(self, part: str) -> dict[str, torch.Tensor]:
        """The stored weights of a network from all its files, by name.

        Raises:
            UserError: see `variant`; or a file is torn.
        """
        from safetensors.torch import load_file

        variant, found = self.variant(part), dict[str, torch.Tensor]()
        with self.said_of(part):
            for path in sorted((self.folder / part).glob("*.safetensors")):
                name = WEIGHTS.fullmatch(path.name)
                if name and name["variant"] == variant:
                    found |= load_file(path)
        return found

    def variant(self, part: str) -> str | None:
        """The variant that a network's weights are loaded from; None for the plain files.

        Raises:
            UserError: there are no weights in safetensors; or there are no plain files and several variants, none of
                which was asked for.
        """
        found = self._variants(part)
        if not found and part != "." and not (self.folder / part).is_dir():
            raise UserError(f"{self._named(part)} is missing{self.missing_where}: there is no folder {part}")
        if not found:
            raise UserError(
                f"{self._named(part)} has no *.safetensors weights{self.missing_where}; "
                "pickled ones (such as .bin) are never loaded"
            )
        if self.wanted_variant in found:
            return self.wanted_variant
        if None in found:
            return None
        if len(found) > 1:
            names = ", ".join(sorted(str(name) for name in found))
            raise UserError(
                f"{self._named(part)} has weights of the variants {names} and no plain ones; keep one variant"
            )
        return found.pop()

    def check_variant(self, parts: Iterable[str]) -> None:
        """Raise UserError where a variant is asked for and no part has it. A part may lack it: it is then as stored."""
        found = set[str | None]().union(*map(self._variants, parts))
        if self.wanted_variant is not None and self.wanted_variant not in found:
            there = ", ".join(sorted("plain files" if name is None else name for name in found))
            raise UserError(
                f"{self.noun} {self.source} has no weights of the variant {self.wanted_variant!r}; there are: {there}"
            )

    def _variants(self, part: str) -> set[str | None]:
        return variants(path.name for path in (self.folder / part).glob("*.safetensors"))

    def lacks(self, part: str) -> bool:
        """Whether the index lists the part as null or not at all."""
        entry = self.index.get(part)
        return not (isinstance(entry, list) and len(entry) == 2 and entry[1])

    def check_class(self, part: str, wanted: Part) -> str:
        """The class that the stock pipeline would load a part as.

        Raises:
            UserError: the index or the part's own settings name a class that is not supported.
        """
        if part in self.index and self.lacks(part):
            raise UserError(f"{self.noun} {self.source}: its model_index.json names no {part}")
        diffusers_network = wanted.library == "diffusers" and not wanted.tokenizer
        own = self.read_json(f"{part}/config.json").get("_class_name") if diffusers_network else None
        name = self.index[part][1] if part in self.index else own or wanted.classes[0]
        indexed = name if part in self.index else wanted.classes[0]
        for found, file in ((indexed, "model_index.json"), (own or name, f"{part}/config.json")):
            if found not in wanted.classes:
                raise UserError(
                    f"{self._named(part)} is a {found}, as its {PurePosixPath(file)} says; "
                    f"expected {' or '.join(wanted.classes)}"
                )
        if own is not None and own != name:
            raise UserError(f"{self._named(part)} is a {name} in model_index.json and a {own} in its config.json")
        return str(name)

    def load(self, part: str, wanted: Part, dtype: torch.dtype = torch.float32) -> Any:
        """Load a network, frozen and complete, in the dtype.

        Raises:
            UserError: its class is not supported, it has no weights in safetensors, or its files are torn or misfit.
        """
        name = self.check_class(part, wanted)
        self.path(f"{part}/config.json")
        variant = self.variant(part)
        of_transformers = wanted.library == "transformers"
        cls = _class_named(name, of_transformers)
        with self.said_of(part), quiet():
            network, found = cls.from_pretrained(
                self.folder / part,
                variant=variant,
                use_safetensors=True,
                output_loading_info=True,
                **{"dtype" if of_transformers else "torch_dtype": dtype},
            )
        absent = sorted(found["missing_keys"])
        if absent:
            raise UserError(f"{self._named(part)} file lacks {len(absent)} weights, such as {absent[0]}")
        return network.requires_grad_(False).eval()

    def load_tokenizer(self, part: str, wanted: Part) -> Any:
        """Load a tokenizer.

        Raises:
            UserError: its class is not supported, or its files are missing or torn.
        """
        self.path(f"{part}/tokenizer_config.json")
        self.check_class(part, wanted)
        import transformers

        with self.said_of(part), quiet():
            return getattr(transformers, wanted.classes[0]).from_pretrained(self.folder / part)

    def load_scheduler(self) -> tuple[Any, str]:
        """The scheduler and "", or None and the reason why it cannot be built, such as a missing package.

        Raises:
            UserError: the file of its settings is missing or torn.
        """
        import diffusers

        config = self.read_json("scheduler/scheduler_config.json")
        entry = self.index.get("scheduler")
        name = str(entry[1] if isinstance(entry, list) and len(entry) == 2 and entry[1] else config.get("_class_name"))
        cls: Any = getattr(diffusers, name, None)
        if cls is None:
            return None, f"diffusers has no {name}"
        try:
            with quiet():
                return cls.from_config(config), ""
        except Exception as error:  # each class raises other errors for its settings; the reason goes to the user
            return None, first_line(error)

    @contextmanager
    def said_of(self, part: str) -> Iterator[None]:
        """Within the block, any error of a library becomes a UserError that names the part."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each library that reads the files raises other errors
            raise UserError(
                f"there is no {self.kind} in safetensors at {self.source}: {'it' if part == '.' else f'its {part}'} "
                f"cannot be read: {first_line(error)}"
            ) from error

    def _named(self, part: str) -> str:
        return f"{self.noun} {self.source}" if part == "." else f"{self.noun} {self.source}: its {part}"


def _class_named(name: str, of_transformers: bool) -> Any:
    if of_transformers:
        import transformers

        return getattr(transformers, name)
    import diffusers

    from . import self_conditioned  # its classes are diffusers models of this package

    return getattr(self_conditioned, name) if name.startswith("SelfConditioned") else getattr(diffusers, name)


def variants(names: Iterable[str]) -> set[str | None]:
    """The variants of weight files; None stands for plain files.

    >>> sorted(variants(["model.fp16.safetensors", "model.safetensors.index.json"]))
    ['fp16']
    >>> variants(["diffusion_pytorch_model-00001-of-00002.safetensors"])
    {None}
    """
    return {found["variant"] for name in names if (found := WEIGHTS.fullmatch(name))}


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, diffusers and transformers show no bars and no remarks; the caller reports what matters."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [log for log in (of_diffusers, of_transformers) if log.is_progress_bar_enabled()]
    levels = [(log, log.get_verbosity()) for log in (of_diffusers, of_transformers)]
    for log in shown:
        log.disable_progress_bar()
    for log, _ in levels:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
        for log, level in levels:
            log.set_verbosity(level)


def first_line(error: Exception) -> str:
    """The first line of an error's message; the name of its type if the message is empty."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def read_object(file: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: a JSON file.
        what: how an error begins.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{what} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{what} holds no JSON object")
    return found
