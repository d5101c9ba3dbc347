"""Contrastive self-distillation (DDAE++, arXiv 2505.10999), a term beside the diffusion loss.

    view 1 of an image, noised --> network, up to a tap --> projector --> predictor --> q ---+
    view 2, noised ------> average of the network, up to the tap --> its projector --> k ----+--> InfoNCE

Both passes have the empty caption, so that features cannot be read off the text, and end at the tap. A view is a
shifted and mirrored variant of the image, with noise and a time of its own. The keys of all processes are negatives.

The paper follows MoCo v3 and EDM's augmentation, and its teacher is the average of the same network. Times, weight and
heads are ours, and there is one direction alone: MoCo v3 also takes queries from view 2 and keys from view 1
(docs/methods/ddae.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Schedule
from diffdistill.distill import SampleRandom, info_nce
from diffdistill.errors import UserError
from diffdistill.models.ema import averaged_copy, follow
from diffdistill.models.families.unet import UNetBackbone, View
from diffdistill.models.self_conditioning import own_tap
from diffdistill.models.taps import tap as module_of

from .base import Batch, unwrap


@dataclass(frozen=True)
class SelfDistillation:
    """The contrastive term.

    Args:
        weight: of the term, beside 1 for the diffusion loss; 0 for no such term.
        tap: where features are read; null for the tap of self-conditioning or, without it, the bottleneck.
        temperature: of InfoNCE.
        t_max: views are noised to times below this fraction of the schedule.
        width: width of the heads.
        ema_decay: decay of the averaged network that gives the keys.

    Raises:
        UserError: a number is out of its range.
    """

    weight: float = 0.0
    tap: str | None = None
    temperature: float = 0.2
    t_max: float = 0.4
    width: int = 128
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"self_distillation.weight is {self.weight}; it must be a number from 0, which is no term")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"self_distillation.temperature is {self.temperature}; it must be a number above 0")
        if not 0 < self.t_max <= 1:
            raise UserError(f"self_distillation.t_max is {self.t_max}; it is a fraction above 0 and at most 1")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"self_distillation.ema_decay is {self.ema_decay}; it must be from 0 to below 1")
        if type(self.width) is not int or self.width < 1:
            raise UserError(f"self_distillation.width is {self.width!r}; it must be a whole number from 1")


def head(inner: int, width: int) -> nn.Module:
    """Two linear layers with a normalisation between them, `inner` to `width` values."""
    return nn.Sequential(nn.Linear(inner, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))


class Heads(nn.Module):
    """The projector, and the predictor that queries pass besides."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.projector, self.predictor = head(channels, width), head(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Queries (B, width) from features (B, C)."""
        value: Tensor = self.predictor(self.projector(features.float()))
        return value


class Contrast:
    """The networks of the term, and the term.

    Args:
        settings: its numbers.
        model: the `TextConditionedUNet` that is trained.
        null: token ids (1, L) of the empty caption.

    Attributes:
        networks: "heads", which is trained, and the averages "average" and "average_heads".
        tap: where features are read.

    Raises:
        UserError: the network has no tap of this name.
    """

    def __init__(self, settings: SelfDistillation, model: Any, null: Tensor) -> None:
        self.settings, self.null = settings, null
        backbone = UNetBackbone(model.inner)
        self.tap = settings.tap or own_tap(model.inner) or backbone.bottleneck
        try:
            module_of(backbone, self.tap)
        except ValueError as error:
            raise UserError(f"self_distillation.tap: {error}") from error
        heads = Heads(backbone.tap_channels(self.tap), settings.width)
        self.networks: dict[str, nn.Module] = {
            "heads": heads,
            "average": averaged_copy(model),
            "average_heads": averaged_copy(heads),
        }

    def begin_step(self, step: int, networks: Mapping[str, nn.Module]) -> None:
        """Update the averages."""
        if step > 0:
            for average, network in (("average", "model"), ("average_heads", "heads")):
                follow(unwrap(networks[average]), unwrap(networks[network]), self.settings.ema_decay, step)

    def view(self, x0: Tensor, change: Tensor | None, schedule: Schedule, random: SampleRandom, name: str) -> View:
        """Latents, noised to a time of their own, with the empty caption."""
        t = schedule.timestep(random.uniform(f"{name}/time"), 0.0, self.settings.t_max)
        noise = random.normal(f"{name}/noise", x0.shape[1:])
        x_t = schedule.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        return View(x_t, schedule.network_time(t).to(x0.dtype), self.null.to(x0.device).expand(len(x0), -1), change)

    @torch.no_grad()
    def keys(self, view: View, networks: Mapping[str, nn.Module]) -> Tensor:
        """Keys (B, width) of a view, by the averages."""
        features = unwrap(networks["average"]).features(view, self.tap)
        found: Tensor = unwrap(networks["average_heads"]).projector(features.float())
        return found

    def loss(self, features: Tensor, keys: Tensor, random: SampleRandom, networks: Mapping[str, nn.Module]) -> Tensor:
        """InfoNCE of this process's queries with the keys of all processes.

        Args:
            features: (B, C), of the first view.
            keys: (B, width), of the second one.
            random: the batch's; its indices say which samples these are.
            networks: the method's networks.

        Raises:
            UserError: there is one image.
        """
        every = random.gather(keys)
        if len(every) < 2:
            raise UserError(
                "self_distillation: a batch of one image has no negatives; set training.batch_size to 2 or more"
            )
        indices = torch.tensor(random.indices, device=keys.device)
        # `gather` sorts by index; a batch is in that order on one process too
        own = torch.searchsorted(random.gather(indices), indices)
        return info_nce(networks["heads"](features), every, self.settings.temperature, own)


def changes_of(batch: Batch, conditioned: bool) -> tuple[Tensor | None, Tensor | None]:
    """How the two variants of each image were changed, for a network that is conditioned on it; else None twice."""
    return (batch["change"], batch.get("other_change")) if conditioned else (None, None)
