"""Curves of rate and distortion against closed forms; classic codecs give the image back."""

import math

import pytest
import torch

from diffdistill.errors import UserError
from diffdistill.evaluation.pairs.pixels import psnr
from diffdistill.evaluation.rate.classic import CLASSIC, ClassicCodec
from diffdistill.evaluation.rate.curves import bd_rate, scaled, value_at

RATES = [0.05, 0.1, 0.2, 0.4]
VALUES = {"psnr_db": [24.0, 27.0, 30.0, 33.0], "ms_ssim": [0.8, 0.9, 0.95, 0.98], "st_alex": [0.4, 0.2, 0.1, 0.05]}


@pytest.mark.parametrize("metric", VALUES)
def test_a_codec_with_a_share_of_the_bits_has_that_bd_rate(metric: str) -> None:
    values = VALUES[metric]
    assert bd_rate(RATES, values, RATES, values, metric) == pytest.approx(0)
    fewer = [0.7 * rate for rate in RATES]
    assert bd_rate(fewer, values, RATES, values, metric) == pytest.approx(-0.3)
    assert bd_rate(RATES, values, fewer, values, metric) == pytest.approx(1 / 0.7 - 1)
    assert bd_rate(fewer, values, RATES, values, metric, (0.1, 0.2)) == pytest.approx(-0.3)
    shuffled = [2, 0, 3, 1]
    found = bd_rate([fewer[i] for i in shuffled], [values[i] for i in shuffled], RATES, values, metric)
    assert found == pytest.approx(-0.3)


def test_curves_that_share_no_quality_have_no_bd_rate() -> None:
    assert math.isnan(bd_rate([0.1, 0.2], [40.0, 41.0], [0.1, 0.2], [20.0, 21.0], "psnr_db"))


def test_a_point_that_costs_more_than_a_better_one_is_left_out() -> None:
    with_worse = bd_rate([*RATES, 0.3], [*VALUES["psnr_db"], 25.0], RATES, VALUES["psnr_db"], "psnr_db")
    assert with_worse == pytest.approx(0)


@pytest.mark.parametrize("metric", VALUES)
def test_values_between_points_and_outside(metric: str) -> None:
    values = VALUES[metric]
    for rate, value in zip(RATES, values, strict=True):
        assert value_at(RATES, values, rate, metric) == pytest.approx(value)
    middle = value_at(RATES, values, math.sqrt(0.1 * 0.2), metric)
    assert scaled(metric, middle) == pytest.approx((scaled(metric, values[1]) + scaled(metric, values[2])) / 2)
    assert math.isnan(value_at(RATES, values, 0.5, metric)) and math.isnan(value_at(RATES, values, 0.01, metric))


@pytest.mark.parametrize("name", CLASSIC)
def test_classic_codecs(name: str) -> None:
    codec = CLASSIC[name]
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 5), size=(64, 80), mode="bilinear")[0]
    image = (image * 255).round().to(torch.uint8)
    try:
        files = [codec.encode(image, quality) for quality in codec.qualities]
    except UserError as error:
        pytest.skip(str(error))
    sizes = [len(data) for data in files]
    assert sizes[0] < sizes[-1]
    made = codec.decode(files[-1])
    assert made.shape == image.shape and float(psnr(image[None], made[None])) > 30


def test_a_codec_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"pip install 'diffdistill\[codec\]'"):
        ClassicCodec("odd", "ODD", (1,), plugin="no_such_plugin").encode(torch.zeros(3, 8, 8, dtype=torch.uint8), 1)
    with pytest.raises(UserError, match="this Pillow has no odd"):
        ClassicCodec("odd", "ODD", (1,)).encode(torch.zeros(3, 8, 8, dtype=torch.uint8), 1)
