"""What latent teachers of views have in common: encoding with a graph, frozen networks, and prompts embedded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.models.families.unet import UNetBackbone, check_plain_unet
from diffdistill.models.prompt_table import PromptTable, embed_prompts
from diffdistill.models.teacher import Teacher


def require_plain(teacher: Teacher) -> UNetBackbone:
    """The backbone of a teacher that is conditioned on the embeddings of one text encoder, and on nothing else.

    Raises:
        UserError: it is of SDXL, or of another family.
    """
    backbone = teacher.backbone
    check_plain_unet(backbone.inner, f"text to 3D with the teacher {teacher.source}")
    assert isinstance(backbone, UNetBackbone)
    return backbone


def frozen_parts(teacher: Teacher, shared: bool) -> dict[str, nn.Module]:
    """The networks of a teacher by name; without the denoising one where that is trained with adapters."""
    parts = dict(teacher.parts())
    if shared:
        parts.pop(teacher.family.network)
    return parts


def encoded(teacher: Teacher, images: Tensor) -> Tensor:
    """Views (N, 3, H, W) in [0, 1] to latents (N, C, h, w), with a graph.

    They are enlarged to the size at which the teacher draws, bilinearly, as in ScaleDreamer: views of 64 x 64 pixels
    are judged at 512 x 512.
    """
    sized = F.interpolate(images, teacher.image_size, mode="bilinear", align_corners=False)
    return teacher.latents.encode(2 * sized - 1)


class PromptRows:
    """Embeddings of texts that are known before a run, made once (`models.prompt_table`).

    Args:
        teacher: whose text encoder embeds.
        texts: some may be there twice.
    """

    def __init__(self, teacher: Teacher, texts: Sequence[str]) -> None:
        self.teacher, self._rows = teacher, {text: i for i, text in enumerate(dict.fromkeys(texts))}
        self._table: PromptTable | None = None

    def prepare(self, device: torch.device) -> None:
        """Embed all texts; the text encoder must be on the device."""
        self._table = embed_prompts(self.teacher, list(self._rows), device)

    @property
    def on_demand(self) -> bool:
        """Whether the text encoder is needed in every step, because the embeddings would fill the disk."""
        return self._table is None or self._table.on_demand

    def __contains__(self, text: object) -> bool:
        """Whether a text is one of those that were made."""
        return self._table is not None and text in self._rows

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of some of the texts, (R, L, D), on the device, in float32.

        Raises:
            RuntimeError: `prepare` was not called.
            UserError: a text is none of those that were made.
        """
        if self._table is None:
            raise RuntimeError("prompts are embedded by prepare(device), which was not called")
        unknown = [text for text in texts if text not in self._rows]
        if unknown:
            raise UserError(f"the prompt {unknown[0]!r} is none of the prompts of this run")
        found = self._table.rows([self._rows[text] for text in texts])
        assert isinstance(found, Tensor)
        return found.float()
