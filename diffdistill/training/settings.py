"""The settings of a run's `training:` section."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from diffdistill.errors import UserError


@dataclass(frozen=True)
class TrainingSettings:
    """How long a run is, how large its batches are, and how often something is written. Time is counted in samples.

    Args:
        samples: samples that the run sees in all.
        batch_size: samples per step, over all processes and accumulation steps.
        gradient_accumulation_steps: micro-batches that a process divides its share of a batch into.
        mixed_precision: "no", "bf16" (autocast; weights and optimiser stay float32), or "auto": bf16 where the device
            computes it faster than float32, which is measured.
        seed: seed of new networks, of the order of the records and of all random draws.
        lr_schedule: "constant" or "cosine" (to `lr_final` of the peak).
        lr_final: share of the peak that a cosine ends at.
        warmup_samples: samples over which the learning rate rises from 0.
        max_grad_norm: norm that the gradient of each network is clipped to; .inf for no clipping.
        ema_decay: decay per step of the exponential moving average, whose weights are exported.
        ema_warmup: limit the decay to (1 + step) / (10 + step), so that a short run is not an average of its start.
        on_nonfinite: at a loss or gradient that is not finite, "stop" the run, or "skip" and count the update.
        max_skipped: updates that may be skipped in all; one more stops the run.
        gradient_checkpointing: recompute activations in the backward pass, which saves memory.
        log_every: steps between log lines.
        validate_every: samples between validations, which show images and numbers; 0 for none.
        checkpoint_every: samples between checkpoints; 0 for one at the end.
        checkpoints_limit: checkpoints that are kept; older ones are removed.
        export_best: export the averaged weights of the validation with the best score, where the method gives one (for
            a one-step student `method.health`), in place of those of the end.
        export_every: samples between exports into `export-SAMPLES`, beside `export` at the end; 0 for none.
        report_to: trackers beside the JSONL file: "tensorboard", "wandb".
        max_minutes: stop, with a checkpoint, after this many minutes of training; 0 for no limit. What changes over a
            run (the learning rate, the range of times) then follows the share of minutes where it is above the share
            of samples, so such a run and its continuation cannot be repeated to the bit.
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
    export_best: bool = False
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
        if self.export_best and not self.validate_every:
            raise UserError("training.export_best chooses among validations; set training.validate_every above 0")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"training.seed is {self.seed}; it must be in [0, 2^63)")
        if not self.max_grad_norm > 0:
            raise UserError(f"training.max_grad_norm is {self.max_grad_norm}; it must be above 0, .inf for no clipping")
        for name in ("ema_decay", "lr_final"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be in [0, 1]")

    def fits(self, scores: bool, steps_before: int) -> tuple[str, ...]:
        """Lines for the user on what a method makes of these settings.

        Args:
            scores: whether the method's validations have a score.
            steps_before: steps at the start in which not all that the method trains is trained.

        Raises:
            UserError: the settings ask for validations or scores that there are not.
        """
        if self.export_best and not scores:
            raise UserError(
                "training.export_best is set, but the validations of this method have no score; a one-step student has "
                "one where method.health.captions is above 0"
            )
        if scores and not self.validate_every:
            raise UserError(
                "health.captions measures at validations, and there are none; set training.validate_every above 0, or "
                "method.health.captions to 0"
            )
        steps = self.samples // self.batch_size
        if not 0 < steps <= steps_before:
            return ()
        return (
            f"warning: this run has {steps} steps, and the method trains all of its networks only after {steps_before} "
            "(regression.alone, fake.warmup): the rest of it takes no part",
        )
