"""CLIP tokenizers: token ids as the stock pipelines make them, and reports of prompts that are too long and are cut.

Like `encode_prompt` of the stock pipelines, this expands textual-inversion tokens of several vectors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from diffdistill.errors import UserError, shown
from diffdistill.launched import rank_and_processes

from .pipeline_folder import quiet

VERY_LARGE = 10**9  # transformers gives a tokenizer without a length the length 1e30


def text_list(prompts: Iterable[str]) -> list[str]:
    """Prompts as a list; an iterator is read to its end.

    Raises:
        UserError: there is one text in place of a list, an item is no text, or there are no prompts.
    """
    if isinstance(prompts, str):  # otherwise each letter would be a prompt
        raise UserError(f"prompts is {shown(prompts)}; it must be a list of texts, so put the text into brackets")
    if not isinstance(prompts, Iterable):
        raise UserError(f"prompts is {shown(prompts)}; it must be a list of texts")
    texts = list(prompts)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise UserError(f"prompts[{wrong}] is {shown(texts[wrong])}; it must be a text")
    if not texts:
        raise UserError("there are no prompts; give one for each image")
    return texts


def fit_length(tokenizer: Any, text_encoder: Any) -> None:
    """Give a tokenizer without a length the length that the text encoder reads.

    Raises:
        ValueError: the tokenizer's length is longer, or the text encoder lacks the embedding of a token.
    """
    longest = text_encoder.config.max_position_embeddings
    if tokenizer.model_max_length >= VERY_LARGE:
        tokenizer.model_max_length = longest
    if tokenizer.model_max_length > longest:
        raise ValueError(
            f"tokenizer_config.json has model_max_length {tokenizer.model_max_length}, but the text encoder reads at "
            f"most {longest} tokens"
        )
    rows, needed = len(text_encoder.get_input_embeddings().weight), 1 + max(tokenizer.get_vocab().values())
    if needed > rows:
        raise ValueError(
            f"the tokenizer has token ids up to {needed - 1}, but the text encoder has embeddings of only {rows} "
            "tokens; use the tokenizer that belongs to it"
        )


def expand(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts in which tokens of a textual inversion with several vectors are written out, as in the stock pipeline."""
    from diffusers.loaders import TextualInversionLoaderMixin

    return list(TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), tokenizer))


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token ids (N, L) of prompts, cut or padded to the tokenizer's length, as the stock pipeline makes them."""
    ids: Tensor = tokenizer(
        expand(tokenizer, prompts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )["input_ids"]
    return ids


def check_unmasked(text_encoder: Any, where: str) -> None:
    """Raise UserError for a text encoder that takes an attention mask. Training gives it token ids alone."""
    if getattr(text_encoder.config, "use_attention_mask", False):
        raise UserError(
            f"{where}: its text encoder takes an attention mask (use_attention_mask), but training gives it none"
        )


def cut_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[int]:
    """Indices of the prompts with more tokens, start and end included, than the tokenizer's length."""
    if not prompts:
        return []
    with quiet():
        ids = tokenizer(expand(tokenizer, prompts))["input_ids"]
    return [i for i, row in enumerate(ids) if len(row) > tokenizer.model_max_length]


def report_cut(tokenizer: Any, prompts: Sequence[str]) -> None:
    """Write to stderr, once and only in the first process, how many different prompts are cut, and show one."""
    different = list(dict.fromkeys(prompts))
    say_cut([different[i] for i in cut_prompts(tokenizer, different)], len(different), tokenizer.model_max_length)


def say_cut(cut: Sequence[str], different: int, limit: int) -> None:
    """Write to stderr, in the first process only, how many prompts are cut, and show one. If none is, write nothing.

    Args:
        cut: the prompts that are cut.
        different: number of all different prompts.
        limit: number of tokens that the text encoder reads.
    """
    if cut and rank_and_processes()[0] == 0:
        text = " ".join(cut[0].split())
        shown = text if len(text) <= 60 else text[:60] + "..."
        verb = "prompts is" if len(cut) == 1 else "prompts are"
        print(
            f"note: {len(cut)} of {different} different {verb} longer than the "
            f"{limit} tokens that the text encoder reads, and will be cut; the first is {shown!r}",
            file=sys.stderr,
            flush=True,
        )
