"""The page: well formed and alone, every row and image in it, every string escaped, numbers those of the record."""

import base64
import doctest
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_sweep import PROMPTS, STEPS, write_fake_sweep
from PIL import Image

from diffdistill.cli.main import main
from diffdistill.evaluation.page import columns, images, report, words
from diffdistill.evaluation.page.columns import columns_of, headline_column
from diffdistill.evaluation.page.read import read_sweep

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements as (tag, attributes), cells of the table of all rows, and the text of some elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[tuple[str, dict[str, str]]]] = []
        self._in_all = False
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {key: value or "" for key, value in attrs}
        assert len(named) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, named))
        if tag not in VOID:
            self.open.append(tag)
        self._in_all = self._in_all or "sortable" in named.get("class", "")
        if self._in_all and tag == "tr":
            self.rows.append([])
        if self._in_all and tag in ("td", "th"):
            self.rows[-1].append(("", named))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._in_all = self._in_all and tag != "table"

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)
        if self._in_all and self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            text, named = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, named)

    def of(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in attributes.items())]

    def said(self, tag: str) -> str:
        return " ".join("".join(self.texts.get(tag, [])).split())


def made(folder: Path, **changed: Any) -> tuple[Page, dict[str, Any], str]:
    record = write_fake_sweep(folder, **{"side": 8, **changed})
    text = report.html_report(folder)
    return Page(text), record, text


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    page, record, text = made(tmp_path)
    for _, attributes in page.elements:
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
        assert not {"srcset", "data", "action", "poster", "onclick", "onload"} & set(attributes)
    assert not re.search(r"url\(|@import|https?:", text)
    (policy,) = page.of("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    identities = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(identities)) == len(identities)
    assert {a["href"][1:] for a in page.of("a")} == {"curves", "pictures", "nearest", "numbers", "protocol"}
    assert [a["id"] for a in page.of("section")] == ["curves", "pictures", "nearest", "numbers", "protocol"]
    assert re.findall(r"<b>((?:Figure|Table) \d)\.</b>", text) == [
        "Table 1", "Figure 1", "Figure 2", "Figure 3", "Figure 4", "Table 2", "Table 3"
    ]  # fmt: skip
    embedded = re.search(r'<script type="application/json" id="sweep">(.*?)</script>', text, re.S)
    assert embedded is not None and json.loads(embedded[1]) == record


def test_every_row_is_in_the_table_with_its_numbers_and_the_best_in_bold(tmp_path: Path) -> None:
    page, record, _ = made(tmp_path)
    head, *body, own, held = page.rows
    keys = [cell[1].get("data-key") for cell in head]
    assert [cell[0] for cell in head][:4] == ["generator", "steps", "guidance", "passes"]
    found = {(row[0][0], int(row[1][0]), float(row[2][0])): row for row in body}
    assert len(found) == len(body) == len(record["rows"]) == 4 * len(STEPS) + 1
    for entry in record["rows"]:
        row = found[entry["generator"], entry["steps"], entry["guidance"]]
        for column, key in list(enumerate(keys))[4:]:
            text, attributes = row[column]
            assert float(attributes["data-v"]) == entry["mean"][key]
            mean, error = (float(part) for part in text.split(" ± "))
            assert mean == pytest.approx(entry["mean"][key], abs=0.051 if key == "fd" else 0.0051)
            assert error == pytest.approx(entry["sd"][key], abs=0.051 if key == "fd" else 0.0051)
    for key, better in (("kd", min), ("recall", max), ("align_score", max)):
        column = keys.index(key)
        (marked,) = [row for row in body if row[column][1].get("class") == "best"]
        assert float(marked[column][1]["data-v"]) == better(entry["mean"][key] for entry in record["rows"])
    for key in ("nearest_median", "seconds_per_image"):  # neither is better at either end
        assert not any(row[keys.index(key)][1].get("class") == "best" for row in body)
    assert "align_captions" not in keys
    assert head[keys.index("align_r1")][0] == "R@1 among 64 captions ↑"
    own_of, held_of = (dict(zip(keys, (cell[0] for cell in row), strict=True)) for row in (own, held))
    assert own[0][0] == "real imagesthe prompts’ own" and held[0][0] == "real imagesheld-out concepts"
    assert own_of["align_score"].startswith("0.263 ± ") and own_of["nearest_median"] == "–"
    assert held_of["align_score"] == "0.211" and held_of["align_r1"] == "0.440" and held_of["nearest_median"] == "18.90"
    assert held_of["kd"] == "–"


def test_the_headline_is_the_best_row_of_each_generator(tmp_path: Path) -> None:
    write_fake_sweep(tmp_path, side=8)
    sweep = read_sweep(tmp_path)
    said = report.headline(sweep, headline_column(columns_of(sweep)))
    assert "".join(f"{who}{number}; " for who, number in said) == (
        "student, 1 step: KD 0.237 ± 0.002; teacher’s best, 50 steps at guidance 3: 0.253 ± 0.001; "
    )


def test_each_metric_has_a_curve_of_each_guidance(tmp_path: Path) -> None:
    page, record, text = made(tmp_path)
    plots = re.findall(r'<svg class="plot".*?</svg>', text, re.S)
    titles = [re.search(r'class="title"[^>]*>([^<]*)', plot) for plot in plots]
    assert [title[1] for title in titles if title] == [
        "KD", "FD", "agreement", "recall", "precision", "coverage", "KD against agreement"
    ]  # fmt: skip
    for plot in plots[:6]:
        assert plot.count('class="line"') == 4 and plot.count('class="pt"') == 4 * len(STEPS) + 1
        assert plot.count('class="floor"') == 2 and "student" in plot  # the line and its label's
    assert "teacher, 50 steps at guidance 3: KD 0.253 ± 0.001" in plots[0]
    assert "<title>real images: " in plots[0] and "<title>held-out concepts: 0.2111</title>" in plots[2]
    assert "for agreement, 64 real images of held-out concepts with their own captions (the prompts are" in text
    assert "KD\u00a00.000, agreement\u00a00.211 (held-out concepts)." in text
    at = re.findall(r'class="tick at"[^>]*>([^<]*)', plots[6])
    assert at == ["1", "2", "3", "4"]


def test_pictures_are_those_of_the_files(tmp_path: Path) -> None:
    page, record, _ = made(tmp_path)
    shown = [np.asarray(Image.open(BytesIO(base64.b64decode(a["src"].partition(",")[2])))) for a in page.of("img")]
    best, folded, groups = len(STEPS) + 1, 4 * len(STEPS) + 1, 1 + 4
    assert len(shown) == best + folded + groups + 3  # real images on top of each group, and three panels
    strips = {row["strip"] for row in record["rows"]} | {"strips/real.png"}
    for name in [*strips, "nearest/teacher-50-3.png", "nearest/student-1-1.png", "nearest/real.png"]:
        pixels = np.asarray(Image.open(tmp_path / name))
        assert any(np.array_equal(pixels, picture) for picture in shown)
    assert [a.get("open") for a in page.of("details")] == ["", None, None, None, None, None]
    heads = [a["title"] for a in page.of("span") if "title" in a]
    assert heads == PROMPTS * groups


def test_strings_from_outside_are_escaped(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    quoted = "\"'><img src=x onerror=alert(1)>"
    write_fake_sweep(tmp_path, side=8, agreement_metric=f"align_score({bad})")
    record = json.loads((tmp_path / "sweep.json").read_text())
    record["samples"]["prompts"][:3] = [bad, quoted, "<!-- <script>"]
    record["generators"][0].update(name=bad, model=quoted, digest="</pre>")
    record["reference"]["source"] = "</code><b>"
    record["protocol"] = {"protocol": bad, "</script>": "]]>", "list": "[ 1,  2 ]"}
    for row in record["rows"]:
        row["generator"] = bad if row["generator"] == "teacher" else row["generator"]
        row["mean"][f"align_score({bad})"] = row["mean"].pop("align_score")
        row["mean"][quoted] = 1.0
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    text = report.html_report(tmp_path, title=bad)
    page = Page(text)
    assert [a.get("id") for a in page.of("script")] == ["sweep", None]
    assert not page.of("b", src="x") and not [a for a in page.of("img") if not a["src"].startswith("data:")]
    assert "<script>alert" not in text and text.count("</script>") == 2 and "<!--" not in text
    assert page.said("h1") == bad and json.loads("".join(page.texts["pre"]))["protocol"] == record["protocol"]


def test_an_incomplete_sweep_says_so_and_what_is_missing_is_a_dash(tmp_path: Path) -> None:
    record = write_fake_sweep(tmp_path, steps=(1, 4), guidances=(1.0,), side=8, complete=False)
    record["rows"][0]["mean"]["kd"] = None
    del record["rows"][0]["mean"]["fd"], record["rows"][1]["seeds"]["2"]
    assert "over 3 seeds" in report.html_report(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    text = report.html_report(tmp_path)
    page = Page(text)
    assert "This sweep is not complete.</b> 3 rows are there, 2 of them with every seed" in text
    head, first, *_ = page.rows
    names = [cell[0] for cell in head]
    assert first[names.index("KD ↓")] == ("–", {"data-v": ""}) and first[names.index("FD ↓")][0] == "–"
    assert [row[names.index("seeds")][0] for row in page.rows[1:4]] == ["3", "2", "3"]
    assert "over the seeds measured, 512 images each, 128 for agreement." in text and "over 3 seeds" not in text
    assert "teacher, 4 steps, 2 of 3 seeds: KD" in text and "Seeds: how many of 3 are measured so far." in text
    page, _, text = made(tmp_path)
    assert "not complete" not in text and "seeds" not in [cell[0] for cell in page.rows[0]]


def test_a_row_of_one_seed_among_several_has_no_error(tmp_path: Path) -> None:
    record = write_fake_sweep(tmp_path, steps=(1, 4), guidances=(1.0,), side=8, complete=False)
    row = record["rows"][0]
    row["seeds"] = {"0": row["seeds"]["0"]}
    row["mean"], row["sd"] = dict(row["seeds"]["0"]), dict.fromkeys(row["sd"])
    assert row["mean"]["kd_se"] == 0.013
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    page = Page(report.html_report(tmp_path))
    names = [cell[0] for cell in page.rows[0]]
    assert [" ± " in row[names.index("KD ↓")][0] for row in page.rows[1:4]] == [False, True, True]


def test_of_one_seed_the_bars_are_standard_errors_of_kd(tmp_path: Path) -> None:
    page, record, text = made(tmp_path, seeds=(3,), steps=(1, 4), guidances=(1.0,))
    (kd, fd, *_) = re.findall(r'<svg class="plot".*?</svg>', text, re.S)
    assert 'class="err"' in kd and 'class="err"' not in fd
    assert "student, 1 step: KD 0.238 ± 0.013" in kd and "the sweep has one seed" in text
    assert "the standard error over 512 images, of agreement over 128, where it is known" in text


def test_one_row_and_nothing_else_is_a_page(tmp_path: Path) -> None:
    record = write_fake_sweep(tmp_path, steps=(1,), guidances=(1.0,), side=8, agreement=None, agreement_metric=None)
    only = record["rows"][0]
    only["mean"], only["sd"] = {"kid": 0.2}, {"kid": None}
    only.update(strip=None, nearest=None, nearest_distances=None, nfe=None)
    record.update(rows=[only], floor=None, agreement_pictures=None)
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    text = report.html_report(tmp_path)
    page = Page(text)
    assert [a["id"] for a in page.of("section")] == ["curves", "numbers", "protocol"] and not page.of("img")
    assert "teacher, 1 step: <b>KID 0.200</b>." in text
    record["rows"] = []
    (tmp_path / "sweep.json").write_text(json.dumps({**record, "complete": False}))
    assert "No row has a number yet." in report.html_report(tmp_path)


def test_other_towers_and_large_pictures(tmp_path: Path) -> None:
    key = "clip_score(ViT-g-14/laion2b_s12b_b42k, 'A photo depicts ', x1)"
    record = write_fake_sweep(tmp_path, steps=(1,), side=160, agreement_metric=key, agreement={"kind": "clip"})
    for row in [*record["rows"], record["floor"]]:
        row["mean"][key] = row["mean"].pop("align_score")
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    text = report.html_report(tmp_path)
    page = Page(text)
    assert "agreement ↑" in [cell[0] for cell in page.rows[0]] and key in page.said("code")
    assert "<title>real images: " in text  # what CLIP says of the prompts' own images is no training pair's
    assert {(a["width"], a["height"]) for a in page.of("img")} == {("1536", "128"), ("1536", "256")}
    assert "--cell:80px" in text and "sheet pixels" not in text


def test_the_towers_are_named_and_what_is_known_of_them(tmp_path: Path) -> None:
    page, _, text = made(tmp_path / "align", steps=(1,))
    assert "the towers <code>align (towers, heads)</code>" in text
    held_out = "these heads have an R@1 of 0.633 and an R@5 of 0.883 among 128 captions, and a mean cosine of 0.492."
    assert held_out in text
    assert "while the sweep ran, on 1 thread of cpu. Other work on the machine changes them" in text
    clip = {
        "kind": "clip",
        "key": "(ViT-B-32/openai, 'A photo of <', x1)",
        "extractor": "clip-ViT-B-32/openai",
        "prefix": "A photo of <",
    }
    page, _, text = made(tmp_path / "clip", steps=(1,), agreement=clip, agreement_metric="clip_score")
    code = "".join(page.texts["code"])
    assert "clip_score(ViT-B-32/openai, 'A photo of <', x1)" in code and "'A photo of <'" in code
    assert "heads of these towers" not in text and "these heads" not in text


def test_of_a_prompts_file_nearest_are_reference_pictures_and_the_floor_is_one_row(tmp_path: Path) -> None:
    of_file = {"prompts_of": "file", "nearest_of": "reference", "agreement": {"kind": "align", "key": ""}}
    page, record, text = made(tmp_path, steps=(1,), **of_file)
    before = text.partition('<script type="application/json"')[0].partition("<pre")[0]
    assert "Nearest reference images" in before and "training" not in before and "held-out" not in before
    assert "a distance of 0 is a copy of a reference image" in before
    assert [row[0][0] for row in page.rows][-1:] == ["real images"] and len(page.rows) == 1 + len(record["rows"]) + 1


def test_of_another_number_of_captions_retrieval_is_not_beside_that_of_rows(tmp_path: Path) -> None:
    record = write_fake_sweep(tmp_path, steps=(1,), side=8)
    record["floor"]["unseen"]["align_captions"] = 60
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    page = Page(report.html_report(tmp_path))
    keys = [cell[1].get("data-key") for cell in page.rows[0]]
    held = dict(zip(keys, (cell[0] for cell in page.rows[-1]), strict=True))
    assert (held["align_score"], held["align_r1"], held["align_r5"]) == ("0.211", "–", "–")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_sweep(tmp_path, steps=(1, 4), side=8)
    assert main(["eval", "report", "--sweep", str(tmp_path)]) == 0
    out = tmp_path / "report.html"
    first = out.read_bytes()
    assert json.loads(capsys.readouterr().out) == {"report": str(out), "bytes": len(first)}
    for argv, says in (
        (["--sweep", str(tmp_path)], "is there already; add --overwrite"),
        (["--sweep", str(tmp_path), "--out", str(tmp_path / "sweep.json"), "--overwrite"], "should end in .html"),
        (["--sweep", str(tmp_path / "strips")], "holds no sweep.json"),
        (["--sweep", str(tmp_path), "--titel", "x"], "the nearest is --title"),
        (["--sweep", str(tmp_path), "--overwrite", "--title", "a\ud800"], r"--title has '\ud800' in it"),
    ):
        assert main(["eval", "report", *argv]) == 2
        said = capsys.readouterr()
        assert says in said.err and said.out == "" and len(said.err.splitlines()) == 1
    assert main(["eval", "report", "--sweep", str(tmp_path), "--overwrite"]) == 0
    assert out.read_bytes() == first  # no date, no random id
    other = tmp_path / "new" / "page.html"
    assert main(["eval", "report", "--sweep", str(tmp_path), "--out", str(other), "--title", "A & B"]) == 0
    assert b"<h1>A &amp; B</h1>" in other.read_bytes() and list(other.parent.iterdir()) == [other]


def test_docstring_examples() -> None:
    for module in (words, images, columns):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed
