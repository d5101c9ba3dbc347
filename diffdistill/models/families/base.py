"""The interface of a family, a class of diffusers pipelines. The toolkit knows nothing else of a pipeline.

A family is one file of this package and one line of the table in its `__init__`. It names the pipeline's parts, wraps
the denoising network in a `Backbone`, embeds prompts through the pipeline's own `encode_prompt`, reads the schedule
from the scheduler's settings, and says which stock scheduler samples a student.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diffdistill.diffusion import PredictionType, Schedule
from diffdistill.diffusion.condition import Condition

from ..backbone import Backbone
from ..pipeline_folder import Part

if TYPE_CHECKING:
    from ..teacher import Teacher


class Family(ABC):
    """A class of diffusers pipelines.

    Attributes:
        pipeline_class: name of the class, `_class_name` in model_index.json.
        network: name of the part that is distilled, "unet" or "transformer".
        autoencoder: name of the part that encodes and decodes latents.
        parts: the parts of a pipeline, by subfolder. Other subfolders are not read.
        lora_targets: endings of the names of the layers that get LoRA adapters by default.
        casts_embeddings: whether the stock pipeline casts embeddings to the network's dtype. If it does not, text
            encoders are exported in the student's dtype.
    """

    pipeline_class: str
    network: str
    autoencoder: str = "vae"
    parts: Mapping[str, Part]
    lora_targets: tuple[str, ...] = ("to_q", "to_v")
    casts_embeddings = False

    # ---- what a pipeline is made of -----------------------------------------------------------------------------

    @property
    def networks(self) -> list[str]:
        """Names of the parts that hold weights."""
        return [name for name, part in self.parts.items() if not part.tokenizer]

    @property
    def text_encoders(self) -> list[str]:
        """Names of the networks that read prompts."""
        return [name for name in self.networks if self.parts[name].library == "transformers"]

    @abstractmethod
    def backbone(self, inner: nn.Module) -> Backbone:
        """The denoising network with the signature that `Denoiser` calls."""

    def check_parts(self, parts: Mapping[str, Any]) -> None:
        """Check that loaded parts fit each other, and complete the tokenizers' settings.

        Raises:
            ValueError: they do not fit.
        """

    @abstractmethod
    def assemble(self, parts: Mapping[str, Any], scheduler: Any, index: Mapping[str, Any] | None = None) -> Any:
        """The stock pipeline of parts that are loaded already.

        Args:
            parts: the parts by name; None for an optional part that is absent.
            scheduler: a scheduler of diffusers, or None.
            index: the content of model_index.json, for settings of the pipeline itself.

        Raises:
            ValueError: the pipeline refuses the parts.
        """

    def replaced(self, pipeline: Any, network: Any, scheduler: Any) -> Any:
        """The stock pipeline of another network and scheduler, with the other parts and settings of this one."""
        parts = {**pipeline.components, self.network: network}
        return self.assemble(parts, scheduler, pipeline.config)

    def save(self, pipeline: Any, folder: Path) -> None:
        """Write the pipeline so that plain diffusers loads it."""
        pipeline.save_pretrained(folder)

    @abstractmethod
    def process(self, config: Mapping[str, Any], written: Mapping[str, Any]) -> tuple[Schedule, PredictionType]:
        """The schedule and the prediction type, by the settings of a scheduler.

        Args:
            config: all settings, with the default values of the scheduler's class.
            written: the settings in scheduler_config.json.

        Raises:
            ValueError: the family's networks are not trained with this scheduler, or with these settings.
        """

    # ---- prompts ------------------------------------------------------------------------------------------------

    @abstractmethod
    def embed(self, pipeline: Any, prompts: Sequence[str]) -> Condition:
        """The condition of prompts, N rows, by the pipeline's own `encode_prompt`, in one batch."""

    @abstractmethod
    def null(self, pipeline: Any) -> Condition:
        """The condition of the empty prompt, one row, which guidance leads away from in the stock pipeline."""

    @abstractmethod
    def report_cut(self, pipeline: Any, prompts: Sequence[str]) -> None:
        """Write to stderr, once, how many prompts are longer than the text encoders read."""

    # ---- sampling -----------------------------------------------------------------------------------------------

    def channels(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Numbers of channels of the network's input and of its prediction, by the network's settings."""
        return config.get("in_channels", 4), config.get("out_channels", 4)

    @abstractmethod
    def latent_shape(self, pipeline: Any) -> tuple[int, int, int]:
        """Channels, height and width of the latents that are drawn by default.

        Raises:
            ValueError: the network's settings give no size, or an invalid one.
        """

    @abstractmethod
    def call_options(self, pipeline: Any, height: int, width: int) -> dict[str, Any]:
        """Arguments of the stock pipeline's call that make it draw images of this size as training does.

        Args:
            pipeline: the stock pipeline.
            height: height of the image in pixels.
            width: width of the image in pixels.
        """

    @abstractmethod
    def check_size(self, pipeline: Any, height: int, width: int) -> None:
        """Raise the stock pipeline's error if it refuses this size of image, in pixels."""

    @abstractmethod
    def one_step_scheduler(self, teacher: Teacher, time: float | Tensor) -> Any:
        """A stock scheduler that takes one step at the time; the step gives the x0-prediction of its input.

        Raises:
            ValueError: no stock scheduler starts at this time.
        """

    @abstractmethod
    def few_step_scheduler(self, teacher: Teacher, time: float | Tensor, steps: int) -> Any:
        """A stock scheduler that samples x0 and noise in turn, at `few_step_times` from the time down.

        Raises:
            ValueError: see `one_step_scheduler`.
        """
