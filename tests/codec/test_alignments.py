"""The alignments against closed forms."""

import doctest
import math

import pytest
import torch

from diffdistill.codec import alignments
from diffdistill.codec.alignments import contrastive_alignment, cosine_alignment, released_step


def test_examples() -> None:
    found = doctest.testmod(alignments)
    assert found.attempted == 5 and not found.failed


@pytest.mark.parametrize("degrees", [0.0, 59.0, 61.0, 90.0, 150.0])
def test_the_cosine_alignment_of_an_angle(degrees: float) -> None:
    """With a margin of 1/2, angles up to 60 degrees are good enough; lengths do not matter."""
    angle = math.radians(degrees)
    target = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(2, 2, 3, 5)
    x0 = (7 * torch.tensor([math.cos(angle), math.sin(angle)])).view(1, 2, 1, 1).repeat(2, 1, 3, 5).requires_grad_()
    found = cosine_alignment(x0, target).mean()
    assert found.item() == pytest.approx(max(0.0, 0.5 - math.cos(angle)), abs=1e-6)
    found.backward()
    assert x0.grad is not None and bool(x0.grad.abs().sum() > 0) == (degrees > 60)
    assert cosine_alignment(x0, target, margin=0.1)[1].item() == pytest.approx(
        max(0.0, 0.9 - math.cos(angle)), abs=1e-6
    )


def test_the_contrastive_alignment_of_orthogonal_embeddings() -> None:
    """Own cosine 1 and others 0 at temperature T: log(1 + (B - 1) exp(-1 / T)) both ways."""
    for temperature in (1.0, 0.2):
        found = contrastive_alignment(3 * torch.eye(5), torch.eye(5), torch.tensor(temperature).log())
        assert float(found) == pytest.approx(math.log(1 + 4 * math.exp(-1 / temperature)), rel=1e-4)
    shifted = contrastive_alignment(torch.eye(5), torch.eye(5).roll(1, 0), torch.tensor(1.0).log())
    assert float(shifted) == pytest.approx(math.log(4 + math.e), rel=1e-4)
    with pytest.raises(ValueError, match=r"both should be \(B, D\)"):
        contrastive_alignment(torch.eye(5), torch.eye(4), torch.tensor(0.0))


def test_the_contrastive_alignment_is_symmetric_and_trains_the_temperature() -> None:
    torch.manual_seed(0)
    a, b, log_temperature = torch.randn(6, 4), torch.randn(6, 4), torch.tensor(0.3, requires_grad=True)
    found = contrastive_alignment(a, b, log_temperature)
    torch.testing.assert_close(found, contrastive_alignment(b, a, log_temperature))
    found.backward()
    assert log_temperature.grad is not None and log_temperature.grad != 0


def test_the_released_step_is_continuous() -> None:
    s = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    torch.testing.assert_close(released_step(s), (0.4 + 0.15 * s.abs()).clamp(max=1.0))
