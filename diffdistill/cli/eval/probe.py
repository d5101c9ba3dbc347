"""`diffdistill eval probe`: what the features of networks tell, for each block and noise level, as a page."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.eval.options import device_of, is_first
from diffdistill.cli.paths import check_writable, find
from diffdistill.errors import UserError
from diffdistill.launched import rank_and_processes


def main(argv: Sequence[str]) -> None:
    """Probe networks' features on labelled images: `--models DIR ... --images SOURCE --out FOLDER`."""
    o = _options(argv)
    networks = _networks(o.models)

    from diffdistill.comparison.probe_map import ProbeMap, ProbeSettings
    from diffdistill.data.labelled import load_labelled

    settings = ProbeSettings(tuple(o.noise), None if o.taps is None else tuple(o.taps), o.batch_size)
    device = device_of(o)
    if rank_and_processes()[1] > 1:
        raise UserError("eval probe runs in one process; start it without accelerate launch")
    labels, test, test_labels = (path and find(path) for path in (o.labels, o.test, o.test_labels))
    data = load_labelled(find(o.images), labels, test, test_labels, o.size).some(o.train_images, o.test_images)
    if data.left_out:
        print(f"note: {data.left_out} images are left out: {data.why_left_out}", file=sys.stderr, flush=True)
    made_from = {"images": o.images, "labels_from": o.labels, "test_from": o.test}
    probes = ProbeMap(data, settings, o.out, made_from, _target(o, device))
    record = probes.run({name: partial(opened, device) for name, opened in networks.items()})
    if is_first():
        best = {model["name"]: _best(model["cells"]) for model in record["models"]}
        print(json.dumps({"page": str(o.out / "index.html"), "best_linear": best}))


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="diffdistill eval probe", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL",
        help="pipeline folders, any-step models or hub ids, or NAME=PATH; RUN::fake for the fake score of a run's last "
        "checkpoint, RUN::student for its student",
    )  # fmt: skip
    parser.add_argument(
        "--images",
        default="assets/emoji",
        help="labelled images: a folder, .zip, .npz, .tar or emoji set (default: assets/emoji)",
    )
    parser.add_argument("--labels", help="a file of labels, FILE.csv::COLUMN to name the column; else the captions")
    parser.add_argument("--test", help="images to test on; by default a fifth of --images")
    parser.add_argument("--test_labels", help="the labels of --test")
    parser.add_argument(
        "--train_images", type=int, default=5000, help="most images that probes are fitted on (default: 5000)"
    )
    parser.add_argument(
        "--test_images", type=int, default=5000, help="most images that probes are tested on (default: 5000)"
    )
    parser.add_argument(
        "--size", type=int, help="side in pixels that images are cut and resized to (default: their own size)"
    )
    parser.add_argument("--taps", nargs="+", help="blocks, such as mid up.0; by default all")
    parser.add_argument(
        "--noise",
        type=float,
        nargs="+",
        default=[0.05, 0.1, 0.2, 0.4, 0.8, 1.6],
        help="noise levels, sigma / alpha (default: 0.05 0.1 0.2 0.4 0.8 1.6)",
    )
    parser.add_argument(
        "--target", choices=("mobilenet", "none"), default="mobilenet",
        help="the other encoder, of the recoverability gap (default: mobilenet)",
    )  # fmt: skip
    parser.add_argument(
        "--batch_size",
        type=int,
        default=64,
        help="images in a pass; it changes no number beyond rounding (default: 64)",
    )
    parser.add_argument("--device", default=None, help="cpu or cuda; by default cuda where there is a GPU")
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or that of a map to go on with")
    o = parser.parse_args(list(argv))
    for name in ("train_images", "test_images", "batch_size", "size"):
        if (value := getattr(o, name)) is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    if o.test_labels is not None and o.test is None:
        raise UserError("--test_labels goes with --test")
    check_writable(o.out, "--out")
    return o


def _networks(values: Sequence[str]) -> dict[str, Callable[[str], Any]]:
    """For each name, a function from the device to the opened network."""
    from diffdistill.comparison.probed import named_path, open_probed

    found: dict[str, Callable[[str], Any]] = {}
    for value in values:
        name, path = named_path(value)
        if not re.fullmatch(r"\w[\w .+-]{0,60}", name):
            raise UserError(f"{value!r} gives a network the name {name!r}; name it as in teacher={path}")
        if name in found:
            raise UserError(f"two networks are called {name!r}; name them as in {name}-2={path}")
        run, part, network = path.rpartition("::")
        found[name] = partial(_of_run, run, network) if part else partial(open_probed, find(path))
    return found


def _of_run(run: str, network: str, device: str) -> Any:
    """A network of a run's last checkpoint, which is built by the run's own settings."""
    from diffdistill.cli.train import build_method, look_elsewhere, parse
    from diffdistill.comparison.probed import of_run
    from diffdistill.training.checkpoint import later_checkpoints, latest_checkpoint, load_checkpoint

    folder, config = Path(run), Path(run) / "config.yaml"
    checkpoint = latest_checkpoint(folder)
    if not config.is_file() or checkpoint is None:
        raise UserError(f"{run} is no run with a whole checkpoint; RUN::{network} reads the last one")
    if torn := later_checkpoints(checkpoint):
        print(f"note: {run}: {', '.join(torn)} is torn, so {checkpoint.name} is probed", file=sys.stderr, flush=True)
    groups, state = load_checkpoint(checkpoint)
    if network not in groups:
        known = sorted(name for name in groups if "." not in name and not name.startswith(("rng-", "ema")))
        raise UserError(f"{checkpoint} has no network {network!r}; it has {', '.join(known)}")
    _, namespace = parse([str(config), "--resume", str(checkpoint)])
    look_elsewhere(namespace, folder)
    method, then = build_method(namespace), state["identity"]["content"]
    if changed := [key for key in then if method.content.get(key.removeprefix("method.")) != then[key]]:
        raise UserError(f"{run}: {changed[0]} is another one now than when the run was trained")
    found = json.dumps([state["files"], network, dict(method.content)], sort_keys=True)
    digest, made_from = hashlib.sha256(found.encode()).hexdigest()[:16], f"{network} of {checkpoint}"
    return of_run(method, network, groups[network], digest, made_from, device)


def _target(o: argparse.Namespace, device: str) -> tuple[Any, str] | None:
    if o.target == "none":
        return None
    from diffdistill.evaluation.features.mobilenet import MobileNetFeatures

    extractor = MobileNetFeatures(device=device)
    return partial(extractor, progress=True), f"{extractor.name}, {extractor.weights_sha256[:16]}"


def _best(cells: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    known = [cell for cell in cells if "linear" in cell]
    if not known:
        return None
    best = max(known, key=lambda cell: cell["linear"])
    return {key: best[key] for key in ("tap", "noise_ratio", "linear")}
