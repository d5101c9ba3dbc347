"""Adversarial losses against the cross-entropy they are, and the head against its shapes."""

import pytest
import torch
from torch.nn import functional

from diffdistill.distill import DiscriminatorHead, discriminator_loss, generator_loss


def test_losses_are_cross_entropies() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (3 * torch.randn(5, 1, generator=generator) for _ in range(2))
    entropy = functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(generator_loss(fake), entropy(fake, torch.ones_like(fake)))
    both = entropy(real, torch.ones_like(real)) + entropy(fake, torch.zeros_like(fake))
    torch.testing.assert_close(discriminator_loss(real, fake), both)


def test_a_generator_that_is_found_out_still_gets_a_gradient() -> None:
    logits = torch.tensor([-50.0], requires_grad=True)
    generator_loss(logits).backward()
    assert logits.grad is not None and logits.grad.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("size", [(8, 8), (4, 6), (1, 1)])
def test_head_pools_its_patches(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pooled, patches = DiscriminatorHead(6, 16), DiscriminatorHead(6, 16, patches=True)
    patches.load_state_dict(pooled.state_dict())
    features = torch.randn(3, 6, *size)
    logits = patches(features)
    assert logits.shape == (3, 1, (size[0] + 1) // 2, (size[1] + 1) // 2)
    torch.testing.assert_close(pooled(features), logits.mean(dim=(2, 3)))
    assert len(pooled(features).unique()) == 3  # samples differ even where a map is one pixel


def test_head_rejects_a_width_that_makes_no_groups() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        DiscriminatorHead(8, 10)


def test_head_learns_to_tell_two_means_apart() -> None:
    torch.manual_seed(0)
    head = DiscriminatorHead(2, 8)
    optimiser = torch.optim.Adam(head.parameters(), lr=2e-2)
    direction = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    for _ in range(30):
        real, fake = torch.randn(16, 2, 4, 4) + direction, torch.randn(16, 2, 4, 4) - direction
        loss = discriminator_loss(head(real), head(fake))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3
