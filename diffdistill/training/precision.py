"""The precision to train in: bf16 is faster only where the processor computes it, and many laptops emulate it."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list


def resolve_precision(setting: str, cpu: bool = False) -> str:
    """The precision, "no" or "bf16", of a setting that may be "auto"; the same on every process.

    Args:
        setting: "no", "bf16" or "auto".
        cpu: train on the CPU even where there is a GPU.

    With "auto", the main process decides for all: bf16 where its device computes it faster than float32.
    """
    if setting != "auto":
        return setting
    state: Any = PartialState(cpu=on_cpu(cpu))
    choice = ["bf16" if state.is_main_process and _fast_bf16(state.device) else "no"]
    if state.num_processes > 1:
        broadcast_object_list(choice)
    return choice[0]


def on_cpu(cpu: bool = False) -> bool:
    """Whether training is on the CPU: by request, or without a GPU, or where the GPU lacks float64, as schedules use.

    accelerate joins processes on a CPU only if it gets this as an argument. Otherwise each would be the only one.
    """
    return cpu or torch.backends.mps.is_available() or not torch.accelerator.is_available()


@cache  # one answer a process, so that a second run in it finds the precision of the first
def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _matmul_seconds(torch.bfloat16) < 0.9 * _matmul_seconds(torch.float32)


def _matmul_seconds(dtype: torch.dtype, side: int = 256) -> float:
    """Best of three; emulated, as it is in AVX2, bf16 takes hundreds of times float32's time."""
    a = torch.ones(side, side, dtype=dtype)
    times = []
    for _ in range(4):  # the first is a warm-up
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return min(times[1:])
