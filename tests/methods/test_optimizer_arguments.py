"""Weight decay and Adam's eps: each method's default, the recipes' own, and what the loop makes of them."""

from pathlib import Path
from typing import Any

import any_step_builds
import pytest
import tiny_pipeline as tiny
import torch
import yaml
from made import made

from diffdistill.data.captioned import CaptionedData
from diffdistill.errors import UserError
from diffdistill.methods import ASD, BOOT, DMD2, Consistency, OptimizerSettings, Progressive, SiD, SwiftBrush
from diffdistill.methods.settings import FakeScore, LoraSettings
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]
ONE_STEP = (SwiftBrush, DMD2, SiD, ASD, BOOT, Progressive)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimizers")
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    tiny.save_tiny_pipeline(folder / "teacher")
    return folder


def one_step(kind: Any, folder: Path, **more: Any) -> Any:
    return made(kind, teacher__source=str(folder / "teacher"), prompts=str(folder / "prompts.txt"), **more)


@pytest.mark.parametrize(("name", "decay"), [("self_e", 0.0), ("flow", 0.0), ("mean_flow", 0.0), ("shortcut", 0.1)])
def test_the_default_is_what_was_published_with_the_method(pictures: str, name: str, decay: float) -> None:
    assert any_step_builds.build(pictures, name).optimizers["model"].weight_decay == decay


@pytest.mark.parametrize("decay", [0.0, 1e-3, 0.3])
def test_weight_decay_reaches_the_optimizer(pictures: str, tmp_path: Path, decay: float) -> None:
    method = any_step_builds.build(pictures, "shortcut", optimizer__weight_decay=decay)
    trainer = Trainer(method, TrainingSettings(8, batch_size=4, cpu=True), tmp_path)
    assert {group["weight_decay"] for group in trainer.state.optimizers["model"].param_groups} == {decay}


@pytest.mark.parametrize("recipe", ["emoji_self_e", "emoji_flow", "emoji_mean_flow", "emoji_shortcut"])
def test_the_recipes_name_the_decay_that_their_numbers_are_of(recipe: str) -> None:
    settings = yaml.safe_load((ROOT / "configs" / f"{recipe}.yaml").read_text())
    assert float(settings["method"]["init_args"]["optimizer"]["weight_decay"]) == 1e-3


@pytest.mark.parametrize("kind", ONE_STEP)
def test_eps_reaches_every_optimizer_of_a_one_step_method(kind: Any, folder: Path) -> None:
    assert {settings.eps for settings in one_step(kind, folder).optimizers.values()} == {1e-8}
    fake = {"fake__optimizer__eps": 1e-12} if kind in (SwiftBrush, DMD2, SiD) else {}
    method = one_step(kind, folder, optimizer__eps=1e-12, **fake)
    assert {settings.eps for settings in method.optimizers.values()} == {1e-12}
    assert len(method.optimizers) == (2 if kind in (SwiftBrush, DMD2, SiD) else 1)


def test_eps_of_consistency_and_of_the_fake_score(pictures: str, folder: Path) -> None:
    consistency = made(
        Consistency, False, teacher__source=any_step_builds.TEACHER, data__source=pictures, optimizer__eps=1e-6
    )
    assert consistency.optimizers["student"].eps == 1e-6
    fake = {"learning_rate": 3e-4, "betas": (0.5, 0.9), "eps": 1e-5}
    settings = one_step(DMD2, folder, **{f"fake__optimizer__{k}": v for k, v in fake.items()}).optimizers["fake"]
    assert settings == OptimizerSettings(3e-4, (0.5, 0.9), 0.0, 1e-5)


@pytest.mark.parametrize(("scale", "eps"), [(16384.0, 1e-8), (1024.0, 1e-6), (64.0, 1e-4)])
def test_a_loss_times_n_is_adam_with_eps_over_n(scale: float, eps: float) -> None:
    """What docs/methods/README.md says of losses that are a sum where others are a mean."""
    torch.manual_seed(0)
    start, gradients = torch.randn(50, dtype=torch.float64), 1e-7 * torch.randn(5, 50, dtype=torch.float64)

    def run(factor: float, eps: float) -> torch.Tensor:
        p = torch.nn.Parameter(start.clone())
        adam = torch.optim.AdamW([p], lr=1e-3, weight_decay=0.0, eps=eps)
        for gradient in gradients:
            p.grad = factor * gradient
            adam.step()
        return p.detach()

    torch.testing.assert_close(run(scale, eps), run(1.0, eps / scale), rtol=0, atol=1e-12)
    assert (run(scale, eps) - run(1.0, eps)).abs().max() > 1e-5  # and eps as it is does matter at such gradients


def test_a_fake_score_of_unknown_kind_and_adapters_of_no_size_are_refused() -> None:
    for name in ("network", "train_times"):
        with pytest.raises(UserError, match=f"{name} is 'lorra'; it must be one of '"):
            FakeScore(**{name: "lorra"})
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"alpha is {value}; it must be a number above 0"):
            LoraSettings(alpha=value)
    with pytest.raises(UserError, match="rank is 0; it must be at least 1"):
        LoraSettings(rank=0)
    with pytest.raises(UserError, match="targets is empty"):
        LoraSettings(targets=())
    assert LoraSettings(targets=None).targets is None


@pytest.mark.parametrize("value", [0.0, -1e-8, float("nan"), float("inf")])
def test_an_eps_that_is_none_is_refused(folder: Path, value: float) -> None:
    with pytest.raises(UserError, match=f"eps is {value}; it must be above 0"):
        one_step(ASD, folder, optimizer__eps=value)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_decay_that_is_none_is_refused(pictures: str, value: float) -> None:
    with pytest.raises(UserError, match=f"weight_decay is {value}; it must be a number from 0"):
        any_step_builds.build(pictures, "mean_flow", optimizer__weight_decay=value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"betas": 0.9}, r"betas are 0.9; they must be two numbers in \[0, 1\), such as \(0.9, 0.999\)"),
        ({"betas": (0.9,)}, r"betas are \(0.9,\); they must be two numbers"),
        ({"betas": ("0.9", "0.99")}, "they must be two numbers"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"),
        ({"learning_rate": "1e-3"}, "a learning rate is '1e-3'; it must be above 0"),
        ({"learning_rate": None}, "a learning rate is None"),
        ({"weight_decay": "0"}, "weight_decay is '0'; it must be a number from 0"),
        ({"eps": "1e-8"}, "eps is '1e-8'; it must be above 0"),
    ],
)
def test_values_of_another_type_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        OptimizerSettings(**{"learning_rate": 1e-3, **given})


@pytest.mark.parametrize("kind", [*ONE_STEP, Consistency])
def test_a_teacher_without_settings_is_refused(kind: Any, pictures: str, folder: Path) -> None:
    source: Any = {"data": CaptionedData(pictures)} if kind is Consistency else {"prompts": str(folder / "prompts.txt")}
    with pytest.raises(UserError, match=r"teacher is 'a/b'; it must be settings, such as TeacherSettings\("):
        kind("a/b", **source)
