"""Perceptual distances of image pairs: LPIPS v0.1, shift-tolerant LPIPS, and DISTS.

    pair in [0, 1] -> trunk (AlexNet or VGG-16), five feature maps each -> compared map by map -> one number

Notable:
- networks are read from files and built here. No package is imported, and files are downloaded only on request;
- a distance has its published name only where every file has its published hash. Otherwise it is called
  "perceptual-...". Its protocol always carries the hashes;
- ST-LPIPS needs only the package stlpips-pytorch; the other two need a trunk that no package has. Its scale differs, so
  its numbers do not compare with LPIPS;
- pairs run one at a time, at their own size: no number depends on a batch, and equal images have a distance of exactly
  0.
"""

import importlib.util
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import IMAGENET_MEAN, IMAGENET_STD, plain_float32
from diffdistill.evaluation.features.weight_files import WeightFile, check, find, first_line
from diffdistill.evaluation.pairs.perceptual_trunks import Trunk, l2_pool, trunk_named
from diffdistill.evaluation.pairs.pixels import unit_pair

_TORCHVISION = "https://download.pytorch.org/models"
SHA256 = {
    "alexnet-owt-7be5be79.pth": "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "vgg16-397923af.pth": "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "lpips-v0.1/alex.pth": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "lpips-v0.1/vgg.pth": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "alex_shift_tolerant.pth": "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    "vgg_shift_tolerant.pth": "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
    "dists/weights.pt": "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
}


class PerceptualDistance(ABC):
    """A distance of image pairs; `lpips`, `st_lpips` and `dists` build one.

    Attributes:
        name: the name of the number; a published name only with published weights.
        protocol: what a number has to carry: the name and the hashes of all files.
        least_side: the smallest side of an image, in pixels.
        trunk: the network, as a table of its convolutions.
        device: where the network runs.
    """

    def __init__(
        self, name: str, hashes: dict[str, str], trunk: Trunk, tensors: Mapping[str, Tensor], device: torch.device
    ) -> None:
        self.name, self.least_side, self.device = name, trunk.least_side, device
        self.protocol: dict[str, Any] = {"metric": name, "mean": "over-images", **hashes}
        self.trunk = trunk
        self._tensors = {key: value.to(device, torch.float32) for key, value in tensors.items()}

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair.

        Args:
            x: Tensor of shape (N, 3, H, W), uint8 or floating point in [0, 1].
            y: the other image of each pair.

        Returns:
            Tensor of shape (N,), float64, on the CPU; 0 where both images are equal.

        Raises:
            ValueError: wrong or different shapes, images that are too small, NaN, or floating-point values outside
                [0, 1].
        """
        x, y = unit_pair(x, y)
        if x.shape[1] != 3:
            raise ValueError(f"images should have 3 channels, got {x.shape[1]}")
        if min(x.shape[2:]) < self.least_side:
            size = f"{x.shape[3]}x{x.shape[2]}"
            raise ValueError(f"{self.name} needs images of at least {self.least_side} pixels a side, got {size}")
        with plain_float32(self.device), torch.inference_mode():
            values = [
                float(self.distance(torch.stack(pair).to(self.device, torch.float32)))
                for pair in zip(x, y, strict=True)
            ]
        return torch.tensor(values, dtype=torch.float64)

    @abstractmethod
    def distance(self, pair: Tensor) -> Tensor:
        """The distance of one pair, of shape (), with its graph.

        Args:
            pair: float32 of shape (2, 3, H, W), in [0, 1], on the device.
        """


class HeadDistance(PerceptualDistance):
    """The form of LPIPS (Zhang et al. 2018, arXiv 1801.03924, eq. 1).

    It is the sum over maps of the mean over pixels of sum_c w_c (u_c - v_c)^2. Here u and v are the maps of both
    images, at unit length over channels, and w >= 0 is the learned head. Images are scaled to [-1, 1], then to
    (x - shift) / scale.
    """

    def scaled(self, images: Tensor) -> Tensor:
        """Images in [0, 1], of shape (N, 3, H, W), as the trunk takes them."""
        return (2 * images - 1 - self._tensors["scaling_layer.shift"]) / self._tensors["scaling_layer.scale"]

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The trunk's five feature maps of scaled images (N, 3, H, W)."""
        return self.trunk.maps(self._tensors, x)

    def distance(self, pair: Tensor) -> Tensor:
        total = torch.zeros((), device=self.device)
        for number, maps in enumerate(self.maps(self.scaled(pair))):
            u, v = maps / (maps.norm(dim=1, keepdim=True) + 1e-10)
            head = self._tensors[f"lin{number}.model.1.weight"]
            total = total + F.conv2d((u - v).square()[None], head).mean()
        return total


