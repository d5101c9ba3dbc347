"""The codec around SANA and DC-AE: sizes and adapters at real size, the step in closed form."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel
from small_codec import picture
from small_pretrained import SETTINGS, autoencoder, small_pretrained, transformer
from torch import nn

from diffdistill.codec.adapters import is_adapter
from diffdistill.codec.pretrained import SIGMA, TIME, PretrainedCodecNetwork
from diffdistill.codec.pretrained_saved import save_pretrained_codec
from diffdistill.codec.pretrained_settings import PretrainedSettings
from diffdistill.errors import UserError

QUALITY = torch.tensor([50.0])


def count(*modules: nn.Module) -> float:
    """Millions of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> PretrainedCodecNetwork:
    return small_pretrained(tmp_path_factory.mktemp("parts")).eval()


# ---- the real size -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> PretrainedCodecNetwork:
    """dc-ae-f32c32-sana-1.0 and Sana_600M_1024px by the settings in their config.json, without weights."""
    stages, scales = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, ((),) * 3 + ((5,),) * 3
    with torch.device("meta"):
        vae = AutoencoderDC(
            encoder_block_types=stages, decoder_block_types=stages, encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales, upsample_block_type="interpolate", downsample_block_type="Conv",
            scaling_factor=0.41407,
        )  # fmt: skip
        sana = SanaTransformer2DModel(
            num_attention_heads=36, attention_head_dim=32, num_layers=28, num_cross_attention_heads=16,
            cross_attention_head_dim=72, cross_attention_dim=1152,
        )  # fmt: skip
        sizes = count(vae.encoder), count(vae.decoder), count(sana)
        made = PretrainedCodecNetwork(vae, sana, PretrainedSettings()).to("meta")
    assert [round(size, 1) for size in sizes] == [153.0, 159.2, 591.7]
    return made


def test_sizes_beside_the_published_ones(real: PretrainedCodecNetwork) -> None:
    """Millions of parameters, as docs/codec.md has them: DiT-IC's first, and then what is another one here."""
    analysis = count(real.analysis) - count(real.analysis.auxiliary)
    heads = [count(head) for head in (real.mean, real.scale, real.condition, real.residual)]
    assert [analysis, *heads] == pytest.approx([3.02, 3.90, 3.70, 4.73, 3.07], abs=0.005)
    assert count(real.conditioner) == pytest.approx(11.4, abs=0.05)
    adapters = [
        sum(p.numel() for p in part.parameters() if p.requires_grad) / 1e6
        for part in (real.autoencoder, real.transformer)
    ]
    others = count(real.analysis.auxiliary), count(real.latent_codec)
    assert [*adapters, *others] == pytest.approx([7.4, 52.7, 2.4, 5.6], abs=0.05)


def test_adapters_are_on_the_named_layers_and_only_they_are_trained(real: PretrainedCodecNetwork) -> None:
    for part, rank in ((real.autoencoder, 32), (real.transformer, 64)):
        trained = {name for name, p in part.named_parameters() if p.requires_grad}
        assert trained == {name for name, _ in part.named_parameters() if is_adapter(name)}
        adapted = {name.split(".lora_")[0] for name in trained}
        for name, module in part.named_modules():
            last = name.removesuffix(".0").split(".")[-1]
            expected = isinstance(module, nn.Conv2d | nn.Linear) or hasattr(module, "base_layer")
            if part is real.autoencoder:
                expected &= name.startswith("decoder.") and last in {
                    "conv_in", "conv1", "conv2", "conv_inverted", "conv_point", "to_q", "to_k", "to_v", "to_out"
                }  # fmt: skip
            else:
                expected &= last in {"to_q", "to_k", "to_v", "to_out", "conv_inverted", "conv_point", "proj_out"}
            if ".lora_" not in name and not name.endswith(".base_layer"):
                assert (name in adapted) == bool(expected), name
        assert all(p.shape[0] == rank for name, p in part.named_parameters() if ".lora_A." in name)
    others = [m for name, m in real.named_children() if name not in ("autoencoder", "transformer")]
    assert all(p.requires_grad for module in others for p in module.parameters())


def test_shapes_at_real_size(real: PretrainedCodecNetwork) -> None:
    y, quality = real.encode(torch.empty(1, 3, 512, 768, device="meta")), torch.empty(1, device="meta")
    coded = real.latent_codec.hyper_latent(y, quality)
    images, x0 = real.decode_with_latent(y, quality, torch.empty_like(y))
    assert y.shape == (1, 320, 8, 12) and coded.shape == (1, 160, 2, 3)
    assert x0.shape == (1, 32, 16, 24) and images.shape == (1, 3, 512, 768)
    assert real.tokens(y).shape == (1, 77, 2304)


# ---- the step ----------------------------------------------------------------------------------------------------


def coded(network: PretrainedCodecNetwork) -> tuple[torch.Tensor, torch.Tensor]:
    found = network.latent_codec.rounded(network.encode(picture(256, 512)[None].float() / 255), QUALITY)
    return found.y, found.indexes


