"""Resume is exact, a torn checkpoint is never loaded, NaN stops the run."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from processes import start

from diffdistill.errors import UserError
from diffdistill.training.checkpoint import latest_checkpoint, load_checkpoint, remove_old_checkpoints
from diffdistill.training.continuation import Recipe
from diffdistill.training.loop import NonFiniteError, Trainer
from diffdistill.training.settings import TrainingSettings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from small_method import Small, train, train_and_say  # noqa: E402


def settings(samples: int, **more: object) -> TrainingSettings:
    return TrainingSettings(samples, batch_size=8, log_every=1, cpu=True, ema_decay=0.9, **more)  # type: ignore[arg-type]


def final(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return load_checkpoint(final_folder(run))[0]


def final_folder(run: Path) -> Path:
    folder = latest_checkpoint(run)
    assert folder is not None
    return folder


def assert_same_bits(a: Path, b: Path) -> None:
    first, second = final(a), final(b)
    assert first.keys() == second.keys()
    for group, tensors in first.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second[group][name]), (group, name)


def started_at(starts: Path) -> list[int]:
    """Samples that each start of a run so far went on from."""
    return [int(line) for line in starts.read_text().splitlines()]


def logged_anew(log: Path, old: int | None) -> int:
    """Samples of the last whole line, once the new start has put its own file in the place of the `old` inode."""
    if not log.exists() or log.stat().st_ino == old:
        return 0  # lines of the killed start, which this one will drop
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return json.loads(lines[-1])["samples"] if lines else 0


def wait_until(condition: Callable[[], bool], process: BaseProcess, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), f"ended by itself with {process.exitcode}"
        assert time.monotonic() < deadline, f"nothing after {seconds} s"
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, broken, starts = tmp_path / "whole", tmp_path / "broken", tmp_path / "starts.txt"
    log = broken / "log.jsonl"
    starts.touch()
    train(whole, samples=1600, checkpoint_every=16)
    chance = random.Random(0)
    for kill in range(10):
        old = log.stat().st_ino if log.exists() else None
        process = start(train_and_say, broken, starts, "Slow")
        try:
            wait_until(lambda kill=kill: len(started_at(starts)) > kill, process)
            # every second kill waits for a step beyond the next checkpoint: a slow machine too gets on
            goal = started_at(starts)[-1] + 8 * (1 if kill % 2 else 3)
            wait_until(lambda old=old, goal=goal: logged_anew(log, old) >= goal, process)
            time.sleep(chance.uniform(0.0, 0.1))  # the random moment itself, not a wait for something
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    last = start(train_and_say, broken, starts, "Small")
    last.join(60)
    assert last.exitcode == 0
    began = started_at(starts)
    assert began == sorted(began) and began[0] == 0 and len(began) == 11
    assert sum(samples > 0 for samples in began[1:]) >= 5
    assert_same_bits(whole, broken)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 201))


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    Trainer(Small(), settings(64, checkpoint_every=16, checkpoints_limit=3), tmp_path).fit()
    good = sorted(tmp_path.glob("checkpoint-*"))
    shutil.copytree(good[-1], tmp_path / "checkpoint-0000000999")
    torn = tmp_path / "checkpoint-0000000999" / "student.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    assert latest_checkpoint(tmp_path) == good[-1]
    resumed = Trainer(Small(), settings(64, checkpoint_every=16, checkpoints_limit=3), tmp_path, resume="latest")
    assert resumed.remarks == (f"checkpoint-0000000999: torn, so the run continues from {good[-1].name}",)
    shutil.copytree(good[-1], tmp_path / "checkpoint-0000000999", dirs_exist_ok=True)
    torn.write_bytes(torn.read_bytes()[:-7])
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path / "checkpoint-0000000999")


def test_a_run_that_updates_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Warming(Small):  # as a run that ends while the fake score alone learns
        def phases(self, step):
            return super().phases(step)[1:]

        def _fake(self, batch, random, carry):
            carry["x0"] = random.normal("z", (4,))
            return super()._fake(batch, random, carry)

    Trainer(Warming(), settings(16), tmp_path).fit()
    assert "no update of the student was made: what is exported is its start" in capsys.readouterr().err


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    for name, parts in (("one", 1), ("four", 4)):
        run = tmp_path / name
        run.mkdir()
        Trainer(Small(), settings(160, gradient_accumulation_steps=parts), run).fit()
    one, four = final(tmp_path / "one"), final(tmp_path / "four")
    for name, tensor in one["student"].items():
        torch.testing.assert_close(tensor, four["student"][name], rtol=1e-4, atol=1e-6)


def test_an_interrupted_run_finishes_its_step_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class Interrupted(Small):
        def begin_step(self, step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    Trainer(Small(), settings(80), tmp_path / "whole").fit()
    with pytest.raises(KeyboardInterrupt):
        Trainer(Interrupted(), settings(80), tmp_path / "broken").fit()
    assert final_folder(tmp_path / "broken").name == "checkpoint-0000000032"
    assert not (tmp_path / "broken" / "export").exists() and signal.getsignal(signal.SIGINT) == before
    Trainer(Small(), settings(80), tmp_path / "broken", resume="latest").fit()
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")


def test_nan_stops_and_names_step_phase_and_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 5, phase student.*checkpoint-0000000032"):
        Trainer(Small(poison_at=5), settings(160, checkpoint_every=16), tmp_path).fit()


def test_nan_is_named_where_a_later_phase_fails_on_it(tmp_path: Path) -> None:
    """The student's weights, which its update would have made NaN, have stayed as they were."""

    class Careful(Small):
        def _student(self, batch, random, carry):
            loss, logs = super()._student(batch, random, carry)
            carry["x0"] = carry["x0"] * loss.detach()
            return loss, logs

        def _fake(self, batch, random, carry):
            if not carry["x0"].isfinite().all():
                raise ValueError("samples are no numbers")
            return super()._fake(batch, random, carry)

    method = Careful(poison_at=5)
    with pytest.raises(NonFiniteError, match=r"step 5, phase student"):
        Trainer(method, settings(160), tmp_path).fit()
    assert all(torch.isfinite(p).all() for network in method.networks.values() for p in network.parameters())


