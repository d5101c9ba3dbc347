"""Methods on vectors, small enough to be killed and resumed many times; `train` runs one."""

import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from diffdistill.methods.base import Method, OptimizerSettings, ParameterGroup, Phase, Validation, unwrap
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


class Small(Method):
    """Two networks; the student's loss at the step numbered `poison_at`, from 1, is not a number."""

    averaged = "student"

    def __init__(self, poison_at: int = -1) -> None:
        torch.manual_seed(0)
        self.networks = {"student": nn.Linear(4, 4), "fake": nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))}
        self.optimizers = {"student": OptimizerSettings(1e-2), "fake": OptimizerSettings(1e-2, betas=(0.0, 0.99))}
        self.poison_at = poison_at
        self.step = 0

    def __len__(self):
        return 10

    def begin_step(self, step):
        self.step = step + 1

    def batch(self, records, random):
        return {"record": torch.tensor(records, dtype=torch.float32)[:, None]}

    def phases(self, step):
        return [Phase("student", "student", self._student), Phase("fake", "fake", self._fake)]

    def _student(self, batch, random, carry):
        x0 = self.networks["student"](random.normal("z", (4,)))
        carry["x0"] = x0.detach()
        with torch.no_grad():
            target = self.networks["fake"](x0) + batch["record"] / 10 + self.progress
        loss = (x0 - target).square().mean()
        return loss * (math.nan if self.step == self.poison_at else 1.0), {}

    def _fake(self, batch, random, carry):
        return (self.networks["fake"](carry["x0"] + random.normal("e", (4,))) - carry["x0"]).square().mean(), {}

    def export(self, folder: Path) -> None:
        save_file(dict(unwrap(self.networks["student"]).state_dict()), folder / "student.safetensors")


class Rich(Small):
    """What a method may ask of the loop: a phase of two networks, parameter groups, an average of its own, numbers.

    The loss of sample 37, the sixth of its batch of 8, is not a number: of two processes only the second one sees it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.networks["average"] = nn.Linear(4, 4)
        self.networks["average"].load_state_dict(self.networks["student"].state_dict())
        groups = (ParameterGroup("bias", 1e-3, weight_decay=0.1),)
        self.optimizers["student"] = OptimizerSettings(1e-2, groups=groups)

    def begin_step(self, step):
        for a, b in zip(self.networks["average"].parameters(), self.networks["student"].parameters(), strict=True):
            a.data.lerp_(b.data, 0.1)

    def phases(self, step):
        return [*super().phases(step), Phase("both", ("student", "fake"), self._both)]

    def _both(self, batch, random, carry):
        x = random.normal("x", (4,))
        with torch.no_grad():
            target = unwrap(self.networks["average"])(x) + batch["record"] / 10
        each = (self.networks["fake"](self.networks["student"](x)) - target).square().mean(1)
        poison = torch.tensor([math.nan if index == 37 else 1.0 for index in random.indices])
        return (each * poison).mean(), {"mean_x": x.mean()}

    def validate(self):
        return Validation(None, {"weight": unwrap(self.networks["student"]).weight[0, 0].item()})


class Contrastive(Small):
    """A phase whose loss compares each sample with all of its batch, of every process: InfoNCE of two views of it."""

    def phases(self, step):
        return [Phase("pairs", ("student", "fake"), self._pairs, whole_batch=True)]

    def _pairs(self, batch, random, carry):
        x = random.normal("x", (4,)) + batch["record"]
        views = (self.networks[name](x + random.normal(name, (4,))) for name in ("student", "fake"))
        one, two = (random.gather(view) for view in views)
        return nn.functional.cross_entropy(one @ two.T, torch.arange(len(one))), {}


class Slow(Small):
    def batch(self, records, random):
        time.sleep(0.02)
        return super().batch(records, random)


KINDS = {kind.__name__: kind for kind in (Small, Rich, Contrastive, Slow)}


def train(run: Path, kind: str = "Small", samples: int = 160, resume: str | None = None, **more: object) -> Trainer:
    """Train the method of this name; the trainer at its end."""
    run.mkdir(parents=True, exist_ok=True)
    settings = {"batch_size": 8, "log_every": 1, "cpu": True, "ema_decay": 0.9, **more}
    trainer = Trainer(KINDS[kind](), TrainingSettings(samples, **settings), run, resume)  # type: ignore[arg-type]
    trainer.fit()
    return trainer


def train_with(run: Path, settings: dict) -> None:
    """`train` for a process that is started with positional arguments."""
    train(run, **settings)


def train_and_say(run: Path, starts: Path, kind: str) -> None:
    """Go on with a run; a line in `starts` says from how many samples, before the first step."""
    run.mkdir(parents=True, exist_ok=True)
    settings = TrainingSettings(1600, batch_size=8, checkpoint_every=16, log_every=1, cpu=True, ema_decay=0.9)
    trainer = Trainer(KINDS[kind](), settings, run, resume="latest")
    with starts.open("a") as file:
        file.write(f"{trainer.clock.samples}\n")
    trainer.fit()
