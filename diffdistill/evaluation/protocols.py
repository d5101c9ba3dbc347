"""Evaluation protocols: small named records, each with a hash that is printed with every number.

Notable:
- a protocol is everything that two people have to agree on before their numbers compare: extractor, crop, both
  resizes, quantisation, number of images, reference, and CLIP model with its prefix;
- `str(protocol)` is its name and the first 8 hex digits of a hash of all its fields, such as "clean@1a2b3c4d". A record
  changed with `dataclasses.replace` has another hash under the same name;
- quantisation says how images in floats become bytes; images in bytes are taken as they are.

Importing this module needs no torch.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diffdistill.evaluation.features.base import Extractor
    from diffdistill.evaluation.features.clip import ClipFeatures


@dataclass(frozen=True)
class Protocol:
    """One way of measuring.

    Args:
        name: the protocol's name.
        extractor: a name in `features.base.EXTRACTORS`.
        network_resize: how images are resized for the extractor's network, such as "clean-299".
        reference: which real images, in words.
        n_generated: number of generated images; None for as many as there are.
        crop: "centre-square", or None for no crop.
        resize_before: kind and size of a resize after the crop, such as "pil-lanczos-256", or None for no resize.
        quantisation: how floats become bytes: "uint8-round", or "uint8-truncate" where the original tool truncates.
        mixed_sizes: whether images of several sizes are allowed; otherwise sizes have to agree after crop and resize.
        clip_model: open_clip's model and weights for CLIP score, such as "ViT-g-14/laion2b_s12b_b42k", or None.
        clip_prefix: text that is put before every caption.
    """

    name: str
    extractor: str
    network_resize: str
    reference: str
    n_generated: int | None = None
    crop: str | None = None
    resize_before: str | None = None
    quantisation: str = "uint8-round"
    mixed_sizes: bool = False
    clip_model: str | None = None
    clip_prefix: str = ""

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("crop", self.crop, (None, "centre-square")),
            ("quantisation", self.quantisation, ("uint8-round", "uint8-truncate")),
        ):
            if value not in choices:
                raise ValueError(f"{what} should be one of {', '.join(map(str, choices))}, got {value!r}")

    @property
    def hash(self) -> str:
        """8 hex digits of the sha256 of all fields as sorted JSON."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def __str__(self) -> str:
        return f"{self.name}@{self.hash}"

    def build_extractor(
        self,
        weights: "str | Path | None" = None,
        device: "str | torch.device" = "cpu",
        allow_other_weights: bool | str = False,
    ) -> "Extractor":
        """The protocol's extractor, with the protocol's resize; arguments as in `features.base.build_extractor`."""
        from diffdistill.evaluation.features.base import build_extractor

        kind = self.network_resize.rpartition("-")[0]
        options = {"resize": kind} if self.extractor.startswith("inception-tf") else {}
        built = build_extractor(self.extractor, weights, device, allow_other_weights, **options)
        if built.resize != self.network_resize:
            raise UserError(
                f"{self} asks for the resize {self.network_resize}; {self.extractor} resizes by {built.resize}"
            )
        return built

    def build_clip(
        self,
        weights: "str | Path | None" = None,
        device: "str | torch.device" = "cpu",
        allow_other_weights: bool | str = False,
    ) -> "ClipFeatures":
        """CLIP's two towers, with the protocol's prefix; arguments as in `build_extractor`.

        Raises:
            UserError: the protocol has no CLIP model, and whatever `clip.ClipFeatures` raises.
        """
        from diffdistill.evaluation.features.clip import ClipFeatures

        if self.clip_model is None:
            raise UserError(f"{self} measures no CLIP score")
        model, _, pretrained = self.clip_model.partition("/")
        return ClipFeatures(model, pretrained, weights, self.clip_prefix, device, allow_other_weights)

    def record(self, extractor: "Extractor") -> dict[str, Any]:
        """What a number carries: name and hash of the protocol, and the record of the extractor."""
        return {"protocol": str(self), **extractor.protocol, "quantisation": self.quantisation}

    def preprocess(self, images: "Tensor | Sequence[Tensor]") -> "Tensor | list[Tensor]":
        """Quantise, crop and resize images as the protocol says, for the extractor.

        Args:
            images: Tensor of shape (N, 3, H, W), or one image (3, H, W), or a sequence of images (3, H, W) that may
                differ in size; uint8, or floating point in [0, 1].

        Returns:
            uint8 in the same form. A sequence gives one Tensor of shape (N, 3, h, w) where sizes agree, and a list
            where they differ and the protocol allows that.

        Raises:
            UserError: sizes that differ where the protocol needs one size.
            ValueError: wrong shape or dtype, or floating-point values outside [0, 1].
        """
        import torch

        if isinstance(images, torch.Tensor):
            if images.ndim not in (3, 4) or images.shape[-3] != 3:
                raise ValueError(f"images should have shape (N, 3, H, W) or (3, H, W), got {tuple(images.shape)}")
            return self._one_size(images) if images.ndim == 4 else self._one_size(images[None])[0]
        done = [self._one_size(image[None])[0] for image in images]
        differing = [i for i, image in enumerate(done) if image.shape != done[0].shape]
        if not differing:
            return torch.stack(done) if done else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        if not self.mixed_sizes:
            i = differing[0]
            (height, width), (first_height, first_width) = done[i].shape[1:], done[0].shape[1:]
            raise UserError(
                f"{self} needs images of one size: image {i} is {width}x{height}, image 0 {first_width}x{first_height}"
            )
        return done

    def _one_size(self, images: "Tensor") -> "Tensor":
        """(N, 3, H, W) -> uint8 of shape (N, 3, h, w)."""
        from diffdistill.evaluation.features.base import to_uint8
        from diffdistill.evaluation.features.resize import centre_square, resize

        x = to_uint8(images, truncate=self.quantisation == "uint8-truncate")
        if self.crop is not None:
            x = centre_square(x)
        if self.resize_before is not None:
            kind, _, side = self.resize_before.rpartition("-")
            x = resize(x, int(side), kind)
        return x


