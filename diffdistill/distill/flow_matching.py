"""Flow matching: a network of two times learns the velocity eps - x0 of the straight path x_t = (1 - t) x0 + t eps.

arXiv 2209.03003, 2210.02747. Self-E, MeanFlow and shortcut models contain this loss, and are it where s = t. For a
network of one time it is `denoising_loss` with weight "flow".
"""

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, TwoTimeDenoiser


def logit_normal_times(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times in (0, 1): sigmoid(mean + std normal), float64 (Stable Diffusion 3, arXiv 2403.03206, section 3.1).

    A mean of mu is the same as warping sigmoid(normal) by t' = e^mu / (e^mu + 1/t - 1), as in the recipe of FLUX.

    Args:
        normal: standard normal draws of shape (B,).
        mean: above 0, more times are at high noise.
        std: standard deviation of the logit of t.
    """
    return torch.sigmoid(mean + std * normal.double())


def flow_matching_loss(
    denoiser: TwoTimeDenoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Condition, s: Tensor | None = None
) -> Tensor:
    """Mean of (V(x_t, t, s) - (eps - x0))^2 over all elements.

    Args:
        denoiser: the network in training, of two times; the gradient goes into it.
        x0: clean samples of shape (B, ...), used as constants.
        t: times of shape (B,).
        eps: standard normal noise of x0's shape.
        cond: condition of the batch.
        s: earlier times that the network gets, of shape (B,); None for t itself.

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
    """Raise ValueError unless x0 and eps have one shape, t and s have shape (B,), and (on the CPU) s <= t."""
    if eps.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(eps.shape)}, x0 {tuple(x0.shape)}; they must be equal")
    if t.shape != (len(x0),) or s.shape != t.shape:
        raise ValueError(f"t has shape {tuple(t.shape)}, s {tuple(s.shape)}; one time per sample is ({len(x0)},)")
    if t.device.type == "cpu" and not bool((s <= t).all()):
        raise ValueError("s must not be later than t")
