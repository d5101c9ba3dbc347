"""Which attention kernel a diffusers network runs, chosen by name and checked afterwards."""

from __future__ import annotations

from typing import Any

from diffdistill.errors import UserError

BACKENDS = ("auto", "sdpa", "math", "xformers")


def set_attention(network: Any, backend: str = "auto", device_type: str = "cpu") -> str:
    """Switch a UNet's attention; returns the backend that is now in use.

    Args:
        network: a diffusers UNet.
        backend: "sdpa" (PyTorch's fused kernel), "math" (explicit softmax(QK^T)V: its backward pass is faster on CPUs
            at a few dozen tokens), "xformers" (GPU only), or "auto": math on a CPU, else sdpa.
        device_type: "cpu" or "cuda".

    Raises:
        UserError: unknown name, xformers absent or without a GPU, or a switch that changed nothing.
    """
    from diffusers.models import attention_processor as ap

    if backend not in BACKENDS:
        raise UserError(f"attention is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = "math" if device_type == "cpu" else "sdpa"
    if backend == "xformers":
        if device_type != "cuda":
            raise UserError("attention xformers needs a CUDA GPU; use sdpa here")
        try:
            network.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError) as error:
            raise UserError(f"xformers is not usable ({error}); pip install 'diffdistill[xformers]'") from error
        wanted = "XFormersAttnProcessor"
    else:
        processor = ap.AttnProcessor2_0() if backend == "sdpa" else ap.AttnProcessor()
        network.set_attn_processor(processor)
        wanted = type(processor).__name__
    processors = {type(p).__name__ for p in network.attn_processors.values()}
    if processors - {wanted}:
        raise UserError(f"attention {backend} was asked for, but the network runs {', '.join(sorted(processors))}")
    return backend
