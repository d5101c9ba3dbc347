"""DDIM inversion: the noisy sample, and so the noise, from which the teacher itself would make a clean sample.

    x_{k+1} = alpha_{k+1} x0_hat(x_k, t_k) + sigma_{k+1} e(x_k, t_k),    t_k = k t / K

DDIM (arXiv 2010.02502, eq. 12) run towards more noise. x0 stands for x at time 0. It is Euler's method on the
probability flow ODE in sigma / alpha: the error falls as 1 / K.

Two rows of the residual family use it in place of random noise:

    sdi    x_t by inversion under the prompt with a negative guidance scale (arXiv 2405.15891)
    ism    x_s by inversion without a prompt, then one step to x_t (LucidDreamer, arXiv 2311.11284)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.diffusion import Prediction, Schedule, broadcast, ddim_step, linear_combination


@dataclass(frozen=True)
class Inversion:
    """How x0 is inverted.

    Attributes:
        steps: K, each of one pass, or of two where guided.
        guidance_scale: s of the passes; 0 is unconditional.
        eta: noise added after each step, as a share of the standard deviation that DDPM would add on the way back.

    Raises:
        ValueError: fewer than one step, or a negative eta.
    """

    steps: int
    guidance_scale: float
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.eta < 0:
            raise ValueError(f"inversion: steps = {self.steps}, eta = {self.eta}; they must be at least 1 and 0")


def ddim_invert(
    predict: Callable[[Tensor, Tensor], Prediction],
    x0: Tensor,
    schedule: Schedule,
    t: Tensor,
    steps: int,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """x_t from x0, each sample to its own time, in steps of equal length.

    Args:
        predict: a function of x and t of shape (B,) to a prediction. At time 0 noise must be readable from it: where
            sigma is 0 there, as in a flow, the noise that is read from an x0-prediction is not finite.
        x0: clean samples of shape (B, ...).
        schedule: the process.
        t: times of shape (B,), in the schedule's own units.
        steps: K.
        eta: see `Inversion`; x_{k+1} gets eta sigma_k / sigma_{k+1} sqrt(1 - alpha_{k+1}^2 / alpha_k^2) z_k.
            The noise is added on top, as in SDI, so x_t holds a little more noise than sigma_t^2.
        noise: z of shape (K, B, ...), read only where eta > 0.

    Raises:
        ValueError: noise is missing or of another shape, where eta > 0.
    """
    if eta > 0 and (noise is None or noise.shape != (steps, *x0.shape)):
        found = None if noise is None else tuple(noise.shape)
        raise ValueError(f"inversion with eta = {eta} needs noise of shape {(steps, *x0.shape)}, not {found}")
    x, now = x0, torch.zeros_like(t)
    for k in range(steps):
        after = t.double() * ((k + 1) / steps)
        after = after if t.is_floating_point() else after.round().to(t.dtype)
        x = ddim_step(predict(x, now), schedule, after)
        if eta > 0 and noise is not None:
            (alpha, sigma), (alpha_after, sigma_after) = (_levels(schedule, time, x) for time in (now, after))
            still = sigma_after == 0  # a step of length zero from sigma = 0
            ratio = sigma / torch.where(still, 1.0, sigma_after)
            std = ratio * (1 - (alpha_after / alpha).square()).clamp_min(0).sqrt()
            x = linear_combination(torch.ones_like(std), x, eta * std, noise[k])
        now = after
    return x


def _levels(schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return broadcast(schedule.alpha(t), x), broadcast(schedule.sigma(t), x)
