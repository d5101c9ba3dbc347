"""What training embeds and calls is what the stock pipeline does, whatever a teacher has around its UNet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline as tiny
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from made import made

from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import ASD, BOOT, DMD2, SiD, SwiftBrush
from diffdistill.models import stock_check
from diffdistill.models.stock_check import check_against_stock, load_checked_teacher
from diffdistill.models.teacher import load_teacher
from diffdistill.models.text import cut_prompts, report_cut

PROMPTS = ["a <toy> apple", "red apple", "", "blue car " * 12]


def guided(pipeline: Any, dim: int = 16) -> None:
    torch.manual_seed(0)
    base = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    pipeline.unet = UNet2DConditionModel(**{**base, "time_cond_proj_dim": dim})


def toy(pipeline: Any, vectors: int = 2) -> None:
    tokens = ["<toy>", *(f"<toy>_{i}" for i in range(1, vectors))]
    pipeline.tokenizer.add_tokens(tokens)
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
    torch.manual_seed(0)
    with torch.no_grad():
        pipeline.text_encoder.get_input_embeddings().weight[-vectors:] = 3 * torch.randn(vectors, 16)


def masked(pipeline: Any) -> None:
    pipeline.text_encoder.config.use_attention_mask = True


def every(pipeline: Any) -> None:
    guided(pipeline, 7)
    toy(pipeline, 3)
    masked(pipeline)


KINDS: dict[str, Callable[[Any], None]] = {"guided": guided, "toy": toy, "masked": masked, "every": every}


@pytest.fixture(params=sorted(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pipeline = DiffusionPipeline.from_pretrained(tiny.save_tiny_pipeline(tmp_path / "plain", "epsilon"))
    pipeline.scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    KINDS[request.param](pipeline)
    pipeline.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_embeddings_are_those_of_the_stock_pipeline(folder: Path, batch_size: int) -> None:
    stock = DiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        expected = torch.cat([stock.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in PROMPTS])
    torch.testing.assert_close(load_teacher(str(folder)).embed(PROMPTS, batch_size), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        (SwiftBrush, {}),
        (SiD, {}),
        (DMD2, {}),
        (ASD, {}),
        (BOOT, {}),
        (BOOT, {"target_time": "replaced"}),
    ],
    ids=["swiftbrush", "sid", "dmd2", "asd", "boot", "boot_replaced"],
)
def test_the_exported_step_is_the_students(folder: Path, tmp_path: Path, method: tuple[type, dict[str, str]]) -> None:
    (tmp_path / "prompts.txt").write_text("a <toy>\nred apple\n")
    kind, more = method
    student = made(kind, teacher__source=str(folder), prompts=str(tmp_path / "prompts.txt"), **more)
    student.export(tmp_path / "export")
    network = student.networks["student"]
    random = SampleRandom(0, range(1))
    z = random.normal("preview", student.teacher.latent_shape)
    with torch.no_grad():
        ours = student.teacher.latents.images(
            student.student.sample(network, random, student.teacher.embed(["a <toy>"]))
        )
    stock = DiffusionPipeline.from_pretrained(tmp_path / "export")
    stock.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 1, "guidance_scale": 1, "latents": z, "output_type": "pt"}
    torch.testing.assert_close(ours, stock(["a <toy>"], **asked).images.float(), rtol=1e-4, atol=2e-5)
    assert (ours - stock(["blue car"], **asked).images).abs().max() > 1e-3  # and it does matter


def test_a_difference_is_found_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_checked_teacher(str(folder))
    forward = teacher.backbone.forward
    monkeypatch.setattr(teacher.backbone, "forward", lambda x, t, c: 1.01 * forward(x, t, c))
    with pytest.raises(UserError, match="a step of its network differs from the stock pipeline's by"):
        check_against_stock(teacher)
    monkeypatch.setattr(teacher.backbone, "forward", lambda x, t, c: forward(x, t - 1, c))
    with pytest.raises(UserError, match="timestep of its network differs from the stock pipeline's by"):
        check_against_stock(teacher)
    monkeypatch.undo()
    monkeypatch.setattr(stock_check.Teacher, "embed", lambda self, prompts: torch.zeros(1, 8, 16))
    with pytest.raises(UserError, match="its prompt embedding differs from the stock pipeline's by"):
        check_against_stock(teacher)


def test_a_network_that_the_stock_pipeline_cannot_call_is_refused(tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny.save_tiny_pipeline(tmp_path / "plain"))
    base = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    pipeline.unet = UNet2DConditionModel(**{**base, "class_embed_type": "timestep"})
    pipeline.save_pretrained(tmp_path / "classes")
    with pytest.raises(UserError, match="cannot take a step with it: .*class_labels"):
        load_checked_teacher(str(tmp_path / "classes"))


def test_cut_prompts_are_counted_once_whatever_the_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = load_teacher(str(tiny.save_tiny_pipeline(tmp_path / "plain")))  # reads 8 tokens, start and end counted
    tokenizer = teacher.pipeline.tokenizer
    prompts = [" ".join(["red"] * n) for n in (1, 6, 7, 40)]
    assert cut_prompts(tokenizer, prompts) == [2, 3]
    assert torch.equal(*teacher.embed(prompts[2:], 1).chunk(2)) and cut_prompts(tokenizer, []) == []
    capsys.readouterr()
    report_cut(tokenizer, prompts * 3)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "2 of 4 different prompts are longer than the 8 tokens" in said
    report_cut(tokenizer, prompts[:2])
    assert capsys.readouterr().err == ""
