"""Score identity distillation: a loss whose gradient runs through both score models into the sample.

A generator makes x0, and x_t = alpha_t x0 + sigma_t eps. With f the clean sample that a model predicts from x_t, of the
teacher and of the fake score of the generator's own samples (the phi and psi of SiD, arXiv 2404.04057):

    L = w ( (1 - a) |f_teacher - f_fake|^2 + <f_teacher - f_fake, f_fake - x0> )

x0 --+--> x_t --> f_teacher --+
     |       \\-> f_fake ------+--> L      no stop-gradient: dL/dx0 takes all three ways into L
     +------------------------+

Notable:
- where the fake score is exact, E[f_fake - x0 | x_t] = 0, so the second term is nought on average and E[L] is 1 - a
  times the gap E[w |f_teacher - f_fake|^2]: nought at a = 1, negative above. The value says nothing of progress, the
  gap, which is logged, does;
- the gradient is not nought on average. For Gaussians of one variance it is -c^2 (mu_teacher - mu), c = sigma^2 over
  the variance of x_t, whatever a: towards the teacher;
- w = 1 / mean|x0 - f_teacher| of each sample, used as a constant, as in the released code;
- guidance is on both: with one scale for both, which the fake score is also trained with, this is the guided form of
  SiD-LSG (arXiv 2406.01561).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import guided

from .residual import rms

ERROR_FLOOR = 1e-5  # below this mean error the teacher agrees with the sample

Logs = dict[str, Tensor]


def score_identity_loss(
    teacher: Any,
    fake: Any,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Any,
    null: Any,
    guidance_scale: float | Tensor = 1.0,
    *,
    fake_guidance_scale: float | Tensor = 1.0,
    alpha: float = 1.0,
    normalise: bool = True,
) -> tuple[Tensor, Logs]:
    """The loss above, mean over all elements. Its graph runs through both models; see `on_the_sample`.

    Args:
        teacher: a `Denoiser`, or what is called like one; its schedule makes x_t, and the fake score shares it.
        fake: score model of the generator's samples.
        x0: generated samples of shape (B, ...), with a graph.
        t: times of shape (B,), in the schedule's own units.
        eps: standard normal noise of the shape of x0.
        cond, null: condition of the batch, and the empty one (not read where both scales are 1).
        guidance_scale: s of the teacher in f_0 + s (f_c - f_0); 1 is unguided.
        fake_guidance_scale: s of the fake score.
        alpha: the paper's alpha: 1.2 on CIFAR-10, 1 with text.
        normalise: weigh each sample by 1 / mean|x0 - f_teacher|; otherwise w = 1.

    Returns:
        A scalar, and detached scalars for the log, each a mean over samples: `gap_rms`, the root mean square of a
        sample's f_teacher - f_fake, which falls as the generator's distribution nears the teacher's; `teacher_error`,
        |x0 - f_teacher|.

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
    """A loss of x0 whose gradient is taken at x0 at once, and goes on from there into the generator alone.

    The graph through the score models is freed before the generator's backward pass begins, and their weights are
    given no gradient, whether they are frozen or not.

    Args:
        loss_of: from a sample to a scalar and scalars for the log.
        x0: samples of shape (B, ...), with a graph.

    Returns:
        A scalar of the same value and the same gradient at x0, and the log with `grad_rms`: that of the gradient times
        the number of elements, on the scale of a residual (`residual.rms`).
    """
    leaf = x0.detach().requires_grad_()
    with torch.enable_grad():
        loss, logs = loss_of(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
    logs = {**logs, "grad_rms": rms(gradient * x0.numel())}
    return loss.detach() + ((x0 - x0.detach()) * gradient).sum(), logs
