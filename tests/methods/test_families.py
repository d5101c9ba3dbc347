"""Teachers of other families in training: first loss, exact resume, checkpointing, critics, exports, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from family_checks import options
from made import made
from PIL import Image
from safetensors.torch import load_file
from tiny_families import save_tiny_sana, save_tiny_sdxl

from diffdistill import methods
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

FAMILIES = {"sdxl": save_tiny_sdxl, "sana": save_tiny_sana}
PROMPTS = ["red apple", "blue car", "a dog"]
FAST = {"optimizer__learning_rate": 1e-3, "fake__optimizer__learning_rate": 1e-3}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher, prompts, and an image of each prompt."""
    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](folder / "teacher")
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for i, prompt in enumerate(PROMPTS):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        (folder / "images" / f"{i}.txt").write_text(prompt + "\n")
    return folder


def build(kind: str, folder: Path, **more: Any) -> Any:
    torch.manual_seed(0)
    settings = {"teacher__source": str(folder / "teacher"), "prompts": str(folder / "prompts.txt"), **more}
    return made(getattr(methods, kind), **settings)


def first_loss(method: Any, n: int = 4) -> torch.Tensor:
    random = SampleRandom(0, range(n))
    loss: torch.Tensor = method.phases(0)[0].loss(method.batch([i % 3 for i in range(n)], random), random, {})[0]
    return loss


@pytest.mark.parametrize("fake", ["lora", "full"])
def test_vsd_vanishes_before_the_fake_score_has_learnt(folder: Path, fake: str) -> None:
    """Teacher and fake score are then one network, guided alike."""
    assert first_loss(build("SwiftBrush", folder, fake__network=fake, fake__lora__rank=2)).item() < 1e-10


@pytest.mark.parametrize("fake", ["lora", "full"])
def test_twenty_steps_resume_to_the_bit_and_the_export_is_the_student(folder: Path, tmp_path: Path, fake: str) -> None:
    def run(name: str, samples: int, resume: str | None = None) -> tuple[Any, Path]:
        (tmp_path / name).mkdir()
        method = build("SwiftBrush", folder, fake__network=fake, fake__lora__rank=2, **FAST)
        settings = TrainingSettings(samples, batch_size=2, cpu=True, checkpoint_every=20, ema_decay=0.0, log_every=1)
        return method, Trainer(method, settings, tmp_path / name, resume).fit()

    whole, export = run("whole", 40)
    groups = sorted(f.stem for f in (tmp_path / "whole" / "checkpoint-0000000040").glob("*.safetensors"))
    assert len(groups) > 1
    run("rest", 40, str(tmp_path / "whole" / "checkpoint-0000000020"))
    for group in groups:
        ends = [tmp_path / name / "checkpoint-0000000040" / f"{group}.safetensors" for name in ("whole", "rest")]
        one, other = (load_file(end) for end in ends)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), group

    pipeline: Any = DiffusionPipeline.from_pretrained(export)
    pipeline.set_progress_bar_config(disable=True)
    teacher, student = whole.teacher, whole.networks["student"]
    z = torch.randn((3, *teacher.latent_shape), generator=torch.Generator().manual_seed(0))
    asked = {"num_inference_steps": 1, "guidance_scale": 1.0, "latents": z, "output_type": "pt"}
    with torch.no_grad():
        theirs = pipeline(PROMPTS, **asked, **options(teacher)).images
        x0, start = (
            teacher.denoiser(network)(z, torch.tensor(teacher.schedule.last), whole.embedded([0, 1, 2])).x0
            for network in (student, build("SwiftBrush", folder).teacher.backbone)
        )
    torch.testing.assert_close(teacher.latents.images(x0), theirs, rtol=1e-3, atol=1e-3)
    assert (x0 - start).abs().max() > 1e-2  # it has moved


@pytest.mark.parametrize("kind", ["DMD2", "SiD", "ASD", "SwiftBrush"])
def test_checkpointing_and_micro_batches_give_the_same_gradient(folder: Path, kind: str) -> None:
    more = {"noise_ratio": None} if kind == "SiD" else {"steps": 2} if kind == "DMD2" else {}
    gradients = []
    for checkpointing in (False, True):
        method = build(kind, folder, **more)
        if checkpointing:
            method.enable_gradient_checkpointing()
        for network in method.networks.values():
            network.train()
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            for p in method.networks["fake" if "fake" in method.networks else "student"].parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=generator), alpha=float(p.requires_grad))
        first_loss(method).backward()
        gradients.append([p.grad for p in method.networks["student"].parameters()])
    pairs = [(a, b) for a, b in zip(*gradients, strict=True) if a is not None]
    assert pairs and max(a.abs().max().item() for a, _ in pairs) > 0
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tap", [None, "first"])
def test_a_critic_reads_the_bottleneck_or_another_tap(folder: Path, tmp_path: Path, tap: str | None) -> None:
    name = {"sdxl": "down.0", "sana": "block.0"}[folder.name.rstrip("0123456789")] if tap else None
    method = build("DMD2", folder, adversary__data__source=str(folder / "images"), adversary__tap=name, **FAST)
    fake = method.networks["fake"]
    assert fake.tap == (name or method.teacher.backbone.bottleneck)
    random = SampleRandom(0, range(3))
    batch = method.batch([0, 1, 2], random)
    assert batch["real"].shape == (3, *method.teacher.latent_shape)
    Trainer(method, TrainingSettings(6, batch_size=3, cpu=True, log_every=1), tmp_path).fit()


@pytest.mark.parametrize("kind", ["BOOT", "Progressive", "Consistency", "SelfE", "MeanFlow"])
def test_what_a_method_cannot_take_is_one_line(folder: Path, kind: str) -> None:
    sana = folder.name.startswith("sana")
    if kind in ("Progressive", "Consistency") and not sana:
        pytest.skip("SDXL has a variance-preserving schedule")
    teacher, images = str(folder / "teacher"), str(folder / "images")
    settings: dict[str, Any] = {"teacher__source": teacher, "prompts": str(folder / "prompts.txt")}
    if kind == "Consistency":
        settings = {"teacher__source": teacher, "data__source": images}
    if kind in ("SelfE", "MeanFlow"):
        settings = {"network__init_from": teacher, "data__source": images}
        settings["network__autoencoder"] = str(folder / "teacher/vae")
    with pytest.raises(UserError, match="Stable Diffusion|variance-preserving") as caught:
        made(getattr(methods, kind), **settings)
    assert "\n" not in str(caught.value)


def test_a_flow_matching_student_starts_from_noise_alone(tmp_path: Path) -> None:
    save_tiny_sana(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("red apple\n")
    with pytest.raises(UserError, match="noise_ratio is 2.5; a flow-matching teacher starts from noise alone"):
        build("SiD", tmp_path)


def test_half_an_export_loads_and_draws(folder: Path, tmp_path: Path) -> None:
    method = build("SwiftBrush", folder, export__half=True)
    method.export(tmp_path / "export")
    family = method.teacher.family
    for part, dtype in ((family.network, torch.float16), (family.autoencoder, torch.float16), ("text_encoder", None)):
        (file,) = (tmp_path / "export" / part).glob("*.safetensors")
        assert {v.dtype for v in load_file(file).values() if v.is_floating_point()} == {dtype or torch.float32}
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "export")
    pipeline.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}
    assert pipeline(PROMPTS[:1], **asked, **options(method.teacher)).images.isfinite().all()
