"""What images, the codec and text-to-3D all call: judge a sample, weigh the residual, make a loss.

x0 -- noise, or inversion --> x_t --> teacher, fake ----> Judgement ----> Residual ----> Weight
|       (no graph from here on)                                                      |
|                                                                                  grad
+-----------------------> surrogate: dL/dx0 = grad / (numel or B) <------------------+
"""

from typing import Any

from torch import Tensor

from diffdistill.diffusion import PerpNeg

from .inversion import Inversion
from .judging import SMALL_T, judge
from .residual import RESIDUALS, Residual, rms, surrogate_loss
from .tables import look_up
from .weights import WEIGHTS, Weight


def score_distillation_loss(
    residual: str | Residual,
    weight: str | Weight,
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
    reduction: str = "mean",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss on generated samples whose gradient at x0 is the weighted residual.

    Args:
        residual: a row of `RESIDUALS` or its name: "sds", "sjc", "csd", "nfsd", "vsd", "asd", "ism", "sdi".
        weight: a row of `WEIGHTS` or its name: "sigma2", "dmd", ...
        x0: generated samples of shape (B, ...): images, latents, renderings. The gradient goes here, nowhere
            else.
        reduction: "mean" or "batch", see `surrogate_loss`.
        teacher, t, eps, cond, null, guidance_scale, fake, fake_guidance_scale, later_t, negative, small_t,
            earlier_t, inversion, inversion_noise, perp_neg: see `judge`.

    Returns:
        The loss, a scalar, and detached scalars for the log, each a mean over samples: `grad_rms`, root mean square of
        a sample's weighted residual; `residual_rms`, the same before the weight; `teacher_error`, |x0 - x0_guided|.
        A value that is not finite shows in the loss and in the log: it is not replaced.

    Raises:
        ValueError: see `judge`; also an unknown weight or reduction.
    """
    residual = look_up(RESIDUALS, residual, "residual")
    weight = look_up(WEIGHTS, weight, "weight")
    judgement = judge(
        residual,
        teacher,
        x0,
        t,
        eps,
        cond,
        null,
        guidance_scale,
        fake=fake,
        fake_guidance_scale=fake_guidance_scale,
        later_t=later_t,
        negative=negative,
        small_t=small_t,
        earlier_t=earlier_t,
        inversion=inversion,
        inversion_noise=inversion_noise,
        perp_neg=perp_neg,
    )
    grad = weight.gradient(residual, judgement)
    logs = {"grad_rms": rms(grad), "residual_rms": rms(residual.assemble(judgement))}
    if judgement.guided is not None:
        logs["teacher_error"] = (judgement.x0 - judgement.guided.x0).abs().float().mean()
    return surrogate_loss(x0, grad, reduction), logs
