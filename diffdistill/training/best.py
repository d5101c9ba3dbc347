"""The averaged weights of the best validation of a run, in a file of its folder.

Each checkpoint keeps the file that was there when it was written, as a hard link where the disk can: the file is never
changed, but replaced. A run that continues from this checkpoint finds it again, whatever came after.
"""

from __future__ import annotations

import math
import os
import shutil
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
        protocol: how that score was measured.
    """

    def __init__(self, run: Path, samples: int) -> None:
        self.file, self.score, self.samples, self.protocol = run / FILE, math.inf, -1, ""
        try:
            with safe_open(self.file, framework="pt") as stored:
                about = stored.metadata() or {}
            score, at, protocol = float(about["score"]), int(about["samples"]), about["protocol"]
        except (OSError, SafetensorError, KeyError, ValueError):
            return
        if 0 < at <= samples and math.isfinite(score):
            self.score, self.samples, self.protocol = score, at, protocol

    def offer(self, score: float, samples: int, weights: Mapping[str, Tensor], protocol: str = "") -> None:
        """Keep these weights if their score is below the least so far, or if that was measured in another way."""
        better = score < self.score or protocol != self.protocol
        if samples == 0 or not math.isfinite(score) or not better:  # the start is no product
            return
        about = {"score": repr(score), "samples": str(samples), "protocol": protocol}
        write_atomic(self.file, save({name: value.contiguous().cpu() for name, value in weights.items()}, about))
        self.score, self.samples, self.protocol = score, samples, protocol

    def keep(self, checkpoint: Path) -> None:
        """Leave the file in a checkpoint too."""
        if self.samples >= 0:
            _link(self.file, checkpoint / FILE)

    @classmethod
    def since(cls, run: Path, samples: int, checkpoint: Path | None) -> Best:
        """The best of a run that continues: that of the checkpoint or, where it has none, of the run's own folder.

        Args:
            run: the run's folder.
            samples: samples that the run has seen.
            checkpoint: the folder from which it continues; None for a run that starts.
        """
        if checkpoint is not None and cls(checkpoint, samples).samples >= 0:
            _link(checkpoint / FILE, run / FILE)
        elif checkpoint is not None and checkpoint.resolve().parent != run.resolve():
            (run / FILE).unlink(missing_ok=True)  # of another run
        found = cls(run, samples)
        if checkpoint is not None and found.samples < 0:
            (run / FILE).unlink(missing_ok=True)  # of an end that was given up
        return found

    def weights(self, like: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The weights, or None if there are none, or if the file does not hold what it should.

        Args:
            like: tensors of the names and shapes that are wanted.
        """
        if self.samples < 0:
            return None
        try:
            with safe_open(self.file, framework="pt") as stored:
                found = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
        except (OSError, SafetensorError):
            return None
        whole = {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in like.items()}
        return found if whole and all(bool(value.isfinite().all()) for value in found.values()) else None


def _link(source: Path, target: Path) -> None:
    """Another name of the same file or, where there are no links, a copy of it."""
    hidden = target.with_name(f".{target.name}.part")
    hidden.unlink(missing_ok=True)
    try:
        os.link(source, hidden)
    except OSError:
        shutil.copyfile(source, hidden)
    hidden.replace(target)
