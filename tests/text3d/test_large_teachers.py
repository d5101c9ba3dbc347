"""Large teachers: published numbers of parameters, joint attention, cameras, encoding, and text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from text3d.tiny_teachers import PROMPTS, save_teachers
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.methods.text_to_3d_settings import ViewTeacherSettings
from diffdistill.text3d.camera_ranges import SCALEDREAMER_MV
from diffdistill.text3d.cameras import Cameras
from diffdistill.text3d.generators import generator_of, preset
from diffdistill.text3d.teachers.camera_embedding import FakeWithCamera, camera_numbers
from diffdistill.text3d.teachers.joint_attention import join_views
from diffdistill.text3d.teachers.mvdream import JointViewsUNet, takes_cameras
from diffdistill.text3d.teachers.stable_diffusion import ViewUNet
from diffdistill.text3d.teachers.view_prompts import ViewPrompts, with_directions
from diffdistill.text3d.text_encoder import embedder_of

CONFIGS = Path(__file__).parents[2] / "configs"
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
CAMERAS = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
ANGLES = Cameras.of([0.0, 10.0, 20.0, 70.0], [5.0, 100.0, 190.0, 0.0], [1.2] * 4, [50.0] * 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teachers(tmp_path_factory.mktemp("teachers"))


def load(place: Path, kind: str, **more: Any) -> Any:
    made: Any = ViewTeacherSettings(str(place / kind), **more).load(PROMPTS)
    made.prepare(torch.device("cpu"))
    return made


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- the papers' sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count", "published"),
    [
        ("sd21_text_to_3d", 120_564_480, 120.5e6),
        ("mvdream_text_to_3d", 88_686_923, 88.7e6),
        ("sd21_text_to_3d_wide", 144_798_155, 144.8e6),
    ],
)
def test_a_config_has_the_published_number_of_parameters(config: str, count: int, published: float) -> None:
    arguments = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["method"]["init_args"]
    with torch.device("meta"):
        made = generator_of(preset(arguments["generator"]))
    assert parameters(made) == count == pytest.approx(published, rel=1e-3)
    widths = {"prompt_dim": made.prompt_dim, "token_dim": made.token_dim}
    assert 1024 in widths.values() and set(widths.values()) <= {0, 1024}  # of Stable Diffusion 2.1's text encoder
    assert made.radius == 2.0 and arguments["rendering"]["sharpness"]["last"] == 30.0


@torch.no_grad()
@pytest.mark.parametrize(("cameras", "count"), [({}, 865_910_724), (CAMERAS, 865_910_724 + 1_661_440)])
def test_teachers_of_full_size_take_a_step_on_the_meta_device(cameras: dict[str, Any], count: int) -> None:
    """Published: 865.9 million; MVDream's camera embedding has 16 x 1280 + 1280 x 1280 weights and 2 x 1280 biases."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **SD21, **cameras)  # type: ignore[arg-type]
        assert parameters(unet) == count and 1_661_440 == 16 * 1280 + 1280 * 1280 + 2 * 1280
        text = torch.zeros(1, 77, 1024)
        if cameras:
            network: Any = JointViewsUNet(unet)
            x_t, camera = torch.zeros(1, 4, 4, 32, 32), torch.zeros(1, 4, 16)
        else:
            network = FakeWithCamera(ViewUNet(unet))
            assert parameters(network) == count + 1_661_440  # its camera embedding is of MVDream's size
            x_t, camera = torch.zeros(1, 4, 64, 64), torch.zeros(1, 16)
        found = network(x_t, torch.zeros(1, dtype=torch.int64), {"text": text, "camera": camera})
    assert found.shape == x_t.shape and found.device.type == "meta"


# ---- joint attention ------------------------------------------------------------------------------------------


def tiny_unet(cameras: bool) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    made = UNet2DConditionModel(
        sample_size=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, **(CAMERAS if cameras else {}),
    )  # fmt: skip
    return made.requires_grad_(False).eval()


def told(objects: int, views: int, seed: int = 3) -> dict[str, Tensor]:
    uniforms = torch.rand(objects, 5, generator=torch.Generator().manual_seed(seed))
    camera = camera_numbers(SCALEDREAMER_MV.draw_rings(uniforms, views))
    return {"text": noise(objects, 5, 16, seed=seed), "camera": camera.unflatten(0, (objects, views))}


def test_one_view_alone_is_denoised_as_by_the_stock_network() -> None:
    stock, unet = tiny_unet(False), tiny_unet(True)
    unet.load_state_dict({**unet.state_dict(), **stock.state_dict()})
    for p in unet.class_embedding.parameters():
        p.zero_()
    x_t, time, cond = noise(2, 1, 4, 4, 4), torch.tensor([10, 900]), told(2, 1)
    found = JointViewsUNet(unet, 1)(x_t, time, cond)
    wanted = stock(x_t[:, 0], time, encoder_hidden_states=cond["text"]).sample
    torch.testing.assert_close(found[:, 0], wanted)


