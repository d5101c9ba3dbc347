"""Pictures in batches, decoded ahead by threads, sharded by index over processes.

Notable:
- process r of w takes pictures r, r + w, r + 2w ...: no picture is taken twice, none is padded in;
- at most `ahead` decoded batches wait, so memory does not grow with the number of pictures;
- a batch holds pictures of one size, and where sizes change it ends early, so order is kept; or, where sizes may be
  mixed, it is a list.
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
    """indices: which pictures; images: Tensor of shape (B, 3, H, W), or B of shape (3, H, W) where sizes are mixed."""

    indices: list[int]
    images: Tensor | list[Tensor]


def share(n: int) -> range:
    """The indices below n that are this process's, of all that torch.distributed knows of."""
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
    """Read the pictures at `indices`, in order.

    Args:
        source: where they are.
        indices: which of them.
        batch_size: pictures a batch at most.
        threads: that decode; 0 decodes in the caller's.
        ahead: batches decoded before they are asked for.
        on_corrupt: "stop" raises for a picture that cannot be read; "skip" leaves it out and says so.
        report: is given the line about a picture left out.
        prepare: done to each picture (3, H, W), in the threads: a crop or a resize to one size.
        mixed: let a batch hold pictures of several sizes, as a list.

    Raises:
        CorruptPictureError: names the picture.
        UserError: a picture that `prepare` refuses, named.
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
    """What is not a picture (NaN, another range) is an error that names it."""
    try:
        return prepare(image)
    except ValueError as error:
        raise UserError(f"{source.name}: {source.label(index)}: {error}") from error


def require_one_size(shapes: set[tuple[int, ...]], name: str) -> None:
    """Raise UserError where a protocol that takes pictures as they are meets more than one size."""
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{w}x{h}" for _, h, w in shapes))
        raise UserError(
            f"{name} holds pictures of sizes {sizes}; this protocol needs one size, so crop or resize them, "
            "or take one that allows several (clean, dinov2, cmmd)"
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
        finally:  # also where the caller stops early: nothing is decoded for nobody
            for _, future in waiting:
                future.cancel()


def _batch(kept: list[tuple[int, Tensor]], mixed: bool) -> Batch:
    images = [image for _, image in kept]
    return Batch([index for index, _ in kept], images if mixed else torch.stack(images))
