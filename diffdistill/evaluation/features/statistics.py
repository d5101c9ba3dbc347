"""Mean and covariance of features: streamed in float64, merged, summed over processes, kept in one file.

Notable:
- memory is 2 d^2 float64 numbers, whatever the number of images;
- rows are taken in blocks of max(d, 256), whatever the batches, so the batches do not change a single bit;
- sums are kept about the running mean, so features far from the origin lose no digits. Plain sums of x x^T at mean 1e4
  and standard deviation 1 would keep 8 digits of 16;
- while n <= d, the first block holds the rows themselves, which an exact distance can use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.features.feature_set import FeatureSet, collective_device

_LEAST_BLOCK = 256


class FeatureStatistics(FeatureSet):
    """A set of features that keeps only n, the mean and the scatter S = sum_i (x_i - mean)(x_i - mean)^T.

    Two sets a and b are pooled by Chan, Golub and LeVeque 1983, eq. 2.1, with delta the difference of their means:

        n = n_a + n_b,   mean = mean_a + delta n_b / n,   S = S_a + S_b + delta delta^T n_a n_b / n

    Args:
        d: size of a feature.
        protocol: what a number made from these features has to carry, as JSON values.
        source: where the images came from, for messages and reports.
        device: where sums are kept and Gram matrices are computed.

    >>> statistics = FeatureStatistics(1)
    >>> statistics.update(torch.tensor([[1.0], [2.0]]))
    >>> statistics.update(torch.tensor([[6.0]]))
    >>> statistics.n, statistics.mean.tolist(), statistics.covariance.tolist()
    (3, [3.0], [[7.0]])
    """

    kind = "statistics"

    def __init__(
        self,
        d: int,
        protocol: Mapping[str, Any] | None = None,
        source: str = "",
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(d, protocol, source)
        self.device = torch.device(device)
        self._block = max(d, _LEAST_BLOCK)
        self._folded = 0  # rows in mean and scatter; the others wait in the buffer
        self._waiting = 0
        self._mean = torch.zeros(d, dtype=torch.float64, device=self.device)
        self._scatter: Tensor | None = None
        self._buffer: Tensor | None = None

    @property
    def n(self) -> int:  # type: ignore[override]
        """Number of rows."""
        return self._folded + self._waiting

    @property
    def mean(self) -> Tensor:
        """Tensor of shape (d,), float64. Raises ValueError without rows."""
        self._need(1)
        mean, n = self._mean.clone(), self._folded
        for rows in self._waiting_rows():
            mean, n = self._pooled_mean(mean, n, rows.mean(0), len(rows)), n + len(rows)
        return mean

    @property
    def covariance(self) -> Tensor:
        """Tensor of shape (d, d), float64, with n - 1. Raises ValueError with fewer than 2 rows."""
        self._need(2)
        return self.moments()[1].div_(self.n - 1)

    def update(self, features: Tensor) -> None:
        """Add rows.

        Args:
            features: Tensor of shape (N, d) of any floating-point dtype.

        Raises:
            ValueError: another shape or dtype, or values that are not finite. Nothing is added then.
        """
        self._check(features)
        features = features.detach()
        while len(features):
            if self._scatter is None or self._buffer is None:
                # All of it is written at once, so that memory use is the same from the first batch to the last.
                self._scatter = self._zeros(self.d) if self._scatter is None else self._scatter
                self._buffer = self._zeros(self._block)
            if self._waiting == self._block:
                rows = self._buffer
                self._pool(self._mean, self._scatter, self._folded, rows)
                self._folded, self._waiting = self.n, 0
            taken = features[: self._block - self._waiting]
            self._buffer[self._waiting : self._waiting + len(taken)].copy_(taken)
            self._waiting += len(taken)
            features = features[len(taken) :]

    def merge(self, other: FeatureStatistics) -> None:
        """Add the rows of another set, which stays as it is.

        Raises:
            UserError: the other set was measured under another protocol.
            ValueError: its features have another size.
        """
        self._check_mergeable(other)
        rows = None if other._buffer is None else other._buffer[: other._waiting].clone()
        if other._folded and other._scatter is not None:
            scatter, mean = other._scatter.to(self.device), other._mean.to(self.device)
            self._scatter = self._zeros(self.d) if self._scatter is None else self._scatter
            n = self._folded + other._folded
            delta = mean - self._mean
            self._scatter += scatter
            self._scatter.addr_(delta, delta, alpha=self._folded * other._folded / n)
            self._mean = self._pooled_mean(self._mean, self._folded, mean, other._folded)
            self._folded = n
        if rows is not None:
            self.update(rows)

    def all_reduce(self) -> FeatureStatistics:
        """The rows of all processes, in a new set; this one stays as it is, so a second call does not count twice.

        Every process has to call it; without torch.distributed it returns a copy. Means are gathered first, and then
        d^2 numbers are summed; where all rows fit in a block, the rows themselves are gathered. If process r of w took
        images r, r + w, r + 2w, ..., rows come back in the order of the images.

        Raises:
            UserError: the processes disagree about protocol or feature size; on all of them.
        """
        total = self.empty()
        counts, rows_kept = self._counts(flag=self._folded == 0)
        n = sum(counts)
        if len(counts) == 1 or n == 0:
            total.merge(self)
        elif n <= self._block and all(rows_kept):
            rows = self._zeros(0) if self._buffer is None else self._buffer[: self._waiting]
            total.update(self._gather(rows, counts))
        else:
            device = collective_device()
            mean, scatter = (value.to(device) for value in self.moments())
            means = [torch.empty_like(mean) for _ in counts]
            dist.all_gather(means, mean)
            weights = torch.tensor(counts, dtype=torch.float64, device=device) / n
            centre = weights @ torch.stack(means)
            scatter.addr_(mean - centre, mean - centre, alpha=self.n)
            dist.all_reduce(scatter)
            total._folded, total._mean, total._scatter = n, centre.to(self.device), scatter.to(self.device)
        return total

    def empty(self) -> FeatureStatistics:
        """A set without rows under the same protocol, on the same device."""
        return FeatureStatistics(self.d, self.protocol, self.source, self.device)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean of shape (d,) and scatter of shape (d, d), as copies on this set's device; zero without rows."""
        mean = self._mean.clone()
        scatter = self._zeros(self.d) if self._scatter is None else self._scatter.clone()
        n = self._folded
        for rows in self._waiting_rows():
            self._pool(mean, scatter, n, rows.clone())
            n += len(rows)
        return mean, scatter

    def factor(self) -> Tensor | None:
        """F of shape (n, d) with F^T F exactly the covariance; None unless 2 <= n <= d and the rows are kept."""
        if self._folded or self._buffer is None or not 2 <= self._waiting <= self.d:
            return None
        rows = self._buffer[: self._waiting]
        return (rows - rows.mean(0)) / (self.n - 1) ** 0.5

    @classmethod
    def from_moments(
        cls,
        n: int,
        mean: Tensor,
        covariance: Tensor,
        protocol: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> FeatureStatistics:
        """A set from published statistics: the mean (d,) and the covariance (d, d) of n images.

        Raises:
            ValueError: shapes that do not belong together, an n below 2, or values that are not finite.
        """
        d = mean.numel()
        if mean.shape != (d,) or covariance.shape != (d, d):
            raise ValueError(f"expected shapes (d,) and (d, d), got {tuple(mean.shape)} and {tuple(covariance.shape)}")
        if n < 2:
            raise ValueError(f"n should be at least 2, got {n}")
        if not bool(mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("mean or covariance holds values that are not finite")
        statistics = cls(d, protocol, source)
        statistics._folded, statistics._mean = n, mean.detach().double().cpu().clone()
        statistics._scatter = covariance.detach().double().cpu() * (n - 1)
        return statistics

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file in one rename; missing folders are made.

        It holds `rows` (n, d) while n <= max(d, 256), and otherwise `mean` (d,) and `scatter` (d, d), in float64.
        Reading it back gives the same mean and covariance bit for bit.
        """
        if self._folded == 0 and self._buffer is not None:
            self._write(path, {"rows": self._buffer[: self._waiting]})
        else:
            self._write(path, dict(zip(("mean", "scatter"), self.moments(), strict=True)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureStatistics:
        """Read a file that `save` wrote.

        Raises:
            UserError: there is no such file, it is of another kind, or its contents contradict its record.
        """
        record, tensors = cls._read(path)
        n, d = record["n"], record["d"]
        statistics = cls(d, record["protocol"], record["source"])
        if "rows" in tensors:
            statistics.update(tensors["rows"])
            return statistics
        mean, scatter = tensors["mean"].double(), tensors["scatter"].double()
        if bool((scatter.diagonal() < 0).any()) or not torch.allclose(scatter, scatter.T, rtol=1e-9):
            raise UserError(f"{path} is damaged: its scatter matrix is not symmetric with a non-negative diagonal")
        statistics._folded, statistics._mean, statistics._scatter = n, mean, scatter
        return statistics

    def _zeros(self, rows: int) -> Tensor:
        return torch.zeros(rows, self.d, dtype=torch.float64, device=self.device)

    def _waiting_rows(self) -> Sequence[Tensor]:
        """The rows that are not in mean and scatter yet, in pieces, so that reading them needs little memory."""
        return () if self._buffer is None or not self._waiting else self._buffer[: self._waiting].split(_LEAST_BLOCK)

    @staticmethod
    def _pool(mean: Tensor, scatter: Tensor, n: int, rows: Tensor) -> None:
        """Add rows to the moments of n others, all in place; the rows are centred by it."""
        centre = rows.mean(0)
        rows -= centre
        scatter.addmm_(rows.T, rows)
        delta = centre - mean
        scatter.addr_(delta, delta, alpha=n * len(rows) / (n + len(rows)))
        mean.copy_(FeatureStatistics._pooled_mean(mean, n, centre, len(rows)))

    @staticmethod
    def _pooled_mean(mean_a: Tensor, n_a: int, mean_b: Tensor, n_b: int) -> Tensor:
        return mean_a + (mean_b - mean_a) * (n_b / (n_a + n_b)) if n_a else mean_b.clone()
