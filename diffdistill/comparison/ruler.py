"""One ruler for several generators: the prompts, the reference features and the extractor, made once."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from diffdistill.errors import UserError

FEWEST = 3  # an unbiased kernel distance and its standard error need three images on each side


class Ruler:
    """Measures generators on the same prompts, against the same reference, by the same extractor.

    Args:
        n: number of prompts, captions of the set's training split, each of which gives one image.
        seed: draws the prompts, and is the first seed of the noise.
        data: folder of an emoji set. The reference is its other training images.

    Attributes:
        prompts: n captions.
        extract: MobileNetV2 features.
        real: features of all training images, Tensor of shape (N, 1280): the prompts' own images first.
        protocol: what a number has to carry.

    Raises:
        UserError: n leaves fewer than `FEWEST` images as the reference.
    """

    def __init__(self, n: int, seed: int, data: str = "assets/emoji") -> None:
        import torch

        from diffdistill.data.captioned import load_split
        from diffdistill.evaluation import MobileNetFeatures

        emoji = load_split(data)
        order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(seed)).tolist()
        self.n, self.seed = n, seed
        if n > len(order) - FEWEST:
            raise UserError(f"n is {n}; the set has {len(order)} images, and {FEWEST} must stay as the reference")
        self.prompts = [emoji.captions[i] for i in order[:n]]
        self.extract = MobileNetFeatures()
        self.real = self.extract(emoji.images[order], progress=True)
        images = hashlib.sha256(emoji.images[order].numpy().tobytes()).hexdigest()[:16]
        self.protocol = {**self.extract.protocol, "n": n, "seed": seed, "pictures": images}

    def seconds(self, model: Any, steps: int, guidance: float, n: int = 32) -> float:
        """Seconds an image, from one batch of n, after a batch of a single step to warm up."""
        from diffdistill.models.generate import generate

        list(generate(model, self.prompts[:n], 1, guidance, self.seed, n))
        started = time.perf_counter()
        made = sum(len(images) for images in generate(model, self.prompts[:n], steps, guidance, self.seed, n))
        return round((time.perf_counter() - started) / made, 4)

    def measure(self, model: Any, steps: int, guidance: float) -> dict[str, Any]:
        """The numbers of a generator, a pipeline folder or a loaded teacher, at one setting.

        Returns:
            kd, kd_se, fd, n, n_reference, steps, nfe (network evaluations an image), guidance, seconds_per_image.
        """
        import torch

        from diffdistill.evaluation import quick_numbers
        from diffdistill.models.generate import generate
        from diffdistill.models.teacher import load_teacher

        loaded = load_teacher(model) if isinstance(model, str) else model
        images = torch.cat(list(generate(loaded, self.prompts, steps, guidance, self.seed, 64)))
        seconds = self.seconds(loaded, steps, guidance)
        numbers = quick_numbers(self.extract(images), self.real[self.n :])
        nfe = steps * (2 if guidance > 1 else 1)
        return {**numbers, "steps": steps, "nfe": nfe, "guidance": guidance, "seconds_per_image": seconds}

    def floor(self) -> dict[str, Any]:
        """The numbers of as many real images, the prompts' own, against the reference."""
        from diffdistill.evaluation import quick_numbers

        numbers = quick_numbers(self.real[: self.n], self.real[self.n :])
        return {**numbers, "steps": 0, "nfe": 0, "guidance": None, "seconds_per_image": None}
