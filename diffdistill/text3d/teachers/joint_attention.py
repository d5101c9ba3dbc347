"""Self-attention over all views of an object: the one change of MVDream to a UNet of Stable Diffusion.

    (B V, L, C) --joined--> (B, V L, C) --stock attention--> (B, V L, C) --> (B V, L, C)

Source: MVDream (arXiv 2308.16512), section 3.1 ("3D self-attention"). It has no parameters of its own. Attention to the
prompt, and all convolutions, are those of a single view.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffdistill.errors import UserError


class JointViews:
    """An attention processor of diffusers that joins the views of an object.

    Args:
        views: V; rows of the batch are objects, and within an object its views.
        inner: the stock processor, which computes the attention.
    """

    def __init__(self, views: int, inner: Any) -> None:
        self.views, self.inner = views, inner

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Attend; arguments are those of diffusers' processors.

        Raises:
            ValueError: there is a context or a mask, or tokens are no sequence.
        """
        if encoder_hidden_states is not None or attention_mask is not None or hidden_states.dim() != 3:
            raise ValueError("views are joined in the self-attention of sequences alone, without a mask")
        joined = hidden_states.unflatten(0, (-1, self.views)).flatten(1, 2)
        found: Tensor = self.inner(attn, joined, None, None, *args, **kwargs)
        return found.reshape(hidden_states.shape)


def join_views(unet: Any, views: int) -> int:
    """Let the self-attention of a UNet2DConditionModel see all views of an object.

    Args:
        unet: it keeps its weights, and the kernels that its processors run; it must not be joined already.
        views: V.

    Returns:
        The number of layers that were changed.

    Raises:
        UserError: the network has no self-attention, or its views are joined already.
    """
    processors = dict(unet.attn_processors)
    names = [name for name in processors if name.endswith("attn1.processor")]
    if not names:
        raise UserError(f"this {type(unet).__name__} has no self-attention in which views could be joined")
    if any(isinstance(processors[name], JointViews) for name in names):
        raise UserError("the views of this network are joined already")
    for name in names:
        processors[name] = JointViews(views, processors[name])
    unet.set_attn_processor(processors)
    return len(names)
