"""Teachers as they are found: half precision, variants, shards, sizes, parts that do not fit, ids of the hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline as tiny
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from made import made

from diffdistill.errors import UserError
from diffdistill.methods import DMD2, SiD, SwiftBrush
from diffdistill.models.families.stable_diffusion import StableDiffusion
from diffdistill.models.generate import generate
from diffdistill.models.hub import open_pipeline, wanted_files
from diffdistill.models.latents import load_autoencoder
from diffdistill.models.stock_check import load_checked_teacher
from diffdistill.models.teacher import load_teacher

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save_tiny_pipeline(tmp_path / "teacher", "epsilon")


def edit(file: Path, **values: Any) -> None:
    settings = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value != "remove"}))


def rewritten(folder: Path, to: Path, **options: Any) -> Path:
    dtype = options.pop("dtype", torch.float32)
    DiffusionPipeline.from_pretrained(folder).to(dtype).save_pretrained(to, **options)
    return to


def with_unet(folder: Path, to: Path, **settings: Any) -> Path:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(0)
    base = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    pipeline.unet = UNet2DConditionModel(**{**base, **settings})
    pipeline.save_pretrained(to)
    return to


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", [None, "fp16", "ema"])
def test_weights_are_float32_and_those_that_are_stored(
    folder: Path, tmp_path: Path, dtype: torch.dtype, variant: str | None
) -> None:
    stored = rewritten(folder, tmp_path / "stored", dtype=dtype, variant=variant)
    whole, half = (load_checked_teacher(str(f)).pipeline for f in (folder, stored))
    for part in PARTS:
        expected = getattr(whole, part).state_dict()
        for name, value in getattr(half, part).state_dict().items():
            assert value.dtype == expected[name].dtype
            assert torch.equal(value, expected[name].to(dtype).to(value.dtype) if value.is_floating_point() else value)
    (picture,) = generate(str(stored), ["red apple"], 1, 1.0)
    assert picture.isfinite().all()


def test_each_part_has_its_own_variant_and_plain_files_win(folder: Path, tmp_path: Path) -> None:
    plain = {name: value.clone() for name, value in load_teacher(str(folder)).pipeline.unet.state_dict().items()}
    half = rewritten(folder, tmp_path / "half", dtype=torch.float16, variant="fp16")
    shutil.copy(half / "unet/diffusion_pytorch_model.fp16.safetensors", folder / "unet")
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    shutil.copy(half / "vae/diffusion_pytorch_model.fp16.safetensors", folder / "vae")
    loaded = load_teacher(str(folder)).pipeline.unet.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in loaded.items())


def test_two_variants_and_no_plain_files_are_refused_by_name(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    for variant in ("fp16", "non_ema"):
        shutil.copy(weights, weights.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    weights.unlink()
    with pytest.raises(UserError, match="unet has weights of the variants fp16, non_ema and no plain ones"):
        load_teacher(str(folder))


def test_a_variant_that_no_part_has_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights of the variant 'fp61'; there are: plain files$"):
        load_teacher(str(folder), variant="fp61")
    half = rewritten(folder, tmp_path / "half", dtype=torch.float16, variant="fp16")
    with pytest.raises(UserError, match="no weights of the variant 'bf16'; there are: fp16$"):
        load_teacher(str(half), variant="bf16")
    expected = load_teacher(str(half)).pipeline.unet.state_dict()
    shutil.copy(half / "unet/diffusion_pytorch_model.fp16.safetensors", folder / "unet")  # one part that has it
    found = load_teacher(str(folder), variant="fp16").pipeline.unet.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("value", "says"), [(0, "is 0; it must be above 0"), (-1.0, "is -1.0"), ("x", "is 'x'; it must be a finite number")]
)
def test_a_scaling_factor_that_is_none_is_refused(folder: Path, value: Any, says: str) -> None:
    edit(folder / "vae/config.json", scaling_factor=value)
    with pytest.raises(UserError, match=f"teacher .*: the autoencoder's scaling_factor {says}"):
        load_teacher(str(folder))
    edit(folder / "vae/config.json", scaling_factor=None, shift_factor="x")
    with pytest.raises(UserError, match="the autoencoder's shift_factor is 'x'; it must be a finite number"):
        load_teacher(str(folder))
    edit(folder / "vae/config.json", shift_factor=None)
    assert (load_teacher(str(folder)).latents.scale, load_teacher(str(folder)).latents.shift) == (1.0, 0.0)


def test_an_autoencoder_that_decodes_to_nan_is_refused(folder: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias[0] = float("nan")
    pipeline.save_pretrained(folder)
    with pytest.raises(UserError, match="the images of its autoencoder are not finite"):
        load_checked_teacher(str(folder))


@pytest.mark.parametrize("steps", ["x", 0, 10.5])
def test_a_number_of_times_that_is_none_is_one_line(folder: Path, steps: Any) -> None:
    edit(folder / "scheduler/scheduler_config.json", num_train_timesteps=steps)
    with pytest.raises(UserError, match=f"num_train_timesteps is {steps!r}; it must be a whole number from 1"):
        load_teacher(str(folder))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_put_together(folder: Path, tmp_path: Path, variant: str | None) -> None:
    sharded = rewritten(folder, tmp_path / "sharded", max_shard_size="20KB", variant=variant)
    assert len(list((sharded / "unet").glob("*.safetensors"))) > 1
    whole, parts = (load_teacher(str(f)).pipeline for f in (folder, sharded))
    for part in PARTS:
        expected = getattr(whole, part).state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in getattr(parts, part).state_dict().items())
    next((sharded / "unet").glob("*-00002-of-*")).unlink()
    with pytest.raises(UserError, match="its unet cannot be read"):
        load_teacher(str(sharded))


@pytest.mark.parametrize(("size", "shape"), [((4, 8), (4, 4, 8)), ((8, 4), (4, 8, 4)), (8, (4, 8, 8))])
@pytest.mark.parametrize("method", [SwiftBrush, SiD, DMD2])
def test_oblong_pictures_are_trained_exported_and_generated(
    folder: Path, tmp_path: Path, size: Any, shape: tuple[int, ...], method: Callable[..., Any]
) -> None:
    oblong = with_unet(folder, tmp_path / "oblong", sample_size=size)
    (tmp_path / "prompts.txt").write_text("red apple\n")
    student = made(method, teacher__source=str(oblong), prompts=str(tmp_path / "prompts.txt"))
    assert student.teacher.latent_shape == shape
    assert student.validate().images.shape[1:] == (3, 2 * shape[1], 2 * shape[2])
    student.export(tmp_path / "export")
    (picture,) = generate(str(tmp_path / "export"), ["red apple"], 1, 1.0)
    assert picture.shape == (1, 3, 2 * shape[1], 2 * shape[2])


@pytest.mark.parametrize("size", [None, [4], "four", [4.0, 4.0], 0, [4, 8, 4]])
def test_no_size_or_a_wrong_one_is_one_line(folder: Path, size: Any) -> None:
    edit(folder / "unet/config.json", sample_size=size)
    with pytest.raises(UserError) as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value)


def test_a_size_that_the_stock_pipeline_refuses_is_refused(folder: Path, tmp_path: Path) -> None:
    odd = with_unet(folder, tmp_path / "odd", sample_size=5)
    with pytest.raises(UserError, match="divisible by 8"):
        load_checked_teacher(str(odd))
    with pytest.raises(UserError, match="cannot draw images: .*divisible by 8"):
        next(generate(str(odd), ["red apple"], 1, 1.0))


def test_a_learned_variance_is_refused(folder: Path, tmp_path: Path) -> None:
    learned = with_unet(folder, tmp_path / "learned", out_channels=8)
    with pytest.raises(UserError, match="predicts 8 channels from 4"):
        load_checked_teacher(str(learned))
    with pytest.raises(UserError, match="DDIMScheduler with these settings does not take them"):
        next(generate(str(learned), ["red apple"], 1, 1.0))


def test_a_tokenizer_without_a_length_has_the_text_encoders(folder: Path, tmp_path: Path) -> None:
    expected = load_teacher(str(folder)).embed(["red apple", "blue car " * 20])
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length="remove")
    teacher = load_checked_teacher(str(folder))
    assert torch.equal(teacher.embed(["red apple", "blue car " * 20]), expected)
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length=77)
    with pytest.raises(UserError, match="model_max_length 77, but the text encoder reads at most 8"):
        load_teacher(str(folder))


@pytest.mark.parametrize("more", [["<toy>"], ["<a>", "<b>", "<c>"], ["apple pie"]])
def test_tokens_that_the_text_encoder_has_no_embedding_of_are_one_line(folder: Path, more: list[str]) -> None:
    pipeline = load_teacher(str(folder)).pipeline
    rows = len(pipeline.tokenizer)
    pipeline.tokenizer.add_tokens(more)
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    last = rows + len(more) - 1
    with pytest.raises(UserError, match=f"token ids up to {last}, but .* of only {rows} tokens") as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value)
    pipeline.text_encoder.resize_token_embeddings(last + 1)
    pipeline.text_encoder.save_pretrained(folder / "text_encoder")
    assert load_checked_teacher(str(folder)).embed(["a <toy>"]).shape[1] == 8  # with an embedding of each it is read


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("unet/config.json", {"_class_name": "FancyUNet"}, "its unet is a FancyUNet"),
        ("vae/config.json", {"_class_name": "AutoencoderKLWan"}, "its vae is a AutoencoderKLWan"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "its text_encoder is a T5Enc"),
        ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}, "WithProjection"),
        ("model_index.json", {"unet": [None, None]}, "names no unet"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline; Stable Diffusion 1.x, 2.x, SDXL and"),
        (
            "model_index.json",
            {"_class_name": None},
            "is a None; Stable Diffusion 1.x, 2.x, SDXL and SANA are supported",
        ),
        (
            "model_index.json",
            {"vae": ["diffusers", "AutoencoderTiny"]},
            "AutoencoderTiny, as its model_index.json says",
        ),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny, as its vae/config.json says"),
        ("vae/config.json", {"_class_name": "VQModel"}, "its vae is a VQModel.* expected AutoencoderKL$"),
        ("unet/config.json", {"block_out_channels": "wide"}, "its unet cannot be read"),
        ("unet/config.json", {"down_block_types": ["NoBlock", "NoBlock"]}, "its unet cannot be read"),
    ],
)
def test_other_classes_and_broken_settings_are_one_line(
    folder: Path, file: str, change: dict[str, Any], says: str
) -> None:
    edit(folder / file, **change)
    with pytest.raises(UserError, match=says) as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value)


def test_a_part_that_is_not_there_is_said_to_be_missing(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(UserError, match="its text_encoder is missing: there is no folder text_encoder$"):
        load_teacher(str(folder))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("left", [0, 7, 1000])
def test_torn_weights_are_one_line_that_names_the_part(folder: Path, part: str, left: int) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(UserError, match=f"its {part} cannot be read") as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["unet/config.json", "model_index.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_torn_settings_are_one_line_that_names_the_file(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=file):
        load_teacher(str(folder))


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_not_there_are_never_made_up(folder: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    gone = sorted(weights)[len(weights) // 2]
    save_file({name: value for name, value in weights.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"its {part} file lacks 1 weights"):
        load_teacher(str(folder))


def test_what_nothing_here_uses_need_not_be_there(folder: Path) -> None:
    edit(
        folder / "model_index.json",
        feature_extractor=["transformers", "CLIPImageProcessor"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
    )
    load_checked_teacher(str(folder))


def test_a_tiny_autoencoder_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    pipeline.vae = AutoencoderTiny(**widths, **blocks)
    pipeline.save_pretrained(tmp_path / "tiny")
    with pytest.raises(UserError, match="its vae is a AutoencoderTiny, as its .*; expected AutoencoderKL$"):
        load_teacher(str(tmp_path / "tiny"))
    with pytest.raises(UserError, match=r"^autoencoder .*tiny/vae is a AutoencoderTiny, as its config.json says"):
        load_autoencoder(str(tmp_path / "tiny/vae"))


# ---- an autoencoder alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [".", "./", "../vae", "../../teacher/vae"])
def test_an_autoencoder_is_found_by_whatever_its_folder_is_called(
    folder: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    expected = load_teacher(str(folder)).pipeline.vae.state_dict()
    monkeypatch.chdir(folder / "vae")
    found = load_autoencoder(named).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda vae: (vae / "config.json").unlink(), "no autoencoder at vae: config.json is missing"),
        (lambda vae: (vae / "config.json").write_text("{"), "no autoencoder at vae: config.json cannot be read"),
        (lambda vae: (vae / "diffusion_pytorch_model.safetensors").unlink(), "autoencoder vae has no .* weights"),
        (lambda vae: (vae / "diffusion_pytorch_model.safetensors").write_bytes(b"1"), "at vae: it cannot be read"),
        (lambda vae: shutil.rmtree(vae), "no autoencoder at vae: expected a folder"),
    ],
)
def test_what_is_wrong_with_an_autoencoder_is_said_of_an_autoencoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], Any], says: str
) -> None:
    monkeypatch.chdir(folder)
    spoil(folder / "vae")
    with pytest.raises(UserError, match=says) as caught:
        load_autoencoder("vae")
    assert not any(word in str(caught.value) for word in ("teacher", "pipeline at", "\n"))


# ---- the hub ------------------------------------------------------------------------------------------------------


def test_offline_a_hub_id_is_taken_from_the_cache_or_said_to_be_out_of_reach(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    with pytest.raises(UserError, match="the hub cannot be reached"):
        open_pipeline("somebody/something")
    snapshot, commit = cache / "models--somebody--something", "0" * 40
    shutil.copytree(folder, snapshot / "snapshots" / commit)
    (snapshot / "refs").mkdir()
    (snapshot / "refs/main").write_text(commit)
    assert load_teacher("somebody/something").digest() == load_teacher(str(folder)).digest()
    (snapshot / "snapshots" / commit / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="vae has no .* weights in the cached copy, and the hub cannot be reached"):
        load_teacher("somebody/something")


def test_of_a_repository_only_what_is_read_is_downloaded() -> None:
    stem = "unet/diffusion_pytorch_model"
    names = ["model_index.json", "v1-5-pruned.ckpt", f"{stem}.bin", f"{stem}.safetensors", f"{stem}.fp16.safetensors",
             "vae/diffusion_pytorch_model.fp16.safetensors", "unet/config.json", "safety_checker/model.safetensors",
             "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model.safetensors.index.json",
             "tokenizer/vocab.json", "scheduler/scheduler_config.json"]  # fmt: skip
    assert set(names) - set(wanted_files(names, StableDiffusion.parts)) == {
        "v1-5-pruned.ckpt", f"{stem}.bin", f"{stem}.fp16.safetensors", "safety_checker/model.safetensors"
    }  # fmt: skip
