"""Features of real images: read from a file, or measured once and cached.

The cache is keyed by a hash of the images' contents and of the protocol, and a file is written in one rename.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from diffdistill.data.loading import share
from diffdistill.data.source import Source
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.feature_set import kind_of, require_same_protocol
from diffdistill.evaluation.features.statistics import FeatureStatistics
from diffdistill.evaluation.measure import Features, Reading, collect, from_all_processes
from diffdistill.evaluation.metrics import ROWS
from diffdistill.evaluation.protocols import Protocol
from diffdistill.files import user_cache

SUFFIX = ".safetensors"


def read_reference(
    what: str | Path | Source | Features,
    protocol: Protocol,
    extractor: Extractor,
    rows: bool = True,
    reading: Reading | None = None,
    cache: Path | None = None,
) -> Features:
    """Features of real images under a protocol.

    Args:
        what: a file of features, which `diffdistill eval ref` writes, or features in memory; or images, as a path or a
            source, whose features are cached.
        protocol: crop, resize and quantisation.
        extractor: the protocol's.
        rows: whether every row is needed; otherwise mean and scatter do.
        reading: how images are read.
        cache: folder of the cache; the user's own by default.

    Raises:
        UserError: features of another protocol (the keys that differ are named), or mean and scatter alone where every
            row is needed.
    """
    if isinstance(what, str | Path):
        path = Path(what)
        what = load_features(path) if path.suffix == SUFFIX else open_source(path)
        name = str(path)
    else:
        name = what.source if isinstance(what, FeatureRows | FeatureStatistics) else what.name
    if isinstance(what, FeatureRows | FeatureStatistics):
        require_same_protocol(what, FeatureStatistics(extractor.dim, protocol.record(extractor), str(protocol)))
        if rows and isinstance(what, FeatureStatistics):
            raise UserError(
                f"{name or 'the reference'} holds mean and scatter alone; {', '.join(ROWS)} need rows: make it again "
                "without --statistics"
            )
        return what
    return _measured(what, protocol, extractor, rows, reading, user_cache() if cache is None else cache)


def _measured(
    source: Source, protocol: Protocol, extractor: Extractor, rows: bool, reading: Reading | None, cache: Path
) -> Features:
    """Features of images, from the cache where they are there."""
    if source.together:  # a generator's: a hash of its images would cost as much as measuring them
        return collect(source, protocol, extractor, len(source), rows, reading)
    kind: type[Features] = FeatureRows if rows else FeatureStatistics
    key = json.dumps([source.digest(), protocol.record(extractor), len(source), kind.kind], sort_keys=True)
    file = cache / f"reference-{hashlib.sha256(key.encode()).hexdigest()[:24]}{SUFFIX}"
    first = share(2).start == 0  # it alone looks, so that all processes go the same way
    stored: Features | None = None
    if first and file.is_file():
        try:
            stored = kind.load(file)
        except UserError:  # damaged: made again
            stored = None
    if any(from_all_processes(stored is not None)):
        found = stored or kind(extractor.dim, protocol.record(extractor))
        found.source = source.name
        return found.all_reduce()
    made = collect(source, protocol, extractor, len(source), rows, reading)
    if first and made.n == len(source):  # features that lack the corrupt images are not kept
        made.save(file)
    return made


def load_features(path: str | Path) -> Features:
    """Rows or statistics, whichever the file holds.

    Raises:
        UserError: neither, or a damaged one.
    """
    kind: type[Features] = FeatureStatistics if kind_of(path) == FeatureStatistics.kind else FeatureRows
    return kind.load(path)
