"""Recipes that the parser alone would take, or would refuse in words of its own: one line that names the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from diffdistill.cli.config_files import read_config
from diffdistill.cli.main import main
from diffdistill.cli.train import parse

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "emoji_autoencoder.yaml")
SWIFTBRUSH = str(ROOT / "configs" / "sd21_swiftbrush.yaml")


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and said.err.startswith("diffdistill: error: ")
    return said.err.strip()


def test_the_printed_config_has_the_nulls_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    config, option = str(ROOT / "configs" / "emoji_swiftbrush.yaml"), "--method.times.t_max_final"
    for value, expected in (("null", None), ("0.5", 0.5)):
        with pytest.raises(SystemExit):
            main(["train", config, option, value, "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["method"]["init_args"]["times"]["t_max_final"] == expected
    said = refusal(capsys, "train", config, "--method.times.t_min", "null", "--print_config")
    assert said.endswith("method.times.t_min is null; expected float")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"times": 0.5}, "method.times is 0.5; it must hold settings, such as method.times.t_min"),
        ({"times": [0.1, 0.2]}, "method.times is [0.1, 0.2]; it must hold settings, such as method.times.t_min"),
        ({"times": None}, "method.times is null; it must hold settings, such as method.times.t_min"),
        ({"export": True}, "method.export is true; it must hold settings, such as method.export.half"),
        ({"adversary": {"data": True}}, "method.adversary.data is true; it must hold settings, such as "
         "method.adversary.data.source"),
        ({"fake": {"lora": 3}}, "method.fake.lora is 3; it must hold settings, such as method.fake.lora.rank"),
        ({"fake": {"network": None}}, "method.fake.network is null; expected one of 'lora', 'full'"),
        ({"fake": {"optimiser": {}}}, "unknown key 'method.fake.optimiser'; the nearest is 'method.fake.optimizer'"),
        ({"fake": {"optimiser": None}}, "unknown key 'method.fake.optimiser'; the nearest is 'method.fake.optimizer'"),
        ({"fake.optimiser": {}}, "unknown key 'method.fake.optimiser'; the nearest is 'method.fake.optimizer'"),
        ({"fakes": {}}, "unknown key 'method.fakes'; the nearest is 'method.fake'"),
        ({"real_images": "x"}, "unknown key 'method.real_images'; the nearest is 'method.adversary.data.source'"),
        ({"optimizer": {"groups": [{}]}}, "a value is missing for method.optimizer.groups[0].pattern"),
        ({"optimizer": {"groups": [{"match": "x"}]}}, "unknown key 'method.optimizer.groups[0].match'; the nearest is "
         "'method.optimizer.groups[0].pattern'"),
        ({"optimizer": {"groups": ["x"]}}, "method.optimizer.groups[0] is 'x'; it must hold settings, such as "
         "method.optimizer.groups[0].pattern"),
        ({"optimizer": {"groups": "x"}}, "method.optimizer.groups is 'x'; it must be a list of groups, each with "
         "pattern"),
    ],
)  # fmt: skip
def test_groups_of_a_file_that_hold_no_settings_or_unknown_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, edit: dict[str, Any], says: str
) -> None:
    recipe = yaml.safe_load(Path(SWIFTBRUSH).read_text())
    recipe["method"]["init_args"] |= edit
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(recipe))
    assert refusal(capsys, "train", str(tmp_path / "c.yaml")).endswith(f"error: {says}")


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("training", None, "training is null; it must hold settings, such as training.samples"),
        ("training", 5, "training is 5; it must hold settings, such as training.samples"),
        ("outputdir", {}, "unknown key 'outputdir'; the nearest is 'output_dir'"),
        ("method", {"class_path": "SwiftBrush", "init_args": None}, "method.init_args is null; it must hold the "
         "settings of SwiftBrush"),
    ],
)  # fmt: skip
def test_sections_of_a_file_that_hold_no_settings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, section: str, value: Any, says: str
) -> None:
    recipe = {**yaml.safe_load(Path(SWIFTBRUSH).read_text()), section: value}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(recipe))
    assert refusal(capsys, "train", str(tmp_path / "c.yaml"), "--training.samples", "8").endswith(f"error: {says}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method.fake", "3"], "method.fake is 3; it must hold settings, such as method.fake.network"),
        (["--method.optimizer.groups", "[{}]"], "a value is missing for method.optimizer.groups[0].pattern"),
        (["--method.teacher.source"], "method.teacher.source is given without a value"),
        (["--method.weight", "--dry_run"], "method.weight is given without a value"),
        (["--training", "null"], "training is null; it must hold settings, such as training.samples"),
        (["--training.max_grad_norm", "inf"], "is 'inf'; expected float (.inf for infinity)"),
        (["--method.adam_eps", "1e-6"], "the nearest is 'method.optimizer.eps'"),
        (["--method.betas", "[0, 0.9]"], "the nearest is 'method.optimizer.betas'"),
        (["--method.fake_score", "lora"], "the nearest is 'method.fake.network'"),
        (["--method.half_export", "true"], "the nearest is 'method.export.half'"),
        (["--output_dir", ""], "output_dir is empty; name a folder"),
        (["--method.adversary.data.source", ""], "source is empty; name a folder, .zip, .npz or .tar of images"),
        (["--method.fake.lora.alpha", ".nan", "--dry_run"], "method.fake.lora: alpha is nan; it must be a number "
         "above 0"),
        (["--method.fake.lora.targets", "[]", "--dry_run"], "method.fake.lora: targets is empty; name at least one, "
         "such as to_q, or set null for the family's own"),
    ],
)  # fmt: skip
def test_options_that_are_no_settings(capsys: pytest.CaptureFixture[str], options: list[str], says: str) -> None:
    assert refusal(capsys, "train", SWIFTBRUSH, *options).endswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method:\n  init_args:\n    times: {t_min: 0.3}\n    weight: v\n    times: {}\n",
         "the key method.init_args.times is given twice, in lines 3 and 5; keep one of them"),
        ("a: 1\na: 1\n", "the key a is given twice, in lines 1 and 2; keep one of them"),
        ("a: [{b: 1, b: 2}]\n", "the key a[0].b is given twice, in lines 1 and 1; keep one of them"),
    ],
)  # fmt: skip
def test_a_key_that_is_given_twice(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert refusal(capsys, "train", str(tmp_path / "c.yaml")).endswith(says)


def test_merged_keys_are_not_given_twice(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: &one {b: 1, c: 2}\ne: {<<: *one, c: 4}\n")
    assert read_config(str(tmp_path / "c.yaml"))["e"] == {"b": 1, "c": 4}


def test_a_skeleton_of_a_recipe_is_filled_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--method", "SwiftBrush", "--print_config"])
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    given = ["--method.teacher.source", "a/b", "--method.prompts", "p.txt", "--training.samples", "8"]
    _, namespace = parse([str(tmp_path / "c.yaml"), *given, "--output_dir", "run"])
    assert namespace.method.init_args.teacher.source == "a/b" and namespace.training.samples == 8


def test_a_file_is_checked_by_its_own_method() -> None:
    keys = ["--method.teacher.source", "a/b", "--method.prompts", "p.txt"]
    _, namespace = parse([CONFIG, "--method", "DMD2", *keys, "--method.fake.optimizer.learning_rate", "1e-4"])
    assert namespace.method.class_path.endswith("DMD2")
