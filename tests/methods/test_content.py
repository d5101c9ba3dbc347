"""A method's content: a digest for each argument that is a path, of all that is read there and of nothing else."""

import copy
import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import made
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pictures import save_tiny_pictures
from tiny_pipeline import save_tiny_pipeline

from diffdistill import methods
from diffdistill.cli.nested import is_settings, types_of
from diffdistill.methods.content import digest, of_teacher, of_text
from diffdistill.models.any_step_pipeline import load_any_step
from diffdistill.models.teacher import load_teacher

# settings of methods whose value is a path, or a hub id
PATHS = {
    "teacher.source",
    "prompts",
    "data.source",
    "network.autoencoder",
    "network.init_from",
    "adversary.data.source",
}
LORA = {"fake__lora__rank": 4, "fake__lora__alpha": 4.0}
SMALL = {"network__block_out_channels": (32, 32), "network__text_width": 32, "network__text_layers": 1}


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a teacher, prompts, images, an autoencoder; latents are cached in it too."""
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "things"
    made.mkdir()
    save_tiny_pipeline(made / "teacher")
    shutil.copytree(made / "teacher" / "vae", made / "vae")
    save_tiny_pictures(made / "pictures")
    (made / "prompts.txt").write_text("red apple, noto\nblue car, noto\n")
    return made


def build(kind: str, things: Path, **more: Any) -> Any:
    """A method on the things in a folder, each named by its path."""
    torch.manual_seed(0)
    teacher, prompts, pictures, vae = (str(things / name) for name in ("teacher", "prompts.txt", "pictures", "vae"))
    if kind == "SwiftBrush":
        return made(methods.SwiftBrush, False, teacher__source=teacher, prompts=prompts, **{**LORA, **more})
    if kind == "Autoencoder":
        small = {"block_out_channels": (8, 8), "norm_groups": 4, "latent_channels": 4}
        return made(methods.Autoencoder, False, data__source=pictures, **{**small, "init_from": vae, **more})
    images = {"network__autoencoder": vae, "data__source": pictures}
    return made(getattr(methods, kind), False, **{**images, **SMALL, **more})


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def edit_weights(file: Path) -> None:
    weights = load_file(file)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1e-3
    save_file(weights, file, {"format": "pt"})


def edit_pixel(file: Path) -> None:
    pixels = np.asarray(Image.open(file).convert("RGB")).copy()
    pixels[0, 0] = 0
    Image.fromarray(pixels).save(file, lossless=True)


EDITS: dict[str, tuple[str, str, Any]] = {
    "a prompt": ("SwiftBrush", "prompts", lambda t: (t / "prompts.txt").write_text("red apple\nblue car\n")),
    "the order of prompts": (
        "SwiftBrush", "prompts", lambda t: (t / "prompts.txt").write_text("blue car, noto\nred apple, noto\n"),
    ),
    "a weight of the UNet": (
        "SwiftBrush", "teacher.source", lambda t: edit_weights(t / "teacher/unet/diffusion_pytorch_model.safetensors"),
    ),
    "the text encoder's activation": (
        "SwiftBrush", "teacher.source", lambda t: edit_json(t / "teacher/text_encoder/config.json", hidden_act="gelu"),
    ),
    "the tokenizer's length": (
        "SwiftBrush", "teacher.source",
        lambda t: edit_json(t / "teacher/tokenizer/tokenizer_config.json", model_max_length=6),
    ),
    "the schedule": (
        "SwiftBrush", "teacher.source",
        lambda t: edit_json(t / "teacher/scheduler/scheduler_config.json", beta_end=0.03),
    ),
    "the autoencoder's scale": (
        "LatentDiffusion", "network.autoencoder", lambda t: edit_json(t / "vae/config.json", scaling_factor=0.7),
    ),
    "its scale in a model of two times": (
        "SelfE", "network.autoencoder", lambda t: edit_json(t / "vae/config.json", scaling_factor=0.7),
    ),
    "a pixel": ("LatentDiffusion", "data.source", lambda t: edit_pixel(t / "pictures/noto.webp")),
    "a caption": (
        "LatentDiffusion", "data.source",
        lambda t: (t / "pictures/concepts.tsv").write_text(
            (t / "pictures/concepts.tsv").read_text().replace("green car", "green van")
        ),
    ),
    "a held-out concept": ("SelfE", "data.source", lambda t: (t / "pictures/heldout.txt").write_text("blue car\n")),
    "a weight that an autoencoder starts from": (
        "Autoencoder", "init_from", lambda t: edit_weights(t / "vae/diffusion_pytorch_model.safetensors"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("edited", EDITS)
def test_an_edit_changes_the_content_of_that_setting_alone(things: Path, edited: str) -> None:
    kind, setting, edit = EDITS[edited]
    before = dict(build(kind, things).content)
    edit(things)
    after = dict(build(kind, things).content)
    assert before.keys() == after.keys()
    assert [key for key in before if before[key] != after[key]] == [setting]


@pytest.mark.parametrize("kind", ["SwiftBrush", "Autoencoder", "LatentDiffusion", "SelfE"])
def test_a_copy_in_another_place_and_a_relative_path_are_the_same_content(
    things: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made = dict(build(kind, things).content)
    monkeypatch.chdir(things)
    assert build(kind, Path()).content == made
    moved = things.rename(things.parent / "moved")
    os.utime(moved / "prompts.txt", (0, 0))
    assert build(kind, moved).content == made


def test_line_endings_are_not_content(things: Path) -> None:
    before = build("SwiftBrush", things).content
    (things / "prompts.txt").write_bytes(b"red apple, noto\r\n\r\nblue car, noto")
    assert build("SwiftBrush", things).content == before


@pytest.mark.parametrize("kind", ["SwiftBrush", "Autoencoder", "LatentDiffusion", "SelfE"])
def test_each_path_that_is_given_has_content_and_nothing_else_has(things: Path, kind: str) -> None:
    method = build(kind, things)
    given = {
        "SwiftBrush": {"teacher.source", "prompts"},
        "Autoencoder": {"data.source", "init_from"},
        "LatentDiffusion": {"data.source", "network.autoencoder"},
        "SelfE": {"data.source", "network.autoencoder"},
    }
    assert set(method.content) == given[kind]


def test_no_other_argument_of_a_method_is_a_path() -> None:
    """A new argument that holds a text is a name from a table, or belongs into PATHS and into the content."""
    names = {"residual", "weight", "fake.weight", "solver", "teacher.attention", "network.attention", "teacher.variant",
             "adversary.tap", "adversary.divergence", "judge.of_time", "autoencoder.variant", "transformer.variant",
             "generator", "judging.weight", "judging.fake.weight", "network.self_conditioning.tap",
             "self_distillation.tap"}  # fmt: skip
    captions = {"data.captions", "adversary.data.captions"}  # covered by the digest of the data they are of
    words = {"teacher.negative_prompt"}
    texts = set()
    for kind in (getattr(methods, name) for name in methods.__all__):
        if isinstance(kind, type) and issubclass(kind, methods.Method) and not inspect.isabstract(kind):
            texts |= set(text_settings(kind))
    of_some = {
        "start",
        "init_from",
        "codec",
        "autoencoder.source",
        "transformer.source",
        "prior",
        "teacher.adapter.weights",
    }
    assert texts - names - captions - words == PATHS | of_some


def text_settings(kind: Any, prefix: str = "") -> list[str]:
    """Dotted names of the settings that hold a text."""
    found = []
    for name, annotation in types_of(kind).items():
        if is_settings(annotation):
            found += text_settings(annotation, f"{prefix}{name}.")
        elif annotation in (str, str | None):
            found.append(prefix + name)
    return found


def test_what_a_model_starts_from_is_content(things: Path) -> None:
    flow = build("SelfE", things, flow_matching_share=1.0)
    start = things / "start"
    start.mkdir()
    flow.export(start)
    begun = dict(build("SelfE", things, network__init_from=str(start)).content)
    assert (
        set(begun) == {"network.autoencoder", "data.source", "network.init_from"} and {**begun, **flow.content} == begun
    )
    with torch.no_grad():
        next(flow.networks["model"].inner.parameters()).add_(1e-3)
    other = things / "other"
    other.mkdir()
    flow.export(other)
    assert (
        build("SelfE", things, network__init_from=str(other)).content["network.init_from"] != begun["network.init_from"]
    )


def swap_words(folder: Path) -> None:
    """Exchange the ids of two entries of the vocabulary that none of the prompts has."""
    file = folder / "tokenizer/tokenizer.json"
    state = json.loads(file.read_text())
    vocabulary = state["model"]["vocab"]
    one, two = "q</w>", "z</w>"
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(state))
    plain = folder / "tokenizer/vocab.json"
    if plain.exists():
        plain.write_text(json.dumps(vocabulary))


def drop_merge(folder: Path) -> None:
    file = folder / "tokenizer/tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["merges"].pop()
    file.write_text(json.dumps(state))
    plain = folder / "tokenizer/merges.txt"
    if plain.exists():
        plain.write_text("\n".join(plain.read_text().rstrip().splitlines()[:-1]) + "\n")


WORDS: dict[str, Any] = {
    "two words": swap_words,
    "a merge": drop_merge,
    "the padding": lambda f: edit_json(f / "tokenizer/tokenizer_config.json", pad_token="!"),
    "the side of padding": lambda f: edit_json(f / "tokenizer/tokenizer_config.json", padding_side="left"),
    "the length": lambda f: edit_json(f / "tokenizer/tokenizer_config.json", model_max_length=6),
}


@pytest.mark.parametrize("edited", WORDS)
def test_an_edit_of_the_tokenizer_changes_every_digest_that_covers_it(things: Path, edited: str) -> None:
    def digests() -> tuple[str, str, str]:
        teacher = load_teacher(str(things / "teacher"))
        words = of_text(teacher.pipeline.tokenizer, teacher.pipeline.text_encoder)
        return words, of_teacher(teacher), teacher.digest()

    before = digests()
    WORDS[edited](things / "teacher")
    assert all(a != b for a, b in zip(before, digests(), strict=True))


@pytest.mark.parametrize("edited", ["two words", "a merge", "the length"])
def test_an_edit_of_the_tokenizer_changes_what_an_any_step_model_starts_from(things: Path, edited: str) -> None:
    flow = build("SelfE", things, flow_matching_share=1.0)
    start = things / "start"
    start.mkdir()
    flow.export(start)
    before, model = build("SelfE", things, network__init_from=str(start)).content, load_any_step(start).digest()
    WORDS[edited](start)
    after = build("SelfE", things, network__init_from=str(start)).content
    assert {key for key in after if after[key] != before[key]} == {"network.init_from"}
    assert load_any_step(start).digest() != model


@pytest.mark.parametrize(("name", "value"), [("teacher", "b36262a8306e81c5"), ("student", "7ea65366ae72308f")])
def test_the_shipped_pipelines_digests_stay(name: str, value: str) -> None:
    assert load_teacher(str(Path(__file__).parents[2] / "assets" / name)).digest() == value


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_settings_that_are_a_class_default_do_not_count(things: Path, part: str) -> None:
    """A release of a library that adds a setting, with its default value, leaves every digest as it is."""
    file = things / "teacher" / part / "config.json"
    silent = {
        "unet": {"resnet_time_scale_shift": "default", "dropout": 0.0, "norm_eps": 1e-05},
        "vae": {"shift_factor": None, "use_quant_conv": True},
        "text_encoder": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-05},
    }[part]
    before, settings = load_teacher(str(things / "teacher")).digest(), json.loads(file.read_text())
    assert all(settings[key] == value for key, value in silent.items())
    file.write_text(json.dumps({key: value for key, value in settings.items() if key not in silent}))
    assert load_teacher(str(things / "teacher")).digest() == before
    other = {"unet": {"norm_eps": 1e-4}, "vae": {"scaling_factor": 0.4}, "text_encoder": {"layer_norm_eps": 1e-4}}[part]
    edit_json(file, **other)
    assert load_teacher(str(things / "teacher")).digest() != before


def test_real_pictures_are_content_in_the_order_of_the_prompts(things: Path) -> None:
    def content() -> dict[str, str]:
        adversarial = {"fake__network": "full", "adversary__data__source": str(things / "pictures")}
        return dict(build("SwiftBrush", things, **adversarial).content)

    edit_json(things / "teacher" / "unet" / "config.json", sample_size=32)  # of images of 64 pixels
    before = content()
    assert set(before) == {"teacher.source", "prompts", "adversary.data.source"}
    edit_pixel(things / "pictures" / "twemoji.webp")  # no image of the prompts
    assert content() == before
    lines = (things / "prompts.txt").read_text().splitlines()
    (things / "prompts.txt").write_text("\n".join(reversed(lines)))
    assert [key for key, value in content().items() if value != before[key]] == ["prompts", "adversary.data.source"]


def test_a_file_of_captions_is_content_wherever_it_lies(things: Path) -> None:
    (things / "photos").mkdir()
    for i in range(2):
        Image.fromarray(np.full((32, 32, 3), 90 * i, np.uint8)).save(things / "photos" / f"{i}.png")
    for name in ("one.txt", "two.txt"):
        (things / name).write_text("a barn\na dog\n")
    photos = {"data__source": str(things / "photos"), "data__captions": str(things / "one.txt")}
    vae = {"network__autoencoder": str(things / "vae"), **SMALL}
    one = dict(made(methods.SelfE, False, **photos, **vae).content)
    assert {"data.source", "data.captions"} <= set(one)
    assert (
        dict(made(methods.SelfE, False, **{**photos, "data__captions": str(things / "two.txt")}, **vae).content) == one
    )
    (things / "two.txt").write_text("a barn\na cat\n")
    edited = {**photos, "data__captions": str(things / "two.txt")}
    other = dict(made(methods.SelfE, False, **edited, **vae).content)
    assert {key for key in one if one[key] != other[key]} == {"data.source", "data.captions"}


def test_a_digest_tells_where_parts_end() -> None:
    one = torch.arange(6)
    made = [digest("ab", "c"), digest("a", "bc"), digest(["a", "bc"]), digest(["ab", "c"]), digest("abc"), digest(None)]
    made += [digest(one), digest(one.view(2, 3)), digest(one.int()), digest(one.flip(0)), digest([0, 1, 2, 3, 4, 5])]
    assert len(set(made)) == len(made)
    assert digest(copy.deepcopy(one)) == digest(one)
