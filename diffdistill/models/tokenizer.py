"""A small CLIP tokenizer (byte-pair encoding over the captions' words), stock classes and files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"


def train_clip_tokenizer(captions: Iterable[str], vocabulary: int = 2048, max_length: int = 24) -> Any:
    """A `transformers.CLIPTokenizer` whose merges come from the captions; other ASCII text falls back to letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2 - 2 * len(letters), end_of_word_suffix="</w>", min_frequency=2, show_progress=False
    )
    model.train_from_iterator((caption.lower() for caption in captions), trainer)
    import json

    merges: Any = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [token for a, b in merges if (token := a + b) not in tokens]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=max_length,
    )
