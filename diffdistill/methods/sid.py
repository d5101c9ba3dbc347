"""SiD: score identity distillation into one step (arXiv 2404.04057), with the guidance of SiD-LSG (arXiv 2406.01561).

    z --student at T*--> x0 --noise--> x_t --teacher, guided---> f_T \\
                          |             |                              > (1-a) |f_T - f_F|^2 + <f_T - f_F, f_F - x0>
                          |             +-----fake score, guided-> f_F /          differentiated through both scores
                          +--> the fake score learns to denoise x0, with its guided prediction

Notable:
- the gradient on x0 runs through teacher and fake score, whose weights it leaves alone: a step costs the backward pass
  of both, and the memory of both while it lasts;
- one guidance scale in three places, as SiD-LSG has it: the fake score's guided prediction is what learns to denoise
  (kappa_1), and both are guided where they judge (kappa_2 = kappa_3, kappa_4). 1 is plain SiD;
- the loss oscillates about nought and says nothing of progress; `gap_rms` in the log falls;
- with `real_images` an adversarial term is added, as in SiDA (arXiv 2410.14919; its own differs, see docs).
"""

from __future__ import annotations

from torch import Tensor

from diffdistill.distill import SampleRandom
from diffdistill.distill.score_identity import on_the_sample, score_identity_loss

from .base import Loss, check_guidance, unwrap
from .fake_score import Adversary, FakeScore, WithFakeScore


class SiD(WithFakeScore):
    """Distil a Stable-Diffusion-class teacher into one step; the defaults are those of SiD-LSG.

    Args:
        teacher: pipeline folder or hub id.
        prompts: text file, one prompt a line.
        alpha: the paper's alpha; 1 with text, 1.2 on CIFAR-10.
        guidance_scale: of the teacher where it judges.
        fake_guidance_scale: of the fake score where it judges; null for the same as the teacher's.
        fake_train_guidance_scale: of the fake score where it is trained; null for what it judges with.
        student_learning_rate: AdamW's, constant unless `training` says otherwise.
        fake_learning_rate: likewise.
        betas: AdamW's, both networks.
        adam_eps: AdamW's eps, which counts beside the gradient's size; see docs/methods/README.md.
        fake_updates: updates of the fake score per update of the student.
        fake_warmup: steps at the start in which the fake score alone learns.
        fake_weight: weight of the fake score's denoising loss, a name in `distill.DENOISING_WEIGHTS`.
        drop_text: share of samples that the fake score learns without a prompt, and that the student makes without
            one; null for .1 where the fake score is guided and 0 where it is not, as in the released code.
        t_min: lower end of the times judged, and of those that the fake score is trained at, as a fraction.
        t_max: upper end, not included.
        t_max_final: where t_max arrives at the end of training, linearly, for the scores that judge; null for where it
            started.
        noise_ratio: sigma/alpha of the time at which the student is fed; null for the last time.
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
        alpha: float = 1.0,
        guidance_scale: float = 2.0,
        fake_guidance_scale: float | None = None,
        fake_train_guidance_scale: float | None = None,
        student_learning_rate: float = 1e-6,
        fake_learning_rate: float = 1e-6,
        betas: tuple[float, float] = (0.0, 0.999),
        adam_eps: float = 1e-8,
        fake_updates: int = 1,
        fake_warmup: int = 0,
        fake_weight: str = "eps",
        drop_text: float | None = None,
        t_min: float = 0.02,
        t_max: float = 0.98,
        t_max_final: float | None = None,
        noise_ratio: float | None = 2.5,
        real_images: str | None = None,
        adversarial_weight: float = 3e-3,
        critic_weight: float = 1e-2,
        attention: str = "auto",
        half_export: bool = False,
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        self.alpha, self.guidance_scale = alpha, guidance_scale
        self.fake_guidance_scale = guidance_scale if fake_guidance_scale is None else fake_guidance_scale
        trained = self.fake_guidance_scale if fake_train_guidance_scale is None else fake_train_guidance_scale
        guided = trained != 1 or self.fake_guidance_scale != 1
        super().__init__(
            teacher,
            prompts,
            fake=FakeScore(
                learning_rate=fake_learning_rate,
                updates=fake_updates,
                warmup=fake_warmup,
                weight=fake_weight,
                drop_text=(0.1 if guided else 0.0) if drop_text is None else drop_text,
                sample_dropped=True,
                guidance_scale=trained,
                t_min=t_min,
                t_max=t_max,
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

    def enable_gradient_checkpointing(self) -> None:
        super().enable_gradient_checkpointing()
        self.teacher.backbone.inner.enable_gradient_checkpointing()  # a gradient runs through it as well

    def _judged(self, x0: Tensor, cond: Tensor, random: SampleRandom) -> Loss:
        t = self.schedule.timestep(random.uniform("time"), *self._range())
        eps = random.normal("noise", self.teacher.latent_shape)
        teacher, fake = self._denoiser(self._judge), self._denoiser(unwrap(self.networks["fake"]))

        def loss_of(x0: Tensor) -> Loss:
            return score_identity_loss(
                teacher,
                fake,
                x0,
                t,
                eps,
                cond,
                self.null,
                self.guidance_scale,
                fake_guidance_scale=self.fake_guidance_scale,
                alpha=self.alpha,
            )

        return on_the_sample(loss_of, x0)