_COCO = "COCO 2014 val, all 40504 images"
_RECORDS = (
    # As GigaGAN, DMD2 and SwiftBrush v2 measure: 30,000 captions with one image each; the reference gets the same crop
    # and resize. Floats are truncated to bytes, not rounded.
    Protocol(
        "coco30k-clean256",
        "inception-tf",
        "clean-299",
        _COCO,
        n_generated=30_000,
        crop="centre-square",
        resize_before="pil-lanczos-256",
        quantisation="uint8-truncate",
        clip_model="ViT-g-14/laion2b_s12b_b42k",
        clip_prefix="A photo depicts ",
    ),
    # The mode "clean" of clean-fid, which resizes each image by itself.
    Protocol("clean", "inception-tf", "clean-299", "given", mixed_sizes=True),
    # FID as first published, in the arithmetic of torch-fidelity and TensorFlow.
    Protocol("tf-legacy", "inception-tf", "tf1-bilinear-299", "given"),
    # torchmetrics >= 1.8 with normalize=True, which truncates floats to bytes.
    Protocol("torchmetrics", "inception-tf", "bilinear-antialias-299", "given", quantisation="uint8-truncate"),
    # FD-DINOv2 as EDM2 measures it.
    Protocol("dinov2", "dinov2-vitl14", "bicubic-antialias-224", "given", mixed_sizes=True),
    # CMMD (arXiv 2401.09603): OpenAI's CLIP at 336 pixels, on squares cut from the middle.
    Protocol("cmmd", "clip-ViT-L-14-336", "pil-bicubic-336", "given", crop="centre-square", mixed_sizes=True),
    # Needs no download: torchvision's MobileNetV2. A distance on it is not FID.
    Protocol("mobilenet-offline", "mobilenet_v2", "bicubic-antialias-128", "given"),
    Protocol("cifar10-50k", "inception-tf", "tf1-bilinear-299", "CIFAR-10 train, all 50000 images", n_generated=50_000),
    # As EDM measures: images at the model's resolution, centre-cropped before they were packed.
    Protocol(
        "imagenet-50k",
        "inception-tf",
        "tf1-bilinear-299",
        "ImageNet 2012 train, all 1281167 images, centre-cropped at the model's resolution",
        n_generated=50_000,
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _RECORDS}


def protocol_named(name: str) -> Protocol:
    """The protocol of a name, such as "clean", or of a name and a hash, such as "clean@1a2b3c4d".

    Raises:
        UserError: an unknown name, or a hash other than that of the current record.
    """
    key, _, wanted = name.partition("@")
    if key not in PROTOCOLS:
        near = difflib.get_close_matches(key, PROTOCOLS, 1, 0.4)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise UserError(f"no protocol {key!r}{hint} There are: {', '.join(PROTOCOLS)}")
    found = PROTOCOLS[key]
    if wanted and wanted != found.hash:
        raise UserError(f"protocol {name!r} was asked for, but {key!r} is now {found}: the two do not compare")
    return found
