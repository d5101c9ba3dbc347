"""Any folder, its zip and its tar are the same images: number, pixels, order, captions, left-out counts."""

import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffdistill.data.files import Folder
from diffdistill.data.listing import order_of
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError

WORDS = st.sampled_from(
    ["0", "1", "2", "10", "010", "007", "a", "A", "b2", "b10", "grid", "é", "é", "x y", "文", ".b", "__MACOSX"]
)
ENDINGS = st.sampled_from(
    [".png", ".PNG", ".bmp", ".gif", ".tif", ".ppm", ".txt", ".json", ".heic", ".tar.gz", "", ".png.part", ".webp"]
)
NAMES = st.builds(
    lambda folders, word, end: "/".join([*folders, word + end]), st.lists(WORDS, max_size=2), WORDS, ENDINGS
)
FORMS = {".png": "PNG", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".ppm": "PPM", ".webp": "WEBP"}


def picture(number: int, ending: str) -> bytes:
    if ending.lower() not in FORMS:
        return b'{"caption": "the words of %d"}' % number if ending == ".json" else b"the words of %d" % number
    stream = io.BytesIO()
    lossless = {"lossless": True} if ending == ".webp" else {}
    Image.new("RGB", (2 + number % 3, 2), (number, 255 - number, 0)).save(stream, FORMS[ending.lower()], **lossless)
    return stream.getvalue()


def write(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for number, name in enumerate(names):
        file = folder / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_bytes(picture(number, os.path.splitext(name)[1]))
        except (NotADirectoryError, FileExistsError, IsADirectoryError):  # a file where another name wants a folder
            continue


def archives(folder: Path) -> tuple[Path, Path]:
    """The folder as a zip and a tar, its files in another order than any that sorts."""
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.name[::-1])
    beside = folder.with_suffix(".zip"), folder.with_suffix(".tar")
    with zipfile.ZipFile(beside[0], "w") as packed, tarfile.open(beside[1], "w") as tar:
        for file in files:
            packed.write(file, file.relative_to(folder).as_posix())
            tar.add(file, "./" + file.relative_to(folder).as_posix())
    return beside


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=12, unique=True))
def test_a_folder_its_zip_and_its_tar_are_the_same(tmp_path: Path, names: list[str]) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    folder = tmp_path / "set"
    write(folder, names)
    places = (folder, *archives(folder))
    try:
        sources = [open_source(place) for place in places]
    except UserError:
        for place in places:
            with pytest.raises(UserError, match="holds no image"):
                open_source(place)
        return
    first = sources[0]
    files = sum(1 for p in folder.rglob("*") if p.is_file())
    captions = len({name for found in first._captions.values() for name, _ in found})  # two may share one
    assert len(first) + sum(first.left_out.values()) + captions == files  # nothing is lost without a word
    for other in sources[1:]:
        assert len(other) == len(first) and other.left_out == first.left_out
        for index in range(len(first)):
            assert os.path.normpath(other.path(index)) == first.path(index)
            assert torch.equal(other.read(index), first.read(index))
    said = []
    for source in sources:
        try:
            said.append(source.captions())
        except UserError as error:
            said.append(str(error).partition(": ")[2].removeprefix("set.tar/"))
    assert said[0] == said[1] == said[2]


def test_numbers_in_names_sort_by_their_value() -> None:
    names = ["10.png", "9.png", "009.png", "a10b2.png", "a9b10.png", "a9b9.png", "b.png", "1e300.png", "9" * 5000]
    assert sorted(names, key=order_of) == [
        "1e300.png", "009.png", "9.png", "10.png", "9" * 5000, "a9b9.png", "a9b10.png", "a10b2.png", "b.png",
    ]  # fmt: skip


