"""Few-step sampling and the inputs made for training it: exact marginals of a Gaussian, gradients, toys that arrive.

An exact consistency function takes x_t of the teacher's marginal to the end of its ODE. For N(mu, v^2) it is
mu + v (x_t - alpha mu) / sqrt(alpha^2 v^2 + sigma^2), affine, so that a rollout's mean is its value where all noises
are zero, and its variance the sum of squared responses to each noise.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffdistill.diffusion import Denoiser, FlowSchedule, MixtureTeacher, Prediction, VPSchedule, broadcast
from diffdistill.diffusion.gaussian import GaussianTeacher
from diffdistill.distill import WEIGHTS, SampleRandom, denoising_loss, score_distillation_loss
from diffdistill.distill.backward_simulation import backward_simulation, few_step_sample, few_step_times

VP = VPSchedule.from_config(
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
)
MEAN, STD = 1.5, 0.6


def level(t: int) -> tuple[float, float]:
    at = torch.tensor(t)
    return VP.alpha(at).item(), VP.sigma(at).item()


class Consistency:
    """The exact one-step map of N(MEAN, STD^2), called like a `Denoiser`."""

    schedule = VP

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Prediction:
        alpha, sigma = (broadcast(part(t), x_t) for part in (VP.alpha, VP.sigma))
        x0 = MEAN + STD * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
        return Prediction(x_t, x0, "x0", alpha, sigma)


def responses(run: Any, noises: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of an affine function of independent standard normals, each of shape (B, 1)."""
    zero = run([torch.zeros(3, 1, dtype=torch.float64)] * noises)
    units = [
        run([torch.full((3, 1), float(i == k), dtype=torch.float64) for i in range(noises)]) for k in range(noises)
    ]
    return zero, sum((unit - zero).square() for unit in units)


@pytest.mark.parametrize("steps", [2, 4])
def test_with_an_exact_student_the_inputs_are_the_schedules_noised_data(steps: int) -> None:
    times = few_step_times(VP, 999, steps)
    alpha, sigma = level(times[0].item())
    start, width = alpha * MEAN, (alpha**2 * STD**2 + sigma**2) ** 0.5  # the exact marginal at the first time
    cond = torch.zeros(3, 1)
    for index in range(steps):

        def run(noises: list[Tensor], index: int = index) -> Tensor:
            z, step = start + width * noises[0], torch.full((3,), index)
            x_t, t = backward_simulation(Consistency(), z, times, noises[1:], cond, step)
            assert t.tolist() == [times[index]] * 3
            return x_t

        mean, variance = responses(run, steps)
        alpha, sigma = level(times[index].item())
        torch.testing.assert_close(mean, torch.full_like(mean, alpha * MEAN))
        torch.testing.assert_close(variance, torch.full_like(variance, alpha**2 * STD**2 + sigma**2))
    mean, variance = responses(
        lambda noises: few_step_sample(Consistency(), start + width * noises[0], times, noises[1:], cond), steps
    )
    torch.testing.assert_close(mean, torch.full_like(mean, MEAN))
    torch.testing.assert_close(variance, torch.full_like(variance, STD**2))


