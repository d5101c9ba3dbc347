"""What holds of every family: our denoiser, export and generation are the stock pipeline's."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diffdistill.diffusion import FlowSchedule, guided
from diffdistill.distill.backward_simulation import few_step_sample, few_step_times
from diffdistill.models.backbone import full_copy
from diffdistill.models.export import export_few_steps, export_one_step
from diffdistill.models.generate import generate
from diffdistill.models.stock_check import load_checked_teacher
from diffdistill.models.taps import read, stop_at
from diffdistill.models.teacher import Teacher

PROMPTS = ["a red apple", "blue car"]


def stock(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def options(teacher: Teacher) -> dict[str, Any]:
    _, height, width = teacher.latent_shape
    factor = teacher.latents.factor
    return teacher.family.call_options(teacher.pipeline, height * factor, width * factor)


@torch.no_grad()
def denoiser_is_the_pipelines(folder: Path, scale: float = 3.0) -> None:
    """In a guided call of the pipeline itself, every prediction is our guided denoiser's."""
    teacher, pipeline = load_checked_teacher(str(folder)), stock(folder)
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(network: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        x, time = (given[i] if len(given) > i else named[name] for i, name in enumerate(("hidden_states", "timestep")))
        calls.append((x, time, output[0]))

    network = getattr(pipeline, teacher.family.network)
    network.register_forward_hook(keep, with_kwargs=True)
    pipeline(PROMPTS, num_inference_steps=3, guidance_scale=scale, output_type="latent", **options(teacher))
    assert len(calls) == 3
    cond, null = teacher.embed(PROMPTS), teacher.null()
    for x, time, output in calls:
        unconditional, conditional = output[:, : x.shape[1]].chunk(2)
        expected = unconditional + scale * (conditional - unconditional)
        t = time.flatten()[0]
        if isinstance(teacher.schedule, FlowSchedule):
            t = t.double() / teacher.schedule.num_train_timesteps / getattr(network.config, "timestep_scale", 1)
        else:
            t = t.round().long()
        found = guided(teacher.denoiser(), x[len(PROMPTS) :], t.expand(len(PROMPTS)), cond, null, scale)
        torch.testing.assert_close(getattr(found, teacher.prediction_type), expected, rtol=1e-5, atol=1e-5)
        other = guided(teacher.denoiser(), x[len(PROMPTS) :], t.expand(len(PROMPTS)), cond, cond, scale)
        assert (getattr(other, teacher.prediction_type) - expected).abs().max() > 1e-4  # guidance has a say


def student_of(teacher: Teacher) -> Any:
    """A copy of the teacher's network that is another one."""
    student = full_copy(teacher.backbone).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in student.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student


@torch.no_grad()
def export_is_the_student(folder: Path, to: Path) -> None:
    """Plain diffusers draws from an exported student what our code does, in one step and in several."""
    teacher = load_checked_teacher(str(folder))
    student, last = student_of(teacher), teacher.schedule.last
    z = torch.randn((2, *teacher.latent_shape), generator=torch.Generator().manual_seed(0))
    cond, denoiser = teacher.embed(PROMPTS), teacher.denoiser(student)

    export_one_step(teacher, student.inner, last, to / "one")
    again = {"guidance_scale": 1.0, "latents": z, "output_type": "pt", **options(teacher)}
    pipeline = stock(to / "one")
    assert type(pipeline) is type(teacher.pipeline)
    ours = teacher.latents.images(denoiser(z, torch.tensor(last), cond).x0)
    theirs = pipeline(PROMPTS, num_inference_steps=1, **again).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    start = teacher.latents.images(teacher.denoiser()(z, torch.tensor(last), cond).x0)
    assert (start - ours).abs().max() > 1e-3  # it is the student's and not the teacher's

    steps = 4
    export_few_steps(teacher, student.inner, last, steps, to / "few")
    times = few_step_times(teacher.schedule, last, steps)
    generator = torch.Generator().manual_seed(5)
    noises = [torch.randn(z.shape, generator=generator) for _ in range(steps - 1)]
    ours = teacher.latents.images(few_step_sample(denoiser, z, times, noises, cond))
    generator = torch.Generator().manual_seed(5)
    theirs = stock(to / "few")(PROMPTS, num_inference_steps=steps, generator=generator, **again).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@torch.no_grad()
def generation_is_the_pipelines(folder: Path, steps: int = 2, guidance: float = 3.0) -> None:
    """`generate` draws what the pipeline does, given one generator a prompt, at the network's own size."""
    teacher = load_checked_teacher(str(folder))
    (ours,) = generate(str(folder), PROMPTS, steps, guidance, seed=7)
    generators = [torch.Generator().manual_seed(7 + i) for i in range(len(PROMPTS))]
    asked = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generators, "output_type": "pt"}
    theirs = stock(folder)(PROMPTS, **asked, **options(teacher)).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    _, height, width = teacher.latent_shape
    assert ours.shape == (2, 3, height * teacher.latents.factor, width * teacher.latents.factor)


def taps_are_maps(teacher: Teacher) -> None:
    """Every tap gives a map of the channels that are announced; a pass that ends there gives the same."""
    x = torch.randn((2, *teacher.latent_shape), generator=torch.Generator().manual_seed(2))
    time = teacher.schedule.network_time(torch.full((2,), teacher.schedule.last)).to(torch.float32)
    cond, backbone = teacher.embed(PROMPTS), teacher.backbone
    names = list(backbone.taps())
    assert backbone.bottleneck in names
    value, features = read(backbone, names, x, time, cond)
    torch.testing.assert_close(value, backbone(x, time, cond))
    assert list(features) == names
    for name in names:
        assert features[name].dim() == 4 and features[name].shape[:2] == (2, backbone.tap_channels(name)), name
        assert torch.equal(stop_at(backbone, name, x, time, cond), features[name]), name
    assert not any(module._forward_hooks for module in backbone.modules())


def digests_tell_parts_apart(folder: Path) -> None:
    """The digest changes with a weight of any network, and is the same for the same files."""
    first = load_checked_teacher(str(folder)).digest()
    again = load_checked_teacher(str(folder))
    assert again.digest() == first
    for part in again.parts().values():
        before = again.digest()
        with torch.no_grad():
            next(part.parameters()).view(-1)[0] += 1
        assert again.digest() != before
