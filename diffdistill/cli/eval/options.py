"""What the commands of `diffdistill eval` share: options, what is built from them, and the processes they run on."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffdistill.cli.arguments import OneLineParser, add_eta
from diffdistill.cli.paths import check_writable, find
from diffdistill.errors import UserError
from diffdistill.launched import is_first, rank_and_processes

METRICS_HELP = "of fd (Frechet distance), kd (kernel distance), prdc (precision, recall, density, coverage) and cmmd"


def parser_of(name: str, description: str, measures: bool = True) -> OneLineParser:
    """The parser of `eval NAME` with the options of every command; `measures` adds those of protocol and extractor."""
    parser = OneLineParser(prog=f"diffdistill eval {name}", description=description.splitlines()[0])
    default = "the protocol's number, or all" if measures else "one for each prompt"
    parser.add_argument("--pictures", type=int, help=f"number of images; by default {default}")
    parser.add_argument("--batch_size", type=int, default=64, help="images in a batch; it changes no number")
    if measures:
        parser.add_argument(
            "--protocol", default="mobilenet-offline", help="a protocol's name, or NAME@HASH to insist on one record"
        )
        parser.add_argument("--weights", help="the extractor's weights: a file, a folder, or download")
        parser.add_argument("--weights_sha256", help="sha256 of weights that are not the published ones")
        parser.add_argument(
            "--device", default=None, help="device of the extractor: cpu or cuda; by default cuda where there is a GPU"
        )
        parser.add_argument("--threads", type=int, default=2, help="threads that decode images")
        parser.add_argument(
            "--on_corrupt",
            choices=("stop", "skip"),
            default="stop",
            help="whether a corrupt image stops the command or is left out",
        )
    return parser


def generator_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a generator: its prompts and its sampler."""
    prompts = "prompts for --model: .txt (one per line), .jsonl, .csv, .tsv or COCO's .json"
    parser.add_argument("--prompts", help=prompts)
    parser.add_argument("--steps", type=int, default=1, help="number of sampling steps")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale; 1 is unguided")
    add_eta(parser)
    parser.add_argument("--seed", type=int, default=0, help="image i starts from noise of seed SEED + i")


def parse(parser: OneLineParser, argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command; raises UserError for a number that is out of range."""
    o = parser.parse_args(list(argv))
    for name, least in (("pictures", 1), ("batch_size", 1), ("threads", 0), ("steps", 1)):
        value = getattr(o, name, None)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; it must be at least {least}")
    if hasattr(o, "guidance") and not 1 <= o.guidance < math.inf:
        raise UserError(f"--guidance is {o.guidance:g}; it must be a number from 1, which is unguided")
    if hasattr(o, "seed") and not 0 <= o.seed < 2**62:
        raise UserError(f"--seed is {o.seed}; it must be in [0, 2^62)")
    return o


def check_free(out: Path, overwrite: bool) -> None:
    """Raise UserError where the file --out cannot be written, or exists and may not be replaced."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file")
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already; add --overwrite or name another")
    check_writable(out, "--out")


def source_of(o: argparse.Namespace, per_prompt: int = 1) -> Any:
    """The images of --images, or those that --model makes of --prompts."""
    if getattr(o, "images", None):
        if o.eta is not None:
            raise UserError("--eta is a setting of a generator; it goes with --model, not with --images")
        from diffdistill.data.sources import open_source

        return open_source(find(o.images))
    prompts = [record["prompt"] for record in prompt_records(o) for _ in range(per_prompt)]  # before torch is loaded
    from diffdistill.comparison.generated import Generated

    return Generated(find(o.model), prompts, o.pictures or len(prompts), o.steps, o.guidance, o.seed, o.eta)


def prompt_records(o: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of --prompts, each with a "prompt" and whatever else its line holds."""
    from diffdistill.data.prompts import read_prompt_records

    if o.prompts is None:
        raise UserError(
            "--model needs --prompts, a file of prompts: .txt (one per line), .jsonl, .csv, .tsv or COCO's .json"
        )
    return read_prompt_records(find(o.prompts))


def protocol_of(o: argparse.Namespace) -> tuple[Any, Any]:
    """The protocol of --protocol, and its extractor with the weights and on the device of the options."""
    from diffdistill.evaluation.protocols import protocol_named

    protocol, device = protocol_named(o.protocol), device_of(o)
    with in_options(weights="--weights", allow_other_weights="--weights_sha256"):
        return protocol, protocol.build_extractor(o.weights, device, o.weights_sha256 or False)


def device_of(o: argparse.Namespace) -> str:
    """The device of --device; by default a GPU where there is one."""
    import torch

    device: str = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.partition(":")[0] not in ("cpu", "cuda") or (device != "cpu" and not torch.cuda.is_available()):
        raise UserError(f"--device {device} does not exist here; cpu always does")
    return device


@contextmanager
def in_options(**options: str) -> Iterator[None]:
    """Errors of the library that name its arguments, said of the command's options.

    `weights="download"` becomes `--weights download`. Advice to pass an argument that the command has no option for is
    left out, and so is allow_other_weights=True, because no option accepts just any file.
    """

    def said(found: re.Match[str]) -> str:
        return f"{options[found[1]]} {found[2]}" if found[1] in options else found[0]

    try:
        yield
    except UserError as error:
        message = str(error).replace("allow_other_weights=True", "no_option=True")
        message = re.sub(r'\b(\w+)="?(\w+)"?', said, message)
        raise UserError(re.sub(r", then pass \w+=PATH| \(or \w+=[^)]*\)", "", message)) from error


def reading_of(o: argparse.Namespace) -> Any:
    """How images are read, by the options; lines about images that were left out go to stderr."""
    from diffdistill.evaluation.measure import Reading

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return Reading(o.batch_size, o.threads, o.on_corrupt, progress=is_first(), report=report)


@contextmanager
def processes() -> Iterator[None]:
    """Within it, this process has joined the others, where a launcher started several."""
    if rank_and_processes()[1] == 1:
        yield
        return
    from accelerate import PartialState
    from accelerate.utils import patch_environment

    from diffdistill.training.launcher import STRATEGIES
    from diffdistill.training.precision import on_cpu

    # These shard a training. With them accelerate would ask for DeepSpeed here, and transformers would load weights in
    # one process only.
    with patch_environment(**dict.fromkeys(STRATEGIES, "false")):
        state = PartialState(cpu=on_cpu())
        try:
            yield
        finally:
            state.destroy_process_group()
