"""One cell of a sweep: counted network passes, seconds, and images fitted to squares."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_sweep import write_png
from torch import Tensor

from diffdistill.data.in_memory import InMemory
from diffdistill.evaluation.page.strips import read_strip
from diffdistill.evaluation.sweep import cells
from diffdistill.evaluation.sweep.cells import Watched, side_by_side


def test_network_passes_are_counted_and_seconds_are_a_median(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Identity()

    class Made(InMemory):
        def read_many(self, indices: Any) -> list[Tensor]:  # a chunk filled up to 4, two passes each, both halves
            for _ in range(2):
                network(torch.zeros(8, 1))
            return super().read_many(indices)

    clock = iter([0.0, 8.0, 10.0, 10.4, 20.0, 20.8])  # a slow chunk, as when something else runs, and two others
    monkeypatch.setattr(cells.time, "perf_counter", lambda: next(clock))
    pictures = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 2, 2)
    source = Watched(Made(pictures, ["a"] * 10, "made"), 3, 4, network)
    assert [int(p[0, 0, 0]) for p in source.read_many(range(10))] == list(range(10))
    assert source.seconds_per_image() == pytest.approx(0.8 / 4) and source.nfe() == 4
    network(torch.zeros(8, 1))  # outside, uncounted
    assert source.nfe() == 4 and not network._forward_pre_hooks


@pytest.mark.parametrize("sizes", [[(500, 200), (64, 64)], [(40, 20), (32, 32)], [(3000, 1)]])
def test_pictures_of_any_size_are_fitted_to_squares_of_one_side(sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    images = [torch.full((3, h, w), 10, dtype=torch.uint8) for h, w in sizes]
    panel = side_by_side(images)
    side = min(128, max(map(max, sizes)))
    assert panel.shape == (3, side, side * len(sizes))
    for (h, w), square in zip(sizes, panel.split(side, 2), strict=True):
        scale = min(1, side / max(h, w))
        dark = (square[0] == 10).nonzero()
        extent = (dark.max(0).values - dark.min(0).values + 1).tolist()
        assert extent == [max(1, round(h * scale)), max(1, round(w * scale))]  # not stretched, not enlarged
        assert (square[0] == 255).sum() == side * side - len(dark)
    write_png(tmp_path / "strip.png", panel.permute(1, 2, 0).numpy())
    read_strip(tmp_path, "strip.png", len(sizes))
