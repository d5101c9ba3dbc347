"""PSNR and MS-SSIM against loops over windows, torchmetrics and pytorch-msssim; their twins against the functions."""

import doctest
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.pairs import pixels as pairs
from diffdistill.evaluation.pairs.pixels import MSSSIM, PSNR, PairMean, ms_ssim, psnr


def images(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Noise with structure at several scales, in [0, 1], on the levels of bytes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, height, width, generator=generator)
    for side in (8, 32):
        coarse = torch.rand(n, 3, height // side + 1, width // side + 1, generator=generator)
        x += coarse.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., :height, :width]
    return (x / 3 * 255).round() / 255


def noisy(x: Tensor, strength: float, seed: int = 9) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return ((x + strength * noise).clamp(0, 1) * 255).round() / 255


def bytes_of(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


def test_psnr_is_that_of_bytes_in_whole_numbers() -> None:
    x = images(4, 20, 30)
    y = noisy(x, 0.1)
    a, b = (bytes_of(v).numpy().astype(np.int64) for v in (x, y))
    expected = [10 * math.log10(255**2 / np.square(a[i] - b[i]).mean()) for i in range(4)]
    assert psnr(bytes_of(x), bytes_of(y)).tolist() == pytest.approx(expected, rel=1e-13)
    assert psnr(x, y).tolist() == pytest.approx(expected, rel=1e-6)
    assert psnr(bytes_of(x), y).tolist() == pytest.approx(expected, rel=1e-6)
    assert psnr(x, y).dtype == torch.float64
    assert psnr(x, x).tolist() == [math.inf] * 4
    assert psnr(x[:0], y[:0]).shape == (0,)


def test_psnr_equals_torchmetrics_and_its_mean_is_over_images() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    x = images(3, 20, 30).double()
    y = torch.cat([noisy(x[:1], 0.01), noisy(x[1:], 0.3)])
    theirs = functional.peak_signal_noise_ratio(y, x, data_range=1.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(x, y), theirs.double(), rtol=1e-6, atol=0)
    twin = PSNR()
    twin.update(x, y)
    assert twin.compute().mean == pytest.approx(float(psnr(x, y).mean()), rel=1e-14)
    pooled = functional.peak_signal_noise_ratio(y, x, data_range=1.0)
    assert twin.compute().mean > float(pooled) + 3  # what the module docstring warns of


@pytest.mark.parametrize("size", [(176, 176), (180, 211), (256, 192)])
@pytest.mark.parametrize("strength", [0.02, 0.3])
def test_ms_ssim_equals_torchmetrics(size: tuple[int, int], strength: float) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    x = images(2, *size).double()
    y = noisy(x, strength)
    theirs = functional.multiscale_structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")
    torch.testing.assert_close(ms_ssim(y, x, "torchmetrics"), theirs, rtol=1e-6, atol=0)
    if strength == 0.3:  # conventions do differ
        assert not torch.allclose(ms_ssim(y, x), theirs, rtol=1e-6, atol=0)


def test_ms_ssim_equals_pytorch_msssim() -> None:
    reference = pytest.importorskip("pytorch_msssim")
    x = images(2, 176, 208).double()
    y = noisy(x, 0.2)
    theirs = reference.ms_ssim(x, y, data_range=1.0, size_average=False)
    torch.testing.assert_close(ms_ssim(x, y), theirs, rtol=1e-5, atol=0)


def test_ms_ssim_equals_its_definition_window_by_window() -> None:
    x = images(1, 177, 190).double()
    y = noisy(x, 0.2)
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    per_channel = []
    for channel in range(3):
        a, b = x[0, channel].numpy(), y[0, channel].numpy()
        value = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            if scale:
                h, w = (side // 2 * 2 for side in a.shape)
                a, b = (v[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for v in (a, b))
            windows_a, windows_b = (np.lib.stride_tricks.sliding_window_view(v, (11, 11)) for v in (a, b))
            mean_a, mean_b = ((v * window).sum((2, 3)) for v in (windows_a, windows_b))
            centred_a, centred_b = windows_a - mean_a[..., None, None], windows_b - mean_b[..., None, None]
            var_a, var_b = ((v**2 * window).sum((2, 3)) for v in (centred_a, centred_b))
            covariance = (centred_a * centred_b * window).sum((2, 3))
            term = (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)
            if scale == 4:
                term *= (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
            value *= max(0.0, term.mean()) ** weight
        per_channel.append(value)
    assert float(ms_ssim(x, y)) == pytest.approx(sum(per_channel) / 3, rel=1e-10)


def test_growing_damage_lowers_both() -> None:
    x = images(2, 192, 192)
    for measure in (psnr, ms_ssim, lambda a, b: ms_ssim(a, b, "torchmetrics")):
        values = [float(measure(x, noisy(x, strength)).mean()) for strength in (0, 0.02, 0.05, 0.1, 0.3, 1)]
        assert values == sorted(values, reverse=True) and len(set(values)) == len(values)
    assert ms_ssim(x, x).tolist() == [1, 1]
    assert 0 <= float(ms_ssim(x[:1], 1 - x[:1])) < 0.05  # negative correlation counts as none


def test_bad_pairs_are_named() -> None:
    x = images(1, 180, 176)
    with pytest.raises(ValueError, match="at least 176 pixels a side, got 175x180"):
        ms_ssim(x[..., :175], x[..., :175])
    with pytest.raises(ValueError, match="one of per-channel, torchmetrics, got 'luma'"):
        ms_ssim(x, x, "luma")
    with pytest.raises(ValueError, match="one of per-channel"):
        MSSSIM("luma")
    for a, b, message in (
        (x, x[..., :100], r"one shape \(N, C, H, W\), got \(1, 3, 180, 176\) and \(1, 3, 180, 100\)"),
        (x[0], x[0], r"got \(3, 180, 176\)"),
        (x[..., :0], x[..., :0], "should hold pixels"),
        (x * 255, x, r"x should lie in \[0, 1\], got values from .* to 2.."),
        (x, x * math.nan, r"y should lie in \[0, 1\], got values from nan"),
        (x, x - 0.1, r"y should lie in \[0, 1\], got values from -"),
        (x, x.long(), "y should be uint8 or floating point in .*, got torch.int64"),
    ):
        for measure in (psnr, ms_ssim):
            with pytest.raises(ValueError, match=message):
                measure(a, b)


@pytest.mark.parametrize(("make", "function"), [(PSNR, psnr), (MSSSIM, ms_ssim)])
def test_a_twin_is_the_mean_of_the_function(make, function) -> None:
    x = images(5, 176, 176)
    y = torch.cat([noisy(x[i : i + 1], 0.1 * (i + 1)) for i in range(5)])
    whole, single, first, second = make(), make(), make(), make()
    whole.update(x, y)
    expected = function(x, y)
    torch.testing.assert_close(whole.values, expected, rtol=1e-14, atol=0)
    score = whole.compute()
    assert score.mean == pytest.approx(float(expected.mean()), rel=1e-14) and score.n == 5
    assert score.standard_error == pytest.approx(float(expected.std() / 5**0.5), rel=1e-12)
    for i in range(5):
        single.update(x[i : i + 1], y[i : i + 1])
    assert single.compute() == pytest.approx(score, rel=1e-12)
    first.update(x[:2], y[:2])
    second.update(x[2:], y[2:])
    first.merge_state(second)
    assert first.compute() == pytest.approx(score, rel=1e-12)
    assert second.compute().n == 3 and whole.all_reduce().compute() == score
    second.reset()
    with pytest.raises(ValueError, match="at least 1 pair"):
        second.compute()
    with pytest.raises(ValueError, match="one shape"):
        second.update(x, y[:2])
    second.update(x[:1], y[:1])
    assert second.compute().standard_error is None and second.compute().n == 1
    called = make()
    assert called(x[:2], y[:2]).mean == pytest.approx(float(expected[:2].mean()), rel=1e-14)  # of these alone
    called(x[2:], y[2:])
    assert called.compute() == pytest.approx(score, rel=1e-12)


def test_sizes_may_differ_from_update_to_update() -> None:
    twin = PSNR()
    for side in (10, 17):
        x = images(1, side, 2 * side)
        twin.update(x, noisy(x, 0.1))
    assert twin.compute().n == 2


def test_an_equal_pair_makes_the_mean_infinite_and_is_seen() -> None:
    x = images(2, 16, 16)
    twin = PSNR()
    twin.update(x, torch.stack([x[0], noisy(x[1], 0.1)]))
    assert twin.compute() == (math.inf, None, 2)
    assert twin.values.isinf().tolist() == [True, False]


def test_rounding_to_bytes_is_a_choice_and_part_of_the_protocol() -> None:
    x = images(1, 16, 16)
    y = (x + 0.3 / 255).clamp(0, 1)  # less than half a level away
    exact, rounded = PSNR(), PSNR(quantise=True)
    for twin in (exact, rounded):
        twin.update(x, y)
    assert exact.compute().mean < 70 and rounded.compute().mean == math.inf
    assert rounded.protocol == {"metric": "psnr", "mean": "over-images", "quantisation": "uint8-round"}
    assert MSSSIM().protocol == {
        "metric": "ms-ssim",
        "mean": "over-images",
        "convention": "per-channel",
        "quantisation": "none",
    }
    with pytest.raises(UserError, match='quantisation is "none" and "uint8-round"'):
        exact.merge_state(rounded)
    with pytest.raises(UserError, match='convention is "per-channel" and "torchmetrics"'):
        MSSSIM().merge_state(MSSSIM("torchmetrics"))


def test_a_measure_that_fails_takes_nothing_in() -> None:
    twin = PairMean(lambda x, y: (x - y).mean((1, 2, 3)) / 0, {"metric": "broken"})
    with pytest.raises(ValueError, match="not finite"):
        twin.update(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
    with pytest.raises(ValueError, match="at least 1 pair"):
        twin.compute()


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from diffdistill.evaluation.pairs.pixels import PSNR
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
x, y = torch.load(f"{folder}/pairs.pt", weights_only=True)
share = PSNR()
share.update(x[rank::2], y[rank::2])
total = share.all_reduce()
assert share.compute().n < total.compute().n
torch.save(total.values, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_count_as_one(tmp_path: Path) -> None:
    x = images(5, 16, 16)
    y = noisy(x, 0.2)
    torch.save((x, y), tmp_path / "pairs.pt")
    command = [sys.executable, "-c", TWO_PROCESSES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=100) for process in processes] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, psnr(x, y), rtol=1e-14, atol=0)


def test_docstring_examples() -> None:
    result = doctest.testmod(pairs)
    assert result.attempted
    assert not result.failed
