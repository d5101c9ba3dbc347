"""Features of DINOv2: the class token, on which FD-DINOv2 is defined (Stein et al. 2023, Karras et al. 2024).

Notable:
- the network is transformers' Dinov2Model, from a local folder of safetensors that is checked by hash; no weight stays
  random;
- position embeddings are interpolated to 16 x 16 patches as the authors' own code does, by a scale factor with 0.1
  added, because published numbers come from that code. transformers interpolates to a size, which shifts them slightly;
- images are resized by antialiased bicubic in floats, as in EDM2 (dgm-eval rounds to 8 bits in between).
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import IMAGENET_MEAN, IMAGENET_STD, Extractor, normalise
from diffdistill.evaluation.features.resize import resize
from diffdistill.evaluation.features.weight_files import WeightFile, check, find, first_line, hub_cached

_REPO = "facebook/dinov2-large"
_URL = f"https://huggingface.co/{_REPO}/resolve/47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"
DINOV2_FILE = WeightFile(
    title="DINOv2 ViT-L/14",
    name="dinov2-large/model.safetensors",
    sha256="399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    url=f"{_URL}/model.safetensors",
)
DINOV2_CONFIG = WeightFile(
    title="DINOv2 ViT-L/14 config",
    name="dinov2-large/config.json",
    sha256="12df51c069a2dc1305e34ba71ef58bc2407ea553b75f4722a1715c1bce3bbed0",
    url=f"{_URL}/config.json",
)
_SIDE = 224
_OFFSET = 0.1  # patches, in the authors' interpolate_pos_encoding


class Dinov2Features(Extractor):
    """Maps images to the normalised class token of a DINOv2 network.

        uint8 (N, 3, H, W) -> bicubic, antialiased, to 224 x 224 -> ImageNet mean/std -> network -> token 0

    Args:
        weights: a folder with config.json and model.safetensors. By default it is looked for in diffdistill's cache and
            in the hub's; "download" fetches it.
        device: where the network runs.
        allow_other_weights: True accepts another DINOv2, also of another size; a sha256 accepts the model.safetensors
            that has it.

    Raises:
        UserError: a file is missing or has another hash, or its tensors do not fit the network.
    """

    name = "dinov2-vitl14"
    resize = f"bicubic-antialias-{_SIDE}"

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        allow_other_weights: bool | str = False,
    ) -> None:
        if weights not in (None, "download") and Path(weights).is_file():
            weights = Path(weights).parent
        self.device = torch.device(device)
        model, config = (
            find(file, weights, [] if weights else hub_cached(_REPO, Path(file.name).name))
            for file in (DINOV2_FILE, DINOV2_CONFIG)
        )
        self.weights_sha256 = check(DINOV2_FILE, model, allow_other_weights)
        check(DINOV2_CONFIG, config, bool(allow_other_weights))
        self._network = _load(model.parent).to(self.device)
        self.dim: int = self._network.config.hidden_size
        if self.dim != 1024:
            self.name = f"dinov2-{self.dim}"

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W) to (N, 3, 224, 224)."""
        return normalise(resize(images, _SIDE, "bicubic-antialias"), IMAGENET_MEAN, IMAGENET_STD)

    def network(self, x: Tensor) -> Tensor:
        """Map prepared images (N, 3, 224, 224) to features (N, dim)."""
        token: Tensor = self._network(x).last_hidden_state[:, 0]
        return token


def positions(grid: Tensor, side: int, offset: float = _OFFSET) -> Tensor:
    """Position embeddings of a square of patches, interpolated to another side.

    Args:
        grid: Tensor of shape (1, M * M, d).
        side: patches along a side of the result.
        offset: added to `side` in the scale factor.

    Returns:
        Tensor of shape (1, side * side, d).
    """
    d, m = grid.shape[2], round(grid.shape[1] ** 0.5)
    square = grid.float().reshape(1, m, m, d).permute(0, 3, 1, 2)
    square = F.interpolate(square, scale_factor=(side + offset) / m, mode="bicubic")
    return square.permute(0, 2, 3, 1).reshape(1, side * side, d)


def _load(folder: Path) -> Any:
    from transformers import Dinov2Model

    # What is drawn before the weights are read must not change the caller's random state.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded: Any = Dinov2Model.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder} can't be read as a DINOv2: {first_line(error)}") from error
    network, report = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[problem])):
            raise UserError(f"{folder} does not fit a DINOv2: {problem.replace('_', ' ')} {names[0]!r} of {len(names)}")
    embeddings, patch = network.embeddings, network.config.patch_size
    side = _SIDE // patch
    old = embeddings.position_embeddings
    if old.shape[1] != side * side + 1:
        new = torch.cat([old[:, :1], positions(old[:, 1:], side)], 1)
        embeddings.position_embeddings = nn.Parameter(new, requires_grad=False)  # fits 224, so it is used as it is
    return network.eval().requires_grad_(False)
