"""Every residual on one small problem with an exact answer: points in the plane, a mixture of Gaussians as teacher.

    python bench/mixture.py
    python bench/mixture.py --seeds 3 --learned

The teacher is exact: eight modes on a ring and a broad part in the middle. The prompt wants four of the modes, in the
proportions .4 .3 .2 .1; the empty prompt is everything; the negative prompt is the broad part. What is trained is 512
free points, by Adam on the weighted residual. VSD's and SiD's fake score is exact too: that of the points themselves.
With --learned, each method is trained as in real use: a small network that has learnt the prompt's mixture becomes
a student that makes the points from noise, and a copy of it learns the fake score.

Against samples of the prompt's mixture: `sw`, the sliced Wasserstein-2 distance, 128 directions; `ratio`, to that
between two sets of real samples of the same size (the floor); `off`, share of points beyond four deviations of
all of the prompt's modes; `spread`, deviation of the others about the mean of their mode over the mode's own (1 is
right, 0 is collapse); `shares`, of the four modes (.4 .3 .2 .1 is right); `radius`, mean distance from the middle (2
is right, more is overshoot). Prints JSON, rows to stderr as they come. A seed takes two to three minutes on one core,
seven with --learned.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Denoiser, MixtureTeacher, VPSchedule
from diffdistill.distill import (
    RESIDUALS,
    JudgingOptions,
    SampleRandom,
    backward_simulation,
    denoising_loss,
    earlier,
    few_step_sample,
    few_step_times,
    score_distillation_loss,
    score_identity_loss,
    time_range,
)

N, STD, RADIUS = 512, 0.2, 2.0
WANTED = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
FIRST, LAST = (0.02, 0.98), (0.02, 0.5)  # times judged, coming down
SCHEDULE = VPSchedule.from_config({"beta_schedule": "linear"})


def teacher() -> tuple[MixtureTeacher, dict[str, Tensor]]:
    """The teacher and its prompts: weights of its nine parts, of shape (1, 9)."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.cat([RADIUS * torch.stack([angle.cos(), angle.sin()], 1), torch.zeros(1, 2)])
    prompts = {name: torch.zeros(1, 9, dtype=torch.float64) for name in ("cond", "null", "negative")}
    prompts["cond"][0, [0, 2, 3, 6]] = WANTED
    prompts["null"][0] = 0.1
    prompts["null"][0, 8] = 0.2
    prompts["negative"][0, 8] = 1.0
    stds = torch.cat([torch.full((8,), STD), torch.ones(1)])
    return MixtureTeacher(SCHEDULE, means, stds, prompts["null"][0], "v"), prompts


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 128) -> float:
    """Sliced Wasserstein-2 of two sets of as many points in the plane, over evenly spread directions."""
    angle = torch.arange(directions, dtype=torch.float64) * math.pi / directions
    along = torch.stack([angle.cos(), angle.sin()])
    return ((a @ along).sort(0).values - (b @ along).sort(0).values).square().mean().sqrt().item()


