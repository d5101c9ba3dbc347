"""A pipeline and prompts as a source of images, which are generated when they are read: no file in between."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.source import Source
from diffdistill.models.generate import check_eta, check_guidance, generate, load_generator
from diffdistill.models.text import text_list

CHUNK = 16  # the networks always run on so many images, since kernels round differently at other sizes


class Generated(Source):
    """Images that a generator makes: image i is of prompt i mod len(prompts) and starts from noise of seed + i.

    Neither batches nor processes change an image. Images are floats in [0, 1]; the protocol says how they become bytes.

    Args:
        model: a pipeline folder or hub id, or a loaded generator.
        prompts: at least one.
        n: number of images.
        steps: number of sampling steps.
        guidance: guidance scale, from 1, which is unguided.
        seed: of the first image's noise.
        eta: noise while sampling, from 0 to 1; None for the model's own.

    Raises:
        UserError: no such pipeline, no prompt, a guidance below 1, or an eta that the pipeline does not take.
    """

    together = True
    captions_from = "the prompts"

    def __init__(
        self,
        model: Any,
        prompts: Iterable[str],
        n: int,
        steps: int,
        guidance: float,
        seed: int,
        eta: float | None = None,
    ) -> None:
        texts, named = text_list(prompts), isinstance(model, str | Path)
        check_guidance(guidance)
        self.model = load_generator(model, steps) if named else model
        self.prompts, self.n, self.steps, self.guidance, self.seed = texts, n, steps, guidance, seed
        self.name = f"{model if named else 'pipeline'}, {steps} steps, guidance {guidance:g}"
        self.model.report_cut(self.prompts)
        self.eta = eta
        if eta is not None:
            check_eta(self.model, eta)
            self.name += f", eta {eta:g}"

    def __len__(self) -> int:
        return self.n

    def label(self, index: int) -> str:
        return f"{index:05d}.png"

    def prompt(self, index: int) -> str:
        """The prompt of image `index`."""
        return self.prompts[index % len(self.prompts)]

    def captions(self) -> list[str]:
        return [self.prompt(index) for index in range(self.n)]

    def read_bytes(self, index: int) -> bytes:
        return self.read(index).numpy().tobytes()

    def read(self, index: int) -> Tensor:
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[Tensor]:
        filled = [*indices, *[indices[-1]] * (-len(indices) % CHUNK)]
        prompts, seeds = [self.prompt(i) for i in filled], [self.seed + i for i in filled]
        made = generate(self.model, prompts, self.steps, self.guidance, batch_size=CHUNK, seeds=seeds, eta=self.eta)
        return list(torch.cat(list(made)).clamp(0, 1)[: len(indices)])

    def made_from(self) -> dict[str, Any]:
        prompts = hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()[:16]
        sampler = {"steps": self.steps, "guidance": self.guidance, "seed": self.seed}
        if self.eta is not None:
            sampler["eta"] = self.eta
        first = {"first_prompts": f"{self.n} of {len(self.prompts)}"} if self.n < len(self.prompts) else {}
        return {"made_from": {"model": self.model.digest(), "prompts": prompts, **first, **sampler}}
