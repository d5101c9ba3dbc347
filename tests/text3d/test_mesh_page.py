"""The page holds what it shows and loads nothing; strips, GIFs and films hold the pictures given."""

import base64
import gzip
import hashlib
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.export import glb_bytes
from diffdistill.text3d.mesh.page import page_of, save_page
from diffdistill.text3d.mesh.triangles import Mesh
from diffdistill.text3d.mesh.turntable import save_gif, save_mp4, save_strip

VIEWER = files("diffdistill.text3d.mesh") / "viewer"
TETRAHEDRON = Mesh(
    np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
    np.eye(4)[:, :3],
)


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of elements that have an id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.text[self._inside] = self.text.get(self._inside, "") + data


def moving(k: int = 6) -> list[np.ndarray]:
    """Pictures (20, 30, 3) of a square that moves over a ramp."""
    made = []
    for i in range(k):
        picture = np.zeros((20, 30, 3), np.uint8)
        picture[..., 0] = np.linspace(0, 255, 30)
        picture[5:10, 4 * i : 4 * i + 5] = [0, 255, 0]
        made.append(picture)
    return made


def test_the_page_holds_the_objects_and_the_viewer(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    glb = glb_bytes(TETRAHEDRON)
    name = 'a <b>"cup"</b> & {{viewer}}'
    save_page([(name, TETRAHEDRON), ("the second", glb)], tmp_path / "page.html", title="Cups & <co>")
    page = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    shown = [attributes for tag, attributes in page.tags if tag == "model-viewer"]
    assert [attributes["alt"] for attributes in shown] == [name, "the second"]
    assert page.text["figcaption"] == name + "the second" and page.text["title"] == "Cups & <co>"
    for attributes in shown:
        head, _, data = (attributes["src"] or "").partition(",")
        assert head == "data:model/gltf-binary;base64" and base64.b64decode(data, validate=True) == glb
    script = gzip.decompress(base64.b64decode(page.text["viewer"], validate=True))
    assert b'customElements.define("model-viewer"' in script or b'"model-viewer"' in script
    assert page.text["licences"].strip() == (VIEWER / "LICENSES.txt").read_text().strip()


def test_the_page_loads_nothing() -> None:
    """No tag names another file, and the policy allows the browser no source but the page itself."""
    page = Parsed(page_of([("a cup", b"glTF")]))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "base", "object", "embed")
        for name in ("src", "href", "srcset", "data", "action", "poster", "environment-image", "skybox-image"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:") or value == "neutral"
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(None, 1) for rule in (policy or "").split("; "))
    assert rules["default-src"] == "'none'"
    assert set(" ".join(rules.values()).split()) <= {
        "'none'",
        "'unsafe-inline'",
        "'wasm-unsafe-eval'",
        "data:",
        "blob:",
    }
    style_and_script = page.text["style"] + page.text["script"]
    assert "http" not in style_and_script and "url(" not in style_and_script and "import" not in style_and_script


def test_the_viewer_is_the_published_one_and_small() -> None:
    packed, licences = (VIEWER / "model-viewer.min.js.gz").read_bytes(), (VIEWER / "LICENSES.txt").read_text()
    published = gzip.decompress(packed).rstrip(b"\n") + b"\n//# sourceMappingURL=model-viewer.min.js.map\n"
    assert hashlib.sha256(published).hexdigest() in licences
    assert len(packed) < 400_000
    for name in ("Apache License", "MIT License", "BSD 3-Clause License", "three.js authors"):
        assert name in licences


def test_pages_that_are_there_stay_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    save_page([("a cup", b"glTF")], path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="page.html is there already"):
        save_page([("another", b"glTF")], path)
    assert path.read_bytes() == before
    save_page([("another", b"glTF")], path, overwrite=True)
    assert path.read_bytes() != before
    for objects, name, said in (
        ([("a", b"glTF")], "page.png", "must end in .html"),
        ([], "new.html", "at least one object"),
        ([("a", b"\x89PNG")], "new.html", "a: the bytes given are not a GLB file"),
    ):
        with pytest.raises(UserError, match=said):
            save_page(objects, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_strip_is_the_pictures_in_rows(tmp_path: Path) -> None:
    pictures = moving(5)
    mixed = [pictures[0], torch.tensor(pictures[1]), pictures[2] / 255, torch.tensor(pictures[3]) / 255, pictures[4]]
    save_strip(mixed, tmp_path / "row.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "row.png")), np.hstack(pictures))
    save_strip(mixed, tmp_path / "rows.png", columns=3)
    white = np.full_like(pictures[0], 255)
    rows = np.vstack([np.hstack(pictures[:3]), np.hstack([*pictures[3:], white])])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "rows.png")), rows)


