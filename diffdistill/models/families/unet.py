"""UNet2DConditionModel as a backbone, for Stable Diffusion and SDXL."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffdistill.diffusion.condition import Condition
from diffdistill.errors import UserError

from ..backbone import Backbone
from ..taps import hooked, stop_at


def call_unet(unet: Any, x_t: Tensor, time: Tensor, embeddings: Tensor, **more: Any) -> Tensor:
    """The output of a UNet2DConditionModel, called as the stock pipeline calls it at guidance 1.

    A UNet with `time_cond_proj_dim` (that of a latent consistency model, arXiv 2310.04378) gets the embedding of the
    guidance scale w = 0. Guidance is classifier-free guidance for such a network too: e_0 + s (e_c - e_0), with both
    passes at w = 0. The stock pipeline embeds w = s - 1 in a single pass instead, and so does `generate`.

    Args:
        unet: the UNet2DConditionModel.
        x_t: latents (B, C, h, w).
        time: (B,).
        embeddings: embeddings of prompts, (B, L, D).
        more: other arguments of the UNet, such as `class_labels`.
    """
    dim = getattr(getattr(unet, "config", None), "time_cond_proj_dim", None)  # a module in a test may have no config
    if dim is not None:
        more["timestep_cond"] = unguided(dim).to(x_t).expand(len(x_t), -1)
    value: Tensor = unet(x_t, time, encoder_hidden_states=embeddings, **more).sample
    return value


@lru_cache
def unguided(dim: int) -> Tensor:
    """The stock pipeline's embedding of guidance scale 1 (w = 0), of shape (1, dim)."""
    from diffusers import StableDiffusionPipeline

    with torch.inference_mode(False), torch.no_grad():
        make: Any = StableDiffusionPipeline.get_guidance_scale_embedding  # reads nothing from the pipeline
        value: Tensor = make(None, torch.zeros(1), embedding_dim=dim)
    return value


class UNetBackbone(Backbone):
    """A UNet2DConditionModel; the condition is the prompt embeddings (B, L, D).

    Its taps are down.0, down.1, ..., mid (if there is a middle block), up.0, up.1, ...
    """

    bottleneck = "mid"

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        if not isinstance(cond, Tensor):
            raise ValueError(f"the condition is a {type(cond).__name__}; this UNet takes prompt embeddings (B, L, D)")
        return call_unet(self.inner, self.in_own_dtype(x_t), time, self.in_own_dtype(cond))

    def taps(self) -> dict[str, nn.Module]:
        return unet_blocks(self.inner)

    def tap_channels(self, name: str) -> int:
        return unet_channels(self.inner.config.block_out_channels, name)


class ChangeEmbedding(nn.Module):
    """How an image was shifted and mirrored, (B, 3), as a summand of the time embedding.

    It has no biases, so an unchanged image, (0, 0, 0), adds zero, and so does any image at first.
    """

    def __init__(self, embedding: int, width: int = 64) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(3, width, bias=False)
        self.linear_2 = nn.Linear(width, embedding, bias=False)
        nn.init.zeros_(self.linear_2.weight)

    def forward(self, change: Tensor) -> Tensor:
        """(B, 3) to (B, D)."""
        value: Tensor = self.linear_2(nn.functional.silu(self.linear_1(change)))
        return value


class View(NamedTuple):
    """Noisy latents (B, C, h, w), their times (B,), a condition, and how the images were changed, (B, 3) or None."""

    x_t: Tensor
    time: Tensor
    cond: Tensor
    change: Tensor | None = None


