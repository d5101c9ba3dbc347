"""BOOT: a one-step student of the teacher's whole trajectory, from prompts alone (arXiv 2306.05544).

    z --student, t------> y_t --+ sigma_t z--> x_t --teacher, guided--> f~ --one DDIM step--> target
    z --student, s------> y_s ------------------------- (y_s - target)^2, weighted ---------------|      s < t
    z --student, t_max-----> y ---------------------- (y - f~(z, t_max))^2                the boundary

Notable:
- there are one network and a frozen teacher: no data, no fake score, no discriminator, no moving average in the target;
- the student always gets the initial noise z, as the teacher's input at T* = t_max. This is the last time, or the time
  whose sigma/alpha is `noise_ratio`. The output is read as the teacher's type of prediction at T*, for any target time.
  So at t_max the student starts as the teacher's one-step prediction, and without guidance the boundary loss starts at
  zero;
- the sample is g(z, t_min). At export this constant time is folded into the UNet, which is then a stock one;
- guidance is part of the target, so the student takes one pass and needs no guidance.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition, GuidedDenoiser, Prediction, broadcast, concatenate, take_rows
from diffdistill.distill import (
    BOOTSTRAP_SOLVERS,
    BOOTSTRAP_WEIGHTS,
    SampleRandom,
    bootstrap_loss,
    boundary_loss,
    signal_step,
    teacher_signal,
)
from diffdistill.distill.residual import rms
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError
from diffdistill.models.target_time import TargetTime, TargetTimeUNet
from diffdistill.models.teacher import Teacher

from .base import Batch, Loss, OptimizerSettings, Phase, check_guidance, check_shares, open_teacher, unwrap
from .one_step import OneStep
from .settings import ExportSettings, HealthSettings, TeacherSettings
from .student import first_time, require_variance_preserving


class TrajectoryStudent:
    """A network that takes noise z at T* and a target time, and predicts the signal of the trajectory at that time.

    Args:
        teacher: the teacher, for its schedule, prediction type and latent shape.
        time: T*, 0-d.
        t_end: the target time of its samples.
    """

    def __init__(self, teacher: Teacher, time: Tensor, t_end: int) -> None:
        self.teacher, self.time, self.t_end = teacher, time, t_end

    def signal(self, network: Any, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """g(z, t): the output at target times t, read as the teacher's type of prediction for z at T*."""
        schedule, at = self.teacher.schedule, self.time.to(z.device)
        alpha, sigma = (broadcast(level(at), z) for level in (schedule.alpha, schedule.sigma))
        value = network(z, t, cond).to(z.dtype)
        return Prediction(z, value, self.teacher.prediction_type, alpha, sigma).x0

    def train_sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """The signal at `t_end`; another `draw` starts from another noise."""
        return self._at_end(network, random.normal(f"z{draw}", self.teacher.latent_shape), cond)

    def sample(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        """The signal at `t_end`, from the noise of previews."""
        return self._at_end(network, random.normal("preview", self.teacher.latent_shape), cond)

    def _at_end(self, network: Any, z: Tensor, cond: Condition) -> Tensor:
        return self.signal(network, z, torch.full((len(z),), self.t_end, device=z.device), cond)

    def exported(self, network: Any) -> Any:
        """A stock network, with the target time `t_end` folded into it."""
        return unwrap(network).at(self.t_end)

    def scheduler(self) -> Any:
        """The diffusers scheduler whose one step is the student's."""
        return self.teacher.family.one_step_scheduler(self.teacher, self.time.item())


class BOOT(OneStep):
    """Distil a teacher's trajectory into a one-step student.

    Args:
        teacher: the model that is distilled, a UNet of a variance-preserving schedule.
        prompts: a file of prompts.
        delta: length of a bootstrapping step, as a fraction of the teacher's schedule; s = max(t - delta, t_min).
        t_min: the end of the trajectory, as a fraction of the schedule; the student's sample is the signal there.
        noise_ratio: sigma/alpha at the start of the trajectory, t_max; null for the last time.
        times: uniform draws t from the times above t_min, as in the paper. The student then learns the first delta
            below t_max only by its smoothness. covering also takes shorter steps from t_max to these times.
        weight: weight on a step, a name in `distill.BOOTSTRAP_WEIGHTS`: inverse_square, 1 / D^2 (the paper); clipped,
            the same but constant for D below 0.1; uniform.
        solver: the teacher's step: euler (DDIM), or midpoint or heun, which take a second pass.
        guidance_scale: the teacher's guidance, which becomes part of the target.
        boundary_weight: weight of the boundary loss at t_max; 0 for no such loss.
        boundary_share: share of samples with a boundary loss. Below 1 there is less work, and the weight of these
            samples is higher by as much.
        target_time: how the student is conditioned on its target time: added (a new embedding beside that of the time)
            or replaced.
        optimizer: the student's optimiser.
        health: numbers of the student against the teacher's, at each validation.
        export: how the product is stored.

    Raises:
        UserError: a setting is out of its range, or the teacher has another kind of schedule or network.
    """

    student: TrajectoryStudent

    def __init__(
        self,
        teacher: TeacherSettings,
        prompts: str,
        delta: float = 0.04,
        t_min: float = 0.01,
        noise_ratio: float | None = None,
        times: Literal["uniform", "covering"] = "uniform",
        weight: str = "inverse_square",
        solver: str = "euler",
        guidance_scale: float = 7.5,
        boundary_weight: float = 0.1,
        boundary_share: float = 1.0,
        target_time: TargetTime = "added",
        optimizer: OptimizerSettings = OptimizerSettings(1e-5),
        health: HealthSettings = HealthSettings(),
        export: ExportSettings = ExportSettings(),
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        look_up(BOOTSTRAP_WEIGHTS, weight, "weight")
        look_up(BOOTSTRAP_SOLVERS, solver, "solver")
        check_shares(t_min=t_min, boundary_share=boundary_share)
        if not 0.0 < delta <= 1.0:
            raise UserError(f"delta is {delta}; it is a fraction of the schedule, above 0 and at most 1")
        if not boundary_weight >= 0:
            raise UserError(f"boundary_weight is {boundary_weight}; it must not be below 0")
        if boundary_weight > 0 and boundary_share == 0:
            raise UserError(
                "boundary_share is 0, so no sample would be at the boundary; to leave the loss out, set "
                "boundary_weight to 0"
            )
        texts, loaded = read_prompts(prompts), open_teacher(teacher)
        count = require_variance_preserving(loaded, "BOOT").num_train_timesteps
        time = first_time(loaded, noise_ratio)
        self.t_star, self.t_end = int(time), round(t_min * count)
        self.step = max(1, round(delta * count))
        if self.t_end >= self.t_star:
            raise UserError(f"t_min {t_min} is time {self.t_end}; it must be below the first time, {self.t_star}")
        self.times, self.weight, self.solver, self.guidance_scale = times, weight, solver, guidance_scale
        self.boundary_weight, self.boundary_share = boundary_weight, boundary_share
        super().__init__(loaded, texts, TrajectoryStudent(loaded, time, self.t_end), optimizer, export, health=health)
        copied: Any = self.networks["student"]
        self.networks["student"] = TargetTimeUNet(copied.inner, self.t_star, target_time)

    def phases(self, step: int) -> list[Phase]:
        return [Phase("student", "student", self._loss)]

    # ---- the loss ---------------------------------------------------------------------------------------------

    def steps(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The times t and s of steps, int64, of u uniform in [0, 1), float64, of shape (B,)."""
        end = self.t_star + (self.step - 1 if self.times == "covering" else 0)
        t = self.t_end + 1 + (u * (end - self.t_end)).floor().long()
        return t.clamp_max(self.t_star), (t - self.step).clamp(self.t_end, self.t_star - 1)

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        student, cond = self.networks["student"], batch["cond"]
        z = random.normal("z", self.teacher.latent_shape)
        t, s = self.steps(random.uniform("time"))
        rows = torch.arange(0)
        if self.boundary_weight > 0:
            rows = random.bernoulli("boundary", self.boundary_share).nonzero().flatten()
        rows = rows.to(z.device)
        z_first, cond_first = z[rows], take_rows(cond, rows)
        t_first = torch.full_like(rows, self.t_star)
        # One pass for both losses. It comes before the pass for y_t: autocast caches the weights that it casts, and
        # those of a pass without a graph have none.
        both = concatenate({"cond": cond, "at the boundary": cond_first}, [len(z), len(rows)])
        signals = self.student.signal(student, torch.cat([z, z_first]), torch.cat([s, t_first]), both)
        y_s, y_first = signals.split([len(z), len(rows)])
        with torch.no_grad():
            y_t = self.student.signal(unwrap(student), z, t, cond)
            f = teacher_signal(self.teacher.denoiser(), y_t, z, t, s, cond, self.null, self.guidance_scale, self.solver)
        d = signal_step(self.schedule, t, s)
        loss = bootstrap_loss(y_s, y_t, f, d, self.weight)
        logs = {"bootstrap": loss.detach(), "gap_rms": rms(f - y_t), "mean_d": d.mean()}
        boundary = torch.zeros((), device=z.device)
        if len(rows):
            with torch.no_grad():
                teacher = GuidedDenoiser(self.teacher.denoiser(), self.null, self.guidance_scale)
                f_first = teacher(z_first, t_first, cond_first).x0
            # the sum over the rows at the boundary, divided by their expected number, so that it does not matter how
            # samples are spread over processes
            boundary = boundary_loss(y_first, f_first) * (len(rows) / (self.boundary_share * len(z)))
            loss = loss + self.boundary_weight * boundary
        logs["boundary"] = boundary.detach()  # also if there is none, because all processes must log the same keys
        return loss, logs
