"""The distance of samples in the features of the frozen teacher: a perceptual loss that needs no other network.

    x --+--noise--> x_t --> teacher, up to its last tap --> features  \\
        |                                                               > distance
    y --+--noise--> y_t --> teacher, up to its last tap --> features  /

Both get the same noise, and a time with little of it. So a small shift costs less than a change of what is seen, and no
encoder is trained through by which students are measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffdistill.diffusion import Condition
from diffdistill.distill import SampleRandom, feature_distance
from diffdistill.errors import UserError
from diffdistill.models.lora import adapters_off
from diffdistill.models.taps import read
from diffdistill.models.teacher import Teacher

from .settings import FeatureSettings


class TeacherFeatures:
    """The distance of samples in the teacher's features.

    Args:
        settings: times and taps.
        teacher: the frozen model. Adapters that are put on its network later are off while features are read.

    Raises:
        UserError: the network has no tap of a name, or the range holds none of the schedule's times.
    """

    def __init__(self, settings: FeatureSettings, teacher: Teacher) -> None:
        self.settings, self.teacher = settings, teacher
        known = teacher.backbone.taps()
        self.taps = list(known) if settings.taps is None else list(settings.taps)
        for name in self.taps:
            if name not in known:
                raise UserError(f"regression.features.taps: the teacher has no tap {name!r}; it has {', '.join(known)}")
        try:
            teacher.schedule.timestep(torch.zeros(1), settings.t_min, settings.t_max)
        except ValueError as error:
            raise UserError(f"regression.features: t_min {settings.t_min}, t_max {settings.t_max}: {error}") from error

    def distance(self, x: Tensor, y: Tensor, cond: Condition, random: SampleRandom) -> Tensor:
        """The distance of x from y, of shape (), with a graph of x alone.

        Args:
            x, y: samples of shape (B, C, h, w).
            cond: their condition.
            random: random numbers of the batch.
        """
        s = self.settings
        t = self.teacher.schedule.timestep(random.uniform("feature_time"), s.t_min, s.t_max)
        eps = random.normal("feature_noise", x.shape[1:])
        with torch.no_grad():
            wanted = self._read(y, eps, t, cond)
        return feature_distance(self._read(x, eps, t, cond), wanted)

    def _read(self, x0: Tensor, eps: Tensor, t: Tensor, cond: Condition) -> list[Tensor]:
        found: dict[str, Tensor] = {}

        def network(x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
            value, features = read(self.teacher.backbone, self.taps, x_t, time, cond)
            found.update(features)
            return value

        with adapters_off(self.teacher.backbone):
            self.teacher.denoiser(network)(self.teacher.schedule.add_noise(x0, eps, t), t, cond)
        return [found[name] for name in self.taps]
