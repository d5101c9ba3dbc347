"""A discriminator as a small head on the fake score's own features, as in DMD2 (arXiv 2405.14867)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diffdistill.diffusion.condition import Condition
from diffdistill.distill import DiscriminatorHead
from diffdistill.errors import UserError

from .backbone import Backbone
from .taps import read, stop_at


class ScoreWithCritic(nn.Module):
    """A fake score with a discriminator's head on one of its taps.

    Args:
        network: the fake score.
        tap: name of the features that the head reads; None for those of the network's bottleneck.
        hidden: width of the head.

    Raises:
        UserError: the network has no tap of this name.
    """

    def __init__(self, network: Backbone, tap: str | None = None, hidden: int = 128) -> None:
        super().__init__()
        self.network, self.tap = network, tap or network.bottleneck
        if self.tap not in (taps := network.taps()):
            raise UserError(f"the critic reads the tap {self.tap!r}; this network has {', '.join(taps)}")
        self.head = DiscriminatorHead(network.tap_channels(self.tap), hidden)

    @property
    def inner(self) -> Any:
        """The diffusers model."""
        return self.network.inner

    def forward(
        self,
        x_t: Tensor,
        time: Tensor,
        cond: Condition,
        real: Tensor | None = None,
        real_cond: Condition = None,
        made_cond: Condition = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Predict as the fake score does and, where `real` is given, judge as well.

        Args:
            x_t: noisy samples (B, C, H, W).
            time: (B,), in the network's units.
            cond: condition of B rows.
            real: real samples, noised to the same times.
            real_cond: their condition; None for `cond`.
            made_cond: the condition under which x_t is judged, in a pass of its own; None for `cond`.

        Returns:
            The prediction. With `real` also the logits (B, 1) of x_t and those of `real`.
        """
        if real is None:
            value: Tensor = self.network(x_t, time, cond)
            return value
        if made_cond is None:
            value, features = read(self.network, [self.tap], x_t, time, cond)
            of_made = self._head(features[self.tap])
        else:
            value, of_made = self.network(x_t, time, cond), self.logits(x_t, time, made_cond)
        return value, of_made, self.logits(real, time, cond if real_cond is None else real_cond)

    def logits(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        """The logits (B, 1) alone; the pass of the network ends at the tap."""
        return self._head(stop_at(self.network, self.tap, x_t, time, cond))

    def _head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits
