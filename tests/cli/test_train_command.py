"""`train`: what it makes of configs and overrides. Bad input: one line, exit code 2, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_pipeline import save_tiny_pipeline

from diffdistill.cli.main import main
from diffdistill.cli.train import parse

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "emoji_autoencoder.yaml")
SWIFTBRUSH = str(ROOT / "configs" / "sd21_swiftbrush.yaml")

STUB = '''
import torch
from torch import nn
from diffdistill.methods import Method, OptimizerSettings, Phase


class Stub(Method):
    """One number that learns to be the target."""

    averaged = "student"

    def __init__(self, target: float = 1.0, note: str | None = None) -> None:
        if target < 0:
            raise ValueError("target is below 0")
        self.networks = {"student": nn.Linear(1, 1)}
        self.optimizers = {"student": OptimizerSettings(0.1)}
        self.target = target

    def __len__(self) -> int:
        return 4

    def batch(self, records, random):
        return {"x": torch.ones(len(records), 1)}

    def phases(self, step):
        return [Phase("student", "student", self._loss)]

    def _loss(self, batch, random, carry):
        return (self.networks["student"](batch["x"]) - self.target).square().mean(), {}

    def export(self, folder):
        (folder / "product.txt").write_text("made")
'''


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config of a method from outside the package; runs are made in the current directory."""
    (tmp_path / "stub_method.py").write_text(STUB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    recipe = {
        "method": {"class_path": "stub_method.Stub", "init_args": {"target": 2.0}},
        "training": {"samples": 8, "batch_size": 4, "cpu": True},
        "output_dir": "run",
    }
    (tmp_path / "stub.yaml").write_text(yaml.safe_dump(recipe))
    return "stub.yaml"


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and said.err.startswith("diffdistill: error: ")
    return said.err.strip()


# ---- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("--method.learnin_rate", "'method.optimizer.learning_rate'"),
        ("--method.init_args.kl_wieght", "'method.kl_weight'"),
        ("--training.batchsize", "'training.batch_size'"),
        ("--trainig.samples", "'training.samples'"),
        ("--outputdir", "'output_dir'"),
    ],
)
def test_unknown_option_names_the_nearest_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str, nearest: str
) -> None:
    error = refusal(capsys, "train", CONFIG, key, "3", "--output_dir", str(tmp_path / "x"))
    assert "unknown key" in error and error.endswith(f"the nearest is {nearest}")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("right", "wrong", "nearest"),
    [
        ("batch_size", "batch_sise", "'training.batch_size'"),
        ("latent_channels", "latent_chanels", "'method.latent_channels'"),
        ("init_args", "initargs", "'method.init_args'"),
        ("class_path", "classpath", "'method.class_path'"),
        ("output_dir", "ouput_dir", "'output_dir'"),
    ],
)
def test_unknown_key_in_the_file_names_the_nearest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, right: str, wrong: str, nearest: str
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(Path(CONFIG).read_text().replace(right, wrong))
    error = refusal(capsys, "train", str(bad), "--output_dir", str(tmp_path / "x"))
    assert "unknown key" in error and error.endswith(f"the nearest is {nearest}")


def test_keys_of_other_methods_are_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(capsys, "train", CONFIG, "--method.guidance_scal", "3")
    assert "guidance" not in error.split("the nearest is")[1]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("training.batch_size", "many", "'many'; expected int"),
        ("training.samples", "1.5", "'1.5'; expected int"),
        ("training.mixed_precision", "fp8", "'fp8'; expected one of 'no', 'bf16', 'auto'"),
        ("method.guidance_scale", "high", "'high'; expected float"),
        ("method.noise_ratio", "high", "'high'; expected float or null"),
        ("method.fake.network", "half", "'half'; expected one of 'lora', 'full'"),
        ("method.optimizer.betas", "[0.9]", "'[0.9]'; expected tuple with 2 elements"),
        ("method.times.t_min", "null", "null; expected float"),
        ("method.teacher", "folder", "'folder'; it must hold settings, such as method.teacher.source"),
        ("overwrite", "perhaps", "'perhaps'; expected bool"),
    ],
)
def test_ill_typed_value_and_what_was_expected(
    capsys: pytest.CaptureFixture[str], key: str, value: str, says: str
) -> None:
    assert refusal(capsys, "train", SWIFTBRUSH, f"--{key}", value).endswith(f"{key} is {says}")


@pytest.mark.parametrize("key", ["adversary.data.source", "teacher.variant", "fake.guidance_scale"])
def test_null_on_the_command_line_is_null(key: str) -> None:
    _, namespace = parse([SWIFTBRUSH, f"--method.{key}", "null"])
    assert namespace.method.init_args[key] is None


