"""The loss of MeanFlow (arXiv 2505.13447): the average velocity over an interval, learnt from data in one phase.

    (t - r) u(x_t, t, r) = integral of v(x_tau, tau) from r to t

Differentiated along the path, this is the MeanFlow identity (eq. 6), which needs no integral:

    u(x_t, t, r) = v(x_t, t) - (t - r) du/dt,     du/dt = v . grad_x u + partial_t u

The target is the right side without a graph, with v = eps - x0 in training. One step is x_0 = x_1 - u(x_1, 1, 0).

Notable:
- du/dt is a Jacobian-vector product by forward-mode differentiation, or a central difference for a network without
  forward mode (fused attention has none, plain attention has);
- the target has its own pass without a graph, so that a data-parallel wrapper sees one plain forward pass, and no
  tangent is kept for the backward pass. It is in full precision under autocast too: there, tangents and values would
  have different dtypes, a difference of two close values would be rounding error, and autocast would keep the weights
  of a pass without a graph;
- where r = t the target is v to the bit, which is flow matching.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, TwoTimeDenoiser, broadcast

from .flow_matching import check_two_times

Derivative = Literal["jvp", "difference"]


def mean_flow_times(first: Tensor, second: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """t and r: the later and the earlier of two draws, and r = t where `same` is true (75 % in the paper).

    Args:
        first, second: times of shape (B,).
        same: bool, of the same shape.
    """
    t, r = torch.maximum(first, second), torch.minimum(first, second)
    return t, torch.where(same, t, r)


@torch.no_grad()
def total_derivative(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    v: Tensor,
    derivative: Derivative = "jvp",
    step: float = 5e-3,
) -> Tensor:
    """du/dt along the path at (x_t, t, r): the derivative of u in the direction (v, 1, 0), without a graph.

    Args:
        velocity: u(x_t, t, r), differentiable in forward mode for "jvp"; it is called with autocast off.
        x_t, v: tensors of shape (B, ...).
        t, r: times of shape (B,), float64, r <= t <= 1.
        derivative: "jvp", or "difference": (u(x + h v, t + h, r) - u(x - h' v, t - h', r)) / (h + h'), with h and h'
            the step, or what is left up to 1 and down to r.
        step: h; the error falls as h^2, the rounding error grows as 1 / h.

    Returns:
        A tensor of x_t's shape.

    Raises:
        ValueError: an unknown derivative.
        NotImplementedError, RuntimeError: raised by torch where the network has no forward mode.
    """
    if derivative == "jvp":
        along = (v, torch.ones_like(t), torch.zeros_like(r))
        with full_precision(x_t):
            tangent: Tensor = torch.func.jvp(velocity, (x_t, t, r), along)[1]
        return tangent.detach()
    if derivative != "difference":
        raise ValueError(f"unknown derivative {derivative!r}; there are: jvp, difference")
    above, below = (1 - t).clamp(max=step), (t - r).clamp(max=step)

    def at(shift: Tensor) -> Tensor:
        return velocity(x_t + broadcast(shift, x_t).to(x_t.dtype) * v, t + shift, r)

    width = above + below
    with full_precision(x_t):
        change = at(above) - at(-below)
    return change / broadcast(torch.where(width > 0, width, 1), x_t).to(x_t.dtype)


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which autocast is off, on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


def mean_flow_loss(
    denoiser: TwoTimeDenoiser,
    x0: Tensor,
    t: Tensor,
    r: Tensor,
    eps: Tensor,
    cond: Condition,
    *,
    target: TwoTimeDenoiser | None = None,
    target_cond: Condition = None,
    velocity: Tensor | None = None,
    derivative: Derivative = "jvp",
    step: float = 5e-3,
    power: float = 1.0,
    weight_eps: float = 1e-3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adaptively weighted squared distance of u from the identity's right side (eq. 9 to 11 and section 4.3).

    With e a sample's summed squared error, its loss is e / sg(e + weight_eps)^power; the mean over samples is returned.

    Args:
        denoiser: the network in training; its value at (x_t, t, r) is u.
        x0: data of shape (B, ...).
        t, r: times of shape (B,), r <= t.
        eps: standard normal noise of x0's shape.
        cond: condition of the batch.
        target: the network that du/dt is computed with, with autocast off; `denoiser` where None. With several
            processes pass the unwrapped network.
        target_cond: what the target is conditioned on in place of cond: the same text, already encoded.
        velocity: v in place of eps - x0, of its shape (`guided_velocity`).
        derivative, step: as for `total_derivative`.
        power: 1 in the paper; 0 is plain squared error, 0.5 is close to pseudo-Huber.
        weight_eps: c of the paper.

    Returns:
        The loss and, for the log, the unweighted mean squared error over elements.

    Raises:
        ValueError: as for `flow_matching_loss`.
    """
    check_two_times(x0, t, r, eps)
    x0, t, r = x0.detach(), t.double(), r.double()
    x_t = denoiser.schedule.add_noise(x0, eps, t)
    v = eps - x0 if velocity is None else velocity.detach()
    model = denoiser if target is None else target
    target_cond = cond if target_cond is None else target_cond
    u_target = v
    if bool((r < t).any()):
        slope = total_derivative(lambda x, a, b: model(x, a, b, target_cond).flow, x_t, t, r, v, derivative, step)
        u_target = v - broadcast(t - r, v).to(v.dtype) * slope
    error = (denoiser(x_t, t, r, cond).flow - u_target).square().flatten(1)
    each = error.sum(1)
    weight = (each.detach() + weight_eps) ** -power
    return (weight * each).mean(), {"error": error.detach().mean()}


@torch.no_grad()
def guided_velocity(
    model: TwoTimeDenoiser,
    x_t: Tensor,
    t: Tensor,
    v: Tensor,
    cond: Condition,
    null: Condition,
    omega: float,
    kappa: float = 0.0,
) -> Tensor:
    """The velocity of a guided field; learnt, it samples with guidance in one pass (section 4.2 and appendix B.1).

    omega v + (1 - omega - kappa) u(x_t, t, t, null) + kappa u(x_t, t, t, cond), whose effective guidance scale is
    omega / (1 - kappa).

    Args:
        model: the network itself.
        x_t, v: tensors of shape (B, ...), v = eps - x0.
        t: times of shape (B,).
        cond, null: conditions of the batch.
    """
    with full_precision(x_t):
        guided = omega * v + (1 - omega - kappa) * model.instantaneous(x_t, t, null).flow
        return guided + kappa * model.instantaneous(x_t, t, cond).flow if kappa else guided
