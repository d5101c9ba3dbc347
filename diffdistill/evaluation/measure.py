"""One pass over pictures under a protocol, and the numbers that come of it.

    source -> crop, resize, 8 bits -> extractor -> rows or statistics, of all processes -> distances to a reference

Notable:
- a reference is read or made before anything is generated: what is wrong with it shows first;
- references made of pictures are cached by the hash of their contents and of the protocol, written in one rename;
- a Frechet distance is called fid only on FID's own network and weights, a kernel distance kid likewise;
- every number carries the protocol and its hash, n, and the reference's n and source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from diffdistill.data.loading import batches, require_one_size, share
from diffdistill.data.source import Source
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError
from diffdistill.evaluation.distances.cmmd import cmmd
from diffdistill.evaluation.distances.frechet import frechet_terms
from diffdistill.evaluation.distances.kernel import kernel_distance
from diffdistill.evaluation.distances.neighbours import prdc
from diffdistill.evaluation.distances.states import FeatureRows
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_set import kind_of, require_same_protocol
from diffdistill.evaluation.features.statistics import FeatureStatistics
from diffdistill.evaluation.protocols import Protocol
from diffdistill.files import user_cache

METRICS = ("fd", "kd", "prdc", "cmmd")
ROWS = ("kd", "prdc", "cmmd")  # what needs every row of both sides
FEWEST = {"fd": 2, "kd": 3, "prdc": 6, "cmmd": 2}
SUFFIX = ".safetensors"

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
    require_one_size(set().union(*everyones(shapes)), source.name)
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


def check_metrics(metrics: Sequence[str], n: int, extractor: str) -> None:
    """What `distances` would refuse, before anything is measured.

    Raises:
        UserError: an unknown metric, one that is not defined on this extractor's features, or too few pictures.
    """
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
        if n < FEWEST[name]:
            raise UserError(f"{name} needs at least {FEWEST[name]} pictures; there are {n}")
        if name == "cmmd" and not extractor.startswith("clip-"):
            raise UserError(f"cmmd is defined on CLIP's embeddings; this protocol's extractor is {extractor}")


def everyones(value: Any) -> list[Any]:
    """The value of every process, on every process."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def read_reference(
    path: str | Path,
    protocol: Protocol,
    extractor: Extractor,
    rows: bool = True,
    reading: Reading | None = None,
    cache: Path | None = None,
) -> Features:
    """Reference features: a file that `eval ref` wrote, or pictures, whose features are then cached.

    Raises:
        UserError: features of another protocol (the keys that differ are named), or statistics alone where a number
            was asked for that needs every row.
    """
    path = Path(path)
    if path.suffix == SUFFIX:
        found = load_features(path)
        require_same_protocol(found, FeatureStatistics(extractor.dim, protocol.record(extractor), str(protocol)))
        if rows and isinstance(found, FeatureStatistics):
            raise UserError(
                f"{path} holds mean and scatter alone; {', '.join(ROWS)} need rows: make it again without --statistics"
            )
        return found
    source = open_source(path)
    kind: type[Features] = FeatureRows if rows else FeatureStatistics
    key = json.dumps([source.digest(), protocol.record(extractor), len(source), kind.kind], sort_keys=True)
    folder = user_cache() if cache is None else cache
    file = folder / f"reference-{hashlib.sha256(key.encode()).hexdigest()[:24]}{SUFFIX}"
    first = share(2).start == 0  # it alone looks, so that all processes go the same way
    stored: Features | None = None
    if first and file.is_file():
        try:
            stored = kind.load(file)
        except UserError:  # damaged: made again
            stored = None
    if any(everyones(stored is not None)):
        found = stored or kind(extractor.dim, protocol.record(extractor))
        found.source = source.name
        return found.all_reduce()
    made = collect(source, protocol, extractor, len(source), rows, reading)
    if first and made.n == len(source):  # not what lacks the corrupt ones
        made.save(file)
    return made


def load_features(path: str | Path) -> Features:
    """Rows or statistics, whichever the file holds.

    Raises:
        UserError: neither, or a damaged one.
    """
    kind: type[Features] = FeatureStatistics if kind_of(path) == FeatureStatistics.kind else FeatureRows
    return kind.load(path)


def distances(generated: Features, reference: Features, metrics: Sequence[str]) -> dict[str, Any]:
    """The numbers asked for, with n and the protocol beside them.

    Args:
        generated, reference: of one protocol.
        metrics: of `METRICS`.

    Raises:
        UserError: protocols that differ, an unknown metric, or one that these features are not made for.
    """
    require_same_protocol(generated, reference)
    check_metrics(metrics, min(generated.n, reference.n), str(generated.protocol.get("extractor")))
    found: dict[str, Any] = {}
    if "fd" in metrics:
        terms = frechet_terms(_statistics(generated), _statistics(reference))
        found[named("fd", generated.protocol)] = terms.total
        found["fd_mean_term"] = terms.mean_term
    if needed := [name for name in metrics if name in ROWS]:
        if not (isinstance(generated, FeatureRows) and isinstance(reference, FeatureRows)):
            raise UserError(f"{needed[0]} needs every row of both sides, and one holds mean and scatter alone")
        x, y = generated.features, reference.features
        if "kd" in metrics:
            name = named("kd", generated.protocol)
            found[name], found[f"{name}_se"] = kernel_distance(x, y)
        if "prdc" in metrics:
            found.update(prdc(x, y)._asdict())
        if "cmmd" in metrics:
            found["cmmd"] = cmmd(x, y)
    return {
        **found,
        "n": generated.n,
        "n_reference": reference.n,
        "reference": reference.source,
        "protocol": generated.protocol,
    }


def _statistics(features: Features) -> FeatureStatistics:
    return features.statistics() if isinstance(features, FeatureRows) else features


def named(metric: str, protocol: dict[str, Any]) -> str:
    """fid and kid are these distances on FID's own network with the published weights, and on nothing else."""
    from diffdistill.evaluation.features.inception import INCEPTION_FILE

    own = protocol.get("extractor") == "inception-tf" and protocol.get("weights_sha256") == INCEPTION_FILE.sha256
    return {"fd": "fid", "kd": "kid"}[metric] if own else metric
