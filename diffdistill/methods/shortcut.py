"""Shortcut models: text to image in 1, 2, 4, ... steps, from data; a step equals two half steps (arXiv 2410.12557).

s = t   flow matching                                                       a share `flow_matching_share`
s < t   V(x_t, t, s) towards two half steps of the averaged network, `distill.shortcut`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffdistill.data.captioned import CaptionedData
from diffdistill.diffusion import Prediction, expand, guided_any_step
from diffdistill.distill import SampleRandom, shortcut_loss, shortcut_times
from diffdistill.errors import UserError

from .any_step import AnyStep, AnyStepExport
from .base import Batch, Loss, OptimizerSettings, Phase, check_shares
from .captioned_latents import Augmentation
from .new_network import NetworkSettings


class Shortcut(AnyStep):
    """Train a model that is conditioned on the size of its step; the defaults are the paper's where it has them.

    Args:
        data: captioned images.
        network: the autoencoder, and the sizes or the start of the networks that are trained.
        augmentation: how images and captions are varied; its drop_text is for samples with s = t.
        optimizer: settings of AdamW; the released code has a weight decay of .1.
        drop_bootstrapped: whether the captions of the other samples are dropped at that rate too. In the released code
            they are not, so its larger steps are never trained without a label, which guidance at sampling would need.
        flow_matching_share: share of samples with s = t; .75 in the paper, .875 in the released code.
        whole_steps: share of the other samples that take a step of size 1, whatever size is drawn. The released code
            gives each size to equally many samples, and size 1 to the samples that are left over: 4 of 32, .125.
        finest: number of steps of the finest grid, a power of 2.
        guidance_scale: guidance of half steps of the finest size; 1 for none. Larger steps inherit it.
        clip: largest absolute value of the point between two half steps and of the target velocity; null for no limit.
            It is 4 in the released code.
        ema_decay: decay of the averaged network, which makes the half steps.
        export: how the product is stored.

    Raises:
        UserError: a setting is out of its range, or settings contradict each other.
    """

    def __init__(
        self,
        data: CaptionedData = CaptionedData(),
        network: NetworkSettings = NetworkSettings(),
        augmentation: Augmentation = Augmentation(),
        optimizer: OptimizerSettings = OptimizerSettings(1e-4, weight_decay=0.1),
        drop_bootstrapped: bool = False,
        flow_matching_share: float = 0.75,
        whole_steps: float = 0.0,
        finest: int = 128,
        guidance_scale: float = 1.0,
        clip: float | None = None,
        ema_decay: float = 0.999,
        export: AnyStepExport = AnyStepExport(),
    ) -> None:
        check_shares(flow_matching_share=flow_matching_share, whole_steps=whole_steps)
        if finest < 2 or finest & (finest - 1):
            raise UserError(f"finest is {finest}; it must be a power of 2, and at least 2")
        if clip is not None and not clip > 0:
            raise UserError(f"clip is {clip}; it must be above 0, or null")
        if guidance_scale != 1 and augmentation.drop_text == 0:
            raise UserError(
                "augmentation.drop_text is 0, so the prediction without a caption, which guidance leads away from, "
                "would never be trained; set guidance_scale to 1"
            )
        super().__init__(
            data,
            network,
            augmentation,
            optimizer,
            export,
            ema_decay=ema_decay,
            preview_guidance=2.0 if guidance_scale == 1 and drop_bootstrapped else 1.0,
        )
        self.flow_matching_share, self.finest, self.clip = flow_matching_share, finest, clip
        self.guidance_scale, self.whole_steps, self.drop_bootstrapped = guidance_scale, whole_steps, drop_bootstrapped

    def phases(self, step: int) -> list[Phase]:
        return [Phase("shortcut", "model", self._loss)]

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        kept = None if self.drop_bootstrapped else ~self._same(random)
        return self.source.batch(records, random, keep_text=kept)

    def _same(self, random: SampleRandom) -> Tensor:
        """Which samples have s = t, bool (B,)."""
        return random.bernoulli("same", self.flow_matching_share)

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x0, ids = batch["x0"], batch["ids"]
        draws = (random.uniform("size"), random.uniform("place"), self._same(random), random.uniform("time"))
        t, s = shortcut_times(*draws, self.finest, random.bernoulli("whole", self.whole_steps))
        eps = self.noise(random, "noise", x0)
        loss = shortcut_loss(
            self.trained, x0, t, s, eps, ids, target=self._half_step, finest=self.finest, clip=self.clip
        )
        return loss, {}

    def _half_step(self, x_t: Any, t: Any, s: Any, cond: Any) -> Prediction:
        """The averaged network; guided for steps of the finest size, for which `shortcut_loss` asks at s = t."""
        if self.guidance_scale == 1 or not bool((s == t).any()):
            return self.average(x_t, t, s, cond)
        null = expand(self.null, len(cond))
        scale = (1 + (self.guidance_scale - 1) * (s == t).double()).to(t.device)
        return guided_any_step(self.average, x_t, t, s, cond, null, scale, energy_preserving=False)
