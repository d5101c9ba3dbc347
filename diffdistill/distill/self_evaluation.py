"""The losses of Self-E (arXiv 2512.22374): a generator that learns from data and judges its own samples.

    x0, eps --> x_t --G(x_t, t, s, c)--> x0_hat --noise to s--> x_s --G_live(x_s, s, s, null)--\\
                                           |                    x_s --G_ema (x_s, s, s, c)------+--> Delta
                                           |                    (x_s --G_live(x_s, s, s, fake)--/)
                                           +---- towards (1 - k) x0 + k (x0_hat - Delta), scaled to x0's norm

with G(x_t, t, s, c) = x_t - t V(x_t, t, s, c). Where s = t this is flow matching. Where s < t the sample is noised to s
and judged by the network itself, as a teacher would judge it (the classifier score), and, optionally, by what the
network has learnt about its own samples (the fake branch).

Notable:
- with lambda(s, t) = sigma_t / alpha_t - sigma_s / alpha_s, the paper's (x0 + lambda x_self) / (1 + lambda) is a
  mixture of share k = lambda / (1 + lambda) = (t - s) / (1 - 2 s + s t), which is finite at t = 1, where lambda is not;
- the mixture is scaled to the norm of x0 (energy-preserving), so only k matters, and not the factor 1 / (1 + lambda);
- the weight 1 / t^2 on (x0_hat - target)^2 makes it a loss on velocities,
  (V - (eps - x0) - (x0 - target) / t)^2: at s = t it is that of flow matching to the bit, and no large numbers are
  subtracted;
- only the samples with s < t are judged: the others cost no more than flow matching.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, TwoTimeDenoiser, broadcast, check_condition, take_rows

from .flow_matching import check_two_times, flow_matching_loss


def earlier_times(t: Tensor, u: Tensor, span: float, same: Tensor) -> Tensor:
    """s = t where `same` is true, else uniform in ((1 - span) t, t), float64. `span` is the tau of section 3.5.

    Args:
        t: times of shape (B,).
        u: uniform in [0, 1), of the same shape.
        span: from 0 (s = t) to 1 (s down to 0).
        same: bool, of the same shape.
    """
    t = t.double()
    return torch.where(same, t, t * (1 - span * (1 - u.double())))


def self_share(t: Tensor, s: Tensor) -> Tensor:
    """k = lambda / (1 + lambda) for lambda = sigma_t / alpha_t - sigma_s / alpha_s on the straight path; float64.

    0 where s = t, 1 at t = 1 where s < 1.

    >>> self_share(torch.tensor([0.5, 0.5, 1.0]), torch.tensor([0.5, 0.0, 0.5])).tolist()
    [0.0, 0.5, 1.0]
    """
    t, s = t.double(), s.double()
    ahead = t - s
    return torch.where(ahead > 0, ahead / torch.where(ahead > 0, 1 - 2 * s + s * t, 1), 0.0)


def scaled_to(x: Tensor, like: Tensor) -> Tensor:
    """x of shape (B, ...), each sample scaled to the norm of that of `like`; a sample of norm 0 stays."""
    found, wanted = (torch.linalg.vector_norm(a.flatten(1), dim=1) for a in (x, like))
    return broadcast(torch.where(found > 0, wanted / torch.where(found > 0, found, 1), 1.0), x) * x


@dataclass(frozen=True)
class SelfEvaluation:
    """The judgement of a network on its own samples, those with s < t. Nothing here has a graph.

    Attributes:
        rows: positions of the samples in the batch, int64 of shape (R,).
        x0_hat: the samples, of shape (R, ...).
        s: the times at which they were judged, of shape (R,).
        noise: the fresh noise with which they were judged, of shape (R, ...).
        delta: the direction away from which the pseudo-target x0_hat - delta lies, of shape (R, ...).
        size: B, the number of samples in the batch.
    """

    rows: Tensor
    x0_hat: Tensor
    s: Tensor
    noise: Tensor
    delta: Tensor
    size: int


@torch.no_grad()
def self_evaluate(
    x0_hat: Tensor,
    t: Tensor,
    s: Tensor,
    noise: Tensor,
    cond: Condition,
    null: Condition,
    evaluator: TwoTimeDenoiser,
    live: TwoTimeDenoiser,
    fake_cond: Condition = None,
    classifier_share: float = 0.9,
    scale: float = 1.0,
) -> SelfEvaluation:
    """Judge the samples with s < t at s.

    delta = G_live(null) - G_ema(c), or with a fake branch
    classifier_share (G_live(null) - G_ema(c)) + (1 - classifier_share) (G_live(fake) - G_ema(c)), times scale.

    Args:
        x0_hat: generated samples of shape (B, ...).
        t, s: times of shape (B,).
        noise: standard normal noise of the shape of x0_hat, independent of that in x_t.
        cond, null, fake_cond: conditions of the batch; null may have a single row.
        evaluator: the conditional judge, with averaged weights.
        live: the unconditional judge (and the fake branch), with the weights in training.
        classifier_share: k of the paper, (w - 1) / w for a guidance scale w; it is read only with fake_cond.
        scale: 1 in the paper. With a fake branch and share (w - 1) / w, scale w gives (w - 1) (null - c) + (fake - c),
            which is that of the reverse KL at guidance w; the paper divides it by w.

    Raises:
        ValueError: a condition with another number of rows than the batch.
    """
    size, rows = len(x0_hat), (s < t).nonzero().squeeze(1)
    for name, condition in (("cond", cond), ("null", null), ("fake_cond", fake_cond)):
        check_condition(condition, size, name)
    x0_hat, at, noise = x0_hat.detach()[rows], s[rows], noise[rows]
    delta = torch.zeros_like(x0_hat)
    if len(rows):
        x_s = evaluator.schedule.add_noise(x0_hat, noise, at)
        conditional = evaluator.instantaneous(x_s, at, take_rows(cond, rows)).x0
        delta = live.instantaneous(x_s, at, take_rows(null, rows)).x0 - conditional
        if fake_cond is not None:
            fake = live.instantaneous(x_s, at, take_rows(fake_cond, rows)).x0
            delta = classifier_share * delta + (1 - classifier_share) * (fake - conditional)
    return SelfEvaluation(rows, x0_hat, at, noise, scale * delta, size)


def self_evaluation_loss(
    denoiser: TwoTimeDenoiser,
    x0: Tensor,
    t: Tensor,
    s: Tensor,
    eps: Tensor,
    noise: Tensor,
    cond: Condition,
    null: Condition,
    evaluator: TwoTimeDenoiser,
    live: TwoTimeDenoiser | None = None,
    fake_cond: Condition = None,
    classifier_share: float = 0.9,
    energy_preserving: bool = True,
    scale: float = 1.0,
) -> tuple[Tensor, SelfEvaluation]:
    """Mean over all elements of (x0_hat - target)^2 / t^2, the target mixed from data and self-evaluation.

    Args:
        denoiser: the network in training.
        x0: data of shape (B, ...).
        t, s: times of shape (B,), s <= t, t > 0.
        eps, noise: standard normal noise of the shape of x0: that in x_t, and that with which samples are judged.
        cond, null, evaluator, fake_cond, classifier_share, scale: as for `self_evaluate`.
        live: judges without a graph; `denoiser` where None. With several processes pass the unwrapped network.
        energy_preserving: scale the target to the norm of x0; without it the target is the mixture itself.

    Returns:
        The loss, a scalar, and the judgement, for `fake_branch_loss`.

    Raises:
        ValueError: as for `flow_matching_loss` and `self_evaluate`.
    """
    check_two_times(x0, t, s, eps)
    x0 = x0.detach()
    prediction = denoiser(denoiser.schedule.add_noise(x0, eps, t), t, s, cond)
    judged = self_evaluate(
        prediction.x0, t, s, noise, cond, null, evaluator, denoiser if live is None else live, fake_cond,
        classifier_share, scale,
    )  # fmt: skip
    target = eps - x0
    if len(judged.rows):
        rows, data = judged.rows, x0[judged.rows]
        k = broadcast(self_share(t[rows], s[rows]), data).to(data.dtype)
        mixed = data + k * (judged.x0_hat - judged.delta - data)
        if energy_preserving:
            mixed = scaled_to(mixed, data)
        push = (data - mixed) / broadcast(t[rows], data).to(data.dtype)
        target = target.index_add(0, rows, push.to(target.dtype))
    return (prediction.flow - target).square().mean(), judged


def fake_branch_loss(denoiser: TwoTimeDenoiser, judged: SelfEvaluation, fake_cond: Condition) -> Tensor:
    """Flow matching on the generated samples under the condition `fake`, at the times at which they were judged.

    In the paper's form it is |G(x_s, s, s, fake) - x0_hat|^2 with weight 1 / s^2. The mean is over the whole batch, in
    which samples that were not judged count 0, so it does not depend on how a batch is cut into parts.

    Args:
        denoiser: the network in training.
        judged: the judgement that `self_evaluation_loss` returned.
        fake_cond: the condition `fake` of the whole batch.
    """
    check_condition(fake_cond, judged.size, "fake_cond")
    if not len(judged.rows):
        return judged.x0_hat.sum()
    cond = take_rows(fake_cond, judged.rows)
    loss = flow_matching_loss(denoiser, judged.x0_hat, judged.s, judged.noise, cond)
    return loss * (len(judged.rows) / judged.size)
