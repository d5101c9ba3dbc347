"""Flow matching: a network learns the velocity eps - x0 of the straight path x_t = (1 - t) x0 + t eps.

arXiv 2209.03003, 2210.02747. The loss is `denoising_loss` with weight "flow"; here it is also said for a network of
two times, which is told an earlier time s beside t and may still be asked for the same velocity.
"""

from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion.any_step import TwoTimeDenoiser


def logit_normal_times(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times in (0, 1): sigmoid(mean + std normal), float64 (Stable Diffusion 3, arXiv 2403.03206, section 3.1).

    Warping sigmoid(normal) by t' = e^mu / (e^mu + 1/t - 1), as FLUX's recipe has it, is a mean of mu.

    Args:
        normal: standard normal draws of shape (B,).
        mean: above 0 more time at much noise.
        std: spread.
    """
    return torch.sigmoid(mean + std * normal.double())


def flow_matching_loss(
    denoiser: TwoTimeDenoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Any, s: Tensor | None = None
) -> Tensor:
    """Mean of (V(x_t, t, s) - (eps - x0))^2 over all elements.

    Args:
        denoiser: of two times; the gradient goes into its network.
        x0: clean samples of shape (B, ...), used as constants.
        t: times of shape (B,).
        eps: standard normal noise of x0's shape.
        cond: condition of the batch.
        s: earlier times the network is told, (B,); t itself where it is None.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that differ, or times that are not in order.
    """
    s = t if s is None else s
    check_two_times(x0, t, s, eps)
    x0 = x0.detach()
    prediction = denoiser(denoiser.schedule.add_noise(x0, eps, t), t, s, cond)
    return (prediction.flow - (eps - x0)).square().mean()


def check_two_times(x0: Tensor, t: Tensor, s: Tensor, eps: Tensor) -> None:
    """Raise ValueError where shapes differ, or (on the CPU) s > t."""
    if eps.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(eps.shape)}, x0 {tuple(x0.shape)}; they must be equal")
    if t.shape != (len(x0),) or s.shape != t.shape:
        raise ValueError(f"t has shape {tuple(t.shape)}, s {tuple(s.shape)}; one time a sample is ({len(x0)},)")
    if t.device.type == "cpu" and not bool((s <= t).all()):
        raise ValueError("s must not be later than t")
