"""What a run writes into its folder: the log, validation grids, checkpoints, products.

    config.yaml, log.jsonl, grids/, tensorboard/, curves.html, best.safetensors, checkpoint-SAMPLES/,
    export-SAMPLES/, export/

The main process writes; all processes have to call `log`, `save`, `validate` and `export`, and leave them together.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffdistill.methods.base import Method

from . import best
from .checkpoint import remove_old_checkpoints, save_checkpoint, write_folder_atomically
from .curves import write_curves
from .settings import TrainingSettings
from .state import TrainingState
from .tracking import Tracker

Scalars = dict[str, list[Tensor]]  # what a step may log, by name: a value a micro-batch, on the device


class RunFolder:
    """Writes the present state of a run.

    Args:
        path: the folder.
        method: whose images and product are written.
        settings: lengths and intervals.
        state: networks, average and clock.
        accelerator: of all processes.
        about: what a checkpoint says of the run beside the state (`continuation.about_the_run`).
        saved: the checkpoint that holds the present state, if there is one; the loop sets None at each step.
    """

    def __init__(
        self,
        path: Path,
        method: Method,
        settings: TrainingSettings,
        state: TrainingState,
        accelerator: Accelerator,
        about: Mapping[str, Any],
        saved: Path | None,
    ) -> None:
        self.path, self.method, self.settings, self.state = path, method, settings, state
        self.accelerator, self.about, self.saved = accelerator, about, saved

    def open(self) -> None:
        """Start the bar and the log, which keeps its lines up to the present sample."""
        s, main = self.settings, self.accelerator.is_main_process
        self.tracker = Tracker(self.path, s.samples, self.state.clock.samples, s.report_to, main)
        if main and not self.state.clock.samples:  # of an earlier run in this folder
            (self.path / best.FILE).unlink(missing_ok=True)
        self.best = best.Best.since(self.path, self.state.clock.samples, self.saved if main else None)

    def say(self, text: str) -> None:
        """One line for the user, above the bar."""
        self.tracker.say(text)

    def close(self) -> None:
        """End the bar and the log."""
        self.tracker.close()

    def log(self, scalars: Scalars) -> None:
        """Log means over micro-batches and processes, with one transfer for all of them, and the seconds."""
        clock, keys = self.state.clock, sorted(scalars)
        means = torch.stack([torch.stack([value.float() for value in scalars[key]]).mean() for key in keys])
        reduced = self.accelerator.reduce(means.to(self.accelerator.device), reduction="mean")
        seconds = {"seconds": round(clock.seconds(), 2), "cpu_seconds": round(clock.cpu_seconds(), 2)}
        self.tracker.log(clock.samples, clock.step, {**dict(zip(keys, reduced.tolist(), strict=True)), **seconds})

    def validate(self) -> None:
        """Images and numbers of the averaged weights, unless `validate_every` is 0."""
        clock = self.state.clock
        if self.settings.validate_every and self.accelerator.is_main_process:
            with self.state.ema.applied(), torch.no_grad(), self.accelerator.autocast():
                found = self.method.validate()
                images = None if found.images is None else found.images.detach().clone()  # no view of averaged weights
            for remark in found.remarks:
                self.say(f"{clock.samples} samples: {remark}")
            if found.score is not None and self.settings.export_best:
                self.best.offer(found.score, clock.samples, self.state.ema.shadow, found.protocol)
            if found.numbers:
                numbers = {f"validation/{name}": float(value) for name, value in found.numbers.items()}
                self.tracker.log(clock.samples, clock.step, numbers)
            if images is not None:
                self.tracker.images(clock.samples, images)
            write_curves(self.path, clock.samples)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write a checkpoint, unless there is one of the present state, and remove those beyond the limit."""
        tensors, values = self.state.capture()
        if self.accelerator.is_main_process:
            folder = self.path.resolve() / f"checkpoint-{self.state.clock.samples:010d}"
            if self.saved != folder:
                save_checkpoint(folder, tensors, {**values, **self.about})
                self.saved = folder
            self.best.keep(folder)  # also where a validation came after the checkpoint
            remove_old_checkpoints(self.path, self.settings.checkpoints_limit)
        self.accelerator.wait_for_everyone()

    def export(self, name: str = "export", choose_best: bool = False) -> Path:
        """Write the product of the averaged weights; returns its folder.

        Args:
            name: of the folder.
            choose_best: take the weights of the best validation, if there was one.
        """
        folder = self.path / name
        if self.accelerator.is_main_process:
            values = self.best.weights(self.state.ema.shadow) if choose_best else None
            if values is not None:
                self.say(f"exported are the weights after {self.best.samples} samples, the best of all validations")
            elif choose_best:
                why = "no validation has weights to choose from" if self.best.samples < 0 else f"{best.FILE} is damaged"
                self.say(f"{why}: exported are the weights of the end")
            new = self.path / ".export.new"
            shutil.rmtree(new, ignore_errors=True)
            with self.state.ema.applied(values):
                write_folder_atomically(new, self.method.export)
            shutil.rmtree(folder, ignore_errors=True)  # an earlier end of this same run
            new.rename(folder)
        self.accelerator.wait_for_everyone()
        return folder
