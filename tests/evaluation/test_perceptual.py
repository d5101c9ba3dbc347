"""Perceptual distances against the packages' own numbers, networks put together another way, torchmetrics, damage."""

import hashlib
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import diffdistill.evaluation as evaluation
from diffdistill.errors import UserError
from diffdistill.evaluation.pairs import perceptual
from diffdistill.evaluation.pairs.perceptual import PerceptualDistance, dists, lpips, st_lpips
from diffdistill.evaluation.pairs.perceptual_trunks import trunk_named
from diffdistill.evaluation.pairs.pixels import PairMean


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFDISTILL_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def built(make: Callable[[], PerceptualDistance]) -> PerceptualDistance:
    try:
        return make()
    except UserError as error:
        pytest.skip(str(error))


def noise_pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 64, 80, generator=generator)
    return x, (x + 0.1 * torch.randn(2, 3, 64, 80, generator=generator)).clamp(0, 1)


def picture(side: int = 96) -> Tensor:
    """Discs and boxes on a gradient."""
    rows, columns = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    x = torch.stack([rows / side, columns / side, 0.5 + 0 * rows])
    generator = torch.Generator().manual_seed(1)
    for kind in range(12):
        r, c, size = (torch.rand(3, generator=generator) * torch.tensor([side, side, side / 6]) + 2).tolist()
        disc, box = (
            (rows - r) ** 2 + (columns - c) ** 2 < size**2,
            ((rows - r).abs() < size) & ((columns - c).abs() < size),
        )
        x[:, disc if kind % 2 else box] = torch.rand(3, 1, generator=generator)
    return x[None]


def blurred(x: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(x, width, 1, width // 2, count_include_pad=False)


def noisy(x: Tensor, levels: float) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    return (x + noise * levels / 255).clamp(0, 1)


def jpeg(x: Tensor, quality: int) -> Tensor:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None].float() / 255


# From stlpips-pytorch 0.0.2 itself on `noise_pair`, and on its first images moved by a pixel along both axes.
PUBLISHED = {
    "alex": ([0.0029676666, 0.0032993916], [0.0103209903, 0.0098958649]),
    "vgg": ([0.0065447590, 0.0064450111], [0.0458289385, 0.0467217416]),
}


@pytest.mark.parametrize("net", PUBLISHED)
def test_shift_tolerant_lpips_gives_the_numbers_of_its_package(net: str) -> None:
    distance = built(lambda: st_lpips(net))
    assert distance.name == f"st-lpips-{net}"
    assert not any(name.startswith("stlpips") for name in sys.modules)  # located, not imported
    x, y = noise_pair()
    noise, moved = PUBLISHED[net]
    assert distance(x, y).tolist() == pytest.approx(noise, rel=2e-6)
    assert distance(x, x.roll(1, -1)).tolist() == pytest.approx(moved, rel=2e-6)


class Blur(nn.Module):
    """With the filter that the weight file holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), self.filt, stride=2, groups=len(self.filt))


class ShiftTolerantAlex(nn.Module):
    """Every module under the number that its tensors have in the file; in float64."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.net = nn.ModuleDict(
            {
                "slice1": nn.ModuleDict({"0": nn.Conv2d(3, 64, 11, 1, 2), "1": Blur(64), "2": nn.ReLU()}),
                "slice2": nn.ModuleDict(
                    {"3": nn.MaxPool2d(3, 1), "4": Blur(64), "5": nn.Conv2d(64, 192, 5, 1, 2), "6": nn.ReLU()}
                ),
                "slice3": nn.ModuleDict(
                    {"7": nn.MaxPool2d(3, 1), "8": Blur(192), "9": nn.Conv2d(192, 384, 3, 1, 1), "10": nn.ReLU()}
                ),
                "slice4": nn.ModuleDict({"11": nn.Conv2d(384, 256, 3, 1, 1), "12": nn.ReLU()}),
                "slice5": nn.ModuleDict({"13": nn.Conv2d(256, 256, 3, 1, 1), "14": nn.ReLU()}),
            }
        )
        self.heads = {i: state.pop(f"lin{i}.model.1.weight").double().flatten() for i in range(5)}
        self.shift, self.scale = (state.pop(f"scaling_layer.{part}").double() for part in ("shift", "scale"))
        self.load_state_dict(state, strict=True)
        self.double()

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = ((2 * v.double() - 1 - self.shift) / self.scale for v in (x, y))
        total = torch.zeros(len(x), dtype=torch.float64)
        for number, modules in enumerate(self.net.values()):
            for module in modules.values():
                x, y = module(x), module(y)
            cosine = [v / v.square().sum(1, keepdim=True).sqrt().clamp_min(1e-10) for v in (x, y)]
            weighted = torch.einsum("nchw,c->nhw", (cosine[0] - cosine[1]) ** 2, self.heads[number])
            total += weighted.flatten(1).mean(1)
        return total


