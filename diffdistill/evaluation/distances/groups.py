"""Rows of features by group, such as the images of one caption."""

from collections.abc import Hashable, Iterable

from torch import Tensor


def rows_of_groups(features: Tensor, groups: Iterable[Hashable] | Tensor) -> list[list[int]]:
    """The rows of each group of two or more, in the order in which groups appear.

    Args:
        features: Tensor of shape (n, d).
        groups: n labels, such as prompts, or a Tensor of n integers.

    Raises:
        ValueError: another number of labels than rows, no group of two, or values that are not finite.
    """
    labels = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if features.ndim != 2 or len(labels) != len(features):
        raise ValueError(
            f"features should have shape (n, d) and one label a row, got {tuple(features.shape)} "
            f"and {len(labels)} labels"
        )
    if not bool(features.isfinite().all()):
        raise ValueError("features hold values that are not finite")
    members: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    found = [rows for rows in members.values() if len(rows) > 1]
    if not found:
        raise ValueError("no group has two images, so there is no distance within one")
    return found
