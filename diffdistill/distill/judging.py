"""Running the passes that a residual reads.

x0 --+-- noise eps --------> x_t --+--> teacher: cond, null, guided, negative
     |                             +--> fake score
     |-- the same eps -----> x_{t+dt} --> teacher: later                          (asd)
     |-- DDIM inversion ---> x_s ------> teacher: earlier --one step--> x_t       (ism)
     +-- DDIM inversion ---------------> x_t                                      (sdi)
"""

from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import (
    PerpNeg,
    Prediction,
    Schedule,
    broadcast,
    check_condition,
    combine,
    guided,
    predictions,
)
from diffdistill.diffusion.samplers import ddim_step
from diffdistill.diffusion.schedule import linear_combination

from .inversion import Inversion, ddim_invert
from .residual import RESIDUALS, Judgement, Residual
from .tables import look_up

SMALL_T = 0.2  # of the schedule; NFSD's t < 200 of 1,000


def judge(
    residual: str | Residual,
    teacher: Any,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Any,
    null: Any,
    guidance_scale: float | Tensor,
    *,
    fake: Any = None,
    fake_guidance_scale: float | Tensor = 1.0,
    later_t: Tensor | None = None,
    negative: Any = None,
    small_t: float = SMALL_T,
    earlier_t: Tensor | None = None,
    inversion: Inversion | None = None,
    inversion_noise: Tensor | None = None,
    perp_neg: PerpNeg | None = None,
) -> Judgement:
    """Run the passes that a residual reads. Nothing here has a graph.

    Two conventions of guiding the fake score exist. DMD guides the teacher only: the fake score's samples are
    themselves meant to look guided (`fake_guidance_scale=1`). SwiftBrush's released code guides both with one
    scale (`fake_guidance_scale=guidance_scale`), which makes the residual zero where fake and teacher agree.

    Args:
        residual: a row of `RESIDUALS` or its name.
        teacher: a `Denoiser`, or what is called like one. Its schedule makes x_t; the fake score shares it.
        x0: generated samples of shape (B, ...). A graph on it is ignored.
        t: times of shape (B,), in the schedule's own units.
        eps: standard normal noise of the shape of x0. ISM and SDI do not read it.
        cond: condition of the batch.
        null: the empty condition, or any negative prompt in its place, which guidance then leads away from; may
            be None where no scale but 1 is used and the row is neither CSD, NFSD, ISM nor SDI.
        guidance_scale: s in e_0 + s (e_c - e_0); 1 is unguided. A tensor of shape (B,) is one a sample.
        fake: score model of the generator's samples, for VSD.
        fake_guidance_scale: s of the fake score.
        later_t: t + dt of shape (B,), for ASD (`Schedule.later`). Where it equals t the pass is spared.
        negative: the negative prompt of NFSD, beside null, which is then the empty one.
        small_t: the fraction of the schedule below which NFSD leaves the negative prompt out.
        earlier_t: s of shape (B,), not after t, for ISM (`times.earlier`).
        inversion: in place of the row's own, for ISM and SDI.
        inversion_noise: of shape (steps, B, ...), for an inversion with eta > 0.
        perp_neg: negative prompts for the teacher's guided prediction, in any row that reads it.

    Raises:
        ValueError: unknown residual, what the row needs is missing (a fake for VSD, later_t for ASD, earlier_t
            for ISM, negative for NFSD), perp-neg where nothing is guided, or wrong shapes.
    """
    row = look_up(RESIDUALS, residual, "residual")
    _check(row, x0, t, eps, fake, later_t, negative, earlier_t, perp_neg)
    for name, condition in (("cond", cond), ("null", null), ("negative", negative)):
        check_condition(condition, len(x0), name)
    schedule: Schedule = teacher.schedule
    made: dict[str, Prediction] = {}
    with torch.no_grad():
        x0 = x0.detach()
        alpha = broadcast(schedule.alpha(t), x0)
        sigma = broadcast(schedule.sigma(t), x0)
        plan = inversion or row.inversion
        if row.inversion is None or plan is None:
            x_t = schedule.add_noise(x0, eps, t)
        else:

            def along(x: Tensor, time: Tensor) -> Prediction:
                return guided(teacher, x, time, cond, null, plan.guidance_scale)

            end = earlier_t if "earlier" in row.needs and earlier_t is not None else t
            x_t = ddim_invert(along, x0, schedule, end, plan.steps, plan.eta, inversion_noise)
            if "earlier" in row.needs:
                made["earlier"] = along(x_t, end)
                x_t = ddim_step(made["earlier"], schedule, t)
            eps = linear_combination(1 / sigma, x_t, -alpha / sigma, x0)
        made.update(_at_x_t(row, teacher, x_t, t, cond, null, guidance_scale, negative, perp_neg))
        if "fake" in row.needs:
            made["fake"] = guided(fake, x_t, t, cond, null, fake_guidance_scale)
        if "later" in row.needs and later_t is not None:
            if "cond" in made and torch.equal(later_t, t):
                made["later"] = made["cond"]
            else:
                made["later"] = teacher(schedule.add_noise(x0, eps, later_t), later_t, cond)
        small = None
        if "negative" in row.needs:
            # the first time of the fraction, by the schedule's own reckoning; none is small at 0, all are at 1
            first = schedule.timestep(torch.zeros(1), small_t, 1.0).to(t.device) if small_t < 1 else schedule.last + 1
            small = broadcast(t < first, x0)
    return Judgement(x0, x_t, t, eps, alpha, sigma, **made, small_t=small)


