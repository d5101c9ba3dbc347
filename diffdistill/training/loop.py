"""The training loop. It knows no method by name; see `methods.base.Method`.

    for each step:  records of the global batch -> this process's share -> micro-batches
        for each phase of the method:  losses of the micro-batches -> backward -> clip -> optimiser
        moving average, log, picture, checkpoint

Notable:
- the clock is samples seen; sample i has its own record and its own randomness (`distill.SampleRandom`), whatever
  the number of processes, so a run on two processes equals a run on one, and resuming is exact;
- all state is in one place: `Trainer.state()` and `Trainer.restore()`.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import shutil
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from torch import Tensor

from diffdistill.distill.randomness import SampleRandom
from diffdistill.errors import UserError
from diffdistill.launched import rank_and_processes
from diffdistill.methods.base import Method, Phase, unwrap
from diffdistill.models.ema import Ema

from .checkpoint import (
    later_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer,
    load_trainable,
    optimizer_tensors,
    remove_later_checkpoints,
    remove_old_checkpoints,
    save_checkpoint,
    trainable_tensors,
    why_unreadable,
    write_folder_atomically,
)
from .continuation import Identity, Recipe, refuse_another_run, remarks_on_the_clock
from .launcher import make_accelerator, read_launch
from .optimizers import clip_gradients, make_optimizer, set_learning_rates, step_where
from .precision import resolve_precision
from .settings import TrainingSettings
from .tracking import Tracker


class NonFiniteError(UserError):
    """A loss or gradient was not finite."""


class Trainer:
    """Runs one method to the end of its settings.

    Args:
        method: networks, optimisers and phases.
        settings: lengths and intervals.
        run: folder for checkpoints, logs, grids and the exported product.
        resume: "latest", a checkpoint's folder, or None to start anew.
        recipe: what the method was built from; stored with the settings, and compared on resume.
    """

    def __init__(
        self,
        method: Method,
        settings: TrainingSettings,
        run: Path,
        resume: str | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        self.method, self.settings, self.run = method, settings, run
        self.identity = Identity.of(method, settings, recipe or Recipe(), run)
        folder = _checkpoint_to_go_on_from(run, resume)
        stored = None if folder is None else load_checkpoint(folder)  # None too where killed before the first one
        if folder is not None and stored is not None:
            refuse_another_run(folder, stored[1], self.identity, settings)
        launch = read_launch(settings, stored_precision=stored[1]["precision"] if stored else None)
        self.precision = resolve_precision(launch.mixed_precision, launch.cpu)
        self.remarks = (*launch.remarks, *(remarks_on_the_clock(stored[1], settings) if stored else ()))
        if folder is not None and resume == "latest" and (torn := later_checkpoints(folder)):
            self.remarks += (f"{', '.join(torn)}: torn, so that the run goes on from {folder.name}",)
        self.accelerator = make_accelerator(self.precision, launch.cpu)
        settings.check(self.accelerator.num_processes)
        if (launched := rank_and_processes()[1]) != self.accelerator.num_processes:
            raise UserError(
                f"{launched} processes were launched, but this one trains as one of {self.accelerator.num_processes}; "
                "launch with torchrun --standalone --nproc_per_node N"
            )
        if settings.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        if settings.gradient_checkpointing:
            method.enable_gradient_checkpointing()
        device = self.accelerator.device
        method.prepare(device)
        for network in method.networks.values():
            network.to(device)
        self.bare = {name: unwrap(network) for name, network in method.networks.items()}
        self.ema = Ema(self.bare[method.averaged], settings.ema_decay, settings.ema_warmup)
        self.optimizers = {
            name: make_optimizer(name, self.bare[name], settings) for name, settings in method.optimizers.items()
        }
        for phase in method.phases(0):
            self._check(phase)
        self.samples = self.step = self.skipped = 0
        self.follows_progress = False  # whether a step has asked the method's progress
        self.seconds = self.cpu_seconds = self.clock = 0.0
        self.saved: Path | None = None  # the checkpoint that holds the present state
        self.resumed = resume is not None
        if folder is not None and stored is not None:
            self._resume(folder, *stored)
        for name in list(method.networks):
            method.networks[name] = self.accelerator.prepare_model(method.networks[name])
        self._order: tuple[int, list[int]] = (-1, [])
        self._start_clocks()

    # ---- state ------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """All that a continuation needs: tensors in named groups, and plain values."""
        tensors = {name: trainable_tensors(net) for name, net in self.bare.items()}
        for name, optimizer in self.optimizers.items():
            tensors[f"{name}.optimizer"] = optimizer_tensors(self.bare[name], optimizer)
        tensors["ema"] = self.ema.shadow
        for rank, generator_states in enumerate(gather_object([_generator_states()])):
            tensors[f"rng-{rank}"] = generator_states
        values = {
            "samples": self.samples,
            "step": self.step,
            "skipped": self.skipped,
            "seconds": self.elapsed(),
            "cpu_seconds": self.elapsed_cpu(),
            "ema_updates": self.ema.updates,
            "processes": self.accelerator.num_processes,
            "precision": self.precision,
            "length": self.settings.samples,
            "max_minutes": self.settings.max_minutes,
            "follows_progress": self.follows_progress,
            "identity": dataclasses.asdict(self.identity),
        }
        return tensors, values

    def restore(self, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
        for name, network in self.bare.items():
            load_trainable(network, tensors[name])
        for name, optimizer in self.optimizers.items():
            load_optimizer(self.bare[name], optimizer, tensors[f"{name}.optimizer"])
        self.ema.load(tensors["ema"], values["ema_updates"])
        self.samples, self.step, self.skipped = values["samples"], values["step"], values["skipped"]
        self.seconds, self.cpu_seconds = values["seconds"], values.get("cpu_seconds", 0.0)
        self.follows_progress = values["follows_progress"]
        mine = tensors.get(f"rng-{self.accelerator.process_index}")
        if mine is not None:
            _set_generator_states(mine)

    def save(self) -> None:
        tensors, values = self.state()
        if self.accelerator.is_main_process:
            folder = self.run.resolve() / f"checkpoint-{self.samples:010d}"
            if self.saved != folder:
                save_checkpoint(folder, tensors, values)
                self.saved = folder
            remove_old_checkpoints(self.run, self.settings.checkpoints_limit)
        self.accelerator.wait_for_everyone()

    def _resume(self, folder: Path, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
        self.restore(tensors, values)
        self.saved = folder.resolve()
        if self.accelerator.is_main_process and folder.resolve().parent == self.run.resolve():
            remove_later_checkpoints(self.run / folder.name)

    # ---- the loop ---------------------------------------------------------------------------------------------

    def fit(self) -> Path:
        """Train to the end; returns the folder of the exported product.

        Raises:
            NonFiniteError: with the step, the phase and the last good checkpoint named.
        """
        s = self.settings
        main = self.accelerator.is_main_process
        for remark in self.remarks if main else ():  # before the bar, on lines of their own in a log file too
            print(remark, file=sys.stderr, flush=True)
        self.tracker = Tracker(self.run, s.samples, self.samples, s.report_to, main)
        self._start_clocks()
        handler = signal.getsignal(signal.SIGINT)
        try:
            if s.mixed_precision == "auto":
                self.tracker.say(f"mixed_precision auto: {self.precision}")
            if self.resumed and self.saved is None:
                self.tracker.say(f"no checkpoint in {self.run} yet: starting at 0")
            if self.samples == 0:
                self._validate()
            logged = self.samples
            stop = self._finish_the_step_when_interrupted()
            while self.samples < s.samples and not self._out_of_time() and not stop:
                values = self._step()
                self.saved = None
                before, self.samples, self.step = self.samples, self.samples + s.batch_size, self.step + 1
                self.tracker.advance(s.batch_size)
                if self.step % s.log_every == 0 or self.samples >= s.samples:
                    self.tracker.log(self.samples, self.step, self._mean(values))
                    logged = self.samples
                if _crossed(before, self.samples, s.validate_every):
                    self._validate()
                if _crossed(before, self.samples, s.checkpoint_every):
                    self.save()
                if _crossed(before, self.samples, s.export_every) and self.samples < s.samples:
                    self._export(f"export-{self.samples:010d}")
            if logged < self.samples:  # ended by the clock
                self.tracker.log(self.samples, self.step, self._mean(values))
            if self.samples % max(1, s.validate_every):
                self._validate()
            self.save()
            if stop and self.samples < s.samples:
                self.tracker.say(f"interrupted after {self.samples} samples, which are saved: --resume latest goes on")
                raise KeyboardInterrupt
            if self.samples < s.samples:
                more = "--resume latest with more max_minutes goes on"
                self.tracker.say(
                    f"{s.max_minutes:g} minutes are over after {self.samples} of {s.samples} samples; {more}"
                )
            if self.ema.updates == 0:
                self.tracker.say(f"no update of the {self.method.averaged} was made: what is exported is its start")
            exported = self._export()
            self._leave_the_other_processes()
            return exported
        finally:
            self.tracker.close()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)

    def _leave_the_other_processes(self) -> None:
        """End the process group in order: left to the interpreter's exit, its threads now and then abort a process."""
        if self.accelerator.num_processes == 1:
            return
        self.method.networks.update(self.bare)  # the wrappers hold the group
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    def _finish_the_step_when_interrupted(self) -> list[int]:
        """A list that the first Ctrl-C puts something into; the second one interrupts at once.

        On several processes Ctrl-C interrupts at once: they would not agree on the step.
        """
        asked: list[int] = []
        if self.accelerator.num_processes > 1 or threading.current_thread() is not threading.main_thread():
            return asked

        def handle(number: int, frame: Any) -> None:
            if asked:
                raise KeyboardInterrupt
            asked.append(number)

        signal.signal(signal.SIGINT, handle)
        return asked

    def _step(self) -> dict[str, list[Tensor]]:
        s = self.settings
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = s.batch_size // processes // s.gradient_accumulation_steps
        first = self.samples + rank * (s.batch_size // processes)
        self.method.progress = self._progress()
        self.method.begin_step(self.step)
        micro: list[Any] = []
        for k in range(s.gradient_accumulation_steps):
            indices = range(first + k * size, first + (k + 1) * size)
            random = SampleRandom(s.seed, indices, self.accelerator.device)
            micro.append((self.method.batch([self._record(i) for i in indices], random), random, {}))
        values: dict[str, list[Tensor]] = {}
        phases = self.method.phases(self.step)
        good = torch.stack([self._update(phase, micro, values) for phase in phases]).tolist()  # the only wait of a step
        self.follows_progress |= self.method.progress_was_read
        for phase, made in zip(phases, good, strict=True):
            if not made:
                self._skip_or_stop(phase)
        if any(made and self.method.averaged in phase.networks for phase, made in zip(phases, good, strict=True)):
            self.ema.update()
        return values

    def _check(self, phase: Phase) -> None:
        """Raise UserError where the phase does not go with the settings."""
        if phase.whole_batch and self.settings.gradient_accumulation_steps > 1:
            raise UserError(
                f"training.gradient_accumulation_steps is {self.settings.gradient_accumulation_steps}, and the phase "
                f"{phase.name} looks at a whole batch at once; set it to 1"
            )

    def _update(self, phase: Phase, micro: list[Any], values: dict[str, list[Tensor]]) -> Tensor:
        """One update of the phase's networks; bool of shape (): false on every process where it was left out."""
        self._check(phase)
        for name in phase.networks:
            set_learning_rates(self.optimizers[name], self.method.optimizers[name], self._lr_factor())
        good = torch.ones((), dtype=torch.bool, device=self.accelerator.device)
        for k, (batch, random, carry) in enumerate(micro):
            with ExitStack() as unsynchronised:
                for name in phase.networks if k < len(micro) - 1 else ():
                    unsynchronised.enter_context(self.accelerator.no_sync(self.method.networks[name]))
                with self.accelerator.autocast():
                    loss, logs = phase.loss(batch, random, carry)
                self.accelerator.backward(loss / len(micro))
            values.setdefault(f"{phase.name}/loss", []).append(loss.detach())
            good = good & loss.detach().isfinite()
            for key, value in logs.items():
                values.setdefault(f"{phase.name}/{key}", []).append(value.detach())
        for name in phase.networks:
            norm = clip_gradients(self.bare[name].parameters(), self.settings.max_grad_norm)
            key = f"{phase.name}/grad_norm" if len(phase.networks) == 1 else f"{phase.name}/{name}/grad_norm"
            values.setdefault(key, []).append(norm.detach())
            good = good & norm.isfinite()
        if self.accelerator.num_processes > 1:  # a loss is one process's own; all must agree on what they do
            good = self.accelerator.reduce(good.long()) == self.accelerator.num_processes
        for name in phase.networks:
            step_where(self.optimizers[name], good)
            self.optimizers[name].zero_grad(set_to_none=True)
        return good

    def _skip_or_stop(self, phase: Phase) -> None:
        self.skipped += 1
        where = f"step {self.step + 1}, phase {phase.name}: the loss or its gradient is not finite"
        if self.settings.on_nonfinite == "skip" and self.skipped <= self.settings.max_skipped:
            self.tracker.say(f"{where}; update skipped ({self.skipped} in all)")
            return
        last = latest_checkpoint(self.run)
        good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise NonFiniteError(f"{where}; {good}")

    # ---- small things -----------------------------------------------------------------------------------------

    def _record(self, sample: int) -> int:
        """The record of a global sample: every epoch is its own permutation."""
        n = len(self.method)
        epoch, position = divmod(sample, n)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(n, generator=generator).tolist())
        return self._order[1][position]

    def _start_clocks(self) -> None:
        self._started, self._cpu_started = time.monotonic(), time.process_time()

    def elapsed(self) -> float:
        """Seconds of training so far, over all continuations."""
        return self.seconds + time.monotonic() - self._started

    def elapsed_cpu(self) -> float:
        """CPU seconds of this process and all its threads so far, over all continuations."""
        return self.cpu_seconds + time.process_time() - self._cpu_started

    def _out_of_time(self) -> bool:
        """By the first process's clock, which all processes also take the learning rate from."""
        if not self.settings.max_minutes:
            return False
        self.clock = broadcast(torch.tensor([self.elapsed()], device=self.accelerator.device)).item()
        return self.clock >= 60 * self.settings.max_minutes

    def _lr_factor(self) -> float:
        s = self.settings
        warm = min(1.0, (self.samples + s.batch_size) / s.warmup_samples) if s.warmup_samples else 1.0
        if s.lr_schedule == "constant":
            return warm
        return warm * (s.lr_final + (1 - s.lr_final) * 0.5 * (1 + math.cos(math.pi * self._progress())))

    def _progress(self) -> float:
        """Share of the run that is done: of its samples or, where that is more, of its minutes."""
        s, done = self.settings, self.samples / self.settings.samples
        return max(done, min(1.0, self.clock / (60 * s.max_minutes))) if s.max_minutes else done

    def _mean(self, values: dict[str, list[Tensor]]) -> dict[str, float]:
        """Mean over micro-batches and processes, one transfer for all keys."""
        keys = sorted(values)
        stacked = torch.stack([torch.stack([v.float() for v in values[key]]).mean() for key in keys])
        reduced = self.accelerator.reduce(stacked.to(self.accelerator.device), reduction="mean")
        return {**dict(zip(keys, reduced.tolist(), strict=True)), **self._clocks()}

    def _clocks(self) -> dict[str, float]:
        return {"seconds": round(self.elapsed(), 2), "cpu_seconds": round(self.elapsed_cpu(), 2)}

    def _validate(self) -> None:
        if self.settings.validate_every and self.accelerator.is_main_process:
            with self.ema.applied(), torch.no_grad(), self.accelerator.autocast():
                found = self.method.validate()
                images = None if found.images is None else found.images.detach().clone()  # no view of averaged weights
            if found.numbers:
                numbers = {f"validation/{name}": float(value) for name, value in found.numbers.items()}
                self.tracker.log(self.samples, self.step, numbers)
            if images is not None:
                self.tracker.pictures(self.samples, images)
        self.accelerator.wait_for_everyone()

    def _export(self, name: str = "export") -> Path:
        folder = self.run / name
        if self.accelerator.is_main_process:
            new = self.run / ".export.new"
            shutil.rmtree(new, ignore_errors=True)
            with self.ema.applied():
                write_folder_atomically(new, self.method.export)
            shutil.rmtree(folder, ignore_errors=True)  # an earlier end of this same run
            new.rename(folder)
        self.accelerator.wait_for_everyone()
        return folder


def _checkpoint_to_go_on_from(run: Path, resume: str | None) -> Path | None:
    """The folder that `resume` names, or None to start at 0.

    Raises:
        UserError: checkpoints of which none can be read, or one of another run where this one has its own.
    """
    own = sorted(path.name for path in run.glob("checkpoint-*"))
    if resume is None:
        return None
    if resume == "latest":
        folder = latest_checkpoint(run)
        if folder is None and own:
            raise UserError(
                f"no checkpoint in {run} can be read: {own[-1]}, the last one, {why_unreadable(run / own[-1])}; "
                "add --overwrite true to start anew, or name another output_dir"
            )
        return folder
    folder = Path(resume)
    if own and folder.resolve().parent != run.resolve():
        raise UserError(f"{folder} is another run's, and {run} holds checkpoints of its own; name another output_dir")
    return folder


def _crossed(before: int, after: int, every: int) -> bool:
    return bool(every) and before // every != after // every


def _generator_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generator_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
