"""Randomness is a function of (seed, stream, global index) and of nothing else."""

import os
import socket
import subprocess
import sys
from pathlib import Path

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
        random.uniform("boxes", (2, 3)),
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


def test_uniform_numbers_of_a_shape() -> None:
    random = SampleRandom(2, range(500))
    values = random.uniform("boxes", (4, 5))
    assert values.shape == (500, 4, 5) and values.dtype == torch.float64
    assert values.min().item() >= 0 and values.max().item() < 1
    assert abs(values.mean().item() - 0.5) < 0.012 and abs(values.var().item() - 1 / 12) < 0.004  # 4 deviations
    assert abs(values.mean((1, 2)).var().item() * 20 * 12 - 1) < 0.25  # the samples are independent of each other
    assert torch.equal(random.uniform("boxes", (4, 5)), values)
    assert random.uniform("boxes", ()).shape == (500,) and random.uniform("boxes", [0]).shape == (500, 0)


def test_views_of_a_sample_depend_on_sample_and_view_alone() -> None:
    for all_rows, part in zip(everything(SampleRandom(3, [5, 9]).views(3)), everything(SampleRandom(3, [9]).views(2)),
                              strict=True):  # fmt: skip
        assert len(all_rows) == 6
        assert torch.equal(all_rows[3:5], part)  # whichever samples and however many views there are beside them
    views = SampleRandom(3, range(64)).views(4)
    assert views.indices == [i for i in range(64) for _ in range(4)]
    drawn = views.uniform("time")
    assert len(drawn.unique()) == 256 and not torch.isin(SampleRandom(3, range(64)).uniform("time"), drawn).any()
    rows = torch.tensor([7, 2, 2])
    assert torch.equal(views.rows(rows).normal("a", (3,)), views.normal("a", (3,))[rows])
    nested = SampleRandom(3, [5]).views(2).views(3)
    assert len(nested) == 6 and len(nested.uniform("time").unique()) == 6
    # "z" of view 2 of sample 0 is hashed apart from "z/0" of sample 2
    assert SampleRandom(3, [0]).views(3).uniform("z")[2] != SampleRandom(3, [2]).uniform("z/0")[0]
    with pytest.raises(ValueError, match="1 or more"):
        views.views(0)


def test_gathering_on_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2)
    assert SampleRandom(0, range(3)).gather(x) is x
    with pytest.raises(ValueError, match="2 rows"):
        SampleRandom(0, range(3)).gather(x[:2])


GATHER = """
import sys, torch
from torch import distributed
from diffdistill.distill import SampleRandom

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
indices = [[4, 1, 6], [3, 0, 5]][rank]  # in no order
for views in (1, 2):
    random = SampleRandom(0, indices) if views == 1 else SampleRandom(0, indices).views(views)
    whole = SampleRandom(0, sorted([4, 1, 6, 3, 0, 5]))
    whole = whole if views == 1 else whole.views(views)
    x = random.normal("x", (2, 2), torch.float64).transpose(1, 2).requires_grad_()  # not contiguous
    gathered = random.gather(x)
    everything = whole.normal("x", (2, 2), torch.float64).transpose(1, 2).requires_grad_()
    assert torch.equal(gathered, everything)
    weights = torch.arange(gathered.numel(), dtype=torch.float64).view_as(gathered)
    (weights * gathered.pow(3)).sum().backward()
    (weights * everything.pow(3)).sum().backward()
    mine = torch.tensor([whole.indices.index(i) + v for i in indices for v in range(views)])
    torch.testing.assert_close(x.grad / 2, everything.grad[mine])  # averaged over two processes
distributed.destroy_process_group()
"""


def test_gathering_over_two_processes_is_in_the_order_of_samples_and_differentiable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", GATHER, str(rank), port], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-2000:]
