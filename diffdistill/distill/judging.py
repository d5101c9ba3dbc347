"""Running the passes of the score models that a residual reads; `score_distillation_loss` calls it.

x0 --+-- noise eps --------> x_t --+--> teacher: cond, null, guided, negative
     |                             +--> fake score
     |-- the same eps -----> x_{t+dt} --> teacher: later                          (asd)
     |-- DDIM inversion ---> x_s ------> teacher: earlier --one step--> x_t       (ism)
     +-- DDIM inversion ---------------> x_t                                      (sdi)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.diffusion import (
    Condition,
    GuidedDenoiser,
    PerpNeg,
    Prediction,
    ScoreModel,
    broadcast,
    check_condition,
    combine,
    ddim_step,
    guided,
    linear_combination,
    predictions,
)

from .inversion import Inversion, ddim_invert
from .residual import RESIDUALS, Judgement, Residual
from .tables import look_up

SMALL_T = 0.2  # of the schedule; NFSD's t < 200 of 1,000


@dataclass(frozen=True, eq=False)
class JudgingOptions:
    """What some rows of the residual family need, and what changes how a row is judged.

    Attributes:
        negative: NFSD: the condition of the negative prompt, beside null, which is then the empty one.
        small_t: NFSD: the fraction of the schedule below which the negative prompt is left out.
        earlier_t: ISM: times s of shape (B,), not later than t (`times.earlier`).
        later_t: ASD: times t + dt of shape (B,) (`Schedule.later`). Where all equal t, their pass is not run.
        inversion: ISM and SDI: an inversion in place of the row's own.
        inversion_noise: noise of shape (steps, B, ...), for an inversion with eta > 0.
        perp_neg: negative prompts for the teacher's guided prediction, in any row that reads it.
    """

    negative: Condition = None
    small_t: float = SMALL_T
    earlier_t: Tensor | None = None
    later_t: Tensor | None = None
    inversion: Inversion | None = None
    inversion_noise: Tensor | None = None
    perp_neg: PerpNeg | None = None


def judge(
    residual: str | Residual,
    teacher: ScoreModel,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Condition,
    null: Condition,
    guidance_scale: float | Tensor,
    *,
    fake: ScoreModel | None = None,
    fake_guidance_scale: float | Tensor = 1.0,
    options: JudgingOptions | None = None,
) -> Judgement:
    """Run the passes that a residual reads. Nothing here has a graph.

    There are two conventions for the guidance of the fake score. DMD guides the teacher only: the fake score's samples
    are themselves meant to look guided (`fake_guidance_scale=1`). SwiftBrush's released code guides both with one scale
    (`fake_guidance_scale=guidance_scale`), which makes the residual zero where fake and teacher agree.

    Args:
        residual: a row of `RESIDUALS` or its name.
        teacher: the score model that judges. Its schedule makes x_t; the fake score shares it.
        x0: generated samples of shape (B, ...). A graph on them is ignored.
        t: times of shape (B,), in the schedule's own units.
        eps: standard normal noise of the shape of x0. ISM and SDI do not read it.
        cond: condition of the batch.
        null: the empty condition, or a negative prompt in its place, which guidance then leads away from. It may be
            None where no scale but 1 is used and the row is neither CSD, NFSD, ISM nor SDI.
        guidance_scale: s in e_0 + s (e_c - e_0); 1 is unguided. A tensor of shape (B,) has one for each sample.
        fake: VSD: the score model of the generator's samples.
        fake_guidance_scale: s of the fake score.
        options: what some rows need; None for the defaults of `JudgingOptions`.

    Raises:
        ValueError: an unknown residual, something that the row needs is missing (a fake score for VSD; later_t for ASD,
            earlier_t for ISM, negative for NFSD, in the options), perp-neg where nothing is guided, or wrong shapes.
    """
    row = look_up(RESIDUALS, residual, "residual")
    options = options or JudgingOptions()
    _check(row, x0, t, eps, fake, options)
    for name, condition in (("cond", cond), ("null", null), ("negative", options.negative)):
        check_condition(condition, len(x0), name)
    schedule = teacher.schedule
    made: dict[str, Prediction] = {}
    with torch.no_grad():
        x0 = x0.detach()
        alpha = broadcast(schedule.alpha(t), x0)
        sigma = broadcast(schedule.sigma(t), x0)
        plan = options.inversion or row.inversion
        if row.inversion is None or plan is None:
            x_t = schedule.add_noise(x0, eps, t)
        else:
            along = GuidedDenoiser(teacher, null, plan.guidance_scale)
            end = options.earlier_t if "earlier" in row.needs and options.earlier_t is not None else t
            noise = options.inversion_noise
            x_t = ddim_invert(lambda x, at: along(x, at, cond), x0, schedule, end, plan.steps, plan.eta, noise)
            if "earlier" in row.needs:
                made["earlier"] = along(x_t, end, cond)
                x_t = ddim_step(made["earlier"], schedule, t)
            eps = linear_combination(1 / sigma, x_t, -alpha / sigma, x0)
        made.update(_at_x_t(row, teacher, x_t, t, cond, null, guidance_scale, options))
        if "fake" in row.needs and fake is not None:
            made["fake"] = guided(fake, x_t, t, cond, null, fake_guidance_scale)
        if "later" in row.needs and options.later_t is not None:
            if "cond" in made and torch.equal(options.later_t, t):
                made["later"] = made["cond"]
            else:
                made["later"] = teacher(schedule.add_noise(x0, eps, options.later_t), options.later_t, cond)
        small = None
        if "negative" in row.needs:
            # the first time of the fraction, as the schedule reckons it; no time is small at 0, all are at 1
            below = options.small_t
            first = schedule.timestep(torch.zeros(1), below, 1.0).to(t.device) if below < 1 else schedule.last + 1
            small = broadcast(t < first, x0)
    return Judgement(x0, x_t, t, eps, alpha, sigma, **made, small_t=small)


def _at_x_t(
    row: Residual,
    teacher: ScoreModel,
    x_t: Tensor,
    t: Tensor,
    cond: Condition,
    null: Condition,
    guidance_scale: float | Tensor,
    options: JudgingOptions,
) -> dict[str, Prediction]:
    """The teacher's predictions at (x_t, t) that the row reads, in one batch."""
    perp_neg = options.perp_neg
    unguided = not isinstance(guidance_scale, Tensor) and guidance_scale == 1 and perp_neg is None
    if not ("null" in row.needs or ("guided" in row.needs and not unguided)):
        if not row.needs & {"cond", "guided"}:
            return {}
        alone = teacher(x_t, t, cond)
        return {"cond": alone, "guided": alone}
    conditions = {"null": null, "cond": cond}
    if "negative" in row.needs:
        conditions["negative"] = options.negative
    if perp_neg is not None:
        conditions.update(perp_neg.conditions())
    every = predictions(teacher, x_t, t, conditions)
    made: dict[str, Prediction] = {name: every[name] for name in ("null", "cond", "negative") if name in every}
    if perp_neg is None:
        made["guided"] = combine(every["null"], every["cond"], guidance_scale)
    else:
        made["guided"] = perp_neg.combine(every, guidance_scale)
    return made


def _check(row: Residual, x0: Tensor, t: Tensor, eps: Tensor, fake: ScoreModel | None, options: JudgingOptions) -> None:
    if eps.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(eps.shape)}, x0 {tuple(x0.shape)}; they must be equal")
    if t.shape != (len(x0),):
        raise ValueError(f"t has shape {tuple(t.shape)}; one time per sample is ({len(x0)},)")
    if "fake" in row.needs and fake is None:
        raise ValueError(f"residual {row.name!r} needs a fake score: pass fake=")
    if "negative" in row.needs and options.negative is None:
        raise ValueError(f"residual {row.name!r} needs a negative prompt: pass JudgingOptions(negative=...)")
    for need, name, times in (("later", "later_t", options.later_t), ("earlier", "earlier_t", options.earlier_t)):
        if need in row.needs and (times is None or times.shape != t.shape):
            raise ValueError(
                f"residual {row.name!r} needs one time per sample, of shape ({len(x0)},): pass "
                f"JudgingOptions({name}=...)"
            )
    if options.perp_neg is not None and "guided" not in row.needs:
        raise ValueError(f"residual {row.name!r} reads no guided prediction, which is what perp-neg changes")
