"""The contract of extractors, the registry, weight files, and DINOv2 and CLIP on tiny random networks."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features import weight_files as weights_module
from diffdistill.evaluation.features.base import (
    EXTRACTORS,
    Extractor,
    build_extractor,
    normalise,
    plain_float32,
    to_uint8,
)
from diffdistill.evaluation.features.weight_files import WeightFile, cache_folder, check, download, find, sha256_of
from diffdistill.evaluation.protocols import PROTOCOLS


class Means(Extractor):
    """The mean of each channel, and how many images came at a time."""

    name, dim, resize, weights_sha256 = "means", 3, "none", "0"

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.seen: list[tuple[int, torch.dtype]] = []

    def prepare(self, images: Tensor) -> Tensor:
        self.seen.append((len(images), images.dtype))
        return F.interpolate(images.float(), size=(4, 4))

    def network(self, x: Tensor) -> Tensor:
        assert len(x) == self.size and not torch.is_autocast_enabled("cpu")
        return x.mean((2, 3))


def pictures(n: int, height: int = 50, width: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def test_an_extractor_takes_bytes_floats_and_sizes_that_differ() -> None:
    extractor, x = Means(), pictures(21, 4, 4)
    expected = x.float().mean((2, 3))
    assert torch.equal(extractor(x, batch_size=1), expected)
    assert extractor.seen == [(8, torch.uint8), (8, torch.uint8), (5, torch.uint8)]  # whole chunks
    assert torch.equal(extractor(x.double() / 255), expected)
    assert torch.equal(extractor([x[0], F.interpolate(x[1:2], scale_factor=2)[0], x[2]]), expected[:3])
    assert extractor([]).shape == extractor(x[:0]).shape == (0, 3)
    assert extractor.protocol == {
        "extractor": "means",
        "weights_sha256": "0",
        "quantisation": "uint8-round",
        "resize": "none",
        "feature_dim": 3,
    }


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.zeros(2, 1, 8, 8), r"\(N, 3, H, W\), got \(2, 1, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"got \(3, 8, 8\)"),
        ([torch.zeros(3, 8, 8), torch.zeros(8, 8, 3)], r"images\[1\] should have shape \(3, H, W\), got \(8, 8, 3\)"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
        (torch.full((1, 3, 8, 8), 255.0), r"in \[0, 1\], got values from 255 to 255"),
        (torch.full((1, 3, 8, 8), -1.0), "got values from -1 to -1"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
    ],
)
def test_bad_images_are_named(images: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Means()(images)


def test_levels_are_cut_where_that_is_asked_for() -> None:
    levels = torch.tensor([0.0, 0.6, 254.4, 254.6, 255.0]) / 255
    assert to_uint8(levels).tolist() == [0, 1, 254, 255, 255]
    assert to_uint8(levels, truncate=True).tolist() == [0, 0, 254, 254, 255]


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch before 2.9 has one setting for all")
def test_settings_of_the_caller_move_no_number_and_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(64, 256, generator=generator), torch.randn(128, 256, generator=generator)
    image, kernel = torch.randn(2, 64, 9, 9, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    product, convolved = F.linear(x, w), F.conv2d(image, kernel)
    places = [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.cudnn.conv]
    before, others = [place.fp32_precision for place in places], ["bf16", "bf16", "tf32"]
    try:
        for place, value in zip(places, others, strict=True):
            place.fp32_precision = value
        with torch.autocast("cpu", dtype=torch.bfloat16), plain_float32(torch.device("cpu")):
            assert torch.equal(F.linear(x, w), product) and torch.equal(F.conv2d(image, kernel), convolved)
        assert [place.fp32_precision for place in places] == others
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def test_registry_names_what_there_is_and_builds_lazily() -> None:
    with pytest.raises(UserError, match="did you mean 'inception-tf'"):
        build_extractor("inception")
    with pytest.raises(UserError, match="There are: inception-tf, .*mobilenet_v2"):
        build_extractor("vgg")
    assert {"inception-tf", "dinov2-vitl14", "clip-ViT-g-14", "mobilenet_v2"} <= EXTRACTORS.keys()
    code = (
        "import sys; from diffdistill.evaluation.features import base, clip, dinov2, inception\n"
        "assert not {'torchvision', 'transformers', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


FILE = WeightFile("Tiny", "sub/tiny.bin", hashlib.sha256(b"right").hexdigest(), url="https://nowhere.invalid/tiny.bin")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(weights_module.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_files_are_found_by_path_by_folder_and_in_the_cache(cache: Path, tmp_path: Path) -> None:
    given = tmp_path / "tiny.bin"
    given.write_bytes(b"right")
    assert find(FILE, given) == find(FILE, tmp_path) == find(FILE, str(tmp_path)) == find(FILE, None, [given]) == given
    kept = cache_folder() / "sub" / "tiny.bin"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"right")
    assert find(FILE) == find(FILE, "download") == find(FILE, None, [given]) == kept
    with pytest.raises(
        UserError, match=f"no file {tmp_path / 'other.bin'}; get tiny.bin .sha256 {FILE.sha256}. from https"
    ):
        find(FILE, tmp_path / "other.bin")


def test_a_wrong_hash_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "tiny.bin"
    path.write_bytes(b"other")
    digest = hashlib.sha256(b"other").hexdigest()
    assert sha256_of(path) == digest
    with pytest.raises(UserError, match=f"sha256 is {digest}, should be {FILE.sha256}; get tiny.bin"):
        check(FILE, path)
    assert check(FILE, path, allow_other=True) == check(FILE, path, allow_other=digest.upper()) == digest
    with pytest.raises(UserError, match=f"sha256 is {digest}, asked for {'0' * 64}"):
        check(FILE, path, allow_other="0" * 64)
    assert check(WeightFile("Tiny", "tiny.bin", None), path) == digest  # nothing to check against, but still recorded


def test_a_download_is_checked_and_leaves_nothing_when_it_fails(cache: Path, tmp_path: Path) -> None:
    served = tmp_path / "served.bin"
    file = WeightFile(FILE.title, FILE.name, FILE.sha256, url=served.as_uri())
    served.write_bytes(b"wrong")
    with pytest.raises(UserError, match="gave a file of sha256"):
        find(file, "download")
    served.unlink()
    with pytest.raises(UserError, match="could not download file:"):
        find(file, "download")
    assert list((cache / "sub").iterdir()) == []
    served.write_bytes(b"right")
    assert find(file, "download").read_bytes() == b"right"
    assert [p.name for p in (cache / "sub").iterdir()] == ["tiny.bin"]
    with pytest.raises(UserError, match="cannot be downloaded"):
        download(WeightFile("Tiny", "tiny.bin", None, get="somewhere"))


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 2}
    folder = tmp_path_factory.mktemp("dinov2")
    for name, side in (("224", 224), ("70", 70)):
        torch.manual_seed(0)
        network = transformers.Dinov2Model(transformers.Dinov2Config(image_size=side, patch_size=14, **size))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        network.save_pretrained(folder / name)
    return folder


def test_dinov2_is_the_class_token_of_transformers_network(dinov2_folder: Path) -> None:
    from transformers import Dinov2Model

    torch.manual_seed(0)
    before = torch.get_rng_state()
    extractor = build_extractor("dinov2-vitl14", dinov2_folder / "224", allow_other_weights=True)
    assert torch.equal(torch.get_rng_state(), before)
    x = pictures(9)
    resized = F.interpolate(x.float(), size=(224, 224), mode="bicubic", antialias=True) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network = Dinov2Model.from_pretrained(dinov2_folder / "224").eval()
    with torch.no_grad():
        expected = network((resized - mean.view(3, 1, 1)) / std.view(3, 1, 1)).pooler_output
    got = extractor(x)
    assert (got - expected).norm() / expected.norm() < 1e-5
    assert torch.equal(extractor(x, batch_size=1), got)
    assert extractor.protocol == {
        "extractor": "dinov2-24",  # not ViT-L/14
        "weights_sha256": sha256_of(dinov2_folder / "224" / "model.safetensors"),
        "quantisation": "uint8-round",
        "resize": "bicubic-antialias-224",
        "feature_dim": 24,
    }


def test_dinov2_positions_are_interpolated_by_the_authors_scale_factor(dinov2_folder: Path) -> None:
    """37 patches to 16 by the factor 16.1 / 37: output i reads the source at (i + 1/2) 37 / 16.1 - 1/2."""
    from diffdistill.evaluation.features.dinov2 import positions

    ramp = torch.arange(37.0).repeat_interleave(37).view(1, 37 * 37, 1)
    i = torch.arange(16)[:, None] + 0.5
    for offset in (0.1, 0.0):
        got = positions(ramp, 16, offset).view(16, 16)
        read_at = i * 37 / (16 + offset) - 0.5
        assert (got - read_at).abs()[1:-1].max() < 0.06, offset  # torch's cubic keeps a ramp that well
    assert (i * 37 / 16 - i * 37 / 16.1).max() > 0.2  # so the two are told apart
    extractor = build_extractor("dinov2-vitl14", dinov2_folder / "70", allow_other_weights=True)
    assert extractor(pictures(2)).shape == (2, 24)


def test_dinov2_files_that_are_wrong_are_named(dinov2_folder: Path, cache: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(UserError, match="sha256 is .*should be 399fba97.*https://huggingface.co/facebook/dinov2-large"):
        build_extractor("dinov2-vitl14", dinov2_folder / "224")
    with pytest.raises(UserError, match="no file .*model.safetensors"):
        build_extractor("dinov2-vitl14", tmp_path, allow_other_weights=True)
    tensors = load_file(dinov2_folder / "224" / "model.safetensors")
    del tensors["layernorm.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="no file .*config.json"):
        build_extractor("dinov2-vitl14", tmp_path, allow_other_weights=True)
    (tmp_path / "config.json").write_bytes((dinov2_folder / "224" / "config.json").read_bytes())
    with pytest.raises(UserError, match="missing keys 'layernorm.bias'"):
        build_extractor("dinov2-vitl14", tmp_path, allow_other_weights=True)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A CLIP model of open_clip's with random weights, its preprocessing, and its file."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    image = {"image_size": 32, "layers": 2, "width": 24, "head_width": 12, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    config = {"embed_dim": 16, "vision_cfg": image, "text_cfg": text}
    (folder / "tiny-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-test")
    torch.save(model.state_dict(), folder / "tiny.pt")
    return model.eval(), preprocess, folder / "tiny.pt"


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (45, 33), (20, 90)])
def test_clip_is_open_clips_own(tiny_clip: tuple[Any, Any, Path], size: tuple[int, int]) -> None:
    from torchvision.transforms.functional import to_pil_image

    from diffdistill.evaluation.features.clip import ClipFeatures

    model, preprocess, path = tiny_clip
    before = torch.get_rng_state()
    extractor = ClipFeatures("tiny-test", "random", path)
    assert torch.equal(torch.get_rng_state(), before)
    x = pictures(9, *size)
    prepared = torch.stack([preprocess(to_pil_image(image)) for image in x])
    assert torch.allclose(extractor.prepare(x), prepared, atol=1e-6)
    with torch.no_grad():
        expected = F.normalize(model.encode_image(prepared), dim=-1)
    assert torch.allclose(extractor(x), expected, atol=1e-6)
    assert torch.equal(extractor(x, batch_size=1), extractor(x))


def test_clip_puts_its_prefix_before_captions(tiny_clip: tuple[Any, Any, Path]) -> None:
    import open_clip

    from diffdistill.evaluation.features.clip import ClipFeatures

    model, _, path = tiny_clip
    extractor = ClipFeatures("tiny-test", "random", path, prefix="A photo depicts ")
    captions = [f"a cat with {i} hats" for i in range(9)]
    tokens = open_clip.get_tokenizer("tiny-test")([f"A photo depicts {caption}" for caption in captions])
    with torch.no_grad():
        expected = F.normalize(model.encode_text(tokens), dim=-1)
    got = extractor.text(captions)
    assert torch.allclose(got, expected, atol=1e-6) and not got.is_inference()
    assert torch.allclose(got.norm(dim=1), torch.ones(9), atol=1e-6)
    assert torch.equal(extractor.text(captions[3:4]), got[3:4])
    assert extractor.text([]).shape == (0, 16)
    assert extractor.protocol["prefix"] == "A photo depicts " and extractor.protocol["resize"] == "pil-bicubic-32"
    assert extractor.protocol["extractor"] == "clip-tiny-test/random"
    coco = replace(PROTOCOLS["coco30k-clean256"], clip_model="tiny-test/random")
    assert torch.equal(coco.build_clip(path).text(captions), got)


def test_clip_files_that_are_wrong_are_named(tiny_clip: tuple[Any, Any, Path], cache: Path, tmp_path: Path) -> None:
    from diffdistill.evaluation.features.clip import ClipFeatures

    path = tiny_clip[2]
    with pytest.raises(UserError, match="sha256 is .*should be 6aac683f.*https://huggingface.co/laion"):
        build_extractor("clip-ViT-g-14", path)
    with pytest.raises(UserError, match="no model 'nope'"):
        ClipFeatures("nope", "random", path)
    with pytest.raises(UserError, match="no file .*open_clip publishes"):
        ClipFeatures("tiny-test", "random", tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_bytes(b"not weights")
    with pytest.raises(UserError, match="can't be read as CLIP tiny-test"):
        ClipFeatures("tiny-test", "random", tmp_path / "text.pt")


def test_without_open_clip_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'diffdistill\[eval\]'"):
        build_extractor("clip-ViT-g-14")


def test_mobilenet_takes_other_weights_only_if_they_fit(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    (tmp_path / "text.pth").write_bytes(b"not weights")
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "few.pth")
    for name in ("text.pth", "few.pth"):
        with pytest.raises(UserError, match="can't be read as MobileNetV2 weights"):
            build_extractor("mobilenet_v2", tmp_path / name, allow_other_weights=True)


def test_normalise_is_per_channel() -> None:
    levels = torch.full((1, 3, 1, 1), 51.0)
    assert torch.allclose(normalise(levels, (0.1, 0.2, 0.3), (1, 2, 0.5)).flatten(), torch.tensor([0.1, 0.0, -0.2]))
