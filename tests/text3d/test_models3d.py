"""Points and their views are where closed forms put them, and damaged or hostile archives are refused by name."""

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.things import archive as archives
from diffdistill.text3d.things.archive import Entry, FurnitureArchive
from diffdistill.text3d.things.models3d import LUMA, MODELS, luma_of_white, model_points, surface_points
from diffdistill.text3d.things.procedural import REACH, THINGS, mean_instance
from diffdistill.text3d.things.sphere_tracing import traced_views
from diffdistill.text3d.things.splatting import SurfacePoints, cell_area, splatted_views
from diffdistill.text3d.things.viewpoints import DISTANCE, FOV_DEG, shade

TANGENT = math.tan(math.radians(FOV_DEG / 2))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def angles(*pairs: tuple[float, float]) -> tuple[Tensor, Tensor]:
    azimuth, elevation = torch.tensor(pairs).unbind(1)
    return azimuth, elevation


def test_a_splatted_point_lies_where_the_perspective_puts_it() -> None:
    place = torch.tensor([[0.3, -0.4, 0.5]])
    point = SurfacePoints(place, torch.tensor([[0.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.5, 0.25]]))
    view = splatted_views(point, *angles((0.0, 0.0), (90.0, 0.0)), 64, 1)
    for i, (across, depth) in enumerate(((-0.4, 3 - 0.3), (-0.3, 3 + 0.4))):  # from +x, +y is on the right; from +y, -x
        column = math.floor((1 + across / depth / TANGENT) * 32)
        row = math.floor((1 - 0.5 / depth / TANGENT) * 32)
        assert view[i, 3].nonzero().tolist() == [[row, column]]
        assert torch.allclose(
            view[i, :3, row, column], torch.tensor([1.0, 0.5, 0.25]) * shade(torch.tensor([0.0, 0, -1]))
        )
    behind = SurfacePoints(torch.cat([place, place * 0.9]), point.normals.expand(2, 3), torch.eye(3)[:2])
    first = splatted_views(behind, *angles((math.degrees(math.atan2(-0.4, 0.3)), 45.0)), 8, 1)[0]
    assert first[1].max() == 0 and first[0].max() > 0  # the nearer one wins


def test_splatted_and_traced_views_agree() -> None:
    """Two renderers that share no code but the cameras: the ball as points, with normals of either sign.

    A cell that is touched is filled, so a disc of area A and perimeter P is seen with at most the area of its sum with
    a cell, A + 2 P s / pi + s^2 for cells of side s (Steiner's formula, the mean over turns).
    """
    size, generator = 32, seeded()
    out = torch.nn.functional.normalize(torch.randn(60_000, 3, generator=generator), dim=-1)
    sign = torch.randint(0, 2, (len(out), 1), generator=generator) * 2.0 - 1
    colour = torch.tensor([0.9, 0.4, 0.1])
    points = SurfacePoints(0.69 * out, sign * out, colour.expand(len(out), 3))
    assert len(out) > 8 * 4 * math.pi * 0.69**2 / cell_area(size, 2)
    at = angles((0.0, 0.0), (130.0, 35.0))
    splatted, traced = splatted_views(points, *at, size, 2), traced_views(THINGS["ball"], mean_instance(), *at, size, 2)
    radius = 0.69 / (DISTANCE**2 - 0.69**2) ** 0.5 / TANGENT * size / 2  # in pixels
    area, wider = math.pi * radius**2, math.pi * radius**2 + 2 * radius + 0.25  # s is half a pixel
    for view in splatted:
        assert area < view[3].sum() < wider and view[3].sum() > 0.4 * area + 0.6 * wider
    inner = (traced[:, 2] == 1) & (splatted[:, 3] == 1)
    differing = (splatted[:, :3] - traced[:, :1] * colour[:, None, None]).movedim(1, -1)[inner].abs()
    assert differing.mean() < 4e-3 and differing.max() < 0.04


