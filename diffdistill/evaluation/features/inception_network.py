"""The architecture of the Inception network that FID is defined on (TensorFlow's, of 2015-12-05), as one table.

Notable:
- the table gives the state dict (566 entries, under the names of the published converted weights), so a file is checked
  by name and shape before anything runs;
- `walk` runs the table one unit after the other and leaves a unit's arithmetic to the caller, so that the fast network
  of `inception.py` can be tested against the plain one;
- `random_state_dict` draws weights that keep activations alive, for where the published file is missing.

It differs from torchvision's Inception v3: average pools leave out the padding, the last block pools by maximum, there
are 1008 classes, and the weights differ (Szegedy et al. 2015; Heusel et al. 2017 define FID on it).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError

SIDE = 299  # pixels, of the network's input
CLASSES = 1008
EPS = 1e-3  # of batch norm


class Unit(NamedTuple):
    """A convolution without bias, then batch norm, then ReLU."""

    name: str
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True  # padded so that stride 1 keeps the size; False: not padded

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros on each side, along height and width."""
        return (self.kernel[0] // 2, self.kernel[1] // 2) if self.same else (0, 0)


class Pool(NamedTuple):
    """3x3 pooling; an average at the border is over the pixels inside the image."""

    kind: str  # "average" or "maximum"
    stride: int = 1


class Fork(NamedTuple):
    """Units that read one input side by side; their outputs are concatenated."""

    units: tuple[Unit, ...]


Branch = tuple[Unit | Pool | Fork, ...]


def _block_a(pool: int) -> tuple[Branch, ...]:
    return (
        (Unit("branch1x1", 64),),
        (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))),
        (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), Unit("branch3x3dbl_3", 96, (3, 3))),
        (Pool("average"), Unit("branch_pool", pool)),
    )


def _block_c(c: int) -> tuple[Branch, ...]:
    wide, tall = (1, 7), (7, 1)
    return (
        (Unit("branch1x1", 192),),
        (Unit("branch7x7_1", c), Unit("branch7x7_2", c, wide), Unit("branch7x7_3", 192, tall)),
        (
            Unit("branch7x7dbl_1", c),
            Unit("branch7x7dbl_2", c, tall),
            Unit("branch7x7dbl_3", c, wide),
            Unit("branch7x7dbl_4", c, tall),
            Unit("branch7x7dbl_5", 192, wide),
        ),
        (Pool("average"), Unit("branch_pool", 192)),
    )


def _block_e(pool: str) -> tuple[Branch, ...]:
    def fork(name: str) -> Fork:
        return Fork((Unit(f"{name}a", 384, (1, 3)), Unit(f"{name}b", 384, (3, 1))))

    return (
        (Unit("branch1x1", 320),),
        (Unit("branch3x3_1", 384), fork("branch3x3_2")),
        (Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")),
        (Pool(pool), Unit("branch_pool", 192)),
    )


def _halving(name: str, out: int) -> Unit:
    return Unit(name, out, (3, 3), stride=2, same=False)


class Block(NamedTuple):
    """Parallel branches whose outputs are concatenated. Its name prefixes its units' names; the stem has no name."""

    name: str
    branches: tuple[Branch, ...]
    tap: str = ""  # the name of its output's spatial mean, where that is a feature

    def full(self, unit: Unit) -> str:
        """A unit's full name, as in the state dict."""
        return f"{self.name}.{unit.name}" if self.name else unit.name


BLOCKS: tuple[Block, ...] = (
    Block("", ((_halving("Conv2d_1a_3x3", 32), Unit("Conv2d_2a_3x3", 32, (3, 3), same=False)),)),
    Block("", ((Unit("Conv2d_2b_3x3", 64, (3, 3)), Pool("maximum", 2)),), tap="64"),
    Block(
        "",
        ((Unit("Conv2d_3b_1x1", 80), Unit("Conv2d_4a_3x3", 192, (3, 3), same=False), Pool("maximum", 2)),),
        tap="192",
    ),
    Block("Mixed_5b", _block_a(32)),
    Block("Mixed_5c", _block_a(64)),
    Block("Mixed_5d", _block_a(64)),
    Block(
        "Mixed_6a",
        (
            (_halving("branch3x3", 384),),
            (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), _halving("branch3x3dbl_3", 96)),
            (Pool("maximum", 2),),
        ),
    ),
    Block("Mixed_6b", _block_c(128)),
    Block("Mixed_6c", _block_c(160)),
    Block("Mixed_6d", _block_c(160)),
    Block("Mixed_6e", _block_c(192), tap="768"),
    Block(
        "Mixed_7a",
        (
            (Unit("branch3x3_1", 192), _halving("branch3x3_2", 320)),
            (
                Unit("branch7x7x3_1", 192),
                Unit("branch7x7x3_2", 192, (1, 7)),
                Unit("branch7x7x3_3", 192, (7, 1)),
                _halving("branch7x7x3_4", 192),
            ),
            (Pool("maximum", 2),),
        ),
    ),
    Block("Mixed_7b", _block_e("average")),
    Block("Mixed_7c", _block_e("maximum"), tap="2048"),
)


