"""What a continuation may change and what it may not: the bits of the whole run, or a line with each setting."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffdistill.errors import UserError
from diffdistill.training.checkpoint import latest_checkpoint
from diffdistill.training.continuation import FREE, Recipe, explain_missing, find_again
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))
from small_method import Small  # noqa: E402


class Steady(Small):
    """Follows no progress."""

    def _student(self, batch, random, carry):
        x0 = self.networks["student"](random.normal("z", (4,)))
        carry["x0"] = x0.detach()
        return (x0 - batch["record"] / 10).square().mean(), {}


class Late(Small):
    """Follows the progress from the third step on."""

    def begin_step(self, step):
        self.late = step >= 2

    def _student(self, batch, random, carry):
        x0 = self.networks["student"](random.normal("z", (4,)))
        carry["x0"] = x0.detach()
        return (x0 - (self.progress if self.late else 0.0)).square().mean(), {}


def settings(samples: int = 32, **more) -> TrainingSettings:
    return TrainingSettings(
        **{"samples": samples, "batch_size": 8, "log_every": 1, "cpu": True, "ema_decay": 0.9, **more}
    )


def train(
    run: Path, kind: type[Small] = Small, resume: str | None = None, recipe: Recipe | None = None, **more
) -> Trainer:
    run.mkdir(exist_ok=True)
    trainer = Trainer(kind(), settings(**more), run, resume, recipe)
    trainer.fit()
    return trainer


def same_bits(one: Path, two: Path) -> bool:
    a, b = latest_checkpoint(one), latest_checkpoint(two)
    assert a is not None and b is not None and a.name == b.name
    groups = ("student", "fake", "student.optimizer", "fake.optimizer", "ema")
    pairs = [[load_file(folder / f"{name}.safetensors") for folder in (a, b)] for name in groups]
    return all(torch.equal(x[key], y[key]) for x, y in pairs for key in x)


# ---- free -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"log_every": 3, "validate_every": 8, "checkpoint_every": 8, "checkpoints_limit": 7, "export_every": 16},
        {"on_nonfinite": "skip", "max_skipped": 3},
        {"cpu": False},
        {"mixed_precision": "auto"},
        {"gradient_accumulation_steps": 4},
    ],
    ids=lambda more: list(more)[0],
)
def test_what_is_free_goes_on_to_the_whole_run(tmp_path: Path, more: dict[str, object]) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(whole)
    train(part, checkpoint_every=16, checkpoints_limit=9)
    shutil.rmtree(part / "checkpoint-0000000032")
    trainer = train(part, resume="latest", **more)
    assert trainer.clock.samples == 32
    if "gradient_accumulation_steps" not in more:
        assert same_bits(whole, part)
        return
    folders = [latest_checkpoint(run) for run in (whole, part)]  # equal up to rounding
    a, b = (load_file(folder / "student.safetensors") for folder in folders if folder)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


def test_the_free_settings_are_settings_and_the_docs_quote_them_all() -> None:
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    assert set(FREE) <= names
    from diffdistill import methods

    rows = {("all", f"training.{name}", why) for name, why in FREE.items()}
    for kind in (getattr(methods, name) for name in methods.__all__):
        if isinstance(kind, type) and issubclass(kind, methods.Method):
            rows |= {(kind.__name__, f"method.{name}", why) for name, why in kind.free.items()}
    page = (ROOT / "docs" / "resuming.md").read_text()
    table = [line for line in page.splitlines() if line.startswith(("| `training.", "| `method."))]
    quoted = [(kind, name.strip("`"), why) for line in table for name, kinds, why in [line.strip("| ").split(" | ")]
              for kind in kinds.split(", ")]  # fmt: skip
    assert sorted(quoted) == sorted(rows)


@pytest.mark.parametrize("minutes", [(0.0, 1e6), (1e6, 0.0), (5e5, 1e6)])
@pytest.mark.parametrize(("kind", "rate"), [(Steady, "constant"), (Late, "constant")])
def test_minutes_that_nothing_follows_only_end_a_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], minutes: tuple[float, float], kind: type[Small], rate: str
) -> None:
    before, after = minutes
    samples = 16 if kind is Late else 32  # it follows the progress from then on
    train(tmp_path / "whole", kind, samples=samples)
    train(tmp_path / "part", kind, samples=samples, max_minutes=before, checkpoint_every=8, checkpoints_limit=9)
    shutil.rmtree(tmp_path / "part" / f"checkpoint-{samples:010d}")
    trainer = train(tmp_path / "part", kind, "latest", samples=samples, max_minutes=after)
    assert trainer.remarks == () and same_bits(tmp_path / "whole", tmp_path / "part")


FOLLOWING: list[tuple[type[Small], str, str]] = [
    (Steady, "cosine", "the learning rate falls over the run"),
    (Small, "constant", "the method follows the share of the run that is done"),
    (Late, "constant", "the method follows the share of the run that is done"),
]


@pytest.mark.parametrize(("kind", "rate", "why"), FOLLOWING)
@pytest.mark.parametrize(("before", "after"), [(1e6, 2e6), (1e6, 0.0), (2e6, 1e6)])
def test_another_limit_of_minutes_is_said_where_something_follows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: type[Small], rate: str, why: str, before: float,
    after: float,
) -> None:  # fmt: skip
    train(tmp_path, kind, lr_schedule=rate, max_minutes=before, checkpoint_every=24, checkpoints_limit=9)
    shutil.rmtree(tmp_path / "checkpoint-0000000032")
    capsys.readouterr()
    assert train(tmp_path, kind, "latest", lr_schedule=rate, max_minutes=after).clock.samples == 32
    said = [line for line in capsys.readouterr().err.splitlines() if "max_minutes was" in line]
    assert said == [
        f"training.max_minutes was {before:g}, is {after:g}, and {why}: that follows the new limit from here on"
    ]


@pytest.mark.parametrize(("kind", "rate", "why"), FOLLOWING)
def test_a_run_without_a_limit_is_given_none_where_something_would_follow_it(
    tmp_path: Path, kind: type[Small], rate: str, why: str
) -> None:
    train(tmp_path, kind, lr_schedule=rate)
    with pytest.raises(UserError, match=f"training.max_minutes was 0, is 5, and {why}"):
        train(tmp_path, kind, "latest", lr_schedule=rate, max_minutes=5.0)


@pytest.mark.parametrize(("before", "after"), [(16, 32), (32, 64), (40, 48)])
def test_more_samples_at_a_constant_rate_are_the_longer_run(tmp_path: Path, before: int, after: int) -> None:
    train(tmp_path / "whole", Steady, samples=after)
    train(tmp_path / "part", Steady, samples=before)
    train(tmp_path / "part", Steady, "latest", samples=after)
    assert same_bits(tmp_path / "whole", tmp_path / "part")


def test_fewer_samples_are_the_shorter_run_down_to_those_done(tmp_path: Path) -> None:
    train(tmp_path / "whole", Steady, samples=24)
    part = tmp_path / "part"
    train(part, Steady, samples=64, checkpoint_every=16, checkpoints_limit=9)
    for samples in (32, 48, 64):
        shutil.rmtree(part / f"checkpoint-{samples:010d}")
    shutil.copytree(part, tmp_path / "same")
    with pytest.raises(UserError, match="training.samples was 64, is 8, fewer than the 16 that are done"):
        train(part, Steady, "latest", samples=8)
    train(part, Steady, "latest", samples=24)
    assert same_bits(tmp_path / "whole", part)
    assert train(tmp_path / "same", Steady, "latest", samples=16).clock.step == 2  # none left to do: it exports
    assert (tmp_path / "same" / "export").is_dir()


@pytest.mark.parametrize(
    ("kind", "more", "says"),
    [
        (Small, {}, "was 32, is 64, and the method follows the share of the run"),
        (Late, {}, "was 32, is 64, and the method follows the share of the run"),
        (Steady, {"lr_schedule": "cosine"}, "was 32, is 64, and the learning rate falls over the run"),
    ],
)
def test_other_samples_are_refused_where_what_was_done_depends_on_them(
    tmp_path: Path, kind: type[Small], more: dict[str, object], says: str
) -> None:
    train(tmp_path, kind, samples=32, **more)
    with pytest.raises(UserError, match=f"training.samples {says}"):
        train(tmp_path, kind, "latest", samples=64, **more)


def test_before_the_method_asks_for_progress_the_length_is_free(tmp_path: Path) -> None:
    train(tmp_path / "whole", Late, samples=64)
    train(tmp_path / "part", Late, samples=16)
    train(tmp_path / "part", Late, "latest", samples=64)
    assert same_bits(tmp_path / "whole", tmp_path / "part")
    with pytest.raises(UserError, match="follows the share"):  # which the checkpoint remembers
        train(tmp_path / "part", Late, "latest", samples=128)


# ---- refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"batch_size": 16}, ["training.batch_size was 8, is 16"]),
        ({"seed": 7}, ["training.seed was 0, is 7"]),
        ({"ema_decay": 0.5, "ema_warmup": False}, ["ema_decay was 0.9, is 0.5", "ema_warmup was true, is false"]),
        ({"max_grad_norm": math.inf}, ["training.max_grad_norm was 1.0, is Infinity"]),
        ({"mixed_precision": "bf16"}, ["training.mixed_precision was no, is bf16"]),
        ({"lr_schedule": "cosine"}, ['training.lr_schedule was "constant", is "cosine"']),
        ({"warmup_samples": 8, "seed": 1}, ["training.seed was 0, is 1", "training.warmup_samples was 0, is 8"]),
    ],
)  # fmt: skip
def test_a_refusal_names_each_setting_then_and_now(tmp_path: Path, more: dict[str, object], says: list[str]) -> None:
    train(tmp_path)
    with pytest.raises(UserError) as refusal:
        train(tmp_path, resume="latest", **more)
    message = str(refusal.value)
    assert all(part in message for part in says) and "\n" not in message
    assert message.count(" was ") == len(says)  # and no other


@pytest.mark.parametrize(
    ("then", "now", "content", "says"),
    [
        ({"prompts": "a.txt"}, {"prompts": "b.txt"}, ("1" * 16, "2" * 16),
         "method.prompts was a.txt with content 11111111, is b.txt with content 22222222"),
        ({"prompts": "a.txt"}, {"prompts": "a.txt"}, ("1" * 16, "2" * 16), "is a.txt with content 22222222"),
        ({"prompts": None}, {"prompts": "b.txt"}, ("", "2" * 16), "method.prompts was null, is b.txt with content"),
        ({"prompts": "a.txt", "rate": 1}, {"prompts": "/b/a.txt", "rate": 2}, ("1" * 16, "1" * 16),
         "method.rate was 1, is 2. Take"),
        ({"prompts": "a.txt"}, {"prompts": "a.txt", "rate": 2}, ("1" * 16, "1" * 16),
         "method.rate was not a setting, is 2"),
        ({"prompts": "a.txt"}, {"prompts": "sub/../a.txt"}, ("1" * 16, "1" * 16), ""),
        ({"prompts": "a.txt", "free": 1}, {"prompts": "a.txt", "free": 2}, ("1" * 16, "1" * 16), ""),
    ],
)  # fmt: skip
def test_a_path_is_compared_by_content_and_other_arguments_by_value(
    tmp_path: Path, then: dict, now: dict, content: tuple[str, str], says: str
) -> None:
    class Reads(Small):
        free = {"free": "alters nothing"}

    def run(arguments: dict, digest: str, resume: str | None = None) -> None:
        Reads.content = {"prompts": digest} if digest else {}
        train(tmp_path, Reads, resume, Recipe("M", arguments))

    run(then, content[0])
    if not says:
        run(now, content[1], "latest")
        return
    with pytest.raises(UserError) as refusal:
        run(now, content[1], "latest")
    assert says in str(refusal.value)


def test_another_method_is_named(tmp_path: Path) -> None:
    train(tmp_path, recipe=Recipe("methods.DMD2"))
    with pytest.raises(UserError, match='method was "methods.DMD2", is "methods.SiD"'):
        train(tmp_path, resume="latest", recipe=Recipe("methods.SiD"))


@pytest.mark.parametrize("named", [True, False])
def test_a_checkpoint_of_the_version_before_is_refused_in_a_line_that_says_so(tmp_path: Path, named: bool) -> None:
    train(tmp_path)
    folder = latest_checkpoint(tmp_path)
    assert folder is not None
    state = json.loads((folder / "state.json").read_text())
    old = {key: value for key, value in state.items() if key not in ("identity", "length", "follows_progress")}
    (folder / "state.json").write_text(json.dumps({**old, "format": 2, "fingerprint": "0" * 64}))
    with pytest.raises(
        UserError, match="was written by an earlier version of diffdistill: it has format 2, this one reads 4"
    ):
        train(tmp_path, resume=str(folder) if named else "latest")


# ---- finding paths again --------------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict]:
    """A project with a prompt file, a run in it, and the paths in its checkpoint; the current folder is another."""

    class Reads(Small):
        content = {"prompts": "1" * 16, "teacher": "2" * 16}

    project = tmp_path / "project"
    project.mkdir()
    (project / "a.txt").write_text("red apple\n")
    monkeypatch.chdir(project)
    recipe = Recipe("M", {"prompts": "a.txt", "teacher": "owner/name"}, {"prompts": "a.txt", "teacher": "owner/name"})
    train(Path("run"), Reads, None, recipe)
    folder = latest_checkpoint(Path("run"))
    assert folder is not None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return project, json.loads((project / folder / "state.json").read_text())["identity"]["paths"]


def test_a_path_is_looked_for_where_the_run_read_it(started: tuple[Path, dict]) -> None:
    project, stored = started
    values = {"prompts": "a.txt", "teacher": "owner/name"}
    assert find_again(values, stored, project / "run") == {"prompts": str(project / "a.txt")}


def test_what_is_there_or_said_anew_is_left_as_it_is(started: tuple[Path, dict]) -> None:
    project, stored = started
    assert find_again({"prompts": str(project / "a.txt")}, stored, project / "run") == {}
    assert find_again({"prompts": "b.txt"}, stored, project / "run") == {}
    Path("a.txt").write_text("here too\n")
    assert find_again({"prompts": "a.txt"}, stored, project / "run") == {}


def test_a_project_that_was_moved_is_found_beside_its_run(started: tuple[Path, dict], tmp_path: Path) -> None:
    project, stored = started
    moved = project.rename(tmp_path / "moved")
    assert find_again({"prompts": "a.txt"}, stored, moved / "run") == {"prompts": str(moved / "a.txt")}


def test_a_path_that_is_nowhere_is_named_with_its_override(started: tuple[Path, dict]) -> None:
    project, stored = started
    (project / "a.txt").unlink()
    with pytest.raises(UserError, match=r"method.prompts is a.txt, .*read it, .*a.txt; add --method.prompts PATH"):
        find_again({"prompts": "a.txt"}, stored, project / "run")
    last = {"prompts": str(project / "run")}
    assert find_again({"prompts": "a.txt"}, stored, project / "run", lambda path: last["prompts"]) == last


@pytest.mark.parametrize("name", ["p.csv::Prompt", "sub/p.tsv::a prompt", "p.jsonl::text::en"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_file_with_a_column_is_found_with_its_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, moved: bool
) -> None:
    file, column = name.rsplit("::", 1)

    class Reads(Small):
        content = {"prompts": "1" * 16}

    project = tmp_path / "project"
    (project / file).parent.mkdir(parents=True)
    (project / file).write_text("")
    monkeypatch.chdir(project)
    train(Path("run"), Reads, None, Recipe("M", {"prompts": name}, {"prompts": name}))
    folder = latest_checkpoint(Path("run"))
    assert folder is not None
    stored = json.loads((folder / "state.json").read_text())["identity"]["paths"]
    assert find_again({"prompts": name}, stored, Path("run")) == {}
    monkeypatch.chdir(tmp_path)
    if moved:
        project = project.rename(tmp_path / "moved")
    assert find_again({"prompts": name}, stored, project / "run") == {"prompts": f"{project / file}::{column}"}
    (project / file).unlink()
    with pytest.raises(UserError, match="add --method.prompts PATH"):
        find_again({"prompts": name}, stored, project / "run")


@pytest.mark.parametrize(
    ("values", "error", "key"),
    [
        ({"teacher": "t", "prompts": "p.txt"}, "there is no prompt file p.txt", "prompts"),
        ({"teacher": "t", "prompts": "p.csv::Prompt"}, "there is no prompt file p.csv", "prompts"),
        ({"prompts": "p.txt", "teacher": "../models/t"}, "no teacher at ../models/t: expected a folder", "teacher"),
        ({"residual": "at", "data": "emoji", "rate": 0.1}, "method X cannot be built: no emoji here", "data"),
        ({"residual": "vsd", "init_from": None}, "rate is 3; it must be below 1", None),
    ],
)
def test_without_a_checkpoint_the_setting_of_a_missing_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict, error: str, key: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    said = str(explain_missing(UserError(error), values, Path("run")))
    assert said.startswith(error) and (said == error) == (key is None) and "\n" not in said
    if key is not None:
        assert f"method.{key} is {values[key]}," in said and f"add --method.{key} PATH" in said
