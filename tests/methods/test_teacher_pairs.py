"""Pairs of the teacher, regression on them, a start from a student, f-divergences and the guidance interval."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline as tiny
import torch
from diffusers import DPMSolverMultistepScheduler
from made import made
from safetensors.torch import load_file, save_file

from diffdistill.distill import SampleRandom, divergence_weights, pseudo_huber
from diffdistill.errors import UserError
from diffdistill.methods import SwiftBrush, teacher_pairs
from diffdistill.methods.settings import PairSettings
from diffdistill.models.critic import ScoreWithCritic
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

PAIRS = {"pairs__count": 6, "pairs__steps": 4, "pairs__guidance_scale": 2.0}
FULL = {"fake__network": "full", "noise_ratio": 2.5}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(teacher_pairs, "user_cache", lambda: tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    tiny.save_tiny_pipeline(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("red apple\nblue car\nred car\nblue apple\n")
    return tmp_path


def build(folder: Path, **more: Any) -> SwiftBrush:
    named = {"teacher__source": str(folder / "teacher"), "prompts": str(folder / "prompts.txt")}
    method: SwiftBrush = made(SwiftBrush, **named, **{**FULL, **more})
    return method


def test_a_pair_is_what_the_stock_pipeline_makes_of_the_noise(folder: Path) -> None:
    method = build(folder, **PAIRS, regression__weight=1.0)
    method.prepare("cpu")
    pairs = method.pairs
    assert pairs is not None and pairs.samples.shape == (6, 4, 4, 4)
    pipeline = method.teacher.pipeline
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts = [method.prompts[i % 4] for i in range(6)]
    z = pairs.noise(range(6))
    found = pipeline(
        prompts, latents=z, num_inference_steps=4, guidance_scale=2.0, output_type="latent", height=8, width=8
    ).images
    torch.testing.assert_close(pairs.samples, found, rtol=1e-4, atol=1e-4)


def test_pairs_are_kept_and_a_damaged_file_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(folder, **PAIRS, regression__weight=1.0)
    first.prepare("cpu")
    (file,) = (folder / "cache").glob("pairs-*")
    again = build(folder, **PAIRS, regression__weight=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(teacher_pairs.TeacherPairs, "sampled", None)  # it is not called
        again.prepare("cpu")
    assert torch.equal(again.pairs.samples, first.pairs.samples)
    damaged = file.read_bytes()[:40]
    file.unlink()  # the file that `again` has mapped stays as it is
    file.write_bytes(damaged)
    again.prepare("cpu")
    assert torch.equal(again.pairs.samples, first.pairs.samples) and file.stat().st_size > 40


def test_pairs_that_are_not_finite_are_neither_kept_nor_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        teacher_pairs.TeacherPairs, "sampled", lambda self, rows, null: torch.full((len(rows), 4, 4, 4), torch.nan)
    )
    with pytest.raises(UserError, match="not finite"):
        build(folder, **PAIRS, regression__weight=1.0)
    assert not list((folder / "cache").iterdir())


def test_adapters_on_the_teacher_leave_its_pairs_as_they_were(folder: Path) -> None:
    full = build(folder, **PAIRS, regression__weight=1.0)
    full.prepare("cpu")
    lora = build(folder, **PAIRS, regression__weight=1.0, fake__network="lora", fake__lora__rank=2)
    lora.prepare("cpu")
    assert len(list((folder / "cache").glob("pairs-*"))) == 1
    torch.testing.assert_close(lora.pairs.sampled([0], lora.null), full.pairs.samples[:1])


def test_fewer_pairs_than_prompts_are_spread_over_them(folder: Path) -> None:
    method = build(folder, **{**PAIRS, "pairs__count": 2}, regression__weight=1.0)
    method.prepare("cpu")
    torch.testing.assert_close(method.pairs.condition([0, 1]), method.embedded([0, 2]))


def test_regression_is_alone_at_first_and_then_stands_beside(folder: Path) -> None:
    method = build(folder, **PAIRS, regression__alone=2, regression__weight=0.5, fake__warmup=1)
    method.prepare("cpu")
    names = [[phase.name for phase in method.phases(step)] for step in range(5)]
    assert names == [["student"], ["student"], ["fake"], ["student", "fake"], ["student", "fake"]]
    (folder / "run").mkdir()
    remarks = {n: Trainer(method, TrainingSettings(4 * n, 4, cpu=True), folder / "run").remarks for n in (3, 4)}
    assert any("has 3 steps, and the method trains all of its networks only after 3" in line for line in remarks[3])
    assert not any("takes no part" in line for line in remarks[4])
    random = SampleRandom(0, range(4))
    batch = method.batch([0, 1, 2, 3], random)
    (alone,) = method.phases(0)
    value, logs = alone.loss(batch, random, {})
    z, x0, cond = method.pairs.drawn(random, "pair")
    expected = pseudo_huber(method.student.x0(method.networks["student"], z, cond), x0, 0.1)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(logs["regression"], expected.detach())
    both, _ = method.phases(3)[0].loss(batch, random, {})
    judged, _ = method._judged(1)[0].loss(batch, random, {})
    torch.testing.assert_close(both, judged + 0.5 * expected)


def test_a_student_of_regression_alone_learns_its_pairs(folder: Path) -> None:
    method = build(folder, **PAIRS, regression__alone=150, optimizer__learning_rate=3e-3)
    (folder / "run").mkdir()
    Trainer(method, TrainingSettings(1200, 8, cpu=True, ema_decay=0.9), folder / "run").fit()
    z, x0, cond = method.pairs.noise(range(6)), method.pairs.samples, method.pairs.condition(range(6))
    left = (method.student.x0(method.networks["student"], z, cond) - x0).square().mean()
    before = (method.student.x0(method.teacher.backbone, z, cond) - x0).square().mean()
    assert left < 0.3 * before


def test_the_distance_of_features_is_added_to_that_of_latents(folder: Path) -> None:
    more = {"regression__weight": 1.0, "regression__alone": 1, "regression__features__weight": 0.5}
    method = build(folder, **PAIRS, **more, regression__features__taps=["mid"])
    method.prepare("cpu")
    random = SampleRandom(0, range(4))
    (alone,) = method.phases(0)
    value, logs = alone.loss(method.batch([0, 1, 2, 3], random), random, {})
    z, x0, cond = method.pairs.drawn(random, "pair")
    x, teacher = method.student.x0(method.networks["student"], z, cond), method.teacher
    t = teacher.schedule.timestep(random.uniform("feature_time"), 0.02, 0.2)
    eps = random.normal("feature_noise", x.shape[1:])
    seen: list[torch.Tensor] = []
    handle = teacher.backbone.inner.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for sample in (x, x0):
        a, s = (each(t).float().view(-1, 1, 1, 1) for each in (teacher.schedule.alpha, teacher.schedule.sigma))
        teacher.backbone.inner(a * sample + s * eps, t, encoder_hidden_states=cond)
    handle.remove()
    u, v = (each / each.norm(dim=1, keepdim=True) for each in seen)
    expected = (u - v).square().sum(1).mean()
    torch.testing.assert_close(logs["features"], expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value, pseudo_huber(x, x0, 0.1) + 0.5 * expected, rtol=1e-4, atol=1e-6)
    value.backward()
    assert all(parameter.grad is None for parameter in teacher.backbone.parameters())


def test_features_are_those_of_the_teacher_without_its_adapters(folder: Path) -> None:
    more = {"regression__weight": 1.0, "regression__alone": 1, "regression__features__weight": 1.0}
    random, found = SampleRandom(0, range(4)), []
    for fake in ({}, {"fake__network": "lora", "fake__lora__rank": 2}):
        method = build(folder, **PAIRS, **more, **fake)
        method.prepare("cpu")
        for name, parameter in method.teacher.backbone.named_parameters():
            if "lora_" in name:
                parameter.data += 1.0
        (alone,) = method.phases(0)
        found.append(alone.loss(method.batch([0, 1, 2, 3], random), random, {})[1]["features"])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"regression__features__taps": ["middle"]}, "no tap 'middle'; it has down.0"),
        ({"regression__features__t_max": 0.0}, "in order"),
        ({"regression__features__weight": 0.0, "regression__features__taps": ["mid"]}, "features are not compared"),
        ({"regression__weight": 0.0}, "there is no regression"),
        ({"regression__features__t_min": 0.0, "regression__features__t_max": 1e-5}, "no time between"),
    ],
)
def test_features_that_are_not_there_are_refused(folder: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(folder, **{**PAIRS, "regression__weight": 1.0, "regression__features__weight": 1.0, **more})


def test_a_run_with_pairs_continues_to_the_bit(folder: Path) -> None:
    options = {**PAIRS, "regression__weight": 0.5, "regression__alone": 1, "adversary__of_teacher": True,
               "adversary__divergence": "jensen_shannon"}  # fmt: skip
    contents = [build(folder, **{**options, "pairs__steps": n}).content["pairs"] for n in (4, 4, 3)]
    assert contents[0] == contents[1] != contents[2]
    settings = TrainingSettings(32, 4, cpu=True, checkpoint_every=16, checkpoints_limit=9)
    run, last = folder / "run", "checkpoint-0000000032/*.safetensors"
    run.mkdir()
    Trainer(build(folder, **options), settings, run).fit()
    whole = {file.name: file.read_bytes() for file in run.glob(last)}
    assert {"student.safetensors", "fake.safetensors"} <= set(whole)
    Trainer(build(folder, **options), settings, run, resume=str(run / "checkpoint-0000000016")).fit()
    assert {file.name: file.read_bytes() for file in run.glob(last)} == whole


def test_a_student_starts_from_an_exported_one(folder: Path) -> None:
    first = build(folder)
    for parameter in first.networks["student"].parameters():
        parameter.data += 0.01
    first.prepare("cpu")
    first.export(folder / "student")
    second = build(folder, start=str(folder / "student"))
    ours, theirs = (dict(m.networks["student"].named_parameters()) for m in (second, first))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert second.content["start"] != build(folder).content.get("start")
    with pytest.raises(UserError, match=r"start .* gets noise at time .* set noise_ratio"):
        build(folder, start=str(folder / "student"), noise_ratio=1.0)
    with pytest.raises(UserError, match="pairs.steps is 61, whose grid ends below time 0"):
        build(folder, **{**PAIRS, "pairs__steps": 61}, regression__weight=1.0)
    with pytest.raises(UserError, match="another autoencoder"):
        other = folder / "other"
        shutil.copytree(folder / "student", other)
        (file,) = (other / "vae").glob("*.safetensors")
        save_file({name: value + 0.1 for name, value in load_file(file).items()}, file, {"format": "pt"})
        build(folder, start=str(other))
    with pytest.raises(UserError, match="there is no such folder"):
        build(folder, start=str(folder / "nothing"))


def test_the_critic_takes_the_teachers_samples_for_real(folder: Path) -> None:
    method = build(folder, **PAIRS, adversary__of_teacher=True)
    method.prepare("cpu")
    random = SampleRandom(0, range(3))
    batch = method.batch([0, 1, 2], random)
    rows = [
        next(row for row in (r, r + 4) if row < 6 and torch.equal(method.pairs.samples[row], real))
        for r, real in enumerate(batch["real"])
    ]  # a pair of the sample's own prompt
    torch.testing.assert_close(batch["real_cond"], method.pairs.condition(rows))
    drawn = [method.pairs.of_prompts([1], SampleRandom(s, [0]), "real")[0] for s in range(20)]
    assert {sum(torch.equal(each[0], method.pairs.samples[row]) for each in drawn) > 0 for row in (1, 5)} == {True}
    with pytest.raises(UserError, match=r"set pairs.count"):
        build(folder, adversary__of_teacher=True)
    with pytest.raises(UserError, match=r"leave it true"):
        build(folder, **PAIRS, adversary__of_teacher=True, adversary__matched=False)
    with pytest.raises(UserError, match=r"set conditional to true"):
        build(
            folder, **PAIRS, adversary__of_teacher=True, adversary__conditional=False, adversary__divergence="hellinger"
        )
    with pytest.raises(UserError, match=r"matched is set, but there is no adversarial term"):
        build(folder, adversary__matched=False)
    with pytest.raises(UserError, match="one of them"):
        build(folder, **PAIRS, adversary__of_teacher=True, adversary__data__source="assets/emoji")
    with pytest.raises(UserError, match=r"set pairs.count"):
        build(folder, regression__weight=1.0)
    with pytest.raises(UserError, match=r"nothing uses pairs"):
        build(folder, **PAIRS)
    with pytest.raises(UserError, match=r"pairs.steps is 5000"):
        build(folder, **{**PAIRS, "pairs__steps": 5000}, regression__weight=1.0)
    with pytest.raises(UserError, match=r"set critic_weight above 0"):
        build(
            folder, **PAIRS, adversary__of_teacher=True, adversary__divergence="hellinger", adversary__critic_weight=0
        )


def test_a_dropped_prompt_does_not_tell_the_critic_what_is_real(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(folder, **PAIRS, adversary__of_teacher=True, fake__drop_text=0.5)
    method.prepare("cpu")
    random, seen = SampleRandom(0, range(4)), {}
    forward = ScoreWithCritic.forward

    def watched(network: ScoreWithCritic, x_t: Any, time: Any, cond: Any, real: Any, real_cond: Any, *more: Any) -> Any:
        seen["made"], seen["real"] = cond, real_cond
        return forward(network, x_t, time, cond, real, real_cond, *more)

    monkeypatch.setattr(ScoreWithCritic, "forward", watched)
    phase = next(phase for phase in method.phases(10_000) if phase.name == "fake")
    phase.loss(method.batch([0, 1, 2, 3], random), random, {})
    dropped = random.bernoulli("fake_drop/0", 0.5)
    assert 0 < dropped.sum() < 4
    for cond in seen.values():
        assert [torch.equal(row, method.judge.null[0]) for row in cond] == dropped.tolist()


def test_a_divergence_weighs_samples_by_the_critics_logits(folder: Path) -> None:
    plain = build(folder, **PAIRS, adversary__of_teacher=True)
    other = build(folder, **PAIRS, adversary__of_teacher=True, adversary__divergence="forward_kl")
    random, x0 = SampleRandom(0, range(3)), torch.randn(3, 4, 4, 4)
    gradients = []
    for method in (plain, other):
        method.prepare("cpu")
        head = method.networks["fake"].head
        torch.manual_seed(0)
        for parameter in head.parameters():
            parameter.data.normal_(std=0.5)
        sample = x0.clone().requires_grad_()
        loss, _ = method.loss(sample, method.embedded([0, 1, 2]), random)
        gradients.append(torch.autograd.grad(loss, sample)[0])
    t = other.schedule.timestep(random.uniform("time"), *other.judge.range)
    x_t = other.schedule.add_noise(x0, random.normal("noise", x0.shape[1:]), t)
    logits = other.networks["fake"].logits(x_t, other.schedule.network_time(t), other.embedded([0, 1, 2]))
    weights = divergence_weights(logits, "forward_kl")
    assert (weights - 1).abs().max() > 0.01
    torch.testing.assert_close(gradients[1], weights[:, None, None, None] * gradients[0])


@pytest.mark.parametrize("wrong", [{"count": -1}, {"steps": 0}, {"guidance_scale": -1.0}])
def test_settings_of_pairs_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        dataclasses.replace(PairSettings(), **wrong)
