"""Where the time of decoding goes, and what other codecs take in the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from diffdistill.codec import Codec
from diffdistill.codec.strips import strips
from diffdistill.codec.tiles import padded
from diffdistill.errors import UserError
from diffdistill.evaluation.rate.classic import ClassicCodec
from diffdistill.evaluation.rate.search import best_within

RUNNER = Path(__file__).with_name("compressai_times.py")  # runs where this package is not installed


class Part:
    """Calls of one method of an object: how long they take, and how often they can be made again.

    Args:
        owner: the object.
        name: of the method.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name, self.seconds = owner, name, 0.0
        self.calls: list[tuple[Any, ...]] = []
        self._call = getattr(owner, name)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Within the block, calls are timed and their arguments are kept."""
        self.seconds, self.calls = 0.0, []

        def call(*arguments: Any) -> Any:
            begin = now()
            made = self._call(*arguments)
            self.seconds += now() - begin
            self.calls.append(arguments)
            return made

        object.__setattr__(self.owner, self.name, call)
        try:
            yield
        finally:
            object.__delattr__(self.owner, self.name)

    def again(self) -> None:
        """Make the calls of the last block again, and nothing else."""
        for arguments in self.calls:
            self._call(*arguments)


def now() -> float:
    """Seconds, after the device has done what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def taken(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    begin = now()
    work()
    return now() - begin


def time_codec(codec: Codec, image: Tensor, quality: int, runs: int) -> dict[str, Any]:
    """Seconds of encoding and decoding an image, and where those of decoding go.

    Every run encodes, decodes, decodes with clocks in it, and runs the bare networks, in turn, so that a machine that
    is busy for a while is so for all four. One run before them is not counted.

    Args:
        codec: the codec.
        image: uint8 tensor of shape (3, H, W).
        quality: 0 to 100.
        runs: how many are counted; medians are given.

    Returns:
        "encode_s", "decode_s", "networks_s" (the bare networks of decoding on the same inputs), "decode_over_networks"
        (the median of the ratios within runs), "split_s" (of decoding with clocks: "entropy", "context", "decoder",
        "overhead"), "bytes", "bpp" and "peak_mib" (of the process while decoding, with Python and torch in it, or of
        a GPU's memory; None if unknown).
    """
    network, latent = codec.network, codec.network.latent_codec
    coder = codec._coder
    height, width = (padded(side, network.multiple) // network.multiple for side in image.shape[1:])
    whole = len(strips(height, width)) == 1  # a larger code is settled in parts, which are clocked one by one
    entropy = [Part(coder, "decode_z"), Part(coder, "decode_r")]
    context = [
        Part(latent.scales, "forward"),
        Part(latent, "features"),
        *(Part(latent, name) for name in (("settle",) if whole else ("context_of", "settle_step"))),
        Part(latent, "unscaled"),
    ]
    decoder = [Part(network, "decode")]
    data = codec.encode(image, quality)
    columns: list[tuple[float, ...]] = []
    for run in range(runs + 1):
        encode, decode = taken(lambda: codec.encode(image, quality)), taken(lambda: codec.decode(data))
        with ExitStack() as clocks:
            for part in (*entropy, *context, *decoder):
                clocks.enter_context(part.timed())
            clocked = taken(lambda: codec.decode(data))
        networks = _bare([*context, *decoder])
        split = [sum(part.seconds for part in parts) for parts in (entropy, context, decoder)]
        if run:
            columns.append((encode, decode, networks, decode / networks, *split, clocked - sum(split)))
    names = ("encode_s", "decode_s", "networks_s", "decode_over_networks", "entropy", "context", "decoder", "overhead")
    medians = [median(column) for column in zip(*columns, strict=True)]
    found: dict[str, Any] = dict(zip(names, medians, strict=True))
    found["split_s"] = {name: found.pop(name) for name in names[4:]}
    peak = peak_mib(lambda: codec.decode(data), codec.device)
    return {"bytes": len(data), "bpp": 8 * len(data) / image[0].numel(), **found, "peak_mib": peak}


@torch.inference_mode()
def _bare(parts: Sequence[Part]) -> float:
    return sum(taken(part.again) for part in parts)


def peak_mib(work: Callable[[], Any], device: torch.device) -> float | None:
    """The most memory that the process, or the GPU, holds during a call, in MiB; None if it is not known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
        work()
        return _status("VmHWM") / 1024
    except (OSError, LookupError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int({line.partition(":")[0]: line.partition(":")[2] for line in lines}[name].split()[0])


def time_avif(image: Tensor, most: int, runs: int) -> dict[str, Any]:
    """Seconds of AVIF at its default speed, at the highest quality that takes at most `most` bytes, or at 0."""
    avif = ClassicCodec("avif", "AVIF", (0,))
    found = best_within(lambda quality: avif.encode(image, quality), most)
    times = [(taken(lambda: avif.encode(image, found.quality)), taken(lambda: avif.decode(found.data)))
             for _ in range(runs + 1)][1:]  # fmt: skip
    encode, decode = (median(column) for column in zip(*times, strict=True))
    return {"bytes": len(found.data), "quality": found.quality, "encode_s": encode, "decode_s": decode,
            "fits": found.fits}  # fmt: skip


def time_compressai(python: str, size: tuple[int, int], runs: int) -> list[dict[str, Any]]:
    """Seconds of CompressAI's models with random weights, in a process of another interpreter.

    Args:
        python: the interpreter, which has the package compressai.
        size: width and height, in pixels.
        runs: how many are counted.

    Raises:
        UserError: there is no such interpreter, or it has no compressai.
    """
    threads = str(torch.get_num_threads())
    command = [python, str(RUNNER), str(size[0]), str(size[1]), str(runs), threads]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    except OSError as error:
        raise UserError(f"--compressai_python {python} cannot be run: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"--compressai_python {python} cannot run compressai: {last}")
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def has_compressai() -> str | None:
    """This interpreter if compressai is installed in it."""
    import importlib.util

    return sys.executable if importlib.util.find_spec("compressai") else None