def test_unknown_method_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'SwiftBrush'" in refusal(capsys, "train", SWIFTBRUSH, "--method", "SwiftBrsh")
    assert "'SwiftBrush'" in refusal(capsys, "train", SWIFTBRUSH, "--method", "no.module.SwiftBrush")


@pytest.mark.parametrize(("content", "says"), [("", "holds no keys"), ("a: [", "cannot be read"), ("word", "no keys")])
def test_a_file_that_is_no_config(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    assert says in refusal(capsys, "train", str(tmp_path / "c.yaml"))


def test_missing_files_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in refusal(capsys, "train", "nowhere.yaml")
    assert refusal(capsys, "train", "--config=nowhere.yaml").endswith("nowhere.yaml")
    for wrong in ("configs/emoji_swiftbrsh.yaml", "emoji_swiftbrush"):
        assert refusal(capsys, "train", wrong).endswith("; did you mean configs/emoji_swiftbrush.yaml?")
    assert refusal(capsys, "train", ".").endswith("there is no config file .")
    assert "there is no config file" in refusal(capsys, "train", "--config=")
    assert "missing" in refusal(capsys, "train")
    assert "there is no prompt file nowhere.txt" in refusal(
        capsys, "train", SWIFTBRUSH, "--method.prompts", "nowhere.txt"
    )  # fmt: skip


def test_what_a_constructor_refuses_is_one_line(capsys: pytest.CaptureFixture[str], stub: str) -> None:
    nowhere = refusal(capsys, "train", CONFIG, "--method.data.source", "nowhere", "--output_dir", "x")
    assert "there are no images at nowhere" in nowhere
    fake = refusal(capsys, "train", SWIFTBRUSH, "--method.fake.updates", "0", "--method.prompts", CONFIG)
    assert "method.fake: updates is 0" in fake  # the group of settings is named
    assert refusal(capsys, "train", stub, "--method.target", "-1").endswith("Stub cannot be built: target is below 0")
    assert not Path("run").exists() and not Path("x").exists()


def test_settings_that_do_not_fit_write_nothing(capsys: pytest.CaptureFixture[str], stub: str) -> None:
    assert "take 12" in refusal(capsys, "train", stub, "--training.samples", "9")
    assert not Path("run").exists()


# ---- configs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_fit_the_schema(config: Path) -> None:
    settings = parse([str(config)])[1].training
    assert settings.samples % settings.batch_size == 0


def test_the_ways_to_name_the_config_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    override = ["--method.guidance_scale", "3"]
    ways = [
        [SWIFTBRUSH, *override],
        ["--config", SWIFTBRUSH, *override],
        [f"--config={SWIFTBRUSH}", *override],
        [*override, "--config", SWIFTBRUSH],
        [SWIFTBRUSH, "--method.init_args.guidance_scale", "3"],
    ]
    parsed = [parse(way) for way in ways]
    dumped = {parser.dump(namespace) for parser, namespace in parsed}
    assert len(dumped) == 1
    assert parsed[0][1].method.init_args.guidance_scale == 3.0


def test_printed_config_is_read_back_to_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def printed(*argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["train", *argv, "--print_config"])
        assert not stop.value.code
        return capsys.readouterr().out

    first = printed(SWIFTBRUSH, "--method.noise_ratio", "2.5")
    (tmp_path / "printed.yaml").write_text(first)
    assert "noise_ratio: 2.5" in first
    assert printed(str(tmp_path / "printed.yaml")) == first


# ---- runs -----------------------------------------------------------------------------------------------------


def test_dry_run_builds_and_writes_nothing(capsys: pytest.CaptureFixture[str], stub: str) -> None:
    before = sorted(Path().rglob("*.yaml"))
    assert main(["train", stub, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "target: 2.0" in said and "student: 0.00 M parameters" in said and "2 steps of 4" in said
    assert sorted(Path().rglob("*.yaml")) == before and not Path("run").exists()


def test_a_run_its_config_its_resume_and_its_overwrite(capsys: pytest.CaptureFixture[str], stub: str) -> None:
    config, run = Path("run/config.yaml"), Path("run")
    assert main(["train", stub]) == 0
    assert capsys.readouterr().out.strip() == str(run / "export")
    saved = config.read_text()
    assert set(yaml.safe_load(saved)) == {"method", "training", "output_dir"}
    assert yaml.safe_load(saved)["training"]["max_grad_norm"] == 1.0
    assert yaml.safe_load(saved)["method"]["init_args"] == {"target": 2.0, "note": None}

    # the folder is left alone unless told otherwise
    assert "already holds a run" in refusal(capsys, "train", stub, "--method.target", "3")
    assert "give only one of them" in refusal(capsys, "train", stub, "--resume", "latest", "--overwrite", "true")
    # a continuation with other settings is refused, and the run's own config is still there
    other = ("train", stub, "--resume", "latest", "--method.target", "3")
    assert "other settings" in refusal(capsys, *other)
    assert "other settings" in refusal(capsys, *other, "--dry_run")
    assert "no checkpoint folder nope" in refusal(capsys, "train", stub, "--resume", "nope")
    best = ("--training.export_best", "true", "--training.validate_every", "4")
    assert "have no score" in refusal(capsys, "train", stub, *best, "--dry_run")
    assert config.read_text() == saved
    assert main(["train", stub, "--resume", "latest", "--dry_run"]) == 0
    assert "the run would continue from run/checkpoint-" in capsys.readouterr().out
    # with no config file, a continuation takes the run's own
    assert "no run to resume in nothing" in refusal(capsys, "train", "--resume", "latest", "--output_dir", "nothing")
    assert "--resume needs --output_dir" in refusal(capsys, "train", "--resume", "latest")
    assert main(["train", "--resume", "latest", "--output_dir", "run"]) == 0
    assert config.read_text() == saved

    # overwriting leaves nothing that a later `--resume latest` could take for its own
    (run / "checkpoint-0000000999").mkdir()
    (run / "notes.txt").write_text("mine")
    assert main(["train", stub, "--overwrite", "true", "--method.target", "3"]) == 0
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-0000000008"]
    assert (run / "notes.txt").exists() and yaml.safe_load(config.read_text())["method"]["init_args"]["target"] == 3.0


def test_checkpoints_that_cannot_be_gone_on_from(capsys: pytest.CaptureFixture[str], stub: str) -> None:
    assert main(["train", stub]) == 0
    assert main(["train", stub, "--output_dir", "other"]) == 0
    capsys.readouterr()
    state = next(Path("run").glob("checkpoint-*")) / "state.json"
    other = str(next(Path("other").glob("checkpoint-*")))
    assert "is another run's" in refusal(capsys, "train", stub, "--resume", other)
    state.write_text(state.read_text().replace('"format": ', '"format": 9'))
    assert "torn, or of another version" in refusal(capsys, "train", stub, "--resume", "latest")
    assert state.exists()
    (Path("run") / "config.yaml").unlink()  # the checkpoints alone are a run too
    assert "already holds a run" in refusal(capsys, "train", stub)


def test_output_dir_below_a_file(capsys: pytest.CaptureFixture[str], stub: str) -> None:
    Path("file").write_text("in the way")
    assert "is a file, not a folder" in refusal(capsys, "train", stub, "--output_dir", "file/run")


def test_output_dir_that_is_a_file(capsys: pytest.CaptureFixture[str], stub: str) -> None:
    Path("run").write_text("in the way")
    assert "is a file" in refusal(capsys, "train", stub)


def test_data_of_the_repository_is_found_from_elsewhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "configs/emoji_autoencoder.yaml", "--dry_run"]) == 0
    assert "source: assets/emoji" in capsys.readouterr().out  # the recipe itself stays as it was written


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "is fp16, which training does not do"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "does not run under DeepSpeed"),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", "training compiles no network"),
    ],
)
def test_what_a_launcher_asks_and_training_does_not_do_writes_nothing(
    capsys: pytest.CaptureFixture[str], stub: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert says in refusal(capsys, "train", stub)
    assert says in refusal(capsys, "train", stub, "--dry_run")
    assert not Path("run").exists()


# ---- bad teachers and prompts, through the command --------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("missing", "no model at"),
        ("relative", "no model at tests/nowhere"),
        ("pickled", "unet has no *.safetensors weights"),
        ("prediction", "direction"),
        ("empty prompts", "no prompt"),
    ],
)
def test_bad_teachers_and_prompts_write_nothing(
    tmp_path: Path, fault: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, prompts, run = save_tiny_pipeline(tmp_path / "teacher"), tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("\n" if fault == "empty prompts" else "red apple\n")
    if fault == "pickled":
        for weights in (teacher / "unet").glob("*.safetensors"):
            weights.rename(weights.with_suffix(".bin"))
    if fault == "prediction":
        config = teacher / "scheduler" / "scheduler_config.json"
        config.write_text(config.read_text().replace("v_prediction", "direction"))
    named = {"missing": tmp_path / "nowhere", "relative": "tests/nowhere"}.get(fault, teacher)
    command = ["train", SWIFTBRUSH, "--output_dir", str(run), "--method.teacher.source", str(named)]
    command += ["--method.prompts", str(prompts)]
    if fault == "prediction":  # the one that comes farthest; a process of its own takes seconds
        program = [sys.executable, "-m", "diffdistill.cli.main"]
        done = subprocess.run([*program, *command], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
        assert says in done.stderr
    else:
        monkeypatch.chdir(ROOT)
        capsys.readouterr()  # bars of the teacher's saving
        assert says in refusal(capsys, *command)
    assert not run.exists()
