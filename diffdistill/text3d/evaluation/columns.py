"""The numbers of a report: their names, how they are written, and what they are in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Column(NamedTuple):
    """One number.

    Attributes:
        key: in a record. The same number of the true renders, where there is one, is under `true_key`.
        label: in a table.
        decimals: that are shown.
        best: "high", "low" or "" for neither.
        words: what it is.
        unit: that follows the number in a sentence.
    """

    key: str
    label: str
    decimals: int
    best: str
    words: str
    unit: str = ""

    @property
    def true_key(self) -> str:
        """The key of the same number of the true renders."""
        own = self.key.removeprefix("clip_")
        return f"clip_true_{own}" if own != self.key else f"true_{own}"


COLUMNS = (
    Column("prompts", "prompts", 0, "", "how many were measured"),
    Column(
        "recall_at_1", "R@1", 3, "high",
        "share of the 24 views whose own prompt is the likeliest of all candidates, by the judge. A judge takes a mug "
        "without a handle for a mug, so read PSNR and IoU beside it",
    ),
    Column("r_probability", "R-probability", 3, "high", "mean probability of the own prompt, by the judge"),
    Column("clip_recall_at_1", "CLIP R@1", 3, "high", "share of the views whose nearest text is the own prompt"),
    Column(
        "clip_r_probability", "CLIP R-probability", 3, "high",
        "mean probability of the own prompt, by cosines times 100",
    ),
    Column(
        "psnr_db", "PSNR", 2, "high",
        "of the 24 views to the true renders from the same cameras, in dB. The truth\u2019s own is that of its exact "
        "field, drawn as the objects are, which no object can exceed by much",
        " dB",
    ),
    Column("iou", "IoU", 3, "high", "intersection over union with the true object; of procedural things alone"),
    Column(
        "janus", "Janus", 3, "",
        "how much more alike opposite views are than those of the true object, from \u22121 to 1: near 0 is right, and "
        "above 0 is an object that looks from behind as it does from the front. Alike is 2 f.b / (f.f + b.b), f and b "
        "being white minus the two views; the mean is over the 12 pairs of opposite views. A chair with two backs has "
        "0.26, a mug with two handles 0.22, and the blur of a right surface up to 0.03",
    ),
    Column("janus_most", "Janus, the most", 3, "low", "the largest one of all prompts"),
    Column(
        "render_kd", "render-KD", 3, "low",
        "kernel distance of all views from all true renders, by MobileNetV2\u2019s features, over pairs of prompts; "
        "\u00b1 is its standard error over prompts. It shows faults that prompts share, such as blur. 0 is equal",
    ),
    Column(
        "own_kd", "KD of own views", 3, "low",
        "the same of the views of one prompt, over pairs of cameras; and its mean over prompts, \u00b1 standard error",
    ),
    Column("share_watertight", "watertight", 3, "high", "share of the objects whose mesh is closed"),
    Column("watertight", "watertight", 0, "high", "whether the mesh is closed"),
    Column(
        "components", "parts", 2, "",
        "connected surfaces of the mesh, without specks below 0.5 % of the largest one. A hollow counts as one",
    ),
    Column("specks", "specks", 0, "low", "parts that are smaller than that"),
    Column(
        "share_empty", "empty", 3, "low",
        "share of the objects whose mean opacity is below 0.02, or the largest below 0.5",
    ),
    Column("share_diverged", "diverged", 3, "low", "share of objects that fill the views where true ones do not"),
    Column("empty", "empty", 0, "low", "whether the mean opacity is below 0.02, or the largest below 0.5"),
    Column("diverged", "diverged", 0, "low", "mean opacity above 0.6, and by 0.1 above the true cover"),
    Column("opacity", "opacity", 3, "", "mean over all pixels of the 24 views"),
    Column(
        "variety", "variety", 3, "",
        "mean distance of two objects: the root of the mean squared difference of their views. Of a generator that "
        "takes noise, among 4 objects of a prompt; of another, among the prompts of a thing, which differ by colour",
    ),
)  # fmt: skip


def columns_of(numbers: Iterable[Mapping[str, Any]]) -> list[Column]:
    """The columns of which there is a number in any row."""
    there = {key for row in numbers for key, value in row.items() if value is not None}
    return [column for column in COLUMNS if column.key in there]


def number(column: Column, row: Mapping[str, Any]) -> str:
    """A number as it is shown, with its standard error where there is one; a dash where there is none.

    >>> number(COLUMNS[1], {"recall_at_1": 0.98765}), number(COLUMNS[1], {})
    ('0.988', '–')
    """
    value = row.get(column.key)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    error = row.get(f"{column.key}_se")
    decimals = 0 if isinstance(value, int) else column.decimals
    shown = f"{value:.{decimals}f}" + ("" if error is None else f" ± {error:.{decimals}f}")
    return shown.replace("-", "−")


def of_truth(column: Column, row: Mapping[str, Any]) -> str:
    """The same number of the true renders as it is shown; "" where there is none.

    >>> of_truth(COLUMNS[1], {"recall_at_1": 0.9, "true_recall_at_1": 0.99})
    '0.990'
    """
    value = row.get(column.true_key)
    return "" if value is None else number(column, {column.key: value})
