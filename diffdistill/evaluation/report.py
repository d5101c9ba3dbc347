"""Images against a reference, in one call: the report that `diffdistill eval calc` prints, and FID alone.

    images -> features -> distances to the reference -> report
              towers   -> agreement with captions   /

The reference is read or measured before the images are, so that what is wrong with it shows before anything is
generated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdistill.data.in_memory import InMemory, gathered
from diffdistill.data.source import Source
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError, shown
from diffdistill.evaluation.agreement.scores import Towers
from diffdistill.evaluation.agreement.towers import PairedCaptions, agreement_numbers, paired_captions
from diffdistill.evaluation.distances.floor import set_aside
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.statistics import FeatureStatistics
from diffdistill.evaluation.measure import Features, Pass, Reading, collect_several, how_many, left_out_of
from diffdistill.evaluation.metrics import ROWS, check_metrics, distances
from diffdistill.evaluation.protocols import Protocol, protocol_named
from diffdistill.evaluation.reference import SUFFIX, read_reference
from diffdistill.launched import is_first

Images = str | Path | Source | Tensor | Iterable[Tensor]


def evaluate(
    images: Images,
    reference: Images | Features | None = None,
    metrics: Sequence[str] = ("fd", "kd"),
    protocol: str | Protocol = "mobilenet-offline",
    *,
    n: int | None = None,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    extractor: Extractor | None = None,
    real: Images | Features | None = None,
    split_reference: bool = False,
    towers: Towers | None = None,
    captions: str | Path | Sequence[str] | PairedCaptions | None = None,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Distances of images to a reference, agreement with their captions, or both, with everything that they depend on.

    Args:
        images: a path that `open_source` takes (folder, .zip, .npz, .tar, shards, emoji set), a source such as
            `comparison.generated.Generated`, a Tensor of shape (N, 3, H, W), uint8 or floating point in [0, 1], or a
            list or iterator of such tensors or of images (3, H, W), which is read into memory.
        reference: real images in one of these forms, features, or the path of a file of features, which `diffdistill
            eval ref` writes. None measures no distance.
        metrics: of "fd", "kd", "prdc" and "cmmd".
        protocol: a name in `PROTOCOLS`, "NAME@HASH" to insist on one record, or a `Protocol`.
        n: number of images; None for the protocol's number, or all of them.
        weights: the extractor's file or folder; "download" fetches it, None looks in the usual places.
        device: where the extractor runs; None for a GPU where there is one.
        extractor: the protocol's extractor, where it is built already, in place of `weights` and `device`.
        real: other real images, or their features. Their distance to the reference is the floor: what images that are
            real score. As many are drawn as there are generated images.
        split_reference: take the floor from images set aside from the reference instead, at most half of it.
        towers: what measures agreement, as `agreement.towers.build_towers` gives it; None leaves agreement out.
        captions: for the towers: a captions file, or one caption for each image. None takes the captions that the
            images come with.
        reading: batch size, decoding threads, corrupt images, progress.

    Returns:
        A report that JSON can hold: "pictures", the source's name; the numbers; "n", "n_reference", "reference" and
        "protocol"; "floor" and "left_out" where there is something to say. A Frechet distance is called "fid" only on
        FID's own network with its published weights, and "fd" on any other. Where a launcher started several processes,
        all of them have to call this function, and only the first gets a report; the others get {}.

    Raises:
        UserError: nothing to measure, images or features that are missing, damaged, too few or of another protocol, an
            unknown metric or protocol, or weights that are missing or have another hash.
    """
    if reference is None and towers is None:
        raise UserError("there is nothing to measure: name a reference for distances, towers for agreement, or both")
    if reference is None and (real is not None or split_reference):
        raise UserError("a floor is a distance to the reference: name the reference too")
    if real is not None and split_reference:
        raise UserError("the floor is measured on real images or on a part of the reference; name one of the two")
    reading = reading or Reading()
    protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
    source = _opened(images, "images")
    wanted, rows = how_many(source, protocol, n), any(name in ROWS for name in metrics)
    paired = paired_captions(captions, source, wanted) if towers is not None else None
    passes, sides = [], None
    if reference is not None:
        if extractor is None:
            extractor = protocol.build_extractor(weights, device or _device())
        check_metrics(metrics, wanted, extractor.name)
        measured = _RealImages(protocol, extractor, reading)
        sides = _sides(measured, reference, real, split_reference, metrics, wanted, rows)
        passes.append(Pass(extractor, rows))
    if towers is not None:
        passes.append(Pass(towers))
    found = collect_several(source, protocol, passes, n, reading)
    if not is_first():
        return {}
    report: dict[str, Any] = {"pictures": source.name, **source.made_from()}
    if left_out := left_out_of(source, wanted - found[0].n):
        report["left_out"] = left_out
    if sides is not None:
        report |= sides.left_out | distances(found[0], sides.reference, metrics)
        if sides.aside is not None:
            floor = distances(sides.aside, sides.reference, metrics)  # its reference and protocol stand beside it
            numbers = {key: value for key, value in floor.items() if key not in ("reference", "protocol")}
            report["floor"] = {"pictures": sides.aside.source, **numbers}
    if towers is not None and paired is not None:
        embedded = found[-1]
        assert isinstance(embedded, FeatureRows)
        numbers = agreement_numbers(towers, embedded, paired.texts)
        report |= {"n": embedded.n, "captions": paired.pairing, **numbers}
    return report


