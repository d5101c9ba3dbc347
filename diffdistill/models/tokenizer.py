"""A small CLIP tokenizer, by byte-pair encoding of the words of captions, with stock classes and files.

The merges are found here and not by the trainer of `tokenizers`. That one breaks ties between equally frequent pairs by
the order of a hash table, so the same captions give another vocabulary in every process, and a run that starts from
nothing cannot be repeated.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_WORD = re.compile(r"\w+|[^\w\s]+")


def train_clip_tokenizer(captions: Iterable[str], vocabulary: int = 2048, max_length: int = 24) -> Any:
    """A `transformers.CLIPTokenizer` whose merges come from the captions; other ASCII text is split into letters.

    Args:
        captions: the captions; the same captions in another order give the same tokenizer.
        vocabulary: largest number of tokens, start, end and letters included.
        max_length: number of tokens of a caption, start and end included.
    """
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    words = Counter(word for caption in captions for word in _WORD.findall(caption.lower()))
    merges: Any = byte_pair_merges(words, vocabulary - 2 - 2 * len(letters))
    tokens = [*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges)]
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


def byte_pair_merges(words: Counter[str], most: int, least: int = 2) -> list[tuple[str, str]]:
    """The pairs that byte-pair encoding joins (Sennrich et al. 2016, arXiv 1508.07909, algorithm 1), in order.

    Each pair is the most frequent pair of neighbours. Of equally frequent pairs, the first in the order of characters
    is taken.

    Args:
        words: how often each word occurs.
        most: largest number of pairs.
        least: how often a pair must occur.

    >>> byte_pair_merges(Counter({"low": 5, "lower": 2}), 3)
    [('l', 'o'), ('lo', 'w</w>'), ('e', 'r</w>')]
    """
    split = [([*word[:-1], word[-1] + WORD_END], count) for word, count in sorted(words.items())]
    pairs: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for i, (symbols, count) in enumerate(split):
        for pair in zip(symbols, symbols[1:], strict=False):
            pairs[pair] += count
            places[pair].add(i)
    merges: list[tuple[str, str]] = []
    while len(merges) < most and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < least:
            break
        merges.append(best)
        for i in sorted(places.pop(best)):
            symbols, count = split[i]
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] -= count
            joined = _joined(symbols, best)
            split[i] = (joined, count)
            for pair in zip(joined, joined[1:], strict=False):
                pairs[pair] += count
                places[pair].add(i)
        pairs = +pairs  # drops pairs that no longer occur
    return merges


def _joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols of a word, with each occurrence of a pair joined, from the left."""
    found: list[str] = []
    for symbol in symbols:
        if found and (found[-1], symbol) == pair:
            found[-1] += symbol
        else:
            found.append(symbol)
    return found
