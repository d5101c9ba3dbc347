"""A vocabulary of words: what the small multi-view prior and the small generators know of a prompt.

A prompt is a few words, such as "a red mug". Articles carry nothing and are dropped. A word that is not in the
vocabulary is an error, since a model that never saw it would make something else without a word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.errors import UserError

ARTICLES = frozenset({"a", "an", "the"})
MOST_WORDS = 64  # of a prompt; a file that asks for more is damaged


@dataclass(frozen=True)
class Vocabulary:
    """Words, numbered from 1; 0 stands for no word.

    Args:
        words: in lower case, each once.
        longest: the most words that a prompt may have, without articles; in [1, 64].

    Raises:
        UserError: a word is empty, twice there, an article, or not in lower case; or `longest` is out of its range.
    """

    words: tuple[str, ...]
    longest: int = 3

    def __post_init__(self) -> None:
        for word in self.words:
            if _split(word.lower()) != [word] or word in ARTICLES:
                raise UserError(f"the vocabulary has {word!r}; a word is in lower case, of letters, and no article")
        if len(set(self.words)) < len(self.words) or not self.words:
            raise UserError("the vocabulary is empty, or has a word twice")
        if type(self.longest) is not int or not 1 <= self.longest <= MOST_WORDS:
            raise UserError(f"longest is {self.longest!r}; a prompt may have from 1 to {MOST_WORDS} words")

    def ids(self, prompts: Sequence[str], empty: bool = True) -> Tensor:
        """Numbers of the words of prompts: (P, longest) int64, with 0 after the last word; "" has none.

        Args:
            prompts: P texts.
            empty: whether a prompt may have no words.

        Raises:
            UserError: a prompt has an unknown word, too many words, or none where it must have one; or `prompts` is one
                text in place of a list.

        >>> Vocabulary(("mug", "red")).ids(["a red mug", ""]).tolist()
        [[2, 1, 0], [0, 0, 0]]
        """
        if isinstance(prompts, str):
            raise UserError(f"the prompts are the one text {prompts!r}; they must be a list of texts")
        number = {word: i + 1 for i, word in enumerate(self.words)}
        rows = []
        for prompt in prompts:
            words = words_of(prompt)
            for word in words:
                if word not in number:
                    close = difflib.get_close_matches(word, self.words, 1)
                    hint = f"did you mean {close[0]!r}?" if close else f"it knows {', '.join(sorted(self.words))}"
                    raise UserError(f"the model does not know the word {word!r} of the prompt {prompt!r}; {hint}")
            if len(words) > self.longest:
                raise UserError(f"the prompt {prompt!r} has {len(words)} words; the model takes {self.longest} at most")
            if not words and not empty:
                raise UserError(f"the prompt {prompt!r} has no word; it must name what is wanted")
            rows.append([number[word] for word in words] + [0] * (self.longest - len(words)))
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.longest)


def words_of(prompt: str) -> list[str]:
    """The words of a prompt as a model reads them: in lower case, without articles.

    >>> words_of("A  Red-mug!")
    ['red', 'mug']
    """
    return [word for word in _split(prompt.lower()) if word not in ARTICLES]


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)
