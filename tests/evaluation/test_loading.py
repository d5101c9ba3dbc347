"""Batches keep the order and lose no image, whatever the batch size, the threads, or what is corrupt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffdistill.data import loading
from diffdistill.data.decode import CorruptPictureError
from diffdistill.data.loading import batches, require_one_size
from diffdistill.data.source import Source
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Source:
    for i in range(7):
        side = 4 if i < 5 else 6
        Image.fromarray(np.full((side, side, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    return open_source(tmp_path)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("size", [1, 2, 64])
def test_order_is_kept_and_a_batch_has_one_size(source: Source, threads: int, size: int) -> None:
    found = list(batches(source, range(7), size, threads))
    assert [i for batch in found for i in batch.indices] == list(range(7))
    for batch in found:
        assert len(batch.indices) == len(batch.images) <= size
        for index, image in zip(batch.indices, batch.images, strict=True):
            assert torch.equal(image, source.read(index))
    assert len(found) == {1: 7, 2: 4, 64: 2}[size]


def test_pictures_prepared_to_one_size_share_a_batch(source: Source) -> None:
    (batch,) = batches(source, range(7), prepare=lambda image: image[:, :2, :2])
    assert batch.images.shape == (7, 3, 2, 2) and batch.images[:, 0, 0, 0].tolist() == list(range(7))


def test_mixed_sizes_share_a_batch_as_a_list(source: Source) -> None:
    first, second = batches(source, range(7), 4, mixed=True)
    assert [len(first.images), len(second.images)] == [4, 3]
    assert [image.shape[-1] for image in [*first.images, *second.images]] == [4] * 5 + [6] * 2


@pytest.mark.parametrize("threads", [0, 2])
def test_a_corrupt_picture_stops_or_is_left_out_and_named(source: Source, tmp_path: Path, threads: int) -> None:
    (tmp_path / "3.png").write_text("no picture")
    with pytest.raises(CorruptPictureError, match=r"3\.png"):
        list(batches(source, range(7), threads=threads))
    said: list[str] = []
    kept = batches(source, range(7), threads=threads, on_corrupt="skip", report=said.append)
    assert [i for batch in kept for i in batch.indices] == [0, 1, 2, 4, 5, 6]
    assert len(said) == 1 and "3.png" in said[0]


def test_no_more_is_decoded_than_may_wait() -> None:
    class Counting(Source):
        name, reads = "counting", 0

        def __len__(self) -> int:
            return 1000

        def label(self, index: int) -> str:
            return str(index)

        def read_bytes(self, index: int) -> bytes:
            raise NotImplementedError

        def read(self, index: int) -> torch.Tensor:
            self.reads += 1
            return torch.zeros(3, 1, 1, dtype=torch.uint8)

    source = Counting()
    stream = batches(source, range(1000), batch_size=4, threads=2, ahead=2)
    next(stream)
    assert source.reads <= 4 + 2 * 4 + 1
    stream.close()
    assert source.reads <= 4 + 2 * 4 + 1


def test_shares_of_processes_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.share(5) == range(5)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    found = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        found += list(loading.share(7))
    assert sorted(found) == list(range(7))


def test_mixed_sizes_are_named() -> None:
    require_one_size({(3, 4, 5)}, "folder")
    with pytest.raises(UserError, match="folder holds images of sizes 5x4, 6x4"):
        require_one_size({(3, 4, 5), (3, 4, 6)}, "folder")
