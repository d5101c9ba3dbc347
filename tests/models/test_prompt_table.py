"""A table of embedded prompts gives the rows that embedding gives, from memory or from a file that is written once."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_families import save_tiny_sana, save_tiny_sdxl
from tiny_pipeline import save_tiny_pipeline

from diffdistill.diffusion.condition import Condition, take_rows
from diffdistill.errors import UserError
from diffdistill.models import prompt_table
from diffdistill.models.prompt_table import embed_prompts, table_bytes
from diffdistill.models.teacher import Teacher, load_teacher

PROMPTS = [f"red apple {i}" if i % 3 else "" for i in range(7)]
FAMILIES = {"sd": save_tiny_pipeline, "sdxl": save_tiny_sdxl, "sana": save_tiny_sana}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher(str(FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "teacher")))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache; every table is a file there, made in batches of 3."""
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prompt_table, "IN_MEMORY", 0)
    monkeypatch.setattr(prompt_table, "BATCH", 3)
    return tmp_path / "cache"


def same(one: Condition, other: Condition) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    assert isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return one.dtype == other.dtype and torch.equal(one, other)


def test_a_small_table_is_in_memory(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    table = embed_prompts(teacher, PROMPTS, "cpu")
    assert len(table) == 7 and not (tmp_path / "cache").exists()
    assert same(table.rows([5, 0, 5]), take_rows(teacher.embed(PROMPTS), [5, 0, 5]))


def test_a_large_table_is_a_file_and_the_same(teacher: Teacher, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = teacher.embed(PROMPTS, 3)
    table = embed_prompts(teacher, PROMPTS, "cpu")
    (file,) = cache.iterdir()
    assert file.suffix == ".safetensors" and file.stat().st_size < table_bytes(teacher, 7) + 2000
    for rows in ([3], [6, 0, 0, 2]):
        assert same(table.rows(rows), take_rows(expected, rows))
    monkeypatch.setattr(Teacher, "embed", None)  # the second time nothing is embedded
    assert same(embed_prompts(teacher, PROMPTS, "cpu").rows([1, 4]), take_rows(expected, [1, 4]))


def test_the_file_is_of_these_prompts_and_encoders(teacher: Teacher, cache: Path) -> None:
    embed_prompts(teacher, PROMPTS, "cpu")
    embed_prompts(teacher, PROMPTS[::-1], "cpu")
    assert len(list(cache.iterdir())) == 2
    with torch.no_grad():
        next(teacher.backbone.parameters()).view(-1)[0] += 1  # which no embedding depends on
    embed_prompts(teacher, PROMPTS, "cpu")
    assert len(list(cache.iterdir())) == 2
    for encoder in teacher.text_encoders().values():
        with torch.no_grad():
            next(encoder.parameters()).view(-1)[0] += 1
    assert same(embed_prompts(teacher, PROMPTS, "cpu").rows([2]), take_rows(teacher.embed(PROMPTS, 3), [2]))
    assert len(list(cache.iterdir())) == 3


def test_a_torn_file_is_made_again(teacher: Teacher, cache: Path) -> None:
    expected = embed_prompts(teacher, PROMPTS, "cpu").rows([0, 6])
    (file,) = cache.iterdir()
    for data in (b"", file.read_bytes()[:-1], b"{}" * 100):
        file.write_bytes(data)
        assert same(embed_prompts(teacher, PROMPTS, "cpu").rows([0, 6]), expected)
    assert list(cache.iterdir()) == [file]


def test_a_file_that_lacks_a_row_is_made_again(teacher: Teacher, cache: Path) -> None:
    expected = embed_prompts(teacher, PROMPTS, "cpu").rows([0, 6])
    (file,) = cache.iterdir()
    with safe_open(file, "pt") as opened:
        metadata, parts = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    name = next(name for name, part in sorted(parts.items()) if len(part) == 7)
    for short in (parts[name][:6].clone(), parts[name][:1].clone(), parts[name][0, 0].clone()):
        save_file({**parts, name: short}, file, metadata)
        assert same(embed_prompts(teacher, PROMPTS, "cpu").rows([0, 6]), expected)
    save_file({key: part for key, part in parts.items() if key != name} or {"x": torch.zeros(7)}, file, metadata)
    assert same(embed_prompts(teacher, PROMPTS, "cpu").rows([0, 6]), expected)


def test_no_room_is_one_line(teacher: Teacher, cache: Path) -> None:
    cache.write_text("a file is here")
    with pytest.raises(UserError, match="embeddings of 7 prompts, .* GiB, cannot be written .* set DIFFDISTILL_CACHE"):
        embed_prompts(teacher, PROMPTS, "cpu")


def test_other_processes_wait_for_the_first(tmp_path: Path, cache: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "teacher")
    code = (
        "import sys; from diffdistill.models import prompt_table; prompt_table.IN_MEMORY = 0\n"
        "from diffdistill.models.teacher import Teacher, load_teacher\n"
        f"teacher = load_teacher({str(folder)!r}); Teacher.embed = None; print('ready', flush=True)\n"
        f"table = prompt_table.embed_prompts(teacher, {PROMPTS!r}, 'cpu')\n"
        "print(table.rows([4, 1]).double().sum().item())"
    )
    environment: dict[str, Any] = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None and waiting.stdout.readline() == "ready\n"
        rows = embed_prompts(load_teacher(str(folder)), PROMPTS, "cpu").rows([4, 1])
        assert isinstance(rows, torch.Tensor)
        assert float(waiting.communicate(timeout=60)[0]) == rows.double().sum().item()
    assert waiting.returncode == 0
