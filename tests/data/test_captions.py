"""Which caption is which image's: by name in every spelling people use, by number, beside the image, or in order."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from diffdistill.data.captions import captions_for, captions_of_file
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """0.png, 1.png, 2.png, 10.png in two folders; image k's caption is "words K"."""
    for name in ("a/0.png", "a/10.png", "b/1.png", "b/2.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(png())
    return tmp_path / "set"


WORDS = ["words 0", "words 10", "words 1", "words 2"]  # a/0, a/10, b/1, b/2
NAMES = {
    "paths": ["b/2.png", "a/0.png", "a/10.png", "b/1.png"],
    "paths with ./": ["./b/2.png", "./a/0.png", "./a/10.png", "./b/1.png"],
    "paths of Windows": ["b\\2.png", "a\\0.png", "a\\10.png", "b\\1.png"],
    "paths of another place": ["/data/b/2.png", "/data/a/0.png", "/data/a/10.png", "/data/b/1.png"],
    "names": ["2.png", "0.png", "10.png", "1.png"],
    "names of the originals": ["2.JPG", "0.jpg", "10.jpg", "1.webp"],
    "stems": ["2", "0", "10", "1"],
    "paths without endings": ["b/2", "a/0", "a/10", "b/1"],
}
SHUFFLED = ["words 2", "words 0", "words 10", "words 1"]


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_a_file_that_names_images_pairs_by_name(images: Path, tmp_path: Path, names: list[str], form: str) -> None:
    rows = [*zip(names, SHUFFLED, strict=True), ("elsewhere/77.png", "other words")]
    if form == "jsonl":
        text = "".join(json.dumps({"file_name": name, "text": words}) + "\n" for name, words in rows)
    else:
        tab = "\t" if form == "tsv" else ","
        text = f"Caption{tab}Image\n" + "".join(f"{words}{tab}{name}\n" for name, words in rows)
    file = tmp_path / f"captions.{form}"
    file.write_text(text)
    found, how = captions_for(captions_of_file(file), open_source(images), 4)
    assert found == WORDS
    field = "file_name" if form == "jsonl" else "Image"
    assert how == {"file": str(file), "paired_by": "name", "field": field, "captions_of_other_images": 1}
    assert captions_for(captions_of_file(file), open_source(images), 2)[0] == WORDS[:2]


def coco(names: list[tuple[int, str]], captions: list[tuple[int, str]]) -> str:
    return json.dumps({
        "images": [{"id": number, "file_name": name} for number, name in names],
        "annotations": [{"image_id": number, "id": k, "caption": words} for k, (number, words) in enumerate(captions)],
    })  # fmt: skip


def test_cocos_captions_pair_by_the_images_names_and_the_first_of_several_counts(tmp_path: Path) -> None:
    names = [(391895, "COCO_val2014_000000391895.jpg"), (42, "COCO_val2014_000000000042.jpg")]
    (tmp_path / "set").mkdir()
    for _, name in names:
        (tmp_path / "set" / name).write_bytes(png())  # a PNG under a .jpg's name is read all the same
    annotations = [(391895, "a man"), (42, "a dog"), (391895, "a man with a red helmet"), (7, "nobody")]
    file = tmp_path / "captions_val2014.json"
    for listed in (names, []):  # with no list of images, by the number that a name ends in
        file.write_text(coco([*listed, (7, "7.jpg")] if listed else [], annotations))
        found, how = captions_for(captions_of_file(file), open_source(tmp_path / "set"), 2)
        assert found == ["a dog", "a man"]
        assert how["paired_by"] == ("name" if listed else "id")
        assert (how["further_captions_of_these_images"], how["captions_of_other_images"]) == (1, 1)


def test_ids_pair_where_they_fit_and_are_refused_where_they_half_fit(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    source = open_source(images)
    file.write_text("image_id,caption\n10,words 10\n2,words 2\n0,words 0\n1,words 1\n")
    found, how = captions_for(captions_of_file(file), source, 4)
    assert (found, how["paired_by"]) == (WORDS, "id")
    file.write_text("image_id,caption\n10,words 10\n3,words 2\n0,words 0\n1,words 1\n")
    with pytest.raises(UserError, match=r"the ids of image_id, 10, 3, 0 and 1 more, do not fit b/2\.png of"):
        captions_for(captions_of_file(file), source, 4)
    file.write_text("image_id,caption\n100,a\n101,b\n102,c\n103,d\n")  # of other images, and it says so
    with pytest.raises(UserError, match="the ids of image_id, 100, 101, 102 and 1 more, do not fit a/0.png, a/10.png"):
        captions_for(captions_of_file(file), source, 4)
    file.write_text("id,caption\n" + "".join(f"{100 + i},{words}\n" for i, words in enumerate(WORDS)))
    found, how = captions_for(captions_of_file(file), source, 4)  # numbers of nothing here: their order counts
    assert (found, how["paired_by"]) == (WORDS, "order")


@pytest.mark.parametrize("column", ["photo", "img", "Bild", "url"])
def test_a_column_of_any_name_that_holds_file_names_pairs_by_them(images: Path, tmp_path: Path, column: str) -> None:
    file, source = tmp_path / "a.csv", open_source(images)
    names = [f"https://host/{name}" if column == "url" else name for name in NAMES["paths"]]
    file.write_text(f"caption,{column}\n" + "".join(f"{w},{n}\n" for w, n in zip(SHUFFLED, names, strict=True)))
    found, how = captions_for(captions_of_file(file), source, 4)
    assert found == WORDS and (how["paired_by"], how["field"]) == ("name", column)
    file.write_text(
        f"caption,{column}\n" + "".join(f"{w},{n}\n" for w, n in zip(SHUFFLED, names[:3] + [""], strict=True))
    )
    with pytest.raises(UserError, match=f"line 5 has no {column}, but other captions do"):
        captions_for(captions_of_file(file), source, 4)
    file.write_text(f"caption,{column}\n" + "".join(f"{w},{n}.jpg\n" for w, n in zip(WORDS, "abcd", strict=True)))
    with pytest.raises(UserError, match=f"names images in {column}, a.jpg, b.jpg, c.jpg and 1 more, and .* has none"):
        captions_for(captions_of_file(file), source, 4)
    file.write_text(f"caption,{column}\n" + "".join(f"{w},x{n}\n" for w, n in zip(WORDS, "abcd", strict=True)))
    assert captions_for(captions_of_file(file), source, 4)[1]["paired_by"] == "order"  # names of nothing here


def test_names_as_data_sets_write_them_out(images: Path, tmp_path: Path) -> None:
    file, source = tmp_path / "a.jsonl", open_source(images)
    nested = [{"image": {"bytes": None, "path": f"{n}.png"}, "caption": f"words {n}"} for n in (2, 0, 10, 1)]
    floats = [{"image_id": float(n), "caption": f"words {n}"} for n in (2, 0, 10, 1)]
    for rows in (nested, floats):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert captions_for(captions_of_file(file), source, 4)[0] == WORDS
    listed = {
        "images": [{"id": 500 + n, "coco_url": f"http://host/val/{n}.png"} for n in (0, 1, 2, 10)],
        "annotations": [{"image_id": 500 + n, "caption": f"words {n}"} for n in (2, 0, 10, 1)],
    }
    file.with_suffix(".json").write_text(json.dumps(listed))
    assert captions_for(captions_of_file(file.with_suffix(".json")), source, 4)[0] == WORDS


@pytest.mark.parametrize("content", ["0 0.5 0.5 0.2 0.3\n", '{"caption": "a cat"}\n', "<?xml version='1.0'?>\n<a/>"])
def test_what_beside_an_image_is_no_caption_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "1.png").write_bytes(png())
    (tmp_path / "1.txt").write_text(content)
    with pytest.raises(UserError, match="1.txt beside it (holds no words|should hold one caption per line)"):
        open_source(tmp_path).captions()


def test_what_does_not_pair_is_named(images: Path, tmp_path: Path) -> None:
    file, source = tmp_path / "a.jsonl", open_source(images)

    def refused(*rows: tuple[str, str]) -> str:
        file.write_text("".join(json.dumps({"file_name": name, "text": words}) + "\n" for name, words in rows))
        with pytest.raises(UserError) as error:
            captions_for(captions_of_file(file), source, 4)
        return str(error.value)

    assert "has no caption for a/10.png, b/2.png of" in refused(("0.png", "x"), ("1.png", "y"))
    ambiguous = refused(*((f"{folder}/{k}.png", "x") for folder in "xy" for k in (0, 1, 2, 10)))
    assert "in a way that fits several of them" in ambiguous
    assert "line 2 has no file_name, but other captions do" in refused(("0.png", "x"), ("", "y"))
    file.with_suffix(".txt").write_text("\n".join(WORDS[:3]))
    with pytest.raises(UserError, match=r"a\.txt holds 3 captions, .* 4 images"):
        captions_for(captions_of_file(file.with_suffix(".txt")), source, 4)


def test_lines_pair_in_the_order_of_numbers_and_the_report_says_so(images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(WORDS))
    found, how = captions_for(captions_of_file(tmp_path / "a.txt"), open_source(images), 4)
    assert found == WORDS
    assert how["paired_by"] == "order" and how["order_of_images"] == "by name, runs of digits by their value"


def test_names_that_differ_in_normal_form_alone_are_one(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "e\u0301.png").write_bytes(png())
    (tmp_path / "a.csv").write_text("file,caption\n\u00e9.png,an accent\n")
    assert captions_for(captions_of_file(tmp_path / "a.csv"), open_source(tmp_path / "set"), 1)[0] == ["an accent"]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("beside", ["txt", "json", "both"])
def test_captions_beside_the_images_are_known(tmp_path: Path, kind: str, beside: str) -> None:
    files = {}
    for number in (9, 10):
        files[f"{number}.png"] = png()
        if beside != "json":
            files[f"{number}.txt"] = b"\xef\xbb\xbfwords %d\r\n" % number
        if beside != "txt":
            files[f"{number}.json"] = json.dumps({"url": "x", "key": "0", "caption": f"words {number}"}).encode()
    place = tmp_path / f"set.{kind}"
    if kind == "folder":
        place.mkdir()
        for name, data in files.items():
            (place / name).write_bytes(data)
    elif kind == "zip":
        with zipfile.ZipFile(place, "w") as packed:
            for name, data in files.items():
                packed.writestr(name, data)
    else:
        with tarfile.open(place, "w") as tar:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    source = open_source(place)
    assert source.captions() == ["words 9", "words 10"] and not source.left_out


def test_a_missing_or_empty_caption_beside_an_image_is_named(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(png())
    assert open_source(tmp_path).captions() is None
    (tmp_path / "1.txt").write_text("words")
    with pytest.raises(UserError, match=r"2\.png has no caption beside it, but other images do"):
        open_source(tmp_path).captions()
    for name, content, says in (
        ("2.txt", "\n", "2.txt beside it is empty"),
        ("2.txt", "a\0b", "NUL"),
        ("2.json", "[]", "should be an object"),
        ("2.json", "{", "not JSON"),
        ("2.json", '{"url": "x"}', 'it has no "caption", but url'),
        ("2.json", '{"caption": null}', "caption should be text, but is 'None'"),
        ("2.json", '{"caption": ["a", "b"]}', "caption should be text"),
        ("2.json", '{"caption": "\\ud800"}', "half of a character"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=says):
            open_source(tmp_path).captions()
        (tmp_path / name).unlink()


def test_endings_count_in_any_case_beside_an_image_too(tmp_path: Path) -> None:
    for name in ("1.PNG", "2.Png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "1.TXT").write_text("one")
    (tmp_path / "2.Json").write_text('{"text": "two"}')
    (tmp_path / "3.png").write_bytes(png())
    (tmp_path / "3.caption").write_text("three\n")
    source = open_source(tmp_path)
    assert source.captions() == ["one", "two", "three"] and not source.left_out
