"""Networks whose features are probed: those of a pipeline, of an any-step model, or of a run that is not over.

images --autoencoder--> x0 --noise--> x_t, time, the empty prompt --> network --> features of its taps, averaged
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Schedule
from diffdistill.diffusion.condition import expand
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods.base import Method, unwrap
from diffdistill.models.any_step_pipeline import FAMILY, AnyStepModel
from diffdistill.models.backbone import Backbone
from diffdistill.models.generate import load_generator
from diffdistill.models.latents import LatentSpace
from diffdistill.models.taps import hooked
from diffdistill.models.teacher import Teacher
from diffdistill.training.state import load_trainable

NEAR = 1.2  # a schedule of discrete times may miss a noise ratio by this factor


@dataclass
class Probed:
    """A network that is probed.

    Attributes:
        backbone: names and shapes its taps.
        predict: a pass: (x_t, time in the network's units, condition).
        schedule: of its process.
        latents: its latent space.
        null: the condition of the empty prompt, one row.
        size: height and width of its images.
        digest: tells one network from another.
        made_from: where it is from, for the page.
    """

    backbone: Backbone
    predict: Callable[[Tensor, Tensor, Any], Any]
    schedule: Schedule
    latents: LatentSpace
    null: Any
    size: tuple[int, int]
    digest: str
    made_from: str

    @property
    def taps(self) -> Mapping[str, nn.Module]:
        """Its blocks by name, in the order they run in."""
        return self.backbone.taps()

    def time(self, noise_ratio: float) -> Tensor | None:
        """The time at which sigma / alpha is the ratio, of shape (); None where its schedule has none near that."""
        t = self.schedule.time_at(noise_ratio)
        return t if noise_ratio / NEAR <= self.noise(t) <= noise_ratio * NEAR else None

    def noise(self, t: Tensor) -> float:
        """sigma / alpha at a time."""
        return float(self.schedule.sigma(t) / self.schedule.alpha(t).clamp_min(1e-30))


def open_probed(source: str, device: str = "cpu") -> Probed:
    """The network of a pipeline or of an any-step model, in float32 and frozen.

    Raises:
        UserError: there is no such model.
    """
    model = load_generator(source)
    model.to(device)
    if isinstance(model, AnyStepModel):
        network, (_, h, w) = model.network, model.latent_shape
        return Probed(
            FAMILY.backbone(network.inner),
            lambda x, time, cond: network(x, time, time, cond),
            model.schedule,
            model.latents,
            FAMILY.null(model.pipeline),
            (h * model.latents.factor, w * model.latents.factor),
            model.digest(),
            source,
        )
    return _of_teacher(model, model.backbone, model.digest(), source)


def of_run(
    method: Method, name: str, weights: Mapping[str, Tensor], digest: str, made_from: str, device: str = "cpu"
) -> Probed:
    """A network of a method that distils a teacher, such as its fake score or its student, as a checkpoint holds it.

    Args:
        method: built from the run's settings.
        name: key of the network, such as "fake".
        weights: the network's trained weights.
        digest: tells one checkpoint from another.
        made_from: where the weights are from, for the page.
        device: where it runs.

    Raises:
        UserError: the method has no such network, or no teacher; or the weights do not fit.
    """
    teacher = getattr(method, "teacher", None)
    if not isinstance(teacher, Teacher):
        raise UserError(f"{type(method).__name__} distils no teacher; probe what the run exported, RUN/export")
    if name not in method.networks:
        known = ", ".join(method.networks)
        raise UserError(f"a run of {type(method).__name__} has no network {name!r}; it has {known}")
    network = unwrap(method.networks[name])
    load_trainable(name, network, weights)
    network.requires_grad_(False).eval()
    backbone = getattr(network, "network", network)  # of a fake score with a critic
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"the network {name!r} of {type(method).__name__} has no taps; probe what it exported, RUN/export"
        )
    teacher.to(device)
    return _of_teacher(teacher, backbone.to(device), digest, made_from)


def _of_teacher(teacher: Teacher, backbone: Backbone, digest: str, made_from: str) -> Probed:
    return Probed(
        backbone, backbone, teacher.schedule, teacher.latents, teacher.null(), teacher.image_size, digest, made_from
    )


@torch.no_grad()
def tap_features(
    probed: Probed,
    x0: Tensor,
    names: Sequence[str],
    noise_ratio: float,
    view: int = 0,
    batch_size: int = 64,
    tick: Callable[[int], None] = lambda n: None,
) -> dict[str, Tensor]:
    """Features (N, C) of each tap, averaged over positions, in float32 on the CPU.

    Args:
        probed: the network.
        x0: clean latents (N, C, h, w).
        names: of the taps.
        noise_ratio: sigma / alpha of the noisy latents.
        view: number of the draw of noise; image i gets the same noise at every noise ratio and in every network.
        batch_size: number of latents in a pass.
        tick: called with the number of latents that are done.

    Raises:
        ValueError: its schedule has no such noise ratio, or a tap does not exist.
    """
    t = probed.time(noise_ratio)
    if t is None:
        raise ValueError(f"the schedule has no time with sigma / alpha = {noise_ratio:g}")
    taps, found = probed.taps, {name: list[Tensor]() for name in names}
    if unknown := [name for name in names if name not in taps]:
        raise ValueError(f"the network has no tap {unknown[0]!r}; its taps are {', '.join(taps)}")
    device = next(probed.backbone.parameters()).device
    for start in range(0, len(x0), batch_size):
        x = x0[start : start + batch_size].to(device)
        random = SampleRandom(0, range(start, start + len(x)), device)
        times = t.to(device).expand(len(x))
        x_t = probed.schedule.add_noise(x, random.normal(f"probe/{view}", x.shape[1:]), times)
        with ExitStack() as stack:
            for name in names:

                def keep(output: Any, name: str = name, x_t: Tensor = x_t) -> None:
                    found[name].append(probed.backbone.feature_map(output, x_t).float().mean((2, 3)).cpu())

                stack.enter_context(hooked(taps[name], keep))
            probed.predict(x_t, probed.schedule.network_time(times).to(x), expand(probed.null, len(x)))
        tick(len(x))
    return {name: torch.cat(each) for name, each in found.items()}


def named_path(value: str) -> tuple[str, str]:
    """NAME and PATH of "NAME=PATH"; without a name, it is the path's last part, and the run's for RUN/export."""
    name, equals, path = value.partition("=")
    if equals and not Path(value).exists():
        return name, path
    run, _, network = value.partition("::")
    found = Path(run).name if Path(run).name != "export" else Path(run).absolute().parent.name
    return (f"{found} {network}" if network else found), value
