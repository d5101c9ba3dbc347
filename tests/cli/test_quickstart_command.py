"""`quickstart`: from one command to a table, images and figures; here with a random teacher and few images."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_pipeline import save_tiny_pipeline

from diffdistill.cli.main import main
from diffdistill.data import emoji
from diffdistill.evaluation.features.mobilenet import _packaged_weights

weights = _packaged_weights()
pytestmark = pytest.mark.skipif(weights is None or not weights.is_file(), reason="MobileNetV2's weights are missing")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = emoji.load_emoji(ROOT / "assets" / "emoji")
    monkeypatch.setattr(emoji, "load_emoji", lambda *_: whole.subset(list(range(24))))


def test_quickstart_distils_measures_and_draws(
    tmp_path: Path, few_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, run = save_tiny_pipeline(tmp_path / "teacher"), tmp_path / "run"
    recipe = yaml.safe_load((ROOT / "configs" / "emoji_quickstart.yaml").read_text())
    recipe["method"]["init_args"]["prompts"] = str(ROOT / recipe["method"]["init_args"]["prompts"])
    recipe["method"]["init_args"]["pairs"] = {"count": 4, "steps": 2}
    recipe["method"]["init_args"]["adversary"]["matched"] = False  # most prompts have no image here
    recipe["training"] = {"samples": 8, "batch_size": 4, "cpu": True}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--teacher", str(teacher), "--n", "8", "--guidance", "2", "--full", "--output_dir", str(run)]
    assert main(["quickstart", "--config", str(tmp_path / "few.yaml"), *options]) == 0
    table = capsys.readouterr().out
    report = json.loads((run / "report.json").read_text())
    for name in ("teacher_50", "teacher_50_unguided", "teacher_1", "student_untrained", "student_1", "floor"):
        assert {"kd", "fd", "n", "nfe", "guidance", "seconds_per_image"} <= set(report[name])
        assert report[name]["n"] == 8 and name in table
    assert report["teacher_50_unguided"]["nfe"] == 50 and report["student_1"]["nfe"] == 1
    assert Image.open(run / "grid.png").width > 0
    assert Image.open(run / "noises.png").width == 8 * 8
    stored = json.loads((teacher / "quick_numbers.json").read_text())
    kept = stored["n 8, seed 0"]["report"]["teacher_1"]
    assert kept == {key: report["teacher_1"][key] for key in kept}
    assert report["teacher_50"]["kd_ratio"] == report["teacher_50"]["variety_ratio"] == 1
    assert {"kd_ratio", "variety_ratio"} <= set(report["student_1"]) and "variety/T" in table

    assert main(["quickstart", *options]) == 2
    assert "already holds a run" in capsys.readouterr().err

    # what is refused leaves the earlier result as it was
    before = (run / "report.json").read_bytes()
    assert main(["quickstart", *options, "--overwrite", "--config", "nowhere.yaml"]) == 2
    (teacher / "unet" / "config.json").unlink()
    assert main(["quickstart", *options, "--overwrite"]) == 2
    assert (run / "report.json").read_bytes() == before and (run / "grid.png").exists()


def test_bad_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, says in (
        (["--teacher", str(tmp_path)], "no teacher at"),
        (["--n", "1", "--teacher", str(save_tiny_pipeline(tmp_path / "t"))], "--n is 1"),
        (["--student", str(tmp_path / "t"), "--training_seed", "1"], "--student measures a student"),
        (["--config", "configs/emoji_autoencoder.yaml"], "trains Autoencoder, which has no teacher"),
    ):
        capsys.readouterr()
        assert main(["quickstart", *options, "--output_dir", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert says in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
