"""What a run's `training:` section may say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from diffdistill.errors import UserError


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how large and how often. The clock is samples seen, not steps.

    Args:
        samples: samples the run sees in all.
        batch_size: samples per optimiser step over all processes and accumulation steps.
        gradient_accumulation_steps: micro-batches a process cuts its share into.
        mixed_precision: "no", "bf16" (autocast; weights and optimiser stay float32), or "auto": bf16 where the device
            computes it faster than float32, which is measured.
        seed: seeds networks made from nothing, the order of samples and everything drawn.
        lr_schedule: "constant" or "cosine" (to `lr_final` of the peak).
        lr_final: share of the peak that a cosine ends at.
        warmup_samples: samples over which the learning rate rises from 0.
        max_grad_norm: gradient norm that each network's update is clipped to.
        ema_decay: decay of the exponential moving average per step.
        ema_warmup: limit the decay early to (1 + step) / (10 + step).
        on_nonfinite: "stop" the run or "skip" the update (counted) at a loss or gradient that is not finite.
        max_skipped: updates that may be skipped in all before the run stops anyway.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        log_every: steps between log lines.
        validate_every: samples between validation grids; 0 for none.
        checkpoint_every: samples between checkpoints; 0 for only the last.
        checkpoints_limit: checkpoints kept; older ones are removed.
        export_every: samples between products exported on the way, `export-SAMPLES` beside the last one; 0 for none.
        report_to: trackers beside the JSONL file: "tensorboard", "wandb".
        max_minutes: stop, with a checkpoint, after so many minutes of training; 0 for no limit. What changes over a
            run (learning rate, times judged) then follows the clock where that is ahead of the samples, so a run cut
            by it (and its continuation) is not repeatable to the bit.
        cpu: train on the CPU even where there is a GPU.
        allow_tf32: let matrix products on GPUs use TF32.
    """

    samples: int
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    seed: int = 0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    lr_final: float = 0.02
    warmup_samples: int = 0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    ema_warmup: bool = True
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = 100
    gradient_checkpointing: bool = False
    log_every: int = 10
    validate_every: int = 0
    checkpoint_every: int = 0
    checkpoints_limit: int = 2
    export_every: int = 0
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    max_minutes: float = 0.0
    cpu: bool = False
    allow_tf32: bool = False

    def check(self, processes: int) -> None:
        """Raise UserError where numbers do not fit each other."""
        for name in ("samples", "batch_size", "gradient_accumulation_steps", "log_every", "checkpoints_limit"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be at least 1")
        parts = processes * self.gradient_accumulation_steps
        if self.batch_size % parts:
            raise UserError(
                f"training.batch_size {self.batch_size} does not divide by {processes} processes x "
                f"{self.gradient_accumulation_steps} accumulation steps; take a multiple of {parts}"
            )
        if self.samples % self.batch_size:
            steps = -(-self.samples // self.batch_size)
            raise UserError(
                f"training.samples {self.samples} is not a multiple of training.batch_size {self.batch_size}; "
                f"take {steps * self.batch_size}"
            )
        for name in (
            "warmup_samples",
            "max_skipped",
            "validate_every",
            "checkpoint_every",
            "export_every",
            "max_minutes",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be a number from 0 up")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"training.seed is {self.seed}; it must be in [0, 2^63)")
        if not self.max_grad_norm > 0:
            raise UserError(f"training.max_grad_norm is {self.max_grad_norm}; it must be above 0, inf for no clipping")
        for name in ("ema_decay", "lr_final"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be in [0, 1]")
