"""The fast network against the table run unit by unit, its checks, and what it must not depend on."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.inception import INCEPTION_FILE, TAPS, InceptionFeatures
from diffdistill.evaluation.features.inception_network import (
    Pool,
    Unit,
    check_state_dict,
    normalised,
    pool,
    random_state_dict,
    state_dict_shapes,
    walk,
)
from diffdistill.evaluation.features.resize import resize
from diffdistill.evaluation.features.weight_files import sha256_of


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state_dict(seed=1)


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> InceptionFeatures:
    return InceptionFeatures(weights, allow_other_weights=True)


def images(n: int, side: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    return (F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def slowly(state: dict[str, Tensor], pixels: Tensor) -> dict[str, Tensor]:
    """All taps in float64, unit by unit, with batch norm of its own."""
    double = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}

    def apply(name: str, unit: Unit, x: Tensor) -> Tensor:
        y = F.conv2d(x, double[f"{name}.conv.weight"], stride=unit.stride, padding=unit.padding)
        return normalised(double, name, y).relu()

    found = {tap: y.mean((2, 3)) for tap, y in walk(((pixels - 128) / 128).double(), apply)}
    found["logits_unbiased"] = found["2048"] @ double["fc.weight"].T
    return found | {"logits": found["logits_unbiased"] + double["fc.bias"]}


def test_equals_the_table_run_slowly_in_float64(extractor: InceptionFeatures, state: dict[str, Tensor]) -> None:
    x = images(3)
    expected = slowly(state, resize(x, 299, "tf1-bilinear"))
    got = extractor.taps(x, list(TAPS))
    for name, dim in TAPS.items():
        assert got[name].shape == (3, dim) and got[name].dtype == torch.float32
        assert (got[name] - expected[name]).norm() / expected[name].norm() < 1e-5, name
    assert torch.equal(extractor(x), got["2048"])


def test_random_weights_give_features_that_tell_images_apart(extractor: InceptionFeatures) -> None:
    for name, features in extractor.taps(images(8), ("64", "768", "2048")).items():
        assert 0.1 < features.mean() < 100, name
        between, within = features.std(0).mean(), features.mean()
        assert 0.02 < between / within < 2, name


def test_random_weights_are_those_of_their_seed(state: dict[str, Tensor]) -> None:
    again, other = random_state_dict(seed=1), random_state_dict(seed=2)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    assert not torch.equal(state["fc.weight"], other["fc.weight"])


def test_features_do_not_depend_on_batches_neighbours_or_order(extractor: InceptionFeatures) -> None:
    x = images(9)
    together = extractor(x)
    assert torch.equal(extractor(x, batch_size=1), together)
    some = [8, 2, 5]
    assert torch.equal(extractor(x[some]), together[some])
    assert torch.equal(extractor([x[8], images(1, side=50)[0]])[:1], together[8:])
    assert not together.is_inference() and extractor(x[:0]).shape == (0, 2048)


def test_average_pool_leaves_out_the_padding_and_the_last_block_pools_by_maximum() -> None:
    ones = torch.ones(1, 1, 4, 4)
    assert torch.equal(pool(ones, Pool("average")), ones)
    corner = torch.zeros(1, 1, 3, 3)
    corner[..., 0, 0] = 1
    assert pool(corner, Pool("average"))[0, 0, 0, 0] == 0.25
    assert pool(corner, Pool("maximum"))[0, 0, 1, 1] == 1
    assert pool(torch.ones(1, 1, 35, 35), Pool("maximum", 2)).shape[-1] == 17


def test_layout_is_the_published_one() -> None:
    shapes = state_dict_shapes()
    assert len(shapes) == 566
    learned = [shape for name, shape in shapes.items() if "running" not in name and "tracked" not in name]
    assert sum(torch.Size(shape).numel() for shape in learned) == 23_850_960
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_6e.branch7x7dbl_5.conv.weight"] == (192, 192, 1, 7)
    assert shapes["Mixed_7c.branch3x3_2b.bn.running_var"] == (384,)
    assert shapes["fc.weight"] == (1008, 2048)


def test_protocol_carries_what_was_chosen(weights: Path) -> None:
    extractor = InceptionFeatures(weights, allow_other_weights=True, features="192", resize="clean")
    assert extractor.protocol == {
        "extractor": "inception-tf/192",
        "weights_sha256": sha256_of(weights),
        "quantisation": "uint8-round",
        "resize": "clean-299",
        "feature_dim": 192,
    }
    x = images(2)
    expected = extractor.network(((resize(x, 299, "clean") - 128) / 128).contiguous(memory_format=torch.channels_last))
    assert torch.allclose(extractor(x), expected, rtol=1e-5)


def test_wrong_choices_are_named(weights: Path, extractor: InceptionFeatures) -> None:
    with pytest.raises(UserError, match="features should be one of 64, .*got '1024'"):
        InceptionFeatures(weights, allow_other_weights=True, features="1024")
    with pytest.raises(UserError, match="resize should be one of tf1-bilinear, .*got 'pil-lanczos'"):
        InceptionFeatures(weights, allow_other_weights=True, resize="pil-lanczos")
    with pytest.raises(ValueError, match="got 'pool3'"):
        extractor.taps(images(1), ("2048", "pool3"))


def test_a_wrong_hash_or_a_missing_file_says_where_to_get_it(weights: Path, tmp_path: Path) -> None:
    for path, what in ((weights, f"sha256 is {sha256_of(weights)}, should be"), (tmp_path / "absent.pth", "no file")):
        with pytest.raises(UserError, match=what) as caught:
            InceptionFeatures(path)
        message = str(caught.value)
        assert "\n" not in message and INCEPTION_FILE.url in message and str(INCEPTION_FILE.sha256) in message


def test_weights_of_another_network_are_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    def refused(changed: dict[str, Tensor], match: str) -> None:
        with pytest.raises(UserError, match=match):
            check_state_dict(changed, "file")

    check_state_dict(state, "file")
    refused({k: v for k, v in state.items() if k != "fc.bias"}, "lacks 1 tensors, as 'fc.bias'")
    refused(state | {"AuxLogits.fc.weight": torch.zeros(1)}, "has unknown 1 tensors, as 'AuxLogits.fc.weight'")
    refused(
        state | {"fc.weight": torch.zeros(1000, 2048)}, r"fc.weight has shape \(1000, 2048\), should be \(1008, 2048\)"
    )
    refused(state | {"fc.bias": torch.full((1008,), float("nan"))}, "fc.bias holds values that are not finite")
    for name, content in (("text.pth", b"not weights"), ("empty.pth", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match="can't be read as FID Inception weights"):
            InceptionFeatures(path, allow_other_weights=True)
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="should hold a state dict, holds a list"):
        InceptionFeatures(tmp_path / "list.pth", allow_other_weights=True)


def test_building_and_running_leave_the_random_state_alone(weights: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    extractor = InceptionFeatures(weights, allow_other_weights=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must not reach the network
        features = extractor(images(2))
    assert torch.equal(features, extractor(images(2)))
    random_state_dict(3)
    assert torch.equal(torch.get_rng_state(), before)
