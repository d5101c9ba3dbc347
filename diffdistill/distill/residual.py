"""The residual family: which difference of two predictions is the gradient on a generated sample.

A generator makes x0. It is noised to x_t = alpha_t x0 + sigma_t eps, a frozen teacher judges x_t, and the
difference of two noise predictions, times a weight (`weights.py`), is used as dL/dx0:

    sds   e_cfg(x_t, t) - eps                       VSD with a fake score that knows one sample only
    csd   e_c(x_t, t) - e_0(x_t, t)                 the guidance direction alone
    vsd   e_cfg(x_t, t) - e_fake(x_t, t)            the fake score learns the generator's samples (DMD too)
    asd   e_cfg(x_t, t) - e_c(x_{t+dt}, t+dt)       the teacher at a later time in place of a fake score

with e_cfg = e_0 + s (e_c - e_0). Identities that hold for any network:
ASD at dt = 0 is (s - 1) CSD; VSD with the exact score of the one sample x0 is SDS.

Notable:
- a row also says its difference in x0 space, pointing the same way (second minus first). At one shared time
  it is sigma / alpha times the difference of noises, and it is finite at alpha = 0 where the network does not
  predict noise;
- `judge` runs only the passes that a row reads, all without a graph: no gradient enters a teacher;
- the noise is shared by both terms. With independent noise at t + dt the variance of ASD multiplies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import Prediction, broadcast, combine, cond_and_null, guided

from .tables import look_up


@dataclass(frozen=True)
class Judgement:
    """What the score models said of one batch; a row of `RESIDUALS` reads what it needs.

    Attributes:
        x0: the sample judged, detached. Tensor of shape (B, ...).
        x_t: the sample noised, of the same shape.
        t: times, of shape (B,).
        eps: the noise in x_t, of the shape of x0.
        alpha, sigma: the schedule at t, of a shape that broadcasts against x0.
        cond, null, guided: the teacher's predictions at (x_t, t).
        fake: the fake score's prediction at (x_t, t), guided by its own scale.
        later: the teacher's conditional prediction at (x_{t+dt}, t+dt).
    """

    x0: Tensor
    x_t: Tensor
    t: Tensor
    eps: Tensor
    alpha: Tensor
    sigma: Tensor
    cond: Prediction | None = None
    null: Prediction | None = None
    guided: Prediction | None = None
    fake: Prediction | None = None
    later: Prediction | None = None

    def read(self, name: str) -> Prediction:
        """The prediction of that name.

        Raises:
            ValueError: it was not made, because the residual did not declare it in `needs`.
        """
        prediction: Prediction | None = getattr(self, name)
        if prediction is None:
            raise ValueError(f"prediction {name!r} was not made: a residual must name it in `needs`")
        return prediction


@dataclass(frozen=True)
class Residual:
    """One row of the family.

    Attributes:
        name: its key in `RESIDUALS`.
        needs: the predictions it reads, of "cond", "null", "guided", "fake", "later".
        assemble: the difference of noises. Adding it to dL/dx0 and descending moves x0 towards the teacher.
        assemble_x0: the same direction as a difference of clean samples.
        summary: one line for people.
        source: paper, and equation where it has one.
    """

    name: str
    needs: frozenset[str]
    assemble: Callable[[Judgement], Tensor]
    assemble_x0: Callable[[Judgement], Tensor]
    summary: str
    source: str


_ROWS = (
    Residual(
        "sds",
        frozenset({"guided"}),
        lambda j: j.read("guided").eps - j.eps,
        lambda j: j.x0 - j.read("guided").x0,
        "guided noise minus the true noise",
        "DreamFusion, arXiv 2209.14988, eq. 3",
    ),
    Residual(
        "csd",
        frozenset({"cond", "null"}),
        lambda j: j.read("cond").eps - j.read("null").eps,
        lambda j: j.read("null").x0 - j.read("cond").x0,
        "conditional noise minus unconditional noise; no restoring force where both have one variance",
        "Classifier Score Distillation, arXiv 2310.19415",
    ),
    Residual(
        "vsd",
        frozenset({"guided", "fake"}),
        lambda j: j.read("guided").eps - j.read("fake").eps,
        lambda j: j.read("fake").x0 - j.read("guided").x0,
        "guided noise minus the noise predicted by a score model of the generator's own samples",
        "ProlificDreamer, arXiv 2305.16213; SwiftBrush, arXiv 2312.05239; DMD, arXiv 2311.18828",
    ),
    Residual(
        "asd",
        frozenset({"guided", "later"}),
        lambda j: j.read("guided").eps - j.read("later").eps,
        lambda j: j.read("later").x0 - j.read("guided").x0,
        "guided noise minus the teacher's conditional noise at a later time, with the same noise in both",
        "ScaleDreamer, arXiv 2407.02040; the x0 form is that of Progressive Rendering Distillation",
    ),
)

RESIDUALS: dict[str, Residual] = {row.name: row for row in _ROWS}


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
        eps: standard normal noise of the shape of x0.
        cond: condition of the batch.
        null: the empty (or negative) condition; may be None where both guidance scales are 1 and the row is
            not CSD.
        guidance_scale: s in e_0 + s (e_c - e_0); 1 is unguided. A tensor of shape (B,) is one a sample.
        fake: score model of the generator's samples, for VSD.
        fake_guidance_scale: s of the fake score.
        later_t: t + dt of shape (B,), for ASD (`Schedule.later`). Where it equals t the pass is spared.

    Raises:
        ValueError: unknown residual, no fake for VSD, no later_t for ASD, or wrong shapes.
    """
    row = look_up(RESIDUALS, residual, "residual")
    _check(row, x0, t, eps, fake, later_t)
    made: dict[str, Prediction] = {}
    with torch.no_grad():
        x0 = x0.detach()
        x_t = teacher.schedule.add_noise(x0, eps, t)
        unguided = not isinstance(guidance_scale, Tensor) and guidance_scale == 1
        if "null" in row.needs or ("guided" in row.needs and not unguided):
            made["cond"], made["null"] = cond_and_null(teacher, x_t, t, cond, null)
            made["guided"] = combine(made["null"], made["cond"], guidance_scale)
        elif row.needs & {"cond", "guided"}:
            made["cond"] = made["guided"] = teacher(x_t, t, cond)
        if "fake" in row.needs:
            made["fake"] = guided(fake, x_t, t, cond, null, fake_guidance_scale)
        if "later" in row.needs and later_t is not None:
            if "cond" in made and torch.equal(later_t, t):
                made["later"] = made["cond"]
            else:
                made["later"] = teacher(teacher.schedule.add_noise(x0, eps, later_t), later_t, cond)
        alpha = broadcast(teacher.schedule.alpha(t), x0)
        sigma = broadcast(teacher.schedule.sigma(t), x0)
    return Judgement(x0, x_t, t, eps, alpha, sigma, **made)


