"""The JSON file is whole or absent; the table is compared with a golden one."""

import doctest
import json
from pathlib import Path

import pytest

from diffdistill import files
from diffdistill.evaluation import table as report
from diffdistill.evaluation.table import format_table
from diffdistill.files import write_json_atomic

GOLDEN = """\
name                   steps (nfe)  guidance           KD ± se     FD  KD/T  variety/T     n  s/image
---------------------  -----------  --------  ----------------  -----  ----  ---------  ----  -------
real against real                -         -  -0.0008 ± 0.0021   87.1     -          -   900        -
teacher                   50 (100)         3   0.0123 ± 0.0030  104.2  1.00       1.00   900     1.23
student (one step)               1         1   0.0456 ± 0.0041  131.0     -          -  1000   0.0123
no standard error yet            4       7.5            0.2000      -     -          -     -        -
"""


def test_table_is_golden() -> None:
    table = format_table(
        {
            "real against real": {"kd": -0.00081, "kd_se": 0.00212, "fd": 87.06, "n": 900, "seed": 0},
            "teacher": {
                "steps": 50,
                "nfe": 100,
                "guidance": 3.0,
                "kd": 0.01234,
                "kd_se": 0.003,
                "fd": 104.2,
                "kd_ratio": 1.0,
                "variety_ratio": 1.0,
                "n": 900,
                "seconds_per_image": 1.2345,
            },
            "student (one step)": {
                "steps": 1,
                "guidance": 1.0,
                "kd": 0.0456,
                "kd_se": 0.0041,
                "fd": 131,
                "n": 1000,
                "seconds_per_image": 0.01234,
            },
            "no standard error yet": {"steps": 4, "guidance": 7.5, "kd": 0.2, "fd": None},
        }
    )
    assert table.splitlines() == GOLDEN.splitlines()


def test_json_round_trip_into_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report.json"
    content = {"kd": 0.1, "prompts": ["chien à lunettes"], "none": None}
    write_json_atomic(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    assert path.read_text(encoding="utf-8").endswith("}\n")
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # readable by whom an ordinary file is


@pytest.mark.parametrize(("bad", "error"), [({"kd": float("nan")}, ValueError), ({"kd": object()}, TypeError)])
def test_failed_write_leaves_the_old_file(tmp_path: Path, bad: object, error: type[Exception]) -> None:
    path = tmp_path / "report.json"
    write_json_atomic(path, {"kd": 1})
    with pytest.raises(error):
        write_json_atomic(path, bad)
    assert json.loads(path.read_text()) == {"kd": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_failed_rename_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        write_json_atomic(tmp_path / "report.json", {})
    assert list(tmp_path.iterdir()) == []


def test_docstring_examples() -> None:
    result = doctest.testmod(report)
    assert result.attempted
    assert not result.failed