@torch.no_grad()
def test_a_step_of_zero_decodes_the_mean(network: PretrainedCodecNetwork) -> None:
    y, indexes = coded(network)
    with (
        mock.patch("diffdistill.codec.pretrained.released_step", torch.zeros_like),
        mock.patch.object(network.residual, "forward", lambda y: torch.zeros(1)),
    ):
        found, x0 = network.decode_with_latent(y, QUALITY, indexes)
    mean = network.mean(y)
    expected = network.autoencoder.decode(mean / 0.41407).sample / 2 + 0.5
    torch.testing.assert_close(x0, mean)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_the_step_of_each_element(network: PretrainedCodecNetwork) -> None:
    """x0 = mean - 0.9997 rho v + residual, with v of diffusers' own class at time 999, and rho = 0.55 at s = 1."""
    y, indexes = coded(network)
    v = network.transformer(network.mean(y), network.tokens(y), timestep=torch.tensor([999.0])).sample
    with mock.patch.object(network.scale, "forward", lambda x: torch.zeros(1, 4, 8, 16)):
        torch.testing.assert_close(network.step_sizes(indexes), torch.full((1, 4, 8, 16), 0.55))
        found = network.decode_with_latent(y, QUALITY, indexes)[1]
    torch.testing.assert_close(found, network.mean(y) - 0.9997 * 0.55 * v + network.residual(y))
    free = network.step_sizes(indexes)
    assert free.min() >= 0.4 and free.max() <= 1 and free.std() > 0


def test_the_step_is_that_of_the_scheduler() -> None:
    """One step of flow matching with SANA's shift of 3 begins at time 999 and at a noise of 0.9997."""
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [TIME]
    assert float(scheduler.sigmas[0]) == pytest.approx(SIGMA, abs=5e-5) and scheduler.sigmas[1] == 0


@torch.no_grad()
def test_the_step_of_one_time_inverts_the_straight_path(tmp_path: Path) -> None:
    """With the true flow eps - w at w_t = (1 - t) w + t eps, the step gives w."""
    made = small_pretrained(tmp_path, replace(SETTINGS, step="sample")).eval()
    made.time.data.zero_()  # t = 1/2
    w, eps, y = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.randn(1, 16, 4, 4)
    times = []

    def flow(x: torch.Tensor, time: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        times.append(time.tolist())
        return eps - w

    with (
        mock.patch.object(made, "flow", flow),
        mock.patch.object(made.mean, "forward", lambda y: (w + eps) / 2),
        mock.patch.object(made.residual, "forward", lambda y: torch.zeros(1)),
    ):
        torch.testing.assert_close(made.decode_with_latent(y, QUALITY, torch.zeros_like(y))[1], w)
    assert times == [[500.0]]


def test_a_predicted_variance_is_dropped() -> None:
    made = PretrainedCodecNetwork(autoencoder(), transformer(out_channels=8, timestep_scale=0.5), SETTINGS)
    x, tokens = torch.randn(2, 4, 8, 8), torch.randn(2, 9, 12)
    with torch.no_grad():
        expected = made.transformer(x, tokens, timestep=torch.full((2,), 100.0)).sample[:, :4]
        torch.testing.assert_close(made.flow(x, torch.full((2,), 200.0), tokens), expected)


def test_a_new_code_has_variance_one_and_a_new_residual_is_zero() -> None:
    torch.manual_seed(0)
    made = PretrainedCodecNetwork(autoencoder(), transformer(), SETTINGS)
    images = torch.stack([picture(256, 256, seed) for seed in range(4)]).float() / 255
    made.calibrate(images)
    with torch.no_grad():
        y = made.encode(images)
        z = made.latent_codec.hyper_latent(made.latent_codec.scaled(y, QUALITY), QUALITY.repeat(4))
        assert made.residual(y).abs().max() == 0
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(16), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=1e-3)
    assert float(z.square().mean().sqrt()) == pytest.approx(2.0, rel=0.1)


def test_training_sees_the_code_that_a_file_holds(network: PretrainedCodecNetwork) -> None:
    images = picture(256, 256)[None].float() / 255
    with torch.no_grad():
        seen = network(images, QUALITY, torch.zeros(1, 16, 4, 4), torch.zeros(1, 8, 1, 1))
        kept = network.latent_codec.rounded(network.encode(images), QUALITY)
        assert torch.equal(seen.y, kept.y)
        torch.testing.assert_close(seen.images, network.reconstruct(images, QUALITY)[0])
        expected = network.autoencoder.encode(2 * images - 1).latent * 0.41407
    torch.testing.assert_close(seen.target, expected)


# ---- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"step": "token"}, "step is 'token', but SANA's transformer takes one time per sample"),
        ({"channels": 30}, "channels is 30; it must be a multiple of 4"),
        ({"levels": 4}, "levels is 4"),
        ({"transformer_rank": -1}, "transformer_rank is -1"),
        ({"hyper": 0}, "its numbers must be whole"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        PretrainedSettings(**settings)


def test_networks_that_do_not_fit() -> None:
    wide = {"encoder_block_out_channels": (4,) * 5, "decoder_block_out_channels": (4,) * 5}
    with pytest.raises(UserError, match="the autoencoder is 16-fold; it must be 32-fold"):
        PretrainedCodecNetwork(autoencoder(**wide), transformer(), SETTINGS)
    with pytest.raises(UserError, match="takes 8 channels and the autoencoder makes 4"):
        PretrainedCodecNetwork(autoencoder(), transformer(in_channels=8), SETTINGS)
    with pytest.raises(UserError, match="SANA-Sprint"):
        PretrainedCodecNetwork(autoencoder(), transformer(guidance_embeds=True), SETTINGS)
    made = PretrainedCodecNetwork(autoencoder(), transformer(), SETTINGS)
    with pytest.raises(UserError, match="save the codec whole"):
        save_pretrained_codec(made, Path("nowhere"))