def surrogate_loss(x0: Tensor, grad: Tensor, reduction: str = "mean") -> Tensor:
    """A loss whose gradient at x0 is `grad`, scaled: 0.5 (x0 - sg[x0 - grad])^2, reduced.

    Its value is half the squared gradient, a measure of the residual, and nothing that descends to zero.
    Computed as 0.5 (x0 - sg[x0] + grad)^2: the same number, without the rounding of x0 - grad, which
    swallows a small gradient in low precision.

    Args:
        x0: samples of shape (B, ...), with a graph.
        grad: of the same shape; used as a constant.
        reduction: "mean" over all elements, so that dL/dx0 = grad / x0.numel() (SwiftBrush); or "batch", the
            sum divided by B, so that dL/dx0 = grad / B, which grows with the resolution (usual in
            text-to-3D).

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or an unknown reduction.

    >>> x0 = torch.zeros(2, 4, requires_grad=True)
    >>> surrogate_loss(x0, torch.full((2, 4), 0.8), reduction="batch").backward()
    >>> x0.grad[0, 0].item()
    0.4000000059604645
    """
    if x0.shape != grad.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, its gradient {tuple(grad.shape)}; they must be equal")
    half_square = 0.5 * (x0 - x0.detach() + grad.detach()).square()
    if reduction == "mean":
        return half_square.mean()
    if reduction == "batch":
        return half_square.sum() / len(x0)
    raise ValueError(f"unknown reduction {reduction!r}; there are: mean, batch")


def _check(row: Residual, x0: Tensor, t: Tensor, eps: Tensor, fake: Any, later_t: Tensor | None) -> None:
    if eps.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(eps.shape)}, x0 {tuple(x0.shape)}; they must be equal")
    if t.shape != (len(x0),):
        raise ValueError(f"t has shape {tuple(t.shape)}; one time a sample is ({len(x0)},)")
    if "fake" in row.needs and fake is None:
        raise ValueError(f"residual {row.name!r} needs a fake score: pass fake=")
    if "later" in row.needs and (later_t is None or later_t.shape != t.shape):
        raise ValueError(f"residual {row.name!r} needs later_t, a time t + dt a sample, of shape ({len(x0)},)")
