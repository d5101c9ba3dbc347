"""The attention kernel that a diffusers network runs: it is chosen by name and checked afterwards.

diffusers has two ways to choose a kernel: to replace the attention processors, and `set_attention_backend`. Each of
them silently skips networks that it does not support. So the kernel that a network ends up with is read back, and an
error is raised if it is not the one that was asked for.
"""

from __future__ import annotations

from typing import Any

from diffdistill.errors import UserError

BACKENDS = ("auto", "sdpa", "math", "xformers")
PLAIN = {"AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor"}  # softmax attention; they can replace each other
NAMED = {"sdpa": "native", "math": "_native_math", "xformers": "xformers"}  # names of `set_attention_backend`


def set_attention(network: Any, backend: str = "auto", device_type: str = "cpu") -> str:
    """Switch the attention of a network.

    Args:
        network: a diffusers model (`Backbone.inner`).
        backend: "sdpa" (PyTorch's fused kernel), "math" (explicit softmax(QK^T)V, whose backward pass is faster on CPUs
            at a few dozen tokens), "xformers" (GPU only), or "auto", which is math on a CPU and sdpa elsewhere. A
            network with attention of its own kind (SANA's is linear) keeps it under "auto".
        device_type: "cpu" or "cuda".

    Returns:
        The backend that is now in use; "own" for a network with attention of its own kind.

    Raises:
        UserError: the name is unknown, xformers is not installed or there is no GPU, the attention of the network
            cannot be switched, or the switch changed nothing.
    """
    if backend not in BACKENDS:
        raise UserError(f"attention is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    if backend == "xformers" and device_type != "cuda":
        raise UserError("attention xformers needs a CUDA GPU; use sdpa here")
    chosen = backend if backend != "auto" else "math" if device_type == "cpu" else "sdpa"
    processors = list(network.attn_processors.values())
    if {type(p).__name__ for p in processors} <= PLAIN:
        return _replace_processors(network, chosen)
    if all(hasattr(p, "_attention_backend") for p in processors):
        return _set_backend(network, chosen)
    if backend == "auto":
        return "own"
    own = ", ".join(sorted({type(p).__name__ for p in processors} - PLAIN))
    raise UserError(f"attention {backend}: {type(network).__name__} has attention of its own ({own}); set it to auto")


def _replace_processors(network: Any, backend: str) -> str:
    """Switch a network with plain attention."""
    from diffusers.models import attention_processor as ap

    if backend == "xformers":
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


def _set_backend(network: Any, backend: str) -> str:
    """Switch a network whose processors take a backend by name."""
    try:
        network.set_attention_backend(NAMED[backend])
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"attention {backend} is not usable with {type(network).__name__}: {error}") from error
    found = {
        str(getattr(p._attention_backend, "value", p._attention_backend)) for p in network.attn_processors.values()
    }
    if found != {NAMED[backend]}:
        raise UserError(f"attention {backend} was asked for, but the network runs {', '.join(sorted(found))}")
    return backend
