"""Randomness of a batch, drawn per global sample.

Each value is a function of (seed, stream, global index of the sample, position in the sample) alone. So what
a sample sees does not depend on how many processes share the work, how a batch is cut into micro-batches, in
which order samples come, or whether the run was resumed.

Notable:
- a stream is a name ("noise", "time", "drop"), not a position in a sequence of calls: asked twice it gives
  the same values twice, and adding a stream to a program leaves the others as they were;
- everything is drawn on the CPU and then moved, so that an accelerator changes nothing;
- scalars come from the hash itself, without a generator.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor


class SampleRandom:
    """All randomness of one batch or micro-batch.

    Args:
        seed: the run's seed.
        indices: global index of each sample, B of them: samples seen before this batch plus the position in
            it.
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
        self._generator = torch.Generator()  # one, seeded anew for each sample: making one is the slow part

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, rows: Tensor) -> "SampleRandom":
        """The randomness of some of the samples; `rows` are places in the batch, int64 of shape (R,).

        >>> random = SampleRandom(0, range(4))
        >>> some = random.rows(torch.tensor([2, 0])).normal("noise", (2,))
        >>> bool((some == random.normal("noise", (2,))[[2, 0]]).all())
        True
        """
        return SampleRandom(self.seed, [self.indices[row] for row in rows.tolist()], self.device)

    def normal(self, stream: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal noise of shape (B, *shape).

        Drawn in float32 (float64 where that is asked for) and then rounded to `dtype`. Values of the two
        precisions are different draws.

        torch's CPU generator uses 32 bits of a seed, so among millions of samples a few pairs share a noise
        (n^2 / 2^33 of them). They do not share it in another stream, so each still meets its own time and
        prompt.
        """
        drawn = torch.empty((len(self), *shape), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        for row, key in zip(drawn, self._keys(stream), strict=True):
            row.normal_(generator=self._generator.manual_seed(key))
        return drawn.to(device=self.device, dtype=dtype)

    def uniform(self, stream: str) -> Tensor:
        """Uniform in [0, 1). Tensor of shape (B,), float64."""
        values = [(key >> 10) * 2.0**-53 for key in self._keys(stream)]  # the 53 high bits of 63
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def integers(self, stream: str, high: int) -> Tensor:
        """Uniform integers in [0, high). Tensor of shape (B,), int64.

        Raises:
            ValueError: high is not in [1, 2^32]: the remainder of 63 bits is uniform only for a small
            divisor.
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

    def _keys(self, stream: str) -> list[int]:
        """63-bit hash of (seed, stream, index), one a sample. The same on every machine and Python."""
        prefix = blake2b(f"{self.seed}/{stream}/".encode(), digest_size=8)
        keys = []
        for index in self.indices:
            digest = prefix.copy()
            digest.update(str(index).encode())
            keys.append(int.from_bytes(digest.digest(), "little") >> 1)
        return keys
