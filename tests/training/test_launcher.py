"""What a launcher says against a run's settings: the same gradients where it is let pass, one line where it is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from diffdistill.errors import UserError
from diffdistill.training import launcher
from diffdistill.training.launcher import read_launch
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from small_method import Small, train  # noqa: E402

BASE = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\nnum_machines: 1\n"
PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch):
    """No launcher, and an accelerator of its own for each run."""
    for variable in [name for name in os.environ if name.startswith(PREFIXES)]:
        monkeypatch.delenv(variable)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def settings(**more) -> TrainingSettings:
    return TrainingSettings(**{"samples": 32, "batch_size": 8, "log_every": 1, "cpu": True, **more})


def gradients(run: Path, **more) -> list[torch.Tensor]:
    """Of all parameters of both networks at each step of a run, in turn."""
    run.mkdir()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    trainer, seen = Trainer(Small(), settings(**more), run), []

    def note(optimizer: torch.optim.Optimizer, *_) -> None:
        seen.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])

    for optimizer in trainer.state.optimizers.values():
        optimizer.register_step_pre_hook(note)
    trainer.fit()
    return seen


# ---- let pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"},
        {"ACCELERATE_GRADIENT_CLIPPING": "1.0"},
        {"ACCELERATE_MIXED_PRECISION": "no"},
        {"ACCELERATE_MIXED_PRECISION": "NO", "ACCELERATE_FP8_BACKEND": "NO", "ACCELERATE_FP8_FORMAT": "E4M3",
         "ACCELERATE_DOWNCAST_BF16": "1"},
        {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_DYNAMO_MODE": "max-autotune",
         "ACCELERATE_DYNAMO_USE_FULLGRAPH": "True", "ACCELERATE_DYNAMO_USE_DYNAMIC": "perhaps"},
        {"ACCELERATE_USE_CPU": "True"},
        {"ACCELERATE_TORCH_DEVICE": "cpu"},
        {"ACCELERATE_DEBUG_MODE": "true"},
        {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
        {"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "", "PARALLELISM_CONFIG_TP_SIZE": "2"},
        {"ACCELERATE_USE_SAGEMAKER": "true", "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "NO"},
    ],
    ids=lambda environment: " ".join(f"{k.removeprefix('ACCELERATE_')}={v}" for k, v in environment.items())[:60],
)  # fmt: skip
@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_are_those_of_no_launcher_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], steps: int
) -> None:
    plain = gradients(tmp_path / "plain", gradient_accumulation_steps=steps)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    launched = gradients(tmp_path / "launched", gradient_accumulation_steps=steps)
    assert len(plain) == len(launched) == 4 * 6  # steps; weights and biases of one and of two layers
    assert all(torch.equal(a, b) for a, b in zip(plain, launched, strict=True))


@pytest.mark.parametrize(
    ("environment", "more", "says"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, {}, "ACCUMULATION_STEPS 4 is not used"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, {"gradient_accumulation_steps": 2}, ""),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, {"mixed_precision": "bf16"}, "mixed precision is bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, {"mixed_precision": "auto"}, ""),
        ({}, {}, ""),
    ],
)
def test_what_is_not_followed_is_said(environment: dict[str, str], more: dict[str, object], says: str) -> None:
    remarks = read_launch(settings(**more), environment).remarks
    assert len(remarks) == bool(says) and says in "".join(remarks)


def test_a_run_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    gradients(tmp_path / "run")
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS 8 is not used" in capsys.readouterr().err


def test_the_launchers_bf16_decides_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = Trainer(Small(), settings(mixed_precision="auto"), tmp_path)
    assert trainer.precision == trainer.accelerator.mixed_precision == "bf16"


def test_the_launchers_cpu_is_followed_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "on_cpu", lambda cpu=False: cpu)  # as on a machine with one
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    found = [
        read_launch(settings(cpu=False), environment).cpu
        for environment in (
            {},
            {"ACCELERATE_USE_CPU": "False"},
            {"ACCELERATE_TORCH_DEVICE": "cuda:0"},
            {"ACCELERATE_USE_CPU": "1"},
            {"ACCELERATE_TORCH_DEVICE": "cpu"},
        )
    ]
    assert found == [False, False, False, True, True]


# ---- refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "more", "says"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, "is bf16, training.mixed_precision is no"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {"mixed_precision": "bf16"}, "is fp16, which training does not do"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, {"mixed_precision": "auto"}, "is fp8, which training does not do"),
        ({"ACCELERATE_MIXED_PRECISION": "half"}, {}, "is half, which training does not do"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "0"}, {}, "is '0'; it should be a whole number from 1 up"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "four"}, {}, "is 'four'"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, {}, "is 0.5, training.max_grad_norm is 1"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "none"}, {}, "is none, training.max_grad_norm is 1"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "tight"}, {}, "is 'tight'; it should be a number"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, {}, "training compiles no network"),
        ({"ACCELERATE_DYNAMO_BACKEND": "aot_eager"}, {}, "training compiles no network"),
        ({"ACCELERATE_FP8_BACKEND": "TE"}, {}, "training does not compute in fp8"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "does not run under DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "True"}, {}, "does not run under FSDP"),
        ({"ACCELERATE_USE_FSDP": "1"}, {}, "does not run under FSDP"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "does not run under Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, {}, "does not run under a parallelism config"),
        ({"ACCELERATE_USE_SAGEMAKER": "true"}, {}, "SAGEMAKER_DISTRIBUTED_TYPE is not set"),
        ({"ACCELERATE_USE_FSDP": "perhaps"}, {}, "is 'perhaps'; it should be true or false"),
        ({"ACCELERATE_DEBUG_MODE": "maybe"}, {}, "is 'maybe'; it should be true or false"),
        ({"ACCELERATE_USE_CPU": "2"}, {}, "is '2'; it should be true or false"),
        ({"ACCELERATE_TORCH_DEVICE": "cuda:0"}, {"cpu": True}, "is cuda:0, training is on cpu"),
        ({"ACCELERATE_TORCH_DEVICE": "meta"}, {}, "is meta, training is on cpu"),
        ({"ACCELERATE_TORCH_DEVICE": "gpu?"}, {}, "which is no device"),
    ],
)  # fmt: skip
def test_what_contradicts_the_settings_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], more: dict[str, object], says: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refusal:
        Trainer(Small(), settings(**more), tmp_path)
    message = str(refusal.value)
    if "does not run under" in message and "SAGEMAKER" not in message:
        assert "on several processes by data parallelism (DDP): torchrun" in message
    assert says in message and list(environment)[0] in message or "SAGEMAKER" in message
    assert "\n" not in message and not list(tmp_path.iterdir())


def test_the_launchers_bf16_contradicts_a_checkpoint_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(Small(), settings(), tmp_path).fit()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match="is bf16, the checkpoint's precision is no"):
        Trainer(Small(), settings(mixed_precision="auto"), tmp_path, resume="latest")


# ---- through accelerate's own launcher ------------------------------------------------------------------------


def launched(tmp_path: Path, *flags: str, config: str = "") -> dict[str, str]:
    """The variables that `accelerate launch FLAGS` adds, with a config file of `accelerate config` where given."""
    file = tmp_path / "accelerate.yaml"
    file.write_text(config or f"{BASE}use_cpu: true\n")
    arguments = launch_command_parser().parse_args(["--config_file", str(file), *flags, "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    several = arguments.multi_gpu or arguments.use_fsdp
    made = prepare_multi_gpu_env(arguments) if several else prepare_simple_launcher_cmd_env(arguments)[1]
    return {name: value for name, value in made.items() if name.startswith(PREFIXES)}


@pytest.mark.parametrize("precision", ["no", "bf16", "auto"])
@pytest.mark.parametrize("flags", [(), ("--cpu",), ("--mixed_precision", "no"), ("--debug", "--enable_cpu_affinity")])
def test_what_a_launcher_sets_unasked_stands_in_no_ones_way(
    tmp_path: Path, precision: str, flags: tuple[str, ...]
) -> None:
    environment = launched(tmp_path, *flags)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no" and "ACCELERATE_DYNAMO_MODE" in environment
    assert read_launch(settings(mixed_precision=precision), environment).mixed_precision == precision


@pytest.mark.parametrize(
    ("flags", "config", "says"),
    [
        (("--mixed_precision", "bf16"), "", "is bf16, training.mixed_precision is no"),
        (("--mixed_precision", "fp16"), "", "is fp16"),
        (("--dynamo_backend", "inductor"), "", "ACCELERATE_DYNAMO_BACKEND is INDUCTOR"),
        (("--use_fsdp",), "", "does not run under FSDP"),
        ((), "mixed_precision: bf16\n", "is bf16, training.mixed_precision is no"),
        ((), "dynamo_config: {dynamo_backend: EAGER, dynamo_mode: default}\n", "ACCELERATE_DYNAMO_BACKEND is EAGER"),
        ((), "distributed_type: FSDP\nmachine_rank: 0\nfsdp_config: {fsdp_version: 2}\n", "does not run under FSDP"),
    ],
)  # fmt: skip
def test_what_is_asked_of_a_launcher_is_refused(tmp_path: Path, flags: tuple[str, ...], config: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_launch(settings(), launched(tmp_path, *flags, config=BASE + config))


def test_accelerate_launch_trains_to_the_same_bits(tmp_path: Path) -> None:
    script = [str(HERE / "run_small.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    subprocess.run([*command, *script, str(tmp_path / "two"), "32"], check=True, env=environment)
    train(tmp_path / "one", samples=32)
    one, two = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two"))
    kept = [[{k: v for k, v in json.loads(x).items() if "seconds" not in k} for x in lines] for lines in (one, two)]
    assert len(one) == 4 and kept[0] == kept[1]


# ---- measuring ------------------------------------------------------------------------------------------------


def test_processes_that_measure_are_joined_without_what_shards_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffdistill.cli.eval.options import processes

    seen: list[dict[str, str]] = []

    class State:
        def __init__(self, cpu: bool) -> None:
            seen.append({name: os.environ[name] for name in launcher.STRATEGIES})

        def destroy_process_group(self) -> None:
            pass

    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with processes():
        assert os.environ["ACCELERATE_USE_FSDP"] == "false"
    assert set(seen[0].values()) == {"false"} and os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ
