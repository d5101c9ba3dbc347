"""SwiftBrush on two processes is SwiftBrush on one, and recomputed activations change nothing."""

import json
from pathlib import Path

import pytest
import torch
from made import made, nested
from processes import train_on_one_and_on_two
from safetensors.torch import load_file
from tiny_pipeline import save_tiny_pipeline

from diffdistill.errors import UserError
from diffdistill.methods import SwiftBrush
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

WORDS = ("red", "blue", "apple", "car")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    save_tiny_pipeline(folder / "teacher")
    # 16 prompts, more than a batch of 8, so that a wrong share of the batch is another set of prompts
    (folder / "prompts.txt").write_text("".join(f"{a} {b}\n" for a in WORDS for b in WORDS))
    return folder


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("fake_score", ["lora", "full"])
def test_two_processes_log_what_one_logs(folder: Path, tmp_path: Path, fake_score: str) -> None:
    # Rates at which rounding stays far below the bound. A sum over 8 is rounded otherwise than two over 4, and Adam's
    # first steps, of the gradient's sign, let that grow with the rate; the student's loss is a difference of two
    # scores, so a fake score that soon leaves the teacher loses fewer digits.
    recipe = {
        "method": {
            "class_path": "diffdistill.methods.SwiftBrush",
            "init_args": nested(
                {
                    "teacher__source": str(folder / "teacher"),
                    "prompts": str(folder / "prompts.txt"),
                    "fake__network": fake_score,
                    "fake__lora__alpha": 640,
                    "optimizer__learning_rate": 1e-5,
                    "fake__optimizer__learning_rate": 3e-3,
                }
            ),
        },
        "training": {"samples": 80, "batch_size": 8, "gradient_accumulation_steps": 2, "log_every": 1},
    }
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps(recipe))  # JSON is YAML
    one, two = map(log_of, train_on_one_and_on_two(config))
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 11))
    assert one[-1]["student/loss"] > 1e-4
    for a, b in zip(one, two, strict=True):
        for key in ("student/loss", "fake/loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-5), (key, a["step"])
        # Adam does not mind a gradient that is summed where it should be averaged; its norm does
        for key in ("student/grad_norm", "fake/grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), (key, a["step"])


def test_two_processes_share_the_work_of_pairs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {
        "teacher__source": str(folder / "teacher"),
        "prompts": str(folder / "prompts.txt"),
        "optimizer__learning_rate": 1e-5,
        "pairs__count": 5,
        "pairs__steps": 3,
        "regression__alone": 2,
        "adversary__of_teacher": True,
        "fake__network": "full",
        "fake__optimizer__learning_rate": 1e-5,
    }
    method = {"class_path": "diffdistill.methods.SwiftBrush", "init_args": nested(named)}
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps({"method": method, "training": {"samples": 32, "batch_size": 8, "log_every": 1}}))
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache of one"))
    logs = map(log_of, train_on_one_and_on_two(config, DIFFDISTILL_CACHE=str(tmp_path / "cache of two")))
    for a, b in zip(*logs, strict=True):
        for key in ("student/regression",) if a["step"] <= 2 else ("fake/critic", "student/adversarial_rms"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), (key, a["step"])
    first, second = (load_file(next(tmp_path.glob(f"cache of {n}/pairs-*")))["x0"] for n in ("one", "two"))
    torch.testing.assert_close(first, second)
    assert len(first.unique(dim=0)) == 5


@pytest.mark.parametrize("fake_score", ["lora", "full"])
def test_gradient_checkpointing_runs_layers_again_and_changes_no_loss(
    folder: Path, tmp_path: Path, fake_score: str
) -> None:
    logs, calls = {}, {}
    for checkpointing in (False, True):
        run = tmp_path / str(checkpointing)
        run.mkdir()
        torch.manual_seed(0)  # of the adapters
        method = made(
            SwiftBrush, teacher__source=str(folder / "teacher"), prompts=str(folder / "prompts.txt"),
            fake__network=fake_score, fake__lora__rank=4, optimizer__learning_rate=1e-3,
        )  # fmt: skip
        settings = TrainingSettings(
            32, batch_size=8, gradient_accumulation_steps=2, log_every=1, cpu=True, gradient_checkpointing=checkpointing
        )
        trainer = Trainer(method, settings, run)
        counted = calls[checkpointing] = {"student": 0, "fake": 0}
        for name in counted:

            def count(*_: object, counted=counted, name=name) -> None:
                counted[name] += 1

            # in the last block: the first one has no gradient to recompute for where adapters sit on attention alone
            trainer.state.networks[name].inner.up_blocks[-1].resnets[-1].register_forward_pre_hook(count)
        trainer.fit()
        logs[checkpointing] = log_of(run)
    # 8 micro-batches: each is one pass with a gradient, which is then run again; the judging passes are not
    assert {name: calls[True][name] - calls[False][name] for name in calls[True]} == {"student": 8, "fake": 8}
    for plain, again in zip(logs[False], logs[True], strict=True):
        for key in ("student/loss", "student/grad_norm", "fake/loss", "fake/grad_norm"):
            assert plain[key] == pytest.approx(again[key], rel=1e-6), (key, plain["step"])


def test_gradient_checkpointing_is_refused_where_adapters_would_be_on_again(folder: Path, tmp_path: Path) -> None:
    method = made(
        SwiftBrush, teacher__source=str(folder / "teacher"), prompts=str(folder / "prompts.txt"), fake__lora__rank=4,
        pairs__count=4, pairs__steps=2, regression__weight=1.0, regression__features__weight=1.0,
    )  # fmt: skip
    with pytest.raises(UserError, match="set fake.network to full"):
        Trainer(method, TrainingSettings(8, batch_size=8, cpu=True, gradient_checkpointing=True), tmp_path)
