"""Shortcut's options of the released code: sizes of steps, and captions that bootstrapped samples keep."""

from typing import Any

import pytest
import torch
from any_step_builds import build

from diffdistill.distill import SampleRandom
from diffdistill.distill.shortcut import shortcut_times
from diffdistill.errors import UserError


def dealt(batch: int, levels: int = 7) -> dict[float, float]:
    """Shares of the step sizes among the bootstrapped rows of a batch, dealt as the released code deals them."""
    n = batch // 8
    exponents = [level for level in reversed(range(levels)) for _ in range(n // levels)]
    exponents += [0] * (n - len(exponents))
    return {0.5**level: exponents.count(level) / n for level in range(levels)}


@pytest.mark.parametrize("batch", [64, 256])
def test_an_eighth_of_whole_steps_gives_the_released_sizes(batch: int) -> None:
    n = 40000
    random = SampleRandom(0, range(n))
    draws = (random.uniform("size"), random.uniform("place"), torch.zeros(n, dtype=torch.bool), random.uniform("time"))
    t, s = shortcut_times(*draws, 128, random.bernoulli("whole", 0.125))
    found = {size: ((t - s) == size).double().mean().item() for size in dealt(batch)}
    for size, share in dealt(batch).items():
        assert abs(found[size] - share) < 0.01
    assert sum(found.values()) == pytest.approx(1)
    assert ((t / (t - s)) % 1 == 0).all()  # each starts on the grid of its size


@pytest.mark.parametrize("finest", [2, 8, 128])
def test_without_whole_steps_every_size_is_as_likely_as_before(finest: int) -> None:
    random = SampleRandom(1, range(64))
    draws = (random.uniform("size"), random.uniform("place"), random.bernoulli("same", 0.5), random.uniform("time"))
    plain = shortcut_times(*draws, finest)
    none = shortcut_times(*draws, finest, random.bernoulli("whole", 0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain, none, strict=True))
    t, s = shortcut_times(*draws, finest, random.bernoulli("whole", 1.0))
    assert ((t - s) == torch.where(draws[2], 0.0, 1.0)).all()


def dropped(method: Any, random: SampleRandom, n: int) -> torch.Tensor:
    ids = method.batch([i % 16 for i in range(n)], random)["ids"]
    return (ids == method.null).all(1)


@pytest.mark.parametrize("same", [0.0, 0.5, 0.875])
def test_bootstrapped_samples_keep_their_captions(pictures: str, same: float) -> None:
    n, random = 64, SampleRandom(0, range(64))
    method = build(pictures, "shortcut", flow_matching_share=same, augmentation__drop_text=0.5)
    asked, plain = random.bernoulli("drop_text", 0.5), random.bernoulli("same", same)
    assert torch.equal(dropped(method, random, n), asked & plain)
    both = build(pictures, "shortcut", flow_matching_share=same, augmentation__drop_text=0.5, drop_bootstrapped=True)
    assert torch.equal(dropped(both, random, n), asked)
    for key in ("x0", "ids"):  # the loss's rows are the batch's: a sample with a step has s < t
        a, b = (m.batch(list(range(16)), SampleRandom(0, range(16)))[key] for m in (method, both))
        keep = random.bernoulli("same", same)[:16] | ~asked[:16]
        assert torch.equal(a[keep], b[keep])


def test_previews_are_guided_only_where_the_empty_caption_is_learnt_at_every_size(pictures: str) -> None:
    scales = [
        build(pictures, "shortcut", guidance_scale=guidance, drop_bootstrapped=drop).preview_guidance
        for guidance, drop in ((1.0, True), (1.0, False), (2.0, True))
    ]
    assert scales == [2.0, 1.0, 1.0]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_whole_steps_outside_0_to_1_is_refused(pictures: str, share: float) -> None:
    with pytest.raises(UserError, match=f"whole_steps is {share}"):
        build(pictures, "shortcut", whole_steps=share)
