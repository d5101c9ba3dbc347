"""One pass from images to numbers: cached references, refusals, names, and what batches must not change."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffdistill.data.sources import open_source
from diffdistill.errors import UserError
from diffdistill.evaluation.distances.kernel import kernel_distance
from diffdistill.evaluation.features import weight_files as weights
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.statistics import FeatureStatistics
from diffdistill.evaluation.measure import Reading, collect
from diffdistill.evaluation.metrics import distances
from diffdistill.evaluation.protocols import PROTOCOLS, Protocol
from diffdistill.evaluation.reference import read_reference

PROTOCOL = dataclasses.replace(PROTOCOLS["mobilenet-offline"], name="tiny")


class Tiny(Extractor):
    """The mean of each of four quarters of an image's red: features one can work out by hand."""

    name, dim, resize, weights_sha256 = "tiny", 4, "none", "0" * 64
    device = torch.device("cpu")

    def prepare(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 2)

    def network(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def folder(path: Path, n: int, seed: int, side: int = 4) -> Path:
    path.mkdir()
    draw = np.random.default_rng(seed)
    for i in range(n):
        Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path / f"{i:03d}.png")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_features_are_those_of_the_pictures_whatever_the_batch(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path / "a", 9, 0))
    expected = torch.stack([source.read(i)[0].float().reshape(2, 2, 2, 2).mean((1, 3)).flatten() for i in range(9)])
    for size, threads in ((1, 0), (4, 2), (64, 3)):
        rows = collect(source, PROTOCOL, Tiny(), reading=Reading(size, threads))
        assert isinstance(rows, FeatureRows)
        torch.testing.assert_close(rows.features, expected)
        moments = collect(source, PROTOCOL, Tiny(), rows=False, reading=Reading(size, threads))
        assert isinstance(moments, FeatureStatistics)
        torch.testing.assert_close(moments.mean, expected.double().mean(0), rtol=1e-12, atol=0)
    assert collect(source, PROTOCOL, Tiny(), n=5).n == 5
    with pytest.raises(UserError, match="holds 9 images; 10 were asked for"):
        collect(source, PROTOCOL, Tiny(), n=10)


def test_a_reference_of_pictures_is_measured_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = folder(tmp_path / "real", 6, 1)
    first = read_reference(pictures, PROTOCOL, Tiny())
    (file,) = cache.glob("*.safetensors")
    monkeypatch.setattr(Tiny, "network", lambda self, x: pytest.fail("measured again"))
    again = read_reference(pictures, PROTOCOL, Tiny())
    assert isinstance(first, FeatureRows) and isinstance(again, FeatureRows)
    assert torch.equal(first.features, again.features)
    monkeypatch.undo()
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(cache))
    file.write_bytes(file.read_bytes()[:-3])  # damaged: made again
    assert read_reference(pictures, PROTOCOL, Tiny()).n == 6
    (pictures / "000.png").write_bytes((pictures / "001.png").read_bytes())  # other contents are another reference
    read_reference(pictures, PROTOCOL, Tiny())
    other = dataclasses.replace(PROTOCOL, crop="centre-square")
    read_reference(pictures, other, Tiny())
    assert len(list(cache.glob("*.safetensors"))) == 3


def test_numbers_are_the_distances_and_carry_their_protocol(tmp_path: Path) -> None:
    a, b = (collect(open_source(folder(tmp_path / k, 12, i)), PROTOCOL, Tiny()) for i, k in enumerate("ab"))
    assert isinstance(a, FeatureRows) and isinstance(b, FeatureRows)
    found = distances(a, b, ["fd", "kd", "prdc"])
    assert (found["kd"], found["kd_se"]) == kernel_distance(a.features, b.features)
    assert found["protocol"]["protocol"] == str(PROTOCOL) and (found["n"], found["n_reference"]) == (12, 12)
    assert {"fd", "precision", "recall", "density", "coverage"} <= set(found) and "fid" not in found
    assert distances(a.statistics(), b.statistics(), ["fd"])["fd"] == pytest.approx(found["fd"], rel=1e-9)
    with pytest.raises(UserError, match="kd needs every row"):
        distances(a.statistics(), b, ["kd"])
    with pytest.raises(UserError, match="defined on CLIP's embeddings"):
        distances(a, b, ["cmmd"])


def test_only_inception_with_its_own_weights_is_called_fid() -> None:
    from diffdistill.evaluation.features.inception import INCEPTION_FILE

    for sha256, names in ((INCEPTION_FILE.sha256, {"fid", "kid", "kid_se"}), ("0" * 64, {"fd", "kd", "kd_se"})):
        rows = [FeatureRows(2, {"extractor": "inception-tf", "weights_sha256": sha256}) for _ in range(2)]
        for i, set_ in enumerate(rows):
            set_.update(torch.randn(5, 2, generator=torch.Generator().manual_seed(i)))
        assert names <= set(distances(*rows, ["fd", "kd"]))


def test_statistics_of_another_protocol_do_not_compare(tmp_path: Path) -> None:
    file = tmp_path / "ref.safetensors"
    collect(open_source(folder(tmp_path / "a", 5, 0)), PROTOCOL, Tiny()).save(file)
    assert read_reference(file, PROTOCOL, Tiny()).n == 5
    other: Protocol = dataclasses.replace(PROTOCOL, crop="centre-square")
    with pytest.raises(UserError, match="protocol is .*tiny@"):
        read_reference(file, other, Tiny())
    collect(open_source(tmp_path / "a"), PROTOCOL, Tiny(), rows=False).save(file)
    with pytest.raises(UserError, match="mean and scatter alone"):
        read_reference(file, PROTOCOL, Tiny())


def test_corrupt_and_mixed_pictures(tmp_path: Path) -> None:
    pictures = folder(tmp_path / "a", 5, 0)
    (pictures / "002.png").write_text("no image")
    with pytest.raises(UserError, match=r"002\.png cannot be read"):
        collect(open_source(pictures), PROTOCOL, Tiny())
    said: list[str] = []
    assert (
        collect(open_source(pictures), PROTOCOL, Tiny(), reading=Reading(on_corrupt="skip", report=said.append)).n == 4
    )
    assert "002.png" in said[0] and "1 of 5 images were left out" in said[1]
    Image.new("RGB", (6, 4)).save(pictures / "002.png")
    with pytest.raises(UserError, match="sizes 4x4, 6x4"):
        collect(open_source(pictures), PROTOCOL, Tiny())
    assert collect(open_source(pictures), dataclasses.replace(PROTOCOL, mixed_sizes=True), Tiny()).n == 5


def test_the_cache_is_where_one_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DIFFDISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.user_cache() == tmp_path / "diffdistill"
