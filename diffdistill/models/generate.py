"""Images from a pipeline folder, stock or any-step. Each image has its own seed, so the batch size does not matter."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError, shown

from .any_step_pipeline import AnyStepModel, is_any_step, load_any_step
from .families import family_of
from .hub import open_pipeline
from .pipeline_folder import first_line, quiet
from .sampler_check import check_sampler
from .teacher import Teacher, load_teacher
from .text import text_list

Generator = Teacher | AnyStepModel


def load_generator(source: str | Path, steps: int | None = None) -> Generator:
    """Load the model that `generate` samples: a stock pipeline, or a model of two times.

    Args:
        source: folder or hub id.
        steps: number of steps that it will take, which is checked before gigabytes of weights are read.

    Raises:
        UserError: there is no such model, or its scheduler cannot take so many steps.
    """
    if not isinstance(source, str | Path):
        raise UserError(f"the model is {shown(source)}; it must be a folder or a hub id")
    if is_any_step(source):
        return load_any_step(source)
    files = open_pipeline(source)
    if steps is not None:
        family = family_of(files.index.get("_class_name"), files.source)
        scheduler, problem = files.load_scheduler()
        config = files.read_json(f"{family.network}/config.json")
        check_sampler(scheduler, problem, steps, *family.channels(config))
    return load_teacher(files)


def network_of(model: Generator) -> nn.Module:
    """The diffusers network that the model calls in a pass, a UNet or a transformer. It serves to count passes."""
    found: nn.Module = (model.network if isinstance(model, AnyStepModel) else model.backbone).inner
    return found


def sampler_settings(model: Generator, eta: float | None = None) -> dict[str, Any]:
    """The settings of sampling, beside steps and guidance, that images of the model depend on.

    These are the settings of its scheduler, or for a model of two times those that choose s.

    Args:
        model: the model.
        eta: eta, if the model is sampled with another one than its own.
    """
    asked = {} if eta is None else {"eta": eta}
    if isinstance(model, AnyStepModel):
        found = {"target_fraction": model.target_fraction, "one_step_target_fraction": model.one_step_target_fraction}
        if model.finest_steps is not None:
            found["finest_steps"] = model.finest_steps
        if model.eta:
            found["eta"] = model.eta
        return {"schedule": vars(model.schedule), **found, **asked}
    settings = {key: value for key, value in model.pipeline.scheduler.config.items() if not key.startswith("_")}
    return {**settings, **asked}


def check_steps(model: Generator, steps: int) -> None:
    """Raise UserError for a number of steps below 1, or one that the model's scheduler cannot take."""
    if not isinstance(model, AnyStepModel):
        channels = model.family.channels(model.backbone.inner.config)
        check_sampler(model.pipeline.scheduler, model.no_scheduler, steps, *channels)
    elif steps < 1:
        raise UserError(f"steps is {steps}; it must be 1 or more")


def check_guidance(guidance: float) -> None:
    """Raise UserError for a guidance scale of sampling that is below 1 or not finite.

    A stock pipeline takes such a scale for 1.
    """
    try:
        right = 1 <= guidance < math.inf
    except (TypeError, ValueError):  # a text, or several numbers
        right = False
    if not right:
        raise UserError(f"guidance is {shown(guidance)}; it must be a number from 1, which is unguided")


def check_eta(model: Generator, eta: float | None) -> None:
    """Raise UserError for an eta outside [0, 1], or for any eta where the pipeline's scheduler takes none."""
    if eta is None:
        return
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta:g}; it is a fraction of the ancestral sampler's noise, from 0 to 1")
    if not isinstance(model, AnyStepModel):
        scheduler = model.pipeline.scheduler
        if "eta" not in inspect.signature(scheduler.step).parameters:
            raise UserError(f"eta is {eta:g}, but this pipeline's {type(scheduler).__name__} takes none; leave it out")


