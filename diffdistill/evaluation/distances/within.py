"""How far generated images are from others of the same caption, which sees quality and variety at once."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def distance_within(features: Tensor, others: Tensor, captions: Sequence[Hashable]) -> float:
    """The kernel distance of images of a caption to others of it, averaged over captions.

    It is the mean over captions of the unbiased squared maximum mean discrepancy with the cubic kernel (x y / d + 1)^3,
    as `kernel_distance` has it over all images. A generator that always draws the same image of a caption is far from
    one that varies, which a distance over all images may not see.

    Args:
        features, others: Tensors of shape (n, d); row i of both is of caption i.
        captions: n captions, each two times or more.

    Raises:
        ValueError: other shapes, values that are not finite, or a caption with one image.

    >>> x = torch.tensor([[1.0], [-1.0], [0.0], [2.0]])
    >>> distance_within(x, x, ["a", "a", "b", "b"]) < 0
    True
    """
    if features.ndim != 2 or features.shape != others.shape or len(captions) != len(features):
        raise ValueError(
            f"features and others should have one shape (n, d) with n captions, got {tuple(features.shape)}, "
            f"{tuple(others.shape)} and {len(captions)} captions"
        )
    if not bool(features.isfinite().all() and others.isfinite().all()):
        raise ValueError("features hold values that are not finite")
    rows: dict[Hashable, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption, []).append(row)
    distances = []
    for caption, chosen in rows.items():
        m = len(chosen)
        if m < 2:
            raise ValueError(f"caption {caption!r} has one image; two are needed")
        x, y = features[chosen].double(), others[chosen].double()
        kxx, kyy, kxy = (((a @ b.T) / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        own = (kxx.sum() - kxx.trace() + kyy.sum() - kyy.trace()) / (m * (m - 1))
        distances.append(own - 2 * kxy.mean())
    return float(torch.stack(distances).mean())
