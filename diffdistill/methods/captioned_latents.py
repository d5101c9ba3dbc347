"""Captioned images as latents and token ids, for text-to-image models that are trained from data.

    images --shifted, mirrored, recoloured: several variants--> latents, computed once and kept in the user's cache
    captions --with or without style and article, or dropped--> token ids

Notable:
- the caption of a recoloured copy has its colour (`data.colour`), so colours are learnt apart from objects;
- nearly every caption of the emoji set has one image, so images are shifted and mirrored. A caption then stands for
  many images, as in any larger set. Otherwise a single step from noise would give the image;
- what is special about the emoji set (styles, articles before names, colours) is not applied to other sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.augment import changes, varied
from diffdistill.data.captioned import CaptionedImages
from diffdistill.data.colour import HUES, dominant_hue, shift_hue, with_colour
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.models.cached_latents import varied_latents
from diffdistill.models.latents import LatentSpace
from diffdistill.models.text import token_ids

from .base import Batch, check_shares

ARTICLE = 0.15  # share of the emoji set's captions that begin with an article


@dataclass(frozen=True)
class Augmentation:
    """How images and captions are varied.

    Args:
        drop_text: share of samples trained with the empty caption, for guidance.
        drop_style: share of captions without the style word, of a set that has styles.
        recolour: among the samples with one dominant hue, the share that has another colour in image and caption; null
            for 0.15 in the emoji set and 0 in other sets.
        shift: largest shift of an image up, down, left and right, in pixels.
        mirror: whether half of the images are mirrored left to right, except those whose name tells the sides apart.
        variants: number of shifted and mirrored variants of each image; recoloured images have a quarter as many. With
            `shift` 0 and `mirror` false there are no variants.
        conditioned: whether the network is told how an image was shifted and mirrored (EDM, arXiv 2206.00364, appendix
            F). It then generates images as the data has them; such images are as rare in training as any other shift.
            Otherwise it generates shifted and mirrored ones too.

    Raises:
        UserError: a number is out of its range.
    """

    drop_text: float = 0.1
    drop_style: float = 0.15
    recolour: float | None = None
    shift: int = 0
    mirror: bool = False
    variants: int = 12
    conditioned: bool = False

    def __post_init__(self) -> None:
        check_shares(drop_text=self.drop_text, drop_style=self.drop_style, recolour=self.recolour or 0.0)
        if self.shift < 0 or self.variants < 1:
            raise UserError(f"shift is {self.shift} and variants {self.variants}; they must be at least 0 and 1")
        if self.conditioned and not (self.shift or self.mirror):
            raise UserError("conditioned is true, but images are neither shifted nor mirrored; set shift or mirror")


class CaptionedLatents:
    """A set of captioned images as latents of an autoencoder, and its batches.

    Args:
        images: the set.
        latents: the autoencoder's latent space.
        tokenizer: the tokenizer of the text encoder that is trained.
        augmentation: how images and captions are varied.

    Attributes:
        shape: shape of a latent, (C, h, w).
    """

    def __init__(
        self, images: CaptionedImages, latents: LatentSpace, tokenizer: Any, augmentation: Augmentation
    ) -> None:
        self.images, self.space, self.tokenizer, self.augmentation = images, latents, tokenizer, augmentation
        few = 0.15 if images.styles is not None else 0.0
        self.recolour = few if augmentation.recolour is None else augmentation.recolour
        varies = augmentation.shift or augmentation.mirror
        self.variants = augmentation.variants if varies else 1
        self.shape = latents.shape(*images.images.shape[-2:])
        self.device = torch.device("cpu")
        self.latents = torch.empty(0)
        self.recoloured: dict[int, list[tuple[str, Tensor]]] = {}
        self.changes = torch.empty(0)  # of each image and variant, (N, variants, 3); see `augment.changes`
        self.recoloured_changes: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.images)

    def prepare(self, device: torch.device) -> None:
        """Move the autoencoder to the device, and compute the latents there or read them from the cache."""
        self.device = torch.device(device)
        self.space.autoencoder.to(self.device)
        images, names = self.images.images, self.images.names
        shift, mirror = self.augmentation.shift, self.augmentation.mirror
        hues = dominant_hue(images) if self.recolour or self.images.styles is not None else [None] * len(images)
        rows = [i for i, hue in enumerate(hues) if hue is not None]
        few = -(-self.variants // 4)

        def plain(number: int) -> Tensor:
            return varied(images, names, shift, mirror, number)

        @lru_cache(1)
        def turned(target: float) -> Tensor:
            return torch.cat([shift_hue(images[i : i + 1], target - (hues[i] or 0.0)) for i in rows])

        def recoloured(number: int, target: float) -> Tensor:
            return varied(turned(target), [names[i] for i in rows], shift, mirror, number)

        groups: dict[str, Any] = {"": (len(images), plain, self.variants)}
        for colour, target in HUES.items():
            groups[colour] = (len(rows), partial(recoloured, target=target), few)
        made_from = {
            "pictures": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
            "names": names,
            "shift": shift,
            "mirror": mirror,
            "variants": self.variants,
        }
        found = varied_latents(self.space, groups if rows else {"": groups[""]}, made_from)
        self.latents = found.pop("")
        self.recoloured = {i: [] for i in rows}
        for colour in HUES:
            for i, latent in zip(rows, found.get(colour, ()), strict=True):
                self.recoloured[i].append((colour, latent))
        some = [names[i] for i in rows]
        self.changes = torch.stack([changes(names, shift, mirror, k) for k in range(self.variants)], 1)
        if rows:
            stacked = torch.stack([changes(some, shift, mirror, k) for k in range(few)], 1)
            self.recoloured_changes = dict(zip(rows, stacked, strict=True))

    def batch(
        self,
        records: Sequence[int],
        random: SampleRandom,
        keep_text: Tensor | None = None,
        pairs: bool = False,
    ) -> Batch:
        """Latents, token ids, and how images were changed.

        Args:
            records: rows of the set.
            random: random numbers of the batch.
            keep_text: bool (B,); a caption is never dropped where it is true.
            pairs: whether another variant of each image is there too.

        Returns:
            "x0" (B, C, h, w), "ids" (B, L) and "change" (B, 3). With `pairs`, also "other" and "other_change".
        """
        styles = self.images.styles
        recolour = random.bernoulli("recolour", self.recolour).tolist()
        which = random.integers("colour", len(HUES)).tolist()
        no_style = random.bernoulli("drop_style", self.augmentation.drop_style).tolist()
        article = random.bernoulli("article", ARTICLE if styles is not None else 0.0).tolist()
        dropped = random.bernoulli("drop_text", self.augmentation.drop_text)
        no_text = (dropped if keep_text is None else dropped & ~keep_text).tolist()
        variant = random.integers("variant", self.variants).tolist()
        further = random.integers("other_variant", max(1, self.variants - 1)).tolist() if pairs else []
        captions, latents, done, others, others_done = [], [], [], [], []
        for k, i in enumerate(records):
            name, latent, change = self.images.names[i], self.latents[i], self.changes[i]
            if recolour[k] and i in self.recoloured:
                colour, latent = self.recoloured[i][which[k]]
                change = self.recoloured_changes[i]
                name = with_colour(name, colour)
            if article[k]:
                name = ("an " if name[0] in "aeiou" else "a ") + name
            caption = name if styles is None or no_style[k] else f"{name}, {styles[i]}"
            captions.append("" if no_text[k] else caption)
            latents.append(latent[variant[k] % len(latent)])
            done.append(change[variant[k] % len(latent)])
            if pairs:  # another one, unless there is only one
                second = (variant[k] % len(latent) + 1 + further[k] % max(1, len(latent) - 1)) % len(latent)
                others.append(latent[second])
                others_done.append(change[second])
        found = {"x0": self._stacked(latents), "ids": self.tokenize(captions), "change": self._stacked(done)}
        return found | ({"other": self._stacked(others), "other_change": self._stacked(others_done)} if pairs else {})

    def _stacked(self, rows: Sequence[Tensor]) -> Tensor:
        made = torch.stack(list(rows)).to(self.device)
        return made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids (N, L) on the device."""
        return token_ids(self.tokenizer, captions).to(self.device)

    def preview_captions(self, n: int = 16) -> list[str]:
        """Captions of validation images: fixed ones for the emoji set, or captions spread evenly over another set."""
        if self.images.styles is not None:
            return list(EMOJI_PREVIEW[:n])
        return [self.images.names[i * len(self) // n] for i in range(min(n, len(self)))]


EMOJI_PREVIEW = (
    "red apple", "blue apple", "dog face", "grinning face", "rocket", "hamburger", "rose", "octopus",
    "green heart", "purple car", "sailboat", "cat face", "clock face six oclock", "police officer", "pizza", "crab",
)  # fmt: skip
