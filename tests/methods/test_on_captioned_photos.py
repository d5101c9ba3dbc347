"""Methods that need images, on a folder of captioned photographs of several sizes: a short run and an export."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_pipeline as tiny
import torch
from made import made
from PIL import Image

from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import (
    DMD2,
    Autoencoder,
    Consistency,
    LatentDiffusion,
    MeanFlow,
    SelfE,
    Shortcut,
    SiD,
    SwiftBrush,
)
from diffdistill.models.generate import generate
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

CAPTIONS = ["a red barn in snow", "two dogs on a beach", "an old clock", "bread and butter"]
SMALL = {"network__block_out_channels": (32, 32), "network__text_width": 32, "network__text_layers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher, prompts, an autoencoder, and four photographs of different sizes with captions beside them."""
    folder = tmp_path_factory.mktemp("photos")
    tiny.save_tiny_pipeline(folder / "teacher")
    (folder / "prompts.txt").write_text("a red barn in snow\nan old clock\n")
    (folder / "photos").mkdir()
    draw = np.random.default_rng(0)
    for i, caption in enumerate(CAPTIONS):
        pixels = np.kron(draw.integers(0, 256, (5 + i, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        Image.fromarray(pixels).save(folder / "photos" / f"photo {i}.jpg", quality=95)
        (folder / "photos" / f"photo {i}.txt").write_text(caption + "\n")
    return folder


def losses(method: object, run: Path) -> Path:
    run.mkdir()
    return Trainer(method, TrainingSettings(8, batch_size=4, cpu=True, log_every=1), run).fit()


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("kind", [DMD2, SwiftBrush, SiD])
def test_the_adversarial_term_on_photographs(folder: Path, tmp_path: Path, kind: type, matched: bool) -> None:
    method = made(
        kind, teacher__source=str(folder / "teacher"), prompts=str(folder / "prompts.txt"),
        adversary__data__source=str(folder / "photos"), adversary__matched=matched, fake__warmup=0, noise_ratio=2.5,
        **({"fake__lora__rank": 2} if kind is SwiftBrush else {}),
    )  # fmt: skip
    random = SampleRandom(0, range(4))
    batch = method.batch([0, 1, 0, 1], random)
    assert batch["real"].shape == (4, 4, 4, 4)
    if matched:  # each prompt's own photograph
        assert torch.equal(batch["real"][0], batch["real"][2]) and "real_cond" not in batch
    else:  # drawn for each sample, with its own caption
        rows = random.integers("real", 4).tolist()
        wanted = method.teacher.embed([CAPTIONS[row] for row in rows])
        torch.testing.assert_close(batch["real_cond"], wanted)
        torch.testing.assert_close(batch["real"], method.judge.adversary.latents[rows])
    exported = losses(method, tmp_path / "run")
    (images,) = list(generate(str(exported), ["an old clock"], 1, 1.0))
    assert images.shape[0] == 1 and bool(images.isfinite().all())


def test_of_several_photographs_of_a_prompt_each_is_drawn(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "photo 3.txt").write_text("an old clock\n")  # beside photo 2, which has that caption
    method = made(
        DMD2, teacher__source=str(folder / "teacher"), prompts=str(folder / "prompts.txt"),
        adversary__data__source=str(tmp_path / "photos"),
    )  # fmt: skip
    adversary = method.judge.adversary
    assert adversary.rows == [[0], [1, 2]] and len(adversary.latents) == 3
    real = adversary.batch([0, 1] * 20, SampleRandom(0, range(40)))["real"]
    assert all(torch.equal(row, adversary.latents[0]) for row in real[::2])
    clocks = [torch.equal(row, adversary.latents[1]) for row in real[1::2]]
    assert 4 < sum(clocks) < 16
    assert all(clock or torch.equal(row, adversary.latents[2]) for row, clock in zip(real[1::2], clocks, strict=True))


def test_a_prompt_without_its_photograph_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a green barn\n")
    with pytest.raises(UserError, match="has no image of the prompt 'a green barn'.*adversary.matched to false"):
        made(
            DMD2, teacher__source=str(folder / "teacher"), prompts=str(tmp_path / "prompts.txt"),
            adversary__data__source=str(folder / "photos"),
        )  # fmt: skip


def test_consistency_on_photographs(folder: Path, tmp_path: Path) -> None:
    teacher, photos = str(folder / "teacher"), str(folder / "photos")
    method = made(Consistency, teacher__source=teacher, data__source=photos, grid=50, teacher__attention="auto")
    assert method.latents.shape == (4, 4, 4, 4) and method.captions == CAPTIONS
    losses(method, tmp_path / "run")


@pytest.mark.parametrize("kind", [LatentDiffusion, SelfE, MeanFlow, Shortcut])
def test_models_from_scratch_on_photographs(folder: Path, tmp_path: Path, kind: type) -> None:
    options = {
        "data__source": str(folder / "photos"),
        "data__size": 32,
        "network__autoencoder": str(folder / "teacher/vae"),
    }
    method = made(kind, **options, **SMALL)
    batch = method.batch([0, 1, 2, 3], SampleRandom(0, range(4)))
    decoded = method.source.tokenizer.batch_decode(batch["ids"], skip_special_tokens=True)
    assert set(text.strip() for text in decoded) <= {*CAPTIONS, ""}  # no article, style or colour is added to them
    exported = losses(method, tmp_path / "run")
    (images,) = list(generate(str(exported), ["an old clock"], 2, 1.0))
    assert images.shape[-2:] == (32, 32)


def test_an_autoencoder_on_photographs(folder: Path, tmp_path: Path) -> None:
    method = made(
        Autoencoder, data__source=str(folder / "photos"), data__size=32, block_out_channels=(8, 8), latent_channels=4
    )
    assert method.images.shape == (4, 3, 32, 32)
    losses(method, tmp_path / "run")