def test_views_of_an_object_see_each_other_in_any_order_and_no_other_object() -> None:
    network = JointViewsUNet(tiny_unet(True))
    x_t, time, cond = noise(2, 4, 4, 4, 4), torch.tensor([10, 900]), told(2, 4)
    found = network(x_t, time, cond)
    order = torch.tensor([2, 0, 3, 1])
    turned = network(x_t[:, order], time, {**cond, "camera": cond["camera"][:, order]})
    torch.testing.assert_close(turned, found[:, order], rtol=1e-4, atol=1e-5)
    other = x_t.clone()
    other[0, 3] += 1
    changed = network(other, time, cond)
    torch.testing.assert_close(changed[1], found[1])
    moved = (changed[0, :3] - found[0, :3]).abs().amax((1, 2, 3))
    assert float(moved.min()) > 1e-4  # by attention alone
    for part in ("text", "camera"):  # each object has its own
        again = network(x_t, time, {**cond, part: torch.cat([cond[part][:1], cond[part][1:] + 1])})
        torch.testing.assert_close(again[0], found[0])
        assert (again[1] - found[1]).abs().max() > 1e-4


def test_joint_attention_is_a_softmax_over_the_tokens_of_all_views() -> None:
    unet = tiny_unet(True)
    assert join_views(unet, 3) == 4  # layers: one on the way down, one in the middle, two on the way up
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    x = noise(6, 4, 16)
    found = attention(x)
    q, k, v = (part(x).view(2, 12, attention.heads, -1).transpose(1, 2)
               for part in (attention.to_q, attention.to_k, attention.to_v))  # fmt: skip
    mixed = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1) @ v
    wanted = attention.to_out[0](mixed.transpose(1, 2).reshape(6, 4, 16))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="joined already"):
        join_views(unet, 3)
    with pytest.raises(ValueError, match="this network takes 4"):
        JointViewsUNet(tiny_unet(True))(noise(1, 2, 4, 4, 4), torch.tensor([1]), told(1, 2))


# ---- cameras --------------------------------------------------------------------------------------------------


