"""A saved text-to-3D model: prompts to fields, in one pass of its generator."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from diffdistill.errors import UserError, shown
from diffdistill.files import write_atomic

from .embedder import WordEmbedder
from .field import Field
from .generators import generator_of, preset
from .text_encoder import TextEmbedder, load_text_embedder
from .words import Vocabulary

FORMAT = 1
SMALL_WIDTH = 1024  # of the embeddings of a small generator, which then has 2 million parameters at most
MOST_SHARP = 1e5  # a surface that thin is of no width on any grid
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class TextTo3DModel(nn.Module):
    """A generator with what it knows of words.

    Args:
        generator: a preset of `generators.PRESETS`.
        embedder: of prompts, by words or by a text encoder; its width is that which the generator takes.
        sharpness: k of the density with which the fields are rendered; see `volume.volsdf_density`.

    Raises:
        UserError: there is no such preset, or the sharpness is out of its range.
    """

    def __init__(self, generator: str, embedder: WordEmbedder | TextEmbedder, sharpness: float = 60.0) -> None:
        super().__init__()
        if not 0 < sharpness <= MOST_SHARP:
            raise UserError(f"sharpness is {sharpness}; it must be a number above 0, and {MOST_SHARP:g} at most")
        settings: Any = preset(generator)
        widths = {f.name: embedder.dim for f in dataclasses.fields(settings) if f.name in ("prompt_dim", "token_dim")}
        self.name, self.embedder, self.sharpness = generator, embedder, sharpness
        self.generator: Any = generator_of(dataclasses.replace(settings, **widths))

    def forward(
        self, prompts: Sequence[str], noise: Tensor | None = None, layer_noise: Sequence[Tensor] | None = None
    ) -> Field:
        """Objects of P prompts.

        Args:
            prompts: one for each object.
            noise: (P, Z) for a generator that takes noise; None for that of seed 0, the same for all prompts. Zeros are
                no such noise: a generator normalises what it is given, and never saw them.
            layer_noise: of each layer, (P, *shape) for the generator's `layer_shapes`; None for none.

        Raises:
            UserError: a prompt that the model does not know.
        """
        told = self.embedder(prompts)
        if self.generator.noise_dim and noise is None:
            noise = drawn_noise(self.generator.noise_dim, 0).to(told.pooled).expand(len(prompts), -1)
        more = {} if layer_noise is None else {"layer_noise": layer_noise}
        found: Field = self.generator(told.pooled, told.tokens, told.mask, noise, **more)
        return found


def drawn_noise(width: int, seed: int) -> Tensor:
    """Normal noise (Z,) of an object; it is drawn on the CPU, so it is the same on every device."""
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def save_model(model: TextTo3DModel, folder: Path) -> None:
    """Write a model: config.json, and its weights as float16. A text encoder is not written; see `text_encoder`."""
    config = {
        "format": FORMAT,
        "generator": model.name,
        "sharpness": model.sharpness,
        **model.embedder.saved(),
    }
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, save(tensors))
    write_atomic(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def load_model(folder: str | Path) -> TextTo3DModel:
    """Read what `save_model` wrote.

    Raises:
        UserError: there is no model in the folder, it is damaged, or its text encoder cannot be read.
    """
    place = Path(folder)
    try:
        config = json.loads((place / CONFIG).read_text())
    except OSError as error:
        raise UserError(f"there is no text-to-3D model at {folder}: {CONFIG} is missing") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place / CONFIG} is no JSON") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{place / CONFIG} is not of format {FORMAT} of text-to-3D models")
    try:
        weights = load_file(place / WEIGHTS)
        embedder: WordEmbedder | TextEmbedder
        if "text_encoder" in config:
            embedder = load_text_embedder(config["text_encoder"])
        else:
            words = config["vocabulary"] | {"words": tuple(config["vocabulary"]["words"])}
            embedder = WordEmbedder(Vocabulary(**words), weights["embedder.table"])
        _check_shapes(config["generator"], embedder, weights)
        made = TextTo3DModel(config["generator"], embedder, float(config["sharpness"]))
        made.load_state_dict({name: value.float() for name, value in weights.items()})
    except UserError:
        raise
    except Exception as error:  # safetensors and torch raise many kinds
        what = f"{CONFIG} or {WEIGHTS} in {folder} is missing, damaged, or of another shape than the other says"
        raise UserError(f"{what}: {shown(str(error))}") from error
    made = made.requires_grad_(False).eval()
    if not all(bool(value.isfinite().all()) for value in made.state_dict().values()):
        raise UserError(f"{place / WEIGHTS} has values that are not finite")
    return made


def _check_shapes(generator: str, embedder: WordEmbedder | TextEmbedder, weights: dict[str, Tensor]) -> None:
    """Raise ValueError for weights of other shapes than the generator's, before it takes memory.

    Small ones are checked as they are loaded: networks without memory need imports that take a second.
    """
    if generator.endswith("_small") and embedder.dim <= SMALL_WIDTH:
        return
    with torch.device("meta"):
        wanted = TextTo3DModel(generator, embedder).state_dict()
    if {name: value.shape for name, value in wanted.items()} != {name: value.shape for name, value in weights.items()}:
        raise ValueError("names or shapes of weights differ")
