"""Settings of text to 3D: the teacher of views, how views are judged and rendered, and further terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from diffdistill.distill import WEIGHTS
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError
from diffdistill.text3d.camera_ranges import CameraRanges
from diffdistill.text3d.regularisers import LinearSchedule
from diffdistill.text3d.teachers.mv_adapter import ViewAdapter
from diffdistill.text3d.teachers.view_prompts import ViewPrompts

from .base import OptimizerSettings, check_eta, check_guidance, check_shares
from .settings import FakeScore, JudgedTimes, TeacherSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffdistill.text3d.teachers.several_views import SeveralViews
    from diffdistill.text3d.teachers.stable_diffusion import StableDiffusionViews

TERMS = ("sparsity", "opaque", "eikonal", "orientation", "z_variance")


@dataclass(frozen=True)
class ViewTeacherSettings:
    """A large teacher of views: a pipeline of Stable Diffusion 1.x or 2.x, perhaps with MV-Adapter, or of MVDream.

    The settings of its UNet say whether it is MVDream's, which takes the 16 numbers of a camera.

    Args:
        source: pipeline folder or hub id; null for none.
        attention: auto, sdpa, math or xformers.
        dtype: dtype of its frozen weights.
        variant: variant of its weight files, such as fp16.
        negative_prompt: guidance leads away from it.
        directions: how prompts depend on the camera; with MVDream and MV-Adapter they do not.
        adapter: layers of MV-Adapter, which make the teacher one of six views.
    """

    source: str | None = None
    attention: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    variant: str | None = None
    negative_prompt: str = ""
    directions: ViewPrompts = field(default_factory=ViewPrompts)
    adapter: ViewAdapter = field(default_factory=ViewAdapter)

    def load(self, prompts: Sequence[str]) -> SeveralViews | StableDiffusionViews:
        """Load the teacher. One of Stable Diffusion is compared with the stock pipeline.

        Args:
            prompts: all prompts of the run.

        Raises:
            UserError: there is nothing at `source`, the pipeline is of another family, or the settings do not fit it.
        """
        import torch

        from diffdistill.models.attention import set_attention
        from diffdistill.models.families import family_of
        from diffdistill.models.hub import open_pipeline
        from diffdistill.models.teacher import load_teacher
        from diffdistill.text3d.teachers.mv_adapter import mv_adapter_views
        from diffdistill.text3d.teachers.mvdream import mvdream_views, takes_cameras
        from diffdistill.text3d.teachers.stable_diffusion import StableDiffusionViews

        if self.source is None:
            raise UserError("teacher.source is null; name a pipeline folder or a hub id")
        files = open_pipeline(self.source, self.variant)
        network = family_of(files.index.get("_class_name"), self.source).network
        mvdream, adapted = takes_cameras(files.read_json(f"{network}/config.json")), self.adapter.weights is not None
        if mvdream and adapted:
            raise UserError("teacher.adapter.weights is set, but the teacher is MVDream; MV-Adapter is of a plain UNet")
        if (mvdream or adapted) and self.directions.mode not in ("auto", "none"):
            raise UserError(
                f"teacher.directions.mode is {self.directions.mode!r}; this teacher is told cameras, so it must be "
                "auto or none"
            )
        if not mvdream:
            plain = TeacherSettings(self.source, self.attention, self.dtype, self.variant).load()
            if adapted:
                return mv_adapter_views(plain, prompts, self.adapter, self.negative_prompt)
            return StableDiffusionViews(plain, prompts, self.directions, self.negative_prompt)
        teacher = load_teacher(files, self.dtype)
        teacher.backbone.inner.to(memory_format=torch.channels_last)
        set_attention(teacher.backbone.inner, self.attention, "cuda" if torch.cuda.is_available() else "cpu")
        return mvdream_views(teacher, prompts, self.negative_prompt)


@dataclass(frozen=True)
class Judging:
    """How views are judged.

    Args:
        residual: a name in `distill.RESIDUALS`: sds, csd, asd or vsd.
        weight: weight of the residual by time, a name in `distill.WEIGHTS`.
        times: the range of times.
        guidance_scale: the teacher's guidance over the run; 1 is none.
        eta: with asd, the largest shift of the later time.
        finish: null, or sds or csd: the residual from `finish_from` on. What asd and csd do to colours, sds repairs.
        finish_from: share of the run, in [0, 1].
        fake: with vsd, the fake score, which is told the cameras and has one update a step on the views of that step.
            So `updates` is 1, `warmup` 0, `sample_dropped` false and `train_guidance_scale` 1. By default it judges
            without guidance, as published. Of a prior it is a full copy, of a large teacher a full copy or adapters.
        reduction: "mean" over all values of a view, or "batch", their sum; both are means over views. The published
            weights of regularisers belong to the sum.

    Raises:
        UserError: a setting is out of its range, or the residual needs what views do not have.
    """

    residual: Literal["sds", "csd", "asd", "vsd"] = "sds"
    weight: str = "sigma2"
    times: JudgedTimes = JudgedTimes(0.6, 0.98, 0.3, 0.7)
    guidance_scale: LinearSchedule = LinearSchedule(0.0, 3.0, 1.5, 1.0)
    eta: float = 0.1
    finish: Literal["sds", "csd"] | None = None
    finish_from: float = 0.5
    fake: FakeScore = field(
        default_factory=lambda: FakeScore(
            optimizer=OptimizerSettings(1e-3, (0.0, 0.99)), weight="v", guidance_scale=1.0
        )
    )
    reduction: Literal["mean", "batch"] = "mean"

    def __post_init__(self) -> None:
        if self.residual not in ("sds", "csd", "asd", "vsd"):
            raise UserError(f"judging.residual is {self.residual!r}; it must be sds, csd, asd or vsd")
        if self.finish not in (None, "sds", "csd"):
            raise UserError(f"judging.finish is {self.finish!r}; it must be sds, csd or null")
        if self.finish is not None and self.residual == "vsd":
            raise UserError("judging.finish is for a run without a fake score; with vsd it must be null")
        check_shares(**{"judging.finish_from": self.finish_from})
        look_up(WEIGHTS, self.weight, "judging.weight")
        check_eta(**{"judging.eta": self.eta})
        for scale in (self.guidance_scale.first, self.guidance_scale.last):
            check_guidance(**{"judging.guidance_scale": scale})
        if self.reduction not in ("mean", "batch"):
            raise UserError(f"judging.reduction is {self.reduction!r}; it must be mean or batch")
        possible = {"updates": 1, "warmup": 0, "sample_dropped": False, "train_guidance_scale": 1.0}
        for name, value in possible.items() if self.residual == "vsd" else ():
            if getattr(self.fake, name) != value:
                raise UserError(f"judging.fake.{name} is {getattr(self.fake, name)!r}; in text to 3D it is {value!r}")


@dataclass(frozen=True)
class DenseRendering:
    """How views are rendered by asking the field at each sample; the defaults are ScaleDreamer's (arXiv 2407.02040).

    Args:
        size: side of a view, in pixels. A prior has its own.
        views: of each object in a step.
        samples: intervals of a ray.
        resampled: places that are added where the weights of those are.
        ray_chunk: rays of an object that are rendered at once; their samples are computed again in the backward pass.
        cameras: where cameras are drawn; a prior keeps the rings that it was trained on.
        background: colour, or learned for a small network of the direction, which is trained with the generator.
        share_of_plain: how often the background is a colour where it is learned.
        background_optimizer: of the network.

    Raises:
        UserError: a setting is out of its range.
    """

    size: int = 64
    views: int = 4
    samples: int = 128
    resampled: int = 64
    ray_chunk: int = 4096
    cameras: CameraRanges = field(default_factory=CameraRanges)
    background: Literal["colour", "learned"] = "colour"
    share_of_plain: float = 0.5
    background_optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(1e-3, (0.0, 0.99)))

    def __post_init__(self) -> None:
        check_shares(**{"rendering.dense.share_of_plain": self.share_of_plain})
        for name, least in (("size", 1), ("views", 1), ("samples", 1), ("resampled", 0), ("ray_chunk", 1)):
            if getattr(self, name) < least:
                raise UserError(f"rendering.dense.{name} is {getattr(self, name)}; it must be {least} or more")
        if self.background not in ("colour", "learned"):
            raise UserError(f"rendering.dense.background is {self.background!r}; it must be colour or learned")


@dataclass(frozen=True)
class Rendering:
    """How views are rendered for the teacher.

    Args:
        resolution: baked: nodes of the grid along a side.
        samples: baked: along each ray.
        rings: baked: rings of cameras in the pool; 0 for a new ring in each step.
        sharpness: k of the density over the run; see `volume.volsdf_density`.
        share_of_white: how often a background that is a colour is white; else it is random.
        renderer: baked, the field on a grid and one ring of cameras a step; or dense, the field at each sample and
            cameras of each object. A large teacher takes dense.
        dense: settings of the latter.

    Raises:
        UserError: a setting is out of its range.
    """

    resolution: int = 32
    samples: int = 32
    rings: int = 48
    sharpness: LinearSchedule = LinearSchedule(0.0, 20.0, 200.0, 0.8)
    share_of_white: float = 0.5
    renderer: Literal["baked", "dense"] = "baked"
    dense: DenseRendering = field(default_factory=DenseRendering)

    def __post_init__(self) -> None:
        check_shares(share_of_white=self.share_of_white)
        if self.renderer not in ("baked", "dense"):
            raise UserError(f"rendering.renderer is {self.renderer!r}; it must be baked or dense")
        for name, least, most in (("resolution", 4, 256), ("samples", 1, 1024), ("rings", 0, 4096)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"rendering.{name} is {getattr(self, name)}; it must be from {least} to {most}")
        for k in (self.sharpness.first, self.sharpness.last):
            if not 0 < k < math.inf:
                raise UserError(f"rendering.sharpness is {k}; it must be a number above 0")


@dataclass(frozen=True)
class Regularisers:
    """Weights of terms on the rendered objects, over the run; see `text3d.regularisers`.

    Args:
        sparsity: on opacities.
        opaque: on opacities.
        eikonal: on the differences of the signed distance: along the edges of the baked grid, or at the samples.
        orientation: dense alone: on surfaces that are seen and face away.
        z_variance: dense alone: on the spread of weights along opaque rays.

    Raises:
        UserError: a weight is negative or not finite.
    """

    sparsity: LinearSchedule = LinearSchedule.constant(0.0)
    opaque: LinearSchedule = LinearSchedule.constant(0.0)
    eikonal: LinearSchedule = LinearSchedule.constant(1e-3)
    orientation: LinearSchedule = LinearSchedule.constant(0.0)
    z_variance: LinearSchedule = LinearSchedule.constant(0.0)

    def __post_init__(self) -> None:
        for name in TERMS:
            for weight in (getattr(self, name).first, getattr(self, name).last):
                if not 0 <= weight < math.inf:
                    raise UserError(f"regularisers.{name} is {weight}; a weight is a number from 0")

    @property
    def used(self) -> set[str]:
        """Names of the terms whose weight is not 0 all over the run."""
        return {name for name in TERMS if getattr(self, name).first or getattr(self, name).last}
