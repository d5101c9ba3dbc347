"""Prompt lists, records and captions: what is read, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffdistill.data.prompts import read_captions, read_prompt_records, read_prompts
from diffdistill.errors import UserError


def test_what_is_read(tmp_path: Path) -> None:
    text, records, captions = tmp_path / "a.txt", tmp_path / "a.jsonl", tmp_path / "c.txt"
    text.write_text(" a cat \n\n\na dog\n")
    records.write_text('{"prompt": "a cät", "tag": "x", "n": [1]}\n\n{"prompt": "a dog"}\n')
    captions.write_text("a cat\r\na dog \n")
    assert read_prompts(text) == ["a cat", "a dog"]
    assert read_prompt_records(text) == [{"prompt": "a cat"}, {"prompt": "a dog"}]
    assert read_prompt_records(records) == [{"prompt": "a cät", "tag": "x", "n": [1]}, {"prompt": "a dog"}]
    assert read_captions(captions) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("read", "name", "content", "says"),
    [
        (read_prompts, "a.txt", b" \n\n", "holds no prompt"),
        (read_prompts, "a.txt", b"\xff\xfe", "is not UTF-8"),
        (read_prompt_records, "a.jsonl", b"\n", "holds no prompt"),
        (read_prompt_records, "a.jsonl", b'{"prompt": "x"}\n{"prompt"\n', "line 2 is not JSON"),
        (read_prompt_records, "a.jsonl", b'["x"]\n', "line 1 should be an object"),
        (read_prompt_records, "a.jsonl", b'{"prompt": 3}\n', 'with a "prompt" of one line'),
        (read_prompt_records, "a.jsonl", b'{"prompt": "a\\nb"}\n', 'with a "prompt" of one line'),
        (read_captions, "c.txt", b"a\n\nb\n", "line 2 is empty"),
        (read_captions, "c.txt", b"", "line 1 is empty"),
    ],
)
def test_what_is_refused(read: Callable[[Path], object], name: str, content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / name
    with pytest.raises(UserError, match="there is no .* file"):
        read(file)
    file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read(file)
