"""Bytes of parameters and peak memory with a LoRA fake score against a full one; each in its own process.

    python bench/lora_memory.py --teacher assets/teacher --prompts assets/emoji/prompts.txt

A LoRA fake score is the teacher's own module with adapters: base weights of the student and of one shared network.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default="assets/teacher")
parser.add_argument("--prompts", default="assets/emoji/prompts.txt")
parser.add_argument("--one", choices=("lora", "full"))


def one(teacher: str, prompts: str, fake_score: str) -> dict[str, float]:
    from diffdistill.methods import SwiftBrush

    method = SwiftBrush(teacher, prompts, fake_score=fake_score, lora_rank=8)
    modules = {id(n): n for n in (method.teacher.network, *method.networks.values())}
    size = {p.data_ptr(): p.numel() * p.element_size() for n in modules.values() for p in n.parameters()}
    base = sum(p.numel() * p.element_size() for k, p in method.networks["student"].named_parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "unet_bytes": base,
        "all_unets_bytes": sum(size.values()),
        "copies": sum(size.values()) / base,
        "peak": peak,
    }


if __name__ == "__main__":
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.teacher, chosen.prompts, chosen.one)))
    else:
        for kind in ("lora", "full"):
            command = [
                sys.executable,
                __file__,
                "--teacher",
                chosen.teacher,
                "--prompts",
                chosen.prompts,
                "--one",
                kind,
            ]
            print(kind, subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
