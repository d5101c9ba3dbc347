"""`evaluate` and `fid`: one call from images to numbers, against the functions on features worked out by hand."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_calls import noise
from stub_towers import StubTowers
from torch import Tensor

from diffdistill import evaluate, fid, frechet_distance, kernel_distance, open_source
from diffdistill.data.in_memory import InMemory
from diffdistill.errors import UserError
from diffdistill.evaluation.distances.floor import set_aside
from diffdistill.evaluation.features import inception
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.measure import collect
from diffdistill.evaluation.protocols import PROTOCOLS

PROTOCOL = dataclasses.replace(PROTOCOLS["mobilenet-offline"], name="tiny")


class Tiny(Extractor):
    """The mean of each of four quarters of an image's red."""

    name, dim, resize, weights_sha256 = "tiny", 4, "none", "0" * 64
    device = torch.device("cpu")

    def prepare(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 2)

    def network(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    noise("made", 9, 0)
    noise("real", 12, 1)
    return tmp_path


def pixels(folder: str) -> Tensor:
    source = open_source(folder)
    return torch.stack([source.read(i) for i in range(len(source))])


def measured(images: Any, reference: Any = None, **options: Any) -> dict[str, Any]:
    report = evaluate(images, reference, options.pop("metrics", ("fd", "kd")), PROTOCOL, extractor=Tiny(), **options)
    json.dumps(report, allow_nan=False)
    return report


def test_images_in_every_form_have_the_numbers_of_their_features() -> None:
    x, y = (Tiny()(pixels(folder)) for folder in ("made", "real"))
    expected = {"fd": frechet_distance(x, y), "kd": kernel_distance(x, y)[0]}
    features = collect(open_source("real"), PROTOCOL, Tiny())
    features.save("real.safetensors")
    forms: tuple[tuple[Any, Any], ...] = (
        ("made", "real"),
        (Path("made"), Path("real.safetensors")),
        (pixels("made"), pixels("real")),
        (pixels("made").float() / 255, features),
        (open_source("made"), InMemory(pixels("real"))),
        (list(pixels("made")), pixels("real").split(5)),
        ((batch.float() / 255 for batch in pixels("made").split(4)), iter(pixels("real"))),
    )
    for images, reference in forms:
        report = measured(images, reference)
        for name, value in expected.items():
            assert report[name] == pytest.approx(value, rel=1e-9), (name, images)
        assert (report["n"], report["n_reference"]) == (9, 12)
        assert report["protocol"]["protocol"] == str(PROTOCOL) and "floor" not in report
    assert (
        measured("made", "real")["pictures"] == "made"
        and measured(pixels("made"), "real")["pictures"] == "images in memory"
    )
    assert measured("made", "real", n=5)["n"] == 5


def test_the_floor_is_of_real_images_that_are_not_the_reference() -> None:
    noise("other", 10, 2)
    rows = collect(open_source("real"), PROTOCOL, Tiny())
    assert isinstance(rows, FeatureRows)
    aside, rest = (part.features for part in set_aside(rows, 6))  # half of the reference, since it is the less
    report = measured("made", "real", split_reference=True)
    assert report["floor"]["kd"] == pytest.approx(kernel_distance(aside, rest)[0], rel=1e-9)
    assert report["kd"] == pytest.approx(kernel_distance(Tiny()(pixels("made")), rest)[0], rel=1e-9)
    report = measured("made", "real", real="other")
    others = collect(open_source("other"), PROTOCOL, Tiny())
    assert isinstance(others, FeatureRows)
    drawn = set_aside(others, 9)[0].features
    assert report["floor"]["pictures"] == "other"
    assert report["floor"]["kd"] == pytest.approx(kernel_distance(drawn, rows.features)[0], rel=1e-9)


def test_agreement_needs_no_reference() -> None:
    red, blue = (
        torch.tensor(c, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4) for c in ([255, 0, 0], [0, 0, 255])
    )
    images = torch.cat([red, blue])
    report = evaluate(images, towers=StubTowers(), captions=["red one", "blue one"])
    assert report["align_score(colours)"] == pytest.approx(1.0) and report["align_r1(colours)"] == 1.0
    assert report["captions"] == {"paired_by": "order"} and "fd" not in report
    swapped = evaluate(images, towers=StubTowers(), captions=["blue one", "red one"])
    assert swapped["align_score(colours)"] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(UserError, match="captions are missing"):
        evaluate(images, towers=StubTowers())
    with pytest.raises(UserError, match="captions has 1 texts; there are 2 images"):
        evaluate(images, towers=StubTowers(), captions=["red one"])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="there is nothing to measure"):
        evaluate("made")
    with pytest.raises(UserError, match="name the reference too"):
        evaluate("made", towers=StubTowers(), split_reference=True)
    with pytest.raises(UserError, match="name one of the two"):
        measured("made", "real", real="made", split_reference=True)
    with pytest.raises(UserError, match="unknown metric 'fids'; there are fd, kd, prdc, cmmd"):
        measured("made", "real", metrics=("fids",))
    with pytest.raises(UserError, match=r"should have shape \(N, 3, H, W\), got \(3, 4, 4\)"):
        measured(torch.zeros(3, 4, 4), "real")
    for images, says in (
        (None, "images is None; it must be a path, a source, a tensor of images or a list of tensors"),
        (FeatureRows(4), "images is a FeatureRows|images is FeatureRows"),
        (torch.zeros(2, 3, 4, 4).numpy(), r"images\[0\] is a ndarray; .*torch.from_numpy"),
        (["made/0.png"], r"images\[0\] is 'made/0.png'; it must be a tensor"),
        ([torch.zeros(4, 4)], r"images\[0\] has shape \(4, 4\)"),
        ([], "images holds no image"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)], r"images\[1\] holds torch.float32 \(3, 5, 5\)"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)], "they must be of one size and dtype"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            measured(images, "real")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"reference\[0\] is 1;"):
        measured("made", [1, 2])
    other = FeatureRows(4, {"extractor": "large"}, "elsewhere")
    other.update(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(UserError, match="elsewhere .* measured under different protocols"):
        measured("made", other)


class Inception(Tiny):
    """Stands in for FID's network: its name, its resize and its weights' hash."""

    name, resize = "inception-tf", "clean-299"

    def __init__(self, weights: Any, device: Any, allow_other_weights: Any, resize: str) -> None:
        self.weights_sha256 = str(inception.INCEPTION_FILE.sha256)
        self.resize = f"{resize}-299"


def test_fid_is_the_distance_on_inception_features_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "InceptionFeatures", Inception)
    x, y = (Tiny()(pixels(folder)) for folder in ("made", "real"))
    assert fid("made", "real") == pytest.approx(frechet_distance(x, y), rel=1e-9)
    report = evaluate("made", "real", ("fd",), "clean")
    assert report["fid"] == fid("made", "real", "clean") and "fd" not in report
    for protocol, extractor in (("mobilenet-offline", "mobilenet_v2"), ("dinov2", "dinov2-vitl14")):
        with pytest.raises(UserError, match=f"measures on {extractor}, where a Frechet distance is not FID"):
            fid("made", "real", protocol)


def test_fid_without_its_weights_says_where_to_get_them(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("DIFFDISTILL_WEIGHTS", str(here / "weights"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(here / "hub"))
    with pytest.raises(UserError, match='FID Inception weights not found.*pass weights=PATH, or weights="download"'):
        fid("made", "real")
