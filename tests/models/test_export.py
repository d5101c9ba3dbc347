"""What `export_one_step` takes, and that it writes nothing where it refuses."""

from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline as tiny
import torch
from tiny_families import save_tiny_sdxl

from diffdistill.errors import UserError
from diffdistill.models.backbone import full_copy
from diffdistill.models.export import export_few_steps, export_one_step
from diffdistill.models.teacher import Teacher, load_teacher


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    save = {"sd": tiny.save_tiny_pipeline, "sdxl": save_tiny_sdxl}[request.param]
    return load_teacher(save(tmp_path_factory.mktemp("tiny") / "teacher"))


@pytest.mark.parametrize("time", [999, 999.0, torch.tensor(999)])
def test_a_folder_may_be_a_text(teacher: Teacher, time: Any, tmp_path: Path) -> None:
    export_one_step(teacher, teacher.backbone, time, str(tmp_path / "one"))
    export_one_step(teacher, teacher.backbone.inner, 999, tmp_path / "two")
    for file in ("scheduler/scheduler_config.json", "unet/config.json", "tokenizer/vocab.json"):
        assert (tmp_path / "one" / file).read_text() == (tmp_path / "two" / file).read_text()
    assert load_teacher(tmp_path / "one").schedule.last == 999


@pytest.mark.parametrize("time", [0.5, 999.9, torch.tensor(0.98), float("nan"), float("inf"), -1, 1000, 5000])
def test_a_time_that_the_schedule_lacks_is_refused(teacher: Teacher, time: Any, tmp_path: Path) -> None:
    says = "the time is .*; the times of this teacher's schedule are the whole numbers from 0 to 999"
    with pytest.raises(ValueError, match=says):
        export_one_step(teacher, teacher.backbone, time, tmp_path / "out")
    with pytest.raises(ValueError, match=says):
        export_few_steps(teacher, teacher.backbone, time, 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_network_is_refused_and_nothing_is_written(teacher: Teacher, tmp_path: Path) -> None:
    denoiser = teacher.denoiser(full_copy(teacher.backbone))
    for network, says in (
        (denoiser, "the network is a Denoiser; .* which is its .network"),
        (None, "the network is None; it must be a Backbone or a diffusers model$"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            export_one_step(teacher, network, 999, str(tmp_path / "out"))
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    export_one_step(teacher, denoiser.network, 999, str(tmp_path / "out"))
