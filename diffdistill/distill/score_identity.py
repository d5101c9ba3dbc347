"""The loss of score identity distillation (SiD, arXiv 2404.04057), whose gradient runs through both score models.

A generator makes x0, and x_t = alpha_t x0 + sigma_t eps. f_teacher and f_fake are the clean samples that the teacher
and the fake score of the generator's own samples predict from x_t (the paper's phi and psi):

    L = w ( (1 - a) |f_teacher - f_fake|^2 + <f_teacher - f_fake, f_fake - x0> )

x0 --+--> x_t --> f_teacher --+
     |       \\-> f_fake ------+--> L      no stop-gradient: dL/dx0 has all three paths into L
     +------------------------+

Notable:
- where the fake score is exact, E[f_fake - x0 | x_t] = 0. The second term is then zero on average, and E[L] is 1 - a
  times the gap E[w |f_teacher - f_fake|^2]: zero at a = 1, negative above. So the value of the loss does not measure
  progress; the gap, which is logged, does;
- the gradient is not zero on average. For Gaussians of one variance it is -c^2 (mu_teacher - mu) for any a, with c =
  sigma^2 over the variance of x_t: towards the teacher;
- w = 1 / mean|x0 - f_teacher| of each sample, used as a constant, as in the released code;
- both models are guided. With one scale for both, at which the fake score is also trained, this is the guided form of
  SiD-LSG (arXiv 2406.01561).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, ScoreModel, guided

from .residual import rms

ERROR_FLOOR = 1e-5  # below this mean error the teacher agrees with the sample

Logs = dict[str, Tensor]


def score_identity_loss(
    teacher: ScoreModel,
    fake: ScoreModel,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Condition,
    null: Condition,
    guidance_scale: float | Tensor = 1.0,
    *,
    fake_guidance_scale: float | Tensor = 1.0,
    alpha: float = 1.0,
    normalise: bool = True,
) -> tuple[Tensor, Logs]:
    """The loss above, mean over all elements. Its graph runs through both models; see `on_the_sample`.

    Args:
        teacher: the score model that judges; its schedule makes x_t, and the fake score shares it.
        fake: the score model of the generator's samples.
        x0: generated samples of shape (B, ...), with a graph.
        t: times of shape (B,), in the schedule's own units.
        eps: standard normal noise of the shape of x0.
        cond, null: condition of the batch, and the empty condition (not read where both scales are 1).
        guidance_scale: s of the teacher in f_0 + s (f_c - f_0); 1 is unguided.
        fake_guidance_scale: s of the fake score.
        alpha: the paper's alpha: 1.2 on CIFAR-10, 1 with text.
        normalise: weight each sample by 1 / mean|x0 - f_teacher|; otherwise w = 1.

    Returns:
        A scalar, and detached scalars for the log, each a mean over samples: `gap_rms`, the root mean square of a
        sample's f_teacher - f_fake, which falls as the generator's distribution approaches the teacher's;
        `teacher_error`, |x0 - f_teacher|.

    Raises:
        ValueError: shapes that differ.
    """
    if eps.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(eps.shape)}, x0 {tuple(x0.shape)}; they must be equal")
    x_t = teacher.schedule.add_noise(x0, eps, t)
    of_teacher = guided(teacher, x_t, t, cond, null, guidance_scale).x0
    of_fake = guided(fake, x_t, t, cond, null, fake_guidance_scale).x0
    gap = of_teacher - of_fake
    loss = (1 - alpha) * gap.square() + gap * (of_fake - x0)
    error = (x0 - of_teacher).detach().abs().flatten(1).mean(1)
    if normalise:
        loss = loss / error.clamp_min(ERROR_FLOOR).view(-1, *[1] * (x0.dim() - 1))
    return loss.mean(), {"gap_rms": rms(gap), "teacher_error": error.float().mean()}


def on_the_sample(loss_of: Callable[[Tensor], tuple[Tensor, Logs]], x0: Tensor) -> tuple[Tensor, Logs]:
    """A loss of x0 whose gradient at x0 is computed at once, and then enters the generator alone.

    The graph through the score models is freed before the backward pass of the generator begins. The weights of the
    score models get no gradient, whether they are frozen or not.

    Args:
        loss_of: a function of samples to a scalar loss and scalars for the log.
        x0: samples of shape (B, ...), with a graph.

    Returns:
        A scalar of the same value and the same gradient at x0, and the log with `grad_rms`: the root mean square of the
        gradient times the number of elements, on the scale of a residual (`rms`).
    """
    leaf = x0.detach().requires_grad_()
    with torch.enable_grad():
        loss, logs = loss_of(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
    logs = {**logs, "grad_rms": rms(gradient * x0.numel())}
    return loss.detach() + ((x0 - x0.detach()) * gradient).sum(), logs
