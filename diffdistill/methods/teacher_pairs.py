"""Pairs of the teacher: noise, and the sample that the teacher makes of it in several steps, without any image.

    z_i, prompt_i --teacher, guided, n deterministic steps from the last time--> x0_i

A pair is a function of the teacher, the prompts and the settings alone. Noise is drawn again when it is needed, and the
samples are kept in memory. Many pairs are also kept in the user's cache, in one file, `pairs-HASH.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from diffdistill.diffusion import Condition
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.evaluation.measure import from_all_processes
from diffdistill.files import user_cache, write_atomic
from diffdistill.launched import rank_and_processes
from diffdistill.models.prompt_table import PromptTable
from diffdistill.models.teacher import Teacher

from .content import digest
from .settings import PairSettings
from .teacher_sampler import check_sampler, sampled

FORMAT = 2
ELEMENTS = 1 << 18  # of the latents that are sampled at a time, of at most 64 images
MOST_BYTES = 32 << 30


class TeacherPairs:
    """Pairs (z, x0) of a teacher, each with its prompt.

    Args:
        settings: number of pairs, steps and guidance.
        teacher: the teacher.
        prompts: the run's prompts. Pair i is of prompt i mod n or, if there are fewer pairs than prompts, of prompts
            that are spread evenly over the list.

    Attributes:
        content: a digest of all that pairs are made from, and of how they are made.
        samples: x0 of all pairs, Tensor of shape (N, C, h, w), on the CPU, after `prepare`.
    """

    def __init__(self, settings: PairSettings, teacher: Teacher, prompts: Sequence[str]) -> None:
        self.settings, self.teacher, self.prompts = settings, teacher, prompts
        size = settings.count * math.prod(teacher.latent_shape) * 4
        if size > MOST_BYTES:
            raise UserError(
                f"pairs.count is {settings.count}; so many samples take {size / 2**30:.0f} GiB of memory, and at most "
                f"{MOST_BYTES >> 30} are allowed"
            )
        check_sampler(teacher, settings.steps, "pairs.steps")
        # before anything is added to the teacher's network, such as adapters
        made_from = [FORMAT, teacher.digest(), digest(prompts), settings.count, settings.steps, settings.guidance_scale]
        self._key = made_from
        self.content = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
        self.samples = torch.empty(0)
        self._device = torch.device("cpu")
        self._table: PromptTable | None = None

    def __len__(self) -> int:
        return self.settings.count

    def prepare(self, table: PromptTable, null: Condition, device: torch.device) -> None:
        """Make all pairs, or read them from the cache. Several processes share the work.

        Args:
            table: conditions of the prompts.
            null: that of the empty prompt, on the device.
            device: where the teacher is.

        Raises:
            UserError: the teacher's samples are not finite.
        """
        self._device, self._table = device, table
        key = json.dumps([*self._key, device.type])
        file = user_cache() / f"pairs-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
        found = self._kept(file)
        if all(from_all_processes(found is not None)):
            assert found is not None
            self.samples = found
            return
        rank, processes = rank_and_processes()
        shape, mine = self.teacher.latent_shape, range(rank, len(self), processes)
        batch = max(1, min(64, ELEMENTS // math.prod(shape)))
        parts = [torch.empty(0, *shape)]
        with tqdm(total=len(mine), desc="pairs of the teacher", unit="img", disable=rank > 0) as bar:
            for start in range(0, len(mine), batch):
                rows = list(mine[start : start + batch])
                parts.append(self.sampled(rows, null).float().cpu())
                bar.update(len(rows))
        self.samples = torch.empty(len(self), *shape)
        for other, part in enumerate(from_all_processes(torch.cat(parts))):
            self.samples[other::processes] = part
        if not bool(self.samples.isfinite().all()):
            raise UserError("pairs: samples of the teacher are not finite; set teacher.dtype to float32 or bfloat16")
        try:
            if rank == 0:
                write_atomic(file, save({"x0": self.samples}))
        except OSError as error:  # a full or read-only disk is no reason not to train
            tqdm.write(f"pairs are not kept: {error}")

    def _kept(self, file: Path) -> Tensor | None:
        """The samples in a file, or None where there are none, or others than these."""
        try:
            found = load_file(file)["x0"] if file.is_file() else torch.empty(0)
        except (OSError, SafetensorError, KeyError):
            return None
        whole = tuple(found.shape) == (len(self), *self.teacher.latent_shape) and found.dtype == torch.float32
        return found if whole and bool(found.isfinite().all()) else None

    def noise(self, rows: Sequence[int]) -> Tensor:
        """z of some pairs, of shape (B, C, h, w), on the device."""
        return SampleRandom(0, rows, self._device).normal("pair", self.teacher.latent_shape)

    def condition(self, rows: Sequence[int]) -> Condition:
        """The condition of some pairs, on the device."""
        assert self._table is not None, "`prepare` comes first"
        n, count = len(self.prompts), len(self)
        return self._table.rows([i % n if count >= n else i * n // count for i in rows])

    def drawn(self, random: SampleRandom, stream: str) -> tuple[Tensor, Tensor, Condition]:
        """z, x0 and condition of a pair for each sample of a batch, on the device."""
        rows = random.integers(stream, len(self)).tolist()
        return self.noise(rows), self.samples[rows].to(self._device), self.condition(rows)

    def of_prompts(self, records: Sequence[int], random: SampleRandom, stream: str) -> tuple[Tensor, Condition]:
        """x0 and condition of a pair of each prompt, one that is drawn; of any prompt where there are fewer pairs.

        Args:
            records: numbers of the prompts.
            random: random numbers of the batch.
            stream: their stream.
        """
        n, count = len(self.prompts), len(self)
        if count < n:
            _, x0, cond = self.drawn(random, stream)
            return x0, cond
        uniform = random.uniform(stream).tolist()
        rows = [r + n * int(u * ((count - r - 1) // n + 1)) for r, u in zip(records, uniform, strict=True)]
        return self.samples[rows].to(self._device), self.condition(rows)

    @torch.no_grad()
    def sampled(self, rows: Sequence[int], null: Condition) -> Tensor:
        """x0 of some pairs, sampled anew, of shape (B, C, h, w), on the device."""
        s = self.settings
        return sampled(self.teacher, self.noise(rows), self.condition(rows), null, s.steps, s.guidance_scale)
