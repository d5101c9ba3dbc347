"""Attention along the rows of all views of an object, beside a UNet's own self-attention: MV-Adapter's layers.

    (B V, L, C) --the UNet's self-attention, of each view alone-----------------------------> + --> (B V, L, C)
        `--own q, k, v--> (B rows, V columns, C): a row of all views --attention--> own out --'

Source: MV-Adapter (arXiv 2412.03632): the views are orthographic and of one elevation, so what one view shows in a row
the others show in the same row. The UNet's weights stay as they are. Names of parameters are those of its files.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError


class RowViews(nn.Module):
    """An attention processor of diffusers that adds attention along rows.

    Args:
        views: V; rows of the batch are objects, and within an object its views.
        width: C, of the layer.
        inner: the stock processor, which computes the UNet's own attention.
    """

    def __init__(self, views: int, width: int, inner: Any) -> None:
        super().__init__()
        self.views, self.inner = views, inner
        self.to_q_mv, self.to_k_mv, self.to_v_mv = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out_mv = nn.ModuleList([nn.Linear(width, width)])

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
            ValueError: there is a context or a mask, or the tokens are not those of square views.
        """
        side = math.isqrt(hidden_states.shape[1])
        if encoder_hidden_states is not None or attention_mask is not None or side**2 != hidden_states.shape[1]:
            raise ValueError("rows are attended in the self-attention of square views alone, without a mask")
        alone: Tensor = self.inner(attn, hidden_states, None, None, *args, **kwargs)

        def rows(x: Tensor) -> Tensor:  # (B V, rows columns, C) to (B rows, heads, V columns, d)
            parts = x.reshape(-1, self.views, side, side, x.shape[-1]).transpose(1, 2).flatten(0, 1).flatten(1, 2)
            return parts.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        q, k, v = (rows(layer(hidden_states)) for layer in (self.to_q_mv, self.to_k_mv, self.to_v_mv))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B rows, V columns, C)
        back = mixed.unflatten(1, (self.views, side)).unflatten(0, (-1, side)).transpose(1, 2)
        out: Tensor = self.to_out_mv[0](back.reshape(hidden_states.shape))
        return alone + out


def add_rows(unet: Any, views: int) -> int:
    """Give the self-attention of a UNet2DConditionModel rows of all views, which start as copies of its own layers.

    Args:
        unet: it keeps its weights; it must have stock processors.
        views: V.

    Returns:
        The number of layers that were changed.

    Raises:
        UserError: the network has no self-attention.
    """
    processors = dict(unet.attn_processors)
    names = [name for name in processors if name.endswith("attn1.processor")]
    if not names:
        raise UserError(f"this {type(unet).__name__} has no self-attention to which rows could be added")
    for name in names:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        made = RowViews(views, attention.to_q.in_features, processors[name]).to(attention.to_q.weight)
        for ours, own in (
            (made.to_q_mv, attention.to_q),
            (made.to_k_mv, attention.to_k),
            (made.to_v_mv, attention.to_v),
        ):
            ours.load_state_dict(own.state_dict())
        made.to_out_mv[0].load_state_dict(attention.to_out[0].state_dict())
        processors[name] = made.requires_grad_(False)
    unet.set_attn_processor(processors)
    return len(names)