class TextureDistance(PerceptualDistance):
    """The form of DISTS (Ding et al. 2020, arXiv 2004.07728).

    It is 1 - sum over maps and channels of alpha l + beta s. Here l and s are the luminance and structure terms of SSIM
    from moments over all pixels, with c1 = c2 = 1e-6. The image itself is a sixth map. All alpha and beta add up to 1.
    """

    def distance(self, pair: Tensor) -> Tensor:
        alpha, beta = self._tensors["alpha"].flatten(), self._tensors["beta"].flatten()
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        lost = []  # 1 - l and 1 - s, for every channel of every map
        for maps in (pair, *self.trunk.maps(self._tensors, (pair - mean) / std)):
            means = maps.mean((2, 3))
            centred = maps - means[..., None, None]
            luminance = (2 * means.prod(0) + 1e-6) / (means.square().sum(0) + 1e-6)
            structure = (2 * centred.prod(0).mean((1, 2)) + 1e-6) / (centred.square().mean((2, 3)).sum(0) + 1e-6)
            lost.append(torch.stack([1 - luminance, 1 - structure]))
        total: Tensor = (torch.stack([alpha, beta]) * torch.cat(lost, 1)).sum() / (alpha.sum() + beta.sum())
        return total


def lpips(
    net: str = "alex",
    weights: str | Path | None = None,
    heads: str | Path | None = None,
    device: str | torch.device = "cpu",
    allow_other_weights: bool | str = False,
) -> PerceptualDistance:
    """Build LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924): a function of two image batches.

    Args:
        net: "alex", which codecs are measured by, or "vgg".
        weights: torchvision's file of that network, `alexnet-owt-7be5be79.pth` or `vgg16-397923af.pth`, or a folder
            that holds it. By default it is looked for in diffdistill's cache and in torch.hub's; "download" fetches it.
        heads: LPIPS' own file, `alex.pth` or `vgg.pth`, or a folder that holds it; by default the one in the package
            torchmetrics or lpips.
        device: where the network runs.
        allow_other_weights: True accepts any files of the right layout; a sha256 accepts the trunk that has it. The
            distance is then called "perceptual-alex" or "perceptual-vgg".

    Raises:
        UserError: files are missing, have another hash or are not this network's; or an unknown net.
    """
    trunk = trunk_named(net)
    convolutions, digest = _load_torchvision(net, trunk, weights, allow_other_weights)
    places = {"torchmetrics": f"functional/image/lpips_models/{net}.pth", "lpips": f"weights/v0.1/{net}.pth"}
    file = _file("LPIPS head", f"lpips-v0.1/{net}.pth", "from the package torchmetrics or lpips")
    head, head_digest = _load(file, heads, places, allow_other_weights is True, _head_shapes(trunk), "heads")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    scaling = {"scaling_layer.shift": shift.view(3, 1, 1), "scaling_layer.scale": scale.view(3, 1, 1)}
    hashes = {"trunk_sha256": digest, "heads_sha256": head_digest}
    name = f"lpips-v0.1-{net}" if _published(hashes) else f"perceptual-{net}"
    return HeadDistance(name, hashes, trunk, {**convolutions, **head, **scaling}, torch.device(device))


def st_lpips(
    net: str = "alex",
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    allow_other_weights: bool | str = False,
) -> HeadDistance:
    """Build shift-tolerant LPIPS (Ghildyal and Liu 2022, arXiv 2207.13686), whose trunk blurs before it halves.

    Args:
        net: "alex" or "vgg".
        weights: `alex_shift_tolerant.pth` or `vgg_shift_tolerant.pth`, or a folder that holds it; by default the one in
            the package stlpips-pytorch, which is located but never imported.
        device: where the network runs.
        allow_other_weights: as in `lpips`; the name is then "perceptual-shift-tolerant-alex" or "...-vgg".

    Raises:
        UserError: the file is missing, has another hash or is not this network's; or an unknown net.
    """
    trunk = trunk_named(net, tolerant=True)
    how = "by `make venv`, or `pip install --no-deps stlpips-pytorch`"
    file = _file("ST-LPIPS", f"{net}_shift_tolerant.pth", how)
    places = {"stlpips_pytorch": f"weights/vST0.0/{net}_shift_tolerant.pth"}
    scaling = {f"scaling_layer.{part}": (1, 3, 1, 1) for part in ("shift", "scale")}
    shapes = {**scaling, **trunk.shapes, **_head_shapes(trunk)}
    tensors, digest = _load(file, weights, places, allow_other_weights, shapes)
    hashes = {"weights_sha256": digest}
    name = f"st-lpips-{net}" if _published(hashes) else f"perceptual-shift-tolerant-{net}"
    return HeadDistance(name, hashes, trunk, tensors, torch.device(device))


