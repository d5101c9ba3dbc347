"""Student, steps, data and export of BOOT on a tiny random pipeline."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import tiny_pipeline as tiny
import torch
from made import made
from PIL import Image

import diffdistill.methods.boot
import diffdistill.methods.one_step
from diffdistill.cli.main import main
from diffdistill.diffusion import Denoiser, GaussianTeacher, VPSchedule, guided
from diffdistill.distill import SampleRandom, signal_step
from diffdistill.errors import UserError
from diffdistill.methods import BOOT
from diffdistill.models.families.unet import UNetBackbone
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture(scope="module", params=["v_prediction", "epsilon"])
def teacher(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    tiny.save_tiny_pipeline(folder / "teacher", request.param)
    return str(folder)


def build(folder: str, **more) -> BOOT:
    return made(BOOT, teacher__source=f"{folder}/teacher", prompts=f"{folder}/prompts.txt", **more)


def evaluate(method: BOOT, size: int = 4, first: int = 0):
    random = SampleRandom(0, range(first, first + size))
    return method.phases(0)[0].loss(method.batch([i % 2 for i in range(first, first + size)], random), random, {})


def shake(network: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("noise_ratio", [None, 2.5])
def test_the_untrained_student_is_the_teachers_one_step_answer_at_every_time(teacher: str, noise_ratio) -> None:
    method = build(teacher, noise_ratio=noise_ratio, guidance_scale=1.0)
    z, cond = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), method.embedded([0, 1])
    with torch.no_grad():
        expected = method.teacher.denoiser()(z, torch.full((2,), method.t_star), cond).x0
        for t in (method.t_end, 400, method.t_star):
            found = method.student.signal(method.networks["student"], z, torch.full((2,), t), cond)
            torch.testing.assert_close(found, expected)
    _, logs = evaluate(method)
    assert logs["boundary"].item() < 1e-10 and logs["bootstrap"].item() > 1e-6


def test_replaced_times_are_the_teachers_own(teacher: str) -> None:
    method = build(teacher, target_time="replaced", guidance_scale=1.0)
    z, cond = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), method.embedded([0, 1])
    with torch.no_grad():
        for t in (10, 999):
            value = method.networks["student"](z, torch.full((2,), t), cond)
            assert torch.equal(value, method.teacher.backbone(z, torch.full((2,), t), cond))
    assert evaluate(method)[1]["boundary"].item() < 1e-10


@pytest.mark.parametrize("times", ["uniform", "covering"])
def test_steps(teacher: str, times) -> None:
    """Every start and end that the setting promises, and no step that is longer than delta or goes nowhere."""
    method = build(teacher, noise_ratio=2.5, t_min=0.02, times=times)
    u = torch.arange(4096, dtype=torch.float64) / 4096
    t, s = method.steps(u)
    length = t - s
    assert method.step == 40 and method.t_end == 20 and method.t_star < 999
    assert bool((length >= 1).all()) and bool((length <= 40).all())
    assert set(t.tolist()) == set(range(21, method.t_star + 1))
    # uniform steps leave no s in the last delta; covering ones do
    last = method.t_star - (40 if times == "uniform" else 1)
    assert set(s.tolist()) == set(range(20, last + 1))
    assert bool((s == (t - 40).clamp_min(20))[t < method.t_star].all())


def test_the_loss_is_the_sum_that_the_paper_says(teacher: str) -> None:
    """Term by term, with the passes spelt out."""
    method = build(teacher, guidance_scale=3.0, boundary_weight=0.3)
    shake(method.networks["student"])
    loss, logs = evaluate(method)
    random, cond = SampleRandom(0, range(4)), method.embedded([0, 1, 0, 1])
    z = random.normal("z", (4, 4, 4))
    t, s = method.steps(random.uniform("time"))
    first = torch.full((4,), method.t_star)
    schedule, student = method.schedule, method.networks["student"]

    def teachers(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        one, none = (
            method.teacher.denoiser()(x, time, cond).x0,
            method.teacher.denoiser()(x, time, method.null.expand_as(cond)).x0,
        )
        return none + 3.0 * (one - none)

    with torch.no_grad():
        y_t, y_s, y_first = (method.student.signal(student, z, time, cond) for time in (t, s, first))
        f = teachers(schedule.add_noise(y_t, z, t), t)
        d = signal_step(schedule, t, s).float()[:, None, None, None]
        bootstrap = ((y_s - y_t - d * (f - y_t)) / d).square().mean()
        boundary = (y_first - teachers(z, first)).square().mean()
    torch.testing.assert_close(logs["bootstrap"], bootstrap, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logs["boundary"], boundary, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss.detach(), bootstrap + 0.3 * boundary, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        teachers(z, first), guided(method.teacher.denoiser(), z, first, cond, method.null, 3.0).x0
    )


def test_a_share_of_boundaries_is_weighted_up_and_does_not_depend_on_micro_batches(teacher: str) -> None:
    method = build(teacher, boundary_share=0.5, boundary_weight=1.0)
    shake(method.networks["student"])
    whole, _ = evaluate(method, 8)
    halves = [evaluate(method, 4, first)[0] for first in (0, 4)]
    torch.testing.assert_close(whole, sum(halves) / 2)
    # over many samples the share's mean is the whole's
    method.boundary_share = 0.25
    few = evaluate(method, 1024)[1]["boundary"].item()
    method.boundary_share = 1.0
    assert few == pytest.approx(evaluate(method, 1024)[1]["boundary"].item(), rel=0.15)
    method.boundary_weight = 0.0
    assert evaluate(method, 8)[1]["boundary"].item() == 0.0


@pytest.mark.parametrize("target_time", ["added", "replaced"])
@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_gradients_reach_all_of_the_student_and_nothing_of_the_teacher(teacher: str, target_time, solver) -> None:
    method = build(teacher, target_time=target_time, solver=solver, guidance_scale=2.0)
    shake(method.networks["student"])
    gradients = {}
    for lower in (
        False,
        True,
    ):  # autocast keeps the weights it has cast: they must not be those of a pass without graph
        method.networks["student"].zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            loss, _ = evaluate(method)
        loss.backward()
        gradients[lower] = {name: p.grad for name, p in method.networks["student"].named_parameters()}
        assert loss.dtype == torch.float32
        for name, gradient in gradients[lower].items():
            assert gradient is not None and gradient.abs().max() > 0, name
    for part in (method.teacher.backbone, method.teacher.pipeline.vae, method.teacher.pipeline.text_encoder):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    plain, lower = (torch.cat([g.flatten() for g in gradients[key].values()]) for key in (False, True))
    assert torch.nn.functional.cosine_similarity(plain, lower, dim=0) > 0.95


class Affine(torch.nn.Module):
    """z to a(t) z + b(t), polynomials of sigma: all that a Gaussian teacher's student has to be."""

    def __init__(self, schedule: VPSchedule) -> None:
        super().__init__()
        self.schedule, self.coefficients = schedule, torch.nn.Parameter(torch.zeros(2, 6))

    def forward(self, z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        powers = torch.special.chebyshev_polynomial_t(2 * self.schedule.sigma(t)[:, None].float() - 1, torch.arange(6))
        a, b = ((powers * row).sum(1) for row in self.coefficients)  # no product whose precision others may set
        return a[:, None, None, None] * z + b[:, None, None, None]


def test_the_recipe_arrives_at_the_end_of_the_teachers_ode(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an exact Gaussian teacher and a student of 12 numbers in the networks' places."""
    if "tiny1" in teacher:
        pytest.skip("one kind of prediction will do")
    mean, std = 0.7, 0.3
    method = build(
        teacher, t_min=0.0, noise_ratio=2.5, times="covering", solver="midpoint", guidance_scale=1.0,
        boundary_weight=1.0,
    )  # fmt: skip
    exact = GaussianTeacher(method.schedule, mean, std, "v")
    monkeypatch.setattr(method.teacher, "denoiser", lambda network=None: exact)
    method.networks["student"] = Affine(method.schedule)
    optimiser = torch.optim.Adam(method.networks["student"].parameters(), lr=0.1, betas=(0.9, 0.99))
    steps = 1200
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        loss, _ = evaluate(method, 32, 32 * step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    z, cond = torch.linspace(-2, 2, 5).view(5, 1, 1, 1), method.embedded([0] * 5)
    with torch.no_grad():
        found = method.student.signal(method.networks["student"], z, torch.zeros(5, dtype=torch.long), cond)
    # from x = alpha f + sigma z; the ODE keeps (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)
    start, end = torch.full((5,), method.t_star), torch.zeros(5, dtype=torch.long)
    x = method.schedule.add_noise(method.teacher.denoiser()(z, start, None).x0, z, start)
    level = {}
    for time in (start, end):
        alpha, sigma = method.schedule.alpha(time)[0], method.schedule.sigma(time)[0]
        level[time is end] = alpha, sigma, (alpha**2 * std**2 + sigma**2).sqrt()
    (alpha, _, scale), (alpha_end, sigma_end, scale_end) = level[False], level[True]
    x_end = alpha_end * mean + scale_end / scale * (x - alpha * mean)
    expected = (x_end - sigma_end * z) / alpha_end
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=0.02)
    assert expected.std() > 0.2  # it is not the teacher's one-step answer, which is nearly the mean
    assert method.teacher.denoiser()(z, start, None).x0.std() < 0.1


def test_prompts_are_all_the_data(teacher: str, tmp_path: Path) -> None:
    modules = (diffdistill.methods.boot, diffdistill.methods.one_step)
    taken = {getattr(value, "__module__", "") for module in modules for value in vars(module).values()}
    assert {name for name in taken if str(name).startswith("diffdistill.data")} == {"diffdistill.data.prompts"}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was asked for")

    with patch("diffdistill.data.emoji.load_emoji", refuse), patch("PIL.Image.open", refuse):
        Trainer(build(teacher), TrainingSettings(8, batch_size=4, cpu=True, validate_every=0), tmp_path).fit()


@pytest.mark.parametrize(("noise_ratio", "target_time"), [(None, "added"), (2.5, "added"), (2.5, "replaced")])
def test_the_exported_pipeline_makes_the_students_picture(
    teacher: str, tmp_path: Path, noise_ratio, target_time
) -> None:
    from diffusers import DiffusionPipeline, UNet2DConditionModel

    method = build(
        teacher,
        noise_ratio=noise_ratio,
        target_time=target_time,
        t_min=0.1,
        optimizer__learning_rate=1e-3,
        optimizer__betas=(0.0, 0.99),
    )
    settings = TrainingSettings(32, batch_size=4, cpu=True, log_every=1, ema_decay=0.0)
    folder = Trainer(method, settings, tmp_path).fit()
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.unet) is UNet2DConditionModel and pipeline.unet.class_embedding is None
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    prompts = ["red apple", "blue car"]
    options = {"num_inference_steps": 1, "guidance_scale": 1, "latents": z}
    latents = pipeline(prompts, output_type="latent", **options).images
    stock = pipeline(prompts, output_type="pt", **options).images
    with torch.no_grad():
        y = method.student.signal(method.networks["student"], z, torch.full((2,), 100), method.embedded([0, 1]))
        other = method.student.signal(
            method.networks["student"], z, torch.full((2,), method.t_star), method.embedded([0, 1])
        )
    scale = y.abs().max()
    torch.testing.assert_close(latents / scale, y / scale, rtol=0, atol=2e-5)
    assert (other - y).abs().max() / scale > 1e-3  # the target's time does matter
    assert (stock - method.teacher.latents.images(y)).abs().max() < 2 / 255
    # the schedule was not changed to fit: the network at T* is a Denoiser's
    with torch.no_grad():
        denoiser = Denoiser(UNetBackbone(pipeline.unet), method.schedule, method.teacher.prediction_type)
        again = denoiser(z, torch.full((2,), method.t_star), method.embedded([0, 1])).x0
    torch.testing.assert_close(again / scale, y / scale, rtol=0, atol=2e-5)

    if (noise_ratio, target_time) != (2.5, "added") or method.teacher.prediction_type != "v":
        return  # a process of its own takes seconds; SwiftBrush's test has one for each kind of prediction
    alone = (
        "import sys, torch; sys.modules['diffdistill'] = None; from diffusers import DiffusionPipeline; "
        "p = DiffusionPipeline.from_pretrained(sys.argv[1]); g = torch.Generator().manual_seed(3); "
        "p('red apple', num_inference_steps=1, guidance_scale=1, generator=g).images[0].save(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", alone, str(folder), str(tmp_path / "alone.png")], check=True)
    command = ["generate", "--model", str(folder), "--prompt", "red apple", "--seed", "3"]
    assert main([*command, "--out", str(tmp_path / "ours.png")]) == 0
    pictures = [np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("alone.png", "ours.png")]
    assert abs(pictures[0] - pictures[1]).max() < 2


