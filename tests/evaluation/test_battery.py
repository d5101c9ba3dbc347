"""The battery: the Vendi score and distances within captions against their definitions, trunks, ratios."""

import itertools
import math

import numpy as np
import pytest
import torch

from diffdistill.errors import UserError
from diffdistill.evaluation import kernel_distance
from diffdistill.evaluation.battery.encoders import Battery, build_encoder
from diffdistill.evaluation.battery.numbers import encoder_numbers, geometric_mean, over_encoders, ratios
from diffdistill.evaluation.battery.page import html_page
from diffdistill.evaluation.distances.vendi import vendi_score, vendi_within
from diffdistill.evaluation.distances.within import distance_within, spread_within
from diffdistill.evaluation.pairs.perceptual import st_lpips


@pytest.mark.parametrize(("n", "d"), [(7, 4), (4, 9), (1, 3)])
def test_vendi_is_the_entropy_of_the_eigenvalues_of_all_cosines(n: int, d: int) -> None:
    x = np.random.default_rng(0).normal(size=(n, d))
    cosines = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in x] for b in x])
    values = np.linalg.eigvals(cosines / n).real
    entropy = -sum(v * math.log(v) for v in values if v > 1e-12)
    assert vendi_score(torch.from_numpy(x)) == pytest.approx(math.exp(entropy), rel=1e-9)


def test_vendi_of_equal_and_of_orthogonal_images() -> None:
    assert vendi_score(torch.ones(5, 3)) == pytest.approx(1)
    assert vendi_score(3 * torch.eye(5)) == pytest.approx(5)
    groups = ["a", "a", "b", "b", "c"]
    assert vendi_within(torch.cat([torch.eye(3)[:2], torch.ones(3, 3)]), groups) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="row of zeros"):
        vendi_score(torch.zeros(2, 2))


def test_the_distance_within_captions_is_the_mean_of_kernel_distances() -> None:
    x, y = torch.randn(12, 6), torch.randn(12, 6) + 0.3
    captions = ["a", "b", "c"] * 4
    each = [kernel_distance(x[k::3], y[k::3])[0] for k in range(3)]
    assert distance_within(x, y, captions) == pytest.approx(sum(each) / 3, rel=1e-9)


def test_the_spread_is_the_distance_of_one_image_of_each_caption_drawn_always() -> None:
    torch.manual_seed(0)
    captions = [k // 40 for k in range(4000)]
    x, others = torch.randn(4000, 4), torch.randn(4000, 4)
    always = x[::40].repeat_interleave(40, 0)
    assert distance_within(always, others, captions) == pytest.approx(spread_within(others, captions), rel=0.2)


def test_it_sees_a_generator_that_always_draws_one_image() -> None:
    """All captions have the same images, so a distance over all of them sees no more than noise."""
    torch.manual_seed(0)
    others, captions = torch.randn(64, 4), [k // 8 for k in range(64)]
    fresh, collapsed = torch.randn(64, 4), torch.randn(8, 4).repeat_interleave(8, 0)
    assert distance_within(collapsed, others, captions) > 3 * abs(distance_within(fresh, others, captions))


@pytest.mark.parametrize(("name", "net", "dim"), [("st-alexnet", "alex", 1152), ("st-vgg16", "vgg", 1472)])
def test_trunks_give_means_of_normalised_maps(name: str, net: str, dim: int) -> None:
    encoder = build_encoder(name)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = encoder(images)
    assert found.shape == (3, dim) and encoder.dim == dim and encoder.name == f"st-lpips-{net}-trunk"
    distance = st_lpips(net)
    expected = []
    for image in images:
        maps = distance.maps(distance.scaled(image[None].float() / 255))
        parts = [torch.stack([m[0, :, i, j] / m[0, :, i, j].norm()
                              for i, j in itertools.product(range(m.shape[2]), range(m.shape[3]))
                              if m[0, :, i, j].norm() > 0]).sum(0) / m[0, 0].numel() for m in maps]  # fmt: skip
        expected.append(torch.cat(parts) * (dim / 5) ** 0.5)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert found.square().mean() <= 1
    assert torch.equal(found[:1], encoder(images[:1]))  # whatever the batch


def test_ratios_and_their_means() -> None:
    torch.manual_seed(0)
    real, captions = torch.randn(40, 5), [k // 4 for k in range(16)]
    good, poor = torch.randn(20, 5), torch.randn(20, 5) + 1
    many = torch.randn(16, 5)
    teacher = {"e": encoder_numbers(poor, real, many, captions), "f": encoder_numbers(poor, real, many, captions)}
    student = {"e": encoder_numbers(good, real, many / 2, captions), "f": teacher["f"]}
    found = ratios(student, teacher)
    assert found["e"]["variety"] == pytest.approx(0.5) and found["f"] == {"kd": 1, "variety": 1, "vendi": 1}
    assert found["e"]["kd"] == student["e"]["kd"] / teacher["e"]["kd"]
    assert found["e"]["vendi"] == pytest.approx(1)  # cosines do not see a factor
    over = over_encoders(found, ["e", "f"])
    assert over["variety"] == pytest.approx(math.sqrt(0.5)) and over["worst_variety"] == pytest.approx(0.5)
    for kd, se in ((-0.01, 0.0), (0.01, 0.02)):
        by_chance = {"e": {**teacher["e"], "kd": kd, "kd_se": se}, "f": teacher["f"]}
        assert ratios(student, by_chance)["e"]["kd"] is None
    assert geometric_mean([1.0, None]) is None and geometric_mean([-0.1, 4.0]) is None


def test_an_encoder_has_one_role() -> None:
    with pytest.raises(UserError, match="st-vgg16 is named twice"):
        Battery(("st-vgg16",), ("st-vgg16",))
    with pytest.raises(UserError, match="no encoder"):
        Battery((), ())


def test_a_page_of_one_seed_and_a_name_that_is_markup() -> None:
    one = {"kd": [0.1, None], "variety": [1.0, None], "vendi": [2.0, None]}
    row = {
        "name": "<b>teacher", "source": "assets/teacher", "digest": "00", "steps": 50, "guidance": 3.0, "nfe": 100,
        "seconds_per_image": None, "seeds": [0], "summary": {"all": {}, "tuning": {"kd": [1.0, None], "variety": None}},
        "encoders": {"e": {**one, "ratios": {"kd": None, "variety": [1.0, None], "vendi": [1.0, None]}}},
    }  # fmt: skip
    record = {
        "teacher": "<b>teacher", "tuning": ["e"], "judging": [], "prompts_of": "<i>", "reference": "r", "images": 4,
        "captions": 1, "per_caption": 2, "seeds": [0], "shown": ["<script>"], "rows": [row],
        "protocols": {"e": {"extractor": "e", "resize": "64", "weights_sha256": "ab"}},
    }  # fmt: skip
    page = html_page(record, {"<b>teacher": b"png"})
    assert "<b>teacher" not in page and "<script>alert" not in page and "&lt;script&gt;" in page
