"""What holds for every method that needs prompts alone: no image, exact resuming, any number of processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline as tiny
import torch
import yaml
from made import made, nested
from processes import train_on_one_and_on_two

from diffdistill import methods
from diffdistill.cli.nested import flattened
from diffdistill.errors import UserError
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]
DIFF_INSTRUCT = yaml.safe_load((ROOT / "configs" / "emoji_diff_instruct.yaml").read_text())["method"]["init_args"]

# class and settings of its own
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "SwiftBrush": ("SwiftBrush", {"fake__lora__rank": 2, "times__t_max_final": 0.1}),
    "DMD2": ("DMD2", {"steps": 2, "fake__updates": 2}),
    "Diff-Instruct": (
        "DMD2",
        {
            k.replace(".", "__"): v
            for k, v in flattened(DIFF_INSTRUCT).items()
            if k not in ("teacher.source", "prompts")
        },
    ),
    "SiD": ("SiD", {"times__t_max_final": 0.5}),
    "ASD": ("ASD", {"noise_ratio": 2.5}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    tiny.save_tiny_pipeline(folder / "teacher")
    words = ("red", "blue", "apple", "car")
    (folder / "prompts.txt").write_text("".join(f"{a} {b}\n" for a in words for b in words))
    return folder


def build(folder: Path, name: str, **more: Any) -> Any:
    cls, options = FAMILY[name]
    named = {"teacher__source": str(folder / "teacher"), "prompts": str(folder / "prompts.txt")}
    return made(getattr(methods, cls), **named, **{**options, **more})


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# A process in which the image set cannot be imported, and no image opened.
WITHOUT_PICTURES = """
import builtins, json, sys
from pathlib import Path
sys.modules["diffdistill.data.emoji"] = None
from diffdistill import methods
from PIL import Image
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings
from made import made

folder, out, family = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
real_open = builtins.open

def watched(file, *arguments, **options):
    assert not str(file).endswith((".png", ".webp", ".jpg", ".npy", ".npz")), f"opened {file}"
    return real_open(file, *arguments, **options)

def refuse(*arguments, **options):
    raise AssertionError("an image was opened")

builtins.open, Image.open = watched, refuse
for name, (cls, options) in family.items():
    kind = getattr(methods, cls)
    options |= {"teacher__source": str(folder / "teacher"), "prompts": str(folder / "prompts.txt")}
    settings = TrainingSettings(8, 4, cpu=True, log_every=1)
    (out / name).mkdir()
    more = {"fake__warmup": 0} if name != "ASD" else {}
    Trainer(made(kind, **{**options, **more}), settings, out / name).fit()
    if name != "ASD":
        try:
            made(kind, **options, adversary__data__source=sys.argv[4])
        except ImportError:
            continue
        raise AssertionError(f"{name}: images could be imported after all")
"""


def test_all_train_where_no_picture_set_can_be_imported(folder: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [
        sys.executable,
        "-c",
        WITHOUT_PICTURES,
        str(folder),
        str(tmp_path),
        json.dumps(FAMILY),
        str(ROOT / "assets" / "emoji"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in FAMILY:
        last = log_of(tmp_path / name)[-1]
        assert last["samples"] == 8 and last["student/grad_norm"] > 0, name
        assert (tmp_path / name / "export" / "model_index.json").is_file()


@pytest.mark.parametrize("name", list(FAMILY))
def test_a_continuation_ends_with_the_same_bits(folder: Path, tmp_path: Path, name: str) -> None:
    """Weights, moments, average and warm-up: the second half of a run from its checkpoint alone."""
    settings = TrainingSettings(
        20, 4, 2, cpu=True, checkpoint_every=8, checkpoints_limit=9, lr_schedule="cosine", log_every=1
    )
    more = {} if name == "ASD" else {"fake__warmup": 3}
    states = []
    for run, resume in ((tmp_path / "whole", None), (tmp_path / "rest", "latest")):
        run.mkdir()
        torch.manual_seed(len(states))  # adapters start elsewhere, but come from the checkpoint
        if resume:
            shutil.copytree(tmp_path / "whole" / "checkpoint-0000000008", run / "checkpoint-0000000008")
        trainer = Trainer(build(folder, name, **more), settings, run, resume)
        trainer.fit()
        states.append(trainer.state.capture()[0])
    whole, rest = states
    assert whole.keys() == rest.keys() and ("fake.optimizer" in whole) == (name != "ASD")
    for group in whole.keys() - {"rng-0"}:
        assert whole[group].keys() == rest[group].keys()
        assert all(torch.equal(tensor, rest[group][key]) for key, tensor in whole[group].items()), group
    assert log_of(tmp_path / "whole")[-1]["student/loss"] == log_of(tmp_path / "rest")[-1]["student/loss"] != 0


@pytest.mark.parametrize("name", list(FAMILY))
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"times__t_min": 0.5, "times__t_max": 0.5004, "times__t_max_final": None}, "no time between 0.5 and 0.5004"),
        ({"noise_ratio": float("inf")}, "noise_ratio is inf"),
        ({"noise_ratio": 0.0}, "noise_ratio is 0.0"),
    ],
)
def test_times_that_cannot_be_are_refused_before_the_first_step(
    folder: Path, name: str, bad: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        build(folder, name, **bad)


@pytest.mark.parametrize("eta", [-0.1, float("inf"), float("nan")])
def test_a_later_time_before_t_or_nowhere_is_refused(folder: Path, eta: float) -> None:
    for name, key in (("ASD", "eta"), ("SwiftBrush", "eta")):
        with pytest.raises(UserError, match=f"{key} is {eta}"):
            build(folder, name, **{key: eta})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DMD2", "SiD"])
def test_two_processes_log_what_one_logs(folder: Path, tmp_path: Path, name: str) -> None:
    """Every key: a mean over processes and micro-batches is that of the batch, steps and noises are a sample's own.

    The weight is not normalised: rounding would be divided by the teacher's small error. The fake score is ahead, so
    that the student's loss is no difference of equals.
    """
    cls, options = FAMILY[name]
    own = {"weight": "sigma2"} if name == "DMD2" else {}
    recipe = {
        "method": {
            "class_path": f"diffdistill.methods.{cls}",
            "init_args": nested(
                {
                    "teacher__source": str(folder / "teacher"),
                    "prompts": str(folder / "prompts.txt"),
                    "fake__optimizer__learning_rate": 1e-3,
                    "fake__warmup": 2,
                    **options,
                    **own,
                }
            ),
        },
        "training": {"samples": 64, "batch_size": 8, "gradient_accumulation_steps": 2, "log_every": 1},
    }
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps(recipe))  # JSON is YAML
    logs = [log_of(run) for run in train_on_one_and_on_two(config)]
    assert [len(lines) for lines in logs] == [8, 8]
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys() and ("student/loss" in a) == (a["step"] > 2)
        for key in (key for key in a if "/" in key):
            assert a[key] == pytest.approx(b[key], rel=1e-3), (key, a["step"])


@pytest.mark.parametrize("name", list(FAMILY))
@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_guidance_that_is_none_is_refused(folder: Path, name: str, scale: float) -> None:
    with pytest.raises(UserError, match=f"guidance_scale is {scale}; it must be a number from 0"):
        build(folder, name, guidance_scale=scale)
