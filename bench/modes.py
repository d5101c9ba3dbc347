"""Which modes a one-step student keeps: two bumps in the plane, an exact teacher, and students that learn from it.

    python bench/modes.py                 # 20 to 60 seconds a row and seed on two cores
    python bench/modes.py --seeds 3 --rows guided "guided samples"

The prompt wants two bumps with the shares .7 and .3. The empty prompt also has a broad part around them. The guided
sampler draws from the exact teacher in 50 steps at scale 3. Its samples are the truth here, and `wanted` their shares.
A student is a small network that makes points of noise in one step. It starts as a network that has learnt the prompt,
and is trained by score distillation (weight dmd) with a fake score that is a network too.

    guided           the guided teacher judges, as in SwiftBrush
    unguided         the teacher without guidance judges; its truth is the prompt itself
    guided samples   the score of the guided sampler's samples judges, without guidance
    regression       regression on pairs of noise and guided sample, alone (methods/regression.py)
    both             regression first, then guided samples with regression beside
    recipe           regression first, then the guided teacher with regression beside, like configs/emoji_variety.yaml

Prints JSON: shares of the two bumps, the largest error of a share over the truth's, the share of points off both, and
the deviation within bumps over the truth's (1 is right, 0 is collapse).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys

import torch
from mixture import SCHEDULE, Mlp, Points, Stream, learn
from torch import Tensor

from diffdistill.diffusion import Denoiser, GuidedDenoiser, MixtureTeacher, Prediction, ddim
from diffdistill.distill import pseudo_huber, score_distillation_loss, time_range

N, STD, SCALE, STEPS = 512, 0.2, 3.0, 1500
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
PROMPT = torch.tensor([[0.7, 0.3, 0.0]], dtype=torch.float64)
EMPTY = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
FIRST, LAST = (0.02, 0.98), (0.02, 0.5)  # times judged, coming down
ROWS = ("guided", "unguided", "guided samples", "regression", "both", "recipe")
REGRESSED = ("regression", "both", "recipe")
ALONE = 0.4  # share of the run in which there is regression alone


def teacher() -> MixtureTeacher:
    return MixtureTeacher(SCHEDULE, MEANS, torch.tensor([STD, STD, 1.5]), EMPTY[0], "v")


def guided_sample(z: Tensor) -> Tensor:
    """What the guided sampler makes of noise z of shape (n, 2)."""
    score = GuidedDenoiser(teacher(), EMPTY, SCALE)

    def predict(x: Tensor, t: Tensor) -> Prediction:
        return score(x, t, PROMPT.expand(len(x), -1))

    return ddim(predict, z.double(), SCHEDULE, 50)


def reading(points: Tensor) -> tuple[list[float], float, float]:
    """Shares of the bumps among points near one, the share of the others, and the deviation within bumps."""
    distance, nearest = torch.cdist(points.double(), MEANS[:2]).min(1)
    near = distance < 6 * STD
    groups = [points[near & (nearest == k)].double() for k in (0, 1)]
    count = max(int(near.sum()), 1)
    deviation = sum(float((g - g.mean(0)).square().sum()) for g in groups if len(g))
    return [len(g) / count for g in groups], 1 - near.double().mean().item(), (deviation / 2 / count) ** 0.5


def student_of(row: str, seed: int) -> Tensor:
    """4,096 points of a student that was trained as the row says."""
    torch.manual_seed(seed)
    r = Stream(seed)
    network = _start(r)
    student, fake_network = network, copy.deepcopy(network)
    fake = Denoiser(fake_network, SCHEDULE, "v")
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-3, betas=(0.0, 0.99))
    fakes = torch.optim.Adam(fake_network.parameters(), lr=2e-3, betas=(0.0, 0.99))
    generator = Denoiser(student, SCHEDULE, "v")
    last = torch.full((N,), SCHEDULE.last)
    noise = torch.randn(4096, 2, generator=r.generator)
    pairs = guided_sample(noise).float()
    judge = Points(pairs[:N].double()) if row in ("guided samples", "both") else teacher()
    for step in range(STEPS):
        progress = step / STEPS
        optimiser.param_groups[0]["lr"], fakes.param_groups[0]["lr"] = 1e-3 * (1 - progress), 2e-3 * (1 - progress)
        loss = torch.zeros(())
        if row in REGRESSED:
            weight = 1.0 if row == "regression" or progress < ALONE else 0.5
            drawn = r.integers("pair", len(noise))
            loss = weight * pseudo_huber(generator(noise[drawn], last, None).x0, pairs[drawn], 0.1)
        if row != "regression" and not (row in REGRESSED and progress < ALONE):
            x0 = generator(r.normal("z", (2,)), last, None).x0
            t = SCHEDULE.timestep(r.uniform("t"), *time_range(progress, FIRST, LAST))
            eps, cond = r.normal("eps", (2,)), PROMPT.expand(N, -1)
            scale = SCALE if row in ("guided", "recipe") else 1.0
            judged, _ = score_distillation_loss("vsd", "dmd", judge, x0, t, eps, cond, EMPTY, scale, fake=fake)
            loss = loss + judged
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            for _ in range(2):
                learn(fakes, fake, x0.detach(), r)
        else:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        z = torch.randn(4096, 2, generator=r.generator)
        return generator(z, torch.full((4096,), SCHEDULE.last), None).x0


def _start(r: Stream, steps: int = 800) -> Mlp:
    """A network that has learnt the prompt's two bumps."""
    network, model = Mlp(), teacher()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        learn(optimiser, Denoiser(network, SCHEDULE, "v"), model.sample(N, r.generator, PROMPT[0]).float(), r)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    o = parser.parse_args()
    truth = reading(guided_sample(torch.randn(4096, 2, generator=torch.Generator().manual_seed(1))))
    prompt = reading(teacher().sample(4096, torch.Generator().manual_seed(1), PROMPT[0]))
    found = []
    for row in o.rows:
        wanted = prompt if row == "unguided" else truth
        for seed in range(o.seeds):
            shares, off, deviation = reading(student_of(row, seed))
            error = max(abs(a - b) / b for a, b in zip(shares, wanted[0], strict=True))
            entry = {
                "row": row,
                "seed": seed,
                "shares": [round(s, 3) for s in shares],
                "wanted": [round(s, 3) for s in wanted[0]],
                "error": round(error, 3),
                "off": round(off, 3),
                "spread": round(deviation / wanted[2], 3),
            }
            found.append(entry)
            print(json.dumps(entry), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
