"""Every config of the project builds: those of large models with a tiny teacher of the same family in its place."""

from pathlib import Path

import numpy as np
import pytest
import tiny_families
import tiny_pipeline as tiny
import torch
import yaml
from PIL import Image

from diffdistill.cli.main import main
from diffdistill.codec.network import CodecNetwork, CodecSettings
from diffdistill.codec.saved import save_codec
from diffdistill.text3d.things.procedural import THINGS
from diffdistill.text3d.things.rendering import RenderSettings, procedural_views
from diffdistill.text3d.things.view_files import views_as_bytes

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand-ins")
    tiny.save_tiny_pipeline(folder / "sd", "epsilon")
    tiny.save_tiny_pipeline(folder / "mvdream", "epsilon", cameras=True)
    tiny.save_tiny_pipeline(folder / "fashion")
    np.savez(folder / "clothes.npz", np.zeros((4, 32, 32, 3), np.uint8))
    (folder / "clothes.csv").write_text("caption\n" + "shirt\nbag\n" * 2)
    tiny_families.save_tiny_sdxl(folder / "sdxl")
    tiny_families.save_tiny_sana(folder / "sana")
    tiny_families.save_tiny_sana(folder / "sana32", stages=6)  # with a 32-fold autoencoder
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    (folder / "photos").mkdir()
    (folder / "things").mkdir()
    for name in list(THINGS)[:8]:
        views = procedural_views(name, RenderSettings(size=32, instances=1, rings=1))
        (folder / "things" / f"{name}.npz").write_bytes(views_as_bytes(views))
    save_codec(CodecNetwork(CodecSettings(), range(192), torch.ones(192)), folder / "codec")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (260, 300, 3), np.uint8)).save(folder / "photos/a.png")
    return folder


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_it_builds(config: Path, stand_ins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["--output_dir", str(tmp_path / "run"), "--training.cpu", "true"]
    arguments = yaml.safe_load(config.read_text())["method"]["init_args"]
    if not arguments.get("teacher", {"source": "assets/"})["source"].startswith("assets/"):
        overrides += ["--method.teacher.source", str(stand_ins / config.stem.split("_")[0].rstrip("0123456789"))]
        overrides += ["--method.teacher.variant", "null"]  # the stand-ins are plain files
        overrides += ["--method.prompts", str(stand_ins / "prompts.txt")]
    if config.stem.startswith("codec_"):
        overrides += ["--method.data.source", str(stand_ins / "photos")]
        for name in {"codec", "init_from"} & set(arguments):  # what another config trains
            overrides += [f"--method.{name}", str(stand_ins / "codec")]
    if config.stem in ("things_multi_view", "models_multi_view"):  # what train/things.py renders
        overrides += ["--method.data.source", str(stand_ins / "things"), "--method.data.natural", "false"]
    if config.stem in ("things_text_to_3d", "models_text_to_3d"):  # what the other config trains
        overrides += ["--method.prior=assets/text3d_prior", "--method.prompts=configs/prompts/things.txt"]
    if config.stem == "codec_sana":
        overrides += [f"--method.{part}.source={stand_ins / 'sana32'}" for part in ("autoencoder", "transformer")]
    if config.stem == "emoji_teacher":  # its recipe starts from a run of its own
        overrides += ["--method.network.autoencoder", "assets/teacher/vae"]
    if config.stem == "emoji_variety_images":  # the same
        overrides += ["--method.start", "assets/student"]
    if config.stem in ("fashion_autoencoder", "fashion_teacher", "cifar_ddae"):  # images that are made or one's own
        overrides += ["--method.data.source", str(stand_ins / "clothes.npz")]
    if config.stem in ("fashion_teacher", "cifar_ddae"):
        overrides += ["--method.data.captions", str(stand_ins / "clothes.csv")]
        overrides += ["--method.network.autoencoder", str(stand_ins / "fashion" / "vae")]
    assert main(["train", str(config), "--dry_run", *overrides]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "M of them trained" in said and "steps of" in said and not (tmp_path / "run").exists()


def test_parameter_groups_in_a_file(stand_ins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = yaml.safe_load((ROOT / "configs" / "sd21_swiftbrush.yaml").read_text())
    recipe["method"]["init_args"] |= {
        "teacher": {"source": str(stand_ins / "sd")},
        "prompts": str(stand_ins / "prompts.txt"),
        "optimizer": {"learning_rate": 1e-5, "groups": [{"pattern": "conv_in", "learning_rate": 1e-6}]},
    }
    recipe["training"] |= {"samples": 2, "batch_size": 2, "cpu": True, "mixed_precision": "no"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = ["train", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]
    assert main(run) == 0, capsys.readouterr().err
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"]["init_args"]["optimizer"]
    (group,) = kept["groups"]
    assert group.get("init_args", group)["pattern"] == "conv_in"
    assert (
        main([*run, "--overwrite", "true", "--config", str(tmp_path / "run" / "config.yaml")]) == 0
    )  # it reads itself
    recipe["method"]["init_args"]["optimizer"]["groups"][0]["pattern"] = "no such name"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main([*run, "--overwrite", "true"]) == 2
    assert "takes no parameter of the network student" in capsys.readouterr().err


def test_the_cifar_recipe_has_the_published_number_of_parameters() -> None:
    from diffusers import AutoencoderKL

    from diffdistill.methods.new_network import NetworkSettings, new_unet
    from diffdistill.models.latents import LatentSpace
    from diffdistill.models.self_conditioning import SelfConditioning

    network = yaml.safe_load((ROOT / "configs" / "cifar_ddae.yaml").read_text())["method"]["init_args"]["network"]
    own = SelfConditioning(**network.pop("self_conditioning"))
    with torch.device("meta"):
        space = LatentSpace(AutoencoderKL(latent_channels=3, block_out_channels=(64,)))
        plain, made = (
            sum(p.numel() for p in new_unet(NetworkSettings(**network, **more), space, (32, 32)).parameters())
            for more in ({}, {"self_conditioning": own})
        )
    assert plain / 39.5e6 == pytest.approx(1, abs=2e-3)  # EDM2-C
    assert 1 < made / plain < 1.02
