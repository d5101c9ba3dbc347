"""The base class of feature extractors, and the table of those that exist, imported only when they are used.

    images uint8 (N, 3, H, W) -> `prepare`: resize, normalise -> `network` -> features float32 (N, dim), on the CPU

Notable:
- images in floats are first rounded to 8 bits, so the measured image is the one that a PNG file holds;
- the network always runs on the same number of images (`chunk`; the last chunk is filled up), because matrix kernels
  round differently at different sizes. So features depend neither on `batch_size` nor on the number of processes;
- the network runs in plain float32: neither autocast nor TF32 changes a number;
- `protocol` holds what a number made from the features has to carry, including the hash of the weights.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diffdistill.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Extractor(ABC):
    """Base of the extractors; a subclass sets the attributes and defines `prepare` and `network`.

    Attributes:
        name: its name in a protocol.
        dim: number of features d.
        resize: how images are resized for the network, such as "clean-299".
        weights_sha256: hash of the file that the network was loaded from.
        device: where the network runs.
    """

    name: str
    dim: int
    resize: str
    weights_sha256: str
    device: torch.device
    chunk: ClassVar[int] = 8  # on a CPU larger chunks are no faster (measured with Inception)

    @property
    def size(self) -> int:
        """Number of images that the network runs on at a time."""
        return self.chunk if self.device.type == "cpu" else 8 * self.chunk

    @property
    def protocol(self) -> dict[str, Any]:
        """What a number made from these features has to carry."""
        return {
            "extractor": self.name,
            "weights_sha256": self.weights_sha256,
            "quantisation": "uint8-round",
            "resize": self.resize,
            "feature_dim": self.dim,
        }

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W), on the device, to the network's input, float32 of one size."""

    @abstractmethod
    def network(self, x: Tensor) -> Tensor:
        """Map the output of `prepare` to features of shape (N, dim)."""

    def __call__(self, images: Tensor | Sequence[Tensor], batch_size: int = 64, progress: bool = False) -> Tensor:
        """Features of images.

        Args:
            images: Tensor of shape (N, 3, H, W), or a sequence of N tensors of shape (3, H, W) that may differ in
                size; uint8 in [0, 255] or floating point in [0, 1].
            batch_size: number of images resized at a time, rounded up to whole chunks. It bounds memory; features do
                not depend on it.
            progress: show a progress bar on stderr.

        Returns:
            Tensor of shape (N, dim), float32, on the CPU.

        Raises:
            ValueError: a wrong shape or dtype, or floating-point values outside [0, 1].
        """
        return self.run(images, self.network, self.dim, batch_size, progress)

    def run(
        self,
        images: Tensor | Sequence[Tensor],
        network: Callable[[Tensor], Tensor],
        dim: int,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """`__call__` with another function of the prepared images, which returns (N, dim)."""
        _check_shapes(images)
        if batch_size < 1:
            raise ValueError(f"batch_size should be at least 1, got {batch_size}")
        size = self.size
        step = -(-batch_size // size) * size
        starts: Any = range(0, len(images), step)
        if progress:
            from tqdm import tqdm

            starts = tqdm(starts, desc="features", unit="batch")
        done = []
        with plain_float32(self.device):
            for start in starts:
                with torch.inference_mode():
                    x = self._prepared(images[start : start + step])
                    parts = [filled(network, part, size) for part in x.split(size)]
                done.append(torch.cat(parts).to("cpu", torch.float32))  # outside, to give an ordinary tensor
        return torch.cat(done) if done else torch.empty(0, dim)

    def _prepared(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        if isinstance(images, Tensor):
            return self.prepare(to_uint8(images.to(self.device)))
        return torch.cat([self.prepare(to_uint8(image.to(self.device))[None]) for image in images])


def filled(network: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """The network's output for the rows of x, which are filled up to `size` rows with copies of the last one."""
    missing = size - len(x)
    return network(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x)[: len(x)]


def _check_shapes(images: Tensor | Sequence[Tensor]) -> None:
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images should have shape (N, 3, H, W), got {tuple(images.shape)}")
        return
    for i, image in enumerate(images):
        if image.ndim != 3 or len(image) != 3:
            raise ValueError(f"images[{i}] should have shape (3, H, W), got {tuple(image.shape)}")


def to_uint8(images: Tensor, truncate: bool = False) -> Tensor:
    """Images as uint8: values in [0, 1] are rounded to 8 bits, or truncated; uint8 is returned as it is.

    Raises:
        ValueError: another dtype, NaN, or values that would give a level outside 0..255.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images should be uint8 or floating point in [0, 1], got {images.dtype}")
    if not images.numel():
        return images.to(torch.uint8)
    levels = images.to(torch.float32) * 255
    levels = levels.trunc() if truncate else levels.round()
    low, high = levels.aminmax()
    if not (low >= 0 and high <= 255):  # also true for NaN
        least, most = images.aminmax()
        raise ValueError(f"images should lie in [0, 1], got values from {least:.4g} to {most:.4g}")
    return levels.to(torch.uint8)


def normalise(levels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(levels / 255 - mean) / std for levels 0..255 of shape (N, 3, H, W), channel by channel."""
    centre, scale = (torch.tensor(list(v), device=levels.device).view(3, 1, 1) for v in (mean, std))
    return (levels.to(torch.float32) / 255 - centre) / scale


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """Plain float32 arithmetic: no autocast, TF32 or bfloat16 products. Earlier settings are restored afterwards."""
    cudnn: Any = torch.backends.cudnn
    places: list[tuple[Any, str, Any]] = [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # since torch 2.9, where the older names may fail
        mkldnn: Any = torch.backends.mkldnn
        parts = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)
        places += [(part, "fp32_precision", "ieee") for part in parts]
    else:
        places += [(torch.backends.cuda.matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    before = [getattr(place, name) for place, name, _ in places]
    try:
        for place, name, value in places:
            setattr(place, name, value)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


class Entry(NamedTuple):
    """An extractor in the table: the module and name of its class, and the arguments to build it with."""

    module: str
    cls: str
    options: dict[str, Any] = {}


EXTRACTORS: dict[str, Entry] = {
    "inception-tf": Entry("inception", "InceptionFeatures"),
    "dinov2-vitl14": Entry("dinov2", "Dinov2Features"),
    "clip-ViT-g-14": Entry("clip", "ClipFeatures", {"model": "ViT-g-14", "pretrained": "laion2b_s12b_b42k"}),
    "clip-ViT-L-14-336": Entry("clip", "ClipFeatures", {"model": "ViT-L-14-336-quickgelu", "pretrained": "openai"}),
    "clip-ViT-B-32": Entry("clip", "ClipFeatures", {"model": "ViT-B-32-quickgelu", "pretrained": "openai"}),
    "mobilenet_v2": Entry("mobilenet", "MobileNetFeatures"),
    "efficientnet_lite0": Entry("efficientnet", "EfficientNetFeatures"),
    "st-alexnet": Entry("trunk", "TrunkFeatures", {"net": "alex"}),
    "st-vgg16": Entry("trunk", "TrunkFeatures", {"net": "vgg"}),
}


def build_extractor(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    allow_other_weights: bool | str = False,
    **options: Any,
) -> Extractor:
    """Build an extractor by its name.

    Args:
        name: one of `EXTRACTORS`.
        weights: its file or folder; None looks where such files are kept; "download" fetches it first.
        device: where the network runs.
        allow_other_weights: True accepts any weights of the right layout; a sha256 accepts the file that has it. The
            protocol carries the hash of the file that was read.
        options: more arguments of the extractor's class, such as Inception's `resize`.

    Raises:
        UserError: an unknown name, a missing package or file, or a file with another hash.
    """
    if name not in EXTRACTORS:
        near = difflib.get_close_matches(name, EXTRACTORS, 1, 0.4)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise UserError(f"no extractor {name!r}{hint} There are: {', '.join(EXTRACTORS)}")
    entry = EXTRACTORS[name]
    cls = getattr(import_module(f"diffdistill.evaluation.features.{entry.module}"), entry.cls)
    built: Extractor = cls(
        weights=weights, device=device, allow_other_weights=allow_other_weights, **(entry.options | options)
    )
    return built
