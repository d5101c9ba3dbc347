"""Progress: a bar on stderr, one JSON line per log step, trackers on request, grids of images."""

from __future__ import annotations

import json
import math
import secrets
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from diffdistill.data.save import save_grid
from diffdistill.errors import UserError


class Tracker:
    """Shows and writes progress on the main process; on other processes every call does nothing.

    Args:
        run: the run's folder; `log.jsonl`, `grids/` and `tensorboard/` are in it.
        samples, start: the bar's end and where it begins.
        report_to: "tensorboard" and "wandb" in any number.
        main: whether this is the main process.
    """

    def __init__(self, run: Path, samples: int, start: int, report_to: tuple[str, ...], main: bool) -> None:
        self.run, self.main = run, main
        self._boards: list[Any] = []
        if not main:
            return
        self._keep_log_up_to(start)
        self._log = (run / "log.jsonl").open("a")
        self._bar = tqdm(total=samples, initial=start, unit="img", dynamic_ncols=True, smoothing=0.05)
        if "tensorboard" in report_to:
            from torch.utils.tensorboard import SummaryWriter

            self._boards.append(SummaryWriter(str(run / "tensorboard"), purge_step=start + 1))
        if "wandb" in report_to:
            try:
                import wandb
            except ImportError as error:
                raise UserError("report_to wandb needs the package: pip install wandb") from error
            self._wandb = wandb.init(
                project="diffdistill", name=run.name, dir=str(run), id=_wandb_id(run), resume="allow"
            )
        else:
            self._wandb = None

    def log(self, samples: int, step: int, values: dict[str, float]) -> None:
        """One line of scalars, in the file, the bar and the trackers."""
        if not self.main:
            return
        plain = {key: value if math.isfinite(value) else None for key, value in values.items()}  # JSON has no NaN
        self._log.write(json.dumps({"samples": samples, "step": step, **plain}) + "\n")
        self._log.flush()
        shown = {k.removesuffix("/loss"): f"{v:.4g}" for k, v in values.items() if k.endswith("/loss")}
        if shown:  # numbers of a validation leave the losses standing
            self._bar.set_postfix(shown, refresh=False)
        for board in self._boards:
            for key, value in values.items():
                board.add_scalar(key, value, samples)
        if self._wandb is not None:
            self._wandb.log(values, step=samples)

    def advance(self, samples: int) -> None:
        """Move the bar by so many samples."""
        if self.main:
            self._bar.update(samples)

    def images(self, samples: int, images: Tensor) -> None:
        """A grid of images, (N, 3, H, W) in [0, 1], in a file and the trackers."""
        if not self.main:
            return
        grid = self.run / "grids" / f"{samples:010d}.png"
        save_grid(grid, images)
        for board in self._boards:
            board.add_images("validation", images.clamp(0, 1), samples)
        if self._wandb is not None:
            import wandb

            self._wandb.log({"validation": wandb.Image(str(grid))}, step=samples)

    def say(self, text: str) -> None:
        """One line for the user, above the bar."""
        if self.main:
            tqdm.write(text, file=getattr(self._bar, "fp", sys.stderr))

    def close(self) -> None:
        """End the bar, the file and the trackers."""
        if self.main:
            self._bar.close()
            self._log.close()
            for board in self._boards:
                board.close()
            if self._wandb is not None:
                self._wandb.finish()

    def _keep_log_up_to(self, start: int) -> None:
        """Drop lines after the checkpoint that the run continues from: those steps are done again."""
        path = self.run / "log.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _samples(line) <= start]
            part = path.with_suffix(".part")
            part.write_text("".join(line + "\n" for line in lines))
            part.replace(path)


def _wandb_id(run: Path) -> str:
    """The run's id, kept in its folder, so that a continuation adds to the same chart."""
    file = run / "wandb_id"
    if not file.exists():
        file.write_text(secrets.token_hex(8))
    return file.read_text().strip()


def _samples(line: str) -> float:
    try:
        return float(json.loads(line)["samples"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
