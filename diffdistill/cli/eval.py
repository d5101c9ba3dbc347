"""`diffdistill eval ref | calc | gen`: reference features, numbers, and pictures to measure elsewhere.

JSON on stdout, progress on stderr. Every command runs on several processes as it does on one:
`accelerate launch eval/calc.py ...` or `torchrun --nproc_per_node 2 eval/calc.py ...`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.paths import check_writable, find
from diffdistill.errors import UserError

COMMANDS = {
    "ref": "features of real pictures, kept in one file",
    "calc": "distances of pictures, or of a generator, to a reference",
    "gen": "pictures of a generator into a folder, in the layout of other tools where asked for",
}


def main(argv: Sequence[str]) -> None:
    """One of `ref`, `calc`, `gen`; `diffdistill eval COMMAND --help` says more.

    Raises:
        UserError: bad input, in one line.
    """
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: diffdistill eval COMMAND ...\n\n" + "".join(f"  {k:8}{v}\n" for k, v in COMMANDS.items()), end="")
        return
    chosen: dict[str, Callable[[Sequence[str]], None]] = {"ref": ref, "calc": calc, "gen": gen}
    if arguments[0] not in chosen:
        raise UserError(f"unknown command eval {arguments[0]!r}; there are {', '.join(COMMANDS)}")
    with _processes():
        chosen[arguments[0]](arguments[1:])


def ref(argv: Sequence[str]) -> None:
    """Measure real pictures once: `--images PATH --protocol NAME --out FILE.safetensors`."""
    parser = _parser("ref")
    parser.add_argument("--images", required=True, help="folder, .zip, .npz, .tar, folder of .tar shards, emoji set")
    parser.add_argument("--out", type=Path, required=True, help="the file, ending in .safetensors")
    parser.add_argument("--statistics", action="store_true", help="keep mean and scatter alone: enough for fd")
    parser.add_argument("--overwrite", action="store_true")
    o = _parse(parser, argv)
    if o.out.suffix != ".safetensors":
        raise UserError(f"--out {o.out} should end in .safetensors")
    _free(o.out, o.overwrite)

    from diffdistill.evaluation.measure import collect
    from diffdistill.evaluation.reading import open_source

    source = open_source(find(o.images))
    protocol, extractor = _protocol(o)
    features = collect(source, protocol, extractor, o.pictures or len(source), not o.statistics, _reading(o))
    if _first():
        features.save(o.out)
        print(json.dumps({"file": str(o.out), "n": features.n, "protocol": features.protocol}, indent=1))


def calc(argv: Sequence[str]) -> None:
    """Distances to a reference, of stored pictures (--images) or of a generator (--model and --prompts)."""
    from diffdistill.evaluation.measure import METRICS

    parser = _parser("calc")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", help="folder, .zip, .npz, .tar, folder of .tar shards, emoji set")
    what.add_argument("--model", help="pipeline folder or hub id: its pictures are measured as they are made")
    _generator_options(parser)
    parser.add_argument("--reference", required=True, help="what `eval ref` wrote, or pictures")
    parser.add_argument("--metrics", nargs="+", default=["fd", "kd"], metavar="METRIC", help=", ".join(METRICS))
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    parser.add_argument("--overwrite", action="store_true")
    o = _parse(parser, argv)
    if o.out is not None:
        _free(o.out, o.overwrite)

    from diffdistill.evaluation import write_json_atomic
    from diffdistill.evaluation.measure import ROWS, check_metrics, collect, distances, how_many, read_reference

    source = _source(o)
    protocol, extractor = _protocol(o)
    check_metrics(o.metrics, how_many(source, protocol, o.pictures), extractor.name)  # before a reference is measured
    rows = any(name in ROWS for name in o.metrics)
    reference = read_reference(find(o.reference), protocol, extractor, rows, _reading(o))
    generated = collect(source, protocol, extractor, o.pictures, rows, _reading(o))
    report = {"pictures": source.name, **source.made_from(), **distances(generated, reference, o.metrics)}
    if _first():
        print(json.dumps(report, indent=1), flush=True)
        if o.out is not None:
            write_json_atomic(o.out, report)


def gen(argv: Sequence[str]) -> None:
    """Write a generator's pictures: `--model DIR --prompts FILE --out FOLDER`."""
    from diffdistill.cli.layouts import LAYOUTS

    parser = _parser("gen", measures=False)
    parser.add_argument("--model", required=True, help="pipeline folder or hub id")
    _generator_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--layout", choices=LAYOUTS, default="plain", help="how other tools expect the files")
    parser.add_argument("--per_prompt", type=int, default=1, help="pictures a prompt")
    parser.add_argument("--protocol", help="whose bytes are written: cut, where it cuts; by default rounded")
    o = _parse(parser, argv)
    if o.per_prompt < 1:
        raise UserError(f"--per_prompt is {o.per_prompt}; it must be at least 1")
    check_writable(o.out, "--out")
    taken = o.out.exists() and any(o.out.iterdir() if o.out.is_dir() else [o.out])
    from diffdistill.evaluation.extractors import to_uint8
    from diffdistill.evaluation.loading import batches, share
    from diffdistill.evaluation.measure import everyones
    from diffdistill.evaluation.protocols import protocol_named
    from diffdistill.models.pictures import save_bytes

    if everyones(taken)[0]:  # as the first process saw it, so that none writes where another refuses
        raise UserError(f"{o.out} is there already; name a new folder")
    truncate = o.protocol is not None and protocol_named(o.protocol).quantisation == "uint8-truncate"
    source = _source(o, per_prompt=o.per_prompt)
    layout = LAYOUTS[o.layout]
    if _first():
        layout.begin(o.out, source, o.per_prompt)
    everyones(True)
    for batch in batches(source, share(len(source)), o.batch_size):
        for index, image in zip(batch.indices, batch.images, strict=True):
            save_bytes(layout.path(o.out, index, o.per_prompt), to_uint8(image, truncate))
    everyones(True)  # said only once all have written
    if _first():
        print(json.dumps({"folder": str(o.out), "n": len(source)}))


