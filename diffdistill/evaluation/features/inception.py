"""Features of FID's Inception network, in a fast implementation.

Notable:
- batch norm is folded into the convolutions in float64 when weights are loaded, and images stay channels last: about
  1.4 times the images per second of the published network, on one thread;
- every stage of the network can be read: pool3 (2048 features, those of FID), the earlier maps (768, 192, 64), and the
  class scores without bias, which the Inception score takes;
- the resize can be chosen (`tf1-bilinear` for FID as first published, `clean`, `bilinear-antialias`) and is part of
  the extractor's protocol.

A Frechet distance on these features is FID only with the published weights and the 2048 features.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.inception_network import CLASSES, EPS, SIDE, Unit, check_state_dict, units, walk
from diffdistill.evaluation.features.resize import KINDS, resize
from diffdistill.evaluation.features.weight_files import WeightFile, check, find, first_line

INCEPTION_FILE = WeightFile(
    title="FID Inception",
    name="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
TAPS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits_unbiased": CLASSES, "logits": CLASSES}
RESIZES = tuple(kind for kind in KINDS if not kind.startswith("pil-"))


class InceptionFeatures(Extractor):
    """Maps images to features of the Inception network that FID is defined on.

        uint8 (N, 3, H, W) -> resize to 299 x 299, float32 -> (x - 128) / 128 -> network -> spatial mean (N, 2048)

    Args:
        weights: the file `weights-inception-2015-12-05-6726825d.pth`, or a folder that holds it (pytorch-fid's
            `pt_inception-2015-12-05-6726825d.pth` is the same file). By default it is looked for in diffdistill's cache
            and in torch.hub's, where torch-fidelity and torchmetrics keep it; "download" fetches it.
        device: where the network runs.
        allow_other_weights: True accepts any weights of the right layout; a sha256 accepts the file that has it.
        features: one of `TAPS`.
        resize: one of `RESIZES`.

    Raises:
        UserError: the weights are missing, have another hash or are not this network's; or an unknown choice.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        allow_other_weights: bool | str = False,
        features: str = "2048",
        resize: str = "tf1-bilinear",
    ) -> None:
        for what, value, choices in (("features", features, tuple(TAPS)), ("resize", resize, RESIZES)):
            if value not in choices:
                raise UserError(f"Inception's {what} should be one of {', '.join(choices)}, got {value!r}")
        self.device = torch.device(device)
        self.name = "inception-tf" if features == "2048" else f"inception-tf/{features}"
        self.dim = TAPS[features]
        self.resize = f"{resize}-{SIDE}"
        self._tap, self._kind = features, resize
        state, self.weights_sha256 = load_state_dict(weights, allow_other_weights)
        self._convolutions = {name: fold(state, name, self.device) for name, _, _ in units()}
        self._classes = (state["fc.weight"].to(self.device), state["fc.bias"].to(self.device))

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W) to (N, 3, 299, 299), with levels as (level - 128) / 128."""
        x = resize(images, SIDE, self._kind).sub_(128).mul_(1 / 128)
        return x.contiguous(memory_format=torch.channels_last)

    def network(self, x: Tensor) -> Tensor:
        """Map prepared images (N, 3, 299, 299) to features (N, dim)."""
        return self._at((self._tap,), x)[0]

    def taps(
        self, images: Tensor | Sequence[Tensor], names: Sequence[str], batch_size: int = 64, progress: bool = False
    ) -> dict[str, Tensor]:
        """Several of `TAPS` from one pass.

        Args:
            images: as in a call.
            names: which features, such as ("2048", "logits_unbiased") for FID and the Inception score.
            batch_size, progress: as in a call.

        Returns:
            For each name, a Tensor of shape (N, TAPS[name]), float32, on the CPU.

        Raises:
            ValueError: an unknown name, and whatever a call raises.
        """
        if unknown := [name for name in names if name not in TAPS]:
            raise ValueError(f"features should be of {', '.join(TAPS)}, got {unknown[0]!r}")
        sizes = [TAPS[name] for name in names]

        def joined(x: Tensor) -> Tensor:
            return torch.cat(self._at(names, x), 1)

        together = self.run(images, joined, sum(sizes), batch_size, progress)
        return dict(zip(names, together.split(sizes, 1), strict=True))

    def _at(self, names: Sequence[str], x: Tensor) -> list[Tensor]:
        """The named features of prepared images; the network stops after the last map that it needs."""
        maps = {"2048" if name.startswith("logits") else name for name in names}
        found: dict[str, Tensor] = {}
        for tap, y in walk(x, self._convolve):
            if tap in maps:
                found[tap] = y.mean((2, 3))
            if maps <= found.keys():
                break
        weight, bias = self._classes
        for name in names:
            if name.startswith("logits"):
                found[name] = F.linear(found["2048"], weight, None if name == "logits_unbiased" else bias)
        return [found[name] for name in names]

    def _convolve(self, name: str, unit: Unit, x: Tensor) -> Tensor:
        weight, bias = self._convolutions[name]
        return F.conv2d(x, weight, bias, unit.stride, unit.padding).relu_()


def load_state_dict(
    weights: str | Path | None = None, allow_other: bool | str = False
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a weight file, checked by hash, name and shape, and the file's sha256.

    Raises:
        UserError: as in `InceptionFeatures`.
    """
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    also = [hub / INCEPTION_FILE.name, hub / "pt_inception-2015-12-05-6726825d.pth"]
    path = find(INCEPTION_FILE, weights, also)
    digest = check(INCEPTION_FILE, path, allow_other)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise UserError(f"{path} can't be read as FID Inception weights: {first_line(error)}") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path} should hold a state dict, holds a {type(state).__name__}")
    check_state_dict(state, str(path))
    return dict(state), digest


def fold(state: Mapping[str, Tensor], name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """A unit's convolution with its batch norm folded in: weight (out, in, kh, kw), channels last, and bias (out,)."""
    weight = state[f"{name}.conv.weight"].double()
    gain, bias, mean, variance = (
        state[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / (variance + EPS).sqrt()
    weight = (weight * scale.view(-1, 1, 1, 1)).to(device, torch.float32)
    return weight.contiguous(memory_format=torch.channels_last), (bias - mean * scale).to(device, torch.float32)
