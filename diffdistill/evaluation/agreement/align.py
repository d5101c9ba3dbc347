"""align_score: agreement of emoji-like images with their captions, without a download.

    image   -> 160 x 160 -> CLIP ViT-B/16 image tower -> head \\
                                                               cosine, R@1, R@5
    caption -> all-MiniLM-L6-v2 sentence encoder -----> head /

Notable:
- it is not CLIP score: no package holds CLIP's own text tower, so a sentence encoder takes its place, and two small
  heads trained on emoji join the two towers. On photographs the number means nothing;
- the heads were trained on the captions of the training split, so reports also say how well they retrieve held-out
  concepts;
- 64-pixel images hold no more detail at 224 pixels than at 160, where the tower takes half the time; position
  embeddings are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.agreement.heads import Heads
from diffdistill.evaluation.agreement.int8_vit import DIM, load_image_tower
from diffdistill.evaluation.agreement.minilm import SentenceEncoder
from diffdistill.evaluation.features.base import Extractor, normalise
from diffdistill.evaluation.features.resize import resize
from diffdistill.evaluation.features.weight_files import sha256_of

HEADS = Path(__file__).resolve().parents[3] / "assets" / "align" / "heads.safetensors"
SIDE = 160
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class TowerFeatures(Extractor):
    """Maps images to the image tower's vectors of length 1, without a head.

    Args:
        weights: the tower's ONNX file; by default the one in its package.
        device: where the network runs.

    Raises:
        UserError: as in `int8_vit.load_image_tower`.
    """

    name = "clip-vit-b16-int8-weights"
    dim = DIM
    resize = f"pil-bicubic-{SIDE}"

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        network, self.weights_sha256 = load_image_tower(weights)
        self._network = network.to(self.device)

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W) to (N, 3, 160, 160). Images that are not square are stretched to a square."""
        return normalise(resize(images, SIDE, "pil-bicubic"), CLIP_MEAN, CLIP_STD)

    def network(self, x: Tensor) -> Tensor:
        """Map prepared images (N, 3, 160, 160) to vectors (N, 512) of length 1."""
        return F.normalize(self._network(x, interpolate_pos_encoding=True).image_embeds, dim=1)


class AlignFeatures(TowerFeatures):
    """Maps images, and captions, to the heads' joint space.

    Args:
        heads: the heads' file; by default the one in assets/align.
        weights: the image tower's file; by default the one in its package.
        sentences: folder of the sentence encoder; by default the one in its package.
        device: where the networks run.

    Raises:
        UserError: a file is missing, damaged or not the published one, or the heads were made for other towers.
    """

    kind, key = "align", ""

    def __init__(
        self,
        heads: str | Path | None = None,
        weights: str | Path | None = None,
        sentences: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        path = HEADS if heads is None else Path(heads)
        self._heads = Heads.load(path)
        super().__init__(weights, device)
        self._sentences = SentenceEncoder(sentences, device)
        towers = tower_record(self, self._sentences)
        differing = [k for k, v in towers.items() if self._heads.record.get("towers", {}).get(k) != v]
        if differing:
            raise UserError(f"{path}: the heads were trained with another {' and '.join(differing)}")
        self._heads_sha256 = sha256_of(path)
        self._heads.to(self.device)
        self.name = "align (CLIP ViT-B/16 image tower, MiniLM, heads trained on emoji)"
        self.dim = self._heads.picture.out_features

    @property
    def protocol(self) -> dict[str, Any]:
        """What a number has to carry, including how well the heads retrieve held-out concepts."""
        own = {"sentences_sha256": self._sentences.weights_sha256, "heads_sha256": self._heads_sha256}
        return super().protocol | own | {"held_out": self._heads.record.get("held_out")}

    def network(self, x: Tensor) -> Tensor:
        """Map prepared images (N, 3, 160, 160) to embeddings (N, 256) of length 1."""
        return self._heads.pictures(super().network(x))

    def text(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions: Tensor of shape (N, 256), float32, of length 1, on the CPU."""
        with torch.inference_mode():
            return self._heads.captions(self._sentences(captions).to(self.device)).cpu().clone()


def tower_record(tower: TowerFeatures, sentences: SentenceEncoder) -> dict[str, str]:
    """What heads depend on; heads that were made for something else are refused."""
    return {
        "image tower": tower.weights_sha256,
        "image size": TowerFeatures.resize,
        "sentence encoder": sentences.weights_sha256,
    }
