"""A teacher to train from is checked against the stock pipeline: what is exported has to be what is trained.

One prompt is embedded and one step taken by `StableDiffusionPipeline` itself and by the code that training calls. The
latents are 8 x 8 at the most, so that the two passes take a fraction of one at full size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError

from .export import one_step_scheduler
from .pipeline_folder import first_line, quiet
from .stock_pipeline import stock_pipeline
from .teacher import Teacher, load_teacher

SIDE = 8  # of the latents
TOLERANCE = 1e-4  # relative to the largest value; kernels may differ, a missing condition is far above it


def load_checked_teacher(source: str) -> Teacher:
    """`load_teacher`, and `check_against_stock`.

    Raises:
        UserError: as of both.
    """
    teacher = load_teacher(source)
    check_against_stock(teacher)
    return teacher


@torch.no_grad()
def check_against_stock(teacher: Teacher) -> None:
    """Compare an embedding and a network pass with the stock pipeline's.

    Raises:
        UserError: a UNet that predicts more than it is given (a learned variance), a size of picture that the stock
            pipeline refuses, a network that it cannot call, or a difference; the message says in what.
    """
    p, name = teacher.pipeline, f"teacher {teacher.source}"
    channels, height, width = teacher.latent_shape
    if p.unet.config.out_channels != channels:
        raise UserError(
            f"{name}: its UNet predicts {p.unet.config.out_channels} channels for {channels}, a learned variance "
            "perhaps; a student needs as many as there are"
        )
    prompt = " ".join(["a photo of a cat", *_several_vectors(p.tokenizer)[:1]])
    noise = torch.randn(
        (1, channels, min(height, SIDE), min(width, SIDE)), generator=torch.Generator().manual_seed(0)
    ).to(p.unet.device)
    try:
        p.check_inputs(prompt, height * p.vae_scale_factor, width * p.vae_scale_factor, None)
        time, embedding, value = _stock_step(teacher, prompt, noise)
    except Exception as error:  # whatever diffusers raises about a network that it cannot call
        raise UserError(f"{name}: the stock pipeline takes no step with it: {first_line(error)}") from error
    ours = teacher.embed([prompt])
    _compare(f"{name}: its prompt embedding", ours, embedding)
    _compare(f"{name}: a step of its UNet", teacher.network(noise, time, ours), value)


def _stock_step(teacher: Teacher, prompt: str, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Time (1,), prompt embedding (1, L, D) and the UNet's answer in one step of the stock pipeline at guidance 1."""
    p, seen = teacher.pipeline, list[tuple[Any, Any, Any]]()
    stock = stock_pipeline(
        p.unet, p.vae, p.text_encoder, p.tokenizer, one_step_scheduler(teacher, int(teacher.schedule.last))
    )
    stock.set_progress_bar_config(disable=True)
    hook = p.unet.register_forward_hook(lambda _, *call: seen.append(call), with_kwargs=True)
    try:
        with quiet():
            stock(
                [prompt],
                height=noise.shape[2] * p.vae_scale_factor,
                width=noise.shape[3] * p.vae_scale_factor,
                num_inference_steps=1,
                guidance_scale=1.0,
                latents=noise,
                output_type="latent",
            )
    finally:
        hook.remove()
    (given, named, answer) = seen[0]
    return given[1].reshape(1), named["encoder_hidden_states"], answer[0]


def _compare(what: str, ours: Tensor, stock: Tensor) -> None:
    if ours.shape != stock.shape:
        raise UserError(f"{what} has shape {tuple(ours.shape)}, the stock pipeline's {tuple(stock.shape)}")
    if not (bool(ours.isfinite().all()) and bool(stock.isfinite().all())):
        raise UserError(
            f"{what} has values that are not finite: its weights, or its scheduler's settings, make them so"
        )
    gap, most = (ours - stock).abs().max().item(), stock.abs().max().item()
    if not gap <= TOLERANCE * most:
        raise UserError(f"{what} differs from the stock pipeline's by {gap:.2g} where values go up to {most:.2g}")


def _several_vectors(tokenizer: Any) -> list[str]:
    """Tokens of a textual inversion that stand for several vectors: "<toy>" where there is "<toy>_1"."""
    added = tokenizer.get_added_vocab()
    return [token for token in added if f"{token}_1" in added]
