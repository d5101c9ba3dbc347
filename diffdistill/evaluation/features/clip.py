"""Features of CLIP's two towers, by open_clip, normalised to length 1.

Notable:
- the image tower is an extractor like the others (for CMMD and FD-CLIP); the text tower stands beside it;
- the prefix of the captions ("A photo depicts " in the COCO protocol) is an argument and part of the protocol, because
  it changes CLIP scores;
- images are resized in Pillow's own 8-bit arithmetic, as open_clip's preprocessing does, but in batches;
- open_clip is not imported before a tower is built.

The cosine of an image's and a caption's features is on the scale of the distillation papers, about 0.3 for a good
match. torchmetrics reports 100 times this number, and Hessel et al. 2021 report 2.5 times.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import Extractor, filled, normalise, plain_float32
from diffdistill.evaluation.features.resize import resize
from diffdistill.evaluation.features.weight_files import WeightFile, check, find, first_line, hub_cached

_REPO = "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
VIT_G_FILE = WeightFile(
    title="CLIP ViT-g-14 (laion2b_s12b_b42k)",
    name="clip-vit-g-14-laion2b-s12b-b42k/open_clip_pytorch_model.bin",
    sha256="6aac683f899159946bc4ca15228bb7016f3cbb1a2c51f365cba0b23923f344da",
    url=f"https://huggingface.co/{_REPO}/resolve/4b0305adc6802b2632e11cbe6606a9bdd43d35c9/open_clip_pytorch_model.bin",
)


class ClipFeatures(Extractor):
    """Maps images, and captions, to CLIP's joint space.

        uint8 (N, 3, H, W) -> shorter side to S, bicubic, 8 bits -> centre S x S -> mean/std -> tower -> length 1

    Args:
        model: an open_clip model, such as "ViT-g-14". OpenAI's weights need the "-quickgelu" variant.
        pretrained: the tag of the weights. Where `weights` is given, it is only a name.
        weights: a file of weights, safetensors or a state dict. By default ViT-g-14 is looked for in diffdistill's
            cache and in the hub's. "download" fetches it; for other models it lets open_clip fetch the tag.
        prefix: text that is put before every caption.
        device: where the towers run.
        allow_other_weights: True accepts any weights of the right layout; a sha256 accepts the file that has it.

    Raises:
        UserError: open_clip is not installed, the model is unknown, or the weights are missing, have another hash or do
            not fit the model.
    """

    def __init__(
        self,
        model: str = "ViT-g-14",
        pretrained: str = "laion2b_s12b_b42k",
        weights: str | Path | None = None,
        prefix: str = "",
        device: str | torch.device = "cpu",
        allow_other_weights: bool | str = False,
    ) -> None:
        open_clip = _open_clip()
        self.model, self.pretrained, self.prefix = model, pretrained, prefix
        self.device = torch.device(device)
        path = _path(open_clip, model, pretrained, weights)
        self.weights_sha256 = check(_file(model, pretrained), path, allow_other_weights)
        self._towers = _load(open_clip, model, path).to(self.device)
        self._tokenise = open_clip.get_tokenizer(model)
        how = self._towers.visual.preprocess_cfg
        sides = {how["size"]} if isinstance(how["size"], int) else set(how["size"])
        if len(sides) != 1 or (how["interpolation"], how["resize_mode"]) != ("bicubic", "shortest"):
            raise UserError(f"CLIP {model} should resize its shorter side by bicubic, to a square; its config is {how}")
        self._side: int = sides.pop()
        self._mean, self._std = how["mean"], how["std"]
        self.name = f"clip-{model}/{pretrained}"
        self.kind, self.key = "clip", f"({model}/{pretrained}, {prefix!r}, x1)"
        self.resize = f"pil-bicubic-{self._side}"
        self.dim = self.text([""]).shape[1]

    @property
    def protocol(self) -> dict[str, Any]:
        """What a number made from these features has to carry."""
        return super().protocol | {"prefix": self.prefix}

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W) to (N, 3, S, S)."""
        height, width = images.shape[-2:]
        short, side = min(height, width), self._side
        x = resize(images, (side * height // short, side * width // short), "pil-bicubic")
        # On each axis, half of what is left over, rounded to even, as in torchvision's center_crop.
        top, left = (round((length - side) / 2) for length in x.shape[-2:])
        return normalise(x[..., top : top + side, left : left + side], self._mean, self._std)

    def network(self, x: Tensor) -> Tensor:
        """Map prepared images (N, 3, S, S) to features (N, dim) of length 1."""
        return F.normalize(self._towers.encode_image(x), dim=-1)

    def text_network(self, tokens: Tensor) -> Tensor:
        """Map tokens of shape (N, 77) to features (N, dim) of length 1."""
        return F.normalize(self._towers.encode_text(tokens), dim=-1)

    def text(self, captions: Sequence[str]) -> Tensor:
        """Features of captions, with the prefix before each; tokens beyond 77 are cut off.

        Returns:
            Tensor of shape (N, dim), float32, of length 1, on the CPU.
        """
        done = []
        for start in range(0, len(captions), self.size):
            tokens = self._tokenise([self.prefix + caption for caption in captions[start : start + self.size]])
            with plain_float32(self.device), torch.inference_mode():
                features = filled(self.text_network, tokens.to(self.device), self.size)
            done.append(features.to("cpu", torch.float32))
        return torch.cat(done) if done else torch.empty(0, self.dim)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"CLIP needs open_clip ({error}); install it with pip install 'diffdistill[eval]'") from error
    return open_clip


def _file(model: str, pretrained: str) -> WeightFile:
    if (model, pretrained) == ("ViT-g-14", "laion2b_s12b_b42k"):
        return VIT_G_FILE
    return WeightFile(
        title=f"CLIP {model} ({pretrained})",
        name=f"clip-{model}-{pretrained}.safetensors",
        sha256=None,
        get='as open_clip publishes it, or let open_clip fetch it with weights="download"',
    )


def _path(open_clip: Any, model: str, pretrained: str, weights: str | Path | None) -> Path:
    file = _file(model, pretrained)
    if weights == "download" and not file.url:
        cfg = open_clip.pretrained.get_pretrained_cfg(model.removesuffix("-quickgelu"), pretrained)
        if not cfg:
            raise UserError(f"open_clip has no weights {pretrained!r} for {model}")
        try:
            return Path(open_clip.pretrained.download_pretrained(cfg))
        except (OSError, RuntimeError) as error:
            raise UserError(f"could not download {file.title}: {error}") from error
    also = hub_cached(_REPO, Path(file.name).name) if weights is None and file is VIT_G_FILE else []
    return find(file, weights, also)


def _load(open_clip: Any, model: str, path: Path) -> Any:
    if model not in open_clip.list_models():
        raise UserError(f"open_clip has no model {model!r}; open_clip.list_models() names those it has")
    # The weights that are drawn before the file is read must not change the caller's random state.
    with torch.random.fork_rng(devices=[]):
        try:
            towers = open_clip.create_model(model, pretrained=str(path), weights_only=True)
        except Exception as error:  # of many kinds, from pickle's to a KeyError
            raise UserError(f"{path} can't be read as CLIP {model}: {first_line(error)}") from error
    return towers.eval().requires_grad_(False)
