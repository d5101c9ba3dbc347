"""What the loop costs beyond the networks: a training step, and generation, over their bare passes.

    python bench/step_overhead.py --teacher assets/teacher --prompts assets/emoji/prompts.txt

A step of full-fake VSD needs: student forward and backward, teacher forward on 2B, fake forward, fake forward and
backward. What the loop adds is drawing noise and times, losses, clipping, two AdamW steps and the average.
Generation needs text encoder, UNet and VAE decoder. Both sides are timed in turn in one run, on the CPU: medians, and
the median over the rounds of the ratio within a round, are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from diffdistill.methods import SwiftBrush
from diffdistill.models.generate import generate
from diffdistill.models.teacher import load_teacher
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


def in_turn(rounds: int, ours: Callable[[], object], bare: Callable[[], object]) -> tuple[float, float, float]:
    """Median seconds of both, run alternately after two rounds of warm-up, and the median ratio within a round."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for k in range(rounds + 2):
        for found, piece in zip(seconds, (ours, bare), strict=True):
            started = time.perf_counter()
            piece()
            if k > 1:
                found.append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    return statistics.median(seconds[0]), statistics.median(seconds[1]), statistics.median(ratios)


def training(options: argparse.Namespace) -> dict[str, float]:
    method = SwiftBrush(
        options.teacher, options.prompts, weight="dmd", guidance_scale=2.0, fake_guidance_scale=1.0,
        fake_score="full", fake_weight="v",
    )  # fmt: skip
    settings = TrainingSettings(
        samples=options.batch * 1000, batch_size=options.batch, mixed_precision="auto", cpu=True
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(method, settings, Path(folder))
    student, fake, teacher = method.networks["student"], method.networks["fake"], method.teacher.network
    x = torch.randn(options.batch, *method.teacher.latent_shape)
    t, cond = torch.full((options.batch,), 500), method.embeddings[: options.batch]
    twice, t_twice, cond_twice = x.repeat(2, 1, 1, 1), t.repeat(2), cond.repeat(2, 1, 1)

    def bare() -> None:
        with trainer.accelerator.autocast():
            for network in (student, fake):
                network(x, t, cond).float().square().mean().backward()
            with torch.no_grad():
                teacher(twice, t_twice, cond_twice)
                fake(x, t, cond)
        for network in (student, fake):
            network.zero_grad(set_to_none=True)

    step, passes, ratio = in_turn(options.rounds, trainer._step, bare)
    return {"step_seconds": step, "bare_seconds": passes, "ratio": ratio}


def generation(options: argparse.Namespace) -> dict[str, float]:
    teacher = load_teacher(options.teacher)
    prompts = [f"a picture, {i}" for i in range(options.batch)]
    p = teacher.pipeline

    @torch.no_grad()
    def bare() -> None:
        x = torch.randn(options.batch, *teacher.latent_shape)
        p.vae.decode(p.unet(x, 999, encoder_hidden_states=teacher.embed(prompts)).sample)

    ours, passes, ratio = in_turn(
        options.rounds, lambda: list(generate(teacher, prompts, 1, 1.0, batch_size=options.batch)), bare
    )
    return {"generate_seconds": ours, "bare_seconds": passes, "ratio": ratio}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="assets/teacher")
    parser.add_argument("--prompts", default="assets/emoji/prompts.txt")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=41)
    chosen = parser.parse_args()
    print(json.dumps({"training": training(chosen), "generation": generation(chosen)}, indent=1))
