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
    """How images are read.

    Args:
        batch_size: images in a batch.
        threads: threads that decode images.
        on_corrupt: "stop" raises at a corrupt image; "skip" leaves it out and reports it.
        progress: show a progress bar on stderr.
        report: is called with each line about images that were left out.
    """

    batch_size: int = 64
    threads: int = 2
    on_corrupt: Literal["stop", "skip"] = "stop"
    progress: bool = False
    report: Callable[[str], None] = lambda line: None


class Pass(NamedTuple):
    """What one extractor does in a pass over images.

    Args:
        extractor: the protocol's, or towers beside it (`agreement.scores.Towers`).
        rows: keep every feature; otherwise keep mean and scatter, in constant memory.
        first: take only images whose index is below this; None takes all.
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
    """Features of the first n images, of all processes together.

    Args:
        source: the images.
        protocol: crop, resize and quantisation.
        extractor: the protocol's.
        n: how many images; None for the protocol's number, or all where it names none.
        rows: keep every feature; otherwise keep mean and scatter, in constant memory.
        reading: how images are read.

    Returns:
        The features of all of them, on every process. They depend neither on the batch size nor on the number of
        processes.

    Raises:
        UserError: fewer images than asked for, or sizes that differ where the protocol needs one size.
        CorruptPictureError: an image that cannot be read, by its name.
    """
    return collect_several(source, protocol, [Pass(extractor, rows)], n, reading)[0]


def collect_several(
    source: Source,
    protocol: Protocol,
    passes: Sequence[Pass],
    n: int | None = None,
    reading: Reading | None = None,
) -> list[Features]:
    """`collect` for several extractors. All of them see the same images, and each image is read or made once.

    Args:
        source, protocol, n, reading: as in `collect`.
        passes: at least one. The first should take all images: messages and the least number of images follow it.

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
        raise UserError(f"{source.name}: {total[0].n} of {wanted} images could be read; at least 2 are needed")
    if total[0].n < wanted:
        reading.report(f"{source.name}: {wanted - total[0].n} of {wanted} images were left out")
    return total


def how_many(source: Source, protocol: Protocol, n: int | None = None) -> int:
    """The number of images to measure: n, or the protocol's number, or all.

    Raises:
        UserError: the source holds fewer.
    """
    wanted = n or protocol.n_generated or len(source)
    if wanted > len(source):
        raise UserError(f"{source.name} holds {len(source)} images; {wanted} were asked for")
    return wanted


def from_all_processes(value: Any) -> list[Any]:
    """A value of every process, in the order of the processes, on every process."""
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
