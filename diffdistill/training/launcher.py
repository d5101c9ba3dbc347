"""What `accelerate config`, `accelerate launch` and the environment set for a run, compared with its own settings.

All of it arrives as environment variables, and accelerate lets some of them override what a program asks for. Here each
is read before the accelerator is made. The accelerator is then given every one of these choices explicitly.

    variable                               where it differs from `training`
    ACCELERATE_MIXED_PRECISION             bf16 decides an "auto", and is refused with a "no". fp16, fp8: refused.
                                           no, the launcher's default too: the setting holds, and a line says so
    ACCELERATE_GRADIENT_ACCUMULATION_STEPS the setting holds, and a line says so: it changes memory, no number
    ACCELERATE_GRADIENT_CLIPPING           refused, unless it is training.max_grad_norm
    ACCELERATE_USE_CPU                     true: training is on the CPU
    ACCELERATE_TORCH_DEVICE                cpu: likewise. Another device than training's, or one for several: refused
    ACCELERATE_DYNAMO_BACKEND              refused: training compiles nothing
    ACCELERATE_FP8_BACKEND                 refused: accelerate wraps networks for it in every mixed precision
    ACCELERATE_USE_DEEPSPEED, _FSDP, _MEGATRON_LM, _PARALLELISM_CONFIG, _SAGEMAKER
                                           refused: training runs on one process, or on several by data parallelism,
                                           torch's DistributedDataParallel

The other variables (ACCELERATE_DYNAMO_MODE, ACCELERATE_FP8_FORMAT, FSDP_* ...) are details of one of these, and do
nothing without it.
"""

from __future__ import annotations

import gc
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    str_to_bool,
)
from torch import nn

from diffdistill.errors import UserError
from diffdistill.launched import rank_and_processes

from .precision import on_cpu
from .settings import TrainingSettings

# what training does not run under, and why
STRATEGIES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed, whose engine has one optimizer, where a method has one for each network",
    "ACCELERATE_USE_FSDP": "FSDP, whose sharded weights the moving average and the checkpoints cannot read",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM, which builds its own networks",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config, which shards weights",
}
# these change no number, but accelerate raises an error at a misspelling
_FLAGS = ("ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY")


@dataclass(frozen=True)
class Launch:
    """What training takes from the launcher.

    Args:
        mixed_precision: of training: "no", "bf16" or "auto".
        cpu: whether training is on the CPU.
        remarks: lines for the user on what the launcher set and training does not follow.
    """

    mixed_precision: str
    cpu: bool
    remarks: tuple[str, ...] = ()


