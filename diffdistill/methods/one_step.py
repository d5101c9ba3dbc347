"""The base of methods that distil a teacher into a student from prompts alone: prompts, previews and the export.

    prompts --embedded once--> cond --student--> x0 --> the method's loss

Such a method is a `OneStep` with a student (`methods.student`), usually a judge (`methods.judge`), and its own phases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Condition
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.models.backbone import full_copy
from diffdistill.models.export import export_student, halve
from diffdistill.models.prompt_table import PromptTable, embed_prompts
from diffdistill.models.teacher import Teacher, load_teacher

from .adversary import Adversary
from .base import FREE_ARGUMENTS, Batch, Method, OptimizerSettings, Validation, unwrap, without_autocast
from .content import digest, of_teacher
from .health import Health
from .judge import Judge
from .settings import AdversarySettings, ExportSettings, HealthSettings, PairSettings
from .teacher_pairs import TeacherPairs

PREVIEWS = 32


class Student(Protocol):
    """How samples are made with a network, and what is exported."""

    def train_sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 as the student is trained to make it."""

    def sample(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        """x0 as the exported pipeline samples it."""

    def exported(self, network: Any) -> Any:
        """The diffusers network that is exported."""

    def scheduler(self) -> Any:
        """The diffusers scheduler that takes the student's steps."""


class OneStep(Method):
    """A frozen teacher, a student that starts as its copy, and prompts.

    Args:
        teacher: the frozen model.
        prompts: a file of prompts.
        student: how the student makes samples.
        optimizer: the optimiser of the student's network.
        export: how the product is stored.
        judge: turns the samples into a gradient; None for a method without a judge.
        pairs: pairs of the teacher, for terms that need them; None for none.
        start: an exported student, from whose weights the student starts; None for those of the teacher.
        health: numbers of the student against the teacher's; None for none.

    Attributes:
        null: the condition of the empty prompt, after `prepare`.
    """

    averaged = "student"
    free: Mapping[str, str] = MappingProxyType(
        {**FREE_ARGUMENTS, **{f"health.{each.name}": "what is measured" for each in fields(HealthSettings)}}
    )

    def __init__(
        self,
        teacher: Teacher,
        prompts: Sequence[str],
        student: Student,
        optimizer: OptimizerSettings,
        export: ExportSettings,
        judge: Judge | None = None,
        pairs: TeacherPairs | None = None,
        start: str | None = None,
        health: HealthSettings | None = None,
    ) -> None:
        self.pairs = pairs
        self.health = Health(health, teacher, prompts) if health is not None and health.captions else None
        self.scores = self.health is not None
        self.steps_before = 0 if judge is None else judge.warmup
        self.teacher, self.prompts, self.student, self.judge = teacher, prompts, student, judge
        self.schedule, self.half = teacher.schedule, export.half
        teacher.report_cut(prompts)
        self.networks = {"student": full_copy(teacher.backbone)}
        self.optimizers = {"student": optimizer}
        parts = dict(teacher.parts())
        if judge is not None and judge.shared:  # it is trained with its adapters
            parts.pop(teacher.family.network)
        self.frozen = parts
        self.content = {"teacher.source": of_teacher(teacher), "prompts": digest(prompts)}
        if pairs is not None:  # a run does not go on with pairs that are made in another way
            self.content |= {"pairs": pairs.content}
        if start is not None:
            self.content |= {"start": start_from(self.networks["student"], start, student, teacher)}
        if judge is not None:
            judge.add_networks(self.networks, self.optimizers)
            if judge.adversary is not None:
                self.content |= judge.adversary.content
        self.table: PromptTable | None = None
        self.null: Condition = None

    def __len__(self) -> int:
        return len(self.prompts)

    def prepare(self, device: torch.device | str) -> None:
        """Move the teacher to the device and embed the prompts there."""
        self.device = torch.device(device)
        self.teacher.to(self.device)
        self.null = self.teacher.null()
        self.table = embed_prompts(self.teacher, self.prompts, self.device)
        if self.pairs is not None:
            self.pairs.prepare(self.table, self.null, self.device)
        if self.health is not None:
            self.health.prepare(self.table, self.null, self.device)
        if self.judge is not None:
            self.judge.prepare(self.null, self.device)
        if not self.table.on_demand:  # all is embedded
            self.teacher.move_text_encoders("cpu")

    def begin_step(self, step: int) -> None:
        if self.judge is not None and self.judge.times.moves:
            self.judge.progress = self.progress

    def enable_gradient_checkpointing(self) -> None:
        for network in self.networks.values():
            unwrap(network).inner.enable_gradient_checkpointing()

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        batch: Batch = {"cond": self.embedded(records)}
        if self.judge is None or self.judge.adversary is None:
            return batch
        return {**batch, **self.judge.adversary.batch(records, random)}

    def embedded(self, records: Sequence[int]) -> Condition:
        """The condition of some of the prompts, on the device.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        if self.table is None:
            raise RuntimeError("prompts are embedded in prepare(device), which was not called")
        return self.table.rows(list(records))

    def validate(self) -> Validation:
        """Images of 32 prompts spread over the list, always from the same noise, and the numbers of `health`."""
        rows = [i * len(self.prompts) // PREVIEWS for i in range(PREVIEWS)]
        random = SampleRandom(0, range(PREVIEWS), self.device)
        x0 = self.student.sample(unwrap(self.networks["student"]), random, self.embedded(rows))
        images = self.teacher.latents.images(x0)
        if self.health is None:
            return Validation(images)
        network = unwrap(self.networks["student"])
        with without_autocast(network):  # as the exported pipeline computes, and as the teacher did
            found = self.health.measure(lambda random, cond: self.student.sample(network, random, cond))
        return replace(found, images=images)

    def export(self, folder: Path) -> None:
        network = self.student.exported(self.networks["student"])
        export_student(self.teacher, network, self.student.scheduler(), folder)
        if self.half:
            halve(folder)


def adversary_of(
    settings: AdversarySettings, teacher: Teacher, prompts: Sequence[str], pairs: TeacherPairs | None = None
) -> Adversary | None:
    """The adversarial term, or None if the settings name nothing that the discriminator takes for real."""
    return Adversary(settings, teacher, prompts, pairs) if settings.used else None


def pairs_of(settings: PairSettings, teacher: Teacher, prompts: Sequence[str], used: bool) -> TeacherPairs | None:
    """The pairs of the teacher, or None if the settings ask for none.

    Raises:
        UserError: there are pairs, and no term uses them.
    """
    if settings.count and not used:
        raise UserError("pairs.count is set, but nothing uses pairs; set regression.weight or adversary.of_teacher")
    return TeacherPairs(settings, teacher, prompts) if settings.count else None


def start_from(network: Any, source: str, student: Student, teacher: Teacher) -> str:
    """Give the network the weights of an exported student, in place; returns their digest.

    Args:
        network: the student's network, a copy of the teacher's.
        source: pipeline folder of the exported student.
        student: how samples are made, with the time at which noise is fed.
        teacher: the teacher.

    Raises:
        UserError: there is no pipeline, its network or autoencoder is another one, or it was trained to get noise at
            another time.
    """
    if not Path(source).is_dir():
        raise UserError(f"start {source}: there is no such folder; name the export of a run that has ended")
    other = load_teacher(source)
    if not _same_latents(other, teacher):
        raise UserError(f"start {source} has another autoencoder than the teacher {teacher.source}")
    try:
        network.inner.load_state_dict(other.backbone.inner.state_dict())
    except RuntimeError as error:
        raise UserError(f"start {source} has another network than the teacher {teacher.source}") from error
    if other.prediction_type != teacher.prediction_type:
        raise UserError(f"start {source} predicts {other.prediction_type}, and the teacher {teacher.prediction_type}")
    time = float(getattr(student, "time", other.schedule.last))
    if float(other.schedule.last) != time:
        raise UserError(
            f"start {source} gets noise at time {other.schedule.last:g}, and this student at {time:g}; name a student "
            "of one step, and set noise_ratio as it was when that one was trained"
        )
    return other.digest()


def _same_latents(a: Teacher, b: Teacher) -> bool:
    """Whether two models encode images alike, up to the rounding of a half-precision file. Decoders may differ."""
    one, two = a.latents, b.latents
    if (one.scale, one.shift) != (two.scale, two.shift) or (one.statistics is None) != (two.statistics is None):
        return False
    pairs = list(zip(one.statistics or (), two.statistics or (), strict=True))
    first, second = (_encoder(each.autoencoder) for each in (one, two))
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in first):
        return False
    pairs += [(first[name], second[name]) for name in first]
    return all(torch.allclose(x.float().cpu(), y.float().cpu(), rtol=1e-2, atol=1e-3) for x, y in pairs)


def _encoder(autoencoder: nn.Module) -> dict[str, Tensor]:
    return {name: v for name, v in autoencoder.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
