"""Guidance: passes of a score model under several conditions, and how their predictions are combined.

    classifier-free    e_0 + s d,                          d = e_c - e_0
    negative prompt    the same, with the negative prompt's prediction in place of e_0
    perp-neg           e_0 + s (d - sum_i w_i perp(e_i - e_0, d)),  perp(a, d) = a - (<a, d> / <d, d>) d

s = 1 is unguided and s = 0 unconditional (arXiv 2207.12598 calls s - 1 its w). Losses, samplers and methods guide with
`guided`, or pass a `GuidedDenoiser` where a score model is expected.

Notable:
- predictions of any kind may be combined, because they are linear in each other at one x_t. So is perp: it is linear in
  its first argument, and the length and sign of its second do not matter;
- any `null` may be a negative prompt: guidance then leads away from it. What the two prompts share cancels, the wanted
  part of it too;
- perp-neg (Perp-Neg, arXiv 2304.04968) takes only that part of a negative prompt's direction that is perpendicular to
  the prompt's own direction, so the prompt is not weakened. Weights here are positive, as in the paper; code that adds
  the terms (ScaleDreamer's, LucidDreamer's) has negative weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .condition import Condition, check_condition, concatenate, expand
from .denoiser import ScoreModel, expand_time
from .prediction import Prediction, combine
from .schedule import Schedule, broadcast


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
    """The guided prediction. Scale 1 runs only the conditional pass, scale 0 only the unconditional one.

    Args:
        denoiser: a score model.
        x_t: noisy samples of shape (B, ...).
        t: times of shape (B,), or as `expand_time` says.
        cond: condition of the batch.
        null: the empty (or negative) prompt's condition. It is not read at scale 1.
        scale: guidance scale; a tensor of shape (B,) has one for each sample, and takes both passes.
        batched: run one pass of 2 B samples rather than two of B.

    Raises:
        ValueError: conditions with another number of rows than x_t, or that do not match each other, or a scale that is
            not finite.
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
    """The conditional and the unconditional prediction. Arguments and errors are those of `guided`."""
    made = predictions(denoiser, x_t, t, {"null": null, "cond": cond}, batched)
    return made["cond"], made["null"]


def predictions(
    denoiser: ScoreModel, x_t: Tensor, t: Tensor, conditions: Mapping[str, Condition], batched: bool = True
) -> dict[str, Prediction]:
    """One prediction for each condition, at the same (x_t, t).

    Args:
        denoiser: a score model.
        x_t: noisy samples of shape (B, ...).
        t: times of shape (B,), or as `expand_time` says.
        conditions: conditions of the batch by name, K of them.
        batched: run one pass of K B samples rather than K passes of B.

    Returns:
        The predictions by the names of their conditions.

    Raises:
        ValueError: conditions with another number of rows than x_t, or, where batched, that do not match each other.
    """
    size = len(x_t)
    conds = {name: expand(cond, size, name) for name, cond in conditions.items()}
    if not batched:
        return {name: denoiser(x_t, t, cond) for name, cond in conds.items()}
    count = len(conds)
    every = denoiser(torch.cat([x_t] * count), torch.cat([expand_time(t, x_t)] * count), concatenate(conds, size))

    def part(k: int) -> Prediction:
        rows = slice(k * size, (k + 1) * size)
        alpha, sigma = (
            level[rows] if level.dim() and len(level) == count * size else level for level in (every.alpha, every.sigma)
        )
        return replace(every, x_t=x_t, value=every.value[rows], alpha=alpha, sigma=sigma)

    return {name: part(k) for k, name in enumerate(conds)}


@dataclass(frozen=True, eq=False)
class PerpNeg:
    """Negative prompts, and how strongly guidance leads away from each.

    Attributes:
        negatives: conditions of the batch, each with the parts of `cond`.
        weights: one per negative, as a rule not below 0: numbers, or tensors of shape (B,) (by camera angle, say).

    Raises:
        ValueError: the numbers of weights and of negatives differ.
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


class GuidedDenoiser:
    """A score model whose predictions are guided: the empty prompt and the scale are bound, the condition is not.

        cond --+--> denoiser under cond, null --> combined at the scale --> Prediction

    Args:
        denoiser: the score model that is guided.
        null: the empty (or negative) prompt's condition, with one row or one per sample.
        scale: guidance scale, as in `guided`.
        perp_neg: negative prompts of perp-neg; None for none.
    """

    def __init__(
        self, denoiser: ScoreModel, null: Condition, scale: float | Tensor, perp_neg: PerpNeg | None = None
    ) -> None:
        self.denoiser, self.null, self.scale, self.perp_neg = denoiser, null, scale, perp_neg

    @property
    def schedule(self) -> Schedule:
        """The schedule of the score model that is guided."""
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """The guided prediction at x_t of shape (B, ...) and t of shape (B,). Errors are those of `guided`."""
        if self.perp_neg is None:
            return guided(self.denoiser, x_t, t, cond, self.null, self.scale)
        return perp_neg(self.denoiser, x_t, t, cond, self.null, self.perp_neg, self.scale)


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
    """The prediction guided towards cond and away from K negatives, in 2 + K passes or one of (2 + K) B samples.

    Unlike `guided`, it reads null at scale 1 too, because every direction starts there. Other arguments and errors are
    those of `guided`.
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

    It is x itself where y is 0. It is computed in float32 at least.

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
