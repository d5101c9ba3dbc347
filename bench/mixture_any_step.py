"""Self-E, MeanFlow, shortcut models, consistency distillation and BOOT on one small problem with an exact answer.

    python bench/mixture_any_step.py
    python bench/mixture_any_step.py --seeds 1 --only self_e boot

Points in the plane: two classes of two bumps each, on the diagonals of a square, so that they cross like an X. A
perceptron learns from 700 batches of 256: Self-E, MeanFlow, shortcut and flow matching from samples, consistency and
BOOT from the exact score. Then 4,096 points of each class are made in 1, 2, 4 and 8 steps, by BOOT in one alone.

`sw` is their sliced Wasserstein-2 distance, 64 directions, from 4,096 real samples with half in each bump, mean over
the classes and over four such sets; `ratio` is that over the distance of other real samples, whose halves are left to
chance (the floor); `off` the share of points beyond four deviations of both bumps of their class. Mean of the seeds,
and the deviation of `sw` between them. `target_fraction` is where the second time of Self-E lies in its step.

Prints JSON; rows to stderr as they come. About three minutes of one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Denoiser, FlowSchedule, MixtureTeacher
from diffdistill.diffusion.any_step import TwoTimeDenoiser, any_step
from diffdistill.distill import bootstrap_loss, boundary_loss, signal_step, teacher_signal
from diffdistill.distill.consistency import consistency_loss, consistency_sample, skipped_times
from diffdistill.distill.flow_matching import flow_matching_loss, logit_normal_times
from diffdistill.distill.mean_flow import mean_flow_loss, mean_flow_times
from diffdistill.distill.self_evaluation import earlier_times, fake_branch_loss, self_evaluation_loss
from diffdistill.distill.shortcut import shortcut_loss, shortcut_times

FLOW = FlowSchedule()
BUMPS = torch.tensor([[1.1, 1.1], [-1.1, -1.1], [1.1, -1.1], [-1.1, 1.1]], dtype=torch.float64)
STD, SIZE, POINTS, STEPS = 0.25, 256, 4096, (1, 2, 4, 8)
CLASSES = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0.25] * 4], dtype=torch.float64)  # the last is no class
NULL, FAKE = torch.tensor([2]), 3
TEACHER = MixtureTeacher(FLOW, BUMPS, torch.full((4,), STD), CLASSES[2], "flow")


class Perceptron(nn.Module):
    """(x, time, earlier time, class) to a vector of the plane; 0 to 2 are the classes, FAKE + those their fakes."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        hidden = [part for _ in range(2) for part in (nn.Linear(width, width), nn.SiLU())]
        self.layers = nn.Sequential(nn.Linear(2 + 12 + 6, width), nn.SiLU(), *hidden, nn.Linear(width, 2))

    def forward(self, x: Tensor, time: Tensor, earlier: Tensor, cond: Tensor) -> Tensor:
        angles = [k * a * math.pi / 2000 for a in (time, time - earlier) for k in (1, 2, 4)]
        waves = torch.stack([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)
        return self.layers(torch.cat([x, waves.to(x.dtype), nn.functional.one_hot(cond, 6).to(x.dtype)], 1))


class Run:
    """A network, its average, and a seeded stream of batches."""

    def __init__(self, seed: int, updates: int, decay: float = 0.99) -> None:
        torch.manual_seed(seed)
        self.network, self.updates, self.decay = Perceptron(), updates, decay
        self.average = copy.deepcopy(self.network)
        self.model, self.judge = (TwoTimeDenoiser(net, FLOW) for net in (self.network, self.average))
        self.g = torch.Generator().manual_seed(seed + 1)

    def uniform(self) -> Tensor:
        return torch.rand(SIZE, generator=self.g, dtype=torch.float64)

    def normal(self) -> Tensor:
        return torch.randn(SIZE, 2, generator=self.g)

    def batch(self, drop: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
        """Data, noise and classes."""
        x0, cond = real(torch.randint(2, (SIZE,), generator=self.g), self.g)
        return x0.float(), self.normal(), torch.where(self.uniform() < drop, 2, cond)

    def fit(self, loss: Callable[[float], Tensor], rate: float = 3e-3) -> None:
        optimiser = torch.optim.Adam(self.network.parameters(), rate, betas=(0.9, 0.99))
        for step in range(self.updates):
            decay = min(self.decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for a, b in zip(self.average.parameters(), self.network.parameters(), strict=True):
                    a.lerp_(b, 1 - decay)
            optimiser.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / self.updates)) / 2
            optimiser.zero_grad()
            loss(step / self.updates).backward()
            optimiser.step()

    def made(self, steps: int, z: Tensor, cond: Tensor, target_fraction: float = 1.0) -> Tensor:
        return any_step(lambda x, t, s: self.model(x, t, s, cond), z, FLOW, steps, target_fraction=target_fraction)


Sampler = Callable[[int, Tensor, Tensor], Tensor]


def real(cond: Tensor, generator: torch.Generator, halves: bool = False) -> tuple[Tensor, Tensor]:
    """Samples of the classes and the classes; `halves`: every second one in each bump, not by chance."""
    side = torch.arange(len(cond)) % 2 if halves else torch.randint(2, cond.shape, generator=generator)
    bump = 2 * cond + side
    return BUMPS[bump] + STD * torch.randn(len(cond), 2, generator=generator, dtype=torch.float64), cond


# ---- methods: each trains and returns samplers by name ---------------------------------------------------------------


def exact(seed: int, updates: int) -> dict[str, Sampler]:
    def sample(steps: int, z: Tensor, cond: Tensor) -> Tensor:
        return any_step(lambda x, t, s: TEACHER(x, t, CLASSES[cond]), z, FLOW, steps)

    return {"exact velocity": sample}


def flow_matching(seed: int, updates: int) -> dict[str, Sampler]:
    run = Run(seed, updates)

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch()
        return flow_matching_loss(run.model, x0, run.uniform(), eps, cond)

    run.fit(loss)
    return {"flow matching": lambda n, z, c: run.made(n, z, c, target_fraction=0.0)}


def self_e(seed: int, updates: int, fake: bool = False) -> dict[str, Sampler]:
    run = Run(seed, updates)

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch()
        t = logit_normal_times(run.normal()[:, 0], 0.4)
        s = earlier_times(t, run.uniform(), min(1.0, progress / 0.3), run.uniform() < 0.5)
        as_fake = cond + FAKE if fake else None
        value, judged = self_evaluation_loss(
            run.model, x0, t, s, eps, run.normal(), cond, NULL, run.judge, fake_cond=as_fake
        )
        return value + fake_branch_loss(run.model, judged, as_fake) if fake else value

    run.fit(loss)
    name = "Self-E with the fake branch" if fake else "Self-E"
    return {f"{name}, target_fraction {f:g}": lambda n, z, c, f=f: run.made(n, z, c, f) for f in (0.5, 1.0, 0.0)}


def self_e_fake(seed: int, updates: int) -> dict[str, Sampler]:
    return self_e(seed, updates, fake=True)


def mean_flow(seed: int, updates: int, power: float = 0.0) -> dict[str, Sampler]:
    run = Run(seed, updates)

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch()
        t, r = mean_flow_times(run.uniform(), run.uniform(), run.uniform() < 0.5)
        return mean_flow_loss(run.model, x0, t, r, eps, cond, derivative="difference", power=power)[0]

    run.fit(loss)
    return {f"MeanFlow, p {power:g}": run.made}


def mean_flow_adaptive(seed: int, updates: int) -> dict[str, Sampler]:
    return mean_flow(seed, updates, 1.0)


def shortcut(seed: int, updates: int) -> dict[str, Sampler]:
    run = Run(seed, updates)

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch()
        t, s = shortcut_times(run.uniform(), run.uniform(), run.uniform() < 0.75, run.uniform(), 32)
        return shortcut_loss(run.model, x0, t, s, eps, cond, target=run.judge, finest=32)

    run.fit(loss)
    return {"shortcut": run.made}


def consistency(seed: int, updates: int) -> dict[str, Sampler]:
    run = Run(seed, updates, decay=0.95)
    student, target = (
        Denoiser(lambda x, time, c, net=net: net(x, time, time, c), FLOW, "flow") for net in (run.network, run.average)
    )
    teacher = Denoiser(lambda x, time, c: TEACHER(x, time.double() / 1000, CLASSES[c]).value, FLOW, "flow")

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch(drop=0.0)
        t, r = skipped_times(FLOW, run.uniform(), 20)
        return consistency_loss(student, target, teacher, x0, t, r, eps, cond, None, 1.0)

    run.fit(loss)

    def sample(steps: int, z: Tensor, cond: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(seed + 5)
        return consistency_sample(student, z, [1 - i / steps for i in range(steps)], cond, generator=g)

    return {"consistency": sample}


def boot(seed: int, updates: int, delta: float = 0.05, t_min: float = 0.01) -> dict[str, Sampler]:
    """The network predicts the signal at `time`, and always gets the noise; its second time is not used."""
    run = Run(seed, updates)

    class Judge:
        schedule = FLOW

        def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Any:
            return TEACHER(x_t, t, CLASSES[cond])

    judge = Judge()

    def signal(z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return run.network(z, 1000 * t, 1000 * t, cond)

    def loss(progress: float) -> Tensor:
        _, z, cond = run.batch(drop=0.0)
        t = t_min + (1 - t_min) * (1 - run.uniform() * (1 - 1e-6))
        s = (t - delta).clamp_min(t_min)
        y_s = signal(z, s, cond)
        first = torch.ones_like(t)
        y_first = signal(z, first, cond)
        with torch.no_grad():
            y_t = signal(z, t, cond)
            f = teacher_signal(judge, y_t, z, t, s, cond, None, 1.0)
            f_first = judge(z, first, cond).x0
        return bootstrap_loss(y_s, y_t, f, signal_step(FLOW, t, s), "clipped") + boundary_loss(y_first, f_first)

    run.fit(loss)
    return {"BOOT": lambda n, z, c: signal(z, torch.full((len(z),), t_min), c)}


METHODS = {
    method.__name__: method
    for method in (
        exact,
        flow_matching,
        self_e,
        self_e_fake,
        mean_flow,
        mean_flow_adaptive,
        shortcut,
        consistency,
        boot,
    )
}


# ---- measures --------------------------------------------------------------------------------------------------------


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    angle = torch.arange(64, dtype=torch.float64) * math.pi / 64
    along = torch.stack([angle.cos(), angle.sin()])
    return ((x @ along).sort(0).values - (y @ along).sort(0).values).square().mean().sqrt().item()


def sets(label: int, halves: bool = True, count: int = 4) -> list[Tensor]:
    g = torch.Generator().manual_seed(100 + label + 10 * halves)
    return [real(torch.full((POINTS,), label), g, halves)[0] for _ in range(count)]


def floor() -> float:
    return statistics.mean(
        sliced_wasserstein(a, b) for c in (0, 1) for a in sets(c) for b in sets(c, halves=False, count=16)
    )


@torch.no_grad()
def reading(sample: Sampler, steps: int, seed: int) -> tuple[float, float]:
    """Distance and share off the bumps."""
    found, off = [], []
    for label in (0, 1):
        g = torch.Generator().manual_seed(1000 + seed)
        z = torch.randn(POINTS, 2, generator=g)
        x = sample(steps, z, torch.full((POINTS,), label)).double()
        found += [sliced_wasserstein(x, y) for y in sets(label)]
        off.append((torch.cdist(x, BUMPS[2 * label : 2 * label + 2]).min(1).values > 4 * STD).double().mean().item())
    return statistics.mean(found), statistics.mean(off)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=700)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    o = parser.parse_args()
    least, rows = floor(), []
    print(f"floor {least:.3f}", file=sys.stderr, flush=True)
    for method in o.only:
        made = [METHODS[method](seed, o.updates) for seed in range(1 if method == "exact" else o.seeds)]
        for name in made[0]:
            for steps in (1,) if method == "boot" else STEPS:
                each = [reading(samplers[name], steps, seed) for seed, samplers in enumerate(made)]
                distances, off = [a for a, _ in each], [b for _, b in each]
                row = {
                    "method": name,
                    "steps": steps,
                    "sw": round(statistics.mean(distances), 3),
                    "deviation": round(statistics.stdev(distances), 3) if len(distances) > 1 else None,
                    "ratio": round(statistics.mean(distances) / least, 1),
                    "off": round(statistics.mean(off), 3),
                }
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps({"floor": round(least, 3), "seeds": o.seeds, "updates": o.updates, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
