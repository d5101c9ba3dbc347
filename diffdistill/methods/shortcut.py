"""Shortcut models: text to image in 1, 2, 4, ... steps, from data; a step is two of half its size (arXiv 2410.12557).

s = t   flow matching                                                       a share `same` of the samples
s < t   V(x_t, t, s) towards two half steps of the averaged network, `distill.shortcut`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffdistill.diffusion import Prediction
from diffdistill.diffusion.any_step import guided_any_step
from diffdistill.distill import SampleRandom
from diffdistill.distill.shortcut import shortcut_loss, shortcut_times
from diffdistill.errors import UserError

from .any_step import AnyStep
from .base import Batch, Loss, check_shares


class Shortcut(AnyStep):
    """Train a model that is told its step's size; the defaults are the paper's where it has them.

    Args:
        autoencoder, data, block_out_channels, cross_attention, layers_per_block, text_width, text_layers: as of
            `TextToImage`.
        learning_rate: peak of AdamW's.
        betas: AdamW's.
        weight_decay: AdamW's; the released code has .1.
        drop_text: share of the samples with s = t that are trained with the empty caption.
        drop_bootstrapped: drop it for that share of the others too. The released code does not: its larger steps are
            never made without a label, and guidance at sampling would ask for that.
        recolour, shift, mirror, variants: of the pictures, as of `TextToImage`.
        init_from: an any-step model's folder or a teacher to start from; null for nothing.
        same: share of samples with s = t; .75 in the paper, .875 in the released code.
        whole_steps: share of the other samples that have a step of size 1 whatever size is drawn. The released code
            deals the sizes out evenly and gives those left over size 1: 4 of 32, .125.
        finest: steps of the finest grid, a power of 2.
        guidance: scale that half steps of the finest size are guided with; 1 for none. Larger steps inherit it.
        clip: keep the middle of two half steps, and the velocity aimed at, within this of 0; null for no limit. The
            released code has 4.
        average_decay: of the averaged network that makes the half steps.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.
        stock_one_step: export one step as a stock pipeline too, in the folder `one_step`.
    """

    name = "shortcut"

    def __init__(
        self,
        autoencoder: str = "assets/teacher/vae",
        data: str = "assets/emoji",
        block_out_channels: tuple[int, ...] = (128, 128),
        cross_attention: tuple[bool, ...] = (False, True),
        layers_per_block: int = 1,
        text_width: int = 128,
        text_layers: int = 2,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.1,
        drop_text: float = 0.1,
        recolour: float = 0.15,
        shift: int = 0,
        mirror: bool = False,
        variants: int = 12,
        init_from: str | None = None,
        drop_bootstrapped: bool = False,
        same: float = 0.75,
        whole_steps: float = 0.0,
        finest: int = 128,
        guidance: float = 1.0,
        clip: float | None = None,
        average_decay: float = 0.999,
        attention: str = "auto",
        half_export: bool = False,
        stock_one_step: bool = False,
    ) -> None:
        check_shares(same=same, whole_steps=whole_steps)
        if finest < 2 or finest & (finest - 1):
            raise UserError(f"finest is {finest}; it must be a power of 2, 2 at least")
        if clip is not None and not clip > 0:
            raise UserError(f"clip is {clip}; it must be above 0, or null")
        if guidance != 1 and drop_text == 0:
            raise UserError("drop_text is 0: guidance leads away from what is never trained; set guidance to 1")
        source = {
            "autoencoder": autoencoder, "data": data, "block_out_channels": block_out_channels,
            "cross_attention": cross_attention, "layers_per_block": layers_per_block, "text_width": text_width,
            "text_layers": text_layers, "drop_text": drop_text, "recolour": recolour, "shift": shift,
            "mirror": mirror, "variants": variants,
        }  # fmt: skip
        super().__init__(
            source,
            learning_rate=learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            init_from=init_from,
            average_decay=average_decay,
            attention=attention,
            half_export=half_export,
            stock_one_step=stock_one_step,
        )
        self.same, self.finest, self.guidance, self.clip = same, finest, guidance, clip
        self.whole_steps, self.drop_bootstrapped = whole_steps, drop_bootstrapped
        self.preview_guidance = 2.0 if guidance == 1 and drop_bootstrapped else 1.0

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        kept = None if self.drop_bootstrapped else ~self._same(random)
        return self.source.batch(records, random, keep_text=kept)

    def _same(self, random: SampleRandom) -> Tensor:
        """Which samples have s = t, bool (B,)."""
        return random.bernoulli("same", self.same)

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
        """The averaged network; guided where a step is of the finest size, which is asked for at s = t."""
        if self.guidance == 1 or not bool((s == t).any()):
            return self.average(x_t, t, s, cond)
        scale = (1 + (self.guidance - 1) * (s == t).double()).to(t.device)
        return guided_any_step(self.average, x_t, t, s, cond, self.null, scale, energy_preserving=False)
