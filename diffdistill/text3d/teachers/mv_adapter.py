"""MV-Adapter as a teacher of views: six views of an object by a UNet of Stable Diffusion 2.1 and layers beside it.

    x_t (B, 6, C, h, w), one time for each object --> UNet with attention along rows of all views (`row_attention`)
    camera: direction and place, 6 numbers, in all pixels of an image --T2IAdapter--> added in the UNet's way down

Source: MV-Adapter (arXiv 2412.03632), the text-to-views model for Stable Diffusion 2.1 (mvadapter_t2mv_sd21). Both
networks are diffusers' own classes; the UNet's weights are those of any pipeline of Stable Diffusion 2.1.

Notable:
- it knows six cameras alone: azimuths 0, 45, 90, 180, 270 and 315, elevation 0, orthographic. Here these are cameras
  far away with a field of view of 4 degrees, so that the scale of what is in front is off by 3 % or so;
- it was trained with more noise: log SNR is lower by log(8) t / T than in the pipeline's own schedule;
- its front looks along +y, and ours along -x, so that its axes are (y, -x, z).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffdistill.diffusion import Condition, Schedule, VPSchedule
from diffdistill.errors import UserError, shown
from diffdistill.models.families.unet import UNetBackbone, call_unet
from diffdistill.models.teacher import Teacher
from diffdistill.text3d.cameras import Cameras

from .latent_parts import require_plain
from .row_attention import add_rows
from .several_views import SeveralViews, text_and_camera

AZIMUTHS_DEG = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)
FOV_DEG = 4.0
SHIFT = 8.0


@dataclass(frozen=True)
class ViewAdapter:
    """Layers of MV-Adapter that a pipeline of Stable Diffusion gets.

    Args:
        weights: the .safetensors file of its text-to-views model; null for none.
        half_width: of its orthographic views, in the units of the box. The released model has 0.55, for objects
            that go to 0.5 or so.

    Raises:
        UserError: the half-width is not above 0.
    """

    weights: str | None = None
    half_width: float = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.half_width < math.inf:
            raise UserError(f"adapter.half_width is {self.half_width}; it must be a number above 0")


class RowViewsUNet(UNetBackbone):
    """A UNet with MV-Adapter's layers, for samples (B, 6, C, h, w).

    Its condition has the parts "text" (B, L, D) and "camera" (B, 6, 6).

    Args:
        inner: a UNet2DConditionModel, which gets layers beside its own (`add_rows`).
    """

    views = len(AZIMUTHS_DEG)

    def __init__(self, inner: Any) -> None:
        from diffusers import T2IAdapter

        super().__init__(inner)
        add_rows(inner, self.views)
        widths = list(inner.config.block_out_channels)
        weight = next(inner.parameters())
        encoder: Any = T2IAdapter(6, widths, inner.config.layers_per_block, downscale_factor=8)
        self.encoder = encoder
        self.encoder.requires_grad_(False).eval().to(weight)

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        text, camera = text_and_camera(cond)
        height, width = (8 * side for side in x_t.shape[-2:])
        numbers = self.in_own_dtype((camera.flatten(0, 1) + 1) / 2)
        features = self.encoder(numbers[:, :, None, None].expand(-1, -1, height, width))
        made = call_unet(
            self.inner,
            self.in_own_dtype(x_t.flatten(0, 1)),
            time.repeat_interleave(self.views),
            self.in_own_dtype(text).repeat_interleave(self.views, 0),
            down_intrablock_additional_residuals=list(features),
        )
        return made.unflatten(0, (-1, self.views))

    def added(self) -> dict[str, Tensor]:
        """The weights that MV-Adapter adds, by the names in its files."""
        rows = {name: value for name, value in self.inner.state_dict().items() if "_mv." in name}
        return {**rows, **self.encoder.state_dict()}


def place_and_direction(cameras: Cameras) -> Tensor:
    """What it is told of cameras: where they look and where they are on the unit sphere, in its own axes: (V, 6)."""
    x, y, z = nn.functional.normalize(cameras.positions(), dim=1).unbind(1)
    place = torch.stack([y, -x, z], 1)
    return torch.cat([-place, place], 1)


def own_cameras(half_width: float) -> Cameras:
    """Its six cameras, whose views show this much to either side of the origin."""
    count = len(AZIMUTHS_DEG)
    distance = half_width / math.tan(math.radians(FOV_DEG / 2))
    return Cameras.of([0.0] * count, list(AZIMUTHS_DEG), [distance] * count, [FOV_DEG] * count)


def shifted(schedule: Schedule, factor: float = SHIFT) -> VPSchedule:
    """A schedule with more noise at later times: the SNR is divided by factor^(t / T), T the last time.

    Raises:
        UserError: the schedule has no discrete times.
    """
    if not isinstance(schedule, VPSchedule):
        raise UserError("MV-Adapter needs a variance-preserving schedule, as Stable Diffusion has")
    share = torch.arange(schedule.num_train_timesteps, dtype=torch.float64) / schedule.last
    return VPSchedule(torch.sigmoid(torch.logit(schedule.alphas_cumprod) - share * math.log(factor)))


def load_adapter(network: RowViewsUNet, file: str) -> None:
    """Read the weights that MV-Adapter adds.

    Raises:
        UserError: the file is not there or torn, or its weights are of another network.
    """
    try:
        found = load_file(file)
    except Exception as error:  # safetensors raises many kinds
        raise UserError(f"adapter.weights: {file} cannot be read: {shown(str(error))}") from error
    wanted = network.added()
    odd = sorted(wanted.keys() ^ found.keys())
    if odd or any(found[name].shape != value.shape for name, value in wanted.items()):
        name = odd[0] if odd else next(n for n, value in wanted.items() if found[n].shape != value.shape)
        raise UserError(f"adapter.weights: {file} is not of this UNet: {name} is missing, too many or of another shape")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])


def mv_adapter_views(
    teacher: Teacher, prompts: Sequence[str], adapter: ViewAdapter, negative_prompt: str = ""
) -> SeveralViews:
    """MV-Adapter as a teacher of views.

    Args:
        teacher: Stable Diffusion 2.1, from `load_teacher`.
        prompts: all prompts of the run.
        adapter: its weights and views.
        negative_prompt: guidance leads away from it; "" for the empty prompt.

    Raises:
        UserError: the teacher is of another family, or the weights do not fit it.
    """
    network = RowViewsUNet(require_plain(teacher).inner)
    load_adapter(network, str(adapter.weights))
    ring, schedule = own_cameras(adapter.half_width), shifted(teacher.schedule)
    return SeveralViews(
        teacher, network, network.views, place_and_direction, prompts, negative_prompt, schedule, ring
    )  # fmt: skip
