"""Numbers of steps that a scheduler cannot take, and schedulers that cannot be made, are one line; others draw."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_pipeline as tiny
from made import made

from diffdistill.cli.main import main
from diffdistill.errors import UserError
from diffdistill.methods import SwiftBrush
from diffdistill.models.generate import generate
from diffdistill.models.sampler_check import check_sampler
from diffdistill.models.teacher import load_teacher

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FEW = {**BETAS, "num_train_timesteps": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_pipeline(tmp_path_factory.mktemp("pipeline") / "teacher", "epsilon")


def with_scheduler(folder: Path, to: Path, scheduler: Any) -> Path:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = scheduler
    pipeline.save_pretrained(to)
    return to


SCHEDULERS = {
    "ddim_offset": lambda: diffusers.DDIMScheduler(**FEW, clip_sample=False, steps_offset=1),
    "pndm": lambda: diffusers.PNDMScheduler(**FEW, steps_offset=1),
    "pndm_prk": lambda: diffusers.PNDMScheduler(**FEW, skip_prk_steps=False, steps_offset=1),
    "dpm_karras": lambda: diffusers.DPMSolverMultistepScheduler(num_train_timesteps=20,
        beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True),
    "dpm_single": lambda: diffusers.DPMSolverSinglestepScheduler(**FEW),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**FEW, steps_offset=1),
    "euler_ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**FEW, steps_offset=1),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**FEW),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**FEW),
    "lcm": lambda: diffusers.LCMScheduler(**FEW, original_inference_steps=10, clip_sample=False),
    "deis": lambda: diffusers.DEISMultistepScheduler(**FEW),
    "ddpm": lambda: diffusers.DDPMScheduler(**FEW, clip_sample=False),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_number_of_steps_is_refused_where_the_stock_pipeline_raises_and_drawn_elsewhere(
    folder: Path, tmp_path: Path, name: str
) -> None:
    model = with_scheduler(folder, tmp_path / "model", SCHEDULERS[name]())
    loaded, drawn = load_teacher(str(model)), 0
    for steps in (1, 2, 3, 10, 19, 20):
        try:
            stock = diffusers.DiffusionPipeline.from_pretrained(model)
            stock(["red apple"], num_inference_steps=steps, guidance_scale=1, output_type="latent")
        except Exception:
            with pytest.raises(UserError, match=f"steps is {steps}, and {type(stock.scheduler).__name__}") as caught:
                next(generate(loaded, ["red apple"], steps, 1.0))
            assert "\n" not in str(caught.value)
        else:
            (picture,) = generate(loaded, ["red apple"], steps, 1.0)
            drawn += picture.shape == (1, 3, 8, 8)
    assert drawn >= 2


@pytest.mark.parametrize("steps", [1, 20, 21])
@pytest.mark.parametrize("name", ["ddim_offset", "pndm_prk", "dpm_karras"])
def test_the_command_writes_pictures_or_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, steps: int
) -> None:
    model, out = with_scheduler(folder, tmp_path / "model", SCHEDULERS[name]()), tmp_path / "out"
    capsys.readouterr()
    code = main(["generate", "--model", str(model), "--prompt", "x", "--steps", str(steps), "--out", str(out)])
    error = capsys.readouterr().err
    assert code in (0, 2) and out.exists() == (code == 0)
    assert code == 0 or (len(error.splitlines()) == 1 and f"steps is {steps}" in error)


def test_the_scheduler_and_the_global_noise_stay_as_they_were() -> None:
    import torch

    scheduler: Any = diffusers.EulerAncestralDiscreteScheduler(**FEW)
    before = scheduler.timesteps.clone()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    check_sampler(scheduler, "", 7)
    assert torch.equal(torch.rand(1), expected) and torch.equal(scheduler.timesteps, before)


@pytest.mark.parametrize("name", ["DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler", "NoSuchScheduler"])
def test_training_needs_no_scheduler_and_sampling_names_what_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from diffusers.utils import is_torchsde_available

    if is_torchsde_available() and name != "NoSuchScheduler":
        pytest.skip("torchsde is installed")
    model = with_scheduler(folder, tmp_path / "model", diffusers.DDIMScheduler(**BETAS, clip_sample=False))
    for file in (model / "model_index.json", model / "scheduler/scheduler_config.json"):
        file.write_text(file.read_text().replace("DDIMScheduler", name))
    (tmp_path / "prompts.txt").write_text("red apple\n")
    settings = {"teacher__source": str(model), "prompts": str(tmp_path / "prompts.txt"), "fake__lora__rank": 2}
    made(SwiftBrush, **settings).export(tmp_path / "export")
    assert json.loads((tmp_path / "export/model_index.json").read_text())["scheduler"][1] == "DDIMScheduler"
    out = tmp_path / "out"
    capsys.readouterr()
    assert main(["generate", "--model", str(model), "--prompt", "red apple", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and ("torchsde" in error or "NoSuchScheduler" in error) and not out.exists()
