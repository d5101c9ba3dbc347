"""Real latents for the adversarial term, in the place of images that would have to be encoded."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffdistill.data.captioned import CaptionedImages
from diffdistill.methods import adversary


def give_latents(monkeypatch: pytest.MonkeyPatch, prompts: list[str], make: Callable[[], Tensor]) -> None:
    """Each of the prompts has an image, and `make` says what their latents are."""
    images = CaptionedImages(torch.zeros(len(prompts), 3, 8, 8, dtype=torch.uint8), prompts)
    monkeypatch.setattr(adversary, "load_captioned", lambda data, size, captioned: images)
    monkeypatch.setattr(adversary, "encoded", lambda latents, images: make())
