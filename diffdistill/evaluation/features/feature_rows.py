"""Features kept row by row, for the distances that need every row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffdistill.evaluation.features.feature_set import FeatureSet
from diffdistill.evaluation.features.statistics import FeatureStatistics


class FeatureRows(FeatureSet):
    """A set of features that keeps every row. float16 and bfloat16 are kept as float32.

    Args:
        d: size of a feature.
        protocol: what a number made from these features has to carry, as JSON values.
        source: where the images came from, for messages and reports.

    >>> rows = FeatureRows(2, {"extractor": "tiny"})
    >>> rows.update(torch.tensor([[1.0, 2.0]]))
    >>> rows.n, rows.features.tolist()
    (1, [[1.0, 2.0]])
    """

    kind = "rows"

    def __init__(self, d: int, protocol: Mapping[str, Any] | None = None, source: str = "") -> None:
        super().__init__(d, protocol, source)
        self._batches: list[Tensor] = []

    @property
    def n(self) -> int:  # type: ignore[override]
        """Number of rows."""
        return sum(len(batch) for batch in self._batches)

    @property
    def features(self) -> Tensor:
        """Tensor of shape (n, d), in the order of the updates."""
        if len(self._batches) != 1:
            self._batches = [torch.cat(self._batches) if self._batches else torch.empty(0, self.d)]
        return self._batches[0]

    def update(self, features: Tensor) -> None:
        """Add rows: a Tensor of shape (N, d) of any floating-point dtype.

        Raises:
            ValueError: another shape or dtype, or values that are not finite. Nothing is added then.
        """
        self._check(features)
        dtype = torch.promote_types(features.dtype, torch.float32)
        self._batches.append(features.detach().to("cpu", dtype, copy=True))

    def merge(self, other: FeatureRows) -> None:
        """Add the rows of another set after the rows of this one.

        Raises:
            UserError: the other set was measured under another protocol.
            ValueError: its features have another size.
        """
        self._check_mergeable(other)
        self._batches.extend(list(other._batches))

    def all_reduce(self) -> FeatureRows:
        """The rows of all processes, in a new set; without torch.distributed, a copy.

        Raises:
            UserError: the processes disagree about protocol or feature size; on all of them.
        """
        total = self.empty()
        rows = self.features
        counts, double = self._counts(flag=rows.dtype == torch.float64)
        if len(counts) == 1 or sum(counts) == 0:
            total.merge(self)
        else:
            total.update(self._gather(rows.double() if any(double) else rows, counts))
        return total

    def empty(self) -> FeatureRows:
        """A set without rows under the same protocol."""
        return FeatureRows(self.d, self.protocol, self.source)

    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of these rows."""
        statistics = FeatureStatistics(self.d, self.protocol, self.source)
        statistics.update(self.features)
        return statistics

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with `rows` (n, d), in one rename; missing folders are made."""
        self._write(path, {"rows": self.features})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureRows:
        """Read a file that `save` wrote.

        Raises:
            UserError: there is no such file, it is of another kind, or its contents contradict its record.
        """
        record, tensors = cls._read(path)
        rows = cls(record["d"], record["protocol"], record["source"])
        rows.update(tensors["rows"])
        return rows