def pool(x: Tensor, how: Pool) -> Tensor:
    """Pool a Tensor of shape (N, C, H, W); stride 1 keeps the size, stride 2 gives about half of each side."""
    padding = 1 if how.stride == 1 else 0
    if how.kind == "maximum":
        return F.max_pool2d(x, 3, how.stride, padding)
    return F.avg_pool2d(x, 3, how.stride, padding, count_include_pad=False)


def walk(x: Tensor, apply: Callable[[str, Unit, Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Run the table unit by unit, and yield (tap, map of shape (N, C, H, W)) where a block has a tap.

    Args:
        x: Tensor of shape (N, 3, 299, 299), with pixels as (level - 128) / 128.
        apply: computes a unit's output from its full name, the unit and its input.
    """
    for block in BLOCKS:
        outputs = []
        for branch in block.branches:
            y = x
            for step in branch:
                if isinstance(step, Pool):
                    y = pool(y, step)
                elif isinstance(step, Fork):
                    y = torch.cat([apply(block.full(unit), unit, y) for unit in step.units], 1)
                else:
                    y = apply(block.full(step), step, y)
            outputs.append(y)
        x = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
        if block.tap:
            yield block.tap, x


def units() -> Iterator[tuple[str, Unit, int]]:
    """Every unit, in order: its full name, the unit, and its number of input channels."""
    channels = 3
    for block in BLOCKS:
        total = 0
        for branch in block.branches:
            c = channels
            for step in branch:
                if isinstance(step, Pool):
                    continue
                for unit in step.units if isinstance(step, Fork) else (step,):
                    yield block.full(unit), unit, c
                c = sum(unit.out for unit in step.units) if isinstance(step, Fork) else step.out
            total += c
        channels = total


def state_dict_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the 566 tensors of a weight file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, unit, c in units():
        shapes[f"{name}.conv.weight"] = (unit.out, c, *unit.kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (unit.out,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    return shapes | {"fc.weight": (CLASSES, 2048), "fc.bias": (CLASSES,)}


def check_state_dict(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights of another network.

    Raises:
        UserError: names are missing or unknown, a shape differs from the network's, or values are not finite.
    """
    shapes = state_dict_shapes()
    for problem, names in (("lacks", shapes.keys() - state.keys()), ("has unknown", state.keys() - shapes.keys())):
        if names:
            raise UserError(f"{where} is not FID's Inception: it {problem} {len(names)} tensors, as {min(names)!r}")
    for name, shape in shapes.items():
        value = state[name]
        if tuple(value.shape) != shape:
            raise UserError(f"{where} is not FID's Inception: {name} has shape {tuple(value.shape)}, should be {shape}")
        if not bool(value.isfinite().all()):
            raise UserError(f"{where} is damaged: {name} holds values that are not finite")


@torch.no_grad()
def random_state_dict(seed: int = 0) -> dict[str, Tensor]:
    """Seeded random weights in the published layout, for tests and timings without the published file.

    Convolutions are drawn as in He et al. 2015. Then running means and variances are set, unit by unit, to those of
    four seeded images, so that features differ between images and neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    coarse = [F.interpolate(draw(4, 3, side, side), size=(SIDE, SIDE), mode="bilinear") for side in (3, 12, 60)]
    state: dict[str, Tensor] = {}

    def calibrate(name: str, unit: Unit, x: Tensor) -> Tensor:
        weight = draw(unit.out, x.shape[1], *unit.kernel) * (2 / (x.shape[1] * unit.kernel[0] * unit.kernel[1])) ** 0.5
        y = F.conv2d(x, weight, stride=unit.stride, padding=unit.padding)
        variance, mean = torch.var_mean(y, (0, 2, 3))
        gain = 0.75 + 0.5 * torch.rand(unit.out, generator=generator)
        parts = {"weight": gain, "bias": 0.2 * draw(unit.out), "running_mean": mean, "running_var": variance}
        state[f"{name}.conv.weight"] = weight
        state.update({f"{name}.bn.{part}": value for part, value in parts.items()})
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
        return normalised(state, name, y).relu_()

    for _ in walk(torch.stack(coarse).sum(0).div_(3).clamp_(-1, 1), calibrate):
        pass
    state["fc.weight"] = draw(CLASSES, 2048) / 2048**0.5
    state["fc.bias"] = 0.2 * draw(CLASSES)
    return state


def normalised(state: Mapping[str, Tensor], name: str, y: Tensor) -> Tensor:
    """A unit's batch norm, in evaluation mode, applied to its convolution's output."""
    mean, variance, gain, bias = (
        state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(y, mean, variance, gain, bias, eps=EPS)
