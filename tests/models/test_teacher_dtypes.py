"""Frozen parts in half precision: students, adapters and exports are float32 all the same."""

import shutil
from pathlib import Path
from typing import Any

import family_checks as checks
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_families import save_tiny_sana, save_tiny_sdxl
from tiny_pipeline import save_tiny_pipeline

from diffdistill.errors import UserError
from diffdistill.models.backbone import full_copy
from diffdistill.models.export import export_one_step
from diffdistill.models.families.stable_diffusion import StableDiffusion
from diffdistill.models.generate import generate
from diffdistill.models.hub import wanted_files
from diffdistill.models.lora import adapters_off, add_lora
from diffdistill.models.stock_check import load_checked_teacher
from diffdistill.models.teacher import load_teacher

FAMILIES = {"sd": save_tiny_pipeline, "sdxl": save_tiny_sdxl, "sana": save_tiny_sana}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "teacher")


def test_a_bfloat16_teacher_judges_and_draws_as_the_float32_one_nearly(folder: Path) -> None:
    whole, half = load_teacher(str(folder)), load_checked_teacher(str(folder), "bfloat16")
    for name, part in half.parts().items():
        assert part.dtype == (torch.float32 if name == half.family.autoencoder else torch.bfloat16), name
    x = torch.randn((2, *whole.latent_shape), generator=torch.Generator().manual_seed(0))
    t = torch.tensor(whole.schedule.last)
    with torch.no_grad():
        values = [teacher.denoiser()(x, t, teacher.embed(checks.PROMPTS)).value for teacher in (whole, half)]
    assert values[1].dtype == torch.float32
    assert (values[0] - values[1]).abs().max() < 0.05 * values[0].abs().max()
    pictures = [torch.cat(list(generate(teacher, checks.PROMPTS, 1, 1.0))) for teacher in (whole, half)]
    assert pictures[0].shape == pictures[1].shape and pictures[1].isfinite().all()


def test_students_and_exports_of_a_bfloat16_teacher_are_float32(folder: Path, tmp_path: Path) -> None:
    teacher = load_teacher(str(folder), "bfloat16")
    student = full_copy(teacher.backbone)
    assert {p.dtype for p in student.parameters()} == {torch.float32} and all(
        p.requires_grad for p in student.parameters()
    )
    export_one_step(teacher, student.inner, teacher.schedule.last, tmp_path / "export")
    assert {part.dtype for part in teacher.text_encoders().values()} == {torch.bfloat16}  # as they were
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "export")
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn((2, *teacher.latent_shape), generator=torch.Generator().manual_seed(0))
    asked = {"num_inference_steps": 1, "guidance_scale": 1.0, "latents": z, "output_type": "pt"}
    theirs = pipeline(checks.PROMPTS, **asked, **checks.options(teacher)).images
    with torch.no_grad():
        x0 = teacher.denoiser(student)(z, torch.tensor(teacher.schedule.last), teacher.embed(checks.PROMPTS)).x0
    torch.testing.assert_close(teacher.latents.images(x0), theirs.float(), rtol=0.05, atol=0.05)


def test_adapters_on_bfloat16_weights_are_float32(folder: Path) -> None:
    teacher = load_teacher(str(folder), "bfloat16")
    x = torch.randn((1, *teacher.latent_shape), generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor(teacher.schedule.last), teacher.embed(["a"])
    with torch.no_grad():
        before = teacher.denoiser()(x, t, cond).value
    fake = add_lora(teacher.backbone, 2, 2.0, teacher.family.lora_targets)
    trained = [p for p in fake.parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {torch.float32}
    teacher.denoiser(fake)(x, t, cond).value.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    with torch.no_grad():
        for p in trained:
            p.add_(0.5)
        assert not torch.equal(teacher.denoiser(fake)(x, t, cond).value, before)
        with adapters_off(fake):
            assert torch.equal(teacher.denoiser(fake)(x, t, cond).value, before)


def test_an_unknown_dtype_is_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match="dtype is 'int8'; it must be one of float32, bfloat16, float16"):
        load_teacher(str(folder), "int8")


def test_a_variant_is_taken_where_a_part_has_it(tmp_path: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "teacher")
    plain = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = {name: 2 * value for name, value in load_file(plain).items()}
    save_file(weights, plain.with_name("diffusion_pytorch_model.ema.safetensors"), {"format": "pt"})
    networks = [load_teacher(str(folder), variant=variant).backbone.inner.state_dict() for variant in (None, "ema")]
    assert all(torch.equal(networks[1][name], 2 * value) for name, value in networks[0].items())
    with pytest.raises(UserError, match="no weights of the variant 'x'; there are: ema, plain files$"):
        load_teacher(str(folder), variant="x")
    shutil.move(plain, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(UserError, match="weights of the variants ema, fp16 and no plain ones"):
        load_teacher(str(folder))
    load_teacher(str(folder), variant="ema")
    names = [f"unet/{file.name}" for file in (folder / "unet").iterdir()] + ["vae/diffusion_pytorch_model.safetensors"]
    kept = wanted_files(names, StableDiffusion.parts, "ema")
    assert {n for n in kept if n.endswith("safetensors")} == {
        "unet/diffusion_pytorch_model.ema.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
