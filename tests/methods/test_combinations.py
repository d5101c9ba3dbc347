"""Settings that meet each other: precisions, adapters, groups of parameters from a config, sizes of images, caches."""

from pathlib import Path

import numpy as np
import pytest
import tiny_families
import tiny_pipeline as tiny
import torch
import yaml
from made import made
from PIL import Image
from safetensors.torch import load_file

from diffdistill.cli.train import build_method, parse
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import BOOT, DMD2, Consistency, SiD, SwiftBrush
from diffdistill.models.cached_latents import encoded
from diffdistill.models.latents import LatentSpace
from diffdistill.models.prompt_table import _key
from diffdistill.models.teacher import load_teacher
from diffdistill.training.optimizers import make_optimizer, set_learning_rates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("combinations")
    tiny.save_tiny_pipeline(folder / "teacher")
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    return folder


def build(kind: type, folder: Path, **more: object) -> object:
    return made(kind, teacher__source=str(folder / "teacher"), prompts=str(folder / "prompts.txt"), **more)


def test_groups_of_parameters_come_from_the_config(folder: Path, tmp_path: Path) -> None:
    def config(**group: object) -> str:
        arguments = {
            "teacher": {"source": str(folder / "teacher")},
            "prompts": str(folder / "prompts.txt"),
            "optimizer": {"learning_rate": 1e-3, "groups": [group]},
        }
        recipe = {"method": {"class_path": "ASD", "init_args": arguments}, "training": {"samples": 4, "batch_size": 4}}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(recipe))
        return str(tmp_path / "c.yaml")

    _, namespace = parse([config(pattern="time_embedding", learning_rate=1e-4), "--output_dir", str(tmp_path / "run")])
    method = build_method(namespace)
    optimizer = make_optimizer("student", method.networks["student"], method.optimizers["student"])
    set_learning_rates(optimizer, method.optimizers["student"], 1.0)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [1e-4, 1e-3]
    _, namespace = parse([config(pattern="(", learning_rate=1e-4), "--output_dir", str(tmp_path / "run")])
    with pytest.raises(UserError, match=r"method.optimizer.groups\[0\]: the pattern '\(' is no regular expression"):
        build_method(namespace)


@pytest.mark.parametrize("kind", [BOOT, SwiftBrush, DMD2])
def test_a_teacher_in_bfloat16_trains_a_student_in_float32(folder: Path, kind: type) -> None:
    method = build(kind, folder, teacher__dtype="bfloat16")
    random = SampleRandom(0, range(2))
    loss, _ = method.phases(0)[0].loss(method.batch([0, 1], random), random, {})
    assert loss.dtype == torch.float32 and bool(loss.isfinite())
    assert {p.dtype for p in method.networks["student"].parameters()} == {torch.float32}


def test_gradients_in_float16_are_refused(folder: Path) -> None:
    for kind, more in ((SiD, {}), (SwiftBrush, {"fake__lora__rank": 2})):
        with pytest.raises(UserError, match="to bfloat16"):
            build(kind, folder, teacher__dtype="float16", **more)


def test_adapters_that_are_off_cannot_be_computed_again(folder: Path) -> None:
    method = build(SiD, folder, fake__network="lora", fake__lora__rank=2)
    with pytest.raises(UserError, match="set fake.network to full"):
        method.enable_gradient_checkpointing()


def test_adversarial_settings_without_images_are_refused(folder: Path) -> None:
    for more in ({"adversary__weight": 1e-3}, {"adversary__tap": "mid"}, {"adversary__data__captions": "a.txt"}):
        with pytest.raises(UserError, match="there is no adversarial term; name images in data.source"):
            build(DMD2, folder, **more)


def test_images_smaller_than_the_models_are_enlarged_only_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(np.full((6, 6, 3), 90 * i, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a barn\n")
    teacher, data = {"teacher__source": str(folder / "teacher")}, {"data__source": str(tmp_path)}
    with pytest.raises(UserError, match="6 by 6 pixels, but the model takes 8 by 8; .* set size to 8"):
        made(Consistency, **teacher, **data)
    assert made(Consistency, **teacher, **data, data__size=8).latents.shape == (2, 4, 4, 4)


def test_caches_tell_apart_what_only_settings_tell(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr("diffdistill.models.cached_latents.WORTH_KEEPING", 1)
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    autoencoder = load_teacher(str(folder / "teacher")).latents.autoencoder
    plain = encoded(LatentSpace(autoencoder), images)
    autoencoder.register_to_config(shift_factor=0.5)
    shifted = encoded(LatentSpace(autoencoder), images)
    torch.testing.assert_close(shifted, plain - 0.5 * autoencoder.config.scaling_factor)
    tiny_families.save_tiny_sdxl(tmp_path / "sdxl")
    teacher = load_teacher(str(tmp_path / "sdxl"))
    small = _key(teacher, ["red apple"], "cpu")
    teacher.backbone.inner.register_to_config(sample_size=8)  # its conditions hold the size of its images
    assert _key(teacher, ["red apple"], "cpu") != small


def test_a_half_export_halves_the_network_whatever_its_folder_is_called(tmp_path: Path) -> None:
    tiny_families.save_tiny_sana(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("red apple\nblue car\n")
    build(SwiftBrush, tmp_path, export__half=True, fake__network="full").export(tmp_path / "export")
    for part in ("transformer", "vae"):
        for file in (tmp_path / "export" / part).glob("*.safetensors"):
            assert {v.dtype for v in load_file(file).values() if v.is_floating_point()} == {torch.float16}
