"""MV-Adapter's layers on a stock UNet: attention along rows, its cameras, its schedule, its file, and a step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from text3d.tiny_priors import add_tiny_generators
from text3d.tiny_teachers import build, save_teachers
from torch import Tensor

from diffdistill.diffusion import VPSchedule
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods.base import OptimizerSettings
from diffdistill.methods.settings import FakeScore, LoraSettings
from diffdistill.text3d.cameras import Cameras
from diffdistill.text3d.regularisers import LinearSchedule
from diffdistill.text3d.teachers.mv_adapter import (
    AZIMUTHS_DEG,
    RowViewsUNet,
    ViewAdapter,
    load_adapter,
    own_cameras,
    place_and_direction,
    shifted,
)
from diffdistill.text3d.teachers.row_attention import RowViews, add_rows

LORA = FakeScore("lora", OptimizerSettings(1e-2), lora=LoraSettings(2, 4.0))
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}


def tiny_unet() -> Any:
    """Its levels are in the order of Stable Diffusion's: the last one has no attention, and is not made smaller."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    made = UNet2DConditionModel(
        sample_size=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
    )  # fmt: skip
    return made.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_teachers(tmp_path_factory.mktemp("teachers"))
    tiny_unet().save_pretrained(folder / "sd" / "unet")
    torch.manual_seed(5)
    adapted = RowViewsUNet(tiny_unet())
    weights = {name: value + 0.05 * torch.randn(value.shape) for name, value in adapted.added().items()}
    save_file(weights, folder / "adapter.safetensors")
    return folder


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def told(objects: int) -> dict[str, Tensor]:
    camera = place_and_direction(own_cameras(1.1)).expand(objects, -1, -1)
    return {"text": noise(objects, 5, 16, seed=3), "camera": camera}


# ---- layers ---------------------------------------------------------------------------------------------------


def test_rows_of_all_views_are_attended_and_added_to_the_stock_attention() -> None:
    unet = tiny_unet()
    stock = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    x = noise(4, 9, 16)  # two objects of two views of 3 x 3 tokens
    alone = stock(x)
    assert add_rows(unet, 2) == 4
    rows = stock.processor
    assert isinstance(rows, RowViews)
    copies = ((rows.to_q_mv, stock.to_q), (rows.to_out_mv[0], stock.to_out[0]))
    assert all(torch.equal(a.weight, b.weight) for a, b in copies)
    for i, p in enumerate(rows.parameters()):
        p.data += 0.2 * noise(*p.shape, seed=i)
    found = stock(x)
    wanted = torch.zeros_like(x)
    for thing in range(2):
        views = x[2 * thing : 2 * thing + 2].view(2, 3, 3, 16)
        for row in range(3):
            tokens = views[:, row].reshape(6, 16)
            q, k, v = (layer(tokens).view(6, 4, 4).transpose(0, 1)
                       for layer in (rows.to_q_mv, rows.to_k_mv, rows.to_v_mv))  # fmt: skip
            mixed = torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v
            made = rows.to_out_mv[0](mixed.transpose(0, 1).reshape(6, 16)).view(2, 3, 16)
            for view in range(2):
                wanted[2 * thing + view].view(3, 3, 16)[row] = made[view]
    torch.testing.assert_close(found, alone + wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="square views"):
        stock(x[:, :8])


def test_without_what_it_adds_the_network_is_the_stock_one() -> None:
    stock, unet = tiny_unet(), tiny_unet()
    network = RowViewsUNet(unet)
    for name, value in network.added().items():
        if "to_out_mv" in name or name.startswith("adapter."):
            value.zero_()
    x_t, time, cond = noise(2, 6, 4, 4, 4), torch.tensor([10, 900]), told(2)
    found = network(x_t, time, cond)
    wanted = stock(
        x_t.flatten(0, 1), time.repeat_interleave(6), encoder_hidden_states=cond["text"].repeat_interleave(6, 0)
    ).sample
    torch.testing.assert_close(found.flatten(0, 1), wanted)


def test_views_see_each_other_in_any_order_and_no_other_object() -> None:
    network = RowViewsUNet(tiny_unet())
    x_t, time, cond = noise(2, 6, 4, 4, 4), torch.tensor([10, 900]), told(2)
    found = network(x_t, time, cond)
    order = torch.tensor([2, 0, 5, 3, 1, 4])
    turned = network(x_t[:, order], time, {**cond, "camera": cond["camera"][:, order]})
    torch.testing.assert_close(turned, found[:, order], rtol=1e-4, atol=1e-5)
    other = x_t.clone()
    other[0, 5] += 1
    changed = network(other, time, cond)
    torch.testing.assert_close(changed[1], found[1])
    assert float((changed[0, :5] - found[0, :5]).abs().amax((1, 2, 3)).min()) > 1e-4
    moved = network(x_t, time, {**cond, "camera": cond["camera"].flip(1)})
    assert (moved - found).abs().max() > 1e-4


@torch.no_grad()
def test_at_full_size_it_takes_a_step_on_the_meta_device() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = RowViewsUNet(UNet2DConditionModel(sample_size=64, **SD21))  # type: ignore[arg-type]
        cond = {"text": torch.zeros(1, 77, 1024), "camera": torch.zeros(1, 6, 6)}
        found = network(torch.zeros(1, 6, 4, 64, 64), torch.zeros(1, dtype=torch.int64), cond)
    assert found.shape == (1, 6, 4, 64, 64)
    widths = [320] * 5 + [640] * 5 + [1280] * 6  # of the 16 layers with attention
    rows = sum(value.numel() for name, value in network.added().items() if "_mv." in name)
    assert rows == sum(4 * width**2 + width for width in widths)


# ---- cameras and noise ----------------------------------------------------------------------------------------


def test_cameras_are_told_in_its_own_axes() -> None:
    """By its own convention: azimuth less 90 degrees, and the direction of the view before the place."""
    cameras = Cameras.of([0.0, 20.0, -10.0], [0.0, 45.0, 270.0], [1.8, 2.0, 31.0], [4.0] * 3)
    for k, row in enumerate(place_and_direction(cameras)):
        azimuth, elevation = math.radians((0.0, 45.0, 270.0)[k] - 90), math.radians((0.0, 20.0, -10.0)[k])
        at = [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
        assert row.tolist() == pytest.approx([-at[0], -at[1], -at[2], *at], abs=1e-6)


def test_its_views_are_about_orthographic() -> None:
    cameras = own_cameras(1.1)
    assert cameras.azimuth_deg.tolist() == list(AZIMUTHS_DEG) and not bool(cameras.elevation_deg.any())
    rays = cameras.rays(101, 101)
    forward = -torch.nn.functional.normalize(cameras.positions(), dim=1)
    for depth, error in ((0.0, 1e-3), (1.0, 0.04), (-1.0, 0.04)):  # of a plane before and behind the middle
        at = 1.1 / math.tan(math.radians(2)) + depth
        along = at / (rays.directions * forward[:, None, None]).sum(-1, keepdim=True)
        points = rays.origins + along * rays.directions
        across = (points - (points * forward[:, None, None]).sum(-1, keepdim=True) * forward[:, None, None]).norm(
            dim=-1
        )
        assert float(across[0, 50, 0]) == pytest.approx(1.1 * 100 / 101, rel=error)


def test_its_schedule_has_up_to_an_eighth_of_the_signal_to_noise() -> None:
    plain = VPSchedule.from_config(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    )
    moved = shifted(plain)
    ratio = [a / (1 - a) * (1 - b) / b for a, b in zip(plain.alphas_cumprod.tolist(), moved.alphas_cumprod.tolist(), strict=True)]  # fmt: skip  # noqa: E501
    assert ratio == pytest.approx([8 ** (t / 999) for t in range(1000)], rel=1e-9)


# ---- the file, and a step -------------------------------------------------------------------------------------


def test_a_file_of_its_weights_is_read_or_refused(place: Path, tmp_path: Path) -> None:
    network, file = RowViewsUNet(tiny_unet()), place / "adapter.safetensors"
    weights = load_file(file)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_mv.weight"  # as in the released file
    assert name in weights and "adapter.conv_in.weight" in weights
    load_adapter(network, str(file))
    assert all(torch.equal(value, weights[key]) for key, value in network.added().items())
    for change, said in (
        ({key: value for key, value in weights.items() if key != name}, "to_q_mv.weight is missing"),
        ({**weights, "more": torch.zeros(1)}, "more is missing, too many"),
        ({**weights, name: torch.zeros(1)}, "of another shape"),
    ):
        save_file(change, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match=said):
            load_adapter(network, str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match=r"adapter.weights: .*none.safetensors cannot be read"):
        load_adapter(network, str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="half_width is 0.0"):
        ViewAdapter(half_width=0.0)


@pytest.mark.parametrize("residual", ["sds", "csd", "asd", "vsd"])
def test_a_step_with_all_residuals(place: Path, monkeypatch: pytest.MonkeyPatch, residual: str) -> None:
    add_tiny_generators(monkeypatch)
    given: dict[str, Any] = {
        "teacher__adapter__weights": str(place / "adapter.safetensors"), "rendering__dense__views": 6,
        "judging__residual": residual, "judging__fake": LORA, "judging__eta": 0.5,
        "judging__guidance_scale": LinearSchedule.constant(7.5),
    }  # fmt: skip
    method = build(place, **given)
    assert method.content.keys() == {"teacher.source", "teacher.adapter.weights", "prompts"}
    random, carry = SampleRandom(0, [0, 1]), {}
    batch = method.batch([0, 1], random)
    assert batch["cond"]["camera"].shape == (2, 6, 6)
    assert batch["views"].groups[1].azimuth_deg.tolist() == list(AZIMUTHS_DEG)
    networks = method.networks
    if residual == "vsd":
        for p in networks["fake"].parameters():
            if p.requires_grad:
                p.data += 0.1
    for phase in method.phases(0):
        loss, _ = phase.loss(batch, random, carry)
        loss.backward()
    for name, network in networks.items():
        parts = [p for p in network.parameters() if p.requires_grad]
        found = torch.cat([p.grad.flatten() for p in parts if p.grad is not None])
        assert bool(found.isfinite().all()) and float(found.abs().max()) > 0, name
    assert carry["x0"].shape == (2, 6, 4, 4, 4)
    with pytest.raises(UserError, match="must be a multiple of 6"):
        build(place, **{**given, "rendering__dense__views": 4})
    with pytest.raises(UserError, match="MV-Adapter is of a plain UNet"):
        build(place, "mvdream", **given)
