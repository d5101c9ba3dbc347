"""Checks a teacher against the stock pipeline, so that what is exported is what was trained.

The stock pipeline and the code that training calls each embed one prompt and take one step. The two calls of the
network are compared: times, conditions and predictions. Then the autoencoder decodes latents. The latents are at most
8 x 8, so the two passes take a fraction of the time of one pass at full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError

from .pipeline_folder import first_line, quiet
from .teacher import Teacher, load_teacher

SIDE = 8  # of the latents
TOLERANCE = 1e-4  # relative to the largest value; kernels differ by less, and a missing condition by far more
HALF_TOLERANCE = 3e-2  # for a teacher in bfloat16 or float16


@dataclass(frozen=True)
class Call:
    """One call of a network: its tensors by the names of the arguments, and its output."""

    inputs: Mapping[str, Tensor]
    output: Tensor


def load_checked_teacher(source: str, dtype: str = "float32", variant: str | None = None) -> Teacher:
    """Load a teacher by `load_teacher` and check it by `check_against_stock`.

    Raises:
        UserError: see the two functions.
    """
    teacher = load_teacher(source, dtype, variant)
    check_against_stock(teacher)
    return teacher


@torch.no_grad()
def check_against_stock(teacher: Teacher) -> None:
    """Compare an embedding and a network pass with those of the stock pipeline.

    Raises:
        UserError: the network predicts more channels than it takes (a learned variance), the stock pipeline refuses the
            size of image or cannot call the network, something differs, or the autoencoder decodes to values that are
            not finite; the message says what.
    """
    p, name = teacher.pipeline, f"teacher {teacher.source}"
    channels, predicted = teacher.family.channels(teacher.backbone.inner.config)
    if predicted != channels:
        raise UserError(
            f"{name}: its network predicts {predicted} channels from {channels}, perhaps with a learned variance; "
            "a student must predict as many channels as it takes"
        )
    _, height, width = teacher.latent_shape
    factor = teacher.latents.factor
    prompt = " ".join(["a photo of a cat", *_several_vectors(teacher)[:1]])
    weight = next(teacher.backbone.parameters())
    noise = torch.randn(
        (1, channels, min(height, SIDE), min(width, SIDE)), generator=torch.Generator().manual_seed(0)
    ).to(weight)
    try:
        teacher.family.check_size(p, height * factor, width * factor)
        stock = _stock_step(teacher, prompt, noise, height * factor, width * factor)
    except Exception as error:  # diffusers raises many kinds of error for a network that it cannot call
        raise UserError(f"{name}: the stock pipeline cannot take a step with it: {first_line(error)}") from error
    with _watched(teacher.backbone.inner) as seen:
        value = teacher.denoiser()(noise, torch.tensor(teacher.schedule.last), teacher.embed([prompt])).value
    (ours,) = seen
    tolerance = TOLERANCE if weight.dtype == torch.float32 else HALF_TOLERANCE
    for key, expected in stock.inputs.items():
        if key not in ours.inputs:
            raise UserError(f"{name}: the stock pipeline gives its network {key}, but training does not")
        what = "its prompt embedding" if key == "encoder_hidden_states" else f"{key} of its network"
        _compare(f"{name}: {what}", ours.inputs[key], expected, tolerance)
    _compare(f"{name}: a step of its network", value, stock.output[:, :channels], tolerance)
    if not teacher.latents.decode(noise).isfinite().all():
        raise UserError(f"{name}: the images of its autoencoder are not finite; check its weights and settings")


def _stock_step(teacher: Teacher, prompt: str, noise: Tensor, height: int, width: int) -> Call:
    """The network's call in one step of the stock pipeline at guidance 1, on latents that may be smaller."""
    p = teacher.pipeline
    stock = teacher.family.replaced(
        p, teacher.backbone.inner, teacher.family.one_step_scheduler(teacher, teacher.schedule.last)
    )
    stock.set_progress_bar_config(disable=True)
    options = teacher.family.call_options(p, height, width)
    small = {"height": noise.shape[2] * teacher.latents.factor, "width": noise.shape[3] * teacher.latents.factor}
    with _watched(teacher.backbone.inner) as seen, quiet():
        stock(
            [prompt],
            **{**options, **small},
            num_inference_steps=1,
            guidance_scale=1.0,
            latents=noise,
            output_type="latent",
        )
    return seen[0]


@contextmanager
def _watched(network: Any) -> Iterator[list[Call]]:
    """Within the block, every call of the network is kept."""
    calls: list[Call] = []

    def keep(_: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        more = dict(zip(("sample", "timestep"), given, strict=False))
        calls.append(Call(dict(_tensors({**more, **named})), output[0]))

    hook = network.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def _tensors(named: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, also of nested mappings. Other arguments are the same in both calls, or change no prediction."""
    for key, value in named.items():
        if isinstance(value, Tensor):
            yield key, value.reshape(1) if value.dim() == 0 else value
        elif isinstance(value, Mapping):
            yield from _tensors(value)


def _compare(what: str, ours: Tensor, stock: Tensor, tolerance: float) -> None:
    if ours.shape != stock.shape:
        raise UserError(f"{what} has shape {tuple(ours.shape)}, the stock pipeline's {tuple(stock.shape)}")
    if not (bool(ours.isfinite().all()) and bool(stock.isfinite().all())):
        raise UserError(f"{what} has values that are not finite; check its weights and the settings of its scheduler")
    gap, most = (ours.double() - stock.double()).abs().max().item(), stock.abs().max().item()
    if not gap <= tolerance * most:
        raise UserError(f"{what} differs from the stock pipeline's by {gap:.2g} where values go up to {most:.2g}")


def _several_vectors(teacher: Teacher) -> list[str]:
    """Tokens of a textual inversion that stand for several vectors: "<toy>", if every tokenizer has "<toy>_1"."""
    names = [name for name, part in teacher.family.parts.items() if part.tokenizer]
    tokenizers = [found for name in names if (found := getattr(teacher.pipeline, name)) is not None]
    added = set.intersection(*(set(tokenizer.get_added_vocab()) for tokenizer in tokenizers))
    return sorted(token for token in added if f"{token}_1" in added)