@torch.no_grad()
def generate(
    model: str | Path | Generator,
    prompts: Iterable[str],
    steps: int,
    guidance: float,
    seed: int = 0,
    batch_size: int = 32,
    seeds: Iterable[int] | None = None,
    eta: float | None = None,
) -> Iterator[Tensor]:
    """Yield batches of images, (B, 3, H, W) in [0, 1], in the prompts' order.

    Image i starts from noise of `torch.Generator().manual_seed(seed + i)`, or of seed seeds[i] if seeds are given. This
    is what `DiffusionPipeline` does when it gets one generator per prompt. Noise that is added while sampling comes
    from the same generator.

    Args:
        model: a loaded model, a folder or a hub id.
        prompts: one prompt for each image.
        steps: number of sampling steps.
        guidance: guidance scale, from 1, which is unguided.
        seed: seed of the first image.
        batch_size: number of images in a batch.
        seeds: a seed for each image, in place of `seed`.
        eta: fraction of the ancestral sampler's noise, from 0 to 1. None for the model's own eta, which is 0 for a
            stock pipeline, and for an any-step model unless its model_index.json says otherwise.

    Raises:
        UserError: there is no pipeline of a supported family at `model`, its schedule has fewer times than `steps`, its
            scheduler does not take an eta, there are no prompts or other things than texts, or a number is out of its
            range. It is raised when the first batch is asked for.
    """
    texts, steps, batch_size = text_list(prompts), _whole("steps", steps, 1), _whole("batch_size", batch_size, 1)
    check_guidance(guidance)
    chosen = _seeds(seed, seeds, len(texts))
    if not isinstance(model, str | Path | Teacher | AnyStepModel):
        raise UserError(f"the model is {shown(model)}; it must be a folder, a hub id or what load_generator returns")
    loaded = load_generator(model, steps) if isinstance(model, str | Path) else model
    check_steps(loaded, steps)
    check_eta(loaded, eta)
    given: dict[str, Any] = {} if eta is None else {"eta": eta}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(loaded, AnyStepModel):
        loaded.to(device)
    else:
        if loaded.pipeline.device.type != device:  # because `to` takes milliseconds even if nothing moves
            loaded.pipeline.to(device)
        loaded.pipeline.set_progress_bar_config(disable=True)
        _, height, width = loaded.latent_shape
        given |= loaded.family.call_options(
            loaded.pipeline, *(loaded.latents.factor * side for side in (height, width))
        )
    for i in range(0, len(texts), batch_size):
        chunk, own = texts[i : i + batch_size], chosen[i : i + batch_size]
        if isinstance(loaded, AnyStepModel):
            yield loaded.pictures(chunk, own, steps, guidance, eta).float().cpu()
            continue
        generators = [torch.Generator().manual_seed(s) for s in own]
        asked = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generators, **given}
        whole = next(loaded.backbone.parameters()).dtype == torch.float32  # otherwise the autoencoder's dtype differs
        try:
            with quiet():  # it reports cut prompts for each batch; `report_cut` reports them once
                result = loaded.pipeline(chunk, output_type="pt" if whole else "latent", **asked).images
        except Exception as error:  # diffusers raises many kinds of error for a pipeline that cannot run
            raise UserError(f"the pipeline at {loaded.source} cannot draw images: {first_line(error)}") from error
        yield (result if whole else loaded.latents.images(result.float())).float().cpu()


def _seeds(seed: int, seeds: Iterable[int] | None, n: int) -> list[int]:
    """The seeds of n images."""
    first = _whole("seed", seed)
    found = list(range(first, first + n)) if seeds is None else [_whole("a seed", each) for each in seeds]
    if len(found) != n:
        raise UserError(f"there are {len(found)} seeds and {n} prompts; give one for each image")
    wrong = next((each for each in found if not -(2**63) <= each < 2**64), None)
    if wrong is not None:
        raise UserError(f"a seed is {wrong}; torch takes seeds from -2^63 to 2^64 - 1")
    return found


def _whole(name: str, value: Any, least: int | None = None) -> int:
    """The value as an int.

    Raises:
        UserError: it is no whole number, or it is less than `least`.
    """
    try:
        found = operator.index(value)
    except TypeError as error:
        raise UserError(f"{name} is {shown(value)}; it must be a whole number") from error
    if least is not None and found < least:
        raise UserError(f"{name} is {found}; it must be {least} or more")
    return found
