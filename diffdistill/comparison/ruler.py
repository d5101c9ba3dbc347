"""One ruler for several generators: the prompts, the reference features and the encoders, made once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from diffdistill.errors import UserError

FEWEST = 3  # an unbiased kernel distance and its standard error need three images on each side
CAPTIONS, PER_CAPTION = 24, 6  # for the variety within a caption


class Ruler:
    """Measures generators on the same prompts, against the same reference, by the same encoders.

    Args:
        n: number of prompts, captions of the set's training split, each of which gives one image.
        seed: draws the prompts, and is the first seed of the noise.
        data: folder of an emoji set. The reference is its other training images.

    Attributes:
        prompts: n captions.
        repeated: captions that are drawn several times, one after another.
        extract: MobileNetV2 features, the first of the encoders.
        real: for each encoder, features of all training images, Tensor of shape (N, d): the prompts' own images first.
        protocol: what a number has to carry.

    Raises:
        UserError: n leaves fewer than `FEWEST` images as the reference.
    """

    def __init__(self, n: int, seed: int, data: str = "assets/emoji") -> None:
        import torch

        from diffdistill.data.captioned import load_split
        from diffdistill.evaluation.battery.encoders import WATCHED, build_encoder

        emoji = load_split(data)
        order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(seed)).tolist()
        self.n, self.seed = n, seed
        if n > len(order) - FEWEST:
            raise UserError(f"n is {n}; the set has {len(order)} images, and {FEWEST} must stay as the reference")
        self.prompts = [emoji.captions[i] for i in order[:n]]
        several = list(dict.fromkeys(emoji.captions[i] for i in order))[:CAPTIONS]
        self.repeated = [caption for caption in several for _ in range(PER_CAPTION)]
        self.encoders = {name: build_encoder(name) for name in WATCHED}  # the judging ones are for the last look
        self.extract = self.encoders[WATCHED[0]]
        self._first = WATCHED[0]
        self.real = {name: encoder(emoji.images[order], progress=True) for name, encoder in self.encoders.items()}
        images = hashlib.sha256(emoji.images[order].numpy().tobytes()).hexdigest()[:16]
        encoders = {name: encoder.protocol for name, encoder in self.encoders.items()}
        self.protocol = {
            "n": n,
            "seed": seed,
            "pictures": images,
            "variety": f"{PER_CAPTION} images of each of {len(several)} captions",
            "encoders": encoders,
        }

    @property
    def n_reference(self) -> int:
        """Number of real images that generated ones are measured against."""
        return len(self.real[self._first]) - self.n

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
            kd, kd_se, fd, variety, n, n_reference on MobileNetV2; steps, nfe (network evaluations an image), guidance,
            seconds_per_image; and `encoders`, what `encoder_numbers` gives for each of them.
        """
        import torch

        from diffdistill.evaluation.battery.numbers import encoder_numbers
        from diffdistill.models.generate import generate
        from diffdistill.models.teacher import load_teacher

        loaded = load_teacher(model) if isinstance(model, str) else model
        images = torch.cat(list(generate(loaded, self.prompts, steps, guidance, self.seed, 64)))
        first = self.seed + 10**9  # noise that no other image has
        several = torch.cat(list(generate(loaded, self.repeated, steps, guidance, first, 64)))
        seconds = self.seconds(loaded, steps, guidance)
        encoders = {
            name: encoder_numbers(encoder(images), self.real[name][self.n :], encoder(several), self.repeated)
            for name, encoder in self.encoders.items()
        }
        nfe = steps * (2 if guidance > 1 else 1)
        return {
            **encoders[self._first],
            "steps": steps,
            "nfe": nfe,
            "guidance": guidance,
            "seconds_per_image": seconds,
            "encoders": encoders,
        }

    def floor(self) -> dict[str, Any]:
        """The distances of as many real images, the prompts' own, against the reference."""
        from diffdistill.evaluation import quick_numbers

        real = self.real[self._first]
        numbers = quick_numbers(real[: self.n], real[self.n :])
        return {**numbers, "steps": 0, "nfe": 0, "guidance": None, "seconds_per_image": None}


def add_ratios(report: Mapping[str, dict[str, Any]], teacher: str) -> None:
    """Add `kd_ratio` and `variety_ratio` to each generator: to the teacher's, geometric means over the encoders.

    Args:
        report: for each name, what `Ruler.measure` gives; rows without encoders stay as they are.
        teacher: the name of the row that ratios are taken to.
    """
    from diffdistill.evaluation.battery.numbers import over_encoders, ratios

    names: Sequence[str] = list(report[teacher]["encoders"])
    for row in report.values():
        if "encoders" in row:
            found = over_encoders(ratios(row["encoders"], report[teacher]["encoders"]), names)
            row["kd_ratio"], row["variety_ratio"] = found["kd"], found["variety"]
