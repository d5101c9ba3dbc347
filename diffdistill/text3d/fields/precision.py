"""Parts that run in float32 under autocast: in half precision, surfaces and styles would move."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(near: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of a tensor; on the meta device, which knows none, nothing.

    >>> with torch.autocast("cpu", torch.bfloat16), full_precision(torch.ones(1)):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    kind = near.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
