"""The small text-to-image teacher of the embedded default: latent diffusion on captioned pictures.

A stock Stable-Diffusion-class pipeline comes out: UNet2DConditionModel on the latents of an AutoencoderKL, a
CLIPTextModel over captions (trained together with the UNet), DDIMScheduler with trailing spacing.

Notable:
- velocity prediction on a cosine schedule whose last step is (nearly) pure noise;
- captions vary: the style word or an article comes and goes, and recoloured copies carry their colour's word
  (`data.colour`), so colours are learnt apart from things;
- nearly every caption has one picture, so pictures move about and are mirrored: a caption then stands for many, as
  it does in any larger set, and one step from noise no longer gives the answer;
- latents are computed once, of a few such variants of each picture, and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.augment import varied
from diffdistill.data.colour import HUES, dominant_hue, shift_hue, with_colour
from diffdistill.diffusion import Denoiser, VPSchedule, ddim, guided
from diffdistill.distill import SampleRandom, denoising_loss
from diffdistill.errors import UserError
from diffdistill.models.attention import set_attention
from diffdistill.models.cached_latents import varied_latents
from diffdistill.models.export import halve
from diffdistill.models.families.stable_diffusion import StableDiffusion, stock_pipeline
from diffdistill.models.families.unet import TextConditionedUNet, check_plain_unet
from diffdistill.models.latents import LatentSpace, load_autoencoder
from diffdistill.models.stock_check import load_checked_teacher
from diffdistill.models.text import check_unmasked, report_cut, token_ids
from diffdistill.models.tokenizer import train_clip_tokenizer

from .base import Batch, Loss, Method, OptimizerSettings, Phase, Validation, check_shares, unwrap
from .content import digest, of_network, of_pictures, of_text

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,  # the stock pipeline insists; trailing spacing does not use it
}
PREVIEW = (
    "red apple", "blue apple", "dog face", "grinning face", "rocket", "hamburger", "rose", "octopus",
    "green heart", "purple car", "sailboat", "cat face", "clock face six oclock", "police officer", "pizza", "crab",
)  # fmt: skip


class TextToImage(Method):
    """Train a text-conditional latent diffusion model on an emoji set.

    Args:
        autoencoder: folder of the AutoencoderKL.
        data: folder of the image set.
        block_out_channels: widths of the UNet, finest first.
        cross_attention: for each level, whether it attends to the text.
        layers_per_block: residual blocks a level.
        text_width: width of the text encoder.
        text_layers: its depth.
        learning_rate: peak of AdamW's.
        drop_text: share of samples trained with the empty prompt, for guidance.
        drop_style: share of captions without the style word.
        recolour: share of samples, among those with one dominant hue, shown in another colour with its word.
        shift: pixels that a picture is moved by at most, up, down, left and right; 0 with `mirror` false for none.
        mirror: turn half of the pictures left to right, those aside whose name tells the two sides apart.
        variants: shifted and mirrored variants kept of each picture; a quarter as many of recoloured ones.
        init_from: a pipeline folder to start from.
    """

    averaged = "model"

    def __init__(
        self,
        autoencoder: str = "assets/teacher/vae",
        data: str = "assets/emoji",
        block_out_channels: tuple[int, ...] = (128, 128),
        cross_attention: tuple[bool, ...] = (False, True),
        layers_per_block: int = 1,
        text_width: int = 128,
        text_layers: int = 2,
        learning_rate: float = 1e-3,
        drop_text: float = 0.1,
        drop_style: float = 0.15,
        recolour: float = 0.15,
        shift: int = 0,
        mirror: bool = False,
        variants: int = 12,
        init_from: str | None = None,
    ) -> None:
        check_shares(drop_text=drop_text, drop_style=drop_style, recolour=recolour)
        if shift < 0 or variants < 1:
            raise UserError(f"shift {shift} must not be below 0, and variants {variants} at least 1")
        self.vae = load_autoencoder(autoencoder)
        self.drop_text, self.drop_style, self.recolour = drop_text, drop_style, recolour
        from diffdistill.data.emoji import load_emoji  # here, so that methods without pictures need none

        self.set = load_emoji(data)
        words = [*self.set.captions, *(" ".join(HUES) for _ in range(50)), *("a an" for _ in range(50))]
        if init_from is not None:
            unet, text_encoder, self.tokenizer = _load(init_from)
            if unet.config.in_channels != self.vae.config.latent_channels:
                wanted, found = unet.config.in_channels, self.vae.config.latent_channels
                raise UserError(
                    f"init_from {init_from} works on {wanted} latent channels, the autoencoder makes {found}"
                )
        else:
            self.tokenizer = train_clip_tokenizer(words)
            unet = _unet(self.vae, self.set.images.shape[-1], block_out_channels, cross_attention, layers_per_block,
                         text_width)  # fmt: skip
            text_encoder = _text_encoder(self.tokenizer, text_width, text_layers)
        set_attention(unet, "auto", "cuda" if torch.cuda.is_available() else "cpu")
        report_cut(self.tokenizer, self.set.captions)
        model = TextConditionedUNet(unet.to(memory_format=torch.channels_last), text_encoder)
        self.networks = {"model": model}
        self.optimizers = {"model": OptimizerSettings(learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)}
        self.schedule = VPSchedule.from_config(SCHEDULER)
        self.denoiser = Denoiser(lambda x, t, c: self.networks["model"](x, t, c), self.schedule, "v")
        self.content = {"autoencoder": of_network(self.vae), "data": of_pictures(self.set)}
        if init_from is not None:
            self.content["init_from"] = digest(of_network(unet), of_text(self.tokenizer, text_encoder))
        self.frozen = {"vae": self.vae}
        self._cache_latents(variants if shift or mirror else 1, shift, mirror)

    def __len__(self) -> int:
        return len(self.set)

    def _cache_latents(self, variants: int, shift: int, mirror: bool) -> None:
        """(variants, C, h, w) of every picture, and a quarter as many of each of its recoloured copies."""
        images, hues = self.set.images, dominant_hue(self.set.images)
        rows = [i for i, hue in enumerate(hues) if hue is not None]
        self.variants, few = variants, -(-variants // 4)

        def pictures(number: int) -> Tensor:
            return varied(images, self.set.names, shift, mirror, number)

        @lru_cache(1)
        def turned(target: float) -> Tensor:
            return torch.cat([shift_hue(images[i : i + 1], target - (hues[i] or 0.0)) for i in rows])

        def recoloured(number: int, target: float) -> Tensor:
            return varied(turned(target), [self.set.names[i] for i in rows], shift, mirror, number)

        groups: dict[str, Any] = {"": (len(self.set), pictures, variants)}
        for colour, target in HUES.items():
            groups[colour] = (len(rows), partial(recoloured, target=target), few)
        pixels = hashlib.sha256(images.numpy().tobytes()).hexdigest()
        made_from = {
            "pictures": pixels,
            "names": self.set.names,
            "shift": shift,
            "mirror": mirror,
            "variants": variants,
        }
        found = varied_latents(LatentSpace(self.vae), groups if rows else {"": groups[""]}, made_from)
        self.latents = found.pop("")
        self.recoloured: dict[int, list[tuple[str, Tensor]]] = {i: [] for i in rows}
        for colour in HUES:
            for i, latent in zip(rows, found.get(colour, ()), strict=True):
                self.recoloured[i].append((colour, latent))

    def batch(self, records: Sequence[int], random: SampleRandom, keep_text: Tensor | None = None) -> Batch:
        """Latents and token ids; a caption is never dropped where `keep_text`, bool (B,), is true."""
        recolour = random.bernoulli("recolour", self.recolour).tolist()
        which = random.integers("colour", len(HUES)).tolist()
        no_style = random.bernoulli("drop_style", self.drop_style).tolist()
        article = random.bernoulli("article", 0.15).tolist()
        dropped = random.bernoulli("drop_text", self.drop_text)
        no_text = (dropped if keep_text is None else dropped & ~keep_text).tolist()
        variant = random.integers("variant", self.variants).tolist()
        captions, latents = [], []
        for k, i in enumerate(records):
            name, latent = self.set.names[i], self.latents[i]
            if recolour[k] and i in self.recoloured:
                colour, latent = self.recoloured[i][which[k]]
                name = with_colour(name, colour)
            if article[k]:
                name = ("an " if name[0] in "aeiou" else "a ") + name
            caption = name if no_style[k] else f"{name}, {self.set.styles[i]}"
            captions.append("" if no_text[k] else caption)
            latents.append(latent[variant[k] % len(latent)])
        x0 = torch.stack(latents).to(self.device).contiguous(memory_format=torch.channels_last)
        return {"x0": x0, "ids": self.tokenize(captions)}

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        return token_ids(self.tokenizer, captions).to(self.device)

    def phases(self, step: int) -> list[Phase]:
        return [Phase("teacher", "model", self._loss)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x0 = batch["x0"]
        t = self.schedule.timestep(random.uniform("time"), 0.0, 1.0)
        eps = random.normal("noise", x0.shape[1:]).contiguous(memory_format=torch.channels_last)
        return denoising_loss(self.denoiser, x0, t, eps, batch["ids"], "v"), {}

    def validate(self) -> Validation:
        """16 prompts in both styles, 25 DDIM steps at guidance 2, noise the same every time."""
        prompts = [f"{name}, {style}" for name in PREVIEW for style in ("noto", "twemoji")]
        cond, null = self.tokenize(prompts), self.tokenize([""])
        denoiser = Denoiser(unwrap(self.networks["model"]), self.schedule, "v")
        noise = SampleRandom(0, range(len(prompts)), self.device).normal("preview", self.latents.shape[2:])
        x0 = ddim(lambda x, t: guided(denoiser, x, t, cond, null, 2.0), noise, self.schedule, 25)
        return Validation(LatentSpace(self.vae).images(x0, len(x0)))

    def export(self, folder: Path) -> None:
        from diffusers import DDIMScheduler

        model = unwrap(self.networks["model"])
        scheduler: Any = DDIMScheduler(**SCHEDULER)
        pipeline = stock_pipeline(model.inner, self.vae, model.text_encoder, self.tokenizer, scheduler)
        StableDiffusion().save(pipeline, folder)
        halve(folder)


def _unet(
    vae: Any, pixels: int, widths: Sequence[int], cross_attention: Sequence[bool], layers: int, text_width: int
) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=pixels // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in cross_attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(cross_attention)),
        cross_attention_dim=text_width,
        attention_head_dim=32,
    )


def _text_encoder(tokenizer: Any, width: int, layers: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _load(folder: str) -> tuple[Any, Any, Any]:
    teacher = load_checked_teacher(folder)
    pipeline, unet = teacher.pipeline, check_plain_unet(teacher.backbone.inner, f"init_from {folder}: this method")
    check_unmasked(pipeline.text_encoder, f"init_from {folder}")
    table, schedule = VPSchedule.from_config(SCHEDULER).alphas_cumprod, teacher.schedule
    if (
        not isinstance(schedule, VPSchedule)
        or teacher.prediction_type != "v"
        or not torch.equal(schedule.alphas_cumprod, table)
    ):
        raise UserError(f"init_from {folder} was not trained as this is: v-prediction on the cosine schedule")
    for part in (unet, pipeline.text_encoder):
        part.requires_grad_(True).train()
    return unet, pipeline.text_encoder, pipeline.tokenizer