class StepTable(nn.Module):
    """A parameter for each time, so that one sees which steps a gradient has reached."""

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.scales = nn.ParameterDict(
            {str(t): nn.Parameter(torch.tensor(0.5 + 0.1 * i)) for i, t in enumerate(times.tolist())}
        )
        self.calls: list[int] = []

    def forward(self, x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        self.calls.append(len(x_t))
        scale = torch.stack([self.scales[str(int(t))] for t in time])
        return scale.view(-1, 1) * x_t + cond


def test_each_sample_stops_at_its_own_step_and_only_that_one_has_a_gradient() -> None:
    times = few_step_times(VP, 999, 4)
    network = StepTable(times)
    generator = Denoiser(network, VP, "x0")
    step = torch.tensor([2, 0, 1, 2, 0])
    z, *noises = torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(0))
    z.requires_grad_()
    cond = torch.linspace(0, 1, 5).view(5, 1)
    x_t, t = backward_simulation(generator, z, times, noises, cond, step)
    assert network.calls == [3, 2]  # those that have further to go, and none at the last step
    assert not x_t.requires_grad and t.tolist() == [499, 999, 749, 499, 999]
    for i in range(5):  # one at a time, and in full as the sampler goes
        alone, _ = backward_simulation(
            generator, z[i : i + 1], times, [n[i : i + 1] for n in noises], cond[i : i + 1], step[i : i + 1]
        )
        torch.testing.assert_close(x_t[i : i + 1], alone)
    x0 = generator(x_t, t, cond).x0
    for i, reached in ((0, "499"), (1, "999"), (2, "749")):
        network.zero_grad()
        x0[i].sum().backward(retain_graph=True)
        grads = {name: None if p.grad is None else p.grad.item() for name, p in network.scales.items()}
        assert {name for name, grad in grads.items() if grad} == {reached}
        assert grads[reached] == pytest.approx(x_t[i].item())
    assert z.grad is None


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_on_the_straight_path_times_are_spread_evenly_and_the_inputs_are_noised_data(steps: int) -> None:
    """As above, with times of the other dtype: an exact student's inputs have the moments of the noised data."""
    flow = FlowSchedule()

    class Exact:
        schedule = flow

        def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Prediction:
            alpha, sigma = (broadcast(part(t), x_t) for part in (flow.alpha, flow.sigma))
            x0 = MEAN + STD * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
            return Prediction(x_t, x0, "x0", alpha, sigma)

    times = few_step_times(flow, 0.75, steps)
    assert times.dtype == torch.float64 and times.tolist() == [0.75 * (1 - i / steps) for i in range(steps)]
    assert torch.equal(few_step_times(flow, flow.time_at(3.0), steps), times)
    start, width = 0.25 * MEAN, (0.25**2 * STD**2 + 0.75**2) ** 0.5
    for index, time in enumerate(times.tolist()):

        def run(noises: list[Tensor], index: int = index) -> Tensor:
            step = torch.full((3,), index)
            x_t, t = backward_simulation(Exact(), start + width * noises[0], times, noises[1:], None, step)
            assert torch.equal(t, times[index].expand(3))
            return x_t

        mean, variance = responses(run, steps)
        torch.testing.assert_close(mean, torch.full_like(mean, (1 - time) * MEAN))
        torch.testing.assert_close(variance, torch.full_like(variance, (1 - time) ** 2 * STD**2 + time**2))
    mean, variance = responses(
        lambda noises: few_step_sample(Exact(), start + width * noises[0], times, noises[1:], None), steps
    )
    torch.testing.assert_close(mean, torch.full_like(mean, MEAN))
    torch.testing.assert_close(variance, torch.full_like(variance, STD**2))


def test_the_last_step_goes_on_where_the_sampler_goes_on() -> None:
    times = few_step_times(VP, 699, 3)
    network, cond = StepTable(times), torch.full((2, 1), 0.3)
    generator = Denoiser(network, VP, "x0")
    z, *noises = torch.randn(3, 2, 1, generator=torch.Generator().manual_seed(0))
    x_t, t = backward_simulation(generator, z, times, noises, cond, torch.tensor([2, 2]))
    torch.testing.assert_close(generator(x_t, t, cond).x0, few_step_sample(generator, z, times, noises, cond))


def test_under_autocast_the_step_with_a_graph_still_has_one() -> None:
    """Autocast keeps weights that it has cast; cast in the rollout, they would come without a graph."""
    times = few_step_times(VP, 999, 2)
    torch.manual_seed(0)
    network = nn.Linear(4, 4)
    generator = Denoiser(lambda x_t, time, cond: network(x_t), VP, "x0")
    z, noise = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        x_t, t = backward_simulation(generator, z, times, [noise], torch.zeros(8, 1), torch.ones(8, dtype=torch.long))
        generator(x_t, t, None).x0.square().mean().backward()
    assert network.weight.grad is not None and network.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("count", [1000, 756, 626, 7])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_the_times_are_those_of_the_stock_scheduler(count: int, steps: int) -> None:
    from diffusers import LCMScheduler

    stock = LCMScheduler(num_train_timesteps=count, original_inference_steps=count)
    stock.set_timesteps(steps)
    assert few_step_times(VP, count - 1, steps).tolist() == stock.timesteps.tolist()


def test_errors_say_what_is_wrong() -> None:
    z = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="8 steps"):
        few_step_times(VP, 6, 8)
    for schedule, last in ((VP, 1000), (VP, -1), (FlowSchedule(), 1.5)):
        with pytest.raises(ValueError, match=f"at time {last}"):
            few_step_times(schedule, last, 2)
    for last, steps in ((1.0, 0), (0.0, 2)):
        with pytest.raises(ValueError, match=f"{steps} steps from time {last}"):
            few_step_times(FlowSchedule(), last, steps)
    with pytest.raises(ValueError, match="2 times need 1 noises"):
        few_step_sample(Consistency(), z, torch.tensor([9, 5]), [], None)
    with pytest.raises(ValueError, match="one per sample"):
        backward_simulation(Consistency(), z, torch.tensor([9, 5]), [z], None, torch.tensor(1))


