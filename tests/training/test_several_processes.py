"""Two processes do what one does: losses, norms, averages, updates left out, continuations."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import in_two_processes

from diffdistill.cli.train import main
from diffdistill.training.checkpoint import latest_checkpoint, load_checkpoint

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
sys.path.insert(0, str(HERE))
from small_method import train, train_with  # noqa: E402

LOGGED = ("step", "student/loss", "fake/loss", "student/grad_norm", "fake/grad_norm")


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def final(run: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    folder = latest_checkpoint(run)
    assert folder is not None
    return load_checkpoint(folder)


def test_two_processes_log_and_learn_what_one_does(tmp_path: Path) -> None:
    """With every feature of a method, and an update that both leave out since one of them has a loss that is none."""
    settings = {
        "kind": "Rich", "samples": 80, "gradient_accumulation_steps": 2, "on_nonfinite": "skip", "validate_every": 40,
        "max_minutes": 1e6, "checkpoint_every": 40, "export_every": 40,
    }  # fmt: skip
    train(tmp_path / "one", **settings)
    in_two_processes(train_with, tmp_path / "two", settings)
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        for key in a.keys() - {"seconds", "cpu_seconds"}:  # a loss that is not a number is logged as None
            assert a[key] == (b[key] if b[key] is None else pytest.approx(b[key], rel=1e-5)), (key, a["step"])
    assert [line["step"] for line in one if line.get("both/loss", 0.0) is None] == [5]
    assert {"both/student/grad_norm", "both/fake/grad_norm", "both/mean_x"} <= one[-2].keys()
    assert [line["samples"] for line in one if "validation/weight" in line] == [0, 40, 80]
    (first, values), (second, others) = final(tmp_path / "one"), final(tmp_path / "two")
    assert (values["processes"], others["processes"]) == (1, 2) and values["skipped"] == others["skipped"] == 1
    assert {*first, "rng-1"} == {*second}
    for group, tensors in first.items():
        for name, tensor in tensors.items() if "rng" not in group else ():
            torch.testing.assert_close(second[group][name], tensor, rtol=1e-4, atol=1e-6)
    for run in ("one", "two"):
        assert (tmp_path / run / "export" / "student.safetensors").exists()
        assert (tmp_path / run / "export-0000000040").is_dir()


def test_a_loss_of_the_whole_batch_is_that_of_one_process(tmp_path: Path) -> None:
    settings = {"kind": "Contrastive", "samples": 80}
    train(tmp_path / "one", **settings)
    in_two_processes(train_with, tmp_path / "two", settings)
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    for key in ("pairs/loss", "pairs/student/grad_norm", "pairs/fake/grad_norm"):
        assert [a[key] for a in one] == pytest.approx([b[key] for b in two], rel=1e-5)
        assert len({a[key] for a in one}) == 10


def test_torchrun_of_the_script_trains_as_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{HERE}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = {"samples": 32, "batch_size": 8, "log_every": 1, "cpu": True}
    config = tmp_path / "small.yaml"
    config.write_text(
        json.dumps({"method": {"class_path": "small_method.Small"}, "training": settings})
    )  # JSON is YAML
    main([str(config), "--output_dir", str(tmp_path / "one")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(ROOT / "train" / "distill.py"), "--config", str(config), "--output_dir", str(tmp_path / "two")]
    done = subprocess.run([*launch, *script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "two" / "export")]  # of the main process alone
    assert "Warning" not in done.stderr
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert final(tmp_path / "two")[1]["processes"] == 2
    for a, b in zip(one, two, strict=True):
        assert [a[key] for key in LOGGED] == pytest.approx([b[key] for key in LOGGED], rel=1e-5)


def test_two_processes_continue_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"samples": 32, "checkpoint_every": 16}
    in_two_processes(train_with, tmp_path / "whole", settings)
    middle = str(tmp_path / "whole" / "checkpoint-0000000016")
    in_two_processes(train_with, tmp_path / "part", {**settings, "resume": middle})
    (whole, _), (part, values) = final(tmp_path / "whole"), final(tmp_path / "part")
    assert values["step"] == 4 and whole.keys() == part.keys()
    for group, tensors in whole.items():
        assert all(torch.equal(tensor, part[group][name]) for name, tensor in tensors.items()), group