def test_shift_tolerant_lpips_is_the_network_of_its_file() -> None:
    built(st_lpips)
    spec = importlib.util.find_spec("stlpips_pytorch")
    assert spec and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "weights/vST0.0/alex_shift_tolerant.pth"
    reference = ShiftTolerantAlex(torch.load(path, weights_only=True, map_location="cpu"))
    x = torch.cat([picture(), noisy(picture(), 20)])
    y = torch.cat([noisy(picture(), 5), blurred(picture(), 5)])
    torch.testing.assert_close(st_lpips()(x, y), reference(x, y), rtol=1e-5, atol=0)


def test_shift_tolerant_lpips_orders_damage() -> None:
    distance = built(st_lpips)
    x = picture()
    assert distance(x, x).tolist() == [0]
    for damage, strengths in ((blurred, (3, 5, 9, 17)), (noisy, (5, 20, 60)), (jpeg, (90, 50, 20, 5))):
        values = [float(distance(x, damage(x, strength))) for strength in strengths]
        assert values[0] > 0 and values == sorted(values), damage.__name__
    moved = [float(distance(x, x.roll(shift, 3))) for shift in (1, 2, 4)]
    assert moved == sorted(moved) and moved[0] < float(distance(x, blurred(x, 3)))


def test_a_pair_does_not_depend_on_its_batch_or_order() -> None:
    distance = built(st_lpips)
    x, y = noise_pair()
    together = distance(x, y)
    assert together.dtype == torch.float64 and not together.requires_grad
    assert torch.equal(torch.cat([distance(x[i : i + 1], y[i : i + 1]) for i in range(2)]), together)
    torch.testing.assert_close(distance(y, x), together, rtol=1e-6, atol=0)
    levels = (x * 255).round().byte(), (y * 255).round().byte()
    torch.testing.assert_close(distance(*levels), distance(*(v.double() / 255 for v in levels)), rtol=1e-6, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must not reach the network
        assert torch.equal(distance(x, y), together)
    assert distance(x[:0], y[:0]).shape == (0,)


def test_its_twin_is_a_mean_over_images_under_its_protocol() -> None:
    distance = built(st_lpips)
    x, y = noise_pair()
    twin = PairMean(distance, distance.protocol)
    for i in range(2):
        twin.update(x[i : i + 1], y[i : i + 1])
    assert twin.compute().mean == float(distance(x, y).mean())
    assert twin.protocol == {
        "metric": "st-lpips-alex",
        "mean": "over-images",
        "weights_sha256": perceptual.SHA256["alex_shift_tolerant.pth"],
        "quantisation": "none",
    }


def random_trunk(net: str, path: Path) -> nn.Sequential:
    """torchvision's own `features` with random weights, saved as torchvision saves them."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        features = {"alex": models.alexnet, "vgg": models.vgg16}[net](weights=None).features
    features = features.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(3)
    for module in features:
        if isinstance(module, nn.Conv2d):
            spread = (2 / module.weight[0].numel()) ** 0.5
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * spread
            module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.1
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return features.eval().requires_grad_(False)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_torchmetrics_on_one_random_trunk(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
    features = random_trunk(net, tmp_path / "random.pth")
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *args, **kwargs: features)
    x, y = noise_pair()
    network = theirs._NoTrainLpips(net=net)
    distance = lpips(net, tmp_path / "random.pth", allow_other_weights=True)
    torch.testing.assert_close(distance(x, y).float(), network(x, y, normalize=True).flatten(), rtol=1e-5, atol=0)
    assert distance(x, x).tolist() == [0, 0]


def test_dists_equals_torchmetrics_on_one_random_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("torchmetrics.functional.image.dists")
    features = random_trunk("vgg", tmp_path / "random.pth")
    monkeypatch.setattr(theirs, "vgg16", lambda **kwargs: SimpleNamespace(features=features))
    x, y = noise_pair()
    distance = dists(tmp_path / "random.pth", allow_other_weights=True)
    torch.testing.assert_close(distance(x, y).float(), theirs.DISTSNetwork()(x, y), rtol=1e-4, atol=0)
    assert distance(x, x).tolist() == [0, 0]
    values = [float(distance(picture(), blurred(picture(), width))) for width in (3, 5, 9)]
    assert 0 < values[0] < values[1] < values[2]


def test_a_distance_has_its_published_name_with_published_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics")
    for net in ("alex", "vgg"):
        random_trunk(net, tmp_path / f"{net}.pth")
    paths = {net: tmp_path / f"{net}.pth" for net in ("alex", "vgg")}
    made = {
        "perceptual-alex": lpips("alex", paths["alex"], allow_other_weights=True),
        "perceptual-vgg": lpips("vgg", paths["vgg"], allow_other_weights=True),
        "perceptual-texture-vgg": dists(paths["vgg"], allow_other_weights=True),
    }
    for name, distance in made.items():
        assert distance.name == distance.protocol["metric"] == name
        assert "lpips" not in name and "dists" not in name
    digest = hashlib.sha256(paths["alex"].read_bytes()).hexdigest()
    assert made["perceptual-alex"].protocol["trunk_sha256"] == digest
    assert lpips("alex", paths["alex"], allow_other_weights=digest).name == "perceptual-alex"
    monkeypatch.setitem(perceptual.SHA256, "alexnet-owt-7be5be79.pth", digest)  # as if it were the published one
    assert lpips("alex", paths["alex"]).name == "lpips-v0.1-alex"


def test_names_of_other_shift_tolerant_weights(tmp_path: Path) -> None:
    trunk = trunk_named("alex", tolerant=True)
    shapes = {**trunk.shapes, **perceptual._head_shapes(trunk), "scaling_layer.shift": (1, 3, 1, 1)}
    state = {name: torch.ones(shape) for name, shape in {**shapes, "scaling_layer.scale": (1, 3, 1, 1)}.items()}
    torch.save(state, tmp_path / "ones.pth")
    distance = st_lpips("alex", tmp_path / "ones.pth", allow_other_weights=True)
    assert distance.name == "perceptual-shift-tolerant-alex"


@pytest.mark.parametrize(("net", "tolerant"), [("alex", False), ("alex", True), ("vgg", False), ("vgg", True)])
def test_the_least_side_is_the_least(net: str, tolerant: bool) -> None:
    trunk = trunk_named(net, tolerant)
    tensors = {name: torch.zeros(shape) for name, shape in trunk.shapes.items()}
    assert len(list(trunk.maps(tensors, torch.zeros(1, 3, trunk.least_side, trunk.least_side + 1)))) == 5
    with pytest.raises(RuntimeError):
        list(trunk.maps(tensors, torch.zeros(1, 3, trunk.least_side - 1, 64)))


def test_bad_pairs_are_named() -> None:
    distance = built(st_lpips)
    x = torch.rand(1, 3, 32, 32)
    for a, b, message in (
        (x[:, :, :20], x[:, :, :20], "st-lpips-alex needs images of at least 21 pixels a side, got 32x20"),
        (x[:, :1], x[:, :1], "3 channels, got 1"),
        (x, x[:, :, 1:], "one shape"),
        (x, x * 2 - 1, r"y should lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            distance(a, b)


def test_missing_or_wrong_files_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(make: Callable[[], PerceptualDistance], *parts: str) -> None:
        with pytest.raises(UserError) as caught:
            make()
        message = str(caught.value)
        assert "\n" not in message
        for part in parts:
            assert part in message

    sha = perceptual.SHA256
    url = "https://download.pytorch.org/models/"
    refused(lpips, "AlexNet weights not found", sha["alexnet-owt-7be5be79.pth"], url, 'weights="download"')
    refused(lambda: lpips("vgg"), "VGG-16 weights not found", sha["vgg16-397923af.pth"], url)
    refused(dists, "VGG-16 weights not found", sha["vgg16-397923af.pth"], url)
    refused(lambda: lpips("squeeze"), "net should be one of alex, vgg, got 'squeeze'")
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"not these")
    for make in (lpips, st_lpips):
        refused(lambda make=make: make(weights=wrong), "wrong", "sha256 is")
        refused(lambda make=make: make(weights=wrong, allow_other_weights=True), "can't be read as")
        refused(lambda make=make: make(weights=tmp_path / "absent.pth"), "no file", "absent.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, wrong)
    refused(
        lambda: lpips(weights=wrong, allow_other_weights=True),
        "does not hold AlexNet weights: features.0.weight should have shape (64, 3, 11, 11), has (64, 3, 3, 3)",
    )
    torch.save([1, 2], wrong)
    refused(lambda: lpips(weights=wrong, allow_other_weights=True), "should have shape", "has nothing")
    trunk = tmp_path / "random.pth"
    random_trunk("alex", trunk)
    digest = hashlib.sha256(trunk.read_bytes()).hexdigest()
    refused(lambda: lpips(weights=trunk, heads=wrong, allow_other_weights=digest), "wrong LPIPS head weights")
    packages, real = ("torchmetrics", "lpips", "stlpips_pytorch"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else real(name))
    refused(
        lambda: lpips(weights=trunk, allow_other_weights=True),
        "LPIPS head weights not found",
        sha["lpips-v0.1/alex.pth"],
        "from the package torchmetrics or lpips, then pass heads=PATH",
    )
    refused(st_lpips, "ST-LPIPS weights not found", "pip install --no-deps stlpips-pytorch", "pass weights=PATH")


def test_names_of_the_package() -> None:
    assert evaluation.lpips is lpips and evaluation.st_lpips is st_lpips and evaluation.dists is dists
