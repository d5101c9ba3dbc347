"""Denoising score matching: the loss of a fake score on generated samples, and of a teacher on data.

The network gets x_t = alpha x0 + sigma eps. Its prediction is converted, and the squared error is taken in one space
with one weight. All of them are weights on the squared error of x0 at one x_t:

    name           loss                        weight on (x0_hat - x0)^2          used by
    eps            (eps_hat - eps)^2           (alpha / sigma)^2                  DDPM, eps-trained networks
    alpha2_eps     alpha^2 (eps_hat - eps)^2   (alpha^2 / sigma)^2                SwiftBrush's fake score
    x0             (x0_hat - x0)^2             1
    v              (v_hat - v)^2               (alpha^2 + sigma^2)^2 / sigma^2    v-trained networks
    flow           (flow_hat - flow)^2         (alpha + sigma)^2 / sigma^2        flow matching
    snr_plus_one   (SNR + 1) (x0_hat - x0)^2   (alpha^2 + sigma^2) / sigma^2      DMD2's fake, sigma_data = 1

with v = alpha eps - sigma x0, flow = eps - x0, SNR = alpha^2 / sigma^2.
Where alpha^2 + sigma^2 = 1, the last equals v.
"""

from collections.abc import Callable

from torch import Tensor

from diffdistill.diffusion import Condition, Prediction, ScoreModel, broadcast, check_condition

from .tables import look_up

# (prediction, x0, eps, alpha, sigma) -> weighted squared error of each element
DenoisingError = Callable[[Prediction, Tensor, Tensor, Tensor, Tensor], Tensor]


def _v_error(prediction: Prediction, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (prediction.v - (alpha * eps - sigma * x0)).square()


def _snr_plus_one(prediction: Prediction, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    # from v, the error of which is (alpha^2 + sigma^2) / sigma times that of x0: no division by sigma
    return _v_error(prediction, x0, eps, alpha, sigma) / (alpha.square() + sigma.square())


DENOISING_WEIGHTS: dict[str, DenoisingError] = {
    "eps": lambda p, x0, eps, alpha, sigma: (p.eps - eps).square(),
    "alpha2_eps": lambda p, x0, eps, alpha, sigma: (alpha * (p.eps - eps)).square(),
    "x0": lambda p, x0, eps, alpha, sigma: (p.x0 - x0).square(),
    "v": _v_error,
    "flow": lambda p, x0, eps, alpha, sigma: (p.flow - (eps - x0)).square(),
    "snr_plus_one": _snr_plus_one,
}


def denoising_loss(
    denoiser: ScoreModel,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Condition,
    weight: str | DenoisingError = "eps",
) -> Tensor:
    """Denoising score matching loss, the mean over all elements.

    Args:
        denoiser: the score model that learns; the gradient goes into its network.
        x0: clean samples of shape (B, ...), used as constants: the graph of a generator ends here.
        t: times of shape (B,), in the schedule's own units. A score model that takes a time per token gets (B, L).
        eps: standard normal noise of the shape of x0.
        cond: condition of the batch; see `diffusion.drop_condition` for the unconditional score.
        weight: a name in the table of this module, or a function like those in it.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown weight, shapes that differ, another number of times than samples, or a condition of
            another number of rows.
    """
    error = look_up(DENOISING_WEIGHTS, weight, "denoising weight")
    if eps.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(eps.shape)}, x0 {tuple(x0.shape)}; they must be equal")
    if t.shape[:1] != x0.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}; one time per sample is ({len(x0)},)")
    check_condition(cond, len(x0))
    x0 = x0.detach()
    schedule = denoiser.schedule
    prediction = denoiser(schedule.add_noise(x0, eps, t), t, cond)
    alpha = broadcast(schedule.alpha(t), x0).to(x0.dtype)
    sigma = broadcast(schedule.sigma(t), x0).to(x0.dtype)
    return error(prediction, x0, eps, alpha, sigma).mean()
