"""What races of recipes share: a training run that is made once, its comparison with the teacher, a table's cells."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from diffdistill.files import write_json_atomic

KEYS = ("kd", "variety", "vendi")
COLUMNS = "KD | variety | effective images"
MADE_FROM = "made_from.json"


def train(run: Path, config: str, options: Mapping[str, str]) -> None:
    """Train `config` with `options` into the folder `run`; what is there already is kept.

    Raises:
        SystemExit: the folder holds a run of other settings.
    """
    record = made_from(config, options)
    if (run / "export").is_dir():
        check_made_from(run, record)
        return
    settings = {**options, "output_dir": str(run), "overwrite": "true"}
    argv = [config, *(f"--{key}={value}" for key, value in settings.items())]
    subprocess.run([sys.executable, "-m", "diffdistill", "train", *argv], check=True, stdout=sys.stderr)
    write_json_atomic(run / MADE_FROM, record)


def made_from(config: str, options: Mapping[str, str]) -> dict[str, Any]:
    """All settings of a run, and of the run from which it starts, if there is one."""
    record: dict[str, Any] = {"config": yaml.safe_load(Path(config).read_text()), "options": dict(options)}
    if start := options.get("method.start"):
        record["start"] = json.loads((Path(start).parent / MADE_FROM).read_text())
    return record


def check_made_from(run: Path, record: Mapping[str, Any]) -> None:
    """Raise SystemExit unless the run in this folder was made from these settings."""
    kept = run / MADE_FROM
    if not kept.is_file() or json.loads(kept.read_text()) != record:
        raise SystemExit(f"{run} holds a run of other settings, or has no {MADE_FROM}; remove it or name another --out")


def compared(students: Mapping[str, Path], out: Path, *more: str) -> list[dict[str, Any]]:
    """Rows of `diffdistill eval compare` of the runs, by the tuning encoders and over the embedded teacher."""
    argv = ["eval", "compare", "--students", *(f"{name}={run / 'export'}" for name, run in students.items())]
    argv += ["--seeds", "0", "--judging", "--out", str(out), *more]
    done = subprocess.run([sys.executable, "-m", "diffdistill", *argv], check=True, stdout=subprocess.PIPE)
    return [row for row in json.loads(done.stdout)["rows"] if row["name"] in students]


def cells(row: Mapping[str, Any]) -> list[str]:
    """KD, variety and effective images on each encoder, in the order of `COLUMNS`."""
    return [
        ", ".join("-" if value is None else f"{value:.2f}".removeprefix("0") for value in row[key].values())
        for key in KEYS
    ]
