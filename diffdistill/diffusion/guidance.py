"""Classifier-free guidance: the conditional and the unconditional pass, in one batch or in two.

Guidance is e_0 + s (e_c - e_0) everywhere: s = 1 is unguided, s = 0 unconditional (arXiv 2207.12598 calls
s - 1 its w). Predictions of any kind may be combined, all being linear in each other at one x_t.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .denoiser import ScoreModel
from .prediction import Prediction, combine


def guided(
    denoiser: ScoreModel,
    x_t: Tensor,
    t: Tensor,
    cond: Any,
    null: Any,
    scale: float | Tensor,
    *,
    batched: bool = True,
) -> Prediction:
    """The guided prediction. Scale 1 runs the conditional pass only, scale 0 the unconditional only.

    Args:
        denoiser: a `Denoiser`, or what is called like one.
        x_t: noisy samples of shape (B, ...).
        t: times of shape (B,).
        cond: a tensor of shape (B, ...), say (B, L, D), or a dict of such.
        null: the same for the empty (or negative) prompt; a first dimension of 1 is expanded. Not read at
            scale 1.
        scale: guidance scale; a tensor of shape (B,) is one for each sample, and takes both passes.
        batched: one pass of 2 B rather than two of B.

    Raises:
        ValueError: conditions that do not match.
    """
    if not isinstance(scale, Tensor):
        if scale == 1:
            return denoiser(x_t, t, cond)
        if scale == 0:
            return denoiser(x_t, t, _expand(null, len(x_t)))
    for_cond, for_null = cond_and_null(denoiser, x_t, t, cond, null, batched)
    return combine(for_null, for_cond, scale)


def cond_and_null(
    denoiser: ScoreModel, x_t: Tensor, t: Tensor, cond: Any, null: Any, batched: bool = True
) -> tuple[Prediction, Prediction]:
    """The conditional and the unconditional prediction. Arguments and errors as of `guided`."""
    size = len(x_t)
    null = _expand(null, size)
    if not batched:
        return denoiser(x_t, t, cond), denoiser(x_t, t, null)
    both = denoiser(torch.cat([x_t, x_t]), torch.cat([t.expand(size)] * 2), _concatenate(null, cond))

    def half(rows: slice) -> Prediction:
        alpha, sigma = (
            level[rows] if level.dim() and len(level) == 2 * size else level for level in (both.alpha, both.sigma)
        )
        return replace(both, x_t=x_t, value=both.value[rows], alpha=alpha, sigma=sigma)

    return half(slice(size, None)), half(slice(size))


def _expand(null: Any, size: int) -> Any:
    if isinstance(null, dict):
        return {name: _expand(part, size) for name, part in null.items()}
    if isinstance(null, Tensor) and null.dim() and len(null) == 1:
        return null.expand(size, *null.shape[1:])
    return null


def _concatenate(null: Any, cond: Any) -> Any:
    if null is None and cond is None:
        return None
    if isinstance(null, Tensor) and isinstance(cond, Tensor):
        if null.shape != cond.shape:
            raise ValueError(f"the null condition has shape {tuple(null.shape)}, cond {tuple(cond.shape)}")
        return torch.cat([null, cond])
    if isinstance(null, dict) and isinstance(cond, dict):
        if null.keys() != cond.keys():
            raise ValueError(f"the null condition has parts {sorted(null)}, cond {sorted(cond)}")
        return {name: _concatenate(null[name], part) for name, part in cond.items()}
    raise ValueError(
        f"guidance needs both conditions as tensors or as dicts of tensors; "
        f"cond is {type(cond).__name__}, null is {type(null).__name__}"
    )
