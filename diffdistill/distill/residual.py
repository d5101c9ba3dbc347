"""The residual family: the table of differences of two predictions that serve as gradient on a generated sample.

A generator makes x0. It is noised to x_t = alpha_t x0 + sigma_t eps, a frozen teacher judges x_t, and the difference
of two noise predictions, times a weight (`weights.py`), is used as dL/dx0:

    sds   e_cfg(x_t, t) - eps                       VSD with the exact score of a single sample as fake score
    sjc   e_cfg(x_t, t)                             the score itself; its variance-reduced form is SDS
    csd   e_c(x_t, t) - e_0(x_t, t)                 the guidance direction alone
    nfsd  e_cfg(x_t, t) - e_n(x_t, t)               a negative prompt's noise in place of eps; none at small t
    vsd   e_cfg(x_t, t) - e_fake(x_t, t)            the fake score learns the generator's samples (DMD too)
    asd   e_cfg(x_t, t) - e_c(x_{t+dt}, t+dt)       the teacher at a later time in place of a fake score
    ism   e_cfg(x_t, t) - e_0(x_s, s)               x_s by DDIM inversion, x_t by one more step of it
    sdi   e_cfg(x_t, t) - eps                       x_t by DDIM inversion; eps is the noise that it finds

with e_cfg = e_0 + s (e_c - e_0). Identities that hold for any network: ASD at dt = 0 is (s - 1) CSD; VSD with the
exact score of the single sample x0 is SDS; NFSD with the empty prompt as negative prompt is s CSD, and SJC at small t;
ISM over an interval of length zero is s CSD at x_s; ISM in x0 space is exactly x0_hat(x_s) - x0_cfg(x_t).

Notable:
- a row also has its difference in x0 space, which points in the same direction (second minus first). At one shared
  time it is sigma / alpha times the difference of noises. It is finite at alpha = 0 where the network does not predict
  noise (except for SJC, and NFSD at small t, where no second prediction balances the noise);
- `judge` runs only the passes that a row reads, all without a graph: no gradient enters a teacher;
- both terms share the noise. With independent noise at t + dt the variance of ASD would be many times larger;
- ISM and SDI read no random noise: their variance over it is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.diffusion import Prediction

from .inversion import Inversion


@dataclass(frozen=True)
class Judgement:
    """The predictions of the score models for one batch; a row of `RESIDUALS` reads those that it needs.

    Attributes:
        x0: the samples that are judged, detached, of shape (B, ...).
        x_t: the noised samples, of the same shape.
        t: times, of shape (B,).
        eps: the noise in x_t, of the shape of x0: the given noise, or that which inversion found.
        alpha, sigma: the schedule at t, of a shape that broadcasts against x0.
        cond, null, guided: the teacher's predictions at (x_t, t).
        fake: the fake score's prediction at (x_t, t), guided with its own scale.
        later: the teacher's conditional prediction at (x_{t+dt}, t+dt).
        negative: the teacher's prediction for the negative prompt at (x_t, t).
        earlier: the teacher's prediction at (x_s, s), guided as the inversion is: by default unconditional.
        small_t: where t is small in the sense of NFSD, bool, of a shape that broadcasts against x0.
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
    negative: Prediction | None = None
    earlier: Prediction | None = None
    small_t: Tensor | None = None

    def read(self, name: str) -> Prediction:
        """The prediction of that name.

        Raises:
            ValueError: it was not made, because the residual does not name it in `needs`.
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
        needs: the predictions that it reads: "cond", "null", "guided", "fake", "later", "negative", "earlier".
        assemble: the difference of noises. Gradient descent with it as dL/dx0 moves x0 towards the teacher.
        assemble_x0: the same direction as a difference of clean samples.
        summary: one line that describes it.
        source: the paper, and the equation where there is one.
        inversion: the DDIM inversion that makes x_t by default; None for random noise.
    """

    name: str
    needs: frozenset[str]
    assemble: Callable[[Judgement], Tensor]
    assemble_x0: Callable[[Judgement], Tensor]
    summary: str
    source: str
    inversion: Inversion | None = None


