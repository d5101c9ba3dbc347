"""Prompts to embeddings by the stock pipeline's own code, and what of a prompt is cut because it is too long.

`StableDiffusionPipeline.encode_prompt` expands textual-inversion tokens of several vectors and gives the text encoder
an attention mask where its settings ask for one. What is trained here has the same embeddings, since it calls the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.launched import rank_and_processes

from .pipeline_folder import quiet
from .stock_pipeline import stock_pipeline


@torch.no_grad()
def embed(pipeline: Any, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Prompt embeddings (N, L, D), by StableDiffusionPipeline's `encode_prompt`.

    Args:
        pipeline: has the tokenizer and the text encoder.
        prompts: N texts.
        batch_size: texts that the text encoder reads at once.
    """
    chunks, device = [], pipeline.text_encoder.device
    stock = stock_pipeline(None, None, pipeline.text_encoder, pipeline.tokenizer)
    with quiet():  # it says for each batch what was cut; `report_cut` says it once
        for i in range(0, len(prompts), batch_size):
            chunks.append(stock.encode_prompt(list(prompts[i : i + batch_size]), device, 1, False)[0])
    return torch.cat(chunks)


def expand(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts with the tokens of several vectors of a textual inversion written out, as the stock pipeline does."""
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
    """Raise UserError for a text encoder that wants an attention mask, where it is trained on token ids alone."""
    if getattr(text_encoder.config, "use_attention_mask", False):
        raise UserError(
            f"{where}: its text encoder takes an attention mask (use_attention_mask), and is not trained so"
        )


def cut_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[int]:
    """Indices of the prompts that have more tokens than the tokenizer's length, start and end counted."""
    if not prompts:
        return []
    with quiet():
        ids = tokenizer(expand(tokenizer, prompts))["input_ids"]
    return [i for i, row in enumerate(ids) if len(row) > tokenizer.model_max_length]


def report_cut(tokenizer: Any, prompts: Sequence[str]) -> None:
    """Say on stderr, once and by the first process alone, how many different prompts are cut, and show one."""
    different = list(dict.fromkeys(prompts))
    cut = cut_prompts(tokenizer, different)
    if cut and rank_and_processes()[0] == 0:
        text = " ".join(different[cut[0]].split())
        shown = text if len(text) <= 60 else text[:60] + "..."
        verb = "prompts is" if len(cut) == 1 else "prompts are"
        print(
            f"note: {len(cut)} of {len(different)} different {verb} longer than the "
            f"{tokenizer.model_max_length} tokens that the text encoder reads, and cut there; the first is {shown!r}",
            file=sys.stderr,
            flush=True,
        )
