"""What all generators have in common: what they are given, and how that is checked."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.field import Field
from diffdistill.text3d.fields.precision import at_least_float32


class Generator(Protocol):
    """Prompts to objects, in one pass.

    Attributes:
        radius: half the side of the box of its fields.
        prompt_dim: D, the width of the pooled embedding it reads; 0 if it only takes the number of prompts from it.
        needs_tokens: whether it reads the tokens of prompts.
        token_dim: D', their width; 0 if it reads none.
        noise_dim: Z, the width of the noise it reads; 0 if it reads none.
    """

    radius: float
    prompt_dim: int
    needs_tokens: bool
    token_dim: int
    noise_dim: int

    @property
    def layer_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the noise that its layers take, without the axis of prompts.

        A generator that has some is given such noise in training, as `layer_noise`, and does without it afterwards.
        """

    def __call__(
        self, pooled: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> Field:
        """Objects of P prompts.

        Args:
            pooled: (P, D), an embedding of each prompt.
            tokens: (P, L, D'), embeddings of its tokens.
            mask: (P, L), true or 1 where there is a token; each prompt has one at least. None for tokens everywhere.
            noise: (P, Z), of a standard normal distribution.

        Raises:
            UserError: something it needs is missing, or has another shape. What it does not need is ignored.
        """


def check_inputs(
    generator: Generator, pooled: Tensor, tokens: Tensor | None, mask: Tensor | None, noise: Tensor | None
) -> None:
    """Raise UserError where a generator lacks what it needs, or where a shape is wrong."""
    name, count = type(generator).__name__, len(pooled)
    width = generator.prompt_dim or pooled.shape[-1]
    _check(name, "pooled", pooled, "an embedding of each prompt", (count, width))
    if generator.needs_tokens:
        length = None if tokens is None or tokens.dim() != 3 else tokens.shape[1]
        _check(name, "tokens", tokens, "the embeddings of tokens", (count, length, generator.token_dim))
        if mask is not None:
            _check(name, "mask", mask, "a mask of the tokens", (count, length))
    if generator.noise_dim:
        _check(name, "noise", noise, "noise for each prompt", (count, generator.noise_dim))


def unit_rms(x: Tensor) -> Tensor:
    """Vectors (..., D) scaled to an rms of 1, in float32 at least; zeros stay zeros.

    >>> import torch
    >>> unit_rms(torch.tensor([[3.0, -3.0], [0.0, 0.0]])).round(decimals=3).tolist()
    [[1.0, -1.0], [0.0, 0.0]]
    """
    x = at_least_float32(x)
    return x * (x.square().mean(-1, keepdim=True) + 1e-8).rsqrt()


def _check(name: str, which: str, given: Tensor | None, what: str, shape: tuple[int | None, ...]) -> None:
    wanted = ", ".join("L" if n is None else str(n) for n in shape)
    if given is None:
        raise UserError(f"{name} needs {what}: {which} is None; it must have shape ({wanted})")
    if tuple(given.shape) != shape:
        raise UserError(f"{name}: {which} has shape {tuple(given.shape)}; it must have shape ({wanted})")
