"""SANA: a tiny pipeline of the real classes, and its network at real size on the meta device."""

from pathlib import Path
from typing import Any

import family_checks as checks
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from tiny_families import save_tiny_sana

from diffdistill.errors import UserError
from diffdistill.models.attention import set_attention
from diffdistill.models.families.sana import Sana
from diffdistill.models.stock_check import load_checked_teacher
from diffdistill.models.teacher import load_teacher
from diffdistill.models.two_times import add_second_time


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sana(tmp_path_factory.mktemp("sana") / "teacher")


@pytest.mark.parametrize("settings", [{}, {"learned_variance": True}, {"timestep_scale": 0.5}])
def test_the_denoiser_is_the_pipelines(tmp_path: Path, settings: dict[str, Any]) -> None:
    checks.denoiser_is_the_pipelines(save_tiny_sana(tmp_path / "teacher", **settings))


def test_the_export_is_the_student(folder: Path, tmp_path: Path) -> None:
    checks.export_is_the_student(folder, tmp_path)


def test_generation_is_the_pipelines(folder: Path) -> None:
    checks.generation_is_the_pipelines(folder)


def test_taps_and_digests(folder: Path) -> None:
    checks.taps_are_maps(load_teacher(str(folder)))
    checks.digests_tell_parts_apart(folder)


def test_the_schedule_is_read_from_either_scheduler(folder: Path, tmp_path: Path) -> None:
    assert vars(load_teacher(str(folder)).schedule) == {"num_train_timesteps": 1000, "shift": 3.0}
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    pipeline.save_pretrained(tmp_path / "euler")
    teacher = load_checked_teacher(str(tmp_path / "euler"))
    assert teacher.schedule.shift == 2.0 and teacher.prediction_type == "flow"
    checks.denoiser_is_the_pipelines(tmp_path / "euler")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_flow_sigmas": False}, "not set to flow matching"),
        ({"_class_name": "DDIMScheduler"}, "DDIMScheduler is not supported; SANA's networks are sampled by"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "shifts times with"),
    ],
)
def test_other_schedulers_are_one_line(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    import json

    file = save_tiny_sana(tmp_path / "teacher") / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(UserError, match=says) as caught:
        load_teacher(str(tmp_path / "teacher"))
    assert "\n" not in str(caught.value)


def test_a_student_is_fed_pure_noise(folder: Path) -> None:
    teacher = load_teacher(str(folder))
    for make in (teacher.family.one_step_scheduler, lambda *a: teacher.family.few_step_scheduler(*a, 4)):
        with pytest.raises(ValueError, match="starts from pure noise, at time 1, but here at 0.7"):
            make(teacher, 0.7)


def test_cut_prompts_are_counted_without_the_instruction(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = load_teacher(str(folder))
    long = "q" * 400  # a token a letter
    assert (teacher.embed([long])["text"] == teacher.embed([long + "q"])["text"]).all()
    capsys.readouterr()
    teacher.report_cut(["q" * 200, long, "red apple", long])
    said = capsys.readouterr().err
    assert "1 of 3 different prompts is longer than the 300 tokens" in said and said.count("\n") == 1


def test_linear_attention_stays(folder: Path) -> None:
    inner = load_teacher(str(folder)).backbone.inner
    before = {name: type(p) for name, p in inner.attn_processors.items()}
    assert set_attention(inner, "auto", "cpu") == set_attention(inner, "auto", "cuda") == "own"
    for backend in ("sdpa", "math"):
        with pytest.raises(UserError, match=f"attention {backend}: SanaTransformer2DModel has attention of its own"):
            set_attention(inner, backend)
    assert {name: type(p) for name, p in inner.attn_processors.items()} == before


def test_a_second_time_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match="this SanaTransformer2DModel is of another family"):
        add_second_time(load_teacher(str(folder)).backbone.inner)


def test_parameters_and_lora_targets_at_real_size() -> None:
    """Sana_1600M, whose config.json has the class's default values; the paper calls it 1.6B."""
    from diffusers import SanaTransformer2DModel

    with torch.device("meta"):
        transformer = SanaTransformer2DModel()
    assert sum(p.numel() for p in transformer.parameters()) == 1_604_462_752
    names = [name for name, _ in transformer.named_modules()]
    for target in Sana().lora_targets:
        assert any(name.endswith(f".{target}") for name in names), target
    backbone = Sana().backbone(transformer)
    assert backbone.bottleneck == "block.10" and backbone.tap_channels("block.10") == 2240
