"""SwiftBrush: variational score distillation into a one-step generator, from prompts alone (arXiv 2312.05239).

    z --student at T*--> x0 --noise--> x_t --teacher, guided--> eps_T \\
                          |                                            > weight * (eps_T - eps_F) = gradient on x0
                          |             x_t --fake score-------> eps_F /
                          +--> the fake score learns to denoise x0 (after the student's update, same x0)

Notable:
- guidance: s = 1 is unguided everywhere. The released code guides teacher and fake score alike
  (`fake_guidance_scale` null); 1 leaves the fake score unguided, as DMD does;
- the fake score is a full copy, or LoRA adapters on the teacher itself;
- `residual` may name any row of the family that needs no more than these networks: vsd, sds, sjc, csd, asd, sdi;
- with `real_images` an adversarial term is added, as in DMD2 (`methods/fake_score.py`). Off by default.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from diffdistill.distill import RESIDUALS, WEIGHTS, SampleRandom
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError

from .base import Loss, check_guidance, unwrap
from .fake_score import Adversary, FakeScore, WithFakeScore
from .one_step import check_eta

AT_HAND = {"cond", "null", "guided", "fake", "later"}  # what its networks and a later time give a residual


class SwiftBrush(WithFakeScore):
    """Distil a Stable-Diffusion-class teacher into one step; the defaults are the paper's.

    Args:
        teacher: pipeline folder or hub id.
        prompts: text file, one prompt a line.
        residual: row of the score-distillation family: vsd, sds, sjc, csd, asd or sdi.
        weight: weight on the residual, a name in `distill.WEIGHTS`: sigma2 (the paper), dmd, prd, x0, uniform,
            alpha_sigma, alpha_sigma2.
        guidance_scale: the teacher's guidance.
        fake_guidance_scale: the fake score's; null for the same as the teacher's, 1 for none.
        fake_score: lora or full.
        lora_rank: rank of the adapters.
        lora_alpha: their scale times the rank.
        lora_targets: endings of the names of the layers that get one.
        student_learning_rate: AdamW's, constant unless `training` says otherwise.
        fake_learning_rate: likewise.
        betas: AdamW's, both networks.
        adam_eps: AdamW's eps, which counts beside the gradient's size; see docs/methods/README.md.
        fake_updates: updates of the fake score per update of the student.
        fake_warmup: steps at the start in which the fake score alone learns, so that it knows the student first.
        fake_weight: weight of the fake score's denoising loss, a name in `distill.DENOISING_WEIGHTS`.
        drop_text: share of samples on which the fake score is trained without a prompt.
        t_min: lower end of the times judged, as a fraction.
        t_max: upper end, not included.
        t_max_final: where t_max arrives at the end of training, linearly, for the scores that judge (the adversarial
            term keeps to t_max); null for where it started. Much noise settles shapes, little noise detail: going
            down gives each its turn. Runs that `max_minutes` ends go by the clock, and up again if it is raised.
        noise_ratio: sigma/alpha of the time at which the student is fed; null for the last time.
        asd_eta: largest shift of ASD's later time, relative to t - t_min.
        real_images: folder laid out as assets/emoji with a picture for every prompt, for the adversarial term; null
            for none, so that prompts are all the data.
        adversarial_weight: weight of that term in the student's loss.
        critic_weight: weight of the discriminator's loss in the fake score's.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.
    """

    def __init__(
        self,
        teacher: str,
        prompts: str,
        residual: str = "vsd",
        weight: str = "sigma2",
        guidance_scale: float = 4.5,
        fake_guidance_scale: float | None = None,
        fake_score: Literal["lora", "full"] = "lora",
        lora_rank: int = 64,
        lora_alpha: float = 108.0,
        lora_targets: tuple[str, ...] = ("to_q", "to_v"),
        student_learning_rate: float = 1e-6,
        fake_learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        fake_updates: int = 1,
        fake_warmup: int = 0,
        fake_weight: str = "alpha2_eps",
        drop_text: float = 0.1,
        t_min: float = 0.02,
        t_max: float = 0.981,
        t_max_final: float | None = None,
        noise_ratio: float | None = None,
        asd_eta: float = 0.1,
        real_images: str | None = None,
        adversarial_weight: float = 3e-3,
        critic_weight: float = 1e-2,
        attention: str = "auto",
        half_export: bool = False,
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        row = look_up(RESIDUALS, residual, "residual")
        look_up(WEIGHTS, weight, "weight")
        check_eta(asd_eta=asd_eta)
        if not row.needs <= AT_HAND:
            raise UserError(f"residual {residual}: SwiftBrush has no {', '.join(sorted(row.needs - AT_HAND))}")
        self.needs_fake = "fake" in row.needs
        if real_images is not None and not self.needs_fake:
            raise UserError(f"real_images: the discriminator sits on the fake score, and {residual} has none; take vsd")
        self.residual, self.weight, self.guidance_scale, self.asd_eta = residual, weight, guidance_scale, asd_eta
        self.fake_guidance_scale = guidance_scale if fake_guidance_scale is None else fake_guidance_scale
        fake = FakeScore(
            learning_rate=fake_learning_rate,
            network=fake_score,
            updates=fake_updates,
            warmup=fake_warmup,
            weight=fake_weight,
            drop_text=drop_text,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
        )
        super().__init__(
            teacher,
            prompts,
            fake=fake if self.needs_fake else None,
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

    def _judged(self, x0: Tensor, cond: Tensor, random: SampleRandom) -> Loss:
        return self._distil(
            self.residual,
            self.weight,
            x0,
            cond,
            random,
            self.guidance_scale,
            fake=unwrap(self.networks["fake"]) if self.needs_fake else None,
            fake_guidance_scale=self.fake_guidance_scale,
            eta=self.asd_eta,
        )
