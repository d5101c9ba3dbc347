"""Bytes of tensors and peak memory of a few training steps, by method: fake scores of two kinds, two, or none.

    python bench/lora_memory.py --teacher assets/teacher --prompts assets/emoji/prompts.txt

Each kind runs in its own process. After the steps, every tensor alive in the process is counted once by its storage
(weights, gradients, moments, average). A LoRA fake score is the teacher's own module with adapters, so weights of
UNet shape are those of the student and of one shared network; a full one adds a third copy and its moments. ASD has
no fake score: teacher and student are all. SiD's gradient runs through both scores, which the peak shows.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

KINDS = ("lora", "full", "dmd2", "sid", "asd")  # the first two are SwiftBrush

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default="assets/teacher")
parser.add_argument("--prompts", default="assets/emoji/prompts.txt")
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--kind", choices=KINDS, help="run this one alone")


def measure(teacher: str, prompts: str, batch: int, kind: str) -> dict[str, float]:
    from diffdistill.methods import ASD, DMD2, Method, OptimizerSettings, SiD, SwiftBrush
    from diffdistill.methods.one_step import OneStep
    from diffdistill.methods.settings import FakeScore, LoraSettings, TeacherSettings
    from diffdistill.training.loop import Trainer
    from diffdistill.training.settings import TrainingSettings

    method: Method
    if kind in ("lora", "full"):
        fake = FakeScore(kind, OptimizerSettings(1e-3), lora=LoraSettings(8, 8.0))  # type: ignore[arg-type]
        method = SwiftBrush(TeacherSettings(teacher), prompts, fake=fake)
    else:
        method = {"dmd2": DMD2, "sid": SiD, "asd": ASD}[kind](TeacherSettings(teacher), prompts)
    settings = TrainingSettings(samples=batch * 100, batch_size=batch, cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(method, settings, Path(folder))
        for _ in range(3):
            trainer.train_step()
    assert isinstance(method, OneStep)
    unet = sum(p.nbytes for p in method.networks["student"].parameters())
    networks = (method.teacher.backbone, *method.networks.values())
    weights = {p.data_ptr(): p.nbytes for network in networks for p in network.parameters()}
    gc.collect()
    alive = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    alive += [state for o in trainer.state.optimizers.values() for s in o.state.values() for state in s.values()]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
    return {
        "unet_MiB": unet / 2**20,
        "weights_in_unets": sum(weights.values()) / unet,
        "all_tensors_in_unets": sum(storages.values()) / unet,
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


if __name__ == "__main__":
    chosen = parser.parse_args()
    if chosen.kind:
        print(json.dumps(measure(chosen.teacher, chosen.prompts, chosen.batch, chosen.kind)))
    else:
        for kind in KINDS:
            command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind]
            print(kind, subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
