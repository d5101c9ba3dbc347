"""The small multi-view prior as a teacher of views: in pixel space, told words, cameras and the background's colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Denoiser
from diffdistill.text3d.cameras import Cameras
from diffdistill.text3d.prior import MultiViewPrior, without_words
from diffdistill.text3d.things.viewpoints import ring_starts, ring_views, view_cameras

from .view_teacher import ViewConditions


def ring_cameras(uniforms: Tensor) -> Cameras:
    """A ring of the priors' cameras, of two uniform numbers, on the CPU."""
    azimuth, elevation = ring_views(*ring_starts(uniforms[None].float().cpu()))
    return view_cameras(azimuth[0], elevation[0])


class EmbeddedPriorViews:
    """A `MultiViewPrior` as a `ViewTeacher`. A sample is the V views themselves, (V, 3, S, S) in [-1, 1].

    Args:
        prior: from `load_prior`.
    """

    can_adapt, told_background = False, True

    def __init__(self, prior: MultiViewPrior) -> None:
        self.prior, self.backbone, self.schedule = prior, prior.backbone, prior.schedule
        self.views, self.side = prior.backbone.settings.views, prior.backbone.settings.size

    def denoiser(self, network: Any = None) -> Denoiser:
        """The prior as a score model, or another network of its shape."""
        return self.prior.denoiser(network)

    def frozen(self, shared: bool) -> dict[str, nn.Module]:
        """Its network."""
        return {"prior": self.prior.backbone}

    def prepare(self, device: torch.device) -> None:
        """Move to the device; nothing is embedded."""
        self.prior.backbone.to(device)

    def cameras(self, uniforms: Tensor) -> Cameras:
        """A ring as it was trained on, of two uniform numbers, on the CPU."""
        return ring_cameras(uniforms)

    def conditions(self, prompts: Sequence[str], cameras: Cameras, background: Tensor) -> ViewConditions:
        """The conditions of R rows; see `ViewTeacher`. Without words, cameras and backgrounds are kept."""
        camera = torch.stack([cameras.azimuth_deg, cameras.elevation_deg], -1).unflatten(0, (len(prompts), -1))
        cond = self.prior.condition(prompts, camera, background)
        return ViewConditions(cond, without_words(cond))

    def encode(self, images: Tensor) -> Tensor:
        """Views in [0, 1] to the same views in [-1, 1]."""
        return 2 * images - 1

    def fake(self, network: nn.Module) -> nn.Module:
        """The network itself: it is told the cameras as the prior is."""
        return network
