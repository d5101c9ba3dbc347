"""`diffdistill codec eval`: the page parses and shows every photograph, its links resolve; refusals; a second run."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from small_codec import picture, save_small_codec

from diffdistill.cli.main import main
from diffdistill.evaluation.rate.classic import CLASSIC
from diffdistill.evaluation.rate.comparison import Comparison

NAMES = ("a.png", "b <i>.png")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "input", "br"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_codec(tmp_path_factory.mktemp("codec")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(NAMES):
        Image.fromarray(picture(180, 200 + 10 * i, seed=i).permute(1, 2, 0).numpy()).save(folder / name)
    return str(folder)


def call(photos: str, out: Path, model: str, *more: str) -> int:
    options = ["--rivals", "jpeg,webp", "--metrics", "psnr,ms_ssim", "--qualities", "0,50,100", "--bpp", "1", "--quiet"]
    return main(["codec", "eval", photos, "-o", str(out), "-m", model, *options, *more])


@pytest.fixture(scope="module")
def out(photos: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    assert call(photos, folder, model) == 0
    return folder


class Page(HTMLParser):
    """Elements with their attributes; it fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "index.html").read_text(encoding="utf-8"))


def test_every_photograph_is_there_and_all_links_resolve(page: Page, out: Path) -> None:
    heads = [text for text in page.text if text in NAMES]
    assert set(heads) == set(NAMES) and len(page.all("article")) == len(NAMES)
    links = [image["src"] for image in page.all("img")]
    links += [option[key] for option in page.all("option") for key in ("data-ours", "data-other")]
    assert len(page.all("img")) == len(NAMES) * (4 + 4)  # two sliders of two, and a strip of four
    for link in links:
        with Image.open(out / link) as crop:
            assert crop.size[0] <= 192 and crop.size[1] == 180
    ids = {attributes["id"] for _, attributes in page.found if "id" in attributes}
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= ids
    assert not any("http" in value for _, attributes in page.found for key, value in attributes.items() if key == "src")


def test_sliders_can_be_used_without_a_mouse_and_have_labels(page: Page) -> None:
    ranges, selects, labels = page.all("input"), page.all("select"), page.all("label")
    assert len(ranges) == len(selects) == len(labels) == 2 * len(NAMES)
    assert all(r["type"] == "range" and r["aria-label"].startswith("Divider between this codec") for r in ranges)
    assert [label["for"] for label in labels] == [select["id"] for select in selects]
    assert len({select["id"] for select in selects}) == len(selects)
    assert all(image["alt"] for image in page.all("img"))
    assert {option["value"] for option in page.all("option")} == {"jpeg", "webp", "original"}


def test_rows_and_the_table_agree_with_the_files(out: Path) -> None:
    record = json.loads((out / "rows.json").read_text())
    with (out / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    curve = [line for line in table if line["of"] == "curve"]
    rivals = sum(len(CLASSIC[name].qualities) for name in ("jpeg", "webp"))
    assert len(curve) == len(record["rows"]) == len(NAMES) * (3 + rivals)
    for line, row in zip(curve, record["rows"], strict=True):
        assert (int(line["bytes"]), float(line["psnr_db"])) == (row["bytes"], row["psnr_db"])
    assert sum(line["of"] == "equal bytes" for line in table) == 3 * len(NAMES)
    for row in record["equal_bytes"]:
        assert row["files"]["ours"]["bytes"] <= row["width"] * row["height"] / 8


def test_a_second_run_measures_nothing_and_gives_the_same_page(
    out: Path, photos: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Comparison, "measure", fail)
    assert call(photos, out, model) == 0
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_what_is_refused(
    out: Path, photos: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*more: str, photos: str = photos, to: Path = tmp_path / "new") -> str:
        assert call(photos, to, model, *more) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "unknown rival 'bpg'; there are jpeg, webp, avif, jxl" in refused("--rivals", "jpeg,bpg")
    assert "unknown metric 'lpips'" in refused("--metrics", "lpips")
    assert "--qualities is '0,x'" in refused("--qualities", "0,x")
    assert "from 0 to 100" in refused("--qualities", "0,101")
    assert "--bpp is 0" in refused("--bpp", "0")
    assert "there are no images at" in refused(photos=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(photos=str(tmp_path / "empty"))
    assert "with other --qualities and --bpp" in refused("--qualities", "0,100", "--bpp", "2", to=out)
    assert "lies inside of" in refused(to=Path(photos) / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert "holds no comparison" in refused(to=tmp_path / "other")
    assert not (tmp_path / "new").exists()
    assert "there is no codec at" in refused("-m", str(tmp_path))


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_in_a_browser_pictures_load_and_the_divider_and_the_choice_work(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out / "pictures", tmp_path / "pictures")
    text = (out / "index.html").read_text(encoding="utf-8")

    def dom(html: str) -> str:
        (tmp_path / "page.html").write_text(html.replace(' loading="lazy"', ""), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        command = [str(BROWSER), *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        done = subprocess.run(
            [*command, (tmp_path / "page.html").as_uri()], capture_output=True, timeout=120, check=True
        )
        return done.stdout.decode()

    assert f'data-images="{len(NAMES) * 8}"' in dom(text)  # under the page's own policy
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    act = """<script>
      const one = document.querySelector(".compare"), range = one.querySelector("input");
      range.value = 30; range.dispatchEvent(new Event("input"));
      const choice = one.querySelector("select");
      choice.value = "original"; choice.dispatchEvent(new Event("change"));
    </script></body>"""
    page = Page(dom(free.replace("</body>", act)))
    pair = next(attributes for tag, attributes in page.found if attributes.get("class") == "pair")
    assert "--at: 30%" in pair["style"]
    assert page.all("input")[0]["aria-valuetext"] == "30 percent this codec"
    chosen = next(option for option in page.all("option") if option["value"] == "original")
    other, ours = page.all("img")[:2]
    assert (other["src"], ours["src"]) == (chosen["data-other"], chosen["data-ours"])
    assert other["alt"].startswith("the original: ") and ours["class"] == "first"
