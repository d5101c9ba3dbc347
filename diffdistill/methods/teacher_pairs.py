"""Pairs of the teacher: noise, and the sample that the teacher makes of it in several steps, without any image.

    z_i, prompt_i --teacher, guided, n deterministic steps from the last time--> x0_i

A pair is a function of the teacher, the prompts and the settings alone. Noise is drawn again when it is needed, and the
samples are kept in memory. Many pairs are also kept in the user's cache, in one file, `pairs-HASH.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from diffdistill.diffusion import Condition, FlowSchedule, GuidedDenoiser, Prediction, ddim, euler
from diffdistill.distill import SampleRandom
from diffdistill.evaluation.measure import from_all_processes
from diffdistill.files import user_cache, write_atomic
from diffdistill.launched import rank_and_processes
from diffdistill.models.prompt_table import PromptTable
from diffdistill.models.teacher import Teacher

from .content import digest
from .settings import PairSettings

BATCH = 64


class TeacherPairs:
    """Pairs (z, x0) of a teacher, each with its prompt.

    Args:
        settings: number of pairs, steps and guidance.
        teacher: the teacher.
        prompts: the run's prompts. Pair i is of prompt i mod n or, if there are fewer pairs than prompts, of prompts
            that are spread evenly over the list.

    Attributes:
        samples: x0 of all pairs, Tensor of shape (N, C, h, w), on the CPU, after `prepare`.
    """

    def __init__(self, settings: PairSettings, teacher: Teacher, prompts: Sequence[str]) -> None:
        self.settings, self.teacher, self.prompts = settings, teacher, prompts
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
        """
        self._device, self._table = device, table
        teacher, s = self.teacher, self.settings
        made_from = [teacher.digest(), digest(self.prompts), s.count, s.steps, s.guidance_scale]
        file = user_cache() / f"pairs-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:24]}.safetensors"
        shape = (s.count, *teacher.latent_shape)
        try:
            found = load_file(file)["x0"] if file.is_file() else torch.empty(0)
        except (OSError, SafetensorError, KeyError):
            found = torch.empty(0)
        if all(from_all_processes(tuple(found.shape) == shape)):
            self.samples = found
            return
        rank, processes = rank_and_processes()
        mine = range(rank, s.count, processes)
        parts = []
        with tqdm(total=len(mine), desc="pairs of the teacher", unit="img", disable=rank > 0) as bar:
            for start in range(0, len(mine), BATCH):
                rows = list(mine[start : start + BATCH])
                parts.append(self.sampled(rows, null).cpu())
                bar.update(len(rows))
        self.samples = torch.empty(shape)
        for other, part in enumerate(from_all_processes(torch.cat(parts))):
            self.samples[other::processes] = part
        try:
            if rank == 0:
                write_atomic(file, save({"x0": self.samples}))
        except OSError as error:  # a full or read-only disk is no reason not to train
            tqdm.write(f"pairs are not kept: {error}")

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

    @torch.no_grad()
    def sampled(self, rows: Sequence[int], null: Condition) -> Tensor:
        """x0 of some pairs, sampled anew, of shape (B, C, h, w), on the device."""
        score = GuidedDenoiser(self.teacher.denoiser(), null, self.settings.guidance_scale)
        cond, schedule = self.condition(rows), self.teacher.schedule
        sampler = euler if isinstance(schedule, FlowSchedule) else ddim

        def predict(x: Tensor, t: Tensor) -> Prediction:
            return score(x, t, cond)

        return sampler(predict, self.noise(rows), schedule, self.settings.steps)