def test_a_run_that_was_resumed_is_the_run(teacher: str, tmp_path: Path) -> None:
    """The new embedding is in checkpoints, and samples have their own randomness."""
    options = {"optimizer__learning_rate": 1e-3, "boundary_share": 0.5}
    settings = {"batch_size": 4, "cpu": True, "log_every": 1, "validate_every": 0}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    Trainer(build(teacher, **options), TrainingSettings(32, **settings), tmp_path / "whole").fit()
    Trainer(build(teacher, **options), TrainingSettings(16, **settings), tmp_path / "parts").fit()
    Trainer(build(teacher, **options), TrainingSettings(32, **settings), tmp_path / "parts", "latest").fit()
    lines = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [a["student/loss"] for a in lines[0]] == [b["student/loss"] for b in lines[1]]


def test_gradient_checkpointing_changes_no_loss(teacher: str) -> None:
    plain, again = build(teacher), build(teacher)
    again.enable_gradient_checkpointing()
    gradients = []
    for method in (plain, again):
        method.networks["student"].train()
        evaluate(method)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.networks["student"].parameters()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "bad",
    [
        {"weight": "inverse"}, {"solver": "rk4"}, {"delta": 0.0}, {"t_min": 1.2}, {"t_min": 0.999},
        {"boundary_weight": -1.0}, {"boundary_share": 0.0}, {"boundary_share": 1.5}, {"optimizer__learning_rate": 0.0},
    ],
)  # fmt: skip
def test_bad_numbers_and_names_are_refused_at_once(teacher: str, bad: dict) -> None:
    with pytest.raises(
        (UserError, ValueError), match=next(iter(bad)).removeprefix("optimizer__").replace("_rate", ".rate")
    ):
        build(teacher, **bad)


def test_teachers_that_will_not_do(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple\n")
    folder = tiny.save_tiny_pipeline(tmp_path / "epsilon", "epsilon")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rescale_betas_zero_snr": True}))
    with pytest.raises(UserError, match="set noise_ratio"):
        made(BOOT, teacher__source=str(folder), prompts=str(prompts))
    made(BOOT, teacher__source=str(folder), prompts=str(prompts), noise_ratio=2.5)
