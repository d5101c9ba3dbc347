"""The codec around a pretrained autoencoder and transformer: adapters on both, and all between from nothing (DiT-IC).

    loss = bits a pixel + squared error + perceptual distance     by quality, as `ImageCodec` weighs them
         + alignment of x0 with the clean latent                  self-distillation, 0.05 of the perceptual weight
         + alignment of the condition with the clean latent       off by default, as in the released code

Notable:
- no teacher runs. "Self-distillation" aligns the latent of one step with that of the frozen encoder (arXiv 2603.13162);
- the paper's squared error is on [-1, 1], and its loss is weight * rate + distortion. So its weights of the rate, 16 to
  0.5, are here an error weight of 0.25 to 8 and a perceptual weight of 0.06 to 2; `configs/codec_sana.yaml` has these;
- LPIPS (AlexNet) is replaced by its shift-tolerant form, which ships. DISTS (weight 0.2) and the discriminator of the
  last stage are not here: their networks cannot be had without a download;
- the paper aligns the condition with a caption. Photographs have none, so here it is aligned with the clean latent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.codec.alignments import contrastive_alignment, cosine_alignment
from diffdistill.codec.pretrained import MULTIPLE, STRIDE
from diffdistill.codec.pretrained_saved import load_pretrained_codec, save_pretrained_codec
from diffdistill.codec.pretrained_settings import PretrainedSettings
from diffdistill.codec.pretrained_source import PretrainedSource, pretrained_network
from diffdistill.data.photographs import PhotographData
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError

from .base import Batch, Loss, Method, OptimizerSettings, ParameterGroup, Phase, Validation, unwrap
from .codec_crops import Crops, random_qualities
from .codec_rate_distortion import CodecLoss, RateDistortion

SANA = PretrainedSource("Efficient-Large-Model/Sana_600M_1024px_diffusers")
STATISTICS = 16  # crops by which a new code is scaled
EMBEDDING, LATENT_GRID = 768, 4  # of the contrastive alignment; the clean latent is pooled to 4 x 4


class ConditionPair(nn.Module):
    """Embeds the pooled condition and the clean latent in one space, for the contrastive alignment; training only.

    Args:
        condition: channels of the condition.
        latent: channels of the clean latent.
    """

    def __init__(self, condition: int, latent: int) -> None:
        super().__init__()
        self.of_condition = nn.Linear(condition, EMBEDDING, bias=False)
        self.of_latent = nn.Linear(latent * LATENT_GRID**2, EMBEDDING, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

    def forward(self, condition: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, condition) and (B, latent, h, w) to two of (B, 768), and the logarithm of the temperature."""
        pooled = F.adaptive_avg_pool2d(latent, LATENT_GRID).flatten(1)
        return self.of_condition(condition), self.of_latent(pooled), self.log_temperature


