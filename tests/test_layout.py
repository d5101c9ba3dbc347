"""The shape of the house: what only some rooms may name, and how long a file may be."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "diffdistill").rglob("*.py"))
FILES = [
    *PACKAGE,
    *(file for room in ("tests", "bench", "train", "eval") for file in sorted((ROOT / room).rglob("*.py"))),
]
ONLY_IN = {  # a name, and where it may stand
    "the attribute unet": (r"(?<!families)\.unet\b", "models/families"),
    "a class of diffusers pipelines": (r"\b(StableDiffusion(XL)?|Sana|Flux|PixArt\w*)Pipeline\b", "models/families"),
    "the loader of the emoji set": (r"\bload_emoji\b", "data"),
}


@pytest.mark.parametrize("what", ONLY_IN)
def test_what_a_room_keeps_to_itself(what: str) -> None:
    pattern, room = ONLY_IN[what]
    outside = [file for file in PACKAGE if not file.is_relative_to(ROOT / "diffdistill" / room)]
    found = [str(file.relative_to(ROOT)) for file in outside if re.search(pattern, file.read_text())]
    assert found == []


def test_files_are_short() -> None:
    lengths = sorted(len(file.read_text().splitlines()) for file in FILES)
    assert lengths[len(lengths) // 2] <= 150 and lengths[len(lengths) * 9 // 10] <= 300 and lengths[-1] <= 400


def test_the_training_loop_can_be_read_at_one_sitting() -> None:
    assert len((ROOT / "diffdistill" / "training" / "loop.py").read_text().splitlines()) <= 250
