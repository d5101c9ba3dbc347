"""DMD2: distribution matching into one or a few steps (arXiv 2405.14867), and Diff-Instruct as a setting of it.

    z --student, k steps at the most--> x0 --noise--> x_t --teacher, guided--> x0_T \\
                                         |                                          > weight * (x0_F - x0_T)
                                         |            x_t --fake score-----> x0_F  /
                                         +--> the fake score learns to denoise x0, n times for each such update

Notable:
- the gradient is VSD's, in x0 space and normalised; the fake score is a full copy and unguided;
- two time scales: `fake_updates` of the fake score for one of the student, each on fresh samples but the first;
- a student of several steps is trained at one of them a sample, drawn at random, on inputs that its own earlier steps
  made (`distill.backward_simulation`); the scores judge the samples of all its steps as one distribution;
- with `real_images` an adversarial term is added (`methods/fake_score.py`); without them, prompts are all the data;
- Diff-Instruct (arXiv 2305.18455): weight x0, which is sigma^2 on the difference of scores where alpha = 1, an unguided
  teacher, one update each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from diffdistill.diffusion import Condition
from diffdistill.distill import WEIGHTS, SampleRandom
from diffdistill.distill.backward_simulation import backward_simulation, few_step_sample, few_step_times
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError
from diffdistill.models.export import export_few_steps

from .base import Loss, check_guidance, unwrap
from .fake_score import Adversary, FakeScore, WithFakeScore


class DMD2(WithFakeScore):
    """Distil a Stable-Diffusion-class teacher into one or a few steps; the defaults are the paper's.

    Args:
        teacher: pipeline folder or hub id.
        prompts: text file, one prompt a line.
        steps: of the student: 1, 2, 4, ...; their times are spread evenly from the first one, where noise is fed, down.
        weight: weight on the residual, a name in `distill.WEIGHTS`; dmd is the paper's.
        guidance_scale: the teacher's guidance; 1.75 for Stable Diffusion 1.5, 8 for SDXL. The fake score has none.
        student_learning_rate: AdamW's, constant unless `training` says otherwise.
        fake_learning_rate: likewise.
        betas: AdamW's, both networks.
        adam_eps: AdamW's eps, which counts beside the gradient's size; see docs/methods/README.md.
        fake_updates: updates of the fake score per update of the student; 5, and 10 for Stable Diffusion 1.5.
        fake_warmup: steps at the start in which the fake score alone learns.
        fake_weight: weight of the fake score's denoising loss, a name in `distill.DENOISING_WEIGHTS`.
        drop_text: share of samples on which the fake score is trained without a prompt.
        t_min: lower end of the times judged, as a fraction.
        t_max: upper end, not included.
        t_max_final: where t_max arrives at the end of training, linearly; null for where it started.
        noise_ratio: sigma/alpha of the time at which noise is fed; null for the last time.
        real_images: folder laid out as assets/emoji with a picture for every prompt, for the adversarial term; null
            for none, so that prompts are all the data.
        adversarial_weight: weight of that term in the student's loss; 1e-3 for Stable Diffusion 1.5.
        critic_weight: weight of the discriminator's loss in the fake score's.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.
    """

    def __init__(
        self,
        teacher: str,
        prompts: str,
        steps: int = 1,
        weight: str = "dmd",
        guidance_scale: float = 1.75,
        student_learning_rate: float = 1e-5,
        fake_learning_rate: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        fake_updates: int = 5,
        fake_warmup: int = 0,
        fake_weight: str = "eps",
        drop_text: float = 0.0,
        t_min: float = 0.02,
        t_max: float = 0.981,
        t_max_final: float | None = None,
        noise_ratio: float | None = None,
        real_images: str | None = None,
        adversarial_weight: float = 3e-3,
        critic_weight: float = 1e-2,
        attention: str = "auto",
        half_export: bool = False,
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        look_up(WEIGHTS, weight, "weight")
        if steps < 1:
            raise UserError(f"steps is {steps}; a student takes at least 1")
        self.weight, self.guidance_scale = weight, guidance_scale
        super().__init__(
            teacher,
            prompts,
            fake=FakeScore(
                learning_rate=fake_learning_rate,
                updates=fake_updates,
                warmup=fake_warmup,
                weight=fake_weight,
                drop_text=drop_text,
            ),
            adversary=Adversary(real_images, adversarial_weight, critic_weight),
            student_learning_rate=student_learning_rate,
            betas=betas,
            adam_eps=adam_eps,
            noise_ratio=noise_ratio,
            t_min=t_min,
            t_max=t_max,
            t_max_final=t_max_final,
            attention=attention,
            half_export=half_export,
        )
        self.times = few_step_times(self.schedule, self.t_star, steps)
        if steps > 1 and self.times[-1] == 0:
            raise UserError(f"steps is {steps}, as many as there are times; the exported sampler takes none at time 0")

    def _judged(self, x0: Tensor, cond: Tensor, random: SampleRandom) -> Loss:
        fake = unwrap(self.networks["fake"])
        return self._distil("vsd", self.weight, x0, cond, random, self.guidance_scale, fake=fake)

    # ---- several steps ----------------------------------------------------------------------------------------

    def _sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 after one of the steps, drawn for each sample, with a graph of that step alone."""
        if len(self.times) == 1:
            return super()._sample(network, random, cond, draw)
        z, noises = self._noises(random, f"z{draw}", f"renoise{draw}")
        step = random.integers(f"step{draw}", len(self.times))
        inputs, t = backward_simulation(self._denoiser(unwrap(network)), z, self.times, noises, cond, step)
        return self._denoiser(network)(inputs, t, cond).x0

    def _draw(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        z, noises = self._noises(random, "preview", "preview renoise")
        return few_step_sample(self._denoiser(network), z, self.times, noises, cond)

    def _noises(self, random: SampleRandom, first: str, later: str) -> tuple[Tensor, list[Tensor]]:
        shape = self.teacher.latent_shape
        noises = [random.normal(f"{later}/{i}", shape) for i in range(len(self.times) - 1)]
        return random.normal(first, shape), noises

    def _write(self, unet: Any, folder: Path) -> None:
        if len(self.times) == 1:
            super()._write(unet, folder)
        else:
            export_few_steps(self.teacher, unet, self.t_star, len(self.times), folder)