def test_a_gif_moves_at_the_rate_asked_for(tmp_path: Path) -> None:
    pictures = moving()
    save_gif(pictures, tmp_path / "a.gif", fps=20)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == len(pictures) and gif.info["loop"] == 0
        for k, picture in enumerate(pictures):
            gif.seek(k)
            assert gif.info["duration"] == 50
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - picture).max() <= 12


def test_a_film_is_given_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for ffmpeg, which writes down what it is told and what it is sent."""
    stand_in = tmp_path / "bin" / "ffmpeg"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!{sys.executable}\nimport sys\nopen(sys.argv[-1], "wb").write(" ".join(sys.argv[1:-1]).encode() + b"|" + sys.stdin.buffer.read())\n')  # fmt: skip  # noqa: E501
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent))
    pictures = [np.pad(picture, ((0, 1), (0, 1), (0, 0))) for picture in moving()]  # of odd sides
    save_mp4(pictures, tmp_path / "a.mp4", fps=24)
    told, _, sent = (tmp_path / "a.mp4").read_bytes().partition(b"|")
    assert b"-s 30x20 -r 24" in told and b"libx264" in told and b"yuv420p" in told
    assert sent == b"".join(picture.tobytes() for picture in moving())
    stand_in.write_text(f'#!{sys.executable}\nimport sys\nprint("no encoder", file=sys.stderr)\nsys.exit(1)\n')
    with pytest.raises(UserError, match="ffmpeg did not make .*b.mp4: no encoder"):
        save_mp4(pictures, tmp_path / "b.mp4")
    stand_in.unlink()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="program ffmpeg, which is not found, or the package imageio-ffmpeg"):
        save_mp4(pictures, tmp_path / "c.mp4")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "bin"]


def test_a_film_can_be_read_again(tmp_path: Path) -> None:
    package = pytest.importorskip("imageio_ffmpeg")
    save_mp4([np.kron(p, np.ones((8, 8, 1), np.uint8)) for p in moving()], tmp_path / "a.mp4", fps=25)
    reader = package.read_frames(str(tmp_path / "a.mp4"))
    about = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(160, 240, 3) for frame in reader]
    assert about["codec"] == "h264" and about["fps"] == 25 and len(frames) == 6
    for frame, picture in zip(frames, moving(), strict=True):
        assert np.abs(frame[4::8, 4::8].astype(int) - picture).mean() < 8


def test_wrong_pictures_are_refused(tmp_path: Path) -> None:
    good = moving(2)
    for pictures, said in (
        ([], "pictures are"),
        ([good[0], good[1][1:]], "of one size"),
        ([good[0][..., 0]], "pictures are"),
        ([good[0].astype(int)], "a picture is int64"),
        ([good[0] / 100], "outside of"),
        ([good[0] * np.nan], "NaN"),
    ):
        for save, name in ((save_strip, "a.png"), (save_gif, "a.gif")):
            with pytest.raises(UserError, match=said):
                save(pictures, tmp_path / name)
    for save, name in ((save_strip, "a.jpg"), (save_gif, "a.png"), (save_mp4, "a.avi")):
        with pytest.raises(UserError, match="must end in"):
            save(good, tmp_path / name)
    with pytest.raises(UserError, match="fps is 60"):
        save_gif(good, tmp_path / "a.gif", fps=60)
    with pytest.raises(UserError, match="columns is 0"):
        save_strip(good, tmp_path / "a.png", columns=0)
    assert not list(tmp_path.iterdir())


def test_importing_the_modules_imports_no_package_for_meshes() -> None:
    names = ("export", "extract", "page", "queries", "rasterise", "read", "texture", "triangles", "turntable")
    code = (
        f"import sys, importlib\nfor n in {names}: importlib.import_module('diffdistill.text3d.mesh.' + n)\n"
        "print([n for n in ('trimesh', 'skimage', 'xatlas', 'scipy', 'PIL', 'imageio') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
