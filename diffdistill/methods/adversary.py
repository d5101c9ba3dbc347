"""The adversarial term of DMD2 (arXiv 2405.14867): it moves samples so that a discriminator takes them for real.

    real latents, noised --> fake score's network, up to a tap --> head --> logit ----+
    samples, noised -------> the same ------------------------------------> logit ----+--> discriminator's loss
    samples, noised -------> the same --> logit --> gradient on the samples, added to the student's loss

Both are noised to the same times. The head is trained with the fake score, in one pass of its network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.data.captioned import NoCaptionsError, load_captioned
from diffdistill.diffusion import Condition, Schedule, concatenate, expand
from diffdistill.distill import SampleRandom, discriminator_loss, divergence_weights, generator_loss, surrogate_loss
from diffdistill.distill.residual import rms
from diffdistill.errors import UserError
from diffdistill.models.cached_latents import encoded
from diffdistill.models.critic import ScoreWithCritic
from diffdistill.models.prompt_table import PromptTable, embed_prompts
from diffdistill.models.teacher import Teacher

from .base import Batch, Loss, unwrap
from .content import digest
from .settings import AdversarySettings
from .teacher_pairs import TeacherPairs


class Adversary:
    """Real images as latents, the loss of the discriminator, and that of the student that it judges.

    Args:
        settings: data and weights.
        teacher: the teacher, for its latent space and its size of image.
        prompts: the run's prompts. With `settings.matched` each of them must be the caption of one or more images.
        pairs: pairs of the teacher, whose samples are taken for real with `settings.of_teacher`.

    Attributes:
        latents: (N, C, h, w), after `prepare`. With `settings.matched`, these are the images of the prompts, in the
            order of the prompts.
        rows: with `settings.matched`, the rows of each prompt's images in `latents`; otherwise None.
        content: by setting, a digest of the images that are used, and of their captions if these are used too.

    Raises:
        UserError: there are no images, or a prompt has no image.
    """

    def __init__(
        self,
        settings: AdversarySettings,
        teacher: Teacher,
        prompts: Sequence[str],
        pairs: TeacherPairs | None = None,
    ) -> None:
        self.settings, self.pairs = settings, pairs if settings.of_teacher else None
        self.content: dict[str, str] = {}
        self.rows: list[list[int]] | None = None
        self.latents, self._images = torch.empty(0), None
        self._device = torch.device("cpu")
        self._null: Condition = None  # where the discriminator sees no prompt, the empty one
        self._table: PromptTable | None = None
        if settings.of_teacher:
            if self.pairs is None:
                raise UserError(
                    "adversary.of_teacher needs samples of the teacher; set pairs.count, for example to 10000"
                )
            return
        captioned = settings.matched or settings.conditional
        try:
            data = load_captioned(settings.data, teacher.image_size, captioned=captioned)
        except NoCaptionsError as error:
            if settings.matched:
                raise
            raise UserError(f"{error}; or set adversary.conditional to false") from error
        images = data.images
        self._captions = data.captions
        if settings.matched:
            of_caption: dict[str, list[int]] = defaultdict(list)
            for i, caption in enumerate(data.captions):
                of_caption[caption].append(i)
            for prompt in prompts:
                if prompt not in of_caption:
                    raise UserError(
                        f"adversary.data {settings.data.source} has no image of the prompt {prompt!r}; add one for "
                        "each prompt, or set adversary.matched to false"
                    )
            used_rows = list(dict.fromkeys(i for prompt in prompts for i in of_caption[prompt]))
            at = {row: i for i, row in enumerate(used_rows)}
            self.rows = [[at[i] for i in of_caption[prompt]] for prompt in prompts]
            images = images if used_rows == list(range(len(images))) else images[used_rows]
            counts = [len(rows) for rows in self.rows]
            used = digest(images) if max(counts, default=1) == 1 else digest(images, counts)
        else:
            used = digest(images, data.captions) if captioned else digest(images)
        self.content = {"adversary.data.source": used}
        if settings.data.captions is not None:  # the digest already depends on which image has which caption
            self.content["adversary.data.captions"] = used
        self._images = images

    def prepare(self, teacher: Teacher, null: Condition, device: torch.device) -> None:
        """Encode the images and embed the captions that are needed, on the device, where `null` is already."""
        self._device, self._null = device, None if self.settings.conditional else null
        if self._images is not None:
            self.latents, self._images = encoded(teacher.latents, self._images), None
        if self.pairs is None and not self.settings.matched and self.settings.conditional:
            self._table = embed_prompts(teacher, self._captions, device)

    def with_critic(self, network: Any) -> ScoreWithCritic:
        """The fake score's network with the head of the discriminator on it."""
        return ScoreWithCritic(network, self.settings.tap)

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        """The real latents of a batch as "real" and, if they have captions of their own, these as "real_cond".

        With `settings.matched` they are the images of the prompts; of several images of a prompt, one is drawn.
        """
        if self.pairs is not None:
            real, cond = self.pairs.of_prompts(records, random, "real")
            return {"real": real, "real_cond": cond}
        if self.rows is not None:
            choices = [self.rows[record] for record in records]
            several = max(len(choice) for choice in choices) > 1
            drawn = random.uniform("real").tolist() if several else [0.0] * len(choices)
            picked = [choice[int(u * len(choice))] for choice, u in zip(choices, drawn, strict=True)]
            return {"real": self.latents[picked].to(self._device)}
        rows = random.integers("real", len(self.latents)).tolist()
        latents = self.latents[rows].to(self._device)
        return {"real": latents} if self._table is None else {"real": latents, "real_cond": self._table.rows(rows)}

    def loss(
        self,
        x0: Tensor,
        cond: Condition,
        random: SampleRandom,
        schedule: Schedule,
        times: tuple[float, float],
        networks: dict[str, nn.Module],
    ) -> Loss:
        """The term that is added to the student's loss.

        Its gradient at x0 is that of the generator's loss, on the scale of a residual.

        Args:
            x0: samples of the student (B, C, h, w), with a graph.
            cond: their condition.
            random: random numbers of the batch.
            schedule: the teacher's schedule.
            times: range of the times of the noise, as fractions of the schedule.
            networks: the method's networks, with the fake score as "fake".
        """
        t = schedule.timestep(random.uniform("critic_time"), *times)
        made = x0.detach().requires_grad_()
        x_t = schedule.add_noise(made, random.normal("critic_noise", made.shape[1:]), t)
        critic: Any = unwrap(networks["fake"])
        logits = critic.logits(x_t, schedule.network_time(t), self._judging(cond, len(x_t)))
        (gradient,) = torch.autograd.grad(generator_loss(logits), made)  # at x0 alone; the fake score gets no gradient
        push = gradient * made.numel()
        return surrogate_loss(x0, self.settings.weight * push), {"adversarial_rms": rms(push)}

    def weights(
        self, x0: Tensor, t: Tensor, noise: Tensor, cond: Condition, schedule: Schedule, networks: dict[str, nn.Module]
    ) -> Tensor | None:
        """The weight of each sample in score distillation, of shape (B,); None where all are 1.

        Args:
            x0: samples (B, C, h, w); a graph on them is ignored.
            t: times at which they are judged, (B,).
            noise: their noise.
            cond: their condition.
            schedule: the teacher's schedule.
            networks: the method's networks, with the fake score as "fake".
        """
        if self.settings.divergence == "reverse_kl":
            return None
        critic: Any = unwrap(networks["fake"])
        with torch.no_grad():
            x_t = schedule.add_noise(x0.detach(), noise, t)
            logits = critic.logits(x_t, schedule.network_time(t), self._judging(cond, len(x_t)))
            return divergence_weights(logits, self.settings.divergence)

    def seen(
        self,
        batch: Batch,
        t: Tensor,
        random: SampleRandom,
        k: int,
        schedule: Schedule,
        networks: dict[str, nn.Module],
    ) -> SeenByBoth:
        """The fake score's network for its k-th update; it also judges the real latents, noised to the times t."""
        noise = random.normal(f"real_noise/{k}", batch["real"].shape[1:])
        real = schedule.add_noise(batch["real"], noise, t)
        return SeenByBoth(networks["fake"], real, self._judging(batch.get("real_cond"), len(real)), self._null)

    def _judging(self, cond: Condition, size: int) -> Condition:
        """The condition under which samples of the condition `cond` are judged."""
        return cond if self._null is None else expand(self._null, size)


