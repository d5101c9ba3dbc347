"""The averaged weights of the best validation of a run, in a file of its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffdistill.files import write_atomic

FILE = "best.safetensors"


class Best:
    """The weights of the least score so far.

    Args:
        run: the run's folder; the file in it is read if it is of this run's past.
        samples: samples that the run has seen. A file of later ones is of an end that was given up, and is left out.

    Attributes:
        score: the least score; infinite where there is none.
        samples: samples that the run had seen at that validation.
    """

    def __init__(self, run: Path, samples: int) -> None:
        self.file, self.score, self.samples = run / FILE, math.inf, -1
        try:
            with safe_open(self.file, framework="pt") as stored:
                about = stored.metadata() or {}
            score, at = float(about["score"]), int(about["samples"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return
        if 0 < at <= samples and math.isfinite(score):
            self.score, self.samples = score, at

    def offer(self, score: float, samples: int, weights: Mapping[str, Tensor]) -> None:
        """Keep these weights if their score is below the least so far."""
        if samples == 0 or not score < self.score:  # the start is no product
            return
        about = {"score": repr(score), "samples": str(samples)}
        write_atomic(self.file, save({name: value.contiguous().cpu() for name, value in weights.items()}, about))
        self.score, self.samples = score, samples

    def weights(self) -> dict[str, Tensor] | None:
        """The weights, or None if there are none."""
        if self.samples < 0:
            return None
        with safe_open(self.file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in sorted(stored.keys())}