def reading(points: Tensor, model: MixtureTeacher, prompt: Tensor, sets: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    real = [model.sample(len(points), generator, prompt[0]) for _ in range(2 * sets)]
    sw = sum(sliced_wasserstein(points, x) for x in real) / len(real)
    floor = sum(sliced_wasserstein(a, b) for a, b in zip(real[::2], real[1::2], strict=True)) / sets
    modes = model.means[prompt[0] > 0]
    distance, nearest = torch.cdist(points, modes).min(1)
    near = distance < 4 * STD
    groups = [points[near & (nearest == k)] for k in range(len(modes))]
    deviation = sum(float((g - g.mean(0)).square().sum()) for g in groups if len(g))
    return {
        "sw": round(sw, 3),
        "ratio": round(sw / floor, 2),
        "off": round(1 - near.double().mean().item(), 3),
        "radius": round(points.norm(dim=1).mean().item(), 2),
        "spread": round((deviation / 2 / max(int(near.sum()), 1)) ** 0.5 / STD, 2),
        "shares": [round(len(g) / len(points), 2) for g in groups],
    }


class Points:
    """The exact score of a set of points, whatever the prompt: the fake score that a perfect fit would give."""

    def __init__(self, x: Tensor) -> None:
        self.schedule = SCHEDULE
        self.model = MixtureTeacher(SCHEDULE, x, torch.zeros(len(x)), torch.full((len(x),), 1 / len(x)), "v")

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Any:
        return self.model(x_t, t, None)


def loss_of(name: str, weight: str, scale: float, x0: Tensor, r: Any, progress: float, fake: Any) -> Tensor:
    """The loss of one step on points x0 of shape (B, 2); its gradient is the row's."""
    model, prompts = teacher()
    t = SCHEDULE.timestep(r.uniform("t"), *time_range(progress, FIRST, LAST))
    eps = r.normal("eps", (2,), torch.float64)
    args = (t, eps, prompts["cond"].expand(len(x0), -1), prompts["null"], scale)
    if name == "sid":
        return score_identity_loss(model, fake, x0, *args, fake_guidance_scale=scale)[0]
    needs = RESIDUALS[name].needs
    loss, _ = score_distillation_loss(
        name,
        weight,
        model,
        x0,
        *args,
        fake=fake,
        options=JudgingOptions(
            later_t=SCHEDULE.later(t, r.uniform("later"), 0.1, FIRST[0]) if "later" in needs else None,
            earlier_t=earlier(SCHEDULE, t, 0.08) if "earlier" in needs else None,
            negative=prompts["negative"] if "negative" in needs else None,
        ),
        reduction="batch",
    )
    return loss


def free_points(name: str, weight: str, scale: float, seed: int, steps: int, rate: float) -> Tensor:
    """Free points: each is its own generator."""
    x = SampleRandom(seed, range(N)).normal("start", (2,), torch.float64).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=rate, betas=(0.5, 0.9))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        r = SampleRandom(seed, range((step + 1) * N, (step + 2) * N))
        loss = loss_of(name, weight, scale, x, r, step / steps, Points(x.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return x.detach()


class Stream:
    """Asked like `SampleRandom`, but one generator in turn: noise of each sample's own costs more than an Mlp."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(N, *shape, generator=self.generator, dtype=dtype)

    def uniform(self, name: str) -> Tensor:
        return torch.rand(N, generator=self.generator, dtype=torch.float64)

    def integers(self, name: str, high: int) -> Tensor:
        return torch.randint(high, (N,), generator=self.generator)


class Mlp(nn.Module):
    """x and time to a vector of the plane, read as v."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(6))
        layers = [nn.Linear(2 + 12, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        angle = t.to(x.dtype)[:, None] / 1000 * self.frequencies
        return self.layers(torch.cat([x, angle.sin(), angle.cos()], 1))


def denoiser_of_the_prompt(r: Stream, steps: int = 800, rate: float = 3e-3) -> Mlp:
    """A network that has learnt the prompt's mixture: what student and fake score start as, copies of a teacher."""
    model, prompts = teacher()
    network = Mlp()
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        data = model.sample(N, r.generator, prompts["cond"][0]).float()
        learn(optimiser, Denoiser(network, SCHEDULE, "v"), data, r)
    return network


def learn(optimiser: torch.optim.Optimizer, denoiser: Denoiser, x0: Tensor, r: Stream) -> None:
    """One update by the denoising loss."""
    t = SCHEDULE.timestep(r.uniform("t"), 0.0, 1.0)
    loss = denoising_loss(denoiser, x0, t, r.normal("eps", (2,)), None, "v")
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def generated(
    name: str, weight: str, scale: float, seed: int, steps: int, rate: float, updates: int, generator_steps: int
) -> dict[str, Tensor]:
    """A network makes the points from noise in one step or more, another learns their score, `updates` times a step.

    Points after the last step and, where there are several, those that the scores judged: after any of them.
    """
    torch.manual_seed(seed)
    r = Stream(seed)
    student = denoiser_of_the_prompt(r)
    networks = {"student": student, "fake": copy.deepcopy(student)}
    tops = {"student": rate, "fake": 2 * rate}
    optimisers = {k: torch.optim.Adam(n.parameters(), lr=tops[k], betas=(0.0, 0.99)) for k, n in networks.items()}
    generator, fake = (Denoiser(network, SCHEDULE, "v") for network in networks.values())
    times = few_step_times(SCHEDULE, 999, generator_steps)

    def after_any_step() -> Tensor:
        z, *noises = (r.normal("z", (2,)) for _ in times)
        inputs, t = backward_simulation(generator, z, times, noises, z, r.integers("step", generator_steps))
        return generator(inputs, t, None).x0

    for step in range(steps):
        for key, optimiser in optimisers.items():
            optimiser.param_groups[0]["lr"] = tops[key] * (1 - step / steps)
        x0 = after_any_step()
        loss = loss_of(name, weight, scale, x0, r, step / steps, fake)
        optimisers["student"].zero_grad()
        loss.backward()
        optimisers["student"].step()
        for _ in range(updates):
            learn(optimisers["fake"], fake, x0, r)
    z, *noises = (r.normal("z", (2,)) for _ in times)
    made = {"": few_step_sample(generator, z, times, noises, None).double()}
    if generator_steps > 1:
        made[", all steps"] = after_any_step().detach().double()
    return made


# residual, weight, guidance scales: the weights are those of each paper's code
ROWS = [
    ("vsd", "sigma2", (1.0, 7.5)),
    ("vsd", "dmd", (1.0,)),
    ("vsd", "x0", (1.0,)),
    ("sid", "", (1.0,)),
    ("sds", "sigma2", (1.0, 7.5)),
    ("sjc", "sigma2", (1.0,)),
    ("csd", "sigma2", (1.0,)),
    ("nfsd", "sigma2", (1.0, 7.5)),
    ("asd", "sigma2", (1.0, 7.5)),
    ("ism", "x0", (1.0, 7.5)),
    ("sdi", "x0", (1.0, 7.5)),
]
# method: residual, weight, updates of the fake score, steps of the student
METHODS = {
    "SwiftBrush": ("vsd", "sigma2", 2, 1),
    "DMD2": ("vsd", "dmd", 5, 1),
    "DMD2, 2 steps": ("vsd", "dmd", 5, 2),
    "Diff-Instruct": ("vsd", "x0", 2, 1),
    "SiD": ("sid", "", 2, 1),
    "ASD": ("asd", "sigma2", 0, 1),
    "SDS": ("sds", "sigma2", 0, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--learned", action="store_true", help="train networks as well")
    parser.add_argument("--learned-steps", type=int, default=1500)
    parser.add_argument("--learned-rate", type=float, default=1e-3)
    o = parser.parse_args()
    model, prompts = teacher()
    found: list[dict[str, Any]] = []

    def measure(what: str, name: str, weight: str, scale: float, train: Any) -> None:
        for seed in range(o.seeds):
            started = time.perf_counter()
            made = train(name, weight, scale, seed)
            seconds = round(time.perf_counter() - started, 1)
            for which, points in (made if isinstance(made, dict) else {"": made}).items():
                entry = {"what": what + which, "residual": name, "weight": weight, "scale": scale, "seed": seed}
                found.append(entry | reading(points, model, prompts["cond"]) | {"seconds": seconds})
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)

    for name, weight, scales in ROWS:
        for scale in scales:
            measure("points", name, weight, scale, partial(free_points, steps=o.steps, rate=o.rate))
    for method, (name, weight, updates, generator_steps) in METHODS.items() if o.learned else ():
        how = {"steps": o.learned_steps, "rate": o.learned_rate, "updates": updates, "generator_steps": generator_steps}
        measure(method, name, weight, 1.0, partial(generated, **how))
    print(json.dumps({"n": N, "steps": o.steps, "rate": o.rate, "first": FIRST, "last": LAST, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