def box_model(width: float, height: float, depth: float, name: str = "front") -> tuple[bytes, bytes]:
    """An OBJ box and its materials: the face to +z is textured, the one to +y green, and the others are grey."""
    corners = [f"v {width * x} {height * y} {depth * z}" for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    faces = {
        "front": ["2/1 6/2 8/3 4/4"], "up": ["3 4 8 7"], "rest": ["1 5 6 2", "1 3 7 5", "1 2 4 3", "5 7 8 6"],
    }  # fmt: skip
    lines = ["mtllib box.mtl", *corners, "vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1"]
    for material, rows in faces.items():
        lines += [f"usemtl {material}", *(f"f {row}" for row in rows)]
    materials = f"newmtl front\nKd 1 1 1\nmap_Kd {name}.png\nnewmtl up\nKd 0 1 0\nnewmtl rest\nKd 0.2 0.2 0.2\n"
    return "\n".join(lines).encode(), materials.encode()


def texture() -> bytes:
    """Red on the left, blue on the right; above white."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4, 0], pixels[:, 4:, 2] = 255, 255
    pixels[:4] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IDENTITY = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)


def test_points_of_a_model_have_its_size_colours_and_density() -> None:
    pytest.importorskip("trimesh")
    obj, materials = box_model(7.0, 1.0, 2.0)  # in units of its own; the catalogue says 2 x 1 x 0.5
    entry = Entry("box", "x/box.obj", (2.0, 1.0, 0.5), IDENTITY, "me")
    points = surface_points(obj, {"box.mtl": materials, "front.png": texture()}, entry, per_area=4000.0)
    scale = REACH / (0.5 * (2**2 + 1**2 + 0.5**2) ** 0.5)
    half = torch.tensor([0.25, 1.0, 0.5]) * scale  # depth along x, width along y, height along z
    assert torch.allclose(points.positions.amax(0), half, rtol=1e-4) and torch.allclose(points.positions.amin(0), -half)
    assert points.positions.norm(dim=1).max() <= REACH + 1e-5
    area = 2 * 4 * (half[0] * half[1] + half[1] * half[2] + half[0] * half[2])
    assert abs(len(points.positions) - 4000 * area) < 5
    front = points.positions[:, 0] > half[0] - 1e-5
    assert abs(front.sum() / len(front) - 4 * half[1] * half[2] / area) < 1e-3  # each face has its share
    up = points.positions[:, 2] > half[2] - 1e-5
    assert torch.allclose(points.colours[up & ~front], torch.tensor([0.0, 1, 0]))
    assert torch.allclose(points.colours[~up & ~front], torch.tensor(51 / 255).expand(3), atol=1e-6)
    y, z = points.positions[front, 1], points.positions[front, 2]
    upper, left = z > 1e-4, y < -1e-4  # seen from the front, -y is on the left
    assert torch.equal(points.colours[front][upper & (z < half[2] - 1e-4)].unique(dim=0), torch.ones(1, 3))
    assert torch.equal(points.colours[front][(z < -1e-4) & left].unique(dim=0), torch.tensor([[1.0, 0, 0]]))
    assert torch.equal(points.colours[front][(z < -1e-4) & (y > 1e-4)].unique(dim=0), torch.tensor([[0.0, 0, 1]]))
    assert torch.allclose(points.normals[front].abs(), torch.tensor([1.0, 0, 0]), atol=1e-6)
    turned = Entry("box", "x/box.obj", (1.0, 2.0, 0.5), (0.0, -1, 0, 1, 0, 0, 0, 0, 1), "me")  # about +z of the OBJ
    other = surface_points(obj, {"box.mtl": materials, "front.png": texture()}, turned, per_area=400.0)
    assert torch.allclose(other.positions.amax(0), half[[0, 2, 1]], rtol=1e-2)


def test_models_that_cannot_be_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trimesh")
    obj, materials = box_model(1.0, 1.0, 1.0)
    entry = Entry("box", "x/box.obj", (1.0, 1.0, 1.0), IDENTITY, "me")
    with pytest.raises(UserError, match="the texture front.png of x/box.obj is no readable picture"):
        surface_points(obj, {"box.mtl": materials, "front.png": b"no"}, entry, 10.0)
    with pytest.raises(UserError, match="x/box.obj"):
        surface_points(b"v 0 0 0\n", {}, entry, 10.0)
    heaped = obj + b"\nf 1 5 6 2" * 1000  # a small file whose faces lie on one another
    with pytest.raises(UserError, match="x/box.obj would be drawn by .* points; at most 20,000,000"):
        surface_points(heaped, {"box.mtl": materials, "front.png": texture()}, entry, 1e5)
    monkeypatch.setattr("diffdistill.text3d.things.models3d.MAX_TEXTURE_PIXELS", 63)
    with pytest.raises(UserError, match="front.png of x/box.obj has 64 pixels; at most 63"):
        surface_points(obj, {"box.mtl": materials, "front.png": texture()}, entry, 10.0)


def test_white_is_the_90th_percentile_of_luma() -> None:
    views = torch.zeros(1, 4, 10, 10)
    levels = torch.arange(100).view(10, 10) / 200
    views[0, :3], views[0, 3] = levels, 1.0
    assert abs(luma_of_white(views) - 0.9 * 99 / 200) < 5e-3
    views[0, :3] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert abs(luma_of_white(views) - LUMA[0]) < 1e-6
    for dark in (torch.zeros(1, 4, 4, 4), torch.tensor([0.0, 0, 0, 1])[None, :, None, None].expand(1, 4, 4, 4)):
        with pytest.raises(UserError, match="black or cannot be seen"):
            luma_of_white(dark)


ROWS = "name#1=Box\nmodel#1=/x/box/box.obj\nwidth#1=20\ndepth#1=5\nheight#1=10\ncreator#1=me\n"


def written(path: Path, extra: dict[str, bytes] | None = None, rows: str = ROWS) -> Path:
    obj, materials = box_model(7.0, 1.0, 2.0)
    members = {archives.CATALOGUE: rows.encode(), "x/box/box.obj": obj, "x/box/box.mtl": materials}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (members | {"x/box/front.png": texture()} | (extra or {})).items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is, where ZipInfo would repair it
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, data)
    return path


def test_an_archive_gives_models_and_only_what_lies_beside_them(tmp_path: Path) -> None:
    path = written(tmp_path / "a.sh3f", {"y/other.mtl": b"", "x/box/notes.txt": b"hello", "x/box/": b""})
    with FurnitureArchive(path) as archive:
        (entry,) = archive.entries.values()
        assert entry == Entry("Box", "x/box/box.obj", (20.0, 10.0, 5.0), IDENTITY, "me")
        assert sorted(archive.beside(entry)) == ["box.mtl", "front.png"]
        assert archive.beside(entry)["front.png"] == texture()
        with pytest.raises(UserError, match="holds no x/box/secret"):
            archive.read("x/box/secret")
        with pytest.raises(UserError, match="there is no model 'piano'"):
            model_points(archive, "piano", 10.0)
        with pytest.raises(UserError, match="has no model in a folder 'caballito', which 'rocking horse' is made of"):
            model_points(archive, "rocking horse", 10.0)


def test_names_of_models_are_short_and_their_own() -> None:
    assert len(MODELS) == 48 and len(set(MODELS.values())) == 48 and not set(MODELS) & set(THINGS)
    assert all(1 <= len(name.split()) <= 2 and name == name.lower() for name in MODELS)


@pytest.mark.parametrize(
    "name", ["../evil.obj", "x/../../evil", "/etc/evil", "x\\evil", "C:/evil", "x//evil", "a\x01b"]
)
def test_members_that_would_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        FurnitureArchive(written(tmp_path / "a.sh3f", {name: b""}))
    assert repr(name) in str(error.value) and "outside of the archive's folder" in str(error.value)


def test_links_bombs_and_doubles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "link.sh3f")
    with zipfile.ZipFile(path, "a") as file:
        link = zipfile.ZipInfo("x/link.obj")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="'x/link.obj' is no plain file, but a link"):
        FurnitureArchive(path)
    path = written(tmp_path / "double.sh3f")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning):
        file.writestr("x/box/box.mtl", "newmtl other")
    with pytest.raises(UserError, match="holds 'x/box/box.mtl' twice"):
        FurnitureArchive(path)
    path = written(tmp_path / "bomb.sh3f", {"x/bomb.png": bytes(100_000)})
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 99_999)
    with pytest.raises(UserError, match="'x/bomb.png' would unpack to 100,000 bytes; at most 99,999"):
        FurnitureArchive(path)
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MAX_BYTES", 100_000)
    with pytest.raises(UserError, match="would unpack to .* bytes; at most 100,000"):
        FurnitureArchive(path)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(UserError, match="holds 5 members; at most 3"):
        FurnitureArchive(path)


def test_damaged_archives_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.sh3f"
    path.write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="a.sh3f is no readable .sh3f archive"):
        FurnitureArchive(path)
    whole = written(tmp_path / "b.sh3f").read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        member = file.getinfo("x/box/box.obj")
    broken = bytearray(whole)
    broken[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 0xFF
    path.write_bytes(bytes(broken))
    with FurnitureArchive(path) as archive, pytest.raises(UserError, match="x/box/box.obj is damaged"):
        archive.read("x/box/box.obj")
    stated = member.file_size.to_bytes(4, "little")
    at = whole.rindex(stated)  # in the central directory: it states less than there is
    path.write_bytes(whole[:at] + (member.file_size - 9).to_bytes(4, "little") + whole[at + 4 :])
    with FurnitureArchive(path) as archive, pytest.raises(UserError, match="x/box/box.obj is damaged"):
        archive.read("x/box/box.obj")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width#1=20", "width#1=wide", "entry 1 of the catalogue has 'wide 5 10', where 3 numbers should be"),
        ("width#1=20", "width#1=-1", "is -1.0 x 5.0 x 10.0 in size, which must be positive"),
        ("width#1=20", "width#1=inf", "where 3 numbers should be"),
        ("width#1=20", "", "entry 1 of the catalogue has no width"),
        ("/x/box/box.obj", "/x/box/box.mtl", "names the model 'x/box/box.mtl', which is no OBJ file"),
        ("/x/box/box.obj", "/etc/passwd", "names the model 'etc/passwd', which is no OBJ file"),
        (ROWS, "", "its catalogue names no model"),
        ("creator#1=me", "modelRotation#1=1 0 0", "has '1 0 0', where 9 numbers should be"),
    ],
)
def test_catalogues_that_cannot_be_used_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        FurnitureArchive(written(tmp_path / "a.sh3f", rows=ROWS.replace(old, new)))
    assert message in str(error.value)
