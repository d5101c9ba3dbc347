"""Consistency distillation of a guided teacher: loss, times and sampler of the method `Consistency`.

The recipe is that of latent consistency models (arXiv 2303.01469, 2310.04378).

    f(x_t, t) = c_skip(t) x_t + c_out(t) x0_theta(x_t, t),     f(x_0, 0) = x_0

f predicts the end of the path that x_t is on, so it is the same all along the path:

    x0, eps --> x_t --student f--------------------------> f(x_t, t)
                x_t --guided teacher, one DDIM step--> x_r --target f (averaged weights)--> f(x_r, r),   r = t - skip

and the distance of the two is the loss. On a discrete schedule the path ends at its first time, t = 0, not at zero
noise: boundary and teacher agree there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffdistill.diffusion import (
    Condition,
    Schedule,
    ScoreModel,
    broadcast,
    check_condition,
    ddim_step,
    guided,
    linear_combination,
)


class Boundary:
    """c_skip and c_out, which make f the identity at time 0 whatever the network predicts.

    c_skip = d^2 / (tau^2 + d^2),  c_out = tau / sqrt(tau^2 + d^2)

    with d = sigma_data and tau = scale times the network's time. (LCM has tau = t / 0.1, scale 10.)

    Args:
        sigma_data: d.
        scale: at 10, c_skip is almost 0 from the first steps on.
    """

    def __init__(self, sigma_data: float = 0.5, scale: float = 10.0) -> None:
        self.sigma_data, self.scale = sigma_data, scale

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out at t of any shape, float64."""
        tau = self.scale * schedule.network_time(t).double()
        total = tau.square() + self.sigma_data**2
        return self.sigma_data**2 / total, tau / total.sqrt()

    def __call__(self, denoiser: ScoreModel, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """f(x_t, t) for x_t of shape (B, ...) and t of shape (B,)."""
        skip, out = (broadcast(c, x_t) for c in self.coefficients(denoiser.schedule, t))
        return linear_combination(skip, x_t, out, denoiser(x_t, t, cond).x0)


def skipped_times(schedule: Schedule, u: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """t on a grid of `steps` times, and r, the time before t on that grid (0 before the first).

    On T discrete times the grid is T/steps - 1, 2 T/steps - 1, ..., T - 1 (LCM: 50 times of 1000, 20 apart).

    Args:
        schedule: the process, discrete or the straight path.
        u: uniform in [0, 1), of shape (B,).
        steps: the number of times of the grid.

    Raises:
        ValueError: steps that do not divide a discrete schedule.
    """
    last = schedule.last
    index = (u.double() * steps).floor() + 1  # 1 ... steps
    if isinstance(last, int):
        if steps < 1 or (last + 1) % steps:
            raise ValueError(f"{steps} steps do not divide a schedule of {last + 1}")
        width = (last + 1) // steps
        t = index.long() * width - 1
        return t, (t - width).clamp_min(0)
    return index / steps * last, (index - 1) / steps * last


def pseudo_huber(x: Tensor, y: Tensor, c: float = 1e-3) -> Tensor:
    """Mean over elements of sqrt((x - y)^2 + c^2) - c, as LCM has it: near the absolute error above c.

    >>> pseudo_huber(torch.zeros(3), torch.full((3,), 3.0), 4.0).item()
    1.0
    """
    return (((x.float() - y.float()).square() + c * c).sqrt() - c).mean()


@torch.no_grad()
def guided_ddim_step(
    teacher: ScoreModel, x_t: Tensor, t: Tensor, r: Tensor, cond: Condition, null: Condition, scale: float | Tensor
) -> Tensor:
    """x_r = alpha_r x0 + sigma_r eps of the guided prediction at (x_t, t), without a graph.

    Args:
        teacher: a score model.
        x_t: samples of shape (B, ...).
        t, r: times of shape (B,), r before t.
        cond, null: conditions of the batch; null is not read at scale 1.
        scale: guidance scale s, where 1 is unguided (LCM's w is s - 1); a tensor of shape (B,) has one per sample.
    """
    return ddim_step(guided(teacher, x_t, t, cond, null, scale), teacher.schedule, r)


def consistency_loss(
    student: ScoreModel,
    target: ScoreModel,
    teacher: ScoreModel,
    x0: Tensor,
    t: Tensor,
    r: Tensor,
    eps: Tensor,
    cond: Condition,
    null: Condition,
    guidance_scale: float | Tensor,
    *,
    student_cond: Condition = None,
    boundary: Boundary | None = None,
    huber: float = 1e-3,
) -> Tensor:
    """Pseudo-Huber distance of the student's f at x_t from the target's f at the teacher's x_r.

    Args:
        student: the score model in training.
        target: the same with averaged weights; it is run without a graph.
        teacher: the frozen score model; student and target share its schedule.
        x0: data of shape (B, ...), or samples of the teacher.
        t, r: times of shape (B,), r before t (`skipped_times`).
        eps: standard normal noise of x0's shape.
        cond, null, guidance_scale: as for `guided_ddim_step`.
        student_cond: what student and target are conditioned on in place of cond, with the guidance scale, say.
        boundary: c_skip and c_out; those of LCM where None.
        huber: c of the pseudo-Huber distance.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that differ, or a condition of another number of rows.
    """
    if eps.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(eps.shape)}, x0 {tuple(x0.shape)}; they must be equal")
    f = boundary or Boundary()
    own = cond if student_cond is None else student_cond
    check_condition(own, len(x0), "student_cond")
    x_t = teacher.schedule.add_noise(x0.detach(), eps, t)
    value = f(student, x_t, t, own)  # first: a pass without a graph would leave autocast weights without one
    with torch.no_grad():
        wanted = f(target, guided_ddim_step(teacher, x_t, t, r, cond, null, guidance_scale), r, own)
    return pseudo_huber(value, wanted, huber)


@torch.no_grad()
def consistency_sample(
    student: ScoreModel,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Condition,
    boundary: Boundary | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A sample: f at the first time, then noise to the next time and f again (arXiv 2303.01469, algorithm 1).

    Args:
        student: a consistency model.
        x: noise of shape (B, ...), at the first time.
        times: descending times, one per step, in the schedule's own units.
        cond: condition of the batch.
        boundary: as in training.
        generator: generator of the fresh noise, which is drawn on its device.
    """
    check_condition(cond, len(x))
    f, schedule = boundary or Boundary(), student.schedule
    kind = torch.int64 if isinstance(schedule.last, int) else torch.float64
    for index, t in enumerate(torch.as_tensor(times).tolist()):
        at = torch.full((len(x),), t, dtype=kind, device=x.device)
        if index:
            device = x.device if generator is None else generator.device
            noise = torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype)
            x = schedule.add_noise(x, noise.to(x.device), at)
        x = f(student, x, at, cond)
    return x
