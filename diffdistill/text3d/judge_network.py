"""A small classifier of views, which says of which prompt an image is: for evaluation, and for nothing else.

    image --area, 32 x 32--> four convolutions --> 48 features --> log p(thing), log p(colour) --sum--> each prompt

Notable:
- it is trained on true renders of things: instances whose proportions vary, random rings, white and random backgrounds.
  No prior and no generator is trained with it or sees its seed;
- R@1 is the share of images whose own prompt is the likeliest of all prompts, and R-probability the mean probability
  of the own prompt, which is less coarse;
- a high R@1 does not mean that the form is right: a mug without its handle is still a mug among twelve things. Report
  PSNR and IoU against the true objects beside it, and the worst thing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.files import write_atomic
from diffdistill.text3d.things.catalogue import COLOURS, Prompt
from diffdistill.text3d.things.views import UNIFORMS, Views

SIDE = 32  # pixels that the network sees
WIDTHS = (24, 32, 48, 64)
FEATURES = 48


@dataclass(frozen=True)
class JudgeSettings:
    """How the network is trained.

    Args:
        iterations: steps of AdamW, with a rate that falls along a cosine.
        batch: objects of a step; each has 4 views.
        rate: the first learning rate.
        noise: the highest standard deviation of the noise on an image, so that grain does not decide.
        smoothing: of the labels, which keeps probabilities from 0 and 1.
        seed: of the network and of all that is drawn. Take another one than for what is judged.

    Raises:
        UserError: a number is out of its range.
    """

    iterations: int = 450
    batch: int = 32
    rate: float = 4e-3
    noise: float = 0.1
    smoothing: float = 0.02
    seed: int = 7919

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1:
            raise UserError(f"iterations is {self.iterations} and batch {self.batch}; both must be 1 or more")
        if not (0 < self.rate <= 1 and 0 <= self.noise <= 1 and 0 <= self.smoothing < 1):
            raise UserError(
                f"rate is {self.rate}, noise {self.noise} and smoothing {self.smoothing}; they must be in (0, 1], "
                "[0, 1] and [0, 1)"
            )

    @classmethod
    def of_things(cls, count: int) -> JudgeSettings:
        """As many iterations a thing as 12 things have; 48 things in 600 iterations are found only .81 of the time.

        >>> JudgeSettings.of_things(48).iterations
        1800
        """
        return cls(iterations=max(cls.iterations, round(cls.iterations * count / 12)))


class Retrieval(NamedTuple):
    """How well images are found among all prompts.

    Attributes:
        hit: (N,) whether the own prompt is the likeliest.
        probability: (N,) of the own prompt.
    """

    hit: Tensor
    probability: Tensor

    @property
    def recall_at_1(self) -> float:
        """R@1, the share of hits."""
        return float(self.hit.float().mean())

    @property
    def mean_probability(self) -> float:
        """R-probability."""
        return float(self.probability.mean())


class JudgeNetwork(nn.Module):
    """The classifier.

    Args:
        things: the names of the things.
        natural: whether a thing may come in its own colours, as real 3D models do.

    Attributes:
        prompts: what images are retrieved among: each thing in each colour, in order.
    """

    def __init__(self, things: Sequence[str], natural: bool = False) -> None:
        super().__init__()
        self.things, self.natural = tuple(things), natural
        colours = [*COLOURS, *([None] if natural else [])]
        self.prompts = tuple(Prompt(thing, colour) for thing in self.things for colour in colours)
        blocks: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
            stride = 1 if i == 0 else 2
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        inner = WIDTHS[-1] * (SIDE // 2 ** (len(WIDTHS) - 1)) ** 2
        self.features = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(inner, FEATURES), nn.ReLU())
        self.thing, self.colour = nn.Linear(FEATURES, len(self.things)), nn.Linear(FEATURES, len(colours))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities of the things (N, T) and of the colours (N, C).

        Args:
            images: (N, 3, S, S) in [0, 1], where S is a multiple of 32.

        Raises:
            UserError: the images have another shape.
        """
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or images.shape[2] % SIDE:
            raise UserError(f"images are {tuple(images.shape)}; they must be (N, 3, S, S), with S a multiple of {SIDE}")
        features = self.features(2 * F.avg_pool2d(images, images.shape[2] // SIDE) - 1)
        return self.thing(features).log_softmax(-1), self.colour(features).log_softmax(-1)

    @torch.inference_mode()
    def retrieval(self, images: Tensor, index: Tensor, batch: int = 512) -> Retrieval:
        """How well images are found among all prompts.

        Args:
            images: (N, 3, S, S) in [0, 1], where S is a multiple of 32.
            index: (N,) int64, the number of each image's own prompt in `prompts`.
            batch: images that are classified at once.

        Raises:
            UserError: no image, or another number of indexes than images.
        """
        if not len(images) or index.shape != images.shape[:1]:
            raise UserError(f"there are {len(images)} images and {tuple(index.shape)} indexes; each image needs one")
        training = self.training
        self.eval()
        joint = []
        for part in images.split(batch):
            thing, colour = self(part)
            joint.append((thing[:, :, None] + colour[:, None, :]).flatten(1))
        self.train(training)
        likely = torch.cat(joint)
        own = likely.gather(1, index[:, None].to(likely.device))[:, 0]
        return Retrieval(likely.argmax(1) == index.to(likely.device), own.exp())


def train_judge(views: Views, settings: JudgeSettings = JudgeSettings()) -> JudgeNetwork:  # noqa: B008
    """A network trained on views of things, in evaluation mode.

    Args:
        views: of things, rendered with a seed of their own.
        settings: how it is trained.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = JudgeNetwork(views.names, natural=views.natural)
    network.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    pairs = views.indexes(network.prompts)
    optimizer = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=1e-2)
    for step in range(settings.iterations):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * (0.5 + 0.5 * math.cos(math.pi * step / settings.iterations))
        drawn = views.drawn(pairs, torch.rand(settings.batch, UNIFORMS, generator=generator))
        images = drawn.images.flatten(0, 1)
        level = settings.noise * torch.rand(len(images), 1, 1, 1, generator=generator)
        images = images + level * torch.randn(images.shape, generator=generator)
        thing, colour = network(images.contiguous(memory_format=torch.channels_last))
        each = images.shape[0] // settings.batch
        loss = _smoothed(thing, drawn.things.repeat_interleave(each), settings.smoothing)
        loss = loss + _smoothed(colour, drawn.colours.repeat_interleave(each), settings.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.to(memory_format=torch.contiguous_format).eval()  # as it comes back from a file


def _smoothed(log_probabilities: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    own = F.nll_loss(log_probabilities, labels)
    return (1 - smoothing) * own - smoothing * log_probabilities.mean()


def save_judge(network: JudgeNetwork, path: Path, settings: JudgeSettings | None = None) -> None:
    """Write a network as one safetensors file."""
    about = {"things": list(network.things), "natural": network.natural, "settings": settings and asdict(settings)}
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_atomic(path, save(tensors, metadata={"judge": json.dumps(about)}))


def load_judge(path: Path) -> JudgeNetwork:
    """Read what `save_judge` wrote, in evaluation mode.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["judge"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if tensors["thing.weight"].shape != (len(about["things"]), FEATURES):
            raise ValueError(f"it names {len(about['things'])} things")
        network = JudgeNetwork(about["things"], bool(about["natural"]))
        network.load_state_dict(tensors)
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise ValueError("it has values that are not finite")
    except Exception as error:  # safetensors, json and torch raise many kinds of error for a damaged file
        raise UserError(f"{path} holds no judge network that can be read: {error}") from error
    return network.eval()