def _at_x_t(
    row: Residual,
    teacher: Any,
    x_t: Tensor,
    t: Tensor,
    cond: Any,
    null: Any,
    guidance_scale: float | Tensor,
    negative: Any,
    perp_neg: PerpNeg | None,
) -> dict[str, Prediction]:
    """The teacher's predictions at (x_t, t) that the row reads, in one batch."""
    unguided = not isinstance(guidance_scale, Tensor) and guidance_scale == 1 and perp_neg is None
    if not ("null" in row.needs or ("guided" in row.needs and not unguided)):
        if not row.needs & {"cond", "guided"}:
            return {}
        alone = teacher(x_t, t, cond)
        return {"cond": alone, "guided": alone}
    conditions = {"null": null, "cond": cond}
    if "negative" in row.needs:
        conditions["negative"] = negative
    if perp_neg is not None:
        conditions.update(perp_neg.conditions())
    every = predictions(teacher, x_t, t, conditions)
    made: dict[str, Prediction] = {name: every[name] for name in ("null", "cond", "negative") if name in every}
    if perp_neg is None:
        made["guided"] = combine(every["null"], every["cond"], guidance_scale)
    else:
        made["guided"] = perp_neg.combine(every, guidance_scale)
    return made


def _check(
    row: Residual,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    fake: Any,
    later_t: Tensor | None,
    negative: Any,
    earlier_t: Tensor | None,
    perp_neg: PerpNeg | None,
) -> None:
    if eps.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(eps.shape)}, x0 {tuple(x0.shape)}; they must be equal")
    if t.shape != (len(x0),):
        raise ValueError(f"t has shape {tuple(t.shape)}; one time a sample is ({len(x0)},)")
    if "fake" in row.needs and fake is None:
        raise ValueError(f"residual {row.name!r} needs a fake score: pass fake=")
    if "later" in row.needs and (later_t is None or later_t.shape != t.shape):
        raise ValueError(f"residual {row.name!r} needs later_t, a time t + dt a sample, of shape ({len(x0)},)")
    if "negative" in row.needs and negative is None:
        raise ValueError(f"residual {row.name!r} needs a negative prompt: pass negative=")
    if "earlier" in row.needs and (earlier_t is None or earlier_t.shape != t.shape):
        raise ValueError(f"residual {row.name!r} needs earlier_t, a time t - dt a sample, of shape ({len(x0)},)")
    if perp_neg is not None and "guided" not in row.needs:
        raise ValueError(f"residual {row.name!r} reads no guided prediction, which is where perp-neg acts")