class SeenByBoth:
    """The fake score's network, which also keeps the logits of the samples that it denoises and of real latents.

    Args:
        network: a `ScoreWithCritic`.
        real: real latents (B, C, h, w), noised.
        real_cond: their condition; None for that of the samples.
        made_cond: the one condition, of one row, under which samples are judged; None for their own.
    """

    def __init__(self, network: Any, real: Tensor, real_cond: Condition, made_cond: Condition = None) -> None:
        self._network, self._real, self._real_cond, self._made_cond = network, real, real_cond, made_cond
        self._logits: list[Tensor] = []

    def __call__(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        """Predict; x_t holds one or both passes of guidance, and the pass with the prompt comes last."""
        n = len(self._real)
        times = len(x_t) // n
        real = self._real.repeat(times, *[1] * (self._real.dim() - 1))
        real_cond = self._real_cond
        if real_cond is not None:
            real_cond = concatenate({f"pass {i}": real_cond for i in range(times)}, n)
        made_cond = None if self._made_cond is None else expand(self._made_cond, len(x_t))
        value, *both = self._network(x_t, time, cond, real, real_cond, made_cond)
        self._logits.extend(each[-n:] for each in both)
        prediction: Tensor = value
        return prediction

    def loss(self) -> Tensor:
        """The discriminator's loss."""
        made, real = self._logits
        return discriminator_loss(real, made)