def fid(
    images: Images,
    reference: Images | Features,
    protocol: str | Protocol = "clean",
    *,
    n: int | None = None,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    reading: Reading | None = None,
) -> float:
    """The Frechet inception distance of images to a reference: on FID's own network, with its published weights.

    It is biased upwards where images are few: compare only at equal numbers of images, under one protocol. `evaluate`
    reports the same number with what it depends on. On other features the number is a Frechet distance and not FID;
    `frechet_distance` and `evaluate` measure that.

    Args:
        images, reference, n, weights, device, reading: as in `evaluate`.
        protocol: one on Inception features: "clean" (clean-fid), "tf-legacy" (as first published), "torchmetrics",
            "coco30k-clean256", "cifar10-50k" or "imagenet-50k".

    Returns:
        The distance; NaN on all processes but the first, where a launcher started several.

    Raises:
        UserError: a protocol on other features, other weights than the published ones, and as `evaluate`.
    """
    protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
    if protocol.extractor != "inception-tf":
        raise UserError(
            f"{protocol} measures on {protocol.extractor}, where a Frechet distance is not FID; take clean, tf-legacy "
            "or another protocol on inception-tf, or `evaluate` for a distance under its own name"
        )
    report = evaluate(images, reference, ("fd",), protocol, n=n, weights=weights, device=device, reading=reading)
    value: float = report.get("fid", float("nan"))
    return value


class _Sides(NamedTuple):
    """The reference, the real images of the floor, and what was left out of either, by the report's keys."""

    reference: Features
    aside: FeatureRows | None
    left_out: dict[str, dict[str, int]]


class _RealImages(NamedTuple):
    """How real images are measured."""

    protocol: Protocol
    extractor: Extractor
    reading: Reading

    def features(self, what: Images | Features, rows: bool, name: str) -> tuple[Features, dict[str, int]]:
        """Features of real images, and what was left out of them; of a file that was said when it was written."""
        if isinstance(what, FeatureRows | FeatureStatistics) or (
            isinstance(what, str | Path) and Path(what).suffix == SUFFIX
        ):
            return read_reference(what, self.protocol, self.extractor, rows, self.reading), {}
        source = _opened(what, name)
        features = read_reference(source, self.protocol, self.extractor, rows, self.reading)
        return features, left_out_of(source, len(source) - features.n)


def _sides(
    measured: _RealImages,
    reference: Images | Features,
    real: Images | Features | None,
    split_reference: bool,
    metrics: Sequence[str],
    n: int,
    rows: bool,
) -> _Sides:
    """The reference, and, for a floor, as many other real images as there are generated ones."""
    left_out: dict[str, dict[str, int]] = {}
    found, lost = measured.features(reference, rows or split_reference, "reference")
    if lost:
        left_out["left_out_of_reference"] = lost
    if split_reference:
        assert isinstance(found, FeatureRows)
        aside, found = set_aside(found, min(n, found.n // 2))
    elif real is not None:
        others, lost = measured.features(real, True, "real")
        if lost:
            left_out["left_out_of_real"] = lost
        assert isinstance(others, FeatureRows)
        aside = set_aside(others, min(n, others.n))[0]
    else:
        return _Sides(found, None, left_out)
    try:
        check_metrics(metrics, min(aside.n, found.n), measured.extractor.name)
    except UserError as error:
        raise UserError(f"the floor: {error}") from error
    return _Sides(found, aside, left_out)


def _opened(images: Images, name: str) -> Source:
    """The source of images in any form; `name` is the argument's, for errors."""
    if isinstance(images, Source):
        return images
    if isinstance(images, str | Path):
        return open_source(images)
    if isinstance(images, Tensor):
        return InMemory(images)
    if isinstance(images, Iterable) and not isinstance(images, FeatureRows | FeatureStatistics):
        return gathered(images, name)
    raise UserError(f"{name} is {shown(images)}; it must be a path, a source, a tensor of images or a list of tensors")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
