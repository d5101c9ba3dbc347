"""How far a run is, and what follows from that: progress, learning rate, time limit, the record of each sample.

Notable:
- the clock is samples seen, not steps: whatever the number of processes and of micro-batches, the same sample meets the
  same record at the same learning rate;
- a time limit counts the seconds of the main process, so that all processes take the same learning rate from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from .settings import TrainingSettings


class Clock:
    """Samples, steps and seconds that are done, over all continuations of a run.

    Args:
        settings: the run's.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.samples = self.step = 0
        self.limited_seconds = 0.0  # what `max_minutes` limits: the main process's seconds when it was last asked
        self._earlier_seconds = self._earlier_cpu_seconds = 0.0  # of the run up to the checkpoint it continues from
        self.start()

    def start(self) -> None:
        """Count seconds from now on, beside those of the checkpoint that the run continues from."""
        self._started, self._cpu_started = time.monotonic(), time.process_time()

    def advance(self) -> None:
        """One step is done."""
        self.samples, self.step = self.samples + self.settings.batch_size, self.step + 1

    @property
    def done(self) -> bool:
        """Whether all samples have been seen."""
        return self.samples >= self.settings.samples

    def crossed(self, every: int) -> bool:
        """Whether the last step reached or passed a multiple of `every` samples; never where `every` is 0."""
        return bool(every) and (self.samples - self.settings.batch_size) // every != self.samples // every

    def seconds(self) -> float:
        """Seconds of training."""
        return self._earlier_seconds + time.monotonic() - self._started

    def cpu_seconds(self) -> float:
        """CPU seconds of this process and all its threads."""
        return self._earlier_cpu_seconds + time.process_time() - self._cpu_started

    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]: of its samples or, where that is more, of its minutes."""
        s, share = self.settings, self.samples / self.settings.samples
        return max(share, min(1.0, self.limited_seconds / (60 * s.max_minutes))) if s.max_minutes else share

    def out_of_time(self, accelerator: Accelerator) -> bool:
        """Whether `max_minutes` are over. All processes have to ask; they go by the main process's seconds.

        With several processes and a limit the host waits here for the device.
        """
        if not self.settings.max_minutes:
            return False
        self.limited_seconds = self.seconds()
        if accelerator.num_processes > 1:
            seconds: Any = broadcast(torch.tensor([self.limited_seconds], device=accelerator.device))
            self.limited_seconds = seconds.item()
        return self.limited_seconds >= 60 * self.settings.max_minutes

    def learning_rate_factor(self) -> float:
        """What the peak learning rate is multiplied by in the coming step, in [0, 1]."""
        s = self.settings
        warm = min(1.0, (self.samples + s.batch_size) / s.warmup_samples) if s.warmup_samples else 1.0
        if s.lr_schedule == "constant":
            return warm
        return warm * (s.lr_final + (1 - s.lr_final) * 0.5 * (1 + math.cos(math.pi * self.progress())))

    def values(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "samples": self.samples,
            "step": self.step,
            "seconds": self.seconds(),
            "cpu_seconds": self.cpu_seconds(),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from `values` of a checkpoint."""
        self.samples, self.step = values["samples"], values["step"]
        self._earlier_seconds, self._earlier_cpu_seconds = values["seconds"], values["cpu_seconds"]
        self.start()


class RecordOrder:
    """The record of each sample of a run: every epoch is a permutation of its own.

    Args:
        records: number of records.
        seed: the run's.

    >>> order = RecordOrder(3, seed=0)
    >>> sorted(order.record(sample) for sample in (3, 4, 5))
    [0, 1, 2]
    """

    def __init__(self, records: int, seed: int) -> None:
        self.records, self.seed = records, seed
        self._epoch, self._permutation = -1, [0]

    def record(self, sample: int) -> int:
        """The record of a sample, which is numbered over the whole run and all processes."""
        epoch, position = divmod(sample, self.records)
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.records, generator=generator).tolist()
        return self._permutation[position]
