"""Protocols: what they are made of, that a change shows in the hash, and what they do to images."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import EXTRACTORS
from diffdistill.evaluation.protocols import PROTOCOLS, Protocol, protocol_named

# A record that changes makes old numbers incomparable: whoever changes one changes its line here knowingly.
GOLDEN = """
coco30k-clean256@0ccbb8e8
clean@a904a284
tf-legacy@28c1643a
torchmetrics@fbb57c71
dinov2@752e280f
cmmd@8f7c999b
mobilenet-offline@af45ac6e
cifar10-50k@3eed1bea
imagenet-50k@6804bb0b
"""


def pictures(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def test_records_are_golden() -> None:
    assert [str(protocol) for protocol in PROTOCOLS.values()] == GOLDEN.split()
    assert all(protocol.extractor in EXTRACTORS for protocol in PROTOCOLS.values())


def test_the_coco_record_says_what_the_papers_do() -> None:
    coco = PROTOCOLS["coco30k-clean256"]
    assert (coco.n_generated, coco.crop, coco.resize_before) == (30_000, "centre-square", "pil-lanczos-256")
    assert (coco.network_resize, coco.quantisation) == ("clean-299", "uint8-truncate")
    assert (coco.clip_model, coco.clip_prefix) == ("ViT-g-14/laion2b_s12b_b42k", "A photo depicts ")
    assert "40504" in coco.reference


def test_every_field_moves_the_hash() -> None:
    clean = PROTOCOLS["clean"]
    others = [
        replace(clean, name="other"),
        replace(clean, extractor="mobilenet_v2"),
        replace(clean, network_resize="tf1-bilinear-299"),
        replace(clean, reference="other"),
        replace(clean, n_generated=512),
        replace(clean, crop="centre-square"),
        replace(clean, resize_before="pil-lanczos-256"),
        replace(clean, quantisation="uint8-truncate"),
        replace(clean, mixed_sizes=False),
        replace(clean, clip_model="ViT-B-32/openai"),
        replace(clean, clip_prefix="a "),
    ]
    assert len({protocol.hash for protocol in [clean, *others]}) == 12
    assert replace(clean).hash == clean.hash and len(clean.hash) == 8
    assert str(replace(clean, n_generated=512)).startswith("clean@")


def test_names_are_looked_up_with_or_without_their_hash() -> None:
    clean = PROTOCOLS["clean"]
    assert protocol_named("clean") == protocol_named(str(clean)) == clean
    with pytest.raises(UserError, match=f"'clean@00000000' was asked for, but 'clean' is now {clean}"):
        protocol_named("clean@00000000")
    with pytest.raises(UserError, match="did you mean 'cifar10-50k'.*There are: coco30k-clean256, clean"):
        protocol_named("cifar-50k")
    with pytest.raises(UserError, match="clean@.* measures no CLIP score"):
        clean.build_clip()
    with pytest.raises(ValueError, match="crop should be one of None, centre-square, got 'corner'"):
        replace(clean, crop="corner")


@pytest.mark.parametrize("size", [(300, 300), (300, 411), (640, 513), (256, 256), (64, 80)])
def test_coco_images_are_cropped_and_resized_as_pillow_does(size: tuple[int, int]) -> None:
    center_crop = pytest.importorskip("torchvision.transforms.functional").center_crop
    image = pictures(1, *size)
    cropped = Image.fromarray(center_crop(image[0], min(size)).permute(1, 2, 0).numpy())
    expected = np.array(cropped.resize((256, 256), Image.Resampling.LANCZOS))
    got = PROTOCOLS["coco30k-clean256"].preprocess(image)
    assert isinstance(got, Tensor)
    assert torch.equal(got[0], torch.from_numpy(expected).permute(2, 0, 1))


def test_images_come_alone_stacked_or_of_several_sizes() -> None:
    images = [pictures(1, 70, 90)[0], pictures(1, 64, 64)[0]]
    coco, clean, legacy = (PROTOCOLS[name] for name in ("coco30k-clean256", "clean", "tf-legacy"))
    together = coco.preprocess(images)
    assert isinstance(together, Tensor) and together.shape == (2, 3, 256, 256)
    alone = coco.preprocess(images[0])
    assert isinstance(alone, Tensor) and torch.equal(alone, together[0])
    kept = clean.preprocess(images)
    assert isinstance(kept, list) and all(torch.equal(a, b) for a, b in zip(kept, images, strict=True))
    with pytest.raises(UserError, match=f"{legacy} needs images of one size: image 1 is 64x64, image 0 90x70"):
        legacy.preprocess(images)
    stacked = legacy.preprocess(pictures(2, 8, 8))
    assert isinstance(stacked, Tensor) and torch.equal(stacked, pictures(2, 8, 8))
    assert len(legacy.preprocess([])) == 0
    with pytest.raises(ValueError, match=r"got \(2, 8, 8, 3\)"):
        legacy.preprocess(torch.zeros(2, 8, 8, 3))


def test_floats_are_rounded_or_cut_as_the_protocol_says_and_bytes_kept() -> None:
    levels = torch.tensor([0.6, 254.4, 254.6]).view(1, 3, 1, 1) / 255
    for name, expected in (("tf-legacy", [1, 254, 255]), ("torchmetrics", [0, 254, 254])):
        got = PROTOCOLS[name].preprocess(levels)
        assert isinstance(got, Tensor) and got.dtype == torch.uint8 and got.flatten().tolist() == expected, name
    with pytest.raises(ValueError, match="nan"):
        PROTOCOLS["clean"].preprocess(torch.full((1, 3, 2, 2), float("nan")))


def test_a_protocol_builds_its_extractor_and_records_both() -> None:
    offline = PROTOCOLS["mobilenet-offline"]
    try:
        extractor = offline.build_extractor()
    except UserError as error:
        pytest.skip(str(error))
    assert offline.record(extractor) == {"protocol": str(offline), **extractor.protocol}
    cutting = replace(offline, quantisation="uint8-truncate")  # before the extractor has anything to round
    assert cutting.record(extractor)["quantisation"] == "uint8-truncate"
    with pytest.raises(UserError, match="asks for the resize clean-299; mobilenet_v2 resizes by bicubic-antialias-128"):
        Protocol("odd", "mobilenet_v2", "clean-299", "given").build_extractor()


def test_importing_protocols_needs_no_torch() -> None:
    code = "import sys, diffdistill.evaluation.protocols; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
