"""Images from a pipeline folder, stock or any-step; each image has its own seed, so batches do not matter."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError

from .any_step_pipeline import AnyStepModel, is_any_step, load_any_step
from .families import family_of
from .hub import open_pipeline
from .pipeline_folder import first_line, quiet
from .sampler_check import check_sampler
from .teacher import Teacher, load_teacher

Generator = Teacher | AnyStepModel


def load_generator(source: str, steps: int | None = None) -> Generator:
    """What `generate` takes from a folder or hub id: a stock pipeline, or a model of two times.

    Args:
        source: folder or hub id.
        steps: what is to be asked of it, checked before gigabytes of weights are read.

    Raises:
        UserError: neither is there, or its scheduler cannot take so many steps.
    """
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
    """The diffusers network that a pass of the model calls, a UNet or a transformer, to count passes by."""
    found: nn.Module = (model.network if isinstance(model, AnyStepModel) else model.backbone).inner
    return found


def sampler_settings(model: Generator, eta: float | None = None) -> dict[str, Any]:
    """What its images depend on beside weights, steps and guidance: a scheduler's settings, or how s is chosen.

    Args:
        eta: what the model is sampled with where its own is not.
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
    """Raise UserError for fewer than one step, or a number that its scheduler cannot take."""
    if not isinstance(model, AnyStepModel):
        channels = model.family.channels(model.backbone.inner.config)
        check_sampler(model.pipeline.scheduler, model.no_scheduler, steps, *channels)
    elif steps < 1:
        raise UserError(f"steps is {steps}; it must be 1 or more")


def check_eta(model: Generator, eta: float | None) -> None:
    """Raise UserError for an eta outside [0, 1], or one for a stock pipeline whose scheduler takes none."""
    if eta is None:
        return
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta:g}; it is a share of the ancestral sampler's noise, from 0 to 1")
    if not isinstance(model, AnyStepModel):
        scheduler = model.pipeline.scheduler
        if "eta" not in inspect.signature(scheduler.step).parameters:
            raise UserError(f"eta is {eta:g}, and this pipeline's {type(scheduler).__name__} takes none; leave it out")


@torch.no_grad()
def generate(
    model: str | Generator,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    seed: int = 0,
    batch_size: int = 32,
    seeds: Sequence[int] | None = None,
    eta: float | None = None,
) -> Iterator[Tensor]:
    """Yield batches of images, (B, 3, H, W) in [0, 1], in the prompts' order.

    Image i starts from `torch.Generator().manual_seed(seed + i)`, or from seeds[i] where they are given, as
    `DiffusionPipeline` does when it is given one generator a prompt. Noise added while sampling comes from the same
    generator.

    Args:
        eta: share of the ancestral sampler's noise, from 0 to 1; None for the model's own, which is 0 in a stock
            pipeline, and in an any-step one unless its model_index.json says otherwise.

    Raises:
        UserError: no pipeline of a supported family at `model`, more steps than its schedule has times, or an eta that
            its scheduler does not take.
    """
    loaded = load_generator(model, steps) if isinstance(model, str) else model
    check_steps(loaded, steps)
    check_eta(loaded, eta)
    given: dict[str, Any] = {} if eta is None else {"eta": eta}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(loaded, AnyStepModel):
        loaded.to(device)
    else:
        if loaded.pipeline.device.type != device:  # asking costs milliseconds even where nothing moves
            loaded.pipeline.to(device)
        loaded.pipeline.set_progress_bar_config(disable=True)
        _, height, width = loaded.latent_shape
        given |= loaded.family.call_options(
            loaded.pipeline, *(loaded.latents.factor * side for side in (height, width))
        )
    for i in range(0, len(prompts), batch_size):
        chunk = list(prompts[i : i + batch_size])
        chosen = range(seed + i, seed + i + len(chunk)) if seeds is None else seeds[i : i + len(chunk)]
        if isinstance(loaded, AnyStepModel):
            yield loaded.pictures(chunk, chosen, steps, guidance, eta).float().cpu()
            continue
        generators = [torch.Generator().manual_seed(s) for s in chosen]
        asked = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generators, **given}
        whole = next(loaded.backbone.parameters()).dtype == torch.float32  # else its autoencoder has another dtype
        try:
            with quiet():  # it says of each batch which prompts it cuts: `report_cut` says that once
                result = loaded.pipeline(chunk, output_type="pt" if whole else "latent", **asked).images
        except Exception as error:  # a pipeline that loads and cannot be run: whatever diffusers raises about it
            raise UserError(f"the pipeline at {loaded.source} cannot draw: {first_line(error)}") from error
        yield (result if whole else loaded.latents.images(result.float())).float().cpu()
