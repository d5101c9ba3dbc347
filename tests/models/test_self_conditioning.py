"""Self-conditioned networks: equal to the plain ones at first, and to a forward pass written out by hand after that."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny_families import save_tiny_sana, save_tiny_sdxl
from tiny_pipeline import save_tiny_pipeline
from torch import Tensor, nn

from diffdistill.errors import UserError
from diffdistill.models.self_conditioned import SelfConditionedUNet, add_self_conditioning, is_self_conditioned
from diffdistill.models.self_conditioning import SelfConditioning
from diffdistill.models.stock_check import check_against_stock
from diffdistill.models.teacher import Teacher, load_teacher

SAVERS = {"sd": save_tiny_pipeline, "sdxl": save_tiny_sdxl, "sana": save_tiny_sana}
TAPS = [("sd", "down.0"), ("sd", "mid"), ("sd", "up.0"), ("sdxl", "mid"), ("sana", "block.0")]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Teacher]:
    folder = tmp_path_factory.mktemp("families")
    return {name: load_teacher(save(folder / name)) for name, save in SAVERS.items()}


def conditioned(teacher: Teacher, tap: str, started: bool = True) -> nn.Module:
    """A self-conditioned copy; not `started`, its projection has random weights, as after training."""
    network = add_self_conditioning(copy.deepcopy(teacher.backbone.inner), SelfConditioning(tap, 8))
    if not started:
        torch.manual_seed(1)
        for parameter in network.self_conditioner.parameters():
            nn.init.normal_(parameter, std=0.5)
    return network


def predict(teacher: Teacher, inner: nn.Module) -> Tensor:
    torch.manual_seed(2)
    x = torch.randn(2, *teacher.latent_shape)
    return teacher.family.backbone(inner)(x, torch.tensor([10.0, 700.0]), teacher.embed(["a car", "an apple"]))


@pytest.mark.parametrize(("family", "tap"), TAPS)
def test_at_first_it_predicts_what_the_plain_network_predicts_to_the_bit(
    teachers: dict[str, Teacher], family: str, tap: str
) -> None:
    teacher = teachers[family]
    plain = predict(teacher, teacher.backbone.inner)
    assert torch.equal(plain, predict(teacher, conditioned(teacher, tap)))
    assert not torch.allclose(plain, predict(teacher, conditioned(teacher, tap, started=False)))


def test_a_unet_equals_its_forward_pass_written_out(teachers: dict[str, Teacher]) -> None:
    # conv_in, blocks in order, and a time embedding that changes after the tap: the equation of the module's docstring
    teacher = teachers["sd"]
    unet = conditioned(teacher, "mid", started=False)
    torch.manual_seed(2)
    x, time, text = torch.randn(2, 4, 4, 4), torch.tensor([10.0, 700.0]), teacher.embed(["a car", "an apple"])
    e = unet.time_embedding(unet.time_proj(time))
    h = unet.conv_in(x)
    skips = [h]
    for block in unet.down_blocks:
        more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        h, passed = block(h, e, **more)
        skips += passed
    h = unet.mid_block(h, e, encoder_hidden_states=text)
    p = unet.self_conditioner
    pooled = h.mean((2, 3))
    normal = (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    hidden = p.linear_1(normal * p.norm.weight + p.norm.bias)
    e = e + (e @ p.gate.weight.T + p.gate.bias) * p.linear_2(hidden * hidden.sigmoid())
    for block in unet.up_blocks:
        own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
        more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        h = block(h, tuple(own), e, **more)
    expected = unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))
    assert torch.allclose(predict(teacher, unet), expected, atol=1e-6)


def test_the_gradient_reaches_the_features_through_the_projection(teachers: dict[str, Teacher]) -> None:
    # the same network with a stop at the projection's input has another gradient before the tap
    gradients = []
    for stopped in (False, True):
        unet = conditioned(teachers["sd"], "mid", started=False).requires_grad_(True)
        if stopped:
            unet.self_conditioner.register_forward_pre_hook(lambda module, args: (args[0].detach(), args[1]))
        predict(teachers["sd"], unet).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in unet.self_conditioner.parameters())
        gradients.append(unet.mid_block.resnets[0].conv1.weight.grad)
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm() > 0


def test_threads_may_share_a_network(teachers: dict[str, Teacher]) -> None:
    unet, text = conditioned(teachers["sd"], "mid", started=False).eval(), teachers["sd"].embed(["a car"])
    inputs = [torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(12)]

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        return unet(x, torch.tensor([500.0]), encoder_hidden_states=text).sample

    expected = [run(x) for x in inputs] * 4
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(pool.map(run, inputs * 4), expected, strict=True))


def test_recomputed_activations_change_nothing(teachers: dict[str, Teacher]) -> None:
    gradients = []
    for checkpointing in (False, True):
        unet = conditioned(teachers["sd"], "mid", started=False).requires_grad_(True).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        predict(teachers["sd"], unet).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in unet.parameters()]))
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sana"])
def test_a_saved_pipeline_is_read_as_it_was_and_by_diffusers(
    teachers: dict[str, Teacher], family: str, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    teacher = teachers[family]
    network = conditioned(teacher, "block.0" if family == "sana" else "up.0", started=False)
    wanted = predict(teacher, network)
    pipeline = teacher.family.replaced(teacher.pipeline, network, teacher.pipeline.scheduler)
    teacher.family.save(pipeline, tmp_path / "saved")
    again = load_teacher(tmp_path / "saved")
    assert is_self_conditioned(again.backbone.inner)
    assert torch.allclose(predict(again, again.backbone.inner), wanted, atol=1e-6)
    check_against_stock(again)
    stock = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert torch.allclose(predict(teacher, getattr(stock, teacher.family.network)), wanted, atol=1e-6)


def test_copies_are_independent(teachers: dict[str, Teacher]) -> None:
    teacher = teachers["sd"]
    network = conditioned(teacher, "mid", started=False)
    before, other = predict(teacher, network), copy.deepcopy(network)
    nn.init.zeros_(other.mid_block.resnets[0].conv1.weight)
    assert torch.equal(predict(teacher, network), before) and not torch.equal(predict(teacher, other), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_it_costs_under_two_percent_of_parameters() -> None:
    # the published sizes, without memory, and the embedded teacher
    from diffusers import SanaTransformer2DModel, UNet2DConditionModel

    embedded = load_teacher(str(Path(__file__).parents[2] / "assets" / "teacher")).backbone.inner
    sd21 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
    with torch.device("meta"):
        networks = [(embedded, "mid"), (UNet2DConditionModel(**sd21), "mid"), (SanaTransformer2DModel(), "block.10")]
        for plain, tap in networks:
            before = sum(p.numel() for p in plain.parameters())
            made = add_self_conditioning(plain, SelfConditioning(tap)) if plain is not embedded else None
            made = made or SelfConditionedUNet(**dict(plain.config), self_conditioning={"tap": tap})
            assert 1 < sum(p.numel() for p in made.parameters()) / before <= 1.02


def test_what_cannot_be_is_refused(teachers: dict[str, Teacher]) -> None:
    unet = copy.deepcopy(teachers["sd"].backbone.inner)
    for tap, what in (("middle", "has down.0, down.1, mid, up.0, up.1"), ("up.1", "the last block")):
        with pytest.raises(UserError, match=what):
            add_self_conditioning(unet, SelfConditioning(tap))
    with pytest.raises(UserError, match="already"):
        add_self_conditioning(conditioned(teachers["sd"], "mid"), SelfConditioning())
    with pytest.raises(UserError, match="is a Linear"):
        add_self_conditioning(nn.Linear(2, 2), SelfConditioning())
    with pytest.raises(UserError, match="width"):
        SelfConditioning(width=0)
    with pytest.raises(UserError, match="gradient_checkpointing"):
        conditioned(teachers["sana"], "block.0").enable_gradient_checkpointing()