# ---- options shared by the commands -----------------------------------------------------------------------------


def _parser(name: str, measures: bool = True) -> OneLineParser:
    parser = OneLineParser(prog=f"diffdistill eval {name}", description=(globals()[name].__doc__ or "").splitlines()[0])
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


def _generator_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", help="text file, one prompt a line; with --model")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0, help="1 is unguided")
    parser.add_argument("--seed", type=int, default=0, help="picture i starts from noise of seed SEED + i")


def _parse(parser: OneLineParser, argv: Sequence[str]) -> argparse.Namespace:
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


def _free(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file")
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already; add --overwrite or name another")
    check_writable(out, "--out")


def _source(o: argparse.Namespace, per_prompt: int = 1) -> Any:
    if getattr(o, "images", None):
        from diffdistill.evaluation.reading import open_source

        return open_source(find(o.images))
    from diffdistill.cli.generated import Generated
    from diffdistill.data.prompts import read_prompts

    if o.prompts is None:
        raise UserError("--model needs --prompts, a text file with one prompt a line")
    prompts = [prompt for prompt in read_prompts(find(o.prompts)) for _ in range(per_prompt)]
    return Generated(find(o.model), prompts, o.pictures or len(prompts), o.steps, o.guidance, o.seed)


def _protocol(o: argparse.Namespace) -> tuple[Any, Any]:
    import torch

    from diffdistill.evaluation.protocols import protocol_named

    protocol = protocol_named(o.protocol)
    device = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.partition(":")[0] not in ("cpu", "cuda") or (device != "cpu" and not torch.cuda.is_available()):
        raise UserError(f"--device {device} is not there; cpu always is")
    other = o.weights_sha256 or False
    return protocol, protocol.build_extractor(o.weights, device=device, allow_other_weights=other)


def _reading(o: argparse.Namespace) -> Any:
    from diffdistill.evaluation.measure import Reading

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return Reading(o.batch_size, o.threads, o.on_corrupt, progress=_first(), report=report)


# ---- processes ----------------------------------------------------------------------------------------------------


@contextmanager
def _processes() -> Any:
    """Join the other processes where a launcher started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    state = PartialState()
    try:
        yield
    finally:
        state.destroy_process_group()


def _first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
