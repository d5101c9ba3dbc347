"""Processes for tests that need some of their own: killed, or joined in twos as a launcher joins them.

A server process imports torch and the package once; the others are forked from it, so that they start at once.
"""

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

SECONDS = 300  # far above what any test takes
PRELOADED = ("torch._dynamo", "diffdistill.methods", "diffdistill.training.loop", "yaml", "jsonargparse")
PRELOADED_WHERE_USED = (  # slow to import, so only where this session has done so
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.modeling_clip",
    "peft",
)


def start(function: Callable[..., Any], *args: Any, **environment: str) -> BaseProcess:
    """Start a process that calls `function(*args)`.

    Args:
        function: of a module that can be imported, since it is sent by its name.
        args: sent as they are.
        environment: variables of the process.
    """
    context = multiprocessing.get_context("forkserver")
    used = [name for name in PRELOADED_WHERE_USED if name in sys.modules]
    context.set_forkserver_preload([*PRELOADED, *used])  # heeded when the first process is started
    process = context.Process(target=_call, args=(environment, function, args))
    process.start()
    return process


def in_two_processes(function: Callable[..., Any], *args: Any, **environment: str) -> None:
    """Call `function(*args)` as ranks 0 and 1 of a group of two; both have to return."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    group = {**place, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **environment}
    both = [start(function, *args, **group, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    try:
        for process in both:
            process.join(SECONDS)
        codes = [process.exitcode for process in both]
    finally:
        for process in both:
            process.kill()  # one that waits for the other in vain
    assert codes == [0, 0], f"the processes ended with {codes}; their errors are above"


def train_on_one_and_on_two(config: Path, **environment: str) -> tuple[Path, Path]:
    """Train the recipe of a config file, here and in two processes; the folders of both runs, beside the file.

    Args:
        config: the file.
        environment: variables of the two processes.
    """
    from diffdistill.cli.train import main

    one, two = config.parent / "one", config.parent / "two"
    main([str(config), "--output_dir", str(one)])
    in_two_processes(main, [str(config), "--output_dir", str(two)], **environment)
    for run, processes in ((one, 1), (two, 2)):
        (*_, last) = sorted(run.glob("checkpoint-*"))
        assert json.loads((last / "state.json").read_text())["processes"] == processes
    return one, two


def _call(environment: dict[str, str], function: Callable[..., Any], args: tuple) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    function(*args)