def test_a_camera_is_its_matrix_with_its_position_on_the_unit_sphere() -> None:
    found = camera_numbers(ANGLES).view(4, 4, 4)
    rotation, position = found[:, :3, :3], found[:, :3, 3]
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(4, 3, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(position, ANGLES.positions() / 1.2)
    torch.testing.assert_close(rotation[:, :, 2], position)  # the third axis points away from the object
    assert found[:, 3].tolist() == [[0.0, 0.0, 0.0, 1.0]] * 4


def test_the_fake_score_starts_as_the_teacher_and_is_then_told_the_camera_as_mvdream_is() -> None:
    """The oracle is a stock network with a class embedding of the same weights."""
    stock, with_class = tiny_unet(False), tiny_unet(True)
    with_class.load_state_dict({**with_class.state_dict(), **stock.state_dict()})
    backbone = ViewUNet(stock)
    fake = FakeWithCamera(backbone)
    x_t, time, cond = noise(2, 4, 4, 4), torch.tensor([10, 900]), told(1, 2)
    cond = {"text": noise(2, 5, 16), "camera": cond["camera"][0]}
    before = backbone(x_t, time, cond)
    assert torch.equal(fake(x_t, time, cond), before)
    torch.nn.init.normal_(fake.camera.out.weight)
    for ours, theirs in ((fake.camera.into, "linear_1"), (fake.camera.out, "linear_2")):
        getattr(with_class.class_embedding, theirs).load_state_dict(ours.state_dict())
    wanted = with_class(x_t, time, encoder_hidden_states=cond["text"], class_labels=cond["camera"]).sample
    torch.testing.assert_close(fake(x_t, time, cond), wanted)
    assert (wanted - before).abs().max() > 1e-3
    assert torch.equal(backbone(x_t, time, cond), before)  # nothing stays on the network
    with pytest.raises(ValueError, match="part camera"):
        fake(x_t, time, {"text": cond["text"]})


# ---- what teachers are told -----------------------------------------------------------------------------------


def test_the_prompts_of_stable_diffusion_by_direction(place: Path) -> None:
    teacher = load(place, "sd", negative_prompt="blue")
    four = [torch.as_tensor(teacher.teacher.embed(with_directions(p))) for p in PROMPTS]
    prompts, angles = ["blue car", "red apple", "blue car", "red car"], ANGLES
    found = teacher.conditions(prompts, angles, torch.ones(4, 3))
    wanted = torch.stack([four[PROMPTS.index(p)][k] for p, k in zip(prompts, (0, 1, 2, 3), strict=True)])
    torch.testing.assert_close(found.cond["text"], wanted)
    torch.testing.assert_close(found.null["text"], teacher.teacher.embed(["blue"]))
    assert torch.equal(found.cond["camera"], camera_numbers(angles)) and found.perp_neg is None
    teacher = load(place, "sd", directions=ViewPrompts("perp_neg"))
    found = teacher.conditions(prompts, angles, torch.ones(4, 3))
    front, side, back, above = four[1].unbind(0)
    torch.testing.assert_close(found.cond["text"][0], front * (1 - 5 / 90) + side * 5 / 90)
    torch.testing.assert_close(found.cond["text"][2], side * (2 - 170 / 90) + back * (170 / 90 - 1))
    torch.testing.assert_close(found.cond["text"][3], four[2][3])
    first, second = (negative["text"] for negative in found.perp_neg.negatives)
    torch.testing.assert_close(first[0], front)
    torch.testing.assert_close(second[0], side)
    torch.testing.assert_close(first[2], side)
    torch.testing.assert_close(second[2], front)
    torch.testing.assert_close(first[3], teacher.teacher.embed([""])[0])
    assert [w.shape for w in found.perp_neg.weights] == [(4,), (4,)] and float(found.perp_neg.weights[1][3]) == 0
    plain = load(place, "sd", directions=ViewPrompts("none")).conditions(prompts, angles, torch.ones(4, 3))
    torch.testing.assert_close(plain.cond["text"], teacher.teacher.embed(prompts))
    with pytest.raises(UserError, match="'green car, front view' is none of the prompts"):
        teacher.conditions(["green car"], angles[:1], torch.ones(1, 3))


def test_mvdream_is_told_prompts_and_cameras(place: Path) -> None:
    teacher = load(place, "mvdream")
    found = teacher.conditions(["blue car"], ANGLES, torch.ones(1, 3))
    torch.testing.assert_close(found.cond["text"], teacher.teacher.embed(["blue car"]))
    assert torch.equal(found.cond["camera"][0], camera_numbers(ANGLES)) and found.null["camera"].shape == (1, 4, 16)
    by_hand = teacher.backbone.inner.class_embedding
    made = F.linear(F.silu(F.linear(camera_numbers(ANGLES), by_hand.linear_1.weight, by_hand.linear_1.bias)),
                    by_hand.linear_2.weight, by_hand.linear_2.bias)  # fmt: skip
    torch.testing.assert_close(by_hand(camera_numbers(ANGLES)), made)  # MVDream's camera_embed


@pytest.mark.parametrize("kind", ["sd", "mvdream"])
def test_views_are_enlarged_and_encoded_with_a_graph(place: Path, kind: str) -> None:
    teacher = load(place, kind)
    images = torch.rand(2, teacher.views, 3, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = teacher.encode(images)
    assert found.shape == ((2, 4, 4, 4) if kind == "sd" else (2, 4, 4, 4, 4))
    vae = teacher.teacher.pipeline.vae
    sized = F.interpolate(images.flatten(0, 1), (8, 8), mode="bilinear", align_corners=False)
    wanted = 0.5 * vae.encode(2 * sized - 1).latent_dist.mode()
    torch.testing.assert_close(found.flatten(), wanted.flatten())
    (gradient,) = torch.autograd.grad(found.square().sum(), images)
    assert bool((gradient.abs().amax((2, 3, 4)) > 0).all()) and not any(p.requires_grad for p in vae.parameters())


def test_the_embedder_reads_what_the_text_encoder_says(place: Path) -> None:
    teacher = load(place, "sd")
    made = embedder_of(teacher.teacher)
    encoder, tokenizer = teacher.teacher.pipeline.text_encoder, teacher.teacher.pipeline.tokenizer
    ids = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=8, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = encoder(ids)
    found = made(PROMPTS)
    torch.testing.assert_close(found.tokens, wanted.last_hidden_state)
    torch.testing.assert_close(found.pooled, wanted.pooler_output)
    torch.testing.assert_close(found.tokens, teacher.teacher.embed(PROMPTS))
    assert bool(found.mask.all()) and made.dim == 16 and not list(made.parameters()) and not made.state_dict()
    asked: list[list[str]] = []
    made.remember(teacher.texts.__contains__, lambda texts: asked.append(list(texts)) or teacher.texts(texts))  # type: ignore[func-returns-value]
    again = made(PROMPTS[::-1])
    torch.testing.assert_close(again.pooled, found.pooled.flip(0))
    made(["green car", "red car"])  # not of this run: the text encoder is asked
    assert asked == [PROMPTS[::-1]]
    with pytest.raises(UserError, match="has no word"):
        made([" "])


def test_teachers_that_do_not_fit_are_refused(place: Path, tmp_path: Path) -> None:
    import tiny_families

    tiny_families.save_tiny_sdxl(tmp_path / "sdxl")
    for source, more, said in (
        (tmp_path / "sdxl", {}, "needs a UNet of Stable Diffusion 1.x or 2.x"),
        (tmp_path / "none", {}, "there is no model at"),
        (place / "mvdream", {"directions": ViewPrompts("words")}, "this teacher is told cameras"),
    ):
        with pytest.raises(UserError, match=said):
            ViewTeacherSettings(str(source), **more).load(PROMPTS)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="input_dim is 12; a camera has 16 numbers"):
        takes_cameras({**CAMERAS, "projection_class_embeddings_input_dim": 12})
    with pytest.raises(UserError, match="source is null"):
        ViewTeacherSettings().load(PROMPTS)
    assert not takes_cameras({}) and takes_cameras(copy.copy(CAMERAS))