class PretrainedImageCodec(Method):
    """Train a codec around pretrained networks on photographs.

    Args:
        data: where the photographs are.
        autoencoder: where the 32-fold autoencoder is.
        transformer: where SANA's transformer is.
        network: the shape of what is trained, with the ranks of the adapters.
        optimizer: the optimiser.
        loss: what is traded for bits; its `alignment` is that of x0 with the clean latent.
        contrastive: weight of the alignment of the condition with the clean latent; 0 for none.
        crop: side of the training crops in pixels, a multiple of 256.
        low_qualities: exponent of the draw of qualities, 100 u^x; above 1 for more of the low ones.
        init_from: a codec that an earlier run exported, to go on from, with its shape and its pretrained networks.
        export_whole: store the pretrained networks in the export, with the adapters merged. Otherwise it names them.

    Raises:
        UserError: a setting is out of its range, a network is missing or does not fit, or there are no photographs.
    """

    averaged = "codec"
    free = {"export_whole": "how the product is stored"}

    def __init__(
        self,
        data: PhotographData,
        autoencoder: PretrainedSource = SANA,
        transformer: PretrainedSource = SANA,
        network: PretrainedSettings = PretrainedSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(
            1e-4,
            groups=(
                ParameterGroup(r"scales\.(offset|second_bias)", 5e-3),  # in steps of an index, a tenth of a scale
                ParameterGroup(r"prior|scales\.first_bias", 1e-3),
                ParameterGroup(r"latent_codec\.(hyper_)?gain", 5e-4),
            ),
        ),
        loss: CodecLoss = CodecLoss(
            error=0.025, masking=0.0, perceptual=0.1, perceptual_side=256, perceptual_scales=(1.0,), alignment=0.005
        ),
        contrastive: float = 0.0,
        crop: int = 256,
        low_qualities: float = 1.4,
        init_from: str | None = None,
        export_whole: bool = False,
    ) -> None:
        if crop % MULTIPLE or crop < MULTIPLE:
            raise UserError(f"crop is {crop}; it must be a multiple of {MULTIPLE}")
        if contrastive < 0:
            raise UserError(f"contrastive is {contrastive}; it must be a number from 0")
        self.loss, self.contrastive, self.low_qualities, self.export_whole = (
            loss,
            contrastive,
            low_qualities,
            export_whole,
        )
        self.trade = RateDistortion(loss, crop)
        self.crops = Crops(data, crop)
        self.content = {"data.source": self.crops.digest}
        if init_from is None:
            made = pretrained_network(autoencoder, transformer, network)
            made.calibrate(self.crops.for_statistics(STATISTICS))
        else:
            saved = load_pretrained_codec(init_from)
            made, self.content["init_from"] = saved.network, saved.fingerprint
            if made.settings != network:
                raise UserError(f"the codec at {init_from} has the shape {made.settings}, not that of `network`")
        made.train_new_parts()
        self.content |= {f"{name}.source": origin.digest for name, origin in made.origins.items()}
        self.networks = {"codec": made.train()}
        self.optimizers = {"codec": optimizer}
        if contrastive:
            widths = made.transformer.config.caption_channels, made.autoencoder.config.latent_channels
            self.networks["pair"] = ConditionPair(*widths)
            self.optimizers["pair"] = dataclasses.replace(optimizer, groups=())
        self.frozen = {} if self.trade.perceptual is None else {"perceptual": self.trade.perceptual}

    def __len__(self) -> int:
        return len(self.crops.records)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the transformer's activations in the backward pass; diffusers cannot do so for the autoencoder."""
        self.networks["codec"].transformer.enable_gradient_checkpointing()  # type: ignore[operator,union-attr]

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        images = self.crops.images(records, random).to(self.device)
        return {"images": images, "quality": random_qualities(random, self.low_qualities).to(self.device)}

    def phases(self, step: int) -> list[Phase]:
        return [Phase("codec", tuple(self.networks), self._loss, whole_batch=bool(self.contrastive))]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x, quality = batch["images"], batch["quality"]
        settings = unwrap(self.networks["codec"]).settings
        side, hyper_side = self.crops.side // STRIDE, self.crops.side // MULTIPLE
        noise = random.uniform("noise", (settings.channels, side, side)).float() - 0.5
        z_noise = random.uniform("z_noise", (settings.hyper, hyper_side, hyper_side)).float() - 0.5
        made = self.networks["codec"](x, quality, noise, z_noise)
        loss, logs = self.trade(x, made, quality, random)
        aligned = cosine_alignment(made.latent, made.target, self.loss.margin)
        loss, logs["alignment"] = loss + self.trade.aligned(aligned, quality), aligned
        if self.contrastive:
            a, b, log_temperature = self.networks["pair"](made.condition.float(), made.target)
            contrast = contrastive_alignment(random.gather(a.float()), random.gather(b.float()), log_temperature)
            loss, logs["contrastive"] = loss + self.contrastive * contrast, contrast
        return loss, {name: value.detach().mean() for name, value in logs.items()}

    def validate(self) -> Validation:
        return self.trade.show(unwrap(self.networks["codec"]), self.crops, self.device)

    def export(self, folder: Path) -> None:
        save_pretrained_codec(unwrap(self.networks["codec"]), folder, self.export_whole)
