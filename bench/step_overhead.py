"""What the loop costs beyond the networks: a training step of each method, and generation, over their bare passes.

    python bench/step_overhead.py                                    # all methods on the embedded teacher
    python bench/step_overhead.py --configs emoji_boot --rounds 31

One step is run with every UNet and text encoder watched: which was called, on what, and with which gradients. The bare
passes are those calls again, each forward pass without a graph, with one and its backward pass, or as a
Jacobian-vector product. What a step adds is noise and times, targets and losses, clipping, AdamW steps and averages.
Generation needs text encoder, UNet and VAE decoder. Both sides are timed in turn in one run, on the CPU: medians, and
the median over the rounds of the ratio within a round, are printed as JSON, a line a method.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from leaderboard import PLAIN
from torch import Tensor, nn
from transformers import CLIPTextModel

from diffdistill.cli.train import build_method, parse
from diffdistill.methods.base import Method
from diffdistill.models.generate import generate
from diffdistill.models.teacher import load_teacher
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

CONFIGS = (
    "emoji_quickstart", "emoji_dmd2", "emoji_diff_instruct", "emoji_sid", "emoji_asd", "emoji_boot",
    "emoji_progressive", "emoji_consistency", "emoji_flow", "emoji_self_e", "emoji_mean_flow", "emoji_shortcut",
)  # fmt: skip


@dataclass
class Call:
    """One call of a network: its arguments, cut off their graph, and what has to be differentiated."""

    network: nn.Module
    args: tuple[Any, ...]
    named: dict[str, Any]
    graph: bool
    forward_mode: bool


def _cut(value: Any, graph: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    plain = _plain(value).detach().clone()
    return plain.requires_grad_() if graph and value.requires_grad else plain


def _plain(value: Tensor) -> Tensor:
    """The value without the wrappers of forward-mode differentiation."""
    functorch, forward = torch._C._functorch, torch.autograd.forward_ad
    while functorch.is_gradtrackingtensor(value):
        value = functorch.get_unwrapped(value)
    return forward.unpack_dual(value).primal if forward._current_level >= 0 else value


@contextmanager
def watched(networks: list[nn.Module]) -> Iterator[list[Call]]:
    calls: list[Call] = []

    def note(network: nn.Module, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        value = _value(out)
        dual = torch._C._functorch.peek_interpreter_stack() is not None
        graph = value.requires_grad and not dual
        cut = {key: _cut(v, graph) for key, v in named.items()}
        calls.append(Call(network, tuple(_cut(v, graph) for v in args), cut, graph, dual))

    hooks = [network.register_forward_hook(note, with_kwargs=True) for network in networks]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def again(calls: list[Call], autocast: Any) -> None:
    """The calls once more, and nothing else."""
    for call in calls:
        with autocast():
            if call.graph:
                _value(call.network(*call.args, **call.named)).float().square().mean().backward()
            elif call.forward_mode:
                x, t = call.args[0], call.args[1]

                def run(x: Tensor, t: Tensor, call: Call = call) -> Tensor:
                    return _value(call.network(x, t, *call.args[2:], **call.named))

                torch.func.jvp(run, (x, t), (torch.ones_like(x), torch.ones_like(t)))
            else:
                with torch.no_grad():
                    call.network(*call.args, **call.named)
    for network in {call.network for call in calls if call.graph}:
        network.zero_grad(set_to_none=True)


def _value(out: Any) -> Tensor:
    return next(v for v in (out.values() if isinstance(out, dict) else out) if isinstance(v, Tensor))


def networks_of(method: Method) -> list[nn.Module]:
    """Every UNet and text encoder that a method holds, in training or not."""
    roots: list[Any] = [*method.networks.values()]
    for value in vars(method).values():
        pipeline = getattr(value, "pipeline", None)
        roots += [getattr(pipeline, name) for name in ("unet", "text_encoder") if hasattr(pipeline, name)]
    found = [m for root in roots for m in root.modules() if isinstance(m, (UNet2DConditionModel, CLIPTextModel))]
    return list(dict.fromkeys(found))


def in_turn(rounds: int, ours: Callable[[], object], bare: Callable[[], object]) -> tuple[float, float, float]:
    """Median seconds of both, run alternately after two rounds of warm-up, and the median ratio within a round."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for k in range(rounds + 2):
        for found, piece in zip(seconds, (ours, bare), strict=True):
            started = time.perf_counter()
            piece()
            if k > 1:
                found.append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    return statistics.median(seconds[0]), statistics.median(seconds[1]), statistics.median(ratios)


def training(config: str, batch: int | None, rounds: int) -> dict[str, Any]:
    """A step late in a run, where all that a method does has begun; the config's own batch size where there is none."""
    plain = [f"--{key}={value}" for key, value in PLAIN.items()] if config == "emoji_quickstart" else []
    _, namespace = parse([f"configs/{config}.yaml", *plain])
    batch = batch or namespace.training.batch_size
    method: Method = build_method(namespace)
    options = {
        **vars(namespace.training),
        "batch_size": batch,
        "samples": 1000 * batch,
        "max_minutes": 0.0,
        "validate_every": 0,
    }
    AcceleratorState._reset_state(reset_partial_state=True)  # each may have its own precision
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(method, TrainingSettings(**options), Path(folder))

    def step() -> None:
        trainer.clock.samples, trainer.clock.step = 900 * batch, 900
        trainer.train_step()

    step()
    with watched(networks_of(method)) as calls:
        step()
    ours, passes, ratio = in_turn(rounds, step, lambda: again(calls, trainer.accelerator.autocast))
    return {"step_seconds": ours, "bare_seconds": passes, "ratio": ratio, "calls": len(calls), "batch": batch}


def generation(teacher_folder: str, batch: int, rounds: int) -> dict[str, float]:
    teacher = load_teacher(teacher_folder)
    prompts = [f"an image, {i}" for i in range(batch)]
    p = teacher.pipeline

    @torch.no_grad()
    def bare() -> None:
        x = torch.randn(batch, *teacher.latent_shape)
        p.vae.decode(teacher.backbone.inner(x, 999, encoder_hidden_states=teacher.embed(prompts)).sample)

    ours, passes, ratio = in_turn(rounds, lambda: list(generate(teacher, prompts, 1, 1.0, batch_size=batch)), bare)
    return {"generate_seconds": ours, "bare_seconds": passes, "ratio": ratio}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="*", default=CONFIGS, help="in configs/")
    parser.add_argument("--teacher", default="assets/teacher", help="whose generation is timed")
    parser.add_argument("--batch", type=int, help="by default a config's own; of generation, 32")
    parser.add_argument("--rounds", type=int, default=21)
    o = parser.parse_args()
    for name in o.configs:
        print(json.dumps({name: training(name, o.batch, o.rounds)}), flush=True)
    print(json.dumps({"generation": generation(o.teacher, o.batch or 32, o.rounds)}), flush=True)
