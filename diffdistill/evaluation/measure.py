"""One pass over images under a protocol: features of all of them, from all processes.

    source -> crop, resize, 8 bits -> extractor -> rows or statistics, of all processes

Every image is read or generated once, however many extractors look at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from diffdistill.data.loading import batches, require_one_size, share
from diffdistill.data.source import Source
from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.statistics import FeatureStatistics
from diffdistill.evaluation.protocols import Protocol

Features = FeatureRows | FeatureStatistics


@dataclass(frozen=True)
class Reading:
    """How pictures are read: pictures a batch, threads that decode, what a corrupt one does, a progress bar."""

    batch_size: int = 64
    threads: int = 2
    on_corrupt: Literal["stop", "skip"] = "stop"
    progress: bool = False
    report: Callable[[str], None] = lambda line: None


class Pass(NamedTuple):
    """One extractor's share in a pass over pictures.

    Args:
        extractor: of the protocol, or towers beside it (`agreement.Towers`).
        rows: keep every feature; otherwise only mean and scatter, in constant memory.
        first: only pictures whose index is below this; None takes all.
    """

    extractor: Any
    rows: bool = True
    first: int | None = None


def collect(
    source: Source,
    protocol: Protocol,
    extractor: Extractor,
    n: int | None = None,
    rows: bool = True,
    reading: Reading | None = None,
) -> Features:
    """Features of the first n pictures, of all processes together.

    Args:
        source: the pictures.
        protocol: crop, resize, quantisation.
        extractor: the protocol's.
        n: how many; None for the protocol's number, or all where it names none.
        rows: keep every feature; otherwise only mean and scatter, in constant memory.
        reading: see there.

    Returns:
        On every process, the features of all of them; they don't depend on the batch size or the number of processes.

    Raises:
        UserError: fewer pictures than asked for, or sizes that differ where the protocol forbids that.
        CorruptPictureError: names a picture that cannot be read.
    """
    return collect_several(source, protocol, [Pass(extractor, rows)], n, reading)[0]


def collect_several(
    source: Source,
    protocol: Protocol,
    passes: Sequence[Pass],
    n: int | None = None,
    reading: Reading | None = None,
) -> list[Features]:
    """`collect` for several extractors, which all see the same pictures, each read or made once.

    Args:
        passes: at least one; messages and the least number of pictures go by the first, which should take all.

    Returns:
        The features of each pass, in the order of `passes`.
    """
    reading = reading or Reading()
    wanted = how_many(source, protocol, n)
    kept: list[Features] = []
    for extractor, rows, _ in passes:
        kind: type[Features] = FeatureRows if rows else FeatureStatistics
        kept.append(kind(extractor.dim, protocol.record(extractor), source.name))
    indices, shapes = share(wanted), set()
    prepare: Any = protocol.preprocess  # a Tensor for a Tensor
    how = (reading.threads, 2, reading.on_corrupt, reading.report, prepare, protocol.mixed_sizes)
    stream = batches(source, indices, reading.batch_size, *how)
    with ExitStack() as stack:  # the bar ends its line before an error is written
        bar = None
        if reading.progress:
            from tqdm import tqdm

            bar = stack.enter_context(tqdm(total=len(indices), desc=source.name, unit="img"))
        for batch in stream:
            if isinstance(batch.images, Tensor):
                shapes.add(tuple(batch.images.shape[1:]))
                require_one_size(shapes, source.name)
            try:
                for features, (extractor, _, first) in zip(kept, passes, strict=True):
                    taken = len(batch.indices) if first is None else sum(i < first for i in batch.indices)  # in order
                    if taken:
                        features.update(extractor(batch.images[:taken], reading.batch_size))
            except ValueError as error:
                start, end = source.label(batch.indices[0]), source.label(batch.indices[-1])
                raise UserError(f"{source.name}, {start} to {end}: {error}") from error
            if bar is not None:
                bar.update(len(batch.indices))
    require_one_size(set().union(*from_all_processes(shapes)), source.name)
    total: list[Features] = [features.all_reduce() for features in kept]
    if total[0].n < 2:
        raise UserError(f"{source.name}: {total[0].n} of {wanted} pictures could be read; at least 2 are needed")
    if total[0].n < wanted:
        reading.report(f"{source.name}: {wanted - total[0].n} of {wanted} pictures were left out")
    return total


def how_many(source: Source, protocol: Protocol, n: int | None = None) -> int:
    """Pictures to measure: n, or the protocol's number, or all.

    Raises:
        UserError: the source holds fewer.
    """
    wanted = n or protocol.n_generated or len(source)
    if wanted > len(source):
        raise UserError(f"{source.name} holds {len(source)} pictures; {wanted} were asked for")
    return wanted


def from_all_processes(value: Any) -> list[Any]:
    """The value of every process, on every process."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def left_out_of(source: Source, corrupt: int) -> dict[str, int]:
    """How many files of a source were left out, by reason.

    Args:
        source: the images that were read.
        corrupt: number of images that could not be decoded; counted under "corrupt".
    """
    found = {reason: n for reason, n in sorted(source.left_out.items()) if n}
    return {**found, "corrupt": corrupt} if corrupt else found
