"""SANA (arXiv 2410.10629): linear attention on the latents of a 32-fold autoencoder, flow matching, Gemma as encoder.

The condition of N prompts:

    text  (N, L, D)   the encoder's last hidden layer at the first token and at the last L - 1 tokens; the encoder reads
                      the pipeline's instruction before the prompt
    mask  (N, L)      1 where there is a token, 0 where there is padding

The network is trained on the straight path, x_t = (1 - t) x0 + t eps, and predicts the velocity eps - x0. Times are
shifted to high noise (`flow_shift`, `shift`). The network takes 1000 t times its `timestep_scale`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diffdistill.diffusion import FlowSchedule, PredictionType, Schedule
from diffdistill.diffusion.condition import Condition, expand

from .. import text
from ..backbone import Backbone
from ..pipeline_folder import Part, quiet
from .base import Family

if TYPE_CHECKING:
    from ..teacher import Teacher

NAMES = {"text", "mask"}
SCHEDULERS = {"FlowMatchEulerDiscreteScheduler": "shift", "DPMSolverMultistepScheduler": "flow_shift"}


class SanaBackbone(Backbone):
    """A SanaTransformer2DModel; the condition is a mapping with text and mask.

    Its taps are block.0, block.1, ...; the bottleneck is the middle one. If the network also predicts a variance, that
    half of its output is dropped, as in the stock pipeline.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.bottleneck = f"block.{len(self.inner.transformer_blocks) // 2}"

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        if not isinstance(cond, Mapping) or cond.keys() != NAMES:
            found = sorted(cond) if isinstance(cond, Mapping) else type(cond).__name__
            raise ValueError(f"the condition is {found}; a SANA network takes a mapping with {sorted(NAMES)}")
        parts: Any = expand(cond, len(x_t))
        value: Tensor = self.inner(
            self.in_own_dtype(x_t),
            encoder_hidden_states=self.in_own_dtype(parts["text"]),
            encoder_attention_mask=parts["mask"],
            timestep=time * self.inner.config.timestep_scale,
            return_dict=False,
        )[0]
        return value[:, : x_t.shape[1]]

    def taps(self) -> dict[str, nn.Module]:
        return {f"block.{i}": block for i, block in enumerate(self.inner.transformer_blocks)}

    def tap_channels(self, name: str) -> int:
        return self.inner.config.num_attention_heads * self.inner.config.attention_head_dim

    def feature_map(self, output: Any, x_t: Tensor) -> Tensor:
        tokens: Tensor = output[0] if isinstance(output, tuple) else output
        height, width = (side // self.inner.config.patch_size for side in x_t.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class Sana(Family):
    """SanaPipeline. Images have the network's own size; the pipeline's bins of aspect ratios are not used."""

    pipeline_class = "SanaPipeline"
    network = "transformer"
    parts = {
        "transformer": Part(("SanaTransformer2DModel", "SelfConditionedSana"), "diffusers"),
        "vae": Part(("AutoencoderDC",), "diffusers"),
        "text_encoder": Part(("Gemma2Model",), "transformers"),
        "tokenizer": Part(("GemmaTokenizer", "GemmaTokenizerFast"), "transformers", tokenizer=True),
    }
    casts_embeddings = True

    def backbone(self, inner: nn.Module) -> SanaBackbone:
        return SanaBackbone(inner)

    def check_parts(self, parts: Mapping[str, Any]) -> None:
        if parts["transformer"].config.guidance_embeds:
            raise ValueError("its transformer embeds the guidance scale, but SanaPipeline gives it none")

    def assemble(self, parts: Mapping[str, Any], scheduler: Any, index: Mapping[str, Any] | None = None) -> Any:
        from diffusers import SanaPipeline

        build: Any = SanaPipeline
        return build(**{name: parts[name] for name in self.parts}, scheduler=scheduler)

    def save(self, pipeline: Any, folder: Path) -> None:
        pipeline.save_pretrained(folder)
        # the class of that name in transformers 4 needs sentencepiece and its file; tokenizer.json is read by this one
        file = folder / "model_index.json"
        index = {**json.loads(file.read_text()), "tokenizer": ["transformers", "GemmaTokenizerFast"]}
        file.write_text(json.dumps(index, indent=2) + "\n")

    def process(self, config: Mapping[str, Any], written: Mapping[str, Any]) -> tuple[Schedule, PredictionType]:
        name = str(written.get("_class_name"))
        if name not in SCHEDULERS:
            raise ValueError(f"{name} is not supported; SANA's networks are sampled by {' or '.join(SCHEDULERS)}")
        if name.startswith("DPM") and not (
            config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
        ):
            raise ValueError(f"{name} is not set to flow matching (use_flow_sigmas, prediction_type flow_prediction)")
        if config.get("use_dynamic_shifting"):
            raise ValueError(
                f"{name} shifts times with the image's size (use_dynamic_shifting), which is not supported"
            )
        shift = config.get(SCHEDULERS[name]) or 1.0
        return FlowSchedule(config.get("num_train_timesteps") or 1000, shift), "flow"

    def embed(self, pipeline: Any, prompts: Sequence[str]) -> Condition:
        words, mask, _, _ = self._encode(pipeline, prompts, guided=False)
        return {"text": words, "mask": mask}

    def null(self, pipeline: Any) -> Condition:
        _, _, words, mask = self._encode(pipeline, [""], guided=True)
        return {"text": words, "mask": mask}

    def _encode(self, pipeline: Any, prompts: Sequence[str], guided: bool) -> tuple[Tensor, ...]:
        """The output of `encode_prompt` with the default settings of the pipeline's call."""
        default = inspect.signature(pipeline.__call__).parameters
        names = ("clean_caption", "max_sequence_length", "complex_human_instruction")
        with quiet():
            found: tuple[Tensor, ...] = pipeline.encode_prompt(
                list(prompts), guided, device=pipeline.text_encoder.device, **{n: default[n].default for n in names}
            )
        return found

    def report_cut(self, pipeline: Any, prompts: Sequence[str]) -> None:
        default = inspect.signature(pipeline.__call__).parameters
        limit = default["max_sequence_length"].default
        instruction = "\n".join(default["complex_human_instruction"].default or ())
        # `encode_prompt` counts in this way; it does not count the instruction's start and end twice
        room = limit if not instruction else len(pipeline.tokenizer.encode(instruction)) + limit - 2
        different = list(dict.fromkeys(prompts))
        with quiet():
            ids = pipeline.tokenizer([instruction + prompt.strip().lower() for prompt in different])["input_ids"]
        text.say_cut(
            [prompt for prompt, row in zip(different, ids, strict=True) if len(row) > room], len(different), limit
        )

    def channels(self, config: Mapping[str, Any]) -> tuple[int, int]:
        given = config.get("in_channels", 32)
        predicted = config.get("out_channels") or given
        return given, given if predicted == 2 * given else predicted

    def latent_shape(self, pipeline: Any) -> tuple[int, int, int]:
        config = pipeline.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    def call_options(self, pipeline: Any, height: int, width: int) -> dict[str, Any]:
        return {"height": height, "width": width, "use_resolution_binning": False}

    def check_size(self, pipeline: Any, height: int, width: int) -> None:
        pipeline.check_inputs("a photo", height, width)

    def one_step_scheduler(self, teacher: Teacher, time: float | Tensor) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=_from_noise(teacher, time))

    def few_step_scheduler(self, teacher: Teacher, time: float | Tensor, steps: int) -> Any:
        from diffusers import FlowMatchLCMScheduler

        if steps == 1:
            return self.one_step_scheduler(teacher, time)
        # k steps visit 1, 1 - 1/k, ..., 1/k
        return FlowMatchLCMScheduler(num_train_timesteps=_from_noise(teacher, time), shift_terminal=1 / steps)


def _from_noise(teacher: Teacher, time: float | Tensor) -> int:
    """The number of times of the teacher's schedule.

    Raises:
        ValueError: the student does not start from pure noise.
    """
    schedule = teacher.schedule
    assert isinstance(schedule, FlowSchedule)
    if float(time) != schedule.last:
        raise ValueError(
            f"a student of a flow-matching teacher starts from pure noise, at time 1, but here at {float(time):g}; "
            "set noise_ratio to null"
        )
    return schedule.num_train_timesteps
