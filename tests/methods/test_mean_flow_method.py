"""MeanFlow as a method: its target's precision, and differences in place of derivatives."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from any_step_builds import TEACHER, build, first_loss

from diffdistill.distill.mean_flow import total_derivative
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture
def one_precision() -> Iterator[None]:
    """accelerate keeps one precision a process; here it may be another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", ["mean_flow", "mean_flow_difference"])
def test_mean_flows_target_is_in_full_precision_in_a_lower_run(
    pictures: str, tmp_path: Path, name: str, one_precision: None
) -> None:
    """accelerate gives a network a forward that starts autocast by itself."""
    settings = TrainingSettings(16, batch_size=8, cpu=True, mixed_precision="bf16", validate_every=0)
    trainer = Trainer(build(pictures, name), settings, tmp_path)
    found = {}
    for method, precision in ((trainer.method, trainer.accelerator.autocast()), (build(pictures, name), nullcontext())):
        seen = patch("diffdistill.methods.mean_flow.mean_flow_loss", side_effect=KeyboardInterrupt)
        with seen as called, precision, pytest.raises(KeyboardInterrupt):
            first_loss(method)
        x0, t, r, eps = called.call_args.args[1:5]
        told = called.call_args.kwargs
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            value = told["target"](method.schedule.add_noise(x0, eps, t), t, r, told["target_cond"]).flow
        found[method] = value, told["velocity"], told["target_cond"]
    for lower, plain in zip(*found.values(), strict=True):
        assert torch.equal(lower, plain) if lower is not None else plain is None
    trainer.fit()


def test_differences_are_as_fine_as_the_times_that_a_teacher_is_told(pictures: str) -> None:
    method = build(pictures, "mean_flow_difference", network__init_from=TEACHER, network__attention="math")
    x, v = torch.randn(2, 8, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 0.95, 8, dtype=torch.float64)
    cond = method.live_text(method.source.tokenize(["red apple, noto"] * 8))

    def u(x: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return method.exact(x, t, r, cond).flow

    exact = total_derivative(u, x, t, t / 2, v)
    near = total_derivative(u, x, t, t / 2, v, "difference", method.step)
    assert (near - exact).norm() < 0.02 * exact.norm()
    assert build(pictures, "mean_flow_difference").step == 5e-3