def _sjc_x0(j: Judgement) -> Tensor:
    """x_t / alpha - x0_cfg: sigma / alpha times the noise that the teacher predicts."""
    return j.x_t * (1 / j.alpha).to(j.x_t.dtype) - j.read("guided").x0


def _nfsd(j: Judgement) -> Tensor:
    assert j.small_t is not None  # made along with "negative"
    return torch.where(j.small_t, j.read("guided").eps, j.read("guided").eps - j.read("negative").eps)


def _nfsd_x0(j: Judgement) -> Tensor:
    assert j.small_t is not None
    return torch.where(j.small_t, _sjc_x0(j), j.read("negative").x0 - j.read("guided").x0)


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
        "sjc",
        frozenset({"guided"}),
        lambda j: j.read("guided").eps,
        _sjc_x0,
        "guided noise alone: its mean is that of SDS, its variance is not",
        "Score Jacobian Chaining, arXiv 2212.00774",
    ),
    Residual(
        "csd",
        frozenset({"cond", "null"}),
        lambda j: j.read("cond").eps - j.read("null").eps,
        lambda j: j.read("null").x0 - j.read("cond").x0,
        "conditional noise minus unconditional noise; no restoring force where both have the same variance",
        "Classifier Score Distillation, arXiv 2310.19415",
    ),
    Residual(
        "nfsd",
        frozenset({"guided", "null", "negative"}),
        _nfsd,
        _nfsd_x0,
        "guided noise minus that of a negative prompt; at small t, where x_t has little noise, the guided noise alone",
        "Noise-Free Score Distillation, arXiv 2310.17590",
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
    Residual(
        "ism",
        frozenset({"guided", "earlier"}),
        lambda j: j.read("guided").eps - j.read("earlier").eps,
        lambda j: j.read("earlier").x0 - j.read("guided").x0,
        "guided noise minus the unconditional noise at an earlier time, along one DDIM inversion",
        "Interval Score Matching, LucidDreamer, arXiv 2311.11284",
        Inversion(steps=3, guidance_scale=0.0),
    ),
    Residual(
        "sdi",
        frozenset({"guided"}),
        lambda j: j.read("guided").eps - j.eps,
        lambda j: j.x0 - j.read("guided").x0,
        "guided noise minus the noise that DDIM inversion of the sample finds",
        "Score Distillation via Reparametrized DDIM, arXiv 2405.15891",
        Inversion(steps=10, guidance_scale=-7.5),
    ),
)

RESIDUALS: dict[str, Residual] = {row.name: row for row in _ROWS}


def surrogate_loss(x0: Tensor, grad: Tensor, reduction: str = "mean") -> Tensor:
    """A loss whose gradient at x0 is `grad`, scaled: 0.5 (x0 - sg[x0 - grad])^2, reduced.

    Its value is half the squared gradient. It measures the residual; it need not fall as training proceeds. It is
    computed as 0.5 (x0 - sg[x0] + grad)^2, which is the same number without the rounding of x0 - grad, in which a small
    gradient would be lost in low precision.

    Args:
        x0: samples of shape (B, ...), with a graph.
        grad: of the same shape; used as a constant.
        reduction: "mean" over all elements, so that dL/dx0 = grad / x0.numel() (SwiftBrush); or "batch", the sum
            divided by B, so that dL/dx0 = grad / B, which grows with the resolution (usual in text-to-3D).

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


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample of x, of shape (B, ...), averaged: a scalar in float32, without a graph.

    It is meant for the log, which holds an average over micro-batches and processes. The root mean square of a whole
    batch, averaged over parts, would depend on how the batch is cut.
    """
    return x.detach().float().flatten(1).square().mean(1).sqrt().mean()
