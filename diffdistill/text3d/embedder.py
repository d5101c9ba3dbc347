"""What a generator is told of a prompt: embeddings of its words, which the multi-view prior learned.

The generator takes them as they are. So words have one meaning for the model that judges and for the one that makes,
and a combination of words that the generator never saw is near those that it did.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .words import Vocabulary, words_of


class Embedding(NamedTuple):
    """Prompts as a generator takes them.

    Attributes:
        pooled: (P, D): the sum of the tokens, or the text encoder's own.
        tokens: (P, L, D).
        mask: (P, L), true where there is a token.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor


class WordEmbedder(nn.Module):
    """A vocabulary with a vector for each word.

    Args:
        vocabulary: W words.
        table: (W + 1, D), with zeros for no word.
    """

    table: Tensor

    def __init__(self, vocabulary: Vocabulary, table: Tensor) -> None:
        super().__init__()
        if table.dim() != 2 or len(table) != len(vocabulary.words) + 1:
            raise ValueError(f"the table is {tuple(table.shape)}; it must have {len(vocabulary.words) + 1} rows")
        self.vocabulary = vocabulary
        self.register_buffer("table", table.detach().clone().float())

    @property
    def dim(self) -> int:
        """D, the width of an embedding."""
        return self.table.shape[1]

    @property
    def device(self) -> torch.device:
        """Where embeddings are returned."""
        return self.table.device

    def reads(self, prompt: str) -> str:
        """A prompt as the model reads it; prompts of one reading are one to it."""
        return " ".join(words_of(prompt))

    def saved(self) -> dict[str, Any]:
        """What a saved model says of it, beside the table."""
        return {"vocabulary": dataclasses.asdict(self.vocabulary)}

    def forward(self, prompts: Sequence[str]) -> Embedding:
        """Embeddings of prompts.

        Raises:
            UserError: a prompt has an unknown word, no word at all, or too many.
        """
        ids = self.vocabulary.ids(prompts, empty=False).to(self.table.device)
        tokens = self.table[ids]
        return Embedding(tokens.sum(1), tokens, ids > 0)
