"""The page in a browser: images load under its own policy, curves are there, a click sorts, and it is not blank."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_sweep import GUIDANCES, STEPS, write_fake_sweep
from PIL import Image

from diffdistill.evaluation.page.report import html_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Opens a page with more flags, in a profile of its own; returns what the browser prints."""

    def run(page: Path, *flags: str) -> str:
        profile = tmp_path / f"profile{len(list(tmp_path.glob('profile*')))}"
        profile.mkdir()
        command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return done.stdout.decode()

    return run


@pytest.fixture
def page(tmp_path: Path) -> Path:
    write_fake_sweep(tmp_path / "sweep", side=16)
    path = tmp_path / "report.html"
    path.write_text(html_report(tmp_path / "sweep"), encoding="utf-8")
    return path


def test_curves_and_pictures_are_there_after_load(page: Path, browse: Browse) -> None:
    dom = browse(page, "--dump-dom")
    images = len(re.findall(r"<img ", dom))
    assert images == 2 * (len(STEPS) + 1) + 3 * len(STEPS) + 5 + 3
    assert f'data-images="{images}"' in dom  # the page's script counted as many that have pixels
    plots = re.findall(r'<svg class="plot".*?</svg>', dom, re.S)
    assert len(plots) == 7
    for plot in plots[:6]:
        lines = re.findall(r'class="line" d="([^"]*)"', plot)
        assert [len(re.findall(r"[ML]", line)) for line in lines] == [len(STEPS)] * len(GUIDANCES)
    assert dom.count("<th data-key") == dom.count('<button type="button">') - 4  # every head of the long table alone


def test_a_click_sorts_and_another_turns_it_round(page: Path, browse: Browse, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # which forbids the click below
    assert free != text
    orders = []
    for key, clicks in (("kd", 1), ("kd", 2), ("recall", 1)):
        click = f"document.querySelector('th[data-key={key}] button').click();" * clicks
        other = tmp_path / f"{key}{clicks}.html"
        other.write_text(free.replace("</body>", f"<script>{click}</script></body>"), encoding="utf-8")
        dom = browse(other, "--dump-dom")
        body = re.search(r'<table class="sortable all">(.*?)</tbody>', dom, re.S)
        assert body is not None
        column = re.findall(r"<th[ >][^>]*>", body[1].partition("</thead>")[0]).index(
            next(head for head in re.findall(r"<th[ >][^>]*>", body[1]) if f'data-key="{key}"' in head)
        )
        rows = re.findall(r"<tr>(.*?)</tr>", body[1].partition("<tbody>")[2], re.S)
        orders.append([float(re.findall(r'data-v="([^"]*)"', row)[column]) for row in rows])
        assert f'aria-sort="{"ascending" if (key, clicks) == ("kd", 1) else "descending"}"' in body[1]
    up, down, recall = orders
    assert up == sorted(up) and down == up[::-1] and len(up) == len(STEPS) * len(GUIDANCES) + 1
    assert recall == sorted(recall, reverse=True)  # where more is better, the first click puts more on top


def test_the_policy_forbids_any_other_script(page: Path, browse: Browse, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    text = page.read_text(encoding="utf-8")
    other.write_text(
        text.replace("</body>", "<script>document.body.dataset.other = 1</script></body>"), encoding="utf-8"
    )
    dom = browse(other, "--dump-dom")
    assert "data-images=" in dom and "data-other=" not in dom


@pytest.mark.parametrize(
    ("width", "height", "flags", "page_is"),
    [
        (1280, 2400, (), "light"),
        (390, 2400, (), "light"),
        (1280, 2400, ("--blink-settings=preferredColorScheme=0",), "dark"),
    ],
)
def test_screenshots_are_not_blank(
    page: Path, browse: Browse, tmp_path: Path, width: int, height: int, flags: tuple[str, ...], page_is: str
) -> None:
    shot = tmp_path / "shot.png"
    browse(page, f"--window-size={width},{height}", f"--screenshot={shot}", *flags)
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (height, width, 3)
    background = pixels[0, 0]
    assert (background.min() > 200) if page_is == "light" else (background.max() < 60)
    differs = abs(pixels - background).max(2) > 40
    assert 0.02 < differs.mean() < 0.7  # text, lines and images on an even page
    assert differs.any(1).mean() > 0.4  # all the way down, not at the top alone
    assert not differs[:, -8:].any()  # nothing runs over the right edge


def test_without_scripts_the_page_looks_the_same(page: Path, browse: Browse, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<script>.*?</script>", "", text, flags=re.S), encoding="utf-8")
    shots = []
    for path in (page, bare):
        shot = tmp_path / f"{path.stem}.png"
        browse(path, "--window-size=1280,4000", f"--screenshot={shot}")
        with Image.open(shot) as picture:
            shots.append(np.asarray(picture.convert("RGB")).astype(int))
    assert (abs(shots[0] - shots[1]).max(2) > 40).mean() < 1e-3
