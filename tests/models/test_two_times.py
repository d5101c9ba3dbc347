"""A UNet of two times: of one time at first, a stock one at a fixed interval, and differentiable in time."""

from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline as tiny
import torch
from torch import Tensor

from diffdistill.diffusion import FlowSchedule
from diffdistill.diffusion.any_step import TwoTimeDenoiser
from diffdistill.distill.mean_flow import mean_flow_loss, total_derivative
from diffdistill.errors import UserError
from diffdistill.models.attention import set_attention
from diffdistill.models.families.unet import UNetBackbone
from diffdistill.models.two_times import TwoTimeUNet, add_second_time, fold_interval, load_two_time_unet


@pytest.fixture
def unet(tmp_path: Path) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(tiny.save_tiny_pipeline(tmp_path / "tiny") / "unet").eval()


def inputs(n: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    time = 1000 * torch.rand(n, generator=g)
    return torch.randn(n, 4, 4, 4, generator=g), time, time * torch.rand(n, generator=g), torch.randn(
        n, 8, 16, generator=g
    )  # fmt: skip


def stir(unet: Any) -> Any:
    """Weights as training would leave them: the second embedding says something."""
    torch.manual_seed(1)
    for p in unet.time_embedding.interval.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return unet


def test_at_first_it_is_the_network_of_one_time_to_the_bit_and_so_is_its_gradient(unet: Any) -> None:
    x, time, earlier, cond = inputs()
    one, before = UNetBackbone(unet), dict(unet.named_parameters())
    expected = one(x, time, cond)
    gradients = torch.autograd.grad(expected.square().mean(), list(before.values()))
    model = TwoTimeUNet(unet)
    after = dict(model.inner.named_parameters())
    for told in (earlier, time):
        value = model(x, time, told, cond)
        assert torch.equal(value, expected)
        found = torch.autograd.grad(value.square().mean(), [after[name] for name in before])
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))
    # and the second embedding can learn: its last layer has a gradient
    value = model(x, time, earlier, cond).square().mean()
    assert torch.autograd.grad(value, after["time_embedding.interval.linear_2.weight"])[0].abs().max() > 0


def test_at_a_fixed_interval_it_is_a_stock_network(unet: Any, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    x, _, _, cond = inputs()
    names = set(unet.state_dict())
    model = TwoTimeUNet(stir(add_second_time(unet)))
    time, earlier = torch.full((3,), 1000.0), torch.full((3,), 500.0)
    told = model(x, time, earlier, cond)
    stock = fold_interval(model.inner, 500.0)
    assert set(stock.state_dict()) == names
    stock.save_pretrained(tmp_path / "stock")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "stock", low_cpu_mem_usage=False)
    torch.testing.assert_close(UNetBackbone(loaded)(x, time, cond), told, rtol=1e-5, atol=1e-6)
    assert (UNetBackbone(fold_interval(model.inner, 0.0))(x, time, cond) - told).abs().max() > 1e-3  # it does matter
    assert torch.equal(model(x, time, earlier, cond), told)  # and the original is untouched


def test_saved_and_loaded_it_is_itself(unet: Any, tmp_path: Path) -> None:
    x, time, earlier, cond = inputs()
    unet.save_pretrained(tmp_path / "one")
    model = TwoTimeUNet(stir(add_second_time(unet)))
    model.inner.save_pretrained(tmp_path / "two")
    assert torch.equal(TwoTimeUNet(load_two_time_unet(tmp_path / "two"))(x, time, earlier, cond),
                       model(x, time, earlier, cond))  # fmt: skip
    with pytest.raises(UserError, match="is not one of two times"):
        load_two_time_unet(tmp_path / "one")
    with pytest.raises(UserError, match="is missing"):
        load_two_time_unet(tmp_path)


def test_a_guidance_embedding_is_refused(unet: Any) -> None:
    from diffusers import UNet2DConditionModel

    guided = UNet2DConditionModel.from_config({**unet.config, "time_cond_proj_dim": 8})
    with pytest.raises(UserError, match="plain time embedding"):
        add_second_time(guided)


def test_forward_mode_goes_through_math_attention_and_agrees_with_differences(unet: Any) -> None:
    set_attention(unet, "math")
    model = TwoTimeUNet(stir(add_second_time(unet.double())))
    schedule = FlowSchedule(num_train_timesteps=10)
    denoiser = TwoTimeDenoiser(model, schedule)
    x, time, earlier, cond = (part.double() for part in inputs())
    t, r, v = time / 1000, earlier / 1000, torch.randn_like(x)

    def u(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return denoiser(x, t, r, cond).flow

    exact = total_derivative(u, x, t, r, v)
    # the sines of time are float32 inside diffusers, which bounds the difference
    near = total_derivative(u, x, t, r, v, "difference", 2e-3)
    assert (exact - near).norm() < 2e-3 * exact.norm() and exact.norm() > 1e-2


def test_mean_flow_trains_the_unet_through_math_attention_in_float32(unet: Any) -> None:
    set_attention(unet, "math")
    model = TwoTimeUNet(stir(add_second_time(unet)))
    denoiser = TwoTimeDenoiser(model, FlowSchedule())
    x, time, earlier, cond = inputs()
    loss, _ = mean_flow_loss(denoiser, x, time.double() / 1000, earlier.double() / 1000, torch.randn_like(x), cond)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
