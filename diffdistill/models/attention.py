"""Which attention kernel a diffusers network runs, chosen by name and checked afterwards.

diffusers has two ways to choose, and each passes in silence over networks that it does not reach: processors that are
replaced, and `set_attention_backend`. What a network ends up with is read back, and anything else than what was asked
for is refused.
"""

from __future__ import annotations

from typing import Any

from diffdistill.errors import UserError

BACKENDS = ("auto", "sdpa", "math", "xformers")
PLAIN = {"AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor"}  # softmax attention, one for the other
NAMED = {"sdpa": "native", "math": "_native_math", "xformers": "xformers"}  # as `set_attention_backend` calls them


def set_attention(network: Any, backend: str = "auto", device_type: str = "cpu") -> str:
    """Switch a network's attention; returns the backend that is now in use, "own" for one that has no other.

    Args:
        network: a diffusers model (`Backbone.inner`).
        backend: "sdpa" (PyTorch's fused kernel), "math" (explicit softmax(QK^T)V: its backward pass is faster on CPUs
            at a few dozen tokens), "xformers" (GPU only), or "auto": math on a CPU, else sdpa. A network whose
            attention is of a kind of its own (SANA's is linear) keeps it under "auto".
        device_type: "cpu" or "cuda".

    Raises:
        UserError: an unknown name, xformers absent or without a GPU, a network whose attention cannot be switched, or a
            switch that changed nothing.
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
    """Of a network whose attention is plain."""
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
    """Of a network whose processors take a backend by name."""
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
