"""What the toolkit asks of a family, a class of diffusers pipelines: all that it knows of one.

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
        pipeline_class: its name, `_class_name` in model_index.json.
        network: name of the part that is distilled, "unet" or "transformer".
        autoencoder: name of the part that makes and reads latents.
        parts: what a pipeline has, by subfolder. Other subfolders are not read.
        lora_targets: endings of the names of the layers that get LoRA adapters where nobody says otherwise.
        casts_embeddings: whether the stock pipeline casts embeddings to the network's dtype. Where it does not, text
            encoders are exported in the student's.
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
        """The denoising network behind the signature of `Denoiser`."""

    def check_parts(self, parts: Mapping[str, Any]) -> None:
        """Check that loaded parts fit each other, and complete the tokenizers' settings.

        Raises:
            ValueError: they do not.
        """

    @abstractmethod
    def assemble(self, parts: Mapping[str, Any], scheduler: Any, index: Mapping[str, Any] | None = None) -> Any:
        """The stock pipeline of parts that are loaded already.

        Args:
            parts: by name; None for one that the pipeline does without.
            scheduler: of diffusers, or None.
            index: what model_index.json says, for settings of the pipeline itself.

        Raises:
            ValueError: parts that the pipeline refuses.
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
        """Schedule and prediction type of a scheduler's settings.

        Args:
            config: all settings, with the default values of the scheduler's class.
            written: those in scheduler_config.json.

        Raises:
            ValueError: a scheduler, or settings, that the family's networks are not trained with.
        """

    # ---- prompts ------------------------------------------------------------------------------------------------

    @abstractmethod
    def embed(self, pipeline: Any, prompts: Sequence[str]) -> Condition:
        """The condition of prompts, N rows, by the pipeline's own `encode_prompt`, in one batch."""

    @abstractmethod
    def null(self, pipeline: Any) -> Condition:
        """The condition of the empty prompt, one row, as the stock pipeline guides away from it."""

    @abstractmethod
    def report_cut(self, pipeline: Any, prompts: Sequence[str]) -> None:
        """Say on stderr, once, how many prompts are longer than the text encoders read."""

    # ---- sampling -----------------------------------------------------------------------------------------------

    def channels(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Channels of the network's input and of its prediction, by the network's settings."""
        return config.get("in_channels", 4), config.get("out_channels", 4)

    @abstractmethod
    def latent_shape(self, pipeline: Any) -> tuple[int, int, int]:
        """Channels, height and width of the latents that are drawn by default.

        Raises:
            ValueError: the network's settings give no size, or a wrong one.
        """

    @abstractmethod
    def call_options(self, pipeline: Any, height: int, width: int) -> dict[str, Any]:
        """Arguments of the stock pipeline's call that make it draw images of the size as training does.

        Args:
            height, width: of the image, in pixels.
        """

    @abstractmethod
    def check_size(self, pipeline: Any, height: int, width: int) -> None:
        """Raise what the stock pipeline raises about a size of image, in pixels, that it refuses."""

    @abstractmethod
    def one_step_scheduler(self, teacher: Teacher, time: float | Tensor) -> Any:
        """A stock scheduler whose one step is at the time and gives the x0-prediction of its input.

        Raises:
            ValueError: a time that no stock scheduler starts at.
        """

    @abstractmethod
    def few_step_scheduler(self, teacher: Teacher, time: float | Tensor, steps: int) -> Any:
        """A stock scheduler that samples x0 and noise in turn, at `few_step_times` from the time down.

        Raises:
            ValueError: as of `one_step_scheduler`.
        """
