"""The configs of the papers' sizes train with tiny stand-ins of the same classes, whatever the residual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made import made
from safetensors.torch import load_file
from text3d.tiny_priors import TINY, add_tiny_generators
from text3d.tiny_teachers import SMALL, build, save_teachers

from diffdistill.cli.main import main
from diffdistill.cli.nested import flattened
from diffdistill.distill import SampleRandom
from diffdistill.methods import TextTo3D
from diffdistill.text3d.generators.presets import PRESETS

CONFIGS = Path(__file__).parents[2] / "configs"
STAND_INS = {  # teacher and generator
    "sd21_text_to_3d": ("sd", "triplane_tiny"),
    "mvdream_text_to_3d": ("mvdream", "voxel_tiny"),
    "sd21_text_to_3d_wide": ("sd", "voxel_tiny"),
}
SIZES = {"size": 8, "samples": 6, "resampled": 3}


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_generators(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teachers(tmp_path_factory.mktemp("teachers"))


def arguments(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["method"]["init_args"]
    return found


def from_config(place: Path, name: str, **more: Any) -> Any:
    """The method as the file says, but for the sizes, the dtype, and what `more` says."""
    kind, generator = STAND_INS[name]
    given = {key.replace(".", "__"): value for key, value in flattened(arguments(name)).items()}
    sizes = {f"rendering__dense__{key}": value for key, value in SIZES.items()}
    ours = {"teacher__source", "prompts", "generator", "teacher__dtype"}
    given = {key: value for key, value in given.items() if key not in ours}
    small = {key: given.get(key, value) for key, value in SMALL.items() if key != "regularisers__eikonal"}
    given = {**small, **given, **sizes, "rendering__dense__ray_chunk": 96, **more}
    own = {"teacher__source": str(place / kind), "prompts": str(place / "prompts.txt"), "generator": generator}
    torch.manual_seed(0)
    return made(TextTo3D, **own, **given)


@pytest.mark.parametrize("residual", ["sds", "csd", "asd", "vsd"])
@pytest.mark.parametrize("name", list(STAND_INS))
def test_a_step_of_a_config_changes_what_is_trained(place: Path, name: str, residual: str) -> None:
    more: dict[str, Any] = {"judging__residual": residual}
    if residual == "csd" and name.startswith("sd"):
        more["teacher__directions__mode"] = "words"
    if residual == "vsd":
        more |= {"judging__fake__network": "lora", "judging__fake__lora__rank": 2}
    method = from_config(place, name, **more)
    method.progress = 0.95  # opaque has a weight then
    method.begin_step(3)
    assert method.judge.guidance_scale == 7.5 and method._sharpness == 30.0
    assert method.judge.range == pytest.approx((0.5 - 0.48 * 0.95, 0.981 - 0.48 * 0.95))
    random, carry = SampleRandom(0, [0, 1]), {}
    batch = method.batch([0, 1], random)
    for phase in method.phases(3):
        networks = {key: method.networks[key] for key in phase.networks}
        trained = {f"{key}.{n}": p for key in networks for n, p in networks[key].named_parameters() if p.requires_grad}
        before = {key: p.detach().clone() for key, p in trained.items()}
        loss, logs = phase.loss(batch, random, carry)
        loss.backward()
        torch.optim.AdamW(trained.values(), 1e-3).step()
        assert bool(loss.isfinite()) and all(bool(value.isfinite()) for value in logs.values())
        assert all(bool(p.isfinite().all()) for p in trained.values())
        changed = [key for key, p in trained.items() if not torch.equal(p, before[key])]
        assert len(changed) > len(trained) // 2
        if phase.name == "generator":
            assert {"sparsity", "opaque", "eikonal"} <= logs.keys()
            assert {key.split(".")[0] for key in changed} == {"generator", "background"}
            strengths = {key for key in trained if key.endswith("strength")}
            assert strengths <= set(changed) and bool(strengths) == (STAND_INS[name][1] == "voxel_tiny")
    assert [phase.name for phase in method.phases(3)] == ["generator", "fake"][: 1 + (residual == "vsd")]


@pytest.mark.parametrize("name", list(STAND_INS))
def test_a_config_trains_and_exports(
    place: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, generator = STAND_INS[name]
    assert arguments(name)["generator"] in PRESETS and generator in TINY
    options = {
        "method.teacher.source": place / kind, "method.prompts": place / "prompts.txt", "method.generator": generator,
        **{f"method.rendering.dense.{key}": value for key, value in SIZES.items()},
        "training.samples": 4, "training.batch_size": 2, "training.gradient_accumulation_steps": 1,
        "training.cpu": "true", "training.mixed_precision": "no",
        "training.validate_every": 0, "method.teacher.dtype": "float32", "output_dir": tmp_path / "run",
    }  # fmt: skip
    command = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    assert main(["train", str(CONFIGS / f"{name}.yaml"), *command]) == 0, capsys.readouterr().err
    weights = load_file(tmp_path / "run" / "export" / "model.safetensors")
    start = build(place, kind, generator, prepare=False).networks["generator"].state_dict()
    assert weights.keys() == start.keys() and all(bool(value.isfinite().all()) for value in weights.values())
