"""Guidance: the passes under several conditions, in one batch or one by one, and how they are combined.

    classifier-free    e_0 + s d,                          d = e_c - e_0
    negative prompt    the same, with the negative prompt's prediction in the place of e_0
    perp-neg           e_0 + s (d - sum_i w_i perp(e_i - e_0, d)),  perp(a, d) = a - (<a, d> / <d, d>) d

s = 1 is unguided, s = 0 unconditional (arXiv 2207.12598 calls s - 1 its w). Predictions of any kind may be
combined, all being linear in each other at one x_t; perp keeps to that too, being linear in its first argument
and blind to the length and sign of its second.

Notable:
- any `null` may be a negative prompt: guidance then leads away from it, and what both prompts share cancels,
  the wanted part of it too;
- perp-neg (Perp-Neg, arXiv 2304.04968) takes from a negative prompt what is perpendicular to the prompt's own
  direction alone, so that it cannot weaken it. Weights here are positive, as in the paper; code that adds the
  terms (ScaleDreamer's, LucidDreamer's) has theirs negative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .condition import Condition, check_condition, concatenate, expand
from .denoiser import ScoreModel
from .prediction import Prediction, combine
from .schedule import broadcast


def guided(
    denoiser: ScoreModel,
    x_t: Tensor,
    t: Tensor,
    cond: Condition,
    null: Condition,
    scale: float | Tensor,
    *,
    batched: bool = True,
) -> Prediction:
    """The guided prediction. Scale 1 runs the conditional pass only, scale 0 the unconditional only.

    Args:
        denoiser: a `Denoiser`, or what is called like one.
        x_t: noisy samples of shape (B, ...).
        t: times of shape (B,).
        cond: the condition of the batch.
        null: the same for the empty (or negative) prompt. Not read at scale 1.
        scale: guidance scale; a tensor of shape (B,) is one for each sample, and takes both passes.
        batched: one pass of 2 B rather than two of B.

    Raises:
        ValueError: conditions that do not match.
    """
    check_condition(cond, len(x_t))
    if not isinstance(scale, Tensor):
        if scale == 1:
            return denoiser(x_t, t, cond)
        if scale == 0:
            return denoiser(x_t, t, expand(null, len(x_t), "null"))
    for_cond, for_null = cond_and_null(denoiser, x_t, t, cond, null, batched)
    return combine(for_null, for_cond, scale)


def cond_and_null(
    denoiser: ScoreModel, x_t: Tensor, t: Tensor, cond: Condition, null: Condition, batched: bool = True
) -> tuple[Prediction, Prediction]:
    """The conditional and the unconditional prediction. Arguments and errors as of `guided`."""
    made = predictions(denoiser, x_t, t, {"null": null, "cond": cond}, batched)
    return made["cond"], made["null"]


def predictions(
    denoiser: ScoreModel, x_t: Tensor, t: Tensor, conditions: Mapping[str, Condition], batched: bool = True
) -> dict[str, Prediction]:
    """One prediction for each condition, at the same (x_t, t).

    Args:
        denoiser: a `Denoiser`, or what is called like one.
        x_t: noisy samples of shape (B, ...).
        t: times of shape (B,).
        conditions: by name, K of them. Tensors with a first dimension of 1 are expanded.
        batched: one pass of K B rather than K of B.

    Raises:
        ValueError: conditions with another number of rows, or, batched, that do not match each other.
    """
    size = len(x_t)
    conds = {name: expand(cond, size, name) for name, cond in conditions.items()}
    if not batched:
        return {name: denoiser(x_t, t, cond) for name, cond in conds.items()}
    count = len(conds)
    every = denoiser(torch.cat([x_t] * count), torch.cat([t.expand(size)] * count), concatenate(conds, size))

    def part(k: int) -> Prediction:
        rows = slice(k * size, (k + 1) * size)
        alpha, sigma = (
            level[rows] if level.dim() and len(level) == count * size else level for level in (every.alpha, every.sigma)
        )
        return replace(every, x_t=x_t, value=every.value[rows], alpha=alpha, sigma=sigma)

    return {name: part(k) for k, name in enumerate(conds)}


@dataclass(frozen=True, eq=False)
class PerpNeg:
    """Negative prompts and how strongly each is led away from.

    Attributes:
        negatives: conditions, each like `cond` or with a batch of 1.
        weights: one a negative, not below 0 as a rule: numbers, or tensors of shape (B,) (by camera angle, say).

    Raises:
        ValueError: not as many weights as negatives.
    """

    negatives: Sequence[Condition]
    weights: Sequence[float | Tensor]

    def __post_init__(self) -> None:
        if len(self.negatives) != len(self.weights):
            raise ValueError(f"perp-neg has {len(self.negatives)} negative prompts and {len(self.weights)} weights")

    def conditions(self) -> dict[str, Condition]:
        """The negatives by name, for `predictions`."""
        return {f"negative {k}": negative for k, negative in enumerate(self.negatives)}

    def combine(self, made: Mapping[str, Prediction], scale: float | Tensor) -> Prediction:
        """The guided prediction from those made for "null", "cond" and `conditions()`."""
        return combine_perp_neg(made["null"], made["cond"], [made[k] for k in self.conditions()], self.weights, scale)


def perp_neg(
    denoiser: ScoreModel,
    x_t: Tensor,
    t: Tensor,
    cond: Condition,
    null: Condition,
    negatives: PerpNeg,
    scale: float | Tensor,
    *,
    batched: bool = True,
) -> Prediction:
    """The prediction guided towards cond and away from the negatives, in 2 + K passes or one of (2 + K) B.

    Unlike `guided`, it reads null at scale 1 too: every direction starts there. Other arguments and errors as
    of `guided`.
    """
    conditions = {"null": null, "cond": cond, **negatives.conditions()}
    return negatives.combine(predictions(denoiser, x_t, t, conditions, batched), scale)


def combine_perp_neg(
    null: Prediction,
    cond: Prediction,
    negatives: Sequence[Prediction],
    weights: Sequence[float | Tensor],
    scale: float | Tensor,
) -> Prediction:
    """e_0 + s (d - sum_i w_i perp(e_i - e_0, d)) with d = e_c - e_0 (arXiv 2304.04968), in the kind all share.

    Args:
        null, cond, negatives: predictions at one (x_t, t).
        weights: w_i, numbers or tensors of shape (B,).
        scale: s, a number or a tensor of shape (B,).

    Raises:
        ValueError: predictions of different kinds or shapes.
    """
    towards = cond.value - null.value
    value = cond.value
    for negative, weight in zip(negatives, weights, strict=True):
        if negative.kind != null.kind or negative.value.shape != null.value.shape:
            raise ValueError(f"a negative prediction is {negative.kind!r}, null {null.kind!r}: convert with as_kind")
        if isinstance(weight, Tensor):
            weight = broadcast(weight, value).to(value)
        value = value - weight * perpendicular(negative.value - null.value, towards)
    return combine(null, replace(cond, value=value), scale)


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of x that is perpendicular to y, for each sample over all its dimensions.

    x itself where y is 0. Computed in float32 at the least.

    Args:
        x, y: tensors of shape (B, ...).

    >>> perpendicular(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([[3., 0.]])
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    a, b = x.to(dtype).flatten(1), y.to(dtype).flatten(1)
    square = b.square().sum(1, keepdim=True)
    share = (a * b).sum(1, keepdim=True) / torch.where(square == 0, 1.0, square)
    return (a - share * b).view_as(x).to(x.dtype)
