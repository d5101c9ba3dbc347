"""The moving average against its recursion and the closed forms of it."""

import pytest
import torch
from torch import nn

from diffdistill.models.ema import Ema


def trajectory(ema: Ema, p: nn.Parameter, values: list[float]) -> list[float]:
    """The average after each update, the weight having been set to each value before it."""
    averages = []
    for value in values:
        with torch.no_grad():
            p.fill_(value)
        ema.update()
        averages.append(ema.shadow["weight"].item())
    return averages


def one_weight(value: float = 1.0) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def test_without_warm_up_it_is_the_geometric_sum() -> None:
    module = one_weight(1.0)
    weights = [3.0, -2.0, 5.0, 0.5]
    found = trajectory(Ema(module, 0.9, warmup=False), module.weight, weights)
    n = len(weights)
    # shadow_n = decay^n w_0 + (1 - decay) sum_k decay^(n - k) w_k
    expected = 0.9**n + 0.1 * sum(0.9 ** (n - k) * w for k, w in enumerate(weights, start=1))
    assert found[-1] == pytest.approx(expected, rel=1e-6)


def test_with_warm_up_it_is_the_recursion_with_the_smaller_decay() -> None:
    module = one_weight(1.0)
    weights = [float(k % 7) for k in range(40)]
    found = trajectory(Ema(module, 0.5), module.weight, weights)
    # (1 + k) / (10 + k): 1/10, 2/11, ... and 1/2 from k = 8 on, where the decay itself takes over
    decays = [0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, *[0.5] * 32]
    average = 1.0
    for weight, decay, value in zip(weights, decays, found, strict=True):
        average = decay * average + (1 - decay) * weight
        assert value == pytest.approx(average, rel=1e-5, abs=1e-6)


def test_a_continuation_goes_on_in_the_warm_up() -> None:
    module, other = one_weight(), one_weight()
    first = Ema(module, 0.999)
    trajectory(first, module.weight, [2.0, 3.0])
    second = Ema(other, 0.999)
    second.load({name: value.clone() for name, value in first.shadow.items()}, first.updates)
    later = [5.0, -4.0, 1.0]
    assert trajectory(first, module.weight, later) == trajectory(second, other.weight, later)


def test_it_is_in_the_network_only_within_the_block() -> None:
    module = one_weight(1.0)
    ema = Ema(module, 0.75, warmup=False)
    trajectory(ema, module.weight, [5.0])
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        assert module.weight.item() == 2.0  # 0.75 * 1 + 0.25 * 5
        raise RuntimeError("inside")
    assert module.weight.item() == 5.0


def test_frozen_weights_have_none_and_half_ones_one_in_float32() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    module[0].weight.requires_grad_(False)
    ema = Ema(module, 0.999, warmup=False)
    assert set(ema.shadow) == {"0.bias", "1.weight", "1.bias"}
    assert {value.dtype for value in ema.shadow.values()} == {torch.float32}
    with torch.no_grad():
        module[1].weight.fill_(1.0)
    ema.shadow["1.weight"].zero_()
    for _ in range(100):
        ema.update()
    # bf16 would stand still after a few such steps
    torch.testing.assert_close(ema.shadow["1.weight"], torch.full((2, 2), 1 - 0.999**100), rtol=1e-4, atol=0)
