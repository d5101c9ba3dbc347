"""One reader of prompts and captions: encodings, line ends, formats, columns, and what is refused by name."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from diffdistill.data.captions import captions_of_file
from diffdistill.data.prompts import read_captions, read_prompt_records, read_prompts
from diffdistill.data.text_files import lines_of
from diffdistill.errors import UserError

LINES = ["a red apple", "ein grüner Apfel", "un\u2028carré", "vertical\x0btab", "next\x85line", "青いリンゴ"]
MARKED = {
    "utf-8": b"", "utf-8-sig": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE,
}  # fmt: skip


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_text_is_the_same_in_every_encoding_and_with_every_line_end(tmp_path: Path, encoding: str, end: str) -> None:
    mark = b"" if encoding == "utf-8-sig" else MARKED[encoding]
    (tmp_path / "a.txt").write_bytes(
        mark + end.join(LINES).encode(encoding) + end.encode(encoding.removesuffix("-sig"))
    )
    assert read_prompts(tmp_path / "a.txt") == LINES
    assert read_captions(tmp_path / "a.txt") == LINES


@pytest.mark.parametrize("encoding", MARKED)
def test_records_and_tables_have_no_mark_either(tmp_path: Path, encoding: str) -> None:
    def write(name: str, text: str) -> Path:
        mark = b"" if encoding == "utf-8-sig" else MARKED[encoding]
        (tmp_path / name).write_bytes(mark + text.encode(encoding))
        return tmp_path / name

    records = "".join(json.dumps({"prompt": line}, ensure_ascii=False) + "\r\n" for line in LINES)
    assert read_prompts(write("a.jsonl", records)) == LINES
    table = 'prompt,n\r\n"a ""red"", round apple",1\r\nüber,2\r\n'
    assert read_prompts(write("a.csv", table)) == ['a "red", round apple', "über"]
    assert read_prompts(write("a.CSV", table.replace(",", ";").replace('red"";', 'red"",')))[1] == "über"
    assert read_prompts(write("a.tsv", "Prompt\tn\na b\t1\n")) == ["a b"]
    coco = json.dumps({"annotations": [{"image_id": 1, "caption": "A red apple.\n"}, {"image_id": 1, "caption": "x"}]})
    assert read_prompts(write("a.json", coco)) == ["A red apple.", "x"]


def test_marks_of_joined_files_and_empty_lines_are_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + b"a\n\n" + codecs.BOM_UTF8 + b" b \n" + codecs.BOM_UTF8)
    assert read_prompts(tmp_path / "a.txt") == ["a", "b"]
    assert lines_of("a\n\nb\n") == ["a", "", "b"] and lines_of("") == []


@pytest.mark.parametrize(
    ("keys", "what", "expected"),
    [
        (("Prompt", "text"), "prompt", "Prompt"),
        (("caption", "prompt"), "prompt", "prompt"),
        (("caption", "prompt"), "caption", "caption"),
        (("id", "TEXT"), "prompt", "TEXT"),
        (("captions", "url"), "caption", "captions"),
    ],
)
def test_the_field_is_found_by_its_name(tmp_path: Path, keys: tuple[str, ...], what: str, expected: str) -> None:
    read: Callable[[Path], list[str]] = read_prompts if what == "prompt" else read_captions
    (tmp_path / "a.jsonl").write_text(json.dumps({key: f"in {key}" for key in keys}))
    (tmp_path / "a.csv").write_text(",".join(keys) + "\n" + ",".join(f"in {key}" for key in keys))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.csv") == [f"in {expected}"]


def test_a_column_can_be_named_and_records_are_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("Titel\tclass\nein Apfel\tfruit\n")
    assert read_prompt_records(f"{tmp_path}/a.tsv::Titel") == [
        {"Titel": "ein Apfel", "class": "fruit", "prompt": "ein Apfel"}
    ]
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cät", "tag": "x", "n": [1]}\n\n{"prompt": "a dog"}\n')
    assert read_prompt_records(tmp_path / "a.jsonl") == [{"prompt": "a cät", "tag": "x", "n": [1]}, {"prompt": "a dog"}]
    (tmp_path / "odd::name.txt").write_text("a dog")
    assert read_prompts(tmp_path / "odd::name.txt") == ["a dog"]


def test_a_quoted_field_may_hold_a_line_end_and_the_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('caption,n\nplain,"two\nlines"\n,2\n', newline="")
    with pytest.raises(UserError, match="line 4 is empty"):
        read_captions(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text('caption,n\nplain,"two\nlines"\nb,2\n', newline="")
    assert read_prompts(tmp_path / "a.csv") == ["plain", "b"]
    (tmp_path / "a.csv").write_text('caption,n\n"two\nlines",1\nplain,2\n', newline="")
    for read in (read_prompts, read_captions):  # so looks a quote that nobody meant, and what it swallows
        with pytest.raises(UserError, match="line 2: the (prompt|caption) has several lines"):
            read(tmp_path / "a.csv")


def test_quotes_of_a_tsv_are_letters_unless_they_are_around_a_whole_field(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('Prompt\tn\n"Hello" on a sign\t1\n"a ""red"" apple"\t2\n"open\t3\n')
    assert read_prompts(tmp_path / "a.tsv") == ['"Hello" on a sign', 'a "red" apple', '"open']


def test_space_after_a_comma_is_no_part_of_a_field(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('file, caption\na.png, "a red, round apple"\nb.png, a pear\n')
    assert read_captions(tmp_path / "a.csv") == ["a red, round apple", "a pear"]


REFUSED = {
    "a.txt": [
        (b" \n\n", "holds no|is empty"), (b"\xff\xfe", "holds no"), (b"caf\xe9\n", "is not UTF-8 text"),
        ("a\nb".encode("utf-16-le"), "UTF-16 without a byte order mark"), (b"\xff\xfea", "is not UTF-16-LE text"),
        (b'{"prompt": "x"}\n{"prompt": "y"}\n', "but holds JSON"), (b'[\n"x",\n"y"\n]', "but holds JSON"),
        (b"1.jpg#0\tA child\n1.jpg#1\tA dog\n", "file names before the texts"), (b"a\tb\nc\td\n", "a table of tabs"),
        (b"image,caption\n1.jpg,A child\n", "a table with a"),
    ],
    "b.txt": [
        (b"0.png a lemon\n1.png a pear\n", "file names before"), (b"0.png,lemon\n1.png,pear\n", "file names before"),
        (b"0.png|lemon\n1.png|pear\n", "file names before"), (b"prompt\na red apple\n", "a column with a header line"),
        (b"image name,caption\n1,a red apple\n", "a table with a"),
        (b"name| no| comment\n1| 0| Two men .\n", "a table"),
        (b'[{"prompt": "red apple"},\n{"prompt": "blue ', "JSON"), (b'# prompts\n{"prompt": "red apple"}\n', "JSON"),
        (b"<?xml version='1.0'?>\n<a/>\n", "markup"), (b"{\\rtf1 text}\n", "markup"),
    ],
    "a.jsonl": [
        (b"\n", "holds no"), (b'{"caption": "x"}\n{"caption"\n', "line 2 is not JSON"),
        (b'["x"]\n', "should be an object"),
        (b'{"caption": 3}\n', "caption should be text"), (b'{"tag": "x"}\n', "it has no .*, but tag"),
        (b'{"text": "x", "captions": "y"}\n', "it has text, captions; write FILE::NAME"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"caption": ""}\n', "empty"), (b'{"caption": "\\ud800"}\n', "half of a character"),
    ],
    "a.csv": [
        (b"", "no .*, but nothing"), (b"a red apple\na pear\n", "header line: it has no"), (b"caption\n", "holds no"),
        (b"caption,n\na red, round apple,1\n", "line 2 has 3 fields and the header 2"),
        (b"caption,n\nx\n", "has 1 fields"),
        (b'caption\n"x"y\n', "line 2 is no line of a table"), (b'caption\n"open\n', "no line of a table"),
        (b"caption,caption\nx,y\n", "2 columns called caption|caption, caption"), (b"caption,n\n,2\n", "empty"),
    ],
    "a.tsv": [(b"caption,n\nx,1\n", "it has no .*, but caption,n"),
        (b"caption\tn\nx\ty\tz\n", "no field may hold a tab")],
    "a.json": [
        (b"{", "is not JSON"), (b'["x", "y"]', "not COCO's captions"), (b'{"prompt": "x"}', "not COCO's captions"),
        (b'{"annotations": [{"image_id": 1, "category_id": 2}]}', "annotation 1 has no caption"),
        (b'{"annotations": []}', "holds no"),
    ],
    "a.parquet": [(b"PAR1", "is not a .* that can be read")], "prompts": [(b"x", "is not a .* that can be read")],
    "a.yaml": [(b"- x", "is not a .* that can be read")], "a.csv.gz": [(b"\x1f\x8b", "is not a .* that can be read")],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), [(n, *case) for n, cases in REFUSED.items() for case in cases])
def test_what_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    file = tmp_path / name
    for read, what in ((read_prompts, "prompt"), (read_captions, "caption"), (captions_of_file, "caption")):
        file.unlink(missing_ok=True)
        with pytest.raises(UserError, match=f"there is no {what} file"):
            read(file)
        file.write_bytes(content)
        with pytest.raises(UserError, match=says):
            read(file)


def test_a_folder_and_a_column_of_lines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match=r"a\.txt is a folder, not a prompt file"):
        read_prompts(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(UserError, match=r"a \.txt has no columns; leave out ::x"):
        read_prompts(f"{tmp_path}/b.txt::x")


def test_plain_prompts_that_only_look_odd_are_read(tmp_path: Path) -> None:
    odd = ["text, neon", "[a cat", "{curly} brace art", "a tab\there", "prompt", "red, blue, green", "2,3", '"quoted"']
    (tmp_path / "a.txt").write_text("\n".join(odd))
    assert read_prompts(tmp_path / "a.txt") == odd
