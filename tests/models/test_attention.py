"""Attention backends compute the same, are really switched to, and say why where they cannot be."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_pipeline import save_tiny_pipeline

from diffdistill.errors import UserError
from diffdistill.models.attention import set_attention


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("attention") / "pipeline") / "unet"


@pytest.fixture
def unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder)


def in_use(unet: UNet2DConditionModel) -> set[str]:
    return {type(processor).__name__ for processor in unet.attn_processors.values()}


def test_math_and_sdpa_agree_in_value_and_gradient(unet: UNet2DConditionModel) -> None:
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(3, 4, 4, 4, generator=generator), torch.randn(3, 8, 16, generator=generator)
    values, gradients = {}, {}
    for backend in ("math", "sdpa"):
        assert set_attention(unet, backend) == backend
        x.requires_grad_().grad = None
        values[backend] = unet(x, torch.tensor([5, 400, 900]), encoder_hidden_states=text).sample
        values[backend].square().sum().backward()
        gradients[backend] = x.grad
    torch.testing.assert_close(values["math"], values["sdpa"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients["math"], gradients["sdpa"], rtol=1e-4, atol=1e-4)
    # attention has a say in the value, or the two would agree for want of it
    other = unet(x, torch.tensor([5, 400, 900]), encoder_hidden_states=text.flip(0)).sample
    assert (other - values["sdpa"]).abs().max() > 1e-3


def test_every_processor_is_changed(unet: UNet2DConditionModel) -> None:
    assert in_use(unet) == {"AttnProcessor2_0"}  # diffusers' own choice
    assert set_attention(unet, "auto", "cpu") == "math" and in_use(unet) == {"AttnProcessor"}
    assert set_attention(unet, "auto", "cuda") == "sdpa" and in_use(unet) == {"AttnProcessor2_0"}


def test_an_unknown_name_is_refused_and_changes_nothing(unet: UNet2DConditionModel) -> None:
    with pytest.raises(UserError, match="attention is 'flash'; it must be one of auto, sdpa, math, xformers"):
        set_attention(unet, "flash")
    assert in_use(unet) == {"AttnProcessor2_0"}


def test_xformers_is_refused_on_a_cpu(unet: UNet2DConditionModel) -> None:
    with pytest.raises(UserError, match="xformers needs a CUDA GPU"):
        set_attention(unet, "xformers", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it may be usable")
def test_xformers_that_cannot_run_names_the_extra(unet: UNet2DConditionModel) -> None:
    with pytest.raises(UserError, match=r"not usable \(.*diffdistill\[xformers\]"):
        set_attention(unet, "xformers", "cuda")


def test_a_switch_without_effect_is_an_error(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "set_attn_processor", lambda processor: None)
    with pytest.raises(UserError, match="math was asked for, but the network runs AttnProcessor2_0"):
        set_attention(unet, "math")


def test_a_network_whose_processors_take_a_backend_by_name_is_really_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import FluxTransformer2DModel

    network = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    for backend, name in (("math", "_native_math"), ("sdpa", "native")):
        assert set_attention(network, backend) == backend
        assert {str(p._attention_backend.value) for p in network.attn_processors.values()} == {name}
    assert set_attention(network, "auto", "cpu") == "math"
    monkeypatch.setattr(type(network), "set_attention_backend", lambda self, name: None)  # a silent one
    with pytest.raises(UserError, match="attention sdpa was asked for, but the network runs _native_math"):
        set_attention(network, "sdpa")