def dists(
    weights: str | Path | None = None,
    heads: str | Path | None = None,
    device: str | torch.device = "cpu",
    allow_other_weights: bool | str = False,
) -> PerceptualDistance:
    """Build DISTS (Ding et al. 2020, arXiv 2004.07728), on images at their own size.

    Args:
        weights: VGG-16's, as in `lpips`.
        heads: the file of alpha and beta, `weights.pt`, or a folder that holds it; by default the one in the package
            torchmetrics or dists-pytorch.
        device: where the network runs.
        allow_other_weights: as in `lpips`; the name is then "perceptual-texture-vgg".

    Raises:
        UserError: files are missing, have another hash or are not this network's.
    """
    trunk = replace(trunk_named("vgg"), pool=l2_pool, least_side=1)
    convolutions, digest = _load_torchvision("vgg", trunk, weights, allow_other_weights)
    places = {"torchmetrics": "functional/image/dists_models/weights.pt", "DISTS_pytorch": "weights.pt"}
    file = _file("DISTS head", "dists/weights.pt", "from the package torchmetrics or dists-pytorch")
    size = (1, 3 + sum(trunk.channels), 1, 1)
    head, head_digest = _load(file, heads, places, allow_other_weights is True, {"alpha": size, "beta": size}, "heads")
    hashes = {"trunk_sha256": digest, "heads_sha256": head_digest}
    name = "dists" if _published(hashes) else "perceptual-texture-vgg"
    return TextureDistance(name, hashes, trunk, {**convolutions, **head}, torch.device(device))


def _head_shapes(trunk: Trunk) -> dict[str, tuple[int, ...]]:
    return {f"lin{i}.model.1.weight": (1, channels, 1, 1) for i, channels in enumerate(trunk.channels)}


def _published(hashes: Mapping[str, str]) -> bool:
    return set(hashes.values()) <= set(SHA256.values())


def _file(title: str, name: str, get: str = "", url: str = "") -> WeightFile:
    return WeightFile(title, name, SHA256[name], url, get)


def _load_torchvision(
    net: str, trunk: Trunk, weights: str | Path | None, allow_other: bool | str
) -> tuple[dict[str, Tensor], str]:
    title, name = {"alex": ("AlexNet", "alexnet-owt-7be5be79.pth"), "vgg": ("VGG-16", "vgg16-397923af.pth")}[net]
    hub = Path(torch.hub.get_dir()) / "checkpoints" / name
    return _load(_file(title, name, url=f"{_TORCHVISION}/{name}"), weights, [hub], allow_other, trunk.shapes)


def _load(
    file: WeightFile,
    given: str | Path | None,
    also: Mapping[str, str] | Sequence[Path],
    allow_other: bool | str,
    shapes: Mapping[str, tuple[int, ...]],
    argument: str = "weights",
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file that `shapes` names, checked, and the file's sha256; `also` may name paths in packages."""
    if isinstance(also, Mapping):
        found = [(importlib.util.find_spec(package), path) for package, path in also.items()]
        folders = [(spec.submodule_search_locations or [], path) for spec, path in found if spec]
        also = [Path(folder) / path for places, path in folders for folder in places]
    try:
        path = find(file, given, also)
        digest = check(file, path, allow_other)
    except UserError as error:
        message = str(error).replace(" weights=", f" {argument}=")
        if argument != "weights":  # a sha256 names the trunk that is meant
            message = re.sub(r"allow_other_weights=\S+", "allow_other_weights=True", message)
        raise UserError(message) from error
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise UserError(f"{path} can't be read as {file.title} weights: {first_line(error)}") from error
    for name, shape in shapes.items():
        value = state.get(name) if isinstance(state, Mapping) else None
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            has = tuple(value.shape) if isinstance(value, Tensor) else "nothing"
            raise UserError(f"{path} does not hold {file.title} weights: {name} should have shape {shape}, has {has}")
    return {name: state[name] for name in shapes}, digest
