"""Self-E: text to image in any number of steps, from data, with a model that judges itself (arXiv 2512.22374).

    s = t   flow matching                                                    a share `flow_matching_share`
    s < t   x0_hat = x_t - t V(x_t, t, s, c) is noised to s, and judged there by the averaged network with the caption
            and by the network itself without it, `distill.self_evaluation`

Notable:
- the largest distance of s from t grows over the run: s is at least (1 - tau) t, and tau rises from 0 to 1 over
  `span_share` of the run, after `span_from` of it. Before that, s = t for all samples, so a step is one of flow
  matching and costs as much;
- with `fake_from`, the same network also learns to denoise its own samples, under captions with "fake image" added.
  From that share of the run on, the judgement has this term too;
- `flow_matching_share: 1` is flow matching with the same network, data and cost of a pass: the baseline;
- samples whose caption was dropped are treated like the others. For them, the conditions with and without a caption are
  the same. So only the averaged and the present weights differ, and the loss is almost that of the data alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.captioned import CaptionedData
from diffdistill.distill import (
    SampleRandom,
    earlier_times,
    fake_branch_loss,
    flow_matching_loss,
    logit_normal_times,
    self_evaluation_loss,
)
from diffdistill.errors import UserError

from .any_step import AnyStep, AnyStepExport, Sampling, at_the_start
from .base import Batch, Loss, OptimizerSettings, Phase, check_shares
from .captioned_latents import Augmentation
from .new_network import NetworkSettings


class SelfE(AnyStep):
    """Train an any-step text-to-image model; the defaults are the paper's where it has them.

    Args:
        data: captioned images.
        network: the autoencoder, and the sizes or the start of the networks that are trained.
        augmentation: how images and captions are varied.
        optimizer: settings of AdamW; the paper names Adam and no weight decay.
        flow_matching_share: share of samples with s = t; 1 is flow matching.
        time_mean: mean of the logit of t, the paper's mu: 0.5 at 512 tokens of latent, 1.15 at 4096, 0.42 at 64.
        span_from: share of the run that is flow matching alone, because a judge that has learnt little misleads.
        span_share: share of the run, after that, over which the largest distance of s from t grows.
        ema_decay: decay of the averaged network, which judges.
        fake_from: share of the run after which the fake branch is trained and used; null for never.
        classifier_share: weight of the classifier score beside that of the fake branch, (w - 1) / w for a guidance
            scale w.
        judgement_scale: factor of the judgement. 1 is the paper's, whose form is that of the reverse KL divided by a
            guidance scale w. Without a fake branch, w - 1 gives the classifier score at guidance w.
        energy_preserving: whether the target is scaled to the norm of the data.
        sampling: how the product is sampled. In the paper target_fraction and eta are 1.
        export: how the product is stored.

    Raises:
        UserError: a setting is out of its range, or settings contradict each other.
    """

    free = {
        **AnyStep.free,
        "sampling.target_fraction": "how the product is sampled",
        "sampling.one_step_target_fraction": "how the product is sampled",
        "sampling.finest_steps": "how the product is sampled",
        "sampling.eta": "how the product is sampled",
    }

    def __init__(
        self,
        data: CaptionedData = CaptionedData(),
        network: NetworkSettings = NetworkSettings(),
        augmentation: Augmentation = Augmentation(),
        optimizer: OptimizerSettings = OptimizerSettings(3e-4, (0.9, 0.95)),
        flow_matching_share: float = 0.5,
        time_mean: float = 0.42,
        span_from: float = 0.0,
        span_share: float = 0.6,
        ema_decay: float = 0.9999,
        fake_from: float | None = None,
        classifier_share: float = 0.9,
        judgement_scale: float = 1.0,
        energy_preserving: bool = True,
        sampling: Sampling = Sampling(one_step_target_fraction=0.5),
        export: AnyStepExport = AnyStepExport(),
    ) -> None:
        check_shares(
            flow_matching_share=flow_matching_share, span_from=span_from, span_share=span_share,
            classifier_share=classifier_share, fake_from=fake_from or 0.0,
        )  # fmt: skip
        judged = flow_matching_share < 1
        if not judged and fake_from is not None:
            raise UserError("flow_matching_share is 1, which is flow matching without a judge; set fake_from to null")
        if judged and augmentation.drop_text == 0:
            raise UserError(
                "augmentation.drop_text is 0, so the judge without a caption would never be trained; set it above 0"
            )
        if judged and (span_from == 1 or span_from + span_share > 1 + 1e-9):
            raise UserError(
                f"span_from is {span_from} and span_share {span_share}; they are shares of the run, and their sum must "
                "be at most 1"
            )
        if not 0 < judgement_scale < math.inf:
            raise UserError(f"judgement_scale is {judgement_scale}; it must be a number above 0")
        self.flow_matching_share, self.time_mean, self.fake_from = flow_matching_share, time_mean, fake_from
        self.span_from, self.span_share = span_from, span_share
        self.classifier_share, self.energy_preserving = classifier_share, energy_preserving
        self.judgement_scale = judgement_scale
        super().__init__(
            data,
            network,
            augmentation,
            optimizer,
            export,
            ema_decay=ema_decay if judged else None,
            grid_shift=float(torch.tensor(time_mean, dtype=torch.float64).exp()),  # the same warp as that of the times
            sampling=lambda: sampling if judged and self._span() > 0 else at_the_start(sampling),
        )
        if fake_from is not None and len(self._phrase()) > self.source.tokenizer.model_max_length - 3:
            raise UserError(
                f"network.init_from {network.init_from}: its captions are too short for the words of fake_from, "
                "', fake image'; set fake_from to null"
            )

    def phases(self, step: int) -> list[Phase]:
        return [Phase("self_e", "model", self._loss)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x0, ids = batch["x0"], batch["ids"]
        t = logit_normal_times(random.normal("time", (), torch.float64), self.time_mean)
        eps = self.noise(random, "noise", x0)
        if self.flow_matching_share == 1:
            return flow_matching_loss(self.trained, x0, t, eps, ids), {}
        span = self._span()
        s = earlier_times(t, random.uniform("earlier"), span, random.bernoulli("same", self.flow_matching_share))
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
        # divided by the expected number of judged samples, so that it does not matter how samples are spread over
        # processes
        delta = judged.delta.float().square().flatten(1).mean(1).sqrt().sum() / (
            (1 - self.flow_matching_share) * len(x0)
        )
        logs = {"span": loss.new_tensor(span), "delta_rms": delta}
        if fake_ids is None:
            return loss, logs
        of_fakes = fake_branch_loss(self.trained, judged, fake_ids)
        return loss + of_fakes, {**logs, "fake": of_fakes}

    def _span(self) -> float:
        """tau, which rises from 0 to 1 over `span_share` of the run, after `span_from` of it."""
        if self.span_from == self.span_share == 0:
            return 1.0
        ahead = self.progress - self.span_from
        if ahead < 0:
            return 0.0
        return min(1.0, ahead / self.span_share) if self.span_share else 1.0

    def as_fake(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) of the captions with ", fake image" at the end; a caption that is too long is cut."""
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
