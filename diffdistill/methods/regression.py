"""Regression on pairs of the teacher: the student learns the sample that the teacher makes of the same noise.

It is the regression term of DMD (arXiv 2311.18828). The distance is that of latents, or of latents and of the
teacher's own features, in place of LPIPS. Score distillation lets a student drop modes; the sample of each noise is
fixed here, so none can be dropped. The term can be alone for some steps, in which neither the judge nor its fake score
is used, and then stands beside score distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from diffdistill.distill import SampleRandom, pseudo_huber

from .base import Batch, Loss, Phase
from .settings import RegressionSettings
from .student import OneStepStudent
from .teacher_features import TeacherFeatures
from .teacher_pairs import TeacherPairs


class Regression:
    """The regression term of a one-step student.

    Args:
        settings: weight, number of steps and distance.
        pairs: of the teacher.
        student: how samples are made of noise.
    """

    def __init__(self, settings: RegressionSettings, pairs: TeacherPairs, student: OneStepStudent) -> None:
        self.settings, self.pairs, self.student = settings, pairs, student
        self.features = TeacherFeatures(settings.features, pairs.teacher) if settings.features.weight else None

    def loss(self, network: Any, random: SampleRandom) -> Loss:
        """The distance of the student's samples from the teacher's, for a pair that is drawn for each sample."""
        z, x0, cond = self.pairs.drawn(random, "pair")
        sample = self.student.x0(network, z, cond)
        distance = pseudo_huber(sample, x0, self.settings.huber)
        logs = {"regression": distance.detach()}
        if self.features is None:
            return distance, logs
        further = self.features.distance(sample, x0, cond, random)
        return distance + self.settings.features.weight * further, {**logs, "features": further.detach()}

    def phases(self, step: int, networks: Mapping[str, nn.Module], judged: Callable[[int], list[Phase]]) -> list[Phase]:
        """The phases of a step.

        Args:
            step: number of the step.
            networks: the method's networks, with the student as "student".
            judged: the phases of the method without this term, by the number of its step.
        """

        def alone(batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
            return self.loss(networks["student"], random)

        s = self.settings
        if step < s.alone:
            return [Phase("student", "student", alone)]
        return [
            Phase(phase.name, phase.trains, self._beside(phase.loss, networks), phase.whole_batch)
            if phase.name == "student" and s.weight
            else phase
            for phase in judged(step - s.alone)
        ]

    def _beside(self, loss: Any, networks: Mapping[str, nn.Module]) -> Any:
        def both(batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
            value, logs = loss(batch, random, carry)
            term, more = self.loss(networks["student"], random)
            return value + self.settings.weight * term, {**logs, **more}

        return both
