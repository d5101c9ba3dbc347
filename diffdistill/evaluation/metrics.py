"""The distances between two sets of features, by the names that reports use.

A Frechet distance is called fid, and a kernel distance kid, only on FID's own network with its published weights.
Every report carries the protocol, the number of images on both sides, and where the reference came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffdistill.errors import UserError
from diffdistill.evaluation.distances.cmmd import cmmd
from diffdistill.evaluation.distances.frechet import frechet_terms
from diffdistill.evaluation.distances.kernel import kernel_distance
from diffdistill.evaluation.distances.neighbours import prdc
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.feature_set import require_same_protocol
from diffdistill.evaluation.features.statistics import FeatureStatistics
from diffdistill.evaluation.measure import Features

METRICS = ("fd", "kd", "prdc", "cmmd")
ROWS = ("kd", "prdc", "cmmd")  # what needs every row of both sides
FEWEST = {"fd": 2, "kd": 3, "prdc": 6, "cmmd": 2}


def check_metrics(metrics: Sequence[str], n: int, extractor: str) -> None:
    """Refuse what `distances` would refuse, before anything is measured.

    Args:
        metrics: of `METRICS`.
        n: number of images on the smaller side.
        extractor: the extractor's name.

    Raises:
        UserError: an unknown metric, one that is not defined on this extractor's features, or too few images.
    """
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
        if n < FEWEST[name]:
            raise UserError(f"{name} needs at least {FEWEST[name]} images; there are {n}")
        if name == "cmmd" and not extractor.startswith("clip-"):
            raise UserError(f"cmmd is defined on CLIP's embeddings; this protocol's extractor is {extractor}")


def distances(generated: Features, reference: Features, metrics: Sequence[str]) -> dict[str, Any]:
    """The distances between two sets of features, with the numbers of images and the protocol beside them.

    Args:
        generated, reference: features under one protocol.
        metrics: of `METRICS`.

    Raises:
        UserError: protocols that differ, an unknown metric, or a metric that is not defined on these features.
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
            raise UserError(f"{needed[0]} needs every row of both sides, and one side holds mean and scatter alone")
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
    """The name of a distance under a protocol: fid and kid only on FID's own network with its published weights."""
    from diffdistill.evaluation.features.inception import INCEPTION_FILE

    own = protocol.get("extractor") == "inception-tf" and protocol.get("weights_sha256") == INCEPTION_FILE.sha256
    return {"fd": "fid", "kd": "kid"}[metric] if own else metric
