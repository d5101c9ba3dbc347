"""Each kind of resize against the tool it is named after, or against what that tool calls."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffdistill.evaluation.features.resize import KINDS, centre_square, resize

SIZES = [(32, 32), (48, 64), (256, 256), (300, 411), (640, 512)]
PIL_FILTERS = {"pil-bicubic": Image.Resampling.BICUBIC, "pil-lanczos": Image.Resampling.LANCZOS}


def pictures(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 of shape (n, 3, height, width): noise on several scales, so smooth parts and edges."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, 3, height, width)
    for coarser in (1, 4, 16):
        noise = torch.rand(n, 3, max(2, height // coarser), max(2, width // coarser), generator=generator)
        x += F.interpolate(noise, size=(height, width), mode="bilinear")
    return ((x - x.amin()) / (x.amax() - x.amin()) * 255).round().to(torch.uint8)


def by_pillow(image: Tensor, size: tuple[int, int], how: Image.Resampling) -> Tensor:
    """(3, H, W) uint8; size is (height, width)."""
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], how)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [*SIZES, (1000, 70)])
def test_tf1_bilinear_is_torch_fidelitys_bit_for_bit(size: tuple[int, int]) -> None:
    module = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = pictures(2, *size)
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    got = resize(images, 299, "tf1-bilinear")
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_tf1_bilinear_by_hand() -> None:
    """Twice the size: every other pixel is a source pixel, the last has no right neighbour."""
    row = torch.tensor([0, 10, 30], dtype=torch.uint8).expand(1, 1, 1, 3)
    assert resize(row, (1, 6), "tf1-bilinear").flatten().tolist() == [0, 5, 10, 20, 30, 30]


@pytest.mark.parametrize("size", SIZES)
def test_clean_is_pillows_float_bicubic(size: tuple[int, int]) -> None:
    """clean-fid resizes each channel in Pillow's mode F and clips."""
    image = pictures(1, *size)
    channels = [Image.fromarray(channel.numpy().astype(np.float32)) for channel in image[0]]
    resized = [np.array(channel.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for channel in channels]
    got = resize(image, 299, "clean")
    assert (got[0] - torch.from_numpy(np.stack(resized))).abs().max() < 4e-3  # of 255 levels
    assert got.amin() >= 0 and got.amax() <= 255


def test_clean_is_clean_fids() -> None:
    build_resizer = pytest.importorskip("cleanfid.resize").build_resizer
    image = pictures(1, 200, 150)
    expected = build_resizer("clean")(image[0].permute(1, 2, 0).numpy())
    assert (resize(image, 299, "clean")[0] - torch.from_numpy(expected).permute(2, 0, 1)).abs().max() < 4e-3


def test_the_other_float_kinds_are_torchs() -> None:
    images = pictures(2, 90, 120)
    for kind, how in (
        ("bilinear-antialias", {"mode": "bilinear", "antialias": True, "align_corners": False}),
        ("bilinear", {"mode": "bilinear", "align_corners": False}),
        ("bicubic-antialias", {"mode": "bicubic", "antialias": True}),
    ):
        assert torch.equal(resize(images, (40, 50), kind), F.interpolate(images.float(), size=(40, 50), **how)), kind


@pytest.mark.parametrize("kind", PIL_FILTERS)
@pytest.mark.parametrize("size", [(32, 32), (300, 300), (512, 512), (200, 301), (299, 299)])
def test_pil_kinds_give_pillows_bytes(kind: str, size: tuple[int, int]) -> None:
    images = pictures(2, *size)
    for target in ((256, 256), (299, 299), (336, 224)):
        expected = torch.stack([by_pillow(image, target, PIL_FILTERS[kind]) for image in images])
        assert torch.equal(resize(images, target, kind), expected), target


def test_pil_kinds_go_along_rows_first_for_tall_images_too() -> None:
    """As Pillow did up to 12; Pillow 13 itself goes along columns first here."""
    image, lanczos = pictures(1, 500, 333), PIL_FILTERS["pil-lanczos"]
    rows_first = by_pillow(by_pillow(image[0], (500, 299), lanczos), (299, 299), lanczos)
    assert torch.equal(resize(image, 299, "pil-lanczos")[0], rows_first)


@pytest.mark.parametrize("size", [(64, 64), (60, 91), (91, 60), (61, 90), (93, 60), (60, 97)])
def test_centre_square_is_torchvisions_center_crop(size: tuple[int, int]) -> None:
    center_crop = pytest.importorskip("torchvision.transforms.functional").center_crop
    images = pictures(1, *size)
    assert torch.equal(centre_square(images), center_crop(images, min(size)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_neighbours(kind: str) -> None:
    images = pictures(3, 70, 80)
    together = resize(images, (50, 90), kind)
    assert together.dtype == (torch.uint8 if kind.startswith("pil-") else torch.float32)
    assert torch.equal(torch.cat([resize(image[None], (50, 90), kind) for image in images]), together)
    assert resize(images[:0], 50, kind).shape == (0, 3, 50, 50)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="one of tf1-bilinear, .*got 'cubic'"):
        resize(pictures(1, 8, 8), 4, "cubic")
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got \(3, 8, 8\)"):
        resize(pictures(1, 8, 8)[0], 4, "clean")
    with pytest.raises(ValueError, match="uint8 images, got torch.float32"):
        resize(pictures(1, 8, 8).float(), 4, "pil-lanczos")
