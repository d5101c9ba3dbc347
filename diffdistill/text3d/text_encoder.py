"""What a large generator is told of a prompt: the embeddings of the teacher's CLIP text encoder.

    prompt --tokenizer--> ids --text encoder--> tokens (L, D);   pooled (D): the token where the prompt ends

The generators of ScaleDreamer (arXiv 2407.02040) read these. A saved generator does not hold the text encoder, which
is larger than most generators: it says where the encoder is and what its hash is, so another one is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError
from diffdistill.models.digests import encoder_settings, tokenizer_settings, weights_digest
from diffdistill.models.families import family_of
from diffdistill.models.families.stable_diffusion import StableDiffusion
from diffdistill.models.hub import open_pipeline
from diffdistill.models.teacher import DTYPES, Teacher
from diffdistill.models.text import check_unmasked, cut_prompts, fit_length, text_list, token_ids

from .embedder import Embedding

BATCH = 64  # prompts that the text encoder reads at once
Rows = Callable[[Sequence[str]], Tensor]


class TextEmbedder(nn.Module):
    """A frozen CLIP text encoder as an embedder of prompts, beside `WordEmbedder`.

    Neither its parameters nor its state have the text encoder, which is not trained and not saved.

    Args:
        tokenizer: a CLIPTokenizer.
        text_encoder: a CLIPTextModel.
        source: folder or hub id of the pipeline that they are of.
        variant: variant of its weight files.
        dtype: dtype in which they were loaded.

    Raises:
        UserError: the text encoder takes an attention mask.
    """

    here: Tensor

    def __init__(
        self, tokenizer: Any, text_encoder: Any, source: str, variant: str | None = None, dtype: str = "float32"
    ) -> None:
        super().__init__()
        check_unmasked(text_encoder, source)
        self._parts = (tokenizer, text_encoder)  # in a tuple, where torch does not find the module
        self.source, self.variant, self.dtype = source, variant, dtype
        self.known: tuple[Callable[[str], bool], Rows] | None = None
        self.register_buffer("here", torch.zeros(1), persistent=False)

    @property
    def dim(self) -> int:
        """D, the width of an embedding."""
        return int(self._parts[1].config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where embeddings are returned."""
        return self.here.device

    def reads(self, prompt: str) -> str:
        """A prompt as the text encoder reads it: all of it."""
        return prompt

    def remember(self, among: Callable[[str], bool], rows: Rows) -> None:
        """Take the tokens of prompts that are among those of a run from elsewhere, so that the encoder is not asked.

        Args:
            among: whether a prompt is one of them.
            rows: their tokens (P, L, D).
        """
        self.known = (among, rows)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Embedding:
        """Embeddings of prompts. All L tokens count, those after the end too, as the teacher reads them.

        Raises:
            UserError: a prompt is empty or no text.
        """
        tokenizer, _ = self._parts
        texts = text_list(prompts)
        if empty := [text for text in texts if not text.strip()]:
            raise UserError(f"the prompt {empty[0]!r} has no word; it must name what is wanted")
        ids = token_ids(tokenizer, texts)
        if self.known is not None and all(map(self.known[0], texts)):
            tokens = self.known[1](texts).to(self.device)
        else:
            tokens = self._encoded(ids)
        end = (ids == tokenizer.eos_token_id).int().argmax(1).to(self.device)  # the first one: padding may be the same
        pooled = tokens[torch.arange(len(tokens), device=self.device), end]
        return Embedding(pooled, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=self.device))

    def cut(self, prompts: Sequence[str]) -> list[int]:
        """Indices of the prompts that are longer than the text encoder reads."""
        return cut_prompts(self._parts[0], prompts)

    def saved(self) -> dict[str, Any]:
        """What a saved model says of it; `load_text_embedder` reads it."""
        found = {"source": self.source, "variant": self.variant, "dtype": self.dtype, "digest": self.digest()}
        return {"text_encoder": found}

    def digest(self) -> str:
        """A hash of the weights, settings and vocabulary."""
        tokenizer, encoder = self._parts
        settings = json.dumps([tokenizer_settings(tokenizer), encoder_settings(encoder)], sort_keys=True, default=str)
        return hashlib.sha256((weights_digest(encoder) + settings).encode()).hexdigest()[:16]

    def _encoded(self, ids: Tensor) -> Tensor:
        encoder = self._parts[1].to(self.device)
        return torch.cat([encoder(part.to(self.device))[0].float() for part in ids.split(BATCH)])


def embedder_of(teacher: Teacher, variant: str | None = None, dtype: str = "float32") -> TextEmbedder:
    """The text encoder of a loaded teacher of Stable Diffusion as an embedder.

    Args:
        teacher: the teacher.
        variant: with which it was loaded.
        dtype: with which it was loaded.
    """
    pipeline = teacher.pipeline
    return TextEmbedder(pipeline.tokenizer, pipeline.text_encoder, teacher.source, variant, dtype)


def load_text_embedder(saved: dict[str, Any]) -> TextEmbedder:
    """The text encoder that a saved model was trained with.

    Args:
        saved: what `TextEmbedder.saved` says below "text_encoder": source, variant, dtype and digest.

    Raises:
        UserError: it is not there, is of another family, or is another one.
    """
    source, variant, dtype = str(saved["source"]), saved["variant"], str(saved["dtype"])
    again = "make it readable again, or write where it is now as text_encoder.source into the model's config.json"
    try:
        files = open_pipeline(source, variant, only=("tokenizer", "text_encoder"))
        family = family_of(files.index.get("_class_name"), source)
        if not isinstance(family, StableDiffusion) or dtype not in DTYPES:
            raise UserError(f"{source} is no pipeline of Stable Diffusion 1.x or 2.x")
        tokenizer = files.load_tokenizer("tokenizer", family.parts["tokenizer"])
        encoder = files.load("text_encoder", family.parts["text_encoder"], DTYPES[dtype])
    except UserError as error:
        raise UserError(f"the text encoder that the model was trained with cannot be read: {error}; {again}") from error
    try:
        fit_length(tokenizer, encoder)
    except ValueError as error:
        raise UserError(f"the text encoder of {source}: {error}") from error
    made = TextEmbedder(tokenizer, encoder, source, variant, dtype)
    if (found := made.digest()) != saved["digest"]:
        raise UserError(
            f"the text encoder of {source} has the hash {found}; the model was trained with {saved['digest']}, and "
            f"would take its prompts for others; {again}"
        )
    return made
