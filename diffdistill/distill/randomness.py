"""Randomness of a batch, drawn for each global sample. All losses of a run draw their noise, times and choices here.

Each value is a function of (seed, stream, global index of the sample, position in the sample) alone. So what a sample
draws does not depend on how many processes share the work, how a batch is cut into micro-batches, in which order
samples come, or whether the run was resumed.

Notable:
- a stream is a name ("noise", "time", "drop"), not a position in a sequence of calls: the same stream gives the same
  values at every call, and a stream that is added to a program leaves the others as they were;
- everything is drawn on the CPU and then moved, so that an accelerator changes nothing;
- scalars come from the hash itself, without a generator.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, distributed


class _AllGather(torch.autograd.Function):
    """x of every process, stacked: (P, *x.shape). The gradient is the sum over processes, for any backend."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(distributed.get_world_size())
        ]
        distributed.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


class SampleRandom:
    """All randomness of one batch or micro-batch.

    Args:
        seed: the run's seed.
        indices: global index of each sample, B of them: the number of samples before this batch plus the position in
            the batch.
        device: where the results go.

    >>> whole = SampleRandom(0, range(4)).normal("noise", (2,))
    >>> half = SampleRandom(0, [2, 3]).normal("noise", (2,))
    >>> bool((whole[2:] == half).all())
    True
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seed = int(seed)
        self.indices = [int(index) for index in indices]
        self.device = torch.device(device)
        self._names = [str(index) for index in self.indices]  # of the rows, as they are hashed
        self._generator = torch.Generator()  # one, seeded anew for each sample: making one is the slow part

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, rows: Tensor) -> "SampleRandom":
        """The randomness of some of the samples; `rows` are positions in the batch, int64 of shape (R,).

        >>> random = SampleRandom(0, range(4))
        >>> some = random.rows(torch.tensor([2, 0])).normal("noise", (2,))
        >>> bool((some == random.normal("noise", (2,))[[2, 0]]).all())
        True
        """
        return self._of([(self.indices[row], self._names[row]) for row in rows.tolist()])

    def views(self, v: int) -> "SampleRandom":
        """The randomness of v views of each sample: B v rows, the views of a sample one after another.

        The order is that of `diffdistill.diffusion.repeat`. A value is a function of (seed, stream, index, view), so
        the number of views leaves those that there are as they were. View 0 does not draw what the sample itself
        draws.

        Raises:
            ValueError: v is below 1.

        >>> random = SampleRandom(0, [7, 9])
        >>> len(random.views(3)), random.views(3).indices
        (6, [7, 7, 7, 9, 9, 9])
        """
        if v < 1:
            raise ValueError(f"{v} views of a sample; there must be 1 or more")
        # a colon, which never stands between the stream and the index: no row is hashed as that of another stream is
        rows = zip(self.indices, self._names, strict=True)
        return self._of([(index, f"{name}:{view}") for index, name in rows for view in range(v)])

    def normal(self, stream: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal noise of shape (B, *shape).

        It is drawn in float32 (float64 where that is asked for) and then rounded to `dtype`. Values of the two
        precisions are different draws.

        torch's CPU generator uses 32 bits of a seed, so among millions of samples a few pairs share a noise
        (n^2 / 2^33 of them). They do not share it in another stream, so each still has its own time and prompt.
        """
        drawn = torch.empty((len(self), *shape), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        for row, key in zip(drawn, self._keys(stream), strict=True):
            row.normal_(generator=self._generator.manual_seed(key))
        return drawn.to(device=self.device, dtype=dtype)

    def uniform(self, stream: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform in [0, 1). Tensor of shape (B, *shape), float64.

        A stream has other values for the shape (), which come from the hash, than for any other shape, which come from
        a generator as those of `normal` do. Do not draw `normal` and a `uniform` with a shape from one stream: both
        would use the same bits.
        """
        if not len(shape):
            values = [(key >> 10) * 2.0**-53 for key in self._keys(stream)]  # the 53 high bits of 63
            return torch.tensor(values, dtype=torch.float64, device=self.device)
        drawn = torch.empty((len(self), *shape), dtype=torch.float64)
        for row, key in zip(drawn, self._keys(stream), strict=True):
            row.uniform_(generator=self._generator.manual_seed(key))
        return drawn.to(device=self.device)

    def integers(self, stream: str, high: int) -> Tensor:
        """Uniform integers in [0, high). Tensor of shape (B,), int64.

        Raises:
            ValueError: high is not in [1, 2^32]: the remainder of 63 bits is uniform only for a small divisor.
        """
        if not 1 <= high <= 2**32:
            raise ValueError(f"high is {high}; it must be in [1, 2**32]")
        return torch.tensor([key % high for key in self._keys(stream)], dtype=torch.long, device=self.device)

    def bernoulli(self, stream: str, p: float) -> Tensor:
        """True with probability p. Tensor of shape (B,), bool.

        Raises:
            ValueError: p is not in [0, 1].
        """
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p is {p}; a probability is in [0, 1]")
        return self.uniform(stream) < p

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all processes in the order of their samples; x itself on one process. Differentiable.

        It is for phases whose loss needs the whole batch (a contrastive loss, say). Every process calls it with as many
        rows, one per row of this object, and computes the same loss from the result. The gradient that reaches x is
        then the sum over all processes, that is, the number of processes times that of the loss; data-parallel
        training averages over processes and so arrives at the gradient of the loss.

        Args:
            x: a tensor of shape (B, ...).

        Returns:
            A tensor of shape (P B, ...) on P processes. Views of one sample stay in their order.

        Raises:
            ValueError: x has another number of rows than this object.
        """
        if len(x) != len(self):
            raise ValueError(f"x has {len(x)} rows; the batch of this process has {len(self)}")
        if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return x
        rows: Tensor = _AllGather.apply(x)  # type: ignore[no-untyped-call]
        indices: Tensor = _AllGather.apply(torch.tensor(self.indices, device=x.device))  # type: ignore[no-untyped-call]
        return rows.flatten(0, 1)[indices.flatten().argsort(stable=True)]

    def _of(self, rows: Sequence[tuple[int, str]]) -> "SampleRandom":
        """The randomness of rows of these indices, hashed under these names."""
        made = SampleRandom(self.seed, [index for index, _ in rows], self.device)
        made._names = [name for _, name in rows]
        return made

    def _keys(self, stream: str) -> list[int]:
        """63-bit hash of (seed, stream, row), one per row. The same on every machine and in every Python."""
        prefix = blake2b(f"{self.seed}/{stream}/".encode(), digest_size=8)
        keys = []
        for name in self._names:
            digest = prefix.copy()
            digest.update(name.encode())
            keys.append(int.from_bytes(digest.digest(), "little") >> 1)
        return keys
