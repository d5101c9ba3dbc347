"""Noise schedules, x_t = alpha_t x0 + sigma_t eps, which denoisers, samplers and losses read alpha and sigma from.

    VPSchedule     t = 0 ... T-1, integers    alpha^2 + sigma^2 = 1, alpha_t^2 = prod_{s<=t} (1 - beta_s)
    FlowSchedule   t in [0, 1]                alpha = 1 - t, sigma = t

Notable:
- all arithmetic on times is float64. A float32 table, as schedulers keep it, has a relative error of alpha of 4e-7 for
  Stable Diffusion's betas and of 7e-6 for the cosine ones, at the noisy end, where 1 / alpha magnifies it;
- zero terminal SNR (alpha = 0 at the last step) is allowed. Nothing here divides by alpha;
- times are checked on the CPU only, because a check on an accelerator would have to wait for it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .betas import beta_schedule, zero_terminal_snr


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    """View a coefficient of shape (B,) as (B, 1, ...), so that it multiplies x of shape (B, ...).

    A coefficient with more dimensions keeps them, and gets those that it lacks at the end.

    >>> broadcast(torch.zeros(2), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    return coefficient.reshape(*coefficient.shape, *[1] * (x.dim() - coefficient.dim()))


def linear_combination(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a x + b y in the dtype of x, computed in float32 at least.

    Args:
        a, b: float64 coefficients that broadcast against x.
        x, y: tensors of shape (B, ...).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (a.to(dtype) * x.to(dtype) + b.to(dtype) * y.to(dtype)).to(x.dtype)


class Schedule(ABC):
    """How much signal and how much noise x_t holds at time t. Tensors t have any shape, mostly (B,)."""

    @property
    @abstractmethod
    def last(self) -> int | float:
        """The largest valid time, where x_t is noise alone, or nearly."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal level, float64, with the shape and device of t. ValueError where t is out of range (on the CPU)."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level, float64, with the shape and device of t. ValueError where t is out of range (on the CPU)."""

    @abstractmethod
    def half_log_snr(self, t: Tensor) -> Tensor:
        """lambda = log(alpha / sigma), float64: -inf where there is no signal, +inf where there is no noise."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """The time in the units of a network that was trained on this schedule."""

    @abstractmethod
    def timestep(self, u: Tensor, low: float, high: float) -> Tensor:
        """Map uniform u in [0, 1), float64, to times in the fraction [low, high) of the schedule.

        Raises:
            ValueError: not 0 <= low < high <= 1, or no time lies between.
        """

    @abstractmethod
    def time_at(self, sigma_over_alpha: float) -> Tensor:
        """The time with this noise-to-signal ratio sigma / alpha: a tensor of shape (), in the schedule's own dtype.

        Raises:
            ValueError: the ratio is not positive and finite.
        """

    @abstractmethod
    def later(self, t: Tensor, u: Tensor, eta: float, low: float) -> Tensor:
        """t + dt with dt = u min(eta (t - t_low), last - t), never earlier than t nor later than `last`.

        It is the later time of asynchronous score distillation (ScaleDreamer, arXiv 2407.02040).

        Args:
            t: times of shape (B,).
            u: uniform in [0, 1), of the same shape.
            eta: the largest step as a share of t - t_low; at 0 the result is t.
            low: the fraction of the schedule that is t_low, as in `timestep`.
        """

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps, in the dtype of x0.

        Args:
            x0, eps: tensors of shape (B, ...).
            t: times of shape (B,), or with more dimensions that broadcast against x0 from the first one on.
        """
        return linear_combination(broadcast(self.alpha(t), x0), x0, broadcast(self.sigma(t), x0), eps)


class VPSchedule(Schedule):
    """Discrete variance-preserving schedule (DDPM, arXiv 2006.11239; Stable Diffusion).

    Args:
        alphas_cumprod: alpha_t^2 of shape (T,), not rising with t, in [0, 1]; kept as float64.

    Raises:
        ValueError: not a vector, or rising, or outside [0, 1].
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        table = alphas_cumprod.detach().to("cpu", torch.float64)
        if table.dim() != 1 or len(table) == 0:
            raise ValueError(f"alphas_cumprod has shape {tuple(table.shape)}; it must be (T,)")
        if not bool((table >= 0).all() and (table <= 1).all() and (table.diff() <= 0).all()):
            raise ValueError("alphas_cumprod must fall with t and lie in [0, 1]")
        self.alphas_cumprod = table
        self.num_train_timesteps = len(table)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_betas(cls, betas: Tensor) -> "VPSchedule":
        """Make a schedule from the variances beta_t of shape (T,) that each step adds."""
        return cls(torch.cumprod(1 - betas.to(torch.float64), dim=0))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "VPSchedule":
        """Make a schedule from the configuration of a diffusers scheduler, in float64. Other keys are ignored.

        Args:
            config: `beta_schedule`, `beta_start`, `beta_end`, `num_train_timesteps`, `trained_betas` and
                `rescale_betas_zero_snr`, with diffusers' default values where missing.

        Raises:
            ValueError: a beta schedule that is not supported, or a number of steps that is none.
        """
        trained, steps = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
        if trained is None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"num_train_timesteps is {steps!r}; it must be a whole number from 1")
        if trained is not None:
            betas = torch.as_tensor(trained, dtype=torch.float64)
        else:
            betas = beta_schedule(
                config.get("beta_schedule", "linear"),
                config.get("beta_start", 0.0001),
                config.get("beta_end", 0.02),
                steps,
            )
        schedule = cls.from_betas(betas)
        rescale = config.get("rescale_betas_zero_snr", False)
        return cls(zero_terminal_snr(schedule.alphas_cumprod)) if rescale else schedule

    @property
    def last(self) -> int:
        """T - 1."""
        return self.num_train_timesteps - 1

    @property
    def betas(self) -> Tensor:
        """beta_t = 1 - alpha_t^2 / alpha_{t-1}^2, of shape (T,)."""
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        return 1 - self.alphas_cumprod / before

    def truncated(self, t_star: int) -> "VPSchedule":
        """The same process, ending at time t_star: indices 0 ... t_star.

        Raises:
            ValueError: t_star is not a time of this schedule.
        """
        if not 0 <= t_star <= self.last:
            raise ValueError(f"t_star = {t_star} is outside 0 ... {self.last}")
        return VPSchedule(self.alphas_cumprod[: t_star + 1].clone())

    def time_at(self, sigma_over_alpha: float) -> Tensor:
        """The time whose log(sigma / alpha) is nearest, int64."""
        _check_ratio(sigma_over_alpha)
        half_log_snr = self.half_log_snr(torch.arange(self.num_train_timesteps))
        return (half_log_snr + math.log(sigma_over_alpha)).abs().argmin()

    def alpha(self, t: Tensor) -> Tensor:
        """sqrt(alphas_cumprod[t])."""
        return self._look_up(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alphas_cumprod[t])."""
        return self._look_up(t)[1]

    def half_log_snr(self, t: Tensor) -> Tensor:
        """log alpha - log sigma."""
        alpha, sigma = self._look_up(t)
        return alpha.log() - sigma.log()

    def network_time(self, t: Tensor) -> Tensor:
        """t itself."""
        return t

    def timestep(self, u: Tensor, low: float, high: float) -> Tensor:
        """Integers from round(low T) to round(high T) - 1, int64, all with one probability."""
        _check_fractions(low, high)
        first, end = round(low * self.num_train_timesteps), round(high * self.num_train_timesteps)
        if first >= end:
            raise ValueError(f"no time between {low} and {high} of {self.num_train_timesteps} steps")
        return (first + (u.double() * (end - first)).floor().long()).clamp(first, end - 1)

    def later(self, t: Tensor, u: Tensor, eta: float, low: float) -> Tensor:
        """As in the base class, with dt rounded down."""
        t_low = round(low * self.num_train_timesteps)
        room = torch.minimum(eta * (t - t_low).double(), (self.last - t).double()).clamp_min(0)
        return (t + (u.double() * room).floor().long()).clamp_max(self.last)

    def _look_up(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.is_floating_point() or t.dtype == torch.bool:
            raise ValueError(f"times of a discrete schedule are integers, not {t.dtype}")
        if t.device.type == "cpu" and t.numel() and not (int(t.min()) >= 0 and int(t.max()) <= self.last):
            raise ValueError(f"t from {int(t.min())} to {int(t.max())} is outside 0 ... {self.last}")
        if t.device not in self._tables:
            self._tables[t.device] = (
                self.alphas_cumprod.sqrt().to(t.device),
                (1 - self.alphas_cumprod).sqrt().to(t.device),
            )
        alpha, sigma = self._tables[t.device]
        return alpha[t.long()], sigma[t.long()]


class FlowSchedule(Schedule):
    """The straight path of flow matching and rectified flow (arXiv 2209.03003, 2210.02747).

    Args:
        num_train_timesteps: the network gets the time num_train_timesteps * t.
        shift: s in t' = s t / (1 + (s - 1) t), which puts more times at high noise for s > 1 (Stable Diffusion 3,
            arXiv 2403.03206, eq. 23). It moves the times that are drawn and the sampling grid, never alpha(t).

    Raises:
        ValueError: an argument is not positive.
    """

    last = 1.0

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0) -> None:
        if num_train_timesteps < 1 or not shift > 0:
            raise ValueError(f"num_train_timesteps = {num_train_timesteps}, shift = {shift}: must be positive")
        self.num_train_timesteps = num_train_timesteps
        self.shift = float(shift)

    def shifted(self, t: Tensor) -> Tensor:
        """t' = s t / (1 + (s - 1) t)."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - self._checked(t)

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return self._checked(t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        """log(1 - t) - log t."""
        t = self._checked(t)
        return torch.log1p(-t) - t.log()

    def network_time(self, t: Tensor) -> Tensor:
        """num_train_timesteps * t."""
        return self.num_train_timesteps * t

    def timestep(self, u: Tensor, low: float, high: float) -> Tensor:
        """low + u (high - low), then shifted: low and high are fractions before the shift.

        The largest u may round up to high itself.
        """
        _check_fractions(low, high)
        return self.shifted(low + u.double() * (high - low)).clamp_max(1.0)

    def time_at(self, sigma_over_alpha: float) -> Tensor:
        """r / (1 + r) for the ratio r, float64."""
        _check_ratio(sigma_over_alpha)
        return torch.tensor(sigma_over_alpha / (1 + sigma_over_alpha), dtype=torch.float64)

    def later(self, t: Tensor, u: Tensor, eta: float, low: float) -> Tensor:
        """As in the base class, where t_low is the shifted `low`."""
        t = t.double()
        t_low = self.shifted(torch.tensor(low, dtype=torch.float64)).item()
        room = torch.minimum(eta * (t - t_low), 1 - t).clamp_min(0)
        return (t + u.double() * room).clamp_max(1.0)

    def _checked(self, t: Tensor) -> Tensor:
        t = t.double()
        if t.device.type == "cpu" and t.numel() and not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t from {t.min().item()} to {t.max().item()} is outside [0, 1]")
        return t


def _check_ratio(sigma_over_alpha: float) -> None:
    if not 0 < sigma_over_alpha < math.inf:
        raise ValueError(f"sigma / alpha = {sigma_over_alpha}; it must be a positive number")


def _check_fractions(low: float, high: float) -> None:
    if not 0 <= low < high <= 1:
        raise ValueError(f"low = {low}, high = {high}; need 0 <= low < high <= 1")
