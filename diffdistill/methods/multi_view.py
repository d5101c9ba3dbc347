"""The embedded prior of text-to-3D: a diffusion model of several views of named objects.

    views of an object, V together --noise--> x_t --MultiViewUNet, told words, cameras, background--> v, squared error

Notable:
- objects are seen in random rings of views, on white or on a random colour, of which the network is told;
- a tenth of the samples has no words, so that the prior can be guided; camera and background stay;
- prompts that are held out of the prior (`things.catalogue`) are never shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffdistill.diffusion import Denoiser, GuidedDenoiser, ddim, drop_condition, move
from diffdistill.distill import SampleRandom, denoising_loss
from diffdistill.errors import UserError
from diffdistill.text3d.multi_view import MultiViewSettings, MultiViewUNet
from diffdistill.text3d.prior import MultiViewPrior, digest_of, load_prior, save_prior, without_words
from diffdistill.text3d.things.catalogue import COLOURS, Split, split_of
from diffdistill.text3d.things.viewpoints import RING
from diffdistill.text3d.things.views import NATURAL, Views, load_views
from diffdistill.text3d.words import Vocabulary

from .base import Batch, Loss, Method, OptimizerSettings, Phase, Validation, check_shares, unwrap

SHOWN, STEPS, GUIDANCE = 8, 25, 2.0  # objects that validation shows, and how they are sampled


@dataclass(frozen=True)
class ViewData:
    """Views of things.

    Args:
        source: folder that `train/things.py` made.
        natural: whether the things come in their own colours too, as 3D models do.
        share_of_white: how often the background is white; else it has a random colour.
    """

    source: str
    natural: bool = False
    share_of_white: float = 0.5

    def __post_init__(self) -> None:
        check_shares(share_of_white=self.share_of_white)


class MultiViewDiffusion(Method):
    """Train a multi-view prior.

    Args:
        data: the views.
        network: the shape of the network; the views' side must be a multiple of `network.size`, and `network.views` be
            those of a ring, 4.
        drop_words: share of the samples that are shown without their words.
        high_noise: the density of the training times t in [0, 1] is proportional to t ** high_noise. 0 is uniform; what
            a prior settles at high noise, such as how many legs there are, is what a generator learns from it.
        optimizer: the optimiser.
        init_from: a saved prior to go on from, of the same shape and words.

    Raises:
        UserError: a setting is out of its range, the views are not there, or the prior to go on from has another shape.
    """

    averaged = "prior"

    def __init__(
        self,
        data: ViewData,
        network: MultiViewSettings = MultiViewSettings(),
        drop_words: float = 0.1,
        high_noise: float = 1.0,
        optimizer: OptimizerSettings = OptimizerSettings(1.2e-3, (0.9, 0.99), 0.01),
        init_from: str | None = None,
    ) -> None:
        check_shares(drop_words=drop_words)
        if not 0 <= high_noise <= 8:
            raise UserError(f"high_noise is {high_noise}; it must be in [0, 8]")
        if network.views != RING:
            raise UserError(f"network.views is {network.views}; a ring of views has {RING}")
        self.data, self.drop_words, self.high_noise = data, drop_words, high_noise
        self.views, self.split = open_views(data, network.size)
        self.vocabulary = vocabulary_of(self.views)
        content = {"data.source": digest_of_views(self.views)}
        if init_from is None:
            self.prior = MultiViewPrior(MultiViewUNet(network, len(self.vocabulary.words)), self.vocabulary)
        else:
            self.prior = load_prior(init_from)
            content["init_from"] = digest_of(self.prior)
            if self.prior.backbone.settings != network or self.prior.vocabulary != self.vocabulary:
                raise UserError(f"the prior at {init_from} has another shape or other words than this run")
        self.content = content
        made = self.prior.backbone.requires_grad_(True).train()
        self.networks = {"prior": made.to(memory_format=torch.channels_last)}  # type: ignore[call-overload]
        self.optimizers = {"prior": optimizer}
        self.prompts = self.views.indexes(self.split.prior)

    def __len__(self) -> int:
        return len(self.prompts) * self.views.rings

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        rows = torch.tensor(list(records))
        white = random.uniform("white") < self.data.share_of_white
        colour = random.uniform("background", (3,)).float()
        background = torch.where(white[:, None], torch.ones_like(colour), colour).cpu()
        which, rings = self.prompts[rows % len(self.prompts)], rows // len(self.prompts)
        seen = self.views.of_rings(which, rings, background)
        cond = self.prior.condition(seen.prompts, seen.camera, seen.background)
        return {"x0": (2 * seen.images - 1).to(self.device), "cond": move(cond, self.device)}

    def phases(self, step: int) -> list[Phase]:
        return [Phase("prior", "prior", self._loss)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x0, cond = batch["x0"], batch["cond"]
        cond = drop_condition(cond, without_words(cond), random.bernoulli("drop", self.drop_words))
        t = self.prior.schedule.timestep(random.uniform("time") ** (1 / (1 + self.high_noise)), 0.0, 1.0)
        eps = random.normal("noise", x0.shape[1:])
        return denoising_loss(self.prior.denoiser(self.networks["prior"]), x0, t, eps, cond, "v"), {}

    def validate(self) -> Validation:
        """Views of some prompts that it trains on, sampled in 25 steps with guidance 2, on white."""
        prompts = [str(p) for p in self.split.prior[:: max(1, len(self.split.prior) // SHOWN)][:SHOWN]]
        return Validation(sample_views(self.prior, unwrap(self.networks["prior"]), prompts, self.device))

    def export(self, folder: Path) -> None:
        save_prior(MultiViewPrior(unwrap(self.networks["prior"]), self.vocabulary), folder)


def open_views(data: ViewData, size: int) -> tuple[Views, Split]:
    """The views of settings at a size in pixels, and the split of their prompts.

    Raises:
        UserError: as for `load_views` and `split_of`.
    """
    views = load_views(data.source, size=size)
    return views, split_of(views.names, natural=data.natural)


def vocabulary_of(views: Views) -> Vocabulary:
    """The words of things and colours, colours first."""
    words = list(COLOURS)
    for name in views.names:
        words += [word for word in name.split() if word not in words]
    return Vocabulary(tuple(words), 1 + max(len(name.split()) for name in views.names))


def digest_of_views(views: Views) -> str:
    """A hash of the names, cameras and pixels of views: of all rings in one colour, and of the references in all.

    That colour is the things' own where they have any. What mixes the channels of a thing shows in its references.
    """
    found = hashlib.sha256(repr((views.names, views.size, views.rings)).encode())
    colours = torch.arange(NATURAL + views.natural)
    for thing in range(len(views)):
        which = torch.stack([torch.full_like(colours, thing), colours], 1)
        for rings in torch.arange(views.rings).split(64):
            seen = views.of_rings(which[-1:].expand(len(rings), 2), rings, torch.ones(len(rings), 3))
            found.update(seen.camera.numpy().tobytes() + (255 * seen.images).round().byte().numpy().tobytes())
        found.update((255 * views.references(which).images).round().byte().numpy().tobytes())
    return found.hexdigest()[:16]


@torch.no_grad()
def sample_views(
    prior: MultiViewPrior, network: MultiViewUNet, prompts: Sequence[str], device: torch.device, seed: int = 0
) -> torch.Tensor:
    """A ring of views of each prompt, sampled on white: (P V, 3, S, S) in [0, 1]."""
    settings = network.settings
    turns = torch.arange(settings.views) * (360 / settings.views)
    camera = torch.stack([turns + 30, torch.full_like(turns, 20.0)], -1).expand(len(prompts), -1, -1)
    cond = move(prior.condition(prompts, camera, torch.ones(len(prompts), 3)), device)
    shape = (settings.views, 3, settings.size, settings.size)
    noise = SampleRandom(seed, range(len(prompts)), device).normal("preview", shape)
    score = GuidedDenoiser(Denoiser(network, prior.schedule, "v"), without_words(cond), GUIDANCE)
    x0 = ddim(lambda x, t: score(x, t, cond), noise, prior.schedule, STEPS)
    return ((x0 + 1) / 2).clamp(0, 1).flatten(0, 1)
