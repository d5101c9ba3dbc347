"""Self-E: text to image in any number of steps, from data, judged by itself (arXiv 2512.22374).

    s = t   flow matching                                                    a share `same` of the samples
    s < t   x0_hat = x_t - t V(x_t, t, s, c) is noised to s and judged there by the averaged network (with the caption)
            and by the network itself (without), `distill.self_evaluation`

Notable:
- s may lie further before t as the run goes on: down to (1 - tau) t, tau from 0 to 1 over `span_share` of it, from
  `span_from` on; before that s = t for all, and a step is flow matching's, at its cost;
- with `fake_from`, the same network also learns what its own samples look like, under captions with "fake image" added,
  and that term joins the judgement from that share of the run on;
- `same: 1` is flow matching with the same network, data and cost of a pass: the baseline;
- samples whose caption was dropped are treated like the others. Caption and no caption are then one condition, so only
  average and live weights differ, and what is left is the data's own loss.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffdistill.distill import SampleRandom
from diffdistill.distill.flow_matching import flow_matching_loss, logit_normal_times
from diffdistill.distill.self_evaluation import earlier_times, fake_branch_loss, self_evaluation_loss
from diffdistill.errors import UserError
from diffdistill.models.any_step_pipeline import AnyStepModel

from .any_step import AnyStep
from .base import Batch, Loss, check_shares


class SelfE(AnyStep):
    """Train an any-step text-to-image model; the defaults are the paper's where it has them.

    Args:
        autoencoder, data, block_out_channels, cross_attention, layers_per_block, text_width, text_layers: as of
            `TextToImage`.
        learning_rate: peak of AdamW's.
        betas: AdamW's.
        weight_decay: AdamW's; the paper names Adam and no decay.
        drop_text: share of samples trained with the empty caption.
        recolour, shift, mirror, variants: of the pictures, as of `TextToImage`.
        init_from: an any-step model's folder (a flow-matching one, say) or a teacher to start from; null for nothing.
        same: share of samples with s = t; 1 is flow matching.
        time_mean: mean of the logit of t; the paper's mu, 0.5 at 512 tokens of latent, 1.15 at 4096, 0.42 at 64.
        span_from: share of the run that is flow matching alone; a judge that has learnt nothing yet misleads.
        span_share: share of the run over which s then may come to lie ever further before t.
        evaluator_decay: of the averaged network that judges.
        fake_from: share of the run after which the fake branch is trained and used; null for never.
        classifier_share: weight of the classifier score beside the fake branch's, (w - 1) / w of a guidance scale w.
        judgement_scale: what the judgement is multiplied by; 1 is the paper's, whose form divides the reverse KL's by a
            guidance scale w. Without a fake branch w - 1 gives the classifier score at guidance w.
        energy_preserving: scale the target to the data's norm.
        reach: how far into a step of several its s lies, from 0 (s = t) to 1 (its end, the paper's).
        reach_of_one_step: how far into its one step a one-step sample's s lies, from 0 to 1.
        finest_steps: with more steps than these s stays about as far from t as with these; null, the paper's, for no
            limit.
        eta: noise added while the product is sampled, a share of the ancestral sampler's; 1 is the paper's.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.
        stock_one_step: export one step as a stock pipeline too, in the folder `one_step`.
    """

    name = "self_e"
    free = {
        **AnyStep.free,
        "reach": "how the product is sampled",
        "reach_of_one_step": "how the product is sampled",
        "finest_steps": "how the product is sampled",
        "eta": "how the product is sampled",
    }

    def __init__(
        self,
        autoencoder: str = "assets/teacher/vae",
        data: str = "assets/emoji",
        block_out_channels: tuple[int, ...] = (128, 128),
        cross_attention: tuple[bool, ...] = (False, True),
        layers_per_block: int = 1,
        text_width: int = 128,
        text_layers: int = 2,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        drop_text: float = 0.1,
        recolour: float = 0.15,
        shift: int = 0,
        mirror: bool = False,
        variants: int = 12,
        init_from: str | None = None,
        same: float = 0.5,
        time_mean: float = 0.42,
        span_from: float = 0.0,
        span_share: float = 0.6,
        evaluator_decay: float = 0.9999,
        fake_from: float | None = None,
        classifier_share: float = 0.9,
        judgement_scale: float = 1.0,
        energy_preserving: bool = True,
        reach: float = 1.0,
        reach_of_one_step: float = 0.5,
        finest_steps: int | None = None,
        eta: float = 0.0,
        attention: str = "auto",
        half_export: bool = False,
        stock_one_step: bool = False,
    ) -> None:
        check_shares(
            same=same, span_from=span_from, span_share=span_share, classifier_share=classifier_share, reach=reach,
            reach_of_one_step=reach_of_one_step, eta=eta, fake_from=fake_from or 0.0,
        )  # fmt: skip
        if same == 1 and fake_from is not None:
            raise UserError("same 1 is flow matching, which judges nothing: fake_from must be null")
        if same < 1 and drop_text == 0:
            raise UserError("drop_text is 0: the judge without a caption would never be trained")
        if same < 1 and (span_from == 1 or span_from + span_share > 1 + 1e-9):
            raise UserError(
                f"span_from {span_from} and span_share {span_share} end after the run does; they are shares of it"
            )
        if not 0 < judgement_scale < math.inf:
            raise UserError(f"judgement_scale is {judgement_scale}; it must be a number above 0")
        if finest_steps is not None and finest_steps < 2:
            raise UserError(f"finest_steps is {finest_steps}; it must be 2 or more, or null")
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
            average_decay=evaluator_decay if same < 1 else None,
            grid_shift=float(
                torch.tensor(time_mean, dtype=torch.float64).exp()
            ),  # the sampling grid is warped as the times are
            attention=attention,
            half_export=half_export,
            stock_one_step=stock_one_step,
        )
        if fake_from is not None and len(self._phrase()) > self.source.tokenizer.model_max_length - 3:
            raise UserError(f"init_from {init_from}: its captions are too short to say that a picture is a fake")
        self.same, self.time_mean, self.fake_from = same, time_mean, fake_from
        self.span_from, self.span_share = span_from, span_share
        self.classifier_share, self.energy_preserving = classifier_share, energy_preserving
        self.judgement_scale, self.eta = judgement_scale, eta
        if same == 1:
            self.reach = self.reach_of_one_step = 0.0  # it was told s = t alone
        else:
            self.reach, self.reach_of_one_step, self.finest_steps = reach, reach_of_one_step, finest_steps

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x0, ids = batch["x0"], batch["ids"]
        t = logit_normal_times(random.normal("time", (), torch.float64), self.time_mean)
        eps = self.noise(random, "noise", x0)
        if self.same == 1:
            return flow_matching_loss(self.trained, x0, t, eps, ids), {}
        span = self._span()
        s = earlier_times(t, random.uniform("earlier"), span, random.bernoulli("same", self.same))
        fake = self.fake_from is not None and self.progress >= self.fake_from
        fake_ids = self.as_fake(ids) if fake else None
        loss, judged = self_evaluation_loss(
            self.trained,
            x0,
            t,
            s,
            eps,
            self.noise(random, "judged", x0),
            ids,
            self.null,
            self.average,
            self.live,
            fake_ids,
            self.classifier_share,
            self.energy_preserving,
            self.judgement_scale,
        )
        # of the judged samples, their number taken as expected: no matter how samples are spread over processes
        delta = judged.delta.float().square().flatten(1).mean(1).sqrt().sum() / ((1 - self.same) * len(x0))
        logs = {"span": loss.new_tensor(span), "delta_rms": delta}
        if fake_ids is None:
            return loss, logs
        of_fakes = fake_branch_loss(self.trained, judged, fake_ids)
        return loss + of_fakes, {**logs, "fake": of_fakes}

    def _product(self) -> AnyStepModel:
        product = super()._product()
        if self._span() == 0:  # told s = t alone so far: of an earlier s it knows nothing
            product.reach = product.reach_of_one_step = 0.0
        return product

    def _span(self) -> float:
        """tau: from 0 to 1 over `span_share` of the run, from `span_from` on."""
        if self.span_from == self.span_share == 0:
            return 1.0
        ahead = self.progress - self.span_from
        if ahead < 0:
            return 0.0
        return min(1.0, ahead / self.span_share) if self.span_share else 1.0

    def as_fake(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) of the captions with ", fake image" after them; what does not fit is cut off before it."""
        tokenizer, phrase = self.source.tokenizer, self._phrase()
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        length, rows = ids.shape[1], []
        for row in ids.tolist():
            words = row[1 : row.index(end)]
            kept = [start, *words[: length - 2 - len(phrase)], *phrase, end]
            rows.append(kept + [tokenizer.pad_token_id] * (length - len(kept)))
        return torch.tensor(rows, device=ids.device)

    def _phrase(self) -> list[int]:
        ids: list[int] = self.source.tokenizer(", fake image", add_special_tokens=False)["input_ids"]
        return ids
