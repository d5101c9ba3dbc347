"""The tokenizer of a run from nothing: the same captions give the same one in every process and in any order."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from diffdistill.data.emoji import load_emoji
from diffdistill.models.tokenizer import END, START, byte_pair_merges, train_clip_tokenizer

ROOT = Path(__file__).parents[2]
CAPTIONS = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("apple", "car", "cat")]
SCRIPT = """
import sys, json
from diffdistill.models.tokenizer import train_clip_tokenizer
print(json.dumps(train_clip_tokenizer(json.loads(sys.argv[1])).get_vocab(), sort_keys=True))
"""


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_every_process_finds_the_same_vocabulary(seed: str) -> None:
    captions = CAPTIONS[int(seed) :] + CAPTIONS[: int(seed)]  # many pairs of letters are equally frequent here
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", SCRIPT, json.dumps(captions)]
    found = json.loads(subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout)
    assert found == train_clip_tokenizer(CAPTIONS).get_vocab()


def test_merges_are_those_of_the_definition() -> None:
    """Against the algorithm written out, which counts all pairs anew for each merge."""
    words = Counter(
        word for caption in load_emoji(ROOT / "assets" / "emoji").captions[:300] for word in caption.split()
    )
    expected, split = [], {word: (*word[:-1], word[-1] + "</w>") for word in words}
    for _ in range(60):
        pairs: Counter = Counter()
        for word, symbols in split.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        expected.append(best)
        for word, symbols in split.items():
            joined: list[str] = []
            for symbol in symbols:
                if joined and (joined[-1], symbol) == best:
                    joined[-1] += symbol
                else:
                    joined.append(symbol)
            split[word] = tuple(joined)
    assert byte_pair_merges(words, 60) == expected


def test_captions_come_back_and_other_text_falls_to_letters() -> None:
    tokenizer = train_clip_tokenizer(CAPTIONS, vocabulary=256, max_length=12)
    assert len(tokenizer) <= 256 and tokenizer.model_max_length == 12
    ids = tokenizer(["red apple", "zebra"])["input_ids"]
    words = [tokenizer.convert_ids_to_tokens(row) for row in ids]
    assert words[0] == [START, "red</w>", "apple</w>", END]
    assert words[1] == [START, *"zebr", "a</w>", END]
    assert tokenizer.get_vocab() == train_clip_tokenizer(reversed(CAPTIONS), 256).get_vocab()