def test_links_are_followed_once_and_dead_ones_counted(tmp_path: Path) -> None:
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "set").mkdir()
    for name in ("0.png", "deep/1.png"):
        (tmp_path / "store" / name).write_bytes(picture(1, ".png"))
    os.symlink(tmp_path / "store", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "store" / "0.png", tmp_path / "set" / "again.png")
    os.symlink(tmp_path / "set", tmp_path / "store" / "deep" / "round")  # a circle
    os.symlink(tmp_path / "nowhere", tmp_path / "set" / "dead.png")
    source = open_source(tmp_path / "set")
    assert [source.path(i) for i in range(len(source))] == ["again.png", "linked/0.png", "linked/deep/1.png"]
    assert source.left_out == {"no file, such as a broken link": 1}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:  # links inside a tar are its files too
        tar.add(tmp_path / "store" / "0.png", "x/0.png")
        for name, kind, target in (("x/1.png", tarfile.SYMTYPE, "0.png"), ("2.png", tarfile.LNKTYPE, "x/0.png"),
                                   ("3.png", tarfile.SYMTYPE, "../gone.png")):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)
    packed = open_source(tmp_path / "a.tar")
    assert [packed.path(i) for i in range(3)] == ["2.png", "x/0.png", "x/1.png"] and len(packed) == 3
    assert torch.equal(packed.read(0), packed.read(2)) and packed.left_out == {"no file, such as a broken link": 1}


def test_names_of_one_place_are_one_file(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar, zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for number, name in ((3, "b/0.png"), (5, "./b/0.png"), (7, ".//b/./0.png"), (9, "b\\0.png")):
            entry = tarfile.TarInfo(name)
            entry.size = len(picture(number, ".png"))
            tar.addfile(entry, io.BytesIO(picture(number, ".png")))
            packed.writestr(name, picture(number, ".png"))
    for name in ("a.tar", "a.zip"):
        source = open_source(tmp_path / name)
        assert len(source) == 1 and source.path(0) == "b/0.png" and source.read(0)[0, 0, 0] == 9
        assert source.left_out == {"replaced by a later one of the same name": 3}


def test_links_in_a_zip_and_holes_in_a_tar_are_pictures_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("x/0.png", picture(4, ".png"))
        for name, target in (("1.png", "x/0.png"), ("y", "x"), ("2.png", "gone.png"), ("x/round", "../x")):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, 0o120777 << 16
            packed.writestr(entry, target)
    source = open_source(tmp_path / "a.zip")
    assert [source.path(i) for i in range(len(source))] == ["1.png", "x/0.png", "y/0.png"]
    assert source.left_out == {"no file, such as a broken link": 1}
    assert torch.equal(source.read(0), source.read(2))
    (tmp_path / "set").mkdir()
    with (tmp_path / "set" / "0.bmp").open("wb") as stream:
        Image.new("RGB", (400, 400)).save(stream, "BMP")
        stream.truncate(1 << 20)  # a hole
    tar = shutil.which("tar")
    if tar is None:
        pytest.skip("no tar command to write a sparse file with")
    subprocess.run([tar, "-S", "--format=gnu", "-cf", tmp_path / "a.tar", "-C", tmp_path / "set", "."], check=True)
    whole, packed_tar = open_source(tmp_path / "set"), open_source(tmp_path / "a.tar")
    assert len(packed_tar) == 1 and packed_tar.read_bytes(0) == whole.read_bytes(0)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_later_member_of_the_same_name_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar, zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for number in (3, 5):
            entry = tarfile.TarInfo("0.png")
            entry.size = len(picture(number, ".png"))
            tar.addfile(entry, io.BytesIO(picture(number, ".png")))
            packed.writestr("0.png", picture(number, ".png"))
    for name in ("a.tar", "a.zip"):
        source = open_source(tmp_path / name)
        assert len(source) == 1 and source.read(0)[0, 0, 0] == 5
        assert source.left_out == {"replaced by a later one of the same name": 1}


def test_a_tar_damaged_at_any_block_is_refused_or_names_its_picture(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, [f"{i}.ppm" for i in range(4)])
    whole = archives(folder)[1].read_bytes()
    torn = tmp_path / "torn.tar"
    last = whole.rstrip(b"\0")
    for cut in range(0, len(last), 256):
        torn.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="torn.tar"):
            open_source(torn)
    for header in range(512, len(last), 512):  # a header's checksum fails: the members after it must not vanish
        if whole[header + 257 : header + 262] == b"ustar":
            damaged = bytearray(whole)
            damaged[header] ^= 0xFF
            torn.write_bytes(damaged)
            with pytest.raises(UserError, match="torn.tar is no readable tar"):
                open_source(torn)


