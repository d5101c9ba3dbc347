"""Stable Diffusion XL: a tiny pipeline of the real classes, and its network at real size on the meta device."""

from pathlib import Path

import family_checks as checks
import pytest
import torch
from tiny_families import save_tiny_sdxl

from diffdistill.errors import UserError
from diffdistill.models.families.stable_diffusion_xl import StableDiffusionXL
from diffdistill.models.stock_check import load_checked_teacher
from diffdistill.models.target_time import TargetTimeUNet
from diffdistill.models.teacher import load_teacher
from diffdistill.models.two_times import add_second_time

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0
REAL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "teacher")


@pytest.mark.parametrize(("force_zeros", "kind"), [(True, "epsilon"), (False, "epsilon"), (True, "v_prediction")])
def test_the_denoiser_is_the_pipelines(tmp_path: Path, force_zeros: bool, kind: str) -> None:
    folder = save_tiny_sdxl(tmp_path / "teacher", force_zeros, kind)
    checks.denoiser_is_the_pipelines(folder)
    null = load_teacher(str(folder)).null()
    assert isinstance(null, dict) and all((null[name] == 0).all() == force_zeros for name in ("text", "pooled"))
    assert null["time_ids"].tolist() == [[8, 8, 0, 0, 8, 8]]


def test_the_export_is_the_student(folder: Path, tmp_path: Path) -> None:
    checks.export_is_the_student(folder, tmp_path)


def test_generation_is_the_pipelines(folder: Path) -> None:
    checks.generation_is_the_pipelines(folder)


def test_taps_and_digests(folder: Path) -> None:
    checks.taps_are_maps(load_teacher(str(folder)))
    checks.digests_tell_parts_apart(folder)


def test_embeddings_do_not_depend_on_batches(folder: Path) -> None:
    teacher = load_teacher(str(folder))
    prompts = ["red apple", "blue car " * 9, "", "a", "b"]
    whole, parts = teacher.embed(prompts), teacher.embed(prompts, batch_size=2)
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(
            parts[name].expand(5, *parts[name].shape[1:]), whole[name].expand(5, -1, *[-1] * (whole[name].dim() - 2))
        )


def test_the_second_text_encoder_alone_is_enough(folder: Path, tmp_path: Path) -> None:
    """As in the refiner, whose index lists the first as null."""
    from diffusers import DiffusionPipeline, UNet2DConditionModel

    pipeline = DiffusionPipeline.from_pretrained(folder)
    config = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**{**config, "cross_attention_dim": 24})
    pipeline.register_modules(text_encoder=None, tokenizer=None, unet=unet)
    pipeline.save_pretrained(tmp_path / "one")
    teacher = load_checked_teacher(str(tmp_path / "one"))
    assert set(teacher.parts()) == {"unet", "vae", "text_encoder_2"} and teacher.embed(["a"])["text"].shape[2] == 24


def test_a_condition_of_another_family_is_refused(folder: Path) -> None:
    teacher = load_teacher(str(folder))
    x = torch.zeros((1, *teacher.latent_shape))
    with pytest.raises(ValueError, match=r"takes a mapping with \['pooled', 'text', 'time_ids'\]"):
        teacher.backbone(x, torch.tensor([5]), torch.zeros(1, 8, 40))


def test_networks_of_two_times_are_refused_in_one_line(folder: Path) -> None:
    inner = load_teacher(str(folder)).backbone.inner
    for build in (add_second_time, lambda unet: TargetTimeUNet(unet, 999)):
        with pytest.raises(UserError, match="needs a UNet of Stable Diffusion 1.x or 2.x") as caught:
            build(inner)
        assert "\n" not in str(caught.value)


def test_parameters_and_lora_targets_at_real_size() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**REAL)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    names = [name for name, _ in unet.named_modules()]
    for target in StableDiffusionXL().lora_targets:
        assert any(name.endswith(f".{target}") for name in names), target
    backbone = StableDiffusionXL().backbone(unet)
    assert backbone.tap_channels(backbone.bottleneck) == 1280 and len(backbone.taps()) == 7


def test_a_target_time_is_refused_by_name(folder: Path) -> None:
    inner = load_teacher(str(folder)).backbone.inner
    with pytest.raises(UserError, match="^the target time of BOOT's student needs .* UNet2DConditionModel is of SDXL$"):
        TargetTimeUNet(inner, 999)
