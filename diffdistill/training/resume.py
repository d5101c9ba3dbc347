"""What a run starts from: nothing, or a checkpoint of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from diffdistill.errors import UserError

from .checkpoint import later_checkpoints, latest_checkpoint, load_checkpoint, why_unreadable
from .continuation import Identity, refuse_another_run, remarks_on_the_clock
from .settings import TrainingSettings


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from, read and compared with the run.

    Args:
        folder: the checkpoint's; None where the run starts at 0.
        tensors, values: its content.
        remarks: lines for the user.
    """

    folder: Path | None = None
    tensors: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Path, resume: str | None, identity: Identity, settings: TrainingSettings) -> Start:
        """Read what `resume` names.

        Args:
            run: the run's folder.
            resume: "latest", a checkpoint's folder, or None to start at 0. A run that was ended before its first
                checkpoint starts at 0 with "latest" too.
            identity, settings: the present run's.

        Raises:
            UserError: the checkpoint cannot be read, or is one of a run with other settings.
        """
        folder = _checkpoint(run, resume)
        if folder is None:
            return cls(remarks=(f"there is no checkpoint in {run} yet: the run starts at 0",) if resume else ())
        tensors, values = load_checkpoint(folder)
        refuse_another_run(folder, values, identity, settings)
        remarks = remarks_on_the_clock(values, settings)
        if resume == "latest" and (torn := later_checkpoints(folder)):
            remarks = (*remarks, f"{', '.join(torn)}: torn, so the run continues from {folder.name}")
        return cls(folder, tensors, values, remarks)


def _checkpoint(run: Path, resume: str | None) -> Path | None:
    """The folder that `resume` names, or None to start at 0.

    Raises:
        UserError: checkpoints of which none can be read, or one of another run where this one has its own.
    """
    own = sorted(path.name for path in run.glob("checkpoint-*"))
    if resume is None:
        return None
    if resume == "latest":
        folder = latest_checkpoint(run)
        if folder is None and own:
            raise UserError(
                f"no checkpoint in {run} can be read: {own[-1]}, the last one, {why_unreadable(run / own[-1])}; "
                "add --overwrite true to start anew, or name another output_dir"
            )
        return folder
    folder = Path(resume)
    if not folder.is_dir():
        raise UserError(f"there is no checkpoint folder {folder}; --resume takes one, or the word latest")
    if own and folder.resolve().parent != run.resolve():
        raise UserError(f"{folder} is another run's, and {run} holds checkpoints of its own; name another output_dir")
    return folder
