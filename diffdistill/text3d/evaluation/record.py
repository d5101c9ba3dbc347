"""The record of an evaluation: rows of prompts, and what they say together.

rows --> means and shares of splits and things       views --features--> render-KD of prompts, splits and things
                                                          `--pairs of objects of a thing--> variety
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.evaluation.rate.kept import KeptRows
from diffdistill.text3d.evaluation.evaluation import Evaluation
from diffdistill.text3d.evaluation.pictures import as_bytes
from diffdistill.text3d.evaluation.render_kd import distance_of, own_distance, pair_terms
from diffdistill.text3d.evaluation.splits import SPLITS
from diffdistill.text3d.evaluation.summary import means, of_splits, of_things, ranked_by
from diffdistill.text3d.evaluation.variety import noise_width, variety

Groups = Mapping[str, Mapping[str, Sequence[int]]]  # "splits" and "things": names, and the numbers of their rows


def record_of(evaluation: Evaluation) -> dict[str, Any]:
    """All numbers of an evaluation, which is done where it is not there yet.

    Returns:
        "settings"; "judge", its numbers on true renders; "splits", those that have prompts, and "all"; "things", the
        worst first; and "rows", one a prompt, with own_kd beside what `Evaluation.rows` says.

    Raises:
        UserError: the model does not know a prompt.
    """
    rows, views = evaluation.rows(), evaluation.views()
    of_split = {name: [i for i, row in enumerate(rows) if name in ("all", row["split"])] for name in (*SPLITS, "all")}
    groups: Groups = {
        "splits": {name: chosen for name, chosen in of_split.items() if chosen},
        "things": {name: [i for i, row in enumerate(rows) if row["thing"] == name] for name in _things(rows)},
    }
    distances = None
    if "kd" in evaluation.measures:
        kept = KeptRows(evaluation.folder / "kept" / "render_kd.json", evaluation.settings)
        distances = kept.get("all", lambda: _distances(evaluation, views, groups))
        for row in rows:
            row["own_kd"] = distances["prompts"][row["prompt"]]
    key = ranked_by(rows)
    numbers = {"splits": of_splits(rows, key), "things": of_things(rows, key)}
    if distances is not None:
        for group, some in numbers.items():
            for name in some:
                some[name] |= distances[group][name]
    if "variety" in evaluation.measures and not noise_width(evaluation.model):
        _add_variety(evaluation, views, groups["things"], numbers)
    found = means(rows)
    of_truth = {name: found[f"true_{name}"] for name in ("recall_at_1", "r_probability")}
    judge = {"sha256": evaluation.settings["judge"], "queries": len(evaluation.settings["queries"]), **of_truth}
    return {"settings": evaluation.settings, "judge": judge, **numbers, "rows": rows}


def _distances(evaluation: Evaluation, views: Tensor, groups: Groups) -> dict[str, Any]:
    """KD of own views of each prompt, and render-KD with its standard error of each group of 2 prompts or more."""
    extractor = evaluation.features
    assert extractor is not None  # it is loaded where "kd" is measured
    made, true, own = [], [], {}
    for prompt, some in zip(evaluation.prompts, views, strict=True):
        made.append(extractor(some))
        true.append(extractor(as_bytes(evaluation.ruler.truth([prompt])[0])))
        own[str(prompt)] = own_distance(made[-1], true[-1])
        evaluation.step(f"features of {prompt}")
    terms = pair_terms(torch.stack(made), torch.stack(true))

    def distance(rows: Sequence[int]) -> dict[str, float | None]:
        kd, se = distance_of(terms[rows][:, rows]) if len(rows) > 1 else (None, None)
        return {"render_kd": kd, "render_kd_se": se}

    found = {group: {name: distance(rows) for name, rows in names.items()} for group, names in groups.items()}
    return {"prompts": own, **found}


def _things(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["thing"] for row in rows))


def _add_variety(
    evaluation: Evaluation, views: Tensor, things: Mapping[str, Sequence[int]], numbers: dict[str, dict[str, Any]]
) -> None:
    """Variety among the prompts of each thing, of the model and of the true renders; and the means over things."""
    for name, rows in things.items():
        true = as_bytes(evaluation.ruler.truth([evaluation.prompts[i] for i in rows]))
        numbers["things"][name] |= {"variety": variety(views[rows]), "true_variety": variety(true)}
    for key in ("variety", "true_variety"):
        known = [found[key] for found in numbers["things"].values() if found[key] is not None]
        numbers["splits"]["all"][key] = sum(known) / len(known) if known else None
