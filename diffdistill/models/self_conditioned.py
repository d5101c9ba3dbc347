"""Self-conditioned networks as diffusers models: their folder says what they are, and `from_pretrained` loads them.

    SelfConditionedUNet    a UNet2DConditionModel, for Stable Diffusion and SDXL
    SelfConditionedSana    a SanaTransformer2DModel

A pipeline of such a network needs this package: its model_index.json names `diffdistill.models.self_conditioned`, which
has to be imported before diffusers loads it. All other weights have the names of the plain class.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin as ModelMixin  # diffusers looks it up here, to load a pipeline
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from diffdistill.errors import UserError

from .families.unet import unet_blocks, unet_channels
from .self_conditioning import Projection, SelfConditioning, conditioned, later_blocks

KEY = "self_conditioning"  # of the settings in config.json
MODULE = "self_conditioner"  # of the projection's weights


def _keys(plain: Any) -> set[str]:
    """The settings that a self-conditioned class reads from config.json: those of the plain one, and one more."""
    return set(inspect.signature(plain.__init__).parameters) | {KEY}


class SelfConditionedUNet(UNet2DConditionModel):
    """A UNet2DConditionModel whose later blocks are conditioned on its features at a tap.

    Its taps are down.0, down.1, ..., mid (if there is a middle block), up.0, up.1, ...

    Args:
        self_conditioning: `SelfConditioning` as a mapping.
        config: arguments of UNet2DConditionModel.
    """

    def __init__(self, self_conditioning: dict[str, Any] | None = None, **config: Any) -> None:
        super().__init__(**config)
        settings = _settings(self_conditioning)
        self.register_to_config(**{KEY: asdict(settings)})
        later_blocks(self.blocks(), settings.tap)
        self.self_conditioner = self.new_projection()

    @staticmethod
    def _get_init_keys(input_class: Any) -> set[str]:
        return _keys(UNet2DConditionModel)

    def blocks(self) -> dict[str, nn.Module]:
        """Its blocks by name, in the order they run in."""
        return unet_blocks(self)

    def new_projection(self) -> Projection:
        """A projection of its settings, at its start."""
        settings, embedding = _settings(self.config[KEY]), self.time_embedding.linear_2.out_features
        channels = unet_channels(self.config["block_out_channels"], str(settings.tap))
        return Projection(channels, settings.width, embedding, embedding)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As UNet2DConditionModel; the time embedding of the later blocks has the projection added."""
        blocks, tap = self.blocks(), self.config[KEY]["tap"]

        def added(output: Any, embedding: Tensor) -> Tensor:
            features: Tensor = output[0] if isinstance(output, tuple) else output
            value: Tensor = self.self_conditioner(features.mean((2, 3)), embedding)
            return value

        with conditioned(blocks[tap], later_blocks(blocks, tap), added, 1, "temb"):
            return super().forward(*args, **kwargs)


class SelfConditionedSana(SanaTransformer2DModel):
    """A SanaTransformer2DModel whose later blocks are conditioned on its features at a tap, block.0, block.1, ...

    The blocks take six modulations (B, 6 D) made of the time embedding; the projection is added to these.

    Args:
        self_conditioning: `SelfConditioning` as a mapping.
        config: arguments of SanaTransformer2DModel.
    """

    _supports_gradient_checkpointing = False

    def __init__(self, self_conditioning: dict[str, Any] | None = None, **config: Any) -> None:
        super().__init__(**config)
        settings = _settings(self_conditioning)
        self.register_to_config(**{KEY: asdict(settings)})
        later_blocks(self.blocks(), settings.tap)
        self.self_conditioner = self.new_projection()

    @staticmethod
    def _get_init_keys(input_class: Any) -> set[str]:
        return _keys(SanaTransformer2DModel)

    def blocks(self) -> dict[str, nn.Module]:
        """Its blocks by name, in the order they run in."""
        return {f"block.{i}": block for i, block in enumerate(self.transformer_blocks)}

    def enable_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """Raise UserError: blocks that are run again in the backward pass would lack the features."""
        raise UserError("training.gradient_checkpointing: a self-conditioned SANA cannot do it; set it to false")

    def new_projection(self) -> Projection:
        """A projection of its settings, at its start."""
        width = self.config["num_attention_heads"] * self.config["attention_head_dim"]
        return Projection(width, _settings(self.config[KEY]).width, 6 * width, 6 * width)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As SanaTransformer2DModel; the modulations of the later blocks have the projection added."""
        blocks, tap = self.blocks(), self.config[KEY]["tap"]

        def added(output: Any, modulations: Tensor) -> Tensor:
            value: Tensor = self.self_conditioner(output.mean(1), modulations)
            return value

        with conditioned(blocks[tap], later_blocks(blocks, tap), added, 4, "timestep"):
            return super().forward(*args, **kwargs)


# the self-conditioned class of each plain one
CLASSES: dict[str, Any] = {
    "UNet2DConditionModel": SelfConditionedUNet,
    "SanaTransformer2DModel": SelfConditionedSana,
}


def add_self_conditioning(network: Any, settings: SelfConditioning) -> Any:
    """A self-conditioned network with the weights of a plain one. At first both predict the same, to the bit.

    Args:
        network: a UNet2DConditionModel or a SanaTransformer2DModel. Its modules become those of the new network.
        settings: the tap and the projection's width.

    Raises:
        UserError: the network is of another class, has no such tap, or is self-conditioned already.
    """
    name = type(network).__name__
    if is_self_conditioned(network):
        raise UserError(f"the network is self-conditioned already, on its features at {network.config[KEY]['tap']}")
    if name not in CLASSES:
        raise UserError(f"self-conditioning is for {' and '.join(CLASSES)}; this network is a {name}")
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    with torch.device("meta"):
        made = CLASSES[name].from_config({**config, KEY: asdict(settings)})
    for held in ("_modules", "_parameters", "_buffers"):
        getattr(made, held).update(getattr(network, held))
    with torch.random.fork_rng(devices=[]):  # so that what is built after it is as it is beside a plain network
        made.self_conditioner = made.new_projection().to(next(network.parameters()))
    return made.train(network.training)


def is_self_conditioned(network: Any) -> bool:
    """Whether a diffusers network is conditioned on its own features."""
    return isinstance(network, tuple(CLASSES.values()))


def _settings(given: dict[str, Any] | None) -> SelfConditioning:
    try:
        return SelfConditioning(**(given or {}))
    except TypeError as error:
        raise UserError(f"{KEY} is {given!r}; it should have tap and width") from error
