"""Samplers step for step against diffusers' schedulers, and against the law of an exact teacher."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from diffdistill.diffusion import (
    Denoiser,
    FlowSchedule,
    GaussianTeacher,
    Prediction,
    Schedule,
    VPSchedule,
    ddim,
    dpm_solver_pp_2m,
    euler,
    timesteps,
)

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DIFFUSERS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
VP = VPSchedule.from_config(CONFIG)


def network(x_t: Tensor, time: Tensor, cond: Any = None) -> Tensor:
    """No exact score, so that a wrong time or a wrong level shows."""
    return 0.8 * x_t.tanh() + 0.1 * (time.to(x_t.dtype).view(-1, *[1] * (x_t.dim() - 1)) * 0.01).sin()


def predictor(schedule: Schedule, kind: Any) -> Callable[[Tensor, Tensor], Prediction]:
    denoiser = Denoiser(network, schedule, kind)
    return lambda x_t, t: denoiser(x_t, t, None)


def start() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def trace(sampler: Any, *args: Any, **options: Any) -> tuple[list[float], list[Tensor]]:
    times: list[float] = []
    samples: list[Tensor] = []

    def callback(index: int, t: float, x: Tensor, prediction: Prediction) -> None:
        assert index == len(times)
        times.append(t)
        samples.append(x)

    result = sampler(*args, callback=callback, **options)
    assert torch.equal(result, samples[-1]) and result.dtype == args[1].dtype
    return times, samples


def assert_steps(ours: tuple[list[float], list[Tensor]], theirs: list[tuple[float, Tensor]]) -> None:
    assert ours[0] == pytest.approx([t for t, _ in theirs], rel=1e-6)
    for x, (_, expected) in zip(ours[1], theirs, strict=True):
        # relative to the image: an eps network that is no score leaves numbers of the order of 1 / alpha
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(x / scale, expected / scale, rtol=0, atol=1e-5)


SPACINGS = [("trailing", 0), ("leading", 0), ("leading", 1), ("linspace", 0)]


@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
def test_timesteps_are_those_of_ddim(spacing: Any, offset: int) -> None:
    for total in (1000, 580):
        reference: Any = DDIMScheduler(
            **CONFIG, num_train_timesteps=total, timestep_spacing=spacing, steps_offset=offset
        )
        schedule = VPSchedule.from_config(reference.config)
        for n in [*range(1, 130), 250, 333, 500, total]:
            reference.set_timesteps(n)
            assert timesteps(schedule, n, spacing, offset).tolist() == reference.timesteps.tolist(), n


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_are_those_of_flow_matching(shift: float) -> None:
    for n in (1, 2, 7, 28):
        reference: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
        reference.set_timesteps(n)
        ours = timesteps(FlowSchedule(shift=shift), n)
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, reference.sigmas[:-1].double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("n", [1, 4, 7, 20])
@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
@pytest.mark.parametrize("final_alpha_one", [True, False])
def test_ddim(kind: str, n: int, spacing: Any, offset: int, final_alpha_one: bool) -> None:
    reference: Any = DDIMScheduler(
        **CONFIG,
        prediction_type=DIFFUSERS[kind],
        timestep_spacing=spacing,
        steps_offset=offset,
        clip_sample=False,
        set_alpha_to_one=final_alpha_one,
    )
    options = {"spacing": spacing, "steps_offset": offset, "final_alpha_one": final_alpha_one}
    assert_steps(trace(ddim, predictor(VP, kind), start(), VP, n, **options), theirs_ddim(reference, n, start()))


def theirs_ddim(reference: Any, n: int, x: Tensor, **options: Any) -> list[tuple[float, Tensor]]:
    reference.set_timesteps(n)
    steps = []
    for t in reference.timesteps:
        x = reference.step(network(x, t.expand(len(x))), t, x, **options).prev_sample
        steps.append((t.item(), x))
    return steps


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_draws_the_same_noise(eta: float) -> None:
    reference: Any = DDIMScheduler(
        **CONFIG, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )
    theirs = theirs_ddim(reference, 10, start(), eta=eta, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    assert_steps(
        trace(ddim, predictor(VP, "v"), start(), VP, 10, eta=eta, generator=generator),
        theirs,
    )


@pytest.mark.parametrize("n", [1, 2, 8])
def test_ddim_from_zero_terminal_snr(n: int) -> None:
    config = {**CONFIG, "rescale_betas_zero_snr": True}
    schedule = VPSchedule.from_config(config)
    reference: Any = DDIMScheduler(
        **config, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )
    assert schedule.alpha(torch.tensor(999)).item() == 0
    assert_steps(trace(ddim, predictor(schedule, "v"), start(), schedule, n), theirs_ddim(reference, n, start()))
    for sampler in (ddim, euler, dpm_solver_pp_2m):
        assert bool(sampler(predictor(schedule, "v"), start(), schedule, n).isfinite().all())
        with pytest.raises(ValueError, match="predict v, x0 or flow"):
            sampler(predictor(schedule, "eps"), start(), schedule, n)


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize(
    ("n", "spacing", "offset"),
    # linspace is rounded here and not there: equal where n - 1 divides 999
    [(n, *spacing) for n in (1, 4, 7, 28) for spacing in SPACINGS if (n, spacing[0]) != (7, "linspace")],
)
def test_euler(kind: str, n: int, spacing: Any, offset: int) -> None:
    reference: Any = EulerDiscreteScheduler(
        **CONFIG, prediction_type=DIFFUSERS[kind], timestep_spacing=spacing, steps_offset=offset
    )
    reference.set_timesteps(n)
    scaled = start() * (reference.sigmas[0] ** 2 + 1) ** 0.5  # x / alpha
    theirs = []
    for t, sigma in zip(reference.timesteps, reference.sigmas[1:], strict=True):
        x_t = reference.scale_model_input(scaled, t)
        scaled = reference.step(network(x_t, t.expand(2)), t, scaled).prev_sample
        theirs.append((t.item(), scaled / (sigma**2 + 1) ** 0.5))
    ours = trace(euler, predictor(VP, kind), start(), VP, n, spacing=spacing, steps_offset=offset)
    assert_steps(ours, theirs)


@pytest.mark.parametrize("n", [1, 4, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_a_flow(n: int, shift: float) -> None:
    reference: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(n)
    x, theirs = start(), []
    for t in reference.timesteps:
        x = reference.step(network(x, t.expand(2)), t, x).prev_sample
        theirs.append((t.item() / 1000, x))
    schedule = FlowSchedule(shift=shift)
    assert_steps(trace(euler, predictor(schedule, "flow"), start(), schedule, n), theirs)
    assert_steps(trace(ddim, predictor(schedule, "flow"), start(), schedule, n), theirs)  # the same map


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
def test_dpm_solver(kind: str, n: int, spacing: Any, offset: int) -> None:
    reference: Any = DPMSolverMultistepScheduler(
        **CONFIG,
        prediction_type=DIFFUSERS[kind],
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing=spacing,
        steps_offset=offset,
    )
    ours = trace(dpm_solver_pp_2m, predictor(VP, kind), start(), VP, n, spacing=spacing, steps_offset=offset)
    assert_steps(ours, theirs_ddim(reference, n, start()))


def test_times_given() -> None:
    for sampler in (ddim, euler, dpm_solver_pp_2m):
        grid = timesteps(VP, 5)
        by_number = sampler(predictor(VP, "v"), start(), VP, 5)
        assert torch.equal(by_number, sampler(predictor(VP, "v"), start(), VP, grid))
        assert torch.equal(by_number, sampler(predictor(VP, "v"), start(), VP, grid.tolist()))
    with pytest.raises(ValueError, match="descend"):
        ddim(predictor(VP, "v"), start(), VP, [1, 2])


def test_errors() -> None:
    for n in (0, 1001):
        with pytest.raises(ValueError, match=r"1 \.\.\. 1000"):
            timesteps(VP, n)
    with pytest.raises(ValueError, match="trailing, leading, linspace"):
        timesteps(VP, 4, "karras")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no offset"):
        timesteps(FlowSchedule(), 4, steps_offset=1)


@pytest.mark.parametrize("schedule", [VP, FlowSchedule()], ids=["vp", "flow"])
@pytest.mark.parametrize("sampler", [ddim, euler, dpm_solver_pp_2m])
def test_an_exact_teacher_s_samples_have_its_mean_and_deviation(schedule: Any, sampler: Any) -> None:
    """The ODE maps x_T = alpha mean + s z to mean + std z, for any z: nothing is left to chance.

    What remains on the discrete schedule is mostly its last step, from sigma / alpha = 0.03 to 0 at once.
    """
    mean, std = 1.5, 0.4
    teacher = GaussianTeacher(schedule, mean, std, "v")
    z = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    last = torch.tensor(schedule.last)
    alpha, sigma = schedule.alpha(last), schedule.sigma(last)
    x = alpha * mean + (alpha**2 * std**2 + sigma**2).sqrt() * z
    errors = []
    for n in (50, 500):
        samples = sampler(lambda x_t, t: teacher(x_t, t, None), x, schedule, n)
        errors.append((samples - mean - std * z).abs().max().item())
    assert errors[1] < 1e-2 and errors[1] < errors[0] / 2


def test_ancestral_samples_of_an_exact_teacher() -> None:
    mean, std = -0.5, 0.7
    teacher = GaussianTeacher(VP, mean, std)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 20000, generator=generator, dtype=torch.float64)
    x = ddim(lambda x_t, t: teacher(x_t, t, None), noise, VP, 200, eta=1.0, generator=generator)
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.std().item() == pytest.approx(std, abs=0.02)
