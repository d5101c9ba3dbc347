"""What a model, a judge and true renders are known by: SHA-256, 64 hex digits."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from diffdistill.errors import UserError
from diffdistill.text3d.evaluation.pictures import as_bytes
from diffdistill.text3d.measures import Ruler
from diffdistill.text3d.model import CONFIG, WEIGHTS
from diffdistill.text3d.things.catalogue import Prompt


def digest_of_model(folder: str | Path) -> str:
    """Of the files of a saved model.

    Raises:
        UserError: a file is missing.
    """
    found = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        try:
            found.update(hashlib.sha256((Path(folder) / name).read_bytes()).digest())
        except OSError as error:
            raise UserError(f"there is no text-to-3D model at {folder}: {name} is missing") from error
    return found.hexdigest()


def digest_of_judge(judge: nn.Module) -> str:
    """Of a judge's weights."""
    found = hashlib.sha256()
    for name, value in sorted(judge.state_dict().items()):
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def digest_of_truth(ruler: Ruler, prompts: list[Prompt]) -> str:
    """Of the pixels of true renders."""
    return hashlib.sha256(as_bytes(ruler.truth(prompts)).numpy().tobytes()).hexdigest()