class TextConditionedUNet(nn.Module):
    """A UNet2DConditionModel and its text encoder, trained together.

    Args:
        inner: the UNet.
        text_encoder: a CLIPTextModel.
        told_changes: whether it can be told how images were shifted and mirrored.

    Attributes:
        change: the embedding of these, or None. It is no part of the product.
    """

    def __init__(self, inner: Any, text_encoder: nn.Module, told_changes: bool = False) -> None:
        super().__init__()
        self.inner, self.text_encoder = inner, text_encoder
        self.change = ChangeEmbedding(inner.time_embedding.linear_2.out_features) if told_changes else None

    def encode(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) to embeddings (B, L, D)."""
        embeddings: Tensor = self.text_encoder(ids)[0]
        return embeddings

    def forward(
        self,
        x_t: Tensor,
        time: Tensor,
        cond: Tensor,
        change: Tensor | None = None,
        view: View | None = None,
        tap: str = "mid",
    ) -> Any:
        """Predict and, where a view is given, read its features as well.

        Args:
            x_t: noisy latents (B, C, H, W).
            time: (B,).
            cond: token ids (B, L), int64, or embeddings (B, L, D) from `encode`.
            change: how images were shifted and mirrored, (B, 3); None for not at all.
            view: other inputs, whose features are wanted.
            tap: where these features are read.

        Returns:
            The prediction (B, C, H, W); with `view`, also the features (B, D), averaged over positions.
        """
        with self._told(change):
            value = call_unet(self.inner, x_t, time, self._embeddings(cond))
        return value if view is None else (value, self.features(view, tap))

    def features(self, view: View, tap: str) -> Tensor:
        """The features (B, D) of a view at a tap, averaged over positions. The pass ends there."""
        with self._told(view.change):
            backbone = UNetBackbone(self.inner)
            return stop_at(backbone, tap, view.x_t, view.time, self._embeddings(view.cond)).mean((2, 3))

    def _embeddings(self, cond: Tensor) -> Tensor:
        return cond if cond.is_floating_point() else self.encode(cond)

    def _told(self, change: Tensor | None) -> AbstractContextManager[None]:
        """Within the block, the time embedding has that of the changes added."""
        if change is None or self.change is None:
            return nullcontext()
        added = self.change(change)
        return hooked(self.inner.time_embedding, lambda output: output + added.to(output.dtype))


def unet_blocks(unet: Any) -> dict[str, nn.Module]:
    """The blocks of a UNet2DConditionModel by name: down.0, ..., mid (if there is one), up.0, ..."""
    middle = {} if unet.mid_block is None else {"mid": unet.mid_block}
    return {
        **{f"down.{i}": block for i, block in enumerate(unet.down_blocks)},
        **middle,
        **{f"up.{i}": block for i, block in enumerate(unet.up_blocks)},
    }


def unet_channels(widths: Any, name: str) -> int:
    """C of the features of a UNet's block; `widths` are its `block_out_channels`."""
    side, _, number = name.partition(".")
    if side == "mid":
        return int(widths[-1])
    return int(widths[int(number)] if side == "down" else widths[-1 - int(number)])


def check_plain_unet(network: Any, what: str) -> Any:
    """Return the network if it is a UNet on prompt embeddings alone, as in Stable Diffusion 1.x and 2.x.

    Args:
        network: a diffusers network.
        what: what the caller wants to add to the network ("a second time"), for the message.

    Raises:
        UserError: it is another network.
    """
    config = getattr(network, "config", {})
    if not hasattr(network, "time_embedding") or config.get("addition_embed_type") is not None:
        of = "SDXL" if config.get("addition_embed_type") == "text_time" else "another family"
        raise UserError(f"{what} needs a UNet of Stable Diffusion 1.x or 2.x; this {type(network).__name__} is of {of}")
    return network


def sample_size(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of the latents that the stock pipeline draws by default, by the UNet's settings.

    Raises:
        ValueError: there is no size, or it is neither a whole number nor a pair (height, width).
    """
    size = config.sample_size
    pair = [size, size] if isinstance(size, int) else size
    if size is None:
        raise ValueError(
            "unet/config.json has no sample_size, so the size of its images is not known; "
            "set it to the height and width of a latent, such as [64, 64]"
        )
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
        raise ValueError(f"unet/config.json has sample_size {size!r}; it should be a whole number or a pair of them")
    return config.in_channels, pair[0], pair[1]
