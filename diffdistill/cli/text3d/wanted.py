"""Which objects a command makes: prompts, how many of each, the seeds of their noise, and their names as files."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffdistill.cli.paths import find
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.text3d.model import TextTo3DModel

LONGEST_NAME = 60  # characters


@dataclass(frozen=True)
class Wanted:
    """One object.

    Attributes:
        prompt: what it is to be.
        seed: of its noise.
        name: of its file, without ending; no two objects have the same one.
    """

    prompt: str
    seed: int
    name: str


def add_wanted(parser: argparse.ArgumentParser) -> None:
    """Add the options --prompt, --prompts, --n and --seed."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", help="a prompt; repeat the option for several prompts")
    what.add_argument(
        "--prompts", type=Path, help="a file of prompts: .txt (one per line), .jsonl, .csv, .tsv or COCO's .json"
    )
    parser.add_argument(
        "--n", type=int, default=1, help="objects of each prompt, by different noise; not every model takes noise"
    )
    parser.add_argument("--seed", type=int, default=0, help="object i is made of noise of seed SEED + i")


def wanted(options: argparse.Namespace) -> list[Wanted]:
    """The objects that the options name, prompt after prompt.

    Raises:
        UserError: a number is out of its range, a prompt is empty, or the file of prompts cannot be read.
    """
    if options.n < 1:
        raise UserError(f"--n is {options.n}; it must be at least 1")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed is {options.seed}; it must be in [0, 2^63)")
    if options.prompt is None:
        from diffdistill.data.prompts import read_prompts

        prompts = read_prompts(find(str(options.prompts)))
    elif all(prompt.strip() for prompt in options.prompt):
        prompts = options.prompt
    else:
        raise UserError("--prompt is empty; write what the object should be")
    each = [prompt for prompt in prompts for _ in range(options.n)]
    return [Wanted(each[i], options.seed + i, name) for i, name in enumerate(names_of(each))]


def names_of(prompts: Sequence[str]) -> list[str]:
    """Names of files for prompts. Where prompts would have the same name, each has a number.

    >>> names_of(["A red mug!", "a tree", "a red mug"])
    ['a-red-mug-1', 'a-tree', 'a-red-mug-2']
    """
    plain = [
        "-".join(re.findall(r"[^\W_]+", prompt.lower()))[:LONGEST_NAME].strip("-") or "object" for prompt in prompts
    ]
    count = Counter(plain)
    used = {name for name in plain if count[name] == 1}
    found = []
    number: Counter[str] = Counter()
    for name in plain:
        made = name
        while count[name] > 1 and (made == name or made in used):
            number[name] += 1
            made = f"{name}-{number[name]}"
        used.add(made)
        found.append(made)
    return found


def check_prompts(model: TextTo3DModel, objects: Sequence[Wanted]) -> None:
    """Check that a model can make the objects, before the first one is made.

    Raises:
        UserError: the model does not know a word of a prompt, a prompt has too many words, or several objects of a
            prompt are wanted from a model that takes no noise.
    """
    from diffdistill.text3d.objects import takes_noise

    prompts = [each.prompt for each in objects]
    model.embedder(prompts)
    read = [model.embedder.reads(prompt) for prompt in prompts]
    if len(set(read)) < len(read) and not takes_noise(model):
        most, count = Counter(read).most_common(1)[0]
        same = dict.fromkeys(prompt for prompt, words in zip(prompts, read, strict=True) if words == most)
        raise UserError(
            f"{count} objects of the prompt {' or '.join(map(repr, same))} are asked for; this model takes no noise, "
            "so they would be one and the same"
        )