def test_nan_is_skipped_and_counted_when_so_set(tmp_path: Path) -> None:
    trainer = Trainer(Small(poison_at=5), settings(80, on_nonfinite="skip"), tmp_path)
    trainer.fit()
    assert trainer.state.skipped == 1
    assert all(torch.isfinite(t).all() for t in final(tmp_path)["student"].values())


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 3"):
        TrainingSettings(80, batch_size=8).check(processes=3)
    with pytest.raises(UserError, match="take 88"):
        TrainingSettings(81, batch_size=8).check(processes=1)


def test_a_finished_run_may_be_resumed_again_and_again(tmp_path: Path) -> None:
    for _ in range(3):
        folder = Trainer(Small(), settings(16), tmp_path, resume="latest").fit()
        assert [f.name for f in folder.iterdir()] == ["student.safetensors"]


def test_the_checkpoint_gone_on_from_is_not_written_again(tmp_path: Path) -> None:
    Trainer(Small(), settings(32), tmp_path).fit()
    file = final_folder(tmp_path) / "state.json"
    before = file.stat().st_mtime_ns, file.stat().st_ino
    Trainer(Small(), settings(32), tmp_path, resume="latest").fit()
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before


def test_going_on_from_an_earlier_checkpoint_gives_up_the_later_ones(tmp_path: Path) -> None:
    def run(samples: int, resume: str | None = None) -> Trainer:
        return Trainer(Small(), settings(samples, checkpoint_every=16, checkpoints_limit=3), tmp_path, resume)

    run(64).fit()
    earlier = tmp_path / "checkpoint-0000000032"
    run(64, str(earlier))
    assert latest_checkpoint(tmp_path) == earlier


def test_torn_checkpoints_are_not_kept_in_place_of_whole_ones(tmp_path: Path) -> None:
    Trainer(Small(), settings(32, checkpoint_every=16, checkpoints_limit=1), tmp_path).fit()
    whole, torn = final_folder(tmp_path), tmp_path / "checkpoint-0000000999"
    torn.mkdir()
    remove_old_checkpoints(tmp_path, keep=1)
    assert whole.exists() and not torn.exists()


def test_other_settings_are_not_continued(tmp_path: Path) -> None:
    Trainer(Small(), settings(16), tmp_path, recipe=Recipe("a")).fit()
    with pytest.raises(UserError, match="other settings"):
        Trainer(Small(), settings(16), tmp_path, resume="latest", recipe=Recipe("b"))
