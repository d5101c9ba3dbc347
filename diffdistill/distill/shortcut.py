"""The loss of shortcut models (arXiv 2410.12557): one step of a size is two steps of half that size.

The network gets the size of its step, d = t - s. With V(x_t, t, s) the velocity over that step,

    d = 0      flow matching: V = eps - x0
    d > 0      V(x_t, t, t - d) = (V(x_t, t, t - d/2) + V(x', t - d/2, t - d)) / 2,  x' = x_t - (d/2) V(x_t, t, t - d/2)

Sizes are powers of 1/2, from 1 down to 2 / finest; for a step of size 1 / finest the network gets d = 0. Here t = 0 is
data and t = 1 noise; in the paper it is the other way round.
"""

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, TwoTimeDenoiser, TwoTimeModel, broadcast, take_rows

from .flow_matching import check_two_times


def shortcut_times(
    size: Tensor, place: Tensor, flow: Tensor, u: Tensor, finest: int = 128, whole: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """t and s of each sample, float64.

    Flow-matching samples have t = s, uniform. The others have a step of size 1, 1/2, ... or 2 / finest, each with the
    same probability, and start on the grid of that size.

    Args:
        size, place: uniform in [0, 1), of shape (B,).
        flow: which samples are for flow matching, bool, of shape (B,); three quarters in the paper.
        u: uniform in [0, 1), of shape (B,), for those samples: t = 1 - u.
        finest: the number of steps of the finest grid, a power of 2, at least 2.
        whole: which samples have a step of size 1 whatever `size` is, bool, of shape (B,); None for none. The released
            code distributes the sizes evenly and gives the samples that are left over size 1: an eighth of them with
            its batches.

    Raises:
        ValueError: `finest` is not a power of 2, or below 2.
    """
    levels = finest.bit_length() - 1
    if finest < 2 or 2**levels != finest:
        raise ValueError(f"finest is {finest}; it must be a power of 2, at least 2")
    level = (size.double() * levels).floor()
    count = 2.0 ** (level if whole is None else level.masked_fill(whole, 0))  # steps of that size from 1 to 0
    t = 1 - (place.double() * count).floor() / count
    plain = 1 - u.double()
    return torch.where(flow, plain, t), torch.where(flow, plain, t - 1 / count)


@torch.no_grad()
def shortcut_target(
    model: TwoTimeModel,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    cond: Condition,
    finest: int = 128,
    clip: float | None = None,
) -> Tensor:
    """The velocity of two half steps from t to s, without a graph.

    Args:
        model: called like a `TwoTimeDenoiser`: the network itself, its average, or a guided one.
        x_t: tensors of shape (B, ...).
        t, s: times of shape (B,).
        cond: condition of the batch.
        finest: for half steps of at most 1 / finest the network gets d = 0.
        clip: the largest absolute value of x' and of the velocity that is returned, 4 in the released code; None for
            no limit.
    """
    t, s = t.double(), s.double()
    middle = (t + s) / 2
    smallest = (t - middle) * finest <= 1 + 1e-9
    first = model(x_t, t, torch.where(smallest, t, middle), cond).flow
    half = broadcast(t - middle, x_t).to(x_t.dtype)
    between = x_t - half * first
    if clip is not None:
        between = between.clamp(-clip, clip)
    second = model(between, middle, torch.where(smallest, middle, s), cond).flow
    velocity = (first + second) / 2
    return velocity if clip is None else velocity.clamp(-clip, clip)


def shortcut_loss(
    denoiser: TwoTimeDenoiser,
    x0: Tensor,
    t: Tensor,
    s: Tensor,
    eps: Tensor,
    cond: Condition,
    *,
    target: TwoTimeModel | None = None,
    finest: int = 128,
    clip: float | None = None,
) -> Tensor:
    """Mean squared error of V: from eps - x0 where s = t, from two half steps where s < t (eq. 5).

    Args:
        denoiser: the network in training.
        x0: data of shape (B, ...).
        t, s: times of shape (B,), as `shortcut_times` makes them.
        eps: standard normal noise of x0's shape.
        cond: condition of the batch.
        target: the model of the two half steps; `denoiser` where None. Averaged weights make it steadier.
        finest, clip: as for `shortcut_target`.

    Returns:
        A scalar.

    Raises:
        ValueError: as for `flow_matching_loss`.
    """
    check_two_times(x0, t, s, eps)
    x0 = x0.detach()
    x_t = denoiser.schedule.add_noise(x0, eps, t)
    value = denoiser(x_t, t, s, cond).flow  # first: a pass without a graph would leave autocast weights without one
    wanted = eps - x0
    rows = (s < t).nonzero().squeeze(1)
    if len(rows):
        model = denoiser if target is None else target
        steps = shortcut_target(model, x_t[rows], t[rows], s[rows], take_rows(cond, rows), finest, clip)
        wanted = wanted.index_copy(0, rows, steps.to(wanted.dtype))
    return (value - wanted).square().mean()
