"""Images in batches, decoded ahead of time by threads and divided among processes by index.

Notable:
- process r of w takes images r, r + w, r + 2w, ...: no image is taken twice, and none is added as padding;
- at most `ahead` decoded batches wait, so memory does not grow with the number of images;
- a batch holds images of one size. Where the size changes, the batch ends early, so that the order is kept. If sizes
  may be mixed, the batch is a list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffdistill.data.decode import CorruptPictureError
from diffdistill.data.source import Source
from diffdistill.errors import UserError


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        indices: the images' indices in their source.
        images: Tensor of shape (B, 3, H, W), or a list of B tensors of shape (3, H, W) where sizes may be mixed.
    """

    indices: list[int]
    images: Tensor | list[Tensor]


def share(n: int) -> range:
    """The indices below n that this process takes, of all processes of torch.distributed."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return range(n)
    return range(dist.get_rank(), n, dist.get_world_size())


def batches(
    source: Source,
    indices: Iterable[int],
    batch_size: int = 64,
    threads: int = 2,
    ahead: int = 2,
    on_corrupt: Literal["stop", "skip"] = "stop",
    report: Callable[[str], None] = lambda line: None,
    prepare: Callable[[Tensor], Tensor] = lambda image: image,
    mixed: bool = False,
) -> Iterator[Batch]:
    """Read the images at `indices`, in order.

    Args:
        source: the source of the images.
        indices: which images to read.
        batch_size: the most images in a batch.
        threads: number of threads that decode; with 0 the caller's thread decodes.
        ahead: number of batches that are decoded before they are asked for.
        on_corrupt: for an image that cannot be read, "stop" raises an error and "skip" leaves it out with a report.
        report: takes the line about an image that was left out.
        prepare: applied to each image (3, H, W) in the threads, such as a crop or a resize to one size.
        mixed: whether a batch may hold images of several sizes, as a list.

    Raises:
        CorruptPictureError: an image cannot be read; the message names it.
        UserError: `prepare` refuses an image; the message names it.
    """

    def one(index: int) -> Tensor:
        return _prepared(prepare, source.read(index), source, index)

    kept: list[tuple[int, Tensor]] = []
    stream = _in_order(one, indices, threads, ahead * batch_size, on_corrupt, report)
    for index, image in _made_together(source, indices, batch_size, prepare) if source.together else stream:
        if kept and not mixed and kept[0][1].shape != image.shape:
            yield _batch(kept, mixed)
            kept = []
        kept.append((index, image))
        if len(kept) == batch_size:
            yield _batch(kept, mixed)
            kept = []
    if kept:
        yield _batch(kept, mixed)


def _made_together(
    source: Source, indices: Iterable[int], batch_size: int, prepare: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    todo = iter(indices)
    while chunk := list(islice(todo, batch_size)):
        for index, image in zip(chunk, source.read_many(chunk), strict=True):
            yield index, _prepared(prepare, image, source, index)


def _prepared(prepare: Callable[[Tensor], Tensor], image: Tensor, source: Source, index: int) -> Tensor:
    """The prepared image. What `prepare` refuses (NaN, values out of range) is an error that names the image."""
    try:
        return prepare(image)
    except ValueError as error:
        raise UserError(f"{source.name}: {source.label(index)}: {error}") from error


def require_one_size(shapes: set[tuple[int, ...]], name: str) -> None:
    """Raise UserError where a protocol that does not resize images gets images of more than one size."""
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{w}x{h}" for _, h, w in shapes))
        raise UserError(
            f"{name} holds images of sizes {sizes}; this protocol needs one size, so crop or resize the images, "
            "or take a protocol that allows several sizes (clean, dinov2, cmmd)"
        )


def _in_order(
    work: Callable[[int], Tensor],
    indices: Iterable[int],
    threads: int,
    ahead: int,
    on_corrupt: str,
    report: Callable[[str], None],
) -> Iterator[tuple[int, Tensor]]:
    def settle(index: int, result: Callable[[], Tensor]) -> Iterator[tuple[int, Tensor]]:
        try:
            yield index, result()
        except CorruptPictureError as error:
            if on_corrupt != "skip":
                raise
            report(f"left out: {error}")

    if threads < 1:
        for index in indices:
            yield from settle(index, lambda index=index: work(index))  # type: ignore[misc]
        return
    todo = iter(indices)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[int, Future[Tensor]]] = deque()
        try:
            waiting.extend((i, pool.submit(work, i)) for i in islice(todo, max(1, ahead)))
            while waiting:
                index, future = waiting.popleft()
                yield from settle(index, future.result)
                waiting.extend((i, pool.submit(work, i)) for i in islice(todo, 1))
        finally:  # also if the caller stops early, so that nothing is decoded in vain
            for _, future in waiting:
                future.cancel()


def _batch(kept: list[tuple[int, Tensor]], mixed: bool) -> Batch:
    images = [image for _, image in kept]
    return Batch([index for index, _ in kept], images if mixed else torch.stack(images))
