"""The exact score model of a mixture of Gaussians, an oracle with more than one mode for tests and toy problems."""

import torch
from torch import Tensor

from .condition import Condition, expand
from .prediction import Prediction, PredictionType, check_prediction_type
from .schedule import Schedule, broadcast


class MixtureTeacher:
    """The exact denoiser for data sum_k w_k N(mean_k, std_k^2 I), called like a `Denoiser`.

    x_t is a mixture too, with means alpha mean_k and variances s_k = alpha^2 std_k^2 + sigma^2. With r_k the
    probability that x_t came from part k,

        x0  = sum_k r_k (mean_k + alpha std_k^2 (x_t - alpha mean_k) / s_k)
        eps = sum_k r_k sigma (x_t - alpha mean_k) / s_k

    Parts of standard deviation 0 are samples: the teacher is then the exact score of an empirical distribution, such as
    that of a set of generated points. It is computed in float64, with (B, K, d) numbers at once.

    Args:
        schedule: the process.
        means: of shape (K, d).
        stds: of shape (K,); a part of 0 is a single sample.
        weights: of shape (K,), summing to 1; a condition replaces them.
        kind: the kind of its predictions.
    """

    def __init__(
        self, schedule: Schedule, means: Tensor, stds: Tensor, weights: Tensor, kind: PredictionType = "eps"
    ) -> None:
        check_prediction_type(kind)
        self.schedule = schedule
        self.means, self.stds, self.weights = means.double(), stds.double(), weights.double()
        self.prediction_type: PredictionType = kind

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """The exact prediction.

        Args:
            x_t: noisy samples of shape (B, d).
            t: times of shape (B,).
            cond: the weights of each sample's own mixture, of shape (B, K) or (1, K): a prompt is a choice of parts.
                None for the weights of the mixture itself.

        Raises:
            ValueError: a condition that is neither None nor a tensor with B rows or 1.
        """
        means, stds, shared = (part.to(x_t.device) for part in (self.means, self.stds, self.weights))
        weights = shared if cond is None else expand(cond, len(x_t))
        if not isinstance(weights, Tensor):
            raise ValueError("a mixture is conditioned on one tensor, the weights of its parts, not on a mapping")
        weights = weights.double().expand(len(x_t), -1)
        alpha, sigma = (broadcast(level(t), x_t) for level in (self.schedule.alpha, self.schedule.sigma))
        variance = alpha.square() * stds.square() + sigma.square()  # (B, K)
        offset = x_t.double().unsqueeze(1) - alpha.unsqueeze(2) * means  # (B, K, d)
        log_density = -offset.square().sum(2) / (2 * variance) - 0.5 * x_t.shape[1] * variance.log()
        share = (weights.log() + log_density).softmax(1)  # (B, K)
        # computed from the shares, not from differences of x0 and eps: neither divides by alpha or sigma
        x0 = share @ means + alpha * ((share * stds.square() / variance).unsqueeze(2) * offset).sum(1)
        eps = sigma * ((share / variance).unsqueeze(2) * offset).sum(1)
        value = {
            "x0": x0,
            "eps": eps,
            "v": alpha * eps - sigma * x0,
            "flow": eps - x0,
        }[self.prediction_type]
        return Prediction(x_t, value.to(x_t.dtype), self.prediction_type, alpha, sigma)

    def sample(self, n: int, generator: torch.Generator, weights: Tensor | None = None) -> Tensor:
        """n samples of shape (n, d), float64, on the CPU; `weights` of shape (K,) replace those of the mixture."""
        weights = self.weights if weights is None else weights
        part = torch.multinomial(weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[part] + self.stds[part, None] * noise
