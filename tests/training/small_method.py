"""A two-network method on vectors, small enough to be killed and resumed many times."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from diffdistill.methods.base import Method, OptimizerSettings, Phase, unwrap


class Small(Method):
    averaged = "student"

    def __init__(self, poison_at: int = -1) -> None:
        torch.manual_seed(0)
        self.networks = {"student": nn.Linear(4, 4), "fake": nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))}
        self.optimizers = {"student": OptimizerSettings(1e-2), "fake": OptimizerSettings(1e-2, betas=(0.0, 0.99))}
        self.poison_at = poison_at
        self.step = 0

    def __len__(self):
        return 10

    def batch(self, records, random):
        return {"record": torch.tensor(records, dtype=torch.float32)[:, None]}

    def begin_step(self, step):
        self.step = step + 1

    def phases(self, step):
        return [Phase("student", "student", self._student), Phase("fake", "fake", self._fake)]

    def _student(self, batch, random, carry):
        x0 = self.networks["student"](random.normal("z", (4,)))
        carry["x0"] = x0.detach()
        with torch.no_grad():
            target = self.networks["fake"](x0) + batch["record"] / 10 + self.progress
        loss = (x0 - target).square().mean()
        return loss * (float("nan") if self.step == self.poison_at else 1.0), {}

    def _fake(self, batch, random, carry):
        return (self.networks["fake"](carry["x0"] + random.normal("e", (4,))) - carry["x0"]).square().mean(), {}

    def export(self, folder: Path) -> None:
        save_file(dict(unwrap(self.networks["student"]).state_dict()), folder / "student.safetensors")
