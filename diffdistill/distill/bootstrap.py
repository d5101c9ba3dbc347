"""The losses of BOOT (arXiv 2306.05544): a student of the whole trajectory learns each point from its own one before.

A trajectory of the teacher's ODE is identified by the noise z that it starts from. The student follows not x_t but its
signal, because the noise is known:

    y_t = (x_t - sigma_t z) / alpha_t        x_t = alpha_t y_t + sigma_t z        y -> x0 as sigma -> 0

With lambda = log(alpha / sigma) and f the teacher's x0-prediction, the signal-ODE is dy / dlambda = f(x_t, t) - y.
With f held over a step from t to an earlier s it is solved exactly, and that is DDIM divided by alpha_s:

    y_s = y_t + D (f - y_t),    D = 1 - k,    k = alpha_t sigma_s / (sigma_t alpha_s) = exp(lambda_t - lambda_s)

The student g(z, t) predicts y_t for every t. Its target at s is one step of the teacher from the student's own y_t:

    L_BS = w(D) (g(z, s) - sg[y_t + D (f~ - y_t)])^2,  y_t = sg[g(z, t)]        L_BC = (g(z, t_max) - f~(z, t_max))^2

where f~ is the guided teacher. At t_max only noise is known, and the signal is the teacher's own one-step prediction.

Notable:
- lambda here is log(alpha / sigma), as everywhere in this package; the paper's is the negative of it;
- D is computed in float64, because 1 - k cancels where the step is short. D is 1 where alpha_t = 0 (y_t then has no
  effect) and where sigma_s = 0;
- the difference y_s - y_t is of the order of D. It is computed in float32 at least, and so is the loss;
- with w = 1 / D^2 the loss is the mean squared error between f~ and the x0 that the student's finite difference
  implies, y_t + (y_s - y_t) / D. A short step then has a large weight; `clipped` bounds it, `uniform` has none.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, Schedule, ScoreModel, broadcast, guided

from .tables import look_up

CLIPPED_AT = 0.1  # D below which the weight 1 / D^2 no longer rises

BootstrapWeight = Callable[[Tensor], Tensor]

BOOTSTRAP_WEIGHTS: dict[str, BootstrapWeight] = {
    "inverse_square": lambda d: d.square().reciprocal(),
    "clipped": lambda d: d.clamp_min(CLIPPED_AT).square().reciprocal(),
    "uniform": torch.ones_like,
}

# name -> (t, s) to the time of the second pass of the teacher, None where there is none
BOOTSTRAP_SOLVERS: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "euler": None,
    "midpoint": lambda t, s: (t + s) / 2 if t.is_floating_point() else (t + s) // 2,
    "heun": lambda t, s: s,
}


def signal_step(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """D = 1 - exp(lambda_t - lambda_s) of the step from t to s, float64.

    Args:
        schedule: the process.
        t, s: times of shape (B,), s earlier than t.

    Raises:
        ValueError: shapes differ, or an s that is not earlier (checked on the CPU only).
    """
    if t.shape != s.shape:
        raise ValueError(f"t has shape {tuple(t.shape)}, s {tuple(s.shape)}; they must be equal")
    if t.device.type == "cpu" and not bool((s < t).all()):
        raise ValueError(f"a step goes to an earlier time, not from {t.tolist()} to {s.tolist()}")
    return -torch.expm1(schedule.half_log_snr(t) - schedule.half_log_snr(s))


def signal_update(y: Tensor, f: Tensor, d: Tensor) -> Tensor:
    """y + D (f - y), in float32 at least.

    Args:
        y, f: tensors of shape (B, ...).
        d: D of shape (B,).
    """
    y, f = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (y, f))
    return y + broadcast(d, y).to(y.dtype) * (f - y)


@torch.no_grad()
def teacher_signal(
    teacher: ScoreModel,
    y: Tensor,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    cond: Condition,
    null: Condition,
    guidance_scale: float | Tensor,
    solver: str = "euler",
) -> Tensor:
    """f~ for the step from t to s: the guided teacher's prediction of x0, held over the step. Nothing has a graph.

    euler     f~ = f(x_t, t)                                  DDIM; first order
    midpoint  f~ = f_t + (f_m - f_t) / (2 r), m = (t + s) / 2   second order, one more pass
    heun      the same with m = s, where r = 1: (f_t + f_s) / 2

    with x_m from an Euler step to m, and r = (lambda_m - lambda_t) / (lambda_s - lambda_t): the single-step solver of
    second order in the exponential form (DPM-Solver++(2S), arXiv 2211.01095, algorithm 1). On a discrete schedule m is
    rounded down and r is that of the rounded time, so the order stays. Where lambda is infinite at t or s, the second
    pass has no effect, and the step is Euler's.

    Args:
        teacher: a score model.
        y: signals y_t of shape (B, ...).
        z: the noise that their trajectories start from, of the same shape.
        t, s: times of shape (B,), s earlier than t.
        cond, null, guidance_scale: as for `guided`; scale 1 takes no unconditional pass.
        solver: a name in `BOOTSTRAP_SOLVERS`.

    Returns:
        Tensor of shape (B, ...).

    Raises:
        ValueError: an unknown solver, shapes that differ, or an s that is not earlier.
    """
    second = look_up(BOOTSTRAP_SOLVERS, solver, "solver")
    if y.shape != z.shape:
        raise ValueError(f"the signal has shape {tuple(y.shape)}, the noise {tuple(z.shape)}; they must be equal")
    schedule = teacher.schedule
    f = guided(teacher, schedule.add_noise(y, z, t), t, cond, null, guidance_scale).x0
    if second is None:
        return f
    m = second(t, s)
    y_m = signal_update(y, f, signal_step(schedule, t, m)).to(y.dtype)
    f_m = guided(teacher, schedule.add_noise(y_m, z, m), m, cond, null, guidance_scale).x0
    lambda_t, lambda_m, lambda_s = (schedule.half_log_snr(time) for time in (t, m, s))
    h = lambda_s - lambda_t
    share = torch.where(h.isfinite(), h / (2 * (lambda_m - lambda_t)), 0.0)
    return f + broadcast(share, f).to(f.dtype) * torch.where(broadcast(h.isfinite(), f), f_m - f, 0.0)


def bootstrap_loss(y_s: Tensor, y_t: Tensor, f: Tensor, d: Tensor, weight: str | BootstrapWeight) -> Tensor:
    """L_BS: the student at s against one step of the teacher from the student at t; the mean over all elements.

    Args:
        y_s: g(z, s) of shape (B, ...), with a graph: the gradient goes here and nowhere else.
        y_t: g(z, t) of the same shape, used as a constant.
        f: f~ of `teacher_signal`, of the same shape, used as a constant.
        d: D of `signal_step`, float64, of shape (B,).
        weight: a name in `BOOTSTRAP_WEIGHTS`, or a function of D.

    Returns:
        A scalar, float32 at least.

    Raises:
        ValueError: an unknown weight, or shapes that differ.

    >>> y_s, y_t, f = torch.full((1, 2), 0.25), torch.zeros(1, 2), torch.ones(1, 2)
    >>> bootstrap_loss(y_s, y_t, f, torch.tensor([0.5]), "inverse_square").item()
    0.25
    """
    weigh = look_up(BOOTSTRAP_WEIGHTS, weight, "weight")
    if not y_s.shape == y_t.shape == f.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (y_s, y_t, f))
        raise ValueError(f"y_s, y_t and f must have one shape, not {shapes}")
    dtype = torch.promote_types(y_s.dtype, torch.float32)
    y_s, y_t, f = y_s.to(dtype), y_t.detach().to(dtype), f.detach().to(dtype)
    error = (y_s - y_t) - broadcast(d, y_s).to(dtype) * (f - y_t)
    return (broadcast(weigh(d), y_s).to(dtype) * error.square()).mean()


def boundary_loss(y: Tensor, f: Tensor) -> Tensor:
    """L_BC: mean squared error of the student at t_max from the teacher's own one-step prediction, float32 at least.

    Args:
        y: g(z, t_max) of shape (B, ...), with a graph.
        f: f~(z, t_max) of the same shape, used as a constant.

    Raises:
        ValueError: shapes differ.
    """
    if y.shape != f.shape:
        raise ValueError(f"the student's signal has shape {tuple(y.shape)}, the teacher's {tuple(f.shape)}")
    dtype = torch.promote_types(y.dtype, torch.float32)
    return (y.to(dtype) - f.detach().to(dtype)).square().mean()
