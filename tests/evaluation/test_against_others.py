"""One seeded random Inception weight file, read by torch-fidelity, torchmetrics, clean-fid and by us: the same numbers.

bench/same_numbers.py does the same on hundreds of images, with every tool's own 2048 x 2048 arithmetic.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.evaluation.distances.frechet import frechet_distance
from diffdistill.evaluation.distances.inception_score import inception_score
from diffdistill.evaluation.distances.kernel import kernel_distance
from diffdistill.evaluation.features.inception import InceptionFeatures
from diffdistill.evaluation.features.inception_network import random_state_dict

torch_fidelity = pytest.importorskip("torch_fidelity")

N = 8  # images a set
FEW = 6  # features of 2048 that the covariance of 8 images can hold
Sets = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_state_dict(seed=0), path)
    return path


@pytest.fixture(scope="module")
def images() -> Sets:
    """Two sets of uint8 (N, 3, 64, 48); the second is darker and smoother."""
    generator = torch.Generator().manual_seed(0)
    rough = [F.interpolate(torch.rand(2 * N, 3, s, s, generator=generator), size=(64, 48)) for s in (2, 5, 16)]
    x = torch.stack(rough).mean(0)
    x[N:] = 0.8 * F.avg_pool2d(x[N:], 5, 1, 2)
    first, second = (x * 255).round().to(torch.uint8).split(N)
    return first, second


@pytest.fixture(scope="module")
def folders(images: Sets, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("images")
    for name, pictures in zip("ab", images, strict=True):
        (root / name).mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(root / name / f"{i:03}.png")
    return root / "a", root / "b"


@pytest.fixture(scope="module")
def theirs(weights: Path) -> Any:
    """torch-fidelity's network with all its outputs."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    names = ["64", "192", "768", "2048", "logits_unbiased", "logits"]
    return module.FeatureExtractorInceptionV3("all", names, feature_extractor_weights_path=str(weights))


def ours(weights: Path, images: Sets, features: str = "2048", resize: str = "tf1-bilinear") -> Sets:
    extractor = InceptionFeatures(weights, allow_other_weights=True, features=features, resize=resize)
    return extractor(images[0]), extractor(images[1])


def difference(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def legacy(weights: Path, images: Sets, theirs: Any) -> dict[str, tuple[Sets, Sets]]:
    """By tap, our features of both sets and torch-fidelity's."""
    extractor = InceptionFeatures(weights, allow_other_weights=True)
    mine = [extractor.taps(x, theirs.features_list) for x in images]
    with torch.no_grad():
        other = [dict(zip(theirs.features_list, theirs(x), strict=True)) for x in images]
    return {name: ((mine[0][name], mine[1][name]), (other[0][name], other[1][name])) for name in theirs.features_list}


def test_features_are_torch_fidelitys(legacy: dict[str, tuple[Sets, Sets]]) -> None:
    for name, (mine, other) in legacy.items():
        assert max(map(difference, mine, other)) < 1e-4, name


def test_frechet_and_kernel_distance_are_torch_fidelitys(legacy: dict[str, tuple[Sets, Sets]]) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    mine, other = legacy["2048"]
    statistics = [fid_features_to_statistics(x[:, :FEW]) for x in other]
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(mine[0][:, :FEW], mine[1][:, :FEW]) == pytest.approx(fid, rel=1e-4)

    settings = {"kid_subsets": 7, "kid_subset_size": 6, "rng_seed": 2020, "verbose": False}
    kid = kid_features_to_metric(*other, **settings)
    draws, values = np.random.RandomState(2020), []
    for _ in range(7):
        i, j = (torch.from_numpy(draws.choice(N, 6, replace=False)) for _ in range(2))
        values.append(kernel_distance(mine[0][i], mine[1][j])[0])
    assert np.mean(values) == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-4)
    assert np.std(values) == pytest.approx(kid["kernel_inception_distance_std"], rel=1e-4)


def test_inception_score_is_torch_fidelitys(legacy: dict[str, tuple[Sets, Sets]]) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    mine, other = legacy["logits_unbiased"]
    score = isc_features_to_metric(other[0], splits=3, shuffle=False, rng_seed=2020)
    assert inception_score(mine[0], splits=3)[0] == pytest.approx(score["inception_score_mean"], rel=1e-4)


def test_numbers_from_folders_are_torch_fidelitys(weights: Path, images: Sets, folders: tuple[Path, Path]) -> None:
    """By its own command's code, on the 64 features of the first stage, more than there are images."""
    metrics = torch_fidelity.calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        fid=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=N,  # all images, so which are drawn does not matter
        feature_layer_fid="64",
        feature_layer_kid="64",
        feature_extractor_weights_path=str(weights),
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    x, y = ours(weights, images, features="64")
    assert frechet_distance(x, y) == pytest.approx(metrics["frechet_inception_distance"], rel=1e-4)
    assert kernel_distance(x, y)[0] == pytest.approx(metrics["kernel_inception_distance_mean"], rel=1e-4)


@pytest.mark.parametrize(("antialias", "resize"), [(True, "bilinear-antialias"), (False, "tf1-bilinear")])
def test_fid_is_torchmetrics(weights: Path, images: Sets, antialias: bool, resize: str) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(
        feature=64, feature_extractor_weights_path=str(weights), antialias=antialias
    )
    for x, real in zip(images, (True, False), strict=True):
        fid.update(x, real=real)
    expected = float(fid.set_dtype(torch.float64).compute())
    assert frechet_distance(*ours(weights, images, "64", resize)) == pytest.approx(expected, rel=1e-4)


class ForCleanFid(nn.Module):
    """torch-fidelity's network in the form of the TorchScript file that clean-fid reads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        stages = [child for name, child in network.named_children() if name != "fc"]
        self.layers = torch.jit.trace(nn.Sequential(*stages), torch.zeros(2, 3, 299, 299))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - 128) / 128)


def test_features_and_fid_are_clean_fids(
    weights: Path, images: Sets, folders: tuple[Path, Path], theirs: Any, tmp_path: Path
) -> None:
    fid = pytest.importorskip("cleanfid.fid")
    from cleanfid.inception_torchscript import InceptionV3W

    torch.jit.script(ForCleanFid(theirs)).save(tmp_path / "inception-2015-12-05.pt")
    network = InceptionV3W(str(tmp_path), download=False)
    cpu = {"num_workers": 0, "device": torch.device("cpu"), "mode": "clean", "verbose": False}
    other = [fid.get_folder_features(str(folder), network, **cpu) for folder in folders]
    mine = ours(weights, images, resize="clean")
    for x, y in zip(mine, other, strict=True):
        assert difference(x, torch.from_numpy(y)) < 1e-4
    expected = fid.fid_from_feats(other[0][:, :FEW], other[1][:, :FEW])
    assert frechet_distance(mine[0][:, :FEW], mine[1][:, :FEW]) == pytest.approx(expected, rel=1e-4)
