"""The beta schedules that diffusers' schedulers have by name, in float64. `VPSchedule.from_config` reads them."""

import math

import torch
from torch import Tensor

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


def beta_schedule(name: str, start: float, end: float, steps: int) -> Tensor:
    """The variances beta_t that each step adds, of shape (steps,).

    Args:
        name: one of `BETA_SCHEDULES`.
        start, end: the first and the last beta; "squaredcos_cap_v2" does not read them.
        steps: T, the number of steps.

    Raises:
        ValueError: a name that is not supported.
    """
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if name == "scaled_linear":  # linear in the square root: Stable Diffusion
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    if name == "squaredcos_cap_v2":  # improved DDPM, arXiv 2102.09672, eq. 17, with beta capped
        angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2
        alpha_bar = angle.cos().square()
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp_max(0.999)
    if name == "sigmoid":  # GeoDiff, arXiv 2203.02923
        return start + (end - start) * torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
    raise ValueError(f"unsupported beta_schedule {name!r}; there are: {', '.join(BETA_SCHEDULES)}")


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift alpha so that it ends at exactly 0, and scale it so that it starts at the same value.

    arXiv 2305.08891, algorithm 1.

    Args:
        alphas_cumprod: alpha_t^2 of shape (T,).

    Returns:
        alpha_t^2 of the same shape.
    """
    alpha = alphas_cumprod.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).square()
