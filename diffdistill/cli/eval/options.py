"""Options that the commands of `diffdistill eval` share, what is built from them, and the processes they run on."""

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


def parser_of(name: str, description: str, measures: bool = True) -> OneLineParser:
    """A parser of `eval NAME`, with what every command has; `measures` adds protocol and extractor."""
    parser = OneLineParser(prog=f"diffdistill eval {name}", description=description.splitlines()[0])
    default = "the protocol's number, or all" if measures else "one a prompt"
    parser.add_argument("--pictures", type=int, help=f"how many; by default {default}")
    parser.add_argument("--batch_size", type=int, default=64)
    if measures:
        parser.add_argument("--protocol", default="mobilenet-offline", help="a name, or NAME@HASH to insist on one")
        parser.add_argument("--weights", help="the extractor's weights: a file, a folder, or download")
        parser.add_argument("--weights_sha256", help="that of weights which are not the published ones")
        parser.add_argument(
            "--device", default=None, help="of the extractor: cpu or cuda; by default cuda where there is one"
        )
        parser.add_argument("--threads", type=int, default=2, help="that decode pictures")
        parser.add_argument(
            "--on_corrupt", choices=("stop", "skip"), default="stop", help="what a corrupt picture does"
        )
    return parser


def generator_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", help="with --model: .txt (one a line), .jsonl, .csv, .tsv or COCO's .json")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0, help="1 is unguided")
    add_eta(parser)
    parser.add_argument("--seed", type=int, default=0, help="picture i starts from noise of seed SEED + i")


def parse(parser: OneLineParser, argv: Sequence[str]) -> argparse.Namespace:
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
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file")
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already; add --overwrite or name another")
    check_writable(out, "--out")


def source_of(o: argparse.Namespace, per_prompt: int = 1) -> Any:
    if getattr(o, "images", None):
        if o.eta is not None:
            raise UserError("--eta is of pictures that are made; it goes with --model, not with --images")
        from diffdistill.data.sources import open_source

        return open_source(find(o.images))
    prompts = [record["prompt"] for record in prompt_records(o) for _ in range(per_prompt)]  # before torch is loaded
    from diffdistill.comparison.generated import Generated

    return Generated(find(o.model), prompts, o.pictures or len(prompts), o.steps, o.guidance, o.seed, o.eta)


def prompt_records(o: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of --prompts, each with a "prompt" and whatever else it holds."""
    from diffdistill.data.prompts import read_prompt_records

    if o.prompts is None:
        raise UserError(
            "--model needs --prompts, a file of prompts: .txt (one a line), .jsonl, .csv, .tsv, COCO's .json"
        )
    return read_prompt_records(find(o.prompts))


def protocol_of(o: argparse.Namespace) -> tuple[Any, Any]:
    from diffdistill.evaluation.protocols import protocol_named

    protocol, device = protocol_named(o.protocol), device_of(o)
    with in_options(weights="--weights", allow_other_weights="--weights_sha256"):
        return protocol, protocol.build_extractor(o.weights, device, o.weights_sha256 or False)


def device_of(o: argparse.Namespace) -> str:
    import torch

    device: str = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.partition(":")[0] not in ("cpu", "cuda") or (device != "cpu" and not torch.cuda.is_available()):
        raise UserError(f"--device {device} is not there; cpu always is")
    return device


@contextmanager
def in_options(**options: str) -> Iterator[None]:
    """What the library says of its arguments, said of the command's: `weights="download"` as `--weights download`.

    Advice to give an argument that the command has no option for is left out, as is allow_other_weights=True, since no
    option takes just any file.
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
    from diffdistill.evaluation.measure import Reading

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return Reading(o.batch_size, o.threads, o.on_corrupt, progress=is_first(), report=report)


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes where a launcher started several."""
    if rank_and_processes()[1] == 1:
        yield
        return
    from accelerate import PartialState
    from accelerate.utils import patch_environment

    from diffdistill.training.launcher import STRATEGIES
    from diffdistill.training.precision import on_cpu

    # they shard training; here accelerate would ask for DeepSpeed, and transformers leave weights out of all but one
    with patch_environment(**dict.fromkeys(STRATEGIES, "false")):
        state = PartialState(cpu=on_cpu())
        try:
            yield
        finally:
            state.destroy_process_group()
