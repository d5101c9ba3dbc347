"""Patches against a loop over places; their distances against the distances on features of patches cut by hand."""

import doctest

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.distances.frechet import frechet_distance
from diffdistill.evaluation.distances.kernel import kernel_distance
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.pairs import patches as patches_module
from diffdistill.evaluation.pairs.patches import PatchDistance, PatchFeatures, extract_patches, patch_distance


class Tiny(Extractor):
    """Moments of colours and of edges: 12 features."""

    name, dim, resize, weights_sha256 = "tiny", 12, "none", "0" * 64
    device = torch.device("cpu")

    def prepare(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def network(self, x: Tensor) -> Tensor:
        edges = x.diff(dim=3)
        return torch.cat([m for v in (x, edges) for m in (v.mean((2, 3)), v.std((2, 3)))], 1)


def images(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def blurred(x: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(x.float(), width, 1, width // 2, count_include_pad=False).round().to(torch.uint8)


def corners(height: int, width: int, side: int, second_pass: str) -> list[tuple[int, int]]:
    """Upper left corners, by the words of the paper."""
    first = [(i * side, j * side) for i in range(height // side) for j in range(width // side)]
    half, second = side // 2, []
    for top in range(half, height, side):
        for left in range(half, width, side):
            fits = top + side <= height and left + side <= width
            counted = top // side < height // side - 1 and left // side < width // side - 1
            if fits and (second_pass == "all" or counted):
                second.append((top, left))
    return first + second


@pytest.mark.parametrize("second_pass", ["hific", "all"])
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (12, 12), (13, 31), (24, 16), (15, 8), (23, 20)])
def test_two_passes_are_at_the_places_of_the_paper(size: tuple[int, int], second_pass: str) -> None:
    image = images(1, *size)[0]
    found = extract_patches(image, 8, second_pass)
    expected = [image[:, i : i + 8, j : j + 8] for i, j in corners(*size, 8, second_pass)]
    assert torch.equal(found, torch.stack(expected))


def test_counts_of_known_sizes() -> None:
    kodak = torch.zeros(3, 512, 768)
    assert 24 * len(extract_patches(kodak)) == 192  # that of the paper's appendix
    assert len(extract_patches(kodak, second_pass="all")) == 8
    rest = torch.zeros(3, 640, 900)  # leaves 128 and 132
    assert len(extract_patches(rest)) == 6 + 2 and len(extract_patches(rest, second_pass="all")) == 6 + 6
    assert len(extract_patches(torch.zeros(3, 256, 256))) == 1


def test_distances_are_those_on_patches_cut_by_hand() -> None:
    originals = [images(1, 40, 52, seed=1)[0], images(1, 32, 33, seed=2)[0], images(1, 16, 70, seed=3)[0]]
    coded = [blurred(x[None], 3)[0] for x in originals]
    features = PatchFeatures(Tiny(), side=16)
    found = patch_distance(coded, originals, features)

    def by_hand(several: list[Tensor]) -> Tensor:
        cut = [x[:, i : i + 16, j : j + 16] for x in several for i, j in corners(x.shape[1], x.shape[2], 16, "hific")]
        return Tiny()(torch.stack(cut))

    x, y = by_hand(coded), by_hand(originals)
    assert found.n == found.n_reference == len(x) == (6 + 2) + (4 + 1) + 4
    assert (found.kernel, found.kernel_standard_error) == pytest.approx(kernel_distance(x, y), rel=1e-12)
    assert found.frechet.total == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_features_depend_on_neither_batches_nor_form() -> None:
    x = images(5, 40, 52)
    features = PatchFeatures(Tiny(), side=16)
    whole = features(x)
    assert whole.shape == (5 * 8, 12)
    for batch_size in (1, 9, 1000):
        assert torch.equal(features(list(x), batch_size), whole)
    assert torch.equal(features(x.double() / 255), whole)
    assert torch.equal(features([x[0], x[1].float() / 255]), whole[:16])
    assert features(x[:0]).shape == (0, 12)


def test_the_twin_adds_up() -> None:
    x = images(6, 40, 52)
    y = blurred(x, 3)
    features = PatchFeatures(Tiny(), side=16)
    expected = patch_distance(y, x, features)
    one, first, second = PatchDistance(features), PatchDistance(features), PatchDistance(features)
    for i in range(6):
        one.update(y[i : i + 1], x[i : i + 1])
    assert one.compute() == expected and one.all_reduce().compute() == expected
    first.update(y[:2], x)
    second.update(y[2:], x[:0])
    first.merge_state(second)
    assert first.compute() == expected
    first.reset()
    with pytest.raises(ValueError, match="at least 3 rows"):
        first.compute()
    called = PatchDistance(features)
    assert called(y[:3], x[:3]) == patch_distance(y[:3], x[:3], features)  # of these alone
    called(y[3:], x[3:])
    assert called.compute() == expected


def test_growing_damage_grows_both_and_none_is_none() -> None:
    x = images(4, 64, 64)
    features = PatchFeatures(Tiny(), side=16)
    assert patch_distance(x, x, features).frechet.total < 1e-9
    found = [patch_distance(blurred(x, width), x, features) for width in (3, 5, 9)]
    for values in ([f.kernel for f in found], [f.frechet.total for f in found]):
        assert 0 < values[0] < values[1] < values[2]


def test_protocols_tell_patches_from_images_and_sizes_from_sizes() -> None:
    extractor = Tiny()
    features = PatchFeatures(extractor, side=16)
    assert features.name == "tiny/patch-16"
    assert features.protocol == {**extractor.protocol, "patches": {"side": 16, "second_pass": "hific"}}
    with pytest.raises(UserError, match="patches.side is 16 and 32"):
        PatchDistance(features).merge_state(PatchDistance(PatchFeatures(extractor, side=32)))
    with pytest.raises(UserError, match='second_pass is "hific" and "all"'):
        PatchDistance(features).merge_state(PatchDistance(PatchFeatures(extractor, 16, "all")))


def test_bad_images_are_named_by_number() -> None:
    x = images(2, 40, 52)
    features = PatchFeatures(Tiny(), side=32)
    for bad, message in (
        ([x[0], x[1, :, :30]], r"images\[1\]: an image of 52x30 holds no patch of 32x32"),
        ([x[0], x[0].float()], r"images\[1\]: images should lie in \[0, 1\]"),
        ([x[0] / 255 * float("nan")], r"images\[0\]: .*nan"),
        ([x], r"images\[0\] should have shape \(3, H, W\), got \(2, 3, 40, 52\)"),
        ([x[0, :1]], r"images\[0\] should have shape \(3, H, W\), got \(1, 40, 52\)"),
    ):
        with pytest.raises(ValueError, match=message):
            features(bad)
    with pytest.raises(ValueError, match=r"image should have shape \(C, H, W\), got \(2, 3, 40, 52\)"):
        extract_patches(x)
    for side in (0, 15, -2):
        with pytest.raises(ValueError, match=f"side should be even and at least 2, got {side}"):
            PatchFeatures(Tiny(), side)
    with pytest.raises(ValueError, match="one of hific, all, got 'both'"):
        extract_patches(x[0], 16, "both")
    with pytest.raises(ValueError, match="batch_size should be at least 1, got 0"):
        features(x, 0)


def test_docstring_examples() -> None:
    result = doctest.testmod(patches_module)
    assert result.attempted
    assert not result.failed