def read_launch(
    settings: TrainingSettings, environment: Mapping[str, str] = os.environ, stored_precision: str | None = None
) -> Launch:
    """Compare what the launcher set with the run's settings.

    Args:
        settings: the run's.
        environment: the variables that the launcher set.
        stored_precision: the precision of the checkpoint that the run continues from, which takes the setting's place.

    Raises:
        UserError: the launcher contradicts the settings, or asks for what training does not do.
    """
    for variable, name in STRATEGIES.items():
        if _flag(environment, variable):
            raise UserError(
                f"{variable} is {environment[variable]}: training does not run under {name}; unset it and "
                "train on several processes by data parallelism (DDP): torchrun --standalone --nproc_per_node N"
            )
    if _flag(environment, "ACCELERATE_USE_SAGEMAKER"):
        kind = environment.get("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "")
        if kind != "NO":
            raise UserError(
                f"ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE is {kind or 'not set'}: training does not run under "
                "SageMaker's own data or model parallelism; it should be NO"
            )
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").strip()
    if backend.lower() not in ("", "no"):
        raise UserError(
            f"ACCELERATE_DYNAMO_BACKEND is {backend}: training compiles no network; launch with --dynamo_backend no"
        )
    if (backend := environment.get("ACCELERATE_FP8_BACKEND", "").strip()).lower() not in ("", "no"):
        raise UserError(f"ACCELERATE_FP8_BACKEND is {backend}: training does not compute in fp8; unset it")
    for variable in _FLAGS:
        _flag(environment, variable)
    _check_clipping(settings, environment)
    precision, said = _precision(settings, environment, stored_precision)
    remarks = (said, _accumulation(settings, environment))
    return Launch(precision, _cpu(settings, environment), tuple(filter(None, remarks)))


def make_accelerator(precision: str, cpu: bool) -> Accelerator:
    """The accelerator of a run. It takes nothing from the environment that `read_launch` has read.

    The loop makes micro-batches itself, so accelerate must not divide a loss: it is given one accumulation step, as a
    plugin, because the environment overrides the plain argument.

    Args:
        precision: "no" or "bf16".
        cpu: train on the CPU even where there is a GPU.

    Raises:
        UserError: accelerate refuses, for example because this process already has an accelerator of another
            precision; or accelerate has not joined the processes that were launched.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=on_cpu(cpu),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_plugin=TorchDynamoPlugin(
                backend="no",  # type: ignore[arg-type]
                mode="default",
                fullgraph=False,
                dynamic=False,
                use_regional_compilation=False,
            ),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as error:
        raise UserError(f"training.mixed_precision {precision}: {error}") from error
    if (launched := rank_and_processes()[1]) != accelerator.num_processes:
        raise UserError(
            f"{launched} processes were launched, but this one trains as one of {accelerator.num_processes}; "
            "launch with torchrun --standalone --nproc_per_node N"
        )
    return accelerator


def data_parallel(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    """The network as several processes train it: a wrapper that averages gradients, or on one process itself."""
    with warnings.catch_warnings():
        # accelerate has no setting yet for the name that torch gives broadcast_buffers from 2.14 on
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return accelerator.prepare_model(network)


def leave_processes(accelerator: Accelerator) -> None:
    """End the process group in order. At the interpreter's exit its threads abort a process now and then.

    Nothing may refer to a data-parallel wrapper any more, since wrappers hold the group.
    """
    if accelerator.num_processes > 1:
        accelerator.free_memory()
        gc.collect()
        accelerator.end_training()


def _precision(settings: TrainingSettings, environment: Mapping[str, str], stored: str | None) -> tuple[str, str]:
    """The precision of training, "auto" where the device decides; and a remark, "" for none."""
    ours, given = stored or settings.mixed_precision, environment.get("ACCELERATE_MIXED_PRECISION", "").strip().lower()
    where = "the checkpoint's precision" if stored else "training.mixed_precision"
    if given in ("", ours):
        return ours, ""
    if given == "no":
        if ours == "auto":
            return ours, ""
        return ours, f"mixed precision is {ours}, {where}; the launcher's is no, which is its default too"
    if given == "bf16" and ours == "auto":
        return "bf16", ""
    if given == "bf16":
        other = "launch with --mixed_precision no" + ("" if stored else ", or add --training.mixed_precision bf16")
        raise UserError(f"ACCELERATE_MIXED_PRECISION, the launcher's, is bf16, {where} is {ours}; {other}")
    raise UserError(
        f"ACCELERATE_MIXED_PRECISION, the launcher's, is {given}, which training does not do; "
        "launch with --mixed_precision no or bf16"
    )


def _accumulation(settings: TrainingSettings, environment: Mapping[str, str]) -> str:
    variable, ours = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", settings.gradient_accumulation_steps
    given = environment.get(variable, "").strip()
    if given in ("", "auto"):
        return ""
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"{variable} is {given!r}; it should be a whole number from 1 up")
    if int(given) == ours:
        return ""
    return (
        f"{variable} {given} is not used: training.gradient_accumulation_steps is {ours}. "
        f"A step is {settings.batch_size} samples either way, so the numbers are the same"
    )


def _check_clipping(settings: TrainingSettings, environment: Mapping[str, str]) -> None:
    variable, ours = "ACCELERATE_GRADIENT_CLIPPING", settings.max_grad_norm
    given = environment.get(variable, "").strip().lower()
    if given in ("", "auto"):
        return
    try:
        limit = math.inf if given == "none" else float(given)
    except ValueError as error:
        raise UserError(f"{variable} is {given!r}; it should be a number, or none") from error
    if limit != ours:
        raise UserError(
            f"{variable} is {given}, training.max_grad_norm is {ours:g}; set them equal, or unset the variable"
        )


def _cpu(settings: TrainingSettings, environment: Mapping[str, str]) -> bool:
    cpu = _flag(environment, "ACCELERATE_USE_CPU") or settings.cpu
    given = environment.get("ACCELERATE_TORCH_DEVICE")
    if given is None:
        return cpu
    present = torch.accelerator.current_accelerator() if not on_cpu(cpu) else torch.device("cpu")
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise UserError(f"ACCELERATE_TORCH_DEVICE is {given!r}, which is no device; unset it") from error
    if device.type == "cpu":
        return True
    if present is None or device.type != present.type:
        there = "cpu" if present is None else present.type
        raise UserError(f"ACCELERATE_TORCH_DEVICE is {given}, training is on {there}; unset it")
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"ACCELERATE_TORCH_DEVICE is {given} for all processes, each needs its own device; unset it")
    return cpu


def _flag(environment: Mapping[str, str], variable: str) -> bool:
    value = environment.get(variable, "").strip()
    try:
        return bool(str_to_bool(value)) if value else False
    except ValueError as error:
        raise UserError(f"{variable} is {value!r}; it should be true or false") from error
