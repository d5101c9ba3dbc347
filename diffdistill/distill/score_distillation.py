"""The loss of students, codec and 3D generators: judge a sample, weight the residual, make a loss of the gradient.

x0 -- noise, or inversion --> x_t --> teacher, fake ----> Judgement ----> Residual ----> Weight
|       (no graph from here on)                                                      |
|                                                                                  grad
+-----------------------> surrogate: dL/dx0 = grad / (numel or B) <------------------+
"""

from torch import Tensor

from diffdistill.diffusion import Condition, ScoreModel, broadcast

from .judging import JudgingOptions, judge
from .residual import RESIDUALS, Residual, rms, surrogate_loss
from .tables import look_up
from .weights import WEIGHTS, Weight


def score_distillation_loss(
    residual: str | Residual,
    weight: str | Weight,
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
    reduction: str = "mean",
    sample_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss on generated samples whose gradient at x0 is the weighted residual.

    Args:
        residual: a row of `RESIDUALS` or its name: "sds", "sjc", "csd", "nfsd", "vsd", "asd", "ism", "sdi".
        weight: a row of `WEIGHTS` or its name: "sigma2", "dmd", ...
        x0: generated samples of shape (B, ...): images, latents, renderings. The gradient goes here, nowhere else.
        reduction: "mean" or "batch", see `surrogate_loss`.
        sample_weights: Tensor of shape (B,) that multiplies the gradient of each sample, such as `divergence_weights`.
        teacher, t, eps, cond, null, guidance_scale, fake, fake_guidance_scale, options: see `judge`.

    Returns:
        The loss, a scalar, and detached scalars for the log, each a mean over samples: `grad_rms`, root mean square of
        a sample's weighted residual; `residual_rms`, the same before the weight; `teacher_error`, |x0 - x0_guided|.
        A value that is not finite shows in the loss and in the log: it is not replaced.

    Raises:
        ValueError: as for `judge`; also an unknown weight or reduction.
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
        options=options,
    )
    grad = weight.gradient(residual, judgement)
    if sample_weights is not None:
        if sample_weights.shape != t.shape:
            raise ValueError(
                f"sample_weights has shape {tuple(sample_weights.shape)}; one for each sample is {tuple(t.shape)}"
            )
        grad = grad * broadcast(sample_weights, grad)
    logs = {"grad_rms": rms(grad), "residual_rms": rms(residual.assemble(judgement))}
    if judgement.guided is not None:
        logs["teacher_error"] = (judgement.x0 - judgement.guided.x0).abs().float().mean()
    return surrogate_loss(x0, grad, reduction), logs
