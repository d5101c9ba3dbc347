"""Progressive distillation on a tiny random pipeline: stages, resuming across them, export; and on a Gaussian, where it
comes to the teacher's own DDIM answer."""

import copy
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import tiny_pipeline as tiny
import torch
from made import made
from processes import train_on_one_and_on_two
from safetensors.torch import load_file
from torch import Tensor, nn

from diffdistill.diffusion import GaussianTeacher, VPSchedule, ddim
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import Progressive
from diffdistill.methods.progressive import Predecessor
from diffdistill.models.families.unet import UNetBackbone
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture(scope="module", params=["v_prediction", "epsilon"])
def teacher(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("progressive")
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    tiny.save_tiny_pipeline(folder / "teacher", request.param)
    return str(folder)


def build(folder: str, **more) -> Progressive:
    options = {"teacher_steps": 8, "optimizer__learning_rate": 1e-3, **more}
    return made(Progressive, teacher__source=f"{folder}/teacher", prompts=f"{folder}/prompts.txt", **options)


def evaluate(method: Progressive, size: int = 4, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    random = SampleRandom(0, range(first, first + size))
    method.begin_step(0)
    return method.phases(0)[0].loss(method.batch([i % 2 for i in range(first, first + size)], random), random, {})


def shake(network: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_stages_halve_the_steps_and_the_student_is_taken_over_once_each(teacher: str) -> None:
    method = build(teacher, shares=(2, 1, 1), stage_lr_final=0.1)
    student, predecessor = method.networks["student"], method.networks["predecessor"]
    assert torch.equal(weights(student.inner), weights(predecessor.inner))
    seen, taken = [], weights(predecessor.inner)
    for k in range(8):
        method.progress = k / 8
        shake(student, k)
        before = weights(student.inner)
        method.begin_step(k)
        shake(student, 100 + k)
        method.phases(k)  # which changes nothing: nothing more is taken over
        if k in (4, 6):
            taken = before
        assert torch.equal(weights(predecessor.inner), taken), k
        seen.append((method.steps[method.stage], method.optimizers["student"].learning_rate / 1e-3))
    assert [steps for steps, _ in seen] == [4, 4, 4, 4, 2, 2, 1, 1]
    assert [rate for _, rate in seen] == pytest.approx([1, 0.775, 0.55, 0.325, 1, 0.55, 1, 0.55])
    method.progress = 0.1  # a continuation whose clock has more time
    method.begin_step(9)
    assert method.stage == 2 and torch.equal(weights(predecessor.inner), taken)


def note(calls: list, name: str, module: nn.Module, args: tuple) -> None:
    calls.append((name, len(args[0]), set(args[1].tolist()), torch.is_grad_enabled()))


def test_the_first_predecessor_alone_is_guided_and_every_step_of_the_stage_is_trained(teacher: str) -> None:
    for progress, coarse in ((0.0, [999, 749, 499, 249]), (0.4, [999, 499]), (0.9, [999])):
        method, calls = build(teacher, guidance_scale=3.0), []
        method.progress = progress
        for name, network in method.networks.items():
            network.register_forward_pre_hook(partial(note, calls, name))
        _, logs = evaluate(method, 64)
        middles = {t - (1000 // len(coarse)) // 2 for t in coarse}
        size = 128 if progress == 0 else 64
        *path, first, second, last = calls
        assert (first, second) == (("predecessor", size, set(coarse), False), ("predecessor", size, middles, False))
        assert last == ("student", 64, set(coarse), True) and logs["steps"].item() == len(coarse)
        assert [(name, times, grad) for name, _, times, grad in path] == [("student", {t}, False) for t in coarse[:-1]]


@pytest.mark.parametrize("lower", [False, True])
def test_the_gradient_reaches_all_of_the_student_alone(teacher: str, lower: bool) -> None:
    method = build(teacher, guidance_scale=2.0)
    shake(method.networks["student"])
    gradients = []
    for enabled in {False, lower}:  # autocast keeps what it has cast: not that of the path, which has no graph
        method.networks["student"].zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = evaluate(method, 16)
        loss.backward()
        assert loss.dtype == torch.float32
        parts = {name: p.grad for name, p in method.networks["student"].named_parameters()}
        assert all(g is not None and g.abs().max() > 0 for g in parts.values())
        gradients.append(torch.cat([g.flatten() for g in parts.values()]))
    assert torch.nn.functional.cosine_similarity(gradients[0], gradients[-1], dim=0) > 0.95
    others = (method.networks["predecessor"], method.teacher.pipeline.vae, method.teacher.pipeline.text_encoder)
    assert all(p.grad is None for part in others for p in part.parameters())


@pytest.mark.parametrize(("accumulation", "cuts"), [(1, (8, 12, 16)), (2, (12,))])
def test_resumed_before_at_and_after_the_end_of_a_stage_a_run_ends_in_the_same_bits(
    teacher: str, tmp_path: Path, accumulation: int, cuts: tuple[int, ...]
) -> None:
    if "progressive1" in teacher:
        pytest.skip("one kind of prediction will do")
    options = {"batch_size": 4, "gradient_accumulation_steps": accumulation, "checkpoint_every": 4, "cpu": True,
               "checkpoints_limit": 9, "log_every": 1}  # fmt: skip
    settings = TrainingSettings(24, **options)
    build_it = {"final_steps": 2, "guidance_scale": 2.0}
    for run in ("whole", *cuts):
        (tmp_path / str(run)).mkdir()
    Trainer(build(teacher, **build_it), settings, tmp_path / "whole").fit()
    groups = ("student", "predecessor", "student.optimizer", "ema")

    def state(run: str, samples: int) -> dict[str, dict[str, Tensor]]:
        folder = tmp_path / run / f"checkpoint-{samples:010d}"
        return {name: load_file(folder / f"{name}.safetensors") for name in groups}

    assert [line["student/steps"] for line in log_of(tmp_path / "whole")] == [4.0] * 3 + [2.0] * 3
    for samples in (8, 12):  # what the first stage leaves is taken over by the first step of the second
        assert state("whole", samples)["predecessor"]["stage"].item() == 0
    left, taken = state("whole", 12)["student"], state("whole", 16)["predecessor"]
    assert taken.pop("stage").item() == 1
    taken = {name.removeprefix("backbone."): weight for name, weight in taken.items()}
    assert left.keys() == taken.keys() and all(torch.equal(left[key], taken[key]) for key in left)
    assert any(not torch.equal(left[key], value) for key, value in state("whole", 24)["student"].items())
    for samples in cuts:
        middle = str(tmp_path / "whole" / f"checkpoint-{samples:010d}")
        Trainer(build(teacher, **build_it), settings, tmp_path / str(samples), resume=middle).fit()
        a, b = state("whole", 24), state(str(samples), 24)
        for name in groups:
            assert all(torch.equal(a[name][key], b[name][key]) for key in a[name]), (samples, name)


def test_accumulation_changes_no_stage_and_no_loss(teacher: str, tmp_path: Path) -> None:
    if "progressive1" in teacher:
        pytest.skip("one kind of prediction will do")
    logs = []
    for accumulation in (1, 4):
        run, settings = tmp_path / str(accumulation), TrainingSettings(24, 4, accumulation, cpu=True, log_every=1)
        run.mkdir()
        Trainer(build(teacher, optimizer__learning_rate=1e-5), settings, run).fit()
        logs.append(log_of(run))
    for one, four in zip(*logs, strict=True):
        assert one["student/steps"] == four["student/steps"]
        assert one["student/loss"] == pytest.approx(four["student/loss"], rel=1e-4)
    assert [line["student/steps"] for line in logs[0]] == [4, 4, 2, 2, 1, 1]


@pytest.mark.parametrize("noise_ratio", [None, 2.5])
@pytest.mark.parametrize("final_steps", [1, 2, 4])
def test_the_exported_pipeline_samples_as_the_student_does(
    teacher: str, tmp_path: Path, final_steps: int, noise_ratio: float | None
) -> None:
    from diffusers import DiffusionPipeline

    method = build(teacher, final_steps=final_steps, noise_ratio=noise_ratio)
    shake(method.networks["student"])
    method.progress = 1.0
    method.begin_step(0)
    method.export(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    options = {"num_inference_steps": final_steps, "guidance_scale": 1, "latents": z}
    latents = pipeline(["red apple", "blue car"], output_type="latent", **options).images
    stock = pipeline(["red apple", "blue car"], output_type="pt", **options).images
    with torch.no_grad(), patch.object(SampleRandom, "normal", return_value=z):
        ours = method.student.sample(method.networks["student"], SampleRandom(0, range(2)), method.embedded([0, 1]))
    scale = ours.abs().max()
    torch.testing.assert_close(latents / scale, ours / scale, rtol=0, atol=2e-5)
    assert (stock - method.teacher.latents.images(ours)).abs().max() < 2 / 255
    with torch.no_grad():
        start = method.teacher.denoiser(method.networks["student"])(
            z, torch.full((2,), int(method.student.time)), method.embedded([0, 1])
        ).x0
    assert final_steps == 1 or (start - ours).abs().max() / scale > 1e-3  # the later steps do matter


# ---- on a Gaussian --------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Called like a UNet: c x + d at each time, which is all that v of a Gaussian is."""

    def __init__(self, schedule: VPSchedule, mean: float, std: float) -> None:
        super().__init__()
        t = torch.arange(schedule.num_train_timesteps)
        values = [
            GaussianTeacher(schedule, mean, std, "v")(torch.full((len(t), 1), x), t, None).value for x in (0.0, 1.0)
        ]
        self.d = nn.Parameter(values[0].flatten())
        self.c = nn.Parameter((values[1] - values[0]).flatten())

    def forward(self, x_t: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        c, d = (row[time][:, None, None, None] for row in (self.c, self.d))
        return SimpleNamespace(sample=c * x_t + d)


def test_the_recipe_arrives_at_the_teachers_own_ddim_answer(teacher: str) -> None:
    """With an exact Gaussian teacher: three stages of the method's own, each from where the last one ended."""
    if "progressive1" in teacher:
        pytest.skip("one kind of prediction will do")
    mean, std = 0.7, 0.3
    method = build(
        teacher, guidance_scale=1.0, optimizer__learning_rate=0.1, optimizer__betas=(0.8, 0.95), noise_ratio=10.0
    )
    table = Table(method.schedule, mean, std)
    method.networks = {"student": UNetBackbone(table), "predecessor": Predecessor(UNetBackbone(copy.deepcopy(table)))}
    optimiser = torch.optim.Adam(table.parameters(), betas=(0.8, 0.95))
    z, cond = torch.linspace(-2, 2, 5).view(5, 1, 1, 1), method.embedded([0] * 5)
    exact, answers = GaussianTeacher(method.schedule, mean, std, "v"), []
    expected = ddim(lambda x, t: exact(x, t, None), z, method.schedule, method.student.times[:-1])

    def answer() -> Tensor:
        with torch.no_grad(), patch.object(SampleRandom, "normal", return_value=z):
            return method.student.sample(method.networks["student"], SampleRandom(0, range(5)), cond)

    steps = 450
    for step in range(steps):
        method.progress = step / steps
        loss, _ = evaluate(method, 16, 16 * step)
        if step % 150 == 0:
            answers.append(answer())
        optimiser.param_groups[0]["lr"] = method.optimizers["student"].learning_rate
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(answer(), expected, rtol=0, atol=5e-3)
    assert all((before - expected).abs().max() > 0.05 for before in answers)  # in so few steps the stage before is not


@pytest.mark.parametrize(
    "bad",
    [
        {"teacher_steps": 6}, {"final_steps": 3}, {"teacher_steps": 1024}, {"shares": (1, 1)}, {"shares": (1, 0, 1)},
        {"weight": "snr"}, {"stage_lr_final": 1.5}, {"optimizer__learning_rate": 0.0},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(teacher: str, bad: dict) -> None:
    with pytest.raises(
        (UserError, ValueError), match=next(iter(bad)).removeprefix("optimizer__").replace("_rate", ".rate")
    ):
        build(teacher, **bad)


@pytest.mark.slow
def test_two_processes_log_what_one_logs(tmp_path: Path) -> None:
    tiny.save_tiny_pipeline(tmp_path / "teacher")
    words = ("red", "blue", "apple", "car")
    # 16 prompts, more than a batch of 8, so that a wrong share of the batch is another set of prompts
    (tmp_path / "prompts.txt").write_text("".join(f"{a} {b}\n" for a in words for b in words))
    recipe = {
        "method": {
            "class_path": "diffdistill.methods.Progressive",
            "init_args": {
                "teacher": {"source": str(tmp_path / "teacher")},
                "prompts": str(tmp_path / "prompts.txt"),
                "teacher_steps": 8,
                "guidance_scale": 2.0,
                "optimizer": {"learning_rate": 1e-4},
            },
        },
        "training": {"samples": 96, "batch_size": 8, "gradient_accumulation_steps": 2, "log_every": 1},
    }
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps(recipe))  # JSON is YAML
    logs = [log_of(run) for run in train_on_one_and_on_two(config)]
    assert [line["student/steps"] for line in logs[0]] == [4.0] * 4 + [2.0] * 4 + [1.0] * 4
    for one, two in zip(*logs, strict=True):
        assert one["student/steps"] == two["student/steps"]
        assert one["student/loss"] == pytest.approx(two["student/loss"], rel=1e-5), one["step"]
        # Adam does not mind a gradient that is summed where it should be averaged; its norm does
        assert one["student/grad_norm"] == pytest.approx(two["student/grad_norm"], rel=1e-4), one["step"]
