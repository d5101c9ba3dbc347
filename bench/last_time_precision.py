"""What bf16 costs a student that is fed noise at the last time: its sample, its gradient, a bootstrapping step.

    OMP_NUM_THREADS=1 python bench/last_time_precision.py        # 2 minutes on one core; prints JSON

At the last time T* a network that predicts noise says x0 = (z - sigma eps) / alpha, so an error of its output is
sigma / alpha times as large in x0: 14.6 times on Stable Diffusion's schedule. One that predicts v says
x0 = alpha z - sigma v, and nothing is amplified. What is measured is bf16 autocast against float32: outputs and
gradients relative to their own size; x0 in units of a latent, whose variance is 1.

    v network      the embedded teacher
    eps network    the same UNet, taught in --steps updates to name the noise at T* of Stable Diffusion's schedule
    rounded alone  the exact noise, rounded to bf16: the error if everything but the last layer's output were exact
    gradient       of all weights, from one fixed gradient on x0: 1 - cosine, and the relative error of its norm
    boot           at the step t -> t - delta: rms of what the errors of two answers become in the finite difference,
                   (e_s - (1 - D) e_t) / D, over the rms of f - y, which that difference has to show; N(0, 1) data,
                   exact answers, and errors taken as independent, which is the worst case short of opposite ones
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import Prediction, VPSchedule
from diffdistill.distill import signal_step
from diffdistill.models.backbone import full_copy
from diffdistill.models.teacher import load_teacher

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def run(network: Any, z: Tensor, t: int, cond: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return network(z, torch.full((len(z),), t), cond).float()


def read(z: Tensor, value: Tensor, kind: str, schedule: VPSchedule, t: int) -> Tensor:
    at = torch.tensor(t)
    return Prediction(z, value, kind, schedule.alpha(at), schedule.sigma(at)).x0  # type: ignore[arg-type]


def errors(network: Any, kind: str, schedule: VPSchedule, t: int, z: Tensor, cond: Tensor) -> dict[str, float]:
    with torch.no_grad():
        exact, rough = (run(network, z, t, cond, bf16) for bf16 in (False, True))
    x0, x0_rough = (read(z, value, kind, schedule, t) for value in (exact, rough))
    push = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    gradients = []
    for bf16 in (False, True):
        network.zero_grad()
        (read(z, run(network, z, t, cond, bf16), kind, schedule, t) * push).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).double())
    a, b = gradients
    return {
        "output": rms(rough - exact) / rms(exact),
        "x0": rms(x0_rough - x0),
        "x0, rms": rms(x0),
        "gradient, 1 - cosine": 1 - (a @ b / (a.norm() * b.norm())).item(),
        "gradient, norm": abs(b.norm() / a.norm() - 1).item(),
    }


def teach_noise(network: Any, schedule: VPSchedule, t: int, cond: Tensor, shape: tuple[int, ...], steps: int) -> float:
    """The UNet names the noise at t, of data N(0, 1); the rms of its last errors. Its best answer is sigma x_t."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    at, random = torch.tensor(t), torch.Generator().manual_seed(1)
    alpha, sigma = schedule.alpha(at).float(), schedule.sigma(at).float()
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps)
        x0, eps = (torch.randn((8, *shape), generator=random) for _ in range(2))
        loss = (run(network, alpha * x0 + sigma * eps, t, cond[:8], False) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return loss.item() ** 0.5


def boot(schedule: VPSchedule, error: float, delta: float, places: tuple[float, ...]) -> dict[str, float]:
    """As the module says; error: the rms of the errors of one answer, those of two independent."""
    z = torch.randn(4096, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = [torch.randn(z.shape, generator=torch.Generator().manual_seed(k), dtype=z.dtype) for k in (3, 4)]
    count, found = schedule.num_train_timesteps, {}
    for place in places:
        t = torch.full((len(z),), min(round(place * count), count - 1))
        s = t - round(delta * count)
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        y, f = (z - sigma * z) / alpha, alpha * z  # of N(0, 1) the path is x_t = z, and E[x0 | x_t] = alpha x_t
        d = signal_step(schedule, t, s)[:, None]
        e_t, e_s = (error * e for e in noise)
        shown = (e_s - (1 - d) * e_t) / d  # without errors the finite difference is f - y to the last digit
        found[f"{place:g}"] = rms(shown) / rms(f - y)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="assets/teacher")
    parser.add_argument("--steps", type=int, default=150, help="updates that the eps network is taught in")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--delta", type=float, default=0.04, help="of a bootstrapping step")
    o = parser.parse_args()
    teacher = load_teacher(o.teacher)
    cond = teacher.embed(["red apple, noto", "a blue car", "a dog", "star"] * -(-o.pictures // 4))[: o.pictures]
    z = torch.randn((o.pictures, *teacher.latent_shape), generator=torch.Generator().manual_seed(0))
    last = int(teacher.schedule.last)
    network: Any = full_copy(teacher.backbone)
    found: dict[str, Any] = {
        "v network": errors(network, teacher.prediction_type, teacher.schedule, last, z, cond),  # type: ignore[arg-type]
    }
    schedule = VPSchedule.from_config(STABLE_DIFFUSION)
    last = int(schedule.last)
    at = torch.tensor(last)
    found["sigma / alpha at T*, Stable Diffusion"] = (schedule.sigma(at) / schedule.alpha(at)).item()
    missed = teach_noise(network, schedule, last, cond, teacher.latent_shape, o.steps)
    found["eps network"] = {"noise missed": missed, **errors(network, "eps", schedule, last, z, cond)}
    eps = schedule.sigma(at).float() * z
    rounded = read(z, eps.bfloat16().float(), "eps", schedule, last) - read(z, eps, "eps", schedule, last)
    found["rounded alone"] = {"x0": rms(rounded)}
    places = (0.999, 0.9, 0.7, 0.5, 0.3, 0.1)
    for name, error in (("eps network", found["eps network"]["x0"]), ("rounded alone", rms(rounded)),
                        ("v network", found["v network"]["x0"])):  # fmt: skip
        found[f"boot, {name}"] = boot(schedule, error, o.delta, places)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
