"""Settings that several methods share, as dataclasses. They are arguments of constructors, and nest in the YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from diffdistill.data.captioned import CaptionedData
from diffdistill.distill import DENOISING_WEIGHTS, DIVERGENCES, time_range
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError

from .base import OptimizerSettings, check_guidance, check_shares

if TYPE_CHECKING:
    from diffdistill.models.teacher import Teacher


@dataclass(frozen=True)
class TeacherSettings:
    """The frozen model that is distilled.

    Args:
        source: pipeline folder or hub id.
        attention: auto, sdpa, math or xformers.
        dtype: dtype of its frozen weights; trained weights are always float32.
        variant: variant of its weight files, such as fp16; null for the plain files, or for the only variant there is.
    """

    source: str
    attention: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    variant: str | None = None

    def load(self) -> Teacher:
        """Load the teacher, with its weights in channels-last order, and compare it with the stock pipeline.

        Raises:
            UserError: there is nothing at `source`, the pipeline is not supported, or the teacher predicts something
                else than diffusers with the same files.
        """
        import torch

        from diffdistill.models.attention import set_attention
        from diffdistill.models.stock_check import load_checked_teacher

        teacher = load_checked_teacher(self.source, self.dtype, self.variant)
        teacher.backbone.inner.to(memory_format=torch.channels_last)
        set_attention(teacher.backbone.inner, self.attention, "cuda" if torch.cuda.is_available() else "cpu")
        return teacher


@dataclass(frozen=True)
class JudgedTimes:
    """The times at which samples are judged, as fractions of the schedule.

    High noise settles shapes, and low noise settles detail. If the range comes down over the run, each has its turn.

    Args:
        t_min: lower end of the range at the start of the run.
        t_max: upper end at the start, not included.
        t_min_final: lower end at the end of the run; the change is linear. null for no change.
        t_max_final: upper end at the end of the run; null for no change. In a run with `training.max_minutes` the range
            follows the clock.

    Raises:
        UserError: the ends are out of order or outside [0, 1].
    """

    t_min: float = 0.02
    t_max: float = 0.981
    t_min_final: float | None = None
    t_max_final: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.t_min < self.t_max <= 1.0:
            raise UserError(f"t_min {self.t_min} and t_max {self.t_max} must be in order and in [0, 1]")
        low, high = self.last
        if not 0.0 <= low <= self.t_min:
            raise UserError(f"t_min_final {low} must be at most t_min {self.t_min} and not below 0")
        if not low < high <= self.t_max:
            name = f"t_min {self.t_min}" if self.t_min_final is None else f"t_min_final {self.t_min_final}"
            raise UserError(f"t_max_final {high} must be above {name} and at most t_max {self.t_max}")

    @property
    def first(self) -> tuple[float, float]:
        """The range at the start of the run."""
        return self.t_min, self.t_max

    @property
    def last(self) -> tuple[float, float]:
        """The range at the end of the run."""
        low = self.t_min if self.t_min_final is None else self.t_min_final
        return low, self.t_max if self.t_max_final is None else self.t_max_final

    @property
    def moves(self) -> bool:
        """Whether the range changes over the run."""
        return self.first != self.last

    def at(self, progress: float) -> tuple[float, float]:
        """The range when the share `progress` of the run is done."""
        return time_range(progress, self.first, self.last) if self.moves else self.first


@dataclass(frozen=True)
class LoraSettings:
    """LoRA adapters on the teacher's own network.

    Args:
        rank: rank of the adapters.
        alpha: scale of the adapters times their rank.
        targets: endings of the names of the layers that get an adapter; null for those of the teacher's family.

    Raises:
        UserError: a number is out of its range, or there are no targets.
    """

    rank: int = 64
    alpha: float = 108.0
    targets: tuple[str, ...] | None = ("to_q", "to_v")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank is {self.rank}; it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"alpha is {self.alpha}; it must be a number above 0")
        if self.targets is not None and not self.targets:
            raise UserError("targets is empty; name at least one, such as to_q, or set null for the family's own")


@dataclass(frozen=True)
class FakeScore:
    """The fake score, a score model of the student's own samples, and how it is trained.

    Args:
        network: full for a full copy of the teacher, or lora for adapters on the teacher itself.
        optimizer: the optimiser of its network.
        updates: number of its updates for each update of the student.
        warmup: number of steps at the start in which the fake score alone is trained, to learn the student's samples.
        weight: weight of its denoising loss, a name in `distill.DENOISING_WEIGHTS`.
        drop_text: share of the samples on which it is trained without a prompt; null for 0.1 if it is guided when it
            judges or is trained, and for 0 otherwise.
        sample_dropped: whether the student makes these samples from the empty prompt. Otherwise it makes them from
            the prompt that is dropped.
        guidance_scale: guidance of the fake score when it judges; null for the teacher's scale, 1 for none.
        train_guidance_scale: guidance of the prediction that learns to denoise; 1 for none, null for the scale with
            which it judges.
        train_times: times at which it is trained: all, or judged for those judged at the start of the run.
        lora: settings of the adapters.

    Raises:
        UserError: a setting is out of its range.
    """

    network: Literal["lora", "full"] = "full"
    optimizer: OptimizerSettings = OptimizerSettings(1e-5)
    updates: int = 1
    warmup: int = 0
    weight: str = "alpha2_eps"
    drop_text: float | None = 0.0
    sample_dropped: bool = False
    guidance_scale: float | None = None
    train_guidance_scale: float | None = 1.0
    train_times: Literal["all", "judged"] = "all"
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        for name, valid in (("network", ("lora", "full")), ("train_times", ("all", "judged"))):
            if getattr(self, name) not in valid:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(map(repr, valid))}")
        look_up(DENOISING_WEIGHTS, self.weight, "weight")
        check_shares(drop_text=self.drop_text or 0.0)
        scales = {"guidance_scale": self.guidance_scale, "train_guidance_scale": self.train_guidance_scale}
        check_guidance(**{name: scale for name, scale in scales.items() if scale is not None})
        if self.updates < 1 or self.warmup < 0:
            raise UserError(f"updates is {self.updates} and warmup {self.warmup}; they must be at least 1 and 0")

    def judging_scale(self, teacher_scale: float) -> float:
        """The guidance with which it judges."""
        return teacher_scale if self.guidance_scale is None else self.guidance_scale

    def training_scale(self, teacher_scale: float) -> float:
        """The guidance of the prediction that learns to denoise."""
        return self.judging_scale(teacher_scale) if self.train_guidance_scale is None else self.train_guidance_scale

    def dropped(self, teacher_scale: float) -> float:
        """The share of samples on which it is trained without a prompt."""
        if self.drop_text is not None:
            return self.drop_text
        return 0.1 if {self.judging_scale(teacher_scale), self.training_scale(teacher_scale)} != {1.0} else 0.0


@dataclass(frozen=True)
class AdversarySettings:
    """The adversarial term of DMD2 (arXiv 2405.14867), which is used if images are named.

    Args:
        data: captioned images. If its source is null and `of_teacher` false there is no such term, and the data are
            prompts alone.
        of_teacher: whether the discriminator takes the teacher's samples for real, those of `pairs`. Then no images are
            needed.
        matched: whether the image of each prompt is used, which must be in the data. Otherwise an image is drawn for
            each sample, and is judged with its own caption.
        conditional: whether the discriminator sees prompts. Otherwise it judges under the empty prompt: whether a
            sample is like real images, and not whether it is like the few images of its prompt. Without `matched`,
            images then need no captions.
        weight: weight of the term in the student's loss.
        critic_weight: weight of the discriminator's loss in that of the fake score.
        tap: the inner feature of the fake score that the discriminator reads; null for its bottleneck.
        divergence: the divergence that score distillation minimises, a name in `distill.DIVERGENCES`. Any but
            reverse_kl weighs samples by the discriminator's density ratio (arXiv 2502.15681): that of what it takes for
            real, the teacher's samples or images, to the student's.

    Raises:
        UserError: a weight is negative or not finite, or two settings do not fit each other.
    """

    data: CaptionedData = CaptionedData(None)
    of_teacher: bool = False
    matched: bool = True
    conditional: bool = True
    weight: float = 3e-3
    critic_weight: float = 1e-2
    tap: str | None = None
    divergence: str = "reverse_kl"

    def __post_init__(self) -> None:
        look_up(DIVERGENCES, self.divergence, "divergence")
        for name, value in (("weight", self.weight), ("critic_weight", self.critic_weight)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; it must be a number from 0")
        if self.of_teacher and self.data.source is not None:
            raise UserError(
                "of_teacher is true and data.source names images; the discriminator takes one of them for real"
            )
        default = {each.name: each.default for each in fields(self) if each.name not in ("data", "of_teacher")}
        captions = [name for name in ("captions", "size") if getattr(self.data, name) is not None]
        if self.of_teacher and captions:
            raise UserError(
                f"data.{captions[0]} is of images, and of_teacher takes the teacher's samples in their place"
            )
        if self.of_teacher and not self.matched:
            raise UserError("matched is of images, and of_teacher takes samples of each prompt; leave it true")
        if self.divergence != "reverse_kl" and not self.conditional:
            raise UserError(
                f"divergence {self.divergence} needs a density ratio given the prompt; set conditional to true"
            )
        if self.data.captions is not None and not (self.matched or self.conditional):
            raise UserError("data.captions is set, and the discriminator reads no caption; set conditional to true")
        if self.divergence != "reverse_kl" and self.used and self.critic_weight == 0:
            raise UserError(
                f"divergence {self.divergence} needs a discriminator that learns; set critic_weight above 0"
            )
        given = [name for name, value in default.items() if getattr(self, name) != value]
        given += [f"data.{name}" for name in ("captions", "size") if getattr(self.data, name) is not None]
        if not self.used and given:
            raise UserError(
                f"{given[0]} is set, but there is no adversarial term; name images in data.source, or set of_teacher"
            )

    @property
    def used(self) -> bool:
        """Whether there is such a term."""
        return self.of_teacher or self.data.source is not None


@dataclass(frozen=True)
class PairSettings:
    """Pairs of the teacher: noise, and the sample that the teacher makes of it. They are made once and kept.

    Args:
        count: number of pairs; 0 for none.
        steps: number of the teacher's deterministic steps.
        guidance_scale: the teacher's guidance; 1 is none.

    Raises:
        UserError: a number is out of its range.
    """

    count: int = 0
    steps: int = 16
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.count <= 10**7 or self.steps < 1:
            raise UserError(f"count is {self.count} and steps {self.steps}; count is from 0 to 10^7, steps at least 1")
        check_guidance(guidance_scale=self.guidance_scale)


@dataclass(frozen=True)
class FeatureSettings:
    """The distance of samples in the frozen teacher's own features, at times with little noise.

    Args:
        weight: weight of this distance beside that of the latents; 0 for none.
        t_min, t_max: the range of times, as fractions of the schedule; the upper end is not included.
        taps: names of the features ("down.0", "mid", ...); null for all that the network has.

    Raises:
        UserError: a number is out of its range.
    """

    weight: float = 0.0
    t_min: float = 0.02
    t_max: float = 0.2
    taps: list[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UserError(f"weight is {self.weight}; it must be a number from 0")
        if not 0 <= self.t_min < self.t_max <= 1:
            raise UserError(f"t_min {self.t_min} and t_max {self.t_max} must be in order and in [0, 1]")
        if self.taps is not None and not self.taps:
            raise UserError("taps is an empty list; name features, or set it to null for all")
        if self.weight == 0 and (self.t_min, self.t_max, self.taps) != (0.02, 0.2, None):
            raise UserError("t_min, t_max or taps is set, but features are not compared; set weight above 0")


@dataclass(frozen=True)
class RegressionSettings:
    """Regression on pairs of the teacher, as in DMD (arXiv 2311.18828). It needs `pairs.count`.

    Args:
        weight: weight of the term beside score distillation; 0 for none.
        alone: number of steps at the start in which the student is trained by this term alone.
        huber: c of the pseudo-Huber distance of latents.
        features: the distance in the teacher's features, which is added to that of latents.

    Raises:
        UserError: a number is out of its range.
    """

    weight: float = 0.0
    alone: int = 0
    huber: float = 0.1
    features: FeatureSettings = FeatureSettings()

    def __post_init__(self) -> None:
        if not (0 <= self.weight < math.inf and 0 < self.huber < math.inf and self.alone >= 0):
            raise UserError(
                f"weight is {self.weight}, alone {self.alone} and huber {self.huber}; weight and alone must be from 0, "
                "and huber above 0"
            )
        if self.features.weight and not self.used:
            raise UserError("features.weight is set, but there is no regression; set weight or alone above 0")

    @property
    def used(self) -> bool:
        """Whether there is such a term at any time of the run."""
        return self.weight > 0 or self.alone > 0


@dataclass(frozen=True)
class HealthSettings:
    """Numbers of the student on a fixed small set, at each validation, against those of the teacher.

    They are in the log as "validation/variety", "contrast", "saturation" (ratios to the teacher's) and "distance": the
    kernel distance to the teacher's images of the same caption, over the spread of these, as a mean over MobileNetV2
    and AlexNet. The weights of the least distance are exported with `training.export_best`.

    Args:
        captions: number of captions, spread over the prompts; 0 for no such numbers.
        per_caption: number of images of each.
        steps: number of the teacher's steps.
        guidance_scale: the teacher's guidance, which should be that of its best images.

    Raises:
        UserError: a number is out of its range.
    """

    captions: int = 0
    per_caption: int = 4
    steps: int = 16
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        if self.captions < 0 or self.per_caption < 2 or self.steps < 1:
            raise UserError(
                f"captions is {self.captions}, per_caption {self.per_caption} and steps {self.steps}; they must be at "
                "least 0, 2 and 1"
            )
        check_guidance(guidance_scale=self.guidance_scale)


@dataclass(frozen=True)
class ExportSettings:
    """How the product is stored.

    Args:
        half: store the exported weights of the network and the autoencoder as float16.
    """

    half: bool = False
