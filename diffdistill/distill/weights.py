"""The table of weights, which scale a residual into a gradient on x0.

Each row is a factor on the difference of noises r, so grad = factor * r. At one shared time r is alpha / sigma times
the difference of clean samples d = x0_other - x0_guided, so every factor can be written in either way:

    name          factor on r                      the same on d        used by
    uniform       1                                alpha / sigma        CSD at the first stage
    sigma2        sigma^2                          alpha sigma          DreamFusion, SwiftBrush, ASD
    alpha_sigma   alpha sigma                      alpha^2              large where signal and noise balance
    alpha_sigma2  alpha sigma^2                    alpha^2 sigma        Fantasia3D
    x0            sigma / alpha                    1                    DMD before normalising, ISM, SDI
    dmd           (sigma/alpha) / mean|x0 - x0_g|  1 / mean|x0 - x0_g|  DMD, DMD2
    prd           (sigma/alpha) / (mean + 0.1)     1 / (mean + 0.1)     Progressive Rendering Distillation

where x0_g is the guided teacher's clean sample and the mean is over all dimensions of a sample. The last three are
computed from d itself, not by dividing by alpha. For ASD, whose two terms are at different times, the two columns
differ: the first four rows use r, the last three d, as their sources do. For ISM the columns agree, because x_t is one
DDIM step from x_s: (sigma_t / alpha_t)(e_cfg - e_0) = x0_hat(x_s) - x0_cfg.

PRD's released code takes (x0 - sigma e) / alpha for both clean samples: it has the clean latents in place of x_t, and
alpha and sigma of t for ASD's later term too. Their difference is sigma / alpha times that of the noises; the divisor,
the mean of |x0 - (x0 - sigma e) / alpha|, is another number. Here both are read from x_t.

DMD's equations 7 and 8 have one factor of alpha_t more than `dmd`; its released code, and that of DMD2, do not.

A residual that is not finite stays so; the training loop decides what to do with it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .residual import Judgement, Residual

DMD_FLOOR = 1e-4  # below this mean error the teacher agrees with the sample, and the ratio is rounding error
PRD_DELTA = 0.1


@dataclass(frozen=True)
class Weight:
    """One row: `gradient(residual, judgement)` is dL/dx0, of the shape of x0.

    Attributes:
        name: its key in `WEIGHTS`.
        gradient: a function of residual and judgement to the gradient.
        source: the paper.
    """

    name: str
    gradient: Callable[[Residual, Judgement], Tensor]
    source: str


def teacher_error(judgement: Judgement) -> Tensor:
    """mean|x0 - x0_guided| of each sample, of shape (B, 1, ...), which broadcasts against x0."""
    error = (judgement.x0 - judgement.read("guided").x0).abs()
    return error.flatten(1).mean(1).view(-1, *[1] * (error.dim() - 1))


def _on_noise(factor: Callable[[Tensor, Tensor], Tensor | float]) -> Callable[[Residual, Judgement], Tensor]:
    def gradient(residual: Residual, judgement: Judgement) -> Tensor:
        noise = residual.assemble(judgement)
        scale = factor(judgement.alpha.double(), judgement.sigma.double())
        return noise * (scale.to(noise.dtype) if isinstance(scale, Tensor) else scale)

    return gradient


def _dmd(residual: Residual, judgement: Judgement) -> Tensor:
    return residual.assemble_x0(judgement) / teacher_error(judgement).clamp_min(DMD_FLOOR)


def _prd(residual: Residual, judgement: Judgement) -> Tensor:
    return residual.assemble_x0(judgement) / (teacher_error(judgement) + PRD_DELTA)


_ROWS = (
    Weight("uniform", _on_noise(lambda alpha, sigma: 1.0), "arXiv 2310.19415"),
    Weight("sigma2", _on_noise(lambda alpha, sigma: sigma**2), "arXiv 2209.14988, 2312.05239, 2407.02040"),
    Weight("alpha_sigma", _on_noise(lambda alpha, sigma: alpha * sigma), "alpha^2 in x0 space"),
    Weight("alpha_sigma2", _on_noise(lambda alpha, sigma: alpha * sigma**2), "arXiv 2303.13873"),
    Weight(
        "x0",
        lambda residual, judgement: residual.assemble_x0(judgement),
        "DMD, arXiv 2311.18828, before it normalises",
    ),
    Weight("dmd", _dmd, "DMD, arXiv 2311.18828, eq. 8; DMD2, arXiv 2405.14867"),
    Weight("prd", _prd, "Progressive Rendering Distillation (TriplaneTurbo), section B"),
)

WEIGHTS: dict[str, Weight] = {row.name: row for row in _ROWS}
