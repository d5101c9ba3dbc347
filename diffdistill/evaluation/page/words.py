"""The sentences of a page that depend on the sweep: about errors, seconds and towers.

Importing this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from diffdistill.evaluation.page.columns import Column, fewer_seeds, real_rows
from diffdistill.evaluation.page.record import Sweep


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence.

    >>> listed(["kd"]), listed(["kd", "fd"]), listed(["kd", "fd", "recall"])
    ('kd', 'kd and fd', 'kd, fd and recall')
    """
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])


def errors(sweep: Sweep, what: str = "±") -> str:
    """What the errors are that `columns.error_of` gives."""
    are = "are" if what == "Bars" else "is"
    n, few = sweep.pictures, sweep.agreement_pictures
    fewer = sweep.agreement_metric and few and few != n
    if len(sweep.seeds) > 1:
        over = "the seeds measured" if some_fewer(sweep) else f"{len(sweep.seeds)} seeds"
        of_agreement = f", {few:,} for agreement" if fewer else ""
        return f"{what} {are} the standard deviation over {over}, {n:,} images each{of_agreement}."
    of_agreement = f", of agreement over {few:,}" if fewer else ""
    return (
        f"{what} {are} the standard error over {n:,} images{of_agreement}, where it is known; the sweep has one seed."
    )


def some_fewer(sweep: Sweep) -> bool:
    """Whether seeds are missing anywhere."""
    return any(fewer_seeds(measured) for measured in (*sweep.rows, *(real.measured for real in real_rows(sweep))))


def timing(sweep: Sweep, columns: Sequence[Column]) -> str:
    """How the seconds per image were measured; they depend on the machine as much as on the generator."""
    if not any(column.key == "seconds_per_image" for column in columns):
        return ""
    where = [f"{on.threads} thread{'' if on.threads == 1 else 's'} of {escape(on.device)}" for on in sweep.timing]
    on = f", on {listed(where)}" if where else ""
    return (
        "Seconds per image are those of generation alone, the median over chunks, measured while the sweep ran"
        f"{on}. Other work on the machine changes them, and no row is called best by them."
    )


def towers_of(sweep: Sweep) -> str:
    """The metric with the key of its towers, such as "clip_score(ViT-g-14/laion2b, '', x1)"."""
    metric, key = sweep.agreement_metric or "", (sweep.agreement or {}).get("key")
    return metric if "(" in metric or not isinstance(key, str) else f"{metric}{key}"


def towers_in_words(sweep: Sweep) -> str:
    """Which towers measured agreement, with which prefix, and how well they do on concepts they were not trained on."""
    if sweep.agreement_metric is None or sweep.agreement is None:
        return ""
    extractor, prefix = (sweep.agreement.get(key) for key in ("extractor", "prefix"))
    text = f"Agreement is by <code>{escape(towers_of(sweep))}</code>"
    text += f", the towers <code>{escape(extractor)}</code>" if isinstance(extractor, str) else ""
    text += f", with <code>{escape(repr(prefix))}</code> before every caption." if isinstance(prefix, str) else "."
    if sweep.agreement_metric == "align_score" and sweep.prompts_of == "training":
        text += (
            " The prompts are captions of the emoji set\u2019s training images. The heads of these towers were trained "
            "on those of <code>assets/emoji</code>, so the prompts\u2019 own images score higher than other images "
            "that fit as well. Compare with the level of held-out concepts instead."
        )
    if held := sweep.held_out:
        text += (
            f" For images of concepts held out from their training, these heads have an R@1 of {held.r1:.3f} and an "
            f"R@5 of {held.r5:.3f} among {held.among:,} captions, and a mean cosine of {held.score:.3f}."
        )
    return f"<p>{text}</p>"


def agreement_level(sweep: Sweep) -> str:
    """Which images the dashed line of agreement shows, where they differ from those of the other dashed lines."""
    if sweep.agreement_metric != "align_score" or sweep.prompts_of != "training" or not sweep.floor:
        return ""
    trained = "the prompts are training captions, and align_score\u2019s heads were trained on those of assets/emoji"
    if not sweep.floor.unseen:
        return (
            f"for agreement, the prompts\u2019 own images, since there are no held-out ones to compare with ({trained})"
        )
    n = sweep.floor.unseen.get("n")
    those = f"{n:,.0f} real images" if n else "real images"
    return f"for agreement, {those} of held-out concepts with their own captions ({trained})"