def test_a_zip_damaged_anywhere_is_refused_or_names_its_picture(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, [f"{i}.ppm" for i in range(3)])
    whole = archives(folder)[0].read_bytes()
    torn = tmp_path / "torn.zip"
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        for content in (bytes(damaged), whole[:place]):
            torn.write_bytes(content)
            try:
                source = open_source(torn)
                for index in range(len(source)):
                    source.read(index)
                    assert isinstance(source.label(index), str)
            except UserError as error:
                assert "torn.zip" in str(error)


def test_shards_beside_pictures_are_ambiguous_and_shards_at_any_depth_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, ["b/10.png", "b/9.png"])
    tar = archives(folder)[1]
    (tmp_path / "shards" / "in").mkdir(parents=True)
    for name in ("in/10.tar", "in/9.TAR"):
        shutil.copy(tar, tmp_path / "shards" / name)
    source = open_source(tmp_path / "shards")
    assert [source.label(i) for i in range(4)] == [
        f"in/{shard}/b/{i}.png" for shard in ("9.TAR", "10.tar") for i in (9, 10)
    ]
    (tmp_path / "shards" / "0.png").write_bytes(picture(0, ".png"))
    with pytest.raises(UserError, match=r"holds 1 images and 2 \.tar files; name one or the other"):
        open_source(tmp_path / "shards")


@pytest.mark.parametrize("name", ["A.ZIP", "A.Tar", "A.NPZ"])
def test_endings_count_in_any_case(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    write(folder, ["0.png"])
    packed = archives(folder)
    file = tmp_path / name
    if name == "A.NPZ":
        with file.open("wb") as stream:
            np.savez(stream, np.zeros((1, 2, 2, 3), np.uint8))
    else:
        shutil.copy(packed[name == "A.Tar"], file)
    assert len(open_source(file)) == 1


def test_an_empty_source_says_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 left out, hidden; 1 left out, not an image: \.heic"):
        open_source(tmp_path)
    assert len(Folder(tmp_path)) == 0


def test_what_systems_keep_for_themselves_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, ["1.png", "@eaDir/1.png/SYNOPHOTO_THUMB.png", "$RECYCLE.BIN/2.png", "__MACOSX/._1.png"])
    for place in (folder, *archives(folder)):
        source = open_source(place)
        assert len(source) == 1 and source.left_out == {"hidden": 3}


def test_hidden_shards_are_no_shards_and_what_lies_beside_shards_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, ["1.png", "2.png"])
    shards = tmp_path / "shards"
    (shards / ".Trash").mkdir(parents=True)
    for name in ("0.tar", ".Trash/1.tar", "._0.tar"):
        shutil.copy(archives(folder)[1], shards / name)
    (shards / "._0.tar").write_bytes(b"AppleDouble")
    for name in ("2.tar.gz", "0.parquet"):
        (shards / name).write_bytes(b"")
    source = open_source(shards)
    assert len(source) == 2
    assert source.left_out == {"hidden": 2, "not an image: .gz": 1, "not an image: .parquet": 1}


def test_tars_that_are_joined_or_zeroed_inside_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, ["1.png", "2.png", "3.png"])
    whole = archives(folder)[1].read_bytes()
    header = whole.index(b"./2.png")
    for number, content in enumerate((whole + whole, whole[:header] + bytes(512) + whole[header + 512 :])):
        torn = tmp_path / f"{number}.tar"
        torn.write_bytes(content)
        with pytest.raises(UserError, match="goes on after its end mark at byte|is no readable tar"):
            open_source(torn)


def test_names_in_utf8_are_read_as_that_also_where_a_zip_does_not_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, ["z.png", "ä.png", "日本10.png", "日本2.png", "é.png"])
    data = bytearray(archives(folder)[0].read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(mark)
        while start >= 0:
            data[start + place + 1] &= ~0x08  # bit 11: names are UTF-8
            start = data.find(mark, start + 4)
    (tmp_path / "old.zip").write_bytes(data)
    names = [[source.path(i) for i in range(5)] for source in map(open_source, (folder, tmp_path / "old.zip"))]
    assert names[0] == names[1] and names[0][-2:] == ["日本2.png", "日本10.png"]
