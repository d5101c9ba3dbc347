"""Health while training: ratios of a student that is the teacher, and of a collapsed one; what is exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from made import made

from diffdistill.diffusion import Condition
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import SwiftBrush
from diffdistill.methods.health import Health, pixel_numbers
from diffdistill.methods.settings import HealthSettings
from diffdistill.models.prompt_table import embed_prompts
from diffdistill.models.teacher import load_teacher
from diffdistill.training.best import Best
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

PROMPTS = ["red apple, noto", "rocket, twemoji", "green apple, noto", "dog, twemoji"]


@pytest.fixture(scope="module")
def health() -> Health:
    teacher = load_teacher("assets/teacher")
    found = Health(HealthSettings(captions=4, per_caption=3, steps=3), teacher, PROMPTS)
    found.prepare(embed_prompts(teacher, PROMPTS, torch.device("cpu")), teacher.null(), torch.device("cpu"))
    return found


def test_ratios_of_the_teachers_own_images_are_one(health: Health) -> None:
    captured: list[torch.Tensor] = []
    teacher = health.teacher
    images = teacher.latents.images
    teacher.latents.images = lambda latents: captured.append(images(latents)) or captured[-1]  # type: ignore[method-assign]
    try:
        health.prepare(health._table, teacher.null(), torch.device("cpu"))
    finally:
        del teacher.latents.images
    theirs = torch.cat(captured)
    position = iter(range(100))

    def sample(random: SampleRandom, cond: Condition) -> torch.Tensor:
        return torch.tensor(float(next(position)))

    teacher.latents.images = lambda latents: theirs  # type: ignore[method-assign]
    try:
        found = health.measure(sample)
    finally:
        del teacher.latents.images
    for name in ("variety", "contrast", "saturation"):
        assert found.numbers[name] == pytest.approx(1)
    assert found.score < 0 and not found.remarks  # the unbiased distance of a set from itself


def test_a_collapsed_student_is_seen_and_said_once(health: Health) -> None:
    health._worst = {}
    health.measure(lambda random, cond: random.normal("z", health.teacher.latent_shape))
    one = torch.randn(1, *health.teacher.latent_shape)
    collapsed = health.measure(lambda random, cond: one.expand(len(random), -1, -1, -1))
    assert collapsed.numbers["variety"] == pytest.approx(0, abs=1e-4) and collapsed.score > 0
    assert any("variety drifts: it is 0.00 of the teacher's" in line for line in collapsed.remarks)
    assert not health.measure(lambda random, cond: one.expand(len(random), -1, -1, -1)).remarks
    broken = health.measure(lambda random, cond: one.expand(len(random), -1, -1, -1) * torch.nan)
    assert broken.score is None and broken.remarks == ("warning: the student's images are not finite",)


def test_a_slow_drift_is_said_too(health: Health) -> None:
    health._worst, said = {}, []
    for value in (0.95, 0.8, 0.65, 0.58, 0.54, 0.5, 0.46):
        said += health._drifting({"variety": value})
    named = ("0.58", "0.50")  # at once, and then for each .05 further away
    assert said == [f"warning: the student's variety drifts: it is {v} of the teacher's" for v in named]
    for before in (0.95, 1.05):  # on whichever side of 1 it was
        health._worst = {}
        assert not health._drifting({"saturation": before}) and len(health._drifting({"saturation": 0.64})) == 1
    health._worst, said = {}, []
    for value in (0.5, 0.52, 0.47, 0.44):  # it starts outside, as contrast does before training
        said += health._drifting({"contrast": value})
    assert len(said) == 1 and "0.44" in said[0]


def test_pixel_numbers_of_known_images() -> None:
    grey = torch.full((1, 3, 4, 4), 0.5)
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    assert pixel_numbers(grey) == {"contrast": 0.0, "saturation": 0.0}
    assert pixel_numbers(red)["saturation"] == 1
    halves = torch.zeros(1, 3, 2, 2)
    halves[..., 1] = 1
    assert pixel_numbers(halves)["contrast"] == pytest.approx(torch.tensor([0.0, 1, 0, 1]).std().item(), rel=1e-5)


def build(folder: Path, **more: Any) -> SwiftBrush:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    method: SwiftBrush = made(
        SwiftBrush, teacher__source="assets/teacher", prompts=str(folder / "prompts.txt"), fake__network="full",
        noise_ratio=2.5, **{"health__captions": 2, "health__per_caption": 2, "health__steps": 2, **more},
    )  # fmt: skip
    return method


def test_numbers_are_logged_and_the_best_weights_exported(tmp_path: Path) -> None:
    method = build(tmp_path, optimizer__learning_rate=1e-3)
    settings = TrainingSettings(
        16, 4, cpu=True, validate_every=4, checkpoint_every=8, export_best=True, log_every=1, ema_decay=0.0
    )
    (tmp_path / "run").mkdir()
    trainer = Trainer(method, settings, tmp_path / "run")
    exported = trainer.fit()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = {line["samples"]: line["validation/distance"] for line in log if "validation/distance" in line}
    assert set(scores) == {0, 4, 8, 12, 16}
    assert {"validation/variety", "validation/contrast", "validation/saturation"} <= set(log[0])
    best = min((s for s in scores if s), key=lambda s: scores[s])
    kept = Best(tmp_path / "run", 16)
    assert (kept.samples, kept.score) == (best, scores[best])
    weights = kept.weights(trainer.state.ema.shadow)
    assert weights is not None
    stored = load_teacher(exported).backbone.state_dict()
    name = next(iter(weights))
    torch.testing.assert_close(stored[name], weights[name])


def test_a_file_of_later_samples_or_damaged_is_left_out(tmp_path: Path) -> None:
    best = Best(tmp_path, 0)
    best.offer(0.5, 8, {"w": torch.ones(2)})
    best.offer(0.7, 16, {"w": torch.zeros(2)})
    best.offer(0.1, 0, {"w": torch.zeros(2)})  # the start is no product
    like = {"w": torch.zeros(2)}
    assert best.samples == 8 and torch.equal(best.weights(like)["w"], torch.ones(2))
    assert best.weights({"w": torch.zeros(3)}) is None and best.weights({"v": torch.zeros(2)}) is None
    assert Best(tmp_path, 8).score == 0.5 and Best(tmp_path, 4).weights(like) is None
    best.offer(0.9, 16, {"w": torch.zeros(2)}, "another protocol")  # is not compared with the score before
    assert best.samples == 16
    (tmp_path / "best.safetensors").write_bytes(b"{}")
    assert Best(tmp_path, 16).weights(like) is None and best.weights(like) is None


def test_the_student_is_measured_without_autocast(tmp_path: Path) -> None:
    method = build(tmp_path)
    (tmp_path / "run").mkdir()
    settings = TrainingSettings(8, 4, cpu=True, mixed_precision="bf16", validate_every=4)
    AcceleratorState._reset_state(reset_partial_state=True)  # each may have its own precision
    trainer = Trainer(method, settings, tmp_path / "run")
    seen: list[torch.dtype] = []
    layer = method.networks["student"].inner.conv_in
    layer.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    with torch.no_grad(), trainer.accelerator.autocast():
        method.validate()
    assert seen[0] == torch.bfloat16 and seen[-1] == torch.float32  # the preview, then the numbers
    with trainer.accelerator.autocast():
        trainer.train_step()
    assert seen[-1] == torch.bfloat16  # the network is as it was
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_checkpoint_keeps_the_best_of_its_past(tmp_path: Path) -> None:
    like = {"w": torch.zeros(2)}
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoint-8"
    checkpoint.mkdir(parents=True)
    Best(run, 0).keep(checkpoint)  # there is none yet
    assert not (checkpoint / "best.safetensors").exists()
    best = Best(run, 0)
    best.offer(0.5, 4, {"w": torch.ones(2)})
    best.keep(checkpoint)
    best.offer(0.4, 12, {"w": torch.zeros(2)})
    assert Best(run, 8).weights(like) is None  # what came later is of a past that was given up
    again = Best.since(run, 8, checkpoint)
    assert (again.score, again.samples) == (0.5, 4)
    assert torch.equal(again.weights(like)["w"], torch.ones(2))
    assert Best.since(run, 16, checkpoint).samples == 4 and Best.since(tmp_path, 8, None).samples == -1
    again.offer(0.3, 12, {"w": torch.zeros(2)})
    assert Best.since(run, 8, tmp_path / "checkpoint-8").samples == -1  # of another run, which has none
    assert not (run / "best.safetensors").exists()


def test_a_new_run_in_the_folder_forgets_the_best_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    Best(tmp_path / "run", 0).offer(-9.0, 4, {"w": torch.zeros(2)})
    method = build(tmp_path)
    settings = TrainingSettings(8, 4, cpu=True, validate_every=4, export_best=True)
    Trainer(method, settings, tmp_path / "run").fit()
    assert Best(tmp_path / "run", 8).score > -9
    with pytest.raises(UserError, match=r"method.health.captions is above 0"):
        Trainer(build(tmp_path, health__captions=0), settings, tmp_path / "other")


def test_too_few_prompts_and_no_validation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"health.captions is 9; there are 4 different prompts"):
        (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
        made(SwiftBrush, teacher__source="assets/teacher", prompts=str(tmp_path / "prompts.txt"), health__captions=9)
    with pytest.raises(UserError, match="set training.validate_every"):
        TrainingSettings(16, 4, export_best=True).check(1)
    with pytest.raises(UserError, match="per_caption 1"):
        HealthSettings(captions=1, per_caption=1)