def test_distribution_matching_is_vsd_up_to_one_weight_a_sample() -> None:
    """The gradients of DMD (dmd) and Diff-Instruct (x0) are positive multiples of VSD's, and which ones is known."""
    teacher, fake = GaussianTeacher(VP, MEAN, STD, "v"), GaussianTeacher(VP, 0.2, 0.9, "v")
    x0, eps = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([50, 200, 400, 700, 900])

    def gradient(weight: str) -> Tensor:
        x = x0.clone().requires_grad_()
        loss, _ = score_distillation_loss("vsd", weight, teacher, x, t, eps, None, None, 1.0, fake=fake)
        return torch.autograd.grad(loss, x)[0]

    assert {"dmd", "x0"} <= set(WEIGHTS)
    alpha, sigma = (part(t).view(5, 1) for part in (VP.alpha, VP.sigma))
    x_t = alpha * x0 + sigma * eps
    error = (x0 - teacher(x_t, t, None).x0).abs().mean(1, keepdim=True)
    torch.testing.assert_close(gradient("x0"), gradient("uniform") * sigma / alpha)
    torch.testing.assert_close(gradient("dmd"), gradient("uniform") * sigma / alpha / error)
    # Diff-Instruct, sigma^2 (score_fake - score_teacher) of x_t / alpha: the ratio sigma/alpha is the noise level there
    scores = fake(x_t, t, None).score - teacher(x_t, t, None).score
    torch.testing.assert_close(gradient("x0"), (sigma / alpha) ** 2 * (alpha * scores) / x0.numel())


def test_steps_may_share_the_modes_out() -> None:
    """The scores judge samples of all steps as one. A first step that makes one mode and a second that makes the other
    have no gradient, though what is sampled is the second's alone."""
    means, std = torch.tensor([[-2.0], [2.0]]), 0.3
    both = MixtureTeacher(VP, means, torch.full((2,), std), torch.full((2,), 0.5), "v")
    times = few_step_times(VP, 999, 2)
    alpha, sigma = level(times[1].item())

    def split(x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        again = (x_t - alpha * means[0]) / (alpha**2 * std**2 + sigma**2) ** 0.5  # standard normal at the second step
        return torch.where((time == times[0])[:, None], means[0] + std * x_t, means[1] + std * again)

    generator = Denoiser(split, VP, "x0")
    random = SampleRandom(0, range(4096))
    z, noise = (random.normal(name, (1,)) for name in ("z", "renoise"))
    inputs, t = backward_simulation(generator, z, times, [noise], z, random.integers("step", 2))
    x0 = generator(inputs, t, None).x0.requires_grad_()
    share = (x0 > 0).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.03)  # so `both` is the exact score of these samples
    torch.testing.assert_close((x0.detach().abs() - 2).std(), torch.tensor(std), rtol=0.03, atol=0)
    at = VP.timestep(random.uniform("t"), 0.02, 0.98)
    args = (x0, at, random.normal("eps", (1,)), None, None, 1.0)
    loss, _ = score_distillation_loss("vsd", "dmd", both, *args, fake=both)
    assert not torch.autograd.grad(loss, x0)[0].any()
    assert (few_step_sample(generator, z, times, [noise], None) > 0).all()


def test_a_student_of_two_steps_finds_the_teacher() -> None:
    """Each step affine, the fake score a Gaussian learnt by five denoising updates to one of the student's."""
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    std = torch.tensor([0.5, 1.5], dtype=torch.float64)
    teacher = GaussianTeacher(VP, mean, std, "v")
    times = few_step_times(VP, 999, 2)
    shift, scale = (torch.full((2, 2), v, dtype=torch.float64, requires_grad=True) for v in (0.0, 1.0))

    def step_of(x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        row = (time < times[0]).long()
        return shift[row] + scale[row] * x_t

    generator = Denoiser(step_of, VP, "x0")
    fake_m, fake_log_s = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    student, learner = torch.optim.Adam([shift, scale], 0.05, (0.5, 0.9)), torch.optim.Adam([fake_m, fake_log_s], 0.1)

    def sample(random: SampleRandom) -> Tensor:
        z, noise = (random.normal(name, (2,), torch.float64) for name in ("z", "renoise"))
        x_t, t = backward_simulation(
            generator, z, times, [noise], torch.zeros(len(random), 1), random.integers("step", 2)
        )
        return generator(x_t, t, None).x0

    for step in range(300):
        for optimiser in (student, learner):
            optimiser.param_groups[0]["lr"] *= 0.985 if step > 150 else 1.0
        for k in range(6):
            random = SampleRandom(k, range(64 * step, 64 * step + 64))
            fake = GaussianTeacher(VP, fake_m, fake_log_s.exp(), "v")
            x0, eps = sample(random), random.normal("eps", (2,), torch.float64)
            t = VP.timestep(random.uniform("t"), 0.02, 0.98)
            if k == 0:
                loss, _ = score_distillation_loss("vsd", "dmd", teacher, x0, t, eps, None, None, 1.0, fake=fake)
                optimiser = student
            else:
                loss, optimiser = denoising_loss(fake, x0, t, eps, None, "v"), learner
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        x0 = sample(SampleRandom(9, range(4096)))
    torch.testing.assert_close(x0.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(x0.std(0), std, rtol=0, atol=0.1)
