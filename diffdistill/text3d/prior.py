"""A saved multi-view prior: its network, vocabulary and schedule, as the teacher of text-to-3D."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from diffdistill.diffusion import Condition, Denoiser, VPSchedule
from diffdistill.diffusion.betas import beta_schedule
from diffdistill.errors import UserError, shown
from diffdistill.files import write_atomic

from .multi_view import MultiViewSettings, MultiViewUNet
from .words import Vocabulary

FORMAT = 2
WEIGHTS, CONFIG = "prior.safetensors", "config.json"


class MultiViewPrior:
    """A diffusion model of V views of an object, conditioned on words, cameras and the colour of the background.

    It has what a `Judge` needs of a teacher: `backbone`, `schedule` and `denoiser`. Its samples have the shape
    (V, 3, S, S) and lie in [-1, 1].

    Args:
        network: the network.
        vocabulary: its words.

    Attributes:
        schedule: the cosine schedule of 1,000 times; the network predicts v.
    """

    def __init__(self, network: MultiViewUNet, vocabulary: Vocabulary) -> None:
        self.backbone, self.vocabulary = network, vocabulary
        self.schedule = VPSchedule.from_betas(beta_schedule("squaredcos_cap_v2", 0, 0, 1000))

    def denoiser(self, network: Any = None) -> Denoiser:
        """The score model of the network, or of another one of its shape."""
        return Denoiser(self.backbone if network is None else network, self.schedule, "v")

    def condition(self, prompts: Sequence[str], camera: Tensor, background: Tensor) -> Condition:
        """The condition of objects.

        Args:
            prompts: one for each object, B of them.
            camera: azimuth and elevation in degrees, (B, V, 2).
            background: colours in [0, 1], (B, 3).

        Raises:
            UserError: as for `Vocabulary.ids`.
        """
        return {"words": self.vocabulary.ids(prompts).to(camera.device), "camera": camera, "background": background}


def without_words(cond: Condition) -> Condition:
    """The condition of the empty prompt, with the same cameras and backgrounds."""
    if not isinstance(cond, dict) or (words := cond.get("words")) is None:
        raise ValueError("the condition must be a mapping with the part words")
    return {**cond, "words": torch.zeros_like(words)}


def save_prior(prior: MultiViewPrior, folder: Path) -> None:
    """Write a prior: config.json, and its weights as float16."""
    config = {
        "format": FORMAT,
        "network": dataclasses.asdict(prior.backbone.settings),
        "vocabulary": dataclasses.asdict(prior.vocabulary),
    }
    tensors = {name: value.half().contiguous() for name, value in prior.backbone.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, save(tensors))
    write_atomic(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def load_prior(folder: str | Path) -> MultiViewPrior:
    """Read what `save_prior` wrote.

    Raises:
        UserError: there is no prior in the folder, or it is damaged.
    """
    place = Path(folder)
    try:
        config = json.loads((place / CONFIG).read_text())
    except OSError as error:
        raise UserError(f"there is no multi-view prior at {folder}: {CONFIG} is missing") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place / CONFIG} is no JSON") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{place / CONFIG} is not of format {FORMAT} of multi-view priors")
    try:
        settings = config["network"] | {"widths": tuple(config["network"]["widths"])}
        words = config["vocabulary"] | {"words": tuple(config["vocabulary"]["words"])}
        network, vocabulary = MultiViewSettings(**settings), Vocabulary(**words)
        with torch.device("meta"):  # so the weights that are there, not what the file says, take memory
            made = MultiViewUNet(network, len(vocabulary.words))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place / CONFIG} does not describe a multi-view prior: {shown(str(error))}") from error
    try:
        weights = {name: value.float() for name, value in load_file(place / WEIGHTS).items()}
        made.load_state_dict(weights, assign=True)
    except Exception as error:  # safetensors and torch raise many kinds
        raise UserError(f"{place / WEIGHTS} is missing, damaged, or of another shape than {CONFIG} says") from error
    if not all(bool(value.isfinite().all()) for value in made.parameters()):
        raise UserError(f"{place / WEIGHTS} has values that are not finite")
    made = made.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return MultiViewPrior(made, vocabulary)


def digest_of(prior: MultiViewPrior) -> str:
    """A hash of a prior's weights and words."""
    found = hashlib.sha256(repr(prior.vocabulary).encode())
    for name, value in sorted(prior.backbone.state_dict().items()):
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
