"""The autoencoder's start and its export keep what they promise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from made import made
from PIL import Image

from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods.autoencoder import (
    Autoencoder,
    ReconstructionNetwork,
    fold_latent_statistics,
    start_near_linear,
)
from diffdistill.models.export import halve
from diffdistill.models.narrow_autoencoder import narrow_autoencoder

EMOJI = Path(__file__).parents[2] / "assets" / "emoji"


def small_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        latent_channels=4, block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=1, scaling_factor=1.0,
    )  # fmt: skip


@torch.no_grad()
def test_residual_branches_start_silent_and_the_posterior_nearly_noise_free() -> None:
    vae = small_vae()
    start_near_linear(vae)
    x = torch.randn(2, 8, 16, 16)
    assert torch.equal(vae.encoder.down_blocks[0].resnets[0](x, None), x)
    rows = vae.encoder.down_blocks[0].downsamplers[0].conv.weight.flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(8), atol=1e-5)
    assert vae.encode(torch.rand(2, 3, 16, 16)).latent_dist.std.max() < 0.1


@torch.no_grad()
def test_folded_statistics_leave_the_reconstruction_alone() -> None:
    vae, images = small_vae(), torch.randint(0, 256, (96, 3, 16, 16), dtype=torch.uint8)
    x = images.float() / 127.5 - 1.0
    before = vae.encode(x).latent_dist
    mean, std, reconstruction = before.mode(), before.std, vae.decode(before.mode()).sample
    fold_latent_statistics(vae, images)
    after = vae.encode(x).latent_dist
    z = after.mode()
    assert z.mean((0, 2, 3)).abs().max() < 1e-3 and abs(z.var() - 1) < 1e-3
    assert torch.allclose(vae.decode(z).sample, reconstruction, atol=1e-4)
    assert torch.allclose(after.std / std, (z.std() / (mean - mean.mean((0, 2, 3), keepdim=True)).std()), rtol=1e-2)


def test_halved_weights_load_as_float32_close_to_the_original(tmp_path: Path) -> None:
    vae = small_vae()
    vae.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    size = file.stat().st_size
    halve(tmp_path)
    assert file.stat().st_size < 0.6 * size
    for a, b in zip(vae.parameters(), AutoencoderKL.from_pretrained(tmp_path / "vae").parameters(), strict=True):
        assert b.dtype == torch.float32 and (a - b).abs().max() <= a.abs().max() / 2048


@torch.no_grad()
def test_a_narrowed_autoencoder_draws_the_projected_latent() -> None:
    vae, images = small_vae(), torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8)
    fold_latent_statistics(vae, images)
    vae.post_quant_conv.bias.zero_()  # with it, zero padding would meet another bias at the border
    x = images.float() / 127.5 - 1.0
    z = vae.encode(x).latent_dist.mode()
    narrow = narrow_autoencoder(vae, 3, images)
    assert narrow.config.latent_channels == 3
    flat = z.permute(1, 0, 2, 3).flatten(1)
    basis = torch.linalg.eigh(torch.cov(flat)).eigenvectors[:, 1:]
    projected = torch.einsum("ij,bjhw->bihw", basis @ basis.T, z)
    mine = narrow.encode(x).latent_dist.mode()
    assert torch.allclose(mine.var((0, 2, 3)), torch.linalg.eigvalsh(torch.cov(flat)).flip(0)[:3], rtol=1e-3)
    assert torch.allclose(narrow.decode(mine).sample, vae.decode(projected).sample, atol=1e-3)
    with pytest.raises(UserError, match="has 4"):
        narrow_autoencoder(vae, 5, images)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"train_encoder": False}, "init_from"),
        ({"crop": 60}, "multiple of 8"),
        ({"crop": 128}, "at most 64"),
        ({"permute_colours": 1.5}, "permute_colours"),
        ({"latent_noise": -0.1}, "latent_noise"),
    ],
)
def test_inputs_that_cannot_be_are_refused_at_once(bad: dict, what: str) -> None:
    with pytest.raises(UserError, match=what):
        made(Autoencoder, data__source=str(EMOJI), block_out_channels=(8, 8, 8, 8), latent_channels=4, **bad)


def test_with_the_encoder_kept_only_the_decoder_learns_and_noise_is_on_the_latent() -> None:
    network = ReconstructionNetwork(small_vae(), train_encoder=False)
    x, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 4, 8, 8)
    quiet, _ = network(x, torch.zeros_like(noise), torch.zeros(2))
    with torch.no_grad():
        posterior = network.vae.encode(x).latent_dist
        z = posterior.mean + (posterior.var + torch.tensor([0.0, 0.09])[:, None, None, None]).sqrt() * noise
        assert torch.allclose(quiet, network.vae.decode(posterior.mean).sample, atol=1e-6)
        expected = network.vae.decode(z).sample
    y, kl = network(x, noise, torch.tensor([0.0, 0.3]))
    assert torch.allclose(y, expected, atol=1e-5) and not kl.requires_grad
    y.square().mean().backward()
    encoder = {n for n, p in network.named_parameters() if p.grad is None}
    assert encoder and all(n.startswith(("vae.encoder", "vae.quant_conv")) for n in encoder)
    assert {n for n, _ in network.named_parameters() if n.startswith(("vae.encoder", "vae.quant_conv"))} == encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("train_encoder", [True, False])
def test_a_start_is_loaded_as_float32_and_trained(tmp_path: Path, dtype: torch.dtype, train_encoder: bool) -> None:
    stored = small_vae().to(dtype)
    stored.save_pretrained(tmp_path / "vae", variant=None if dtype == torch.float32 else "fp16")
    torch.manual_seed(0)
    method = made(
        Autoencoder,
        data__source=str(EMOJI),
        init_from=str(tmp_path / "vae"),
        latent_channels=4,
        train_encoder=train_encoder,
    )
    vae = method.networks["autoencoder"].vae
    for name, value in stored.state_dict().items():
        assert torch.equal(vae.state_dict()[name], value.float())
    trained = {name.split(".")[0] for name, p in vae.named_parameters() if p.requires_grad}
    assert trained == {"decoder", "post_quant_conv"} | ({"encoder", "quant_conv"} if train_encoder else set())


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda vae: (vae / "config.json").write_text('{"_class_name": "AutoencoderTiny"}'), "expected AutoencoderKL"),
        (lambda vae: (vae / "config.json").unlink(), "no autoencoder at .*: config.json is missing"),
        (lambda vae: (vae / "diffusion_pytorch_model.safetensors").write_bytes(b""), "it cannot be read"),
    ],
)
def test_a_start_that_is_no_autoencoder_is_one_line(tmp_path: Path, edit: Callable[[Path], Any], says: str) -> None:
    small_vae().save_pretrained(tmp_path / "vae")
    edit(tmp_path / "vae")
    with pytest.raises(UserError, match=says) as caught:
        made(Autoencoder, data__source=str(EMOJI), init_from=str(tmp_path / "vae"), latent_channels=4)
    assert "\n" not in str(caught.value) and "teacher" not in str(caught.value)


def folder_of(tmp_path: Path, width: int, height: int) -> str:
    folder = tmp_path / f"{width}x{height}"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (width, height), (40 * i, 90, 200)).save(folder / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("sides", "more", "says"),
    [
        (
            (64, 64),
            {"data__size": 20},
            "have 20 by 20 pixels.*multiples of 8; set data.size to 16 or 24, or crop to 16",
        ),
        ((65, 63), {}, "have 65 by 63 pixels.*set data.size to 56 or 64, or crop to 56"),
        ((64, 64), {"data__size": 5}, "have 5 by 5 pixels.*set data.size to 8$"),
        ((64, 64), {"data__size": 20, "crop": 20}, "crop is 20; it must be a multiple of 8, at most 16"),
    ],
)
def test_sides_that_cannot_be_halved_name_the_setting(
    tmp_path: Path, sides: tuple[int, int], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        made(Autoencoder, data__source=folder_of(tmp_path, *sides), block_out_channels=(8, 8, 8, 8), **more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sides", [(20, 22), (22, 20)])
def test_crops_of_images_with_other_sides_train_and_are_shown(tmp_path: Path, sides: tuple[int, int]) -> None:
    source = folder_of(tmp_path, *sides)
    method = made(Autoencoder, data__source=source, block_out_channels=(8, 8, 8, 8), crop=16)
    random = SampleRandom(0, range(8))
    assert method.batch([0, 1, 2, 0, 1, 2, 0, 1], random)["images"].shape == (8, 3, 16, 16)
    with torch.no_grad():
        shown = method.validate().images
    assert shown is not None and shown.shape == (6, 3, 16, 16)
