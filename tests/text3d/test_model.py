"""A saved text-to-3D model and what it knows of words: against sums by hand, single prompts and rounded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from text3d.tiny_priors import TINY, WORDS, add_tiny_generators, random_prior

from diffdistill.errors import UserError
from diffdistill.text3d.embedder import WordEmbedder
from diffdistill.text3d.model import TextTo3DModel, load_model, save_model
from diffdistill.text3d.prior import load_prior, save_prior
from diffdistill.text3d.words import Vocabulary

PROMPTS = ["a red ball", "the box", "BLUE, blue ball!"]


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_generators(monkeypatch)


def embedder(seed: int = 0) -> WordEmbedder:
    table = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    table[0] = 0
    return WordEmbedder(WORDS, table)


def model(name: str = "hyper_tiny", seed: int = 0, **more: Any) -> TextTo3DModel:
    torch.manual_seed(seed)
    return TextTo3DModel(name, embedder(), **more)


def points() -> torch.Tensor:
    return 1.8 * torch.rand(1, 40, 3, generator=torch.Generator().manual_seed(1)) - 0.9


# ---- words ----------------------------------------------------------------------------------------------------


def test_an_embedding_is_the_rows_of_the_words_and_their_sum() -> None:
    made = embedder()
    pooled, tokens, mask = made(PROMPTS)
    row = dict(zip(WORDS.words, made.table[1:], strict=True))
    nothing = torch.zeros(16)
    wanted = [
        [row["red"], row["ball"], nothing],
        [row["box"], nothing, nothing],
        [row["blue"], row["blue"], row["ball"]],
    ]
    assert torch.equal(tokens, torch.stack([torch.stack(line) for line in wanted]))
    torch.testing.assert_close(pooled, torch.stack([sum(line, nothing) for line in wanted]))
    assert mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert made.dim == 16 and not list(made.parameters())
    turned = made(["ball red", "box", "ball blue blue"])
    torch.testing.assert_close(turned.pooled, pooled)  # a pooled prompt is a set of words


def test_the_embedder_keeps_the_words_of_a_prior_as_they_were() -> None:
    prior = random_prior()
    made = WordEmbedder(prior.vocabulary, prior.backbone.words.weight)
    before = made.table.clone()
    prior.backbone.words.weight.data += 1
    assert torch.equal(made.table, before)
    for shape in ((4, 16), (6, 16), (5,)):
        with pytest.raises(ValueError, match="it must have 5 rows"):
            WordEmbedder(WORDS, torch.zeros(shape))


def test_words_that_are_not_known_are_refused_by_name() -> None:
    for prompts, said in (
        (["a red ball", "a bleu box"], "the word 'bleu' of the prompt 'a bleu box'; did you mean 'blue'"),
        (["xylophone"], "it knows ball, blue, box, red"),
        (["red blue red box"], "has 4 words; the model takes 3 at most"),
        (["an"], "'an' has no word"),
        ([""], "has no word"),
        ("a red ball", "they must be a list of texts"),
    ):
        with pytest.raises(UserError, match=said):
            embedder()(prompts)
    for longest in (0, 65):
        with pytest.raises(UserError, match=f"longest is {longest}"):
            Vocabulary(WORDS.words, longest)


@pytest.mark.parametrize("longest", [1, 3])
def test_numbers_of_words_can_be_read_back(longest: int) -> None:
    known = Vocabulary(WORDS.words, longest)
    prompts = [" ".join(known.words[(i + j) % 4] for j in range(1 + i % longest)) for i in range(8)]
    ids = known.ids([f"The {prompt}." for prompt in prompts])
    assert ids.shape == (8, longest)
    assert [" ".join(known.words[i - 1] for i in row if i) for row in ids.tolist()] == prompts
    assert known.ids([]).shape == (0, longest)


# ---- the model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TINY))
@torch.no_grad()
def test_prompts_at_once_are_prompts_one_by_one(name: str) -> None:
    made, at = model(name), points()
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)) if name == "voxel_tiny" else None
    together = made(PROMPTS, noise)(at)
    for i, prompt in enumerate(PROMPTS):
        alone = made([prompt], None if noise is None else noise[i : i + 1])(at)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-4, atol=1e-5)
    assert (together.sdf[0] - together.sdf[1]).abs().max() > 1e-4


@torch.no_grad()
def test_a_generator_without_noise_is_given_that_of_seed_0() -> None:
    made, at = model("voxel_tiny"), points()
    drawn = torch.randn(4, generator=torch.Generator().manual_seed(0)).expand(3, -1)
    plain, given = (made(PROMPTS, noise)(at) for noise in (None, drawn))
    other = made(PROMPTS, torch.zeros(3, 4))(at)
    assert torch.equal(plain.sdf, given.sdf) and torch.equal(plain.colour, given.colour)
    assert not torch.equal(plain.sdf, other.sdf)


@pytest.mark.parametrize("name", list(TINY))
@torch.no_grad()
def test_a_saved_model_is_the_one_with_rounded_weights(tmp_path: Path, name: str) -> None:
    made = model(name, sharpness=42.5)
    save_model(made, tmp_path / "a" / "model")
    again = load_model(tmp_path / "a" / "model")
    rounded = model(name, seed=1)
    rounded.load_state_dict({key: value.half().float() for key, value in made.state_dict().items()})
    for a, b in zip(rounded(PROMPTS)(points()), again(PROMPTS)(points()), strict=True):
        assert torch.equal(a, b)
    assert (again.name, again.sharpness, again.embedder.vocabulary) == (name, 42.5, WORDS)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    save_model(again, tmp_path / "b")  # rounding twice is rounding once
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / "model" / file).read_bytes()


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="there is no text-to-3D model at .*config.json is missing"):
        load_model(tmp_path)
    save_model(model(), tmp_path)
    good, tensors, whole = json.loads(config.read_text()), load_file(weights), weights.read_bytes()
    for text, said in (
        ("{", "config.json is no JSON"),
        ("[]", "not of format 1"),
        (json.dumps(good | {"format": 2}), "not of format 1"),
        (json.dumps({"format": 1}), "damaged, or of another shape"),
        (json.dumps(good | {"generator": "hyper_tin"}), "did you mean hyper_tiny"),
        (json.dumps(good | {"generator": "triplane_tiny"}), "of another shape than the other says"),
        (json.dumps(good | {"sharpness": -1}), "sharpness is -1.0; it must be a number above 0"),
        (json.dumps(good | {"sharpness": float("nan")}), "sharpness is nan"),
        (json.dumps(good | {"vocabulary": {"words": ["red", "box"]}}), "of another shape"),
        (json.dumps(good | {"vocabulary": {"words": ["red", "red", "ball", "box"]}}), "has a word twice"),
        (json.dumps(good | {"vocabulary": {"words": 3}}), "damaged"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=said):
            load_model(tmp_path)
    config.write_text(json.dumps(good))
    name = "generator.network.out.weight"
    for change, said in (
        ({name: tensors[name][:-1]}, "of another shape"),
        ({name: tensors[name] * float("nan")}, "not finite"),
        ({"embedder.table": tensors["embedder.table"] / 0}, "not finite"),
        ({"more": torch.zeros(1)}, "of another shape"),
    ):
        save_file({**tensors, **change}, weights)
        with pytest.raises(UserError, match=said):
            load_model(tmp_path)
    for damaged in (b"", whole[:-40], b"\xff" * 64):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="missing, damaged"):
            load_model(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="missing, damaged"):
        load_model(tmp_path)
    weights.write_bytes(whole)
    load_model(tmp_path)


def test_a_prior_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    prior = random_prior()
    prior.backbone.out.bias.data[3] = 1e9  # beyond what half precision holds
    save_prior(prior, tmp_path)
    with pytest.raises(UserError, match="prior.safetensors has values that are not finite"):
        load_prior(tmp_path)


def test_a_model_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean hyper_tiny"):
        model("hyper_tinny")
    with pytest.raises(UserError, match="sharpness is 0.0"):
        model(sharpness=0.0)
