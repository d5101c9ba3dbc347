"""The training loop. It knows no method by name; see `methods.base.Method`.

    for each step:  records of the global batch -> this process's share -> micro-batches
        for each phase of the method:  losses of the micro-batches -> backward -> clip -> optimisers
        moving average, log, validation, checkpoint

Notable:
- sample i has its own record and its own randomness (`distill.SampleRandom`), whatever the number of processes, so a
  run on two processes equals a run on one, and a continuation is exact;
- all that a continuation needs is in one object, `state.TrainingState`;
- the host waits for the device once a step, to read whether the updates were finite. An update that was not has then
  been left out already, on the device (`optimizers.step_where`).
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.distill.randomness import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods.base import Batch, Method, Phase

from .checkpoint import latest_checkpoint, remove_later_checkpoints
from .clock import RecordOrder
from .continuation import Identity, Recipe, about_the_run
from .interrupt import finish_step_on_interrupt
from .launcher import data_parallel, leave_processes, make_accelerator, read_launch
from .optimizers import clip_gradients, set_learning_rates, step_where
from .precision import resolve_precision
from .resume import Start
from .run_folder import RunFolder, Scalars
from .settings import TrainingSettings
from .state import TrainingState

MicroBatch = tuple[Batch, SampleRandom, dict[str, Any]]  # the last is what phases carry to later ones


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

    Raises:
        UserError: the settings do not fit each other, the method, the launcher or the checkpoint.
    """

    def __init__(
        self,
        method: Method,
        settings: TrainingSettings,
        run: Path,
        resume: str | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        self.method, self.settings = method, settings
        identity = Identity.of(method, settings, recipe or Recipe(), run)
        start = Start.of(run, resume, identity, settings)
        launch = read_launch(settings, stored_precision=start.values.get("precision"))
        self.precision = resolve_precision(launch.mixed_precision, launch.cpu)
        auto = (
            (f"mixed_precision auto: networks compute in {'float32' if self.precision == 'no' else self.precision}",)
            if settings.mixed_precision == "auto"
            else ()
        )
        self.remarks = (*launch.remarks, *auto, *settings.fits(method.scores, method.steps_before), *start.remarks)
        self.accelerator = make_accelerator(self.precision, launch.cpu)
        settings.check(self.accelerator.num_processes)
        if settings.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        if settings.gradient_checkpointing:
            method.enable_gradient_checkpointing()
        self.device = self.accelerator.device
        method.prepare(self.device)
        self.state = TrainingState.of(method, settings, self.device)
        self.clock, self.order = self.state.clock, RecordOrder(len(method), settings.seed)
        about = about_the_run(identity, settings, self.precision, self.accelerator.num_processes)
        saved = start.folder and start.folder.resolve()
        self.folder = RunFolder(run, method, settings, self.state, self.accelerator, about, saved)
        if saved is not None:
            self.state.restore(start.tensors, start.values, self.accelerator.process_index)
            if self.accelerator.is_main_process and saved.parent == run.resolve():
                remove_later_checkpoints(saved)
        for phase in method.phases(self.clock.step):
            self._check(phase)
        for name in list(method.networks):
            method.networks[name] = data_parallel(self.accelerator, method.networks[name])

    def fit(self) -> Path:
        """Train to the end; returns the folder of the exported product.

        Raises:
            NonFiniteError: with the step, the phase and the last good checkpoint named.
            KeyboardInterrupt: after Ctrl-C, with the run saved.
        """
        s, clock, folder = self.settings, self.clock, self.folder
        for remark in self.remarks if self.accelerator.is_main_process else ():  # before the bar: lines of their own
            print(remark, file=sys.stderr, flush=True)
        folder.open()
        clock.start()
        try:
            with finish_step_on_interrupt(self.accelerator.num_processes) as interrupt:
                if clock.samples == 0:
                    folder.validate()
                unlogged: Scalars = {}
                while not clock.done and not clock.out_of_time(self.accelerator) and not interrupt.asked:
                    unlogged = self.train_step()
                    folder.tracker.advance(s.batch_size)
                    if clock.step % s.log_every == 0 or clock.done:
                        folder.log(unlogged)
                        unlogged = {}
                    if clock.crossed(s.validate_every):
                        folder.validate()
                    if clock.crossed(s.checkpoint_every):
                        folder.save()
                    if clock.crossed(s.export_every) and not clock.done:
                        folder.export(f"export-{clock.samples:010d}")
                if unlogged:  # ended by the time limit or by Ctrl-C
                    folder.log(unlogged)
                if clock.samples % max(1, s.validate_every):
                    folder.validate()
                folder.save()
                self._say_how_it_ended(interrupt.asked)
                exported = folder.export(choose_best=s.export_best)
            self.method.networks.update(self.state.networks)  # the bare ones
            leave_processes(self.accelerator)
            return exported
        finally:
            folder.close()

    # ---- a step -----------------------------------------------------------------------------------------------

    def train_step(self) -> Scalars:
        """One step: every phase of the method on this process's share of the batch. Returns what may be logged."""
        s, clock, method = self.settings, self.clock, self.method
        method.progress = clock.progress()
        method.begin_step(clock.step)
        share = s.batch_size // self.accelerator.num_processes
        first, size = clock.samples + self.accelerator.process_index * share, share // s.gradient_accumulation_steps
        micro: list[MicroBatch] = []
        for k in range(s.gradient_accumulation_steps):
            indices = range(first + k * size, first + (k + 1) * size)
            random = SampleRandom(s.seed, indices, self.device)
            micro.append((method.batch([self.order.record(i) for i in indices], random), random, {}))
        scalars: Scalars = {}
        phases, good, made = method.phases(clock.step), [], []
        try:
            for phase in phases:
                good.append(self._update(phase, micro, scalars))
        finally:  # a later phase may fail on what an earlier one made that is not finite
            made = torch.stack(good).tolist() if good else []  # the step's one wait for the device
            for phase, one in zip(phases, made, strict=False):
                if not one:
                    self._skip_or_stop(phase)
        if any(one and method.averaged in phase.networks for phase, one in zip(phases, made, strict=True)):
            self.state.ema.update()
        self.state.follows_progress |= method.progress_was_read
        self.folder.saved = None
        clock.advance()
        return scalars

    def _update(self, phase: Phase, micro: list[MicroBatch], scalars: Scalars) -> Tensor:
        """One update of the phase's networks; bool of shape (): false on every process where it was left out."""
        self._check(phase)
        good = torch.ones((), dtype=torch.bool, device=self.device)
        for k, (batch, random, carry) in enumerate(micro):
            with ExitStack() as unsynchronised:
                for name in phase.networks if k < len(micro) - 1 else ():
                    unsynchronised.enter_context(self.accelerator.no_sync(self.method.networks[name]))
                with self.accelerator.autocast():
                    loss, logs = phase.loss(batch, random, carry)
                self.accelerator.backward(loss / len(micro))
            good = good & loss.detach().isfinite()
            for key, value in {"loss": loss, **logs}.items():
                scalars.setdefault(f"{phase.name}/{key}", []).append(value.detach())
        for name in phase.networks:
            norm = clip_gradients(self.state.networks[name].parameters(), self.settings.max_grad_norm)
            good = good & norm.isfinite()
            of = "" if len(phase.networks) == 1 else f"{name}/"
            scalars.setdefault(f"{phase.name}/{of}grad_norm", []).append(norm)
        if self.accelerator.num_processes > 1:  # a loss is one process's own: all must agree on what they do
            good = self.accelerator.reduce(good.long()) == self.accelerator.num_processes
        for name in phase.networks:
            optimizer = self.state.optimizers[name]
            set_learning_rates(optimizer, self.method.optimizers[name], self.clock.learning_rate_factor())
            step_where(optimizer, good)
            optimizer.zero_grad(set_to_none=True)
        return good

    def _check(self, phase: Phase) -> None:
        """Raise UserError where the phase does not go with the settings."""
        parts = self.settings.gradient_accumulation_steps
        if phase.whole_batch and parts > 1:
            raise UserError(
                f"training.gradient_accumulation_steps is {parts}, and the phase {phase.name} looks at a whole batch "
                "at once; set it to 1"
            )

    def _skip_or_stop(self, phase: Phase) -> None:
        """Count an update that was left out; raise NonFiniteError where that is one too many."""
        self.state.skipped += 1
        where = f"step {self.clock.step + 1}, phase {phase.name}: the loss or its gradient is not finite"
        if self.settings.on_nonfinite == "skip" and self.state.skipped <= self.settings.max_skipped:
            self.folder.say(f"{where}; update skipped ({self.state.skipped} in all)")
            return
        last = latest_checkpoint(self.folder.path)
        good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise NonFiniteError(f"{where}; {good}")

    def _say_how_it_ended(self, interrupted: bool) -> None:
        """Raises KeyboardInterrupt where Ctrl-C ended the run before its last sample."""
        s, samples = self.settings, self.clock.samples
        if not self.clock.done and interrupted:
            self.folder.say(f"interrupted after {samples} samples, which are saved: --resume latest continues")
            raise KeyboardInterrupt
        if not self.clock.done:
            more = "--resume latest with more max_minutes continues"
            at = f"{samples:,} of {s.samples:,} samples"
            self.folder.say(f"the limit of {s.max_minutes:g} minutes ended training as planned, after {at}; {more}")
        if self.state.ema.updates == 0:
            self.folder.say(f"no update of the {self.method.averaged} was made: what is exported is its start")
