"""Randomness is a function of (seed, stream, global index) and of nothing else."""

import pytest
import torch

from diffdistill.distill import SampleRandom


def everything(random: SampleRandom) -> list[torch.Tensor]:
    return [
        random.normal("noise", (2, 3)),
        random.normal("noise", (2, 3), torch.float64),
        random.uniform("time"),
        random.integers("prompt", 1000),
        random.bernoulli("drop", 0.5),
    ]


def test_two_halves_are_the_whole() -> None:
    whole = everything(SampleRandom(3, range(8)))
    halves = zip(everything(SampleRandom(3, range(4))), everything(SampleRandom(3, range(4, 8))), strict=True)
    for all_rows, parts in zip(whole, halves, strict=True):
        assert torch.equal(all_rows, torch.cat(parts))


def test_order_and_company_do_not_matter() -> None:
    forward = everything(SampleRandom(3, [5, 9, 2]))
    for rows, backward in zip(forward, everything(SampleRandom(3, [2, 9, 5])), strict=True):
        assert torch.equal(rows, backward.flip(0))


def test_a_stream_asked_twice_repeats_and_others_are_left_alone() -> None:
    random = SampleRandom(3, range(4))
    first = everything(random)
    random.normal("another", (5,))
    for before, after in zip(first, everything(random), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(("seed", "stream", "offset"), [(4, "noise", 0), (3, "other", 0), (3, "noise", 64)])
def test_seed_stream_and_index_all_count(seed: int, stream: str, offset: int) -> None:
    base = SampleRandom(3, range(64))
    other = SampleRandom(seed, range(offset, offset + 64))
    assert not bool((base.uniform("noise") == other.uniform(stream)).any())
    a, b = base.normal("noise", (32,)).flatten(), other.normal(stream, (32,)).flatten()
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.08  # 2048 pairs: 3.6 deviations


def test_golden_values() -> None:
    """A resumed run must meet the same times and prompts under a later version."""
    random = SampleRandom(0, [0, 10**9])
    assert random.integers("prompt", 10**6).tolist() == [329696, 260463]
    assert random.uniform("time").tolist() == pytest.approx([0.641405778127295, 0.2427002453971817], abs=1e-15)


def test_distributions() -> None:
    random = SampleRandom(1, range(4000))
    normal = random.normal("a", (16,), torch.float64)
    assert abs(normal.mean().item()) < 0.015 and abs(normal.var().item() - 1) < 0.025
    assert abs(normal.mean(1).var().item() * 16 - 1) < 0.1  # the samples are independent of each other
    uniform = random.uniform("b")
    assert abs(uniform.mean().item() - 0.5) < 0.02 and abs(uniform.var().item() - 1 / 12) < 0.006
    assert uniform.min().item() >= 0 and uniform.max().item() < 1
    counts = torch.bincount(random.integers("c", 5), minlength=5)
    assert len(counts) == 5 and counts.min().item() > 700
    assert abs(random.bernoulli("d", 0.1).double().mean().item() - 0.1) < 0.02


def test_shapes_dtypes_and_edges() -> None:
    random = SampleRandom(0, range(3))
    assert random.normal("a", ()).shape == (3,)
    assert random.normal("a", (2,), torch.bfloat16).dtype == torch.bfloat16
    assert random.uniform("a").dtype == torch.float64
    assert random.integers("a", 1).tolist() == [0, 0, 0]
    assert not random.bernoulli("a", 0.0).any() and random.bernoulli("a", 1.0).all()
    with pytest.raises(ValueError, match="probability"):
        random.bernoulli("a", 1.5)
    with pytest.raises(ValueError, match="high"):
        random.integers("a", 0)
