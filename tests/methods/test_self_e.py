"""Self-E, MeanFlow and shortcut models as methods: what they train, what they resume, and what they export."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny_pipeline as tiny
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_pictures import save_tiny_pictures

from diffdistill.diffusion import Denoiser, ddim
from diffdistill.diffusion.any_step import TwoTimeDenoiser, any_step
from diffdistill.distill import SampleRandom, denoising_loss
from diffdistill.distill.mean_flow import total_derivative
from diffdistill.errors import UserError
from diffdistill.methods import MeanFlow, SelfE, Shortcut, unwrap
from diffdistill.models.any_step_pipeline import AnyStepModel, load_any_step
from diffdistill.models.generate import generate
from diffdistill.models.teacher import load_teacher
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]
TEACHER = str(ROOT / "assets" / "teacher")
VAE = str(ROOT / "assets" / "teacher" / "vae")
SMALL = {"block_out_channels": (32, 32), "text_width": 32, "text_layers": 1, "learning_rate": 1e-3}
METHODS = {
    "self_e": (SelfE, {"span_share": 0.5, "evaluator_decay": 0.9, "fake_from": 0.5, "reach": 0.75}),
    "flow": (SelfE, {"same": 1.0}),
    "mean_flow": (MeanFlow, {"same": 0.5, "guidance": 2.0, "guidance_mix": 0.5}),
    "mean_flow_difference": (MeanFlow, {"same": 0.5, "derivative": "difference"}),
    "shortcut": (Shortcut, {"same": 0.5, "finest": 8, "guidance": 2.0, "average_decay": 0.9}),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_pictures(tmp_path_factory.mktemp("data") / "pictures"))


@pytest.fixture
def one_precision() -> Iterator[None]:
    """accelerate keeps one precision a process; here it may be another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def build(pictures: str, name: str = "self_e", **more: Any) -> Any:
    torch.manual_seed(0)
    kind, options = METHODS[name]
    return kind(VAE, pictures, **{**SMALL, **options, **more})


def first_loss(method: Any, progress: float = 0.75, n: int = 8) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    method.progress = progress
    random = SampleRandom(0, range(n))
    return method.phases(0)[0].loss(method.batch([i % 16 for i in range(n)], random), random, {})


def test_same_1_is_flow_matching_of_the_one_time_network_to_the_bit(pictures: str) -> None:
    method = build(pictures, "flow")
    assert list(method.networks) == ["model"]
    loss, _ = first_loss(method)
    random = SampleRandom(0, range(8))
    batch = method.batch(range(8), random)
    t = torch.sigmoid(0.42 + random.normal("time", (), torch.float64))
    eps = method.noise(random, "noise", batch["x0"])
    model = unwrap(method.networks["model"])
    expected = denoising_loss(method.live.instantaneous, batch["x0"], t, eps, batch["ids"], "flow")
    assert torch.equal(loss, expected)
    x_t, value = method.schedule.add_noise(batch["x0"], eps, t), None
    with torch.no_grad():
        told = (1000 * t).float()
        stock = model.unet(x_t, told, encoder_hidden_states=model.encode(batch["ids"])).sample
        value = model(x_t, told, told * 0.3, batch["ids"])
    assert torch.equal(value, stock)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_in_the_same_weights(pictures: str, tmp_path: Path, name: str) -> None:
    settings = TrainingSettings(32, batch_size=8, checkpoint_every=16, cpu=True, log_every=1)
    for run in ("whole", "resumed"):
        (tmp_path / run).mkdir()
    Trainer(build(pictures, name), settings, tmp_path / "whole").fit()
    middle = tmp_path / "whole" / "checkpoint-0000000016"
    Trainer(build(pictures, name), settings, tmp_path / "resumed", resume=str(middle)).fit()
    whole, resumed = (tmp_path / run / "checkpoint-0000000032" for run in ("whole", "resumed"))
    groups = ["model", "model.optimizer", "ema"] + (["average"] if (whole / "average.safetensors").exists() else [])
    assert ("average" in groups) == (name in ("self_e", "shortcut"))
    for group in groups:
        a, b = (load_file(run / f"{group}.safetensors") for run in (whole, resumed))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), group
    moved = load_file(whole / "model.safetensors")
    second = moved["unet.time_embedding.interval.linear_2.weight"]
    assert bool(second.abs().max() > 0)  # both times are learnt


def test_the_judge_is_the_average_and_follows_once_a_step(pictures: str) -> None:
    method = build(pictures)
    before = [p.clone() for p in method.networks["average"].parameters()]
    with torch.no_grad():
        for p in method.networks["model"].parameters():
            p.add_(0.1)
    method.phases(0)
    for a, b in zip(method.networks["average"].parameters(), before, strict=True):
        assert torch.equal(a, b)
    for _ in range(3):  # however often it is asked for
        method.phases(1)
    for a, b in zip(method.networks["average"].parameters(), before, strict=True):
        torch.testing.assert_close(a, b + (1 - 2 / 11) * 0.1, rtol=1e-5, atol=1e-6)
    loss, logs = first_loss(method)
    loss.backward()
    assert all(p.grad is None for p in method.networks["average"].parameters())
    assert set(logs) == {"span", "delta_rms", "fake"} and logs["delta_rms"] > 0


def test_s_moves_away_from_t_and_the_fake_branch_joins_as_the_run_goes_on(pictures: str) -> None:
    method = build(pictures, span_from=0.25, span_share=0.5)
    for progress, span, fake in ((0.0, 0.0, False), (0.25, 0.0, False), (0.5, 0.5, True), (0.8, 1.0, True)):
        seen = patch("diffdistill.methods.self_e.self_evaluation_loss", side_effect=KeyboardInterrupt)
        with seen as called, pytest.raises(KeyboardInterrupt):
            first_loss(method, progress, 64)
        _, _, t, s, *_ = called.call_args.args
        fake_ids = called.call_args.args[10]
        lowest = (s / t).min().item()
        assert lowest >= 1 - span - 1e-9 and lowest < 1 - 0.8 * span + 1e-9
        assert (fake_ids is not None) == fake
        assert 0.3 < (s == t).double().mean() < 0.7 or span == 0


@pytest.mark.parametrize("name", METHODS)
def test_in_bfloat16_all_of_the_network_learns_what_it_learns_in_float32(pictures: str, name: str) -> None:
    """Autocast keeps the weights it has cast: they must not be those of a pass without a graph."""
    method = build(pictures, name)
    model = method.networks["model"]
    with torch.no_grad():
        for p in model.unet.time_embedding.interval.linear_2.parameters():
            p.normal_(std=0.1)
    gradients = []
    for lower in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            loss, _ = first_loss(method)
        loss.backward()
        found = {key: p.grad for key, p in model.named_parameters()}
        assert [key for key, g in found.items() if g is None] == []
        gradients.append(torch.cat([g.flatten() for g in found.values()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95


@pytest.mark.parametrize("name", METHODS)
def test_a_pass_in_lower_precision_without_a_graph_never_comes_first(pictures: str, name: str) -> None:
    """Older versions of torch keep the weights that such a pass has cast, and those get no gradient."""
    method = build(pictures, name)
    passes: dict[int, list[bool]] = {}

    def seen(module: Any, inputs: Any) -> None:
        if torch.is_autocast_enabled("cpu"):
            passes.setdefault(id(module), []).append(torch.is_grad_enabled())

    for part in (unwrap(method.networks["model"]).unet, unwrap(method.networks["model"]).text_encoder):
        part.register_forward_pre_hook(seen)
    with torch.autocast("cpu", torch.bfloat16):
        first_loss(method)
    assert len(passes) == 2 and all(graphs[0] for graphs in passes.values())


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
    method = build(pictures, "mean_flow_difference", init_from=TEACHER, attention="math")
    x, v = torch.randn(2, 8, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 0.95, 8, dtype=torch.float64)
    cond = method.live_text(method.source.tokenize(["red apple, noto"] * 8))

    def u(x: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return method.exact(x, t, r, cond).flow

    exact = total_derivative(u, x, t, t / 2, v)
    near = total_derivative(u, x, t, t / 2, v, "difference", method.step)
    assert (near - exact).norm() < 0.02 * exact.norm()
    assert build(pictures, "mean_flow_difference").step == 5e-3


def test_the_pictures_shift_and_the_grids_are_two_things(pictures: str) -> None:
    for name, expected in (("self_e", math.exp(0.42)), ("mean_flow", 1.0), ("shortcut", 1.0)):
        still, moved = (build(pictures, name, shift=shift, variants=2) for shift in (0, 3))
        assert still.schedule.shift == moved.schedule.shift == pytest.approx(expected)
        assert still.source.latents.shape[1] == 1 and moved.source.latents.shape[1] == 2


def test_a_preview_is_not_guided_twice(pictures: str) -> None:
    for name, more, expected in (
        ("self_e", {}, 2.0), ("mean_flow", {}, 1.0), ("mean_flow", {"guidance": None}, 2.0), ("shortcut", {}, 1.0),
        ("shortcut", {"guidance": 1.0}, 2.0),
    ):  # fmt: skip
        method = build(pictures, name, **more)
        with patch.object(AnyStepModel, "sample", return_value=torch.zeros(16, 8, 8, 8)) as called:
            method.preview()
        assert [(c.args[3], c.args[4]) for c in called.call_args_list] == [(1, 1.0), (8, expected)]


def test_before_s_moves_from_t_the_product_is_told_s_equal_to_t(pictures: str) -> None:
    method = build(pictures, span_from=0.25)
    for progress, reach in ((0.0, (0.0, 0.0)), (0.25, (0.0, 0.0)), (0.3, (0.75, 0.5))):
        method.progress = progress
        product = method._product()
        assert (product.reach, product.reach_of_one_step) == reach


def test_fake_captions_end_in_the_phrase_and_fit(pictures: str) -> None:
    method = build(pictures)
    tokenizer = method.source.tokenizer
    long = " ".join(["red apple"] * 30)
    ids = method.as_fake(method.source.tokenize(["red apple, noto", "", long]))
    assert ids.shape == (3, tokenizer.model_max_length)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    plain = ["".join(text.split()) for text in texts]
    assert plain[0] == "redapple,noto,fakeimage" and plain[1] == ",fakeimage"
    assert plain[2].startswith("redapple") and plain[2].endswith(",fakeimage")
    assert (ids[:, 0] == tokenizer.bos_token_id).all() and (ids == tokenizer.eos_token_id).any(1).all()
    again = method.source.tokenize(["red apple, noto, fake image"])
    assert torch.equal(again[0], ids[0])


@pytest.mark.parametrize("name", METHODS)
def test_the_product_generates_in_any_number_of_steps_and_one_of_them_is_stock(
    pictures: str, tmp_path: Path, name: str
) -> None:
    method = build(pictures, name, stock_one_step=True)
    with torch.no_grad():
        for p in method.networks["model"].unet.time_embedding.interval.parameters():
            p.normal_(std=0.3)
    folder = tmp_path / "export"
    folder.mkdir()
    method.progress = 0.9
    method.export(folder)
    loaded = load_any_step(folder)
    assert (loaded.reach, loaded.reach_of_one_step) == {
        "self_e": (0.75, 0.5), "flow": (0.0, 0.0)
    }.get(name, (1.0, 1.0))  # fmt: skip
    prompts = ["red apple, noto", "blue car, noto"]
    for steps in (1, 2, 4, 8, 50) if name == "self_e" else (1, 2):
        made = next(generate(str(folder), prompts, steps, 1.0 if steps == 1 else 3.0))
        assert made.shape == (2, 3, 64, 64) and bool(made.isfinite().all())
    ours, stock = (next(generate(str(f), prompts, 1, 1.0)) for f in (folder, folder / "one_step"))
    assert (ours - stock).abs().max() < 1e-3
    # the loaded model is the method's own network
    z = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = method.source.tokenize(prompts)
    with torch.no_grad():
        for told in (0.0, 500.0):
            arguments = z, torch.full((2,), 1000.0), torch.full((2,), told)
            expected = method.networks["model"](*arguments, ids)
            found = loaded.network(*arguments, loaded.pipeline.text_encoder(ids)[0])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert method.preview().shape == (32, 3, 64, 64)


def test_it_starts_from_a_flow_matching_model(pictures: str, tmp_path: Path) -> None:
    flow = build(pictures, "flow")
    folder = tmp_path / "flow"
    folder.mkdir()
    flow.export(folder)
    tuned = build(pictures, "self_e", init_from=str(folder))
    ids = flow.source.tokenize(["red apple, noto"])
    arguments = torch.randn(1, 8, 8, 8), torch.tensor([700.0]), torch.tensor([200.0])
    with torch.no_grad():
        for network in ("model", "average"):
            found = tuned.networks[network](*arguments, ids)
            torch.testing.assert_close(found, flow.networks["model"](*arguments, ids))
    assert tuned.content != flow.content
    assert all(p.requires_grad for p in tuned.networks["model"].parameters())
    with pytest.raises(UserError, match="is told 1000 t; here it is 16 t"):
        build(pictures, "mean_flow", init_from=str(folder))


@pytest.mark.parametrize("name", METHODS)
def test_it_starts_as_the_stock_teacher_and_goes_on_from_there(pictures: str, tmp_path: Path, name: str) -> None:
    teacher = load_teacher(TEACHER)
    method = build(pictures, name, init_from=TEACHER, stock_one_step=True)
    ids = method.source.tokenize(["red apple, noto", "blue car, twemoji"])
    embeddings = teacher.embed(["red apple, noto", "blue car, twemoji"])
    judge = Denoiser(teacher.network, teacher.schedule, "v")
    x0, eps = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    networks = [method.trained] + ([method.average] if "average" in method.networks else [])
    for index in (0, 30, 500, 999):
        at = torch.full((2,), index)
        alpha, sigma = teacher.schedule.alpha(at), teacher.schedule.sigma(at)
        t = sigma / (alpha + sigma)
        with torch.no_grad():
            told = judge(teacher.schedule.add_noise(x0, eps, at), at, embeddings)
            for denoiser in networks:
                for s in (t, t / 3):
                    found = denoiser(method.schedule.add_noise(x0, eps, t), t, s, ids)
                    torch.testing.assert_close(found.flow, told.flow, rtol=1e-4, atol=1e-4)
    times = torch.arange(999, 0, -125)  # 8 steps: the teacher's DDIM is the straight path's Euler
    alpha, sigma = teacher.schedule.alpha(times), teacher.schedule.sigma(times)
    with torch.no_grad():
        expected = ddim(lambda x, t: judge(x, t, embeddings), eps, teacher.schedule, times)
        start, straight = eps / float(alpha[0] + sigma[0]), sigma / (alpha + sigma)
        found = any_step(lambda x, t, s: method.live(x, t, s, ids), start, method.schedule, straight)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # it learns, is exported, read again and started from again
    loss, _ = first_loss(method)
    loss.backward()
    after = unwrap(method.networks["model"]).unet
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in after.parameters()) or name == "flow"
    with torch.no_grad():
        for p in after.time_embedding.interval.parameters():
            p.normal_(std=0.1)
    folder = tmp_path / "export"
    folder.mkdir()
    method.export(folder)
    again, model = build(pictures, name, init_from=str(folder)), load_any_step(folder)
    x, t, s = x0, torch.tensor([1.0, 0.4]), torch.tensor([0.3, 0.4])
    with torch.no_grad():
        expected = method.live(x, t, s, ids).flow
        torch.testing.assert_close(again.live(x, t, s, ids).flow, expected)
        found = TwoTimeDenoiser(model.network, model.schedule)(x, t, s, embeddings).flow
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert again.content != method.content
    prompts = ["red apple, noto", "blue car, noto"]
    ours, stock = (next(generate(str(f), prompts, 1, 1.0)) for f in (folder, folder / "one_step"))
    assert (ours - stock).abs().max() < 1e-3


def test_a_start_that_does_not_fit_is_named(pictures: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"makes latents of shape \(4, 4, 4\); those of the pictures have \(8, 8, 8\)"):
        build(pictures, init_from=str(tiny.save_tiny_pipeline(tmp_path / "tiny")))
    other = tmp_path / "other"
    shutil.copytree(TEACHER, other)
    (other / "vae").joinpath("config.json").write_text(
        (Path(TEACHER) / "vae" / "config.json").read_text().replace('"scaling_factor": ', '"scaling_factor": 1')
    )
    with pytest.raises(UserError, match="has another autoencoder"):
        build(pictures, init_from=str(other))
    shutil.rmtree(other)
    shutil.copytree(TEACHER, other)
    scheduler = other / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**config, "prediction_type": "epsilon", "rescale_betas_zero_snr": True}))
    with pytest.raises(UserError, match="holds no signal"):
        build(pictures, init_from=str(other))
    scheduler.write_text(json.dumps(config))
    tokens = other / "tokenizer" / "tokenizer_config.json"
    tokens.write_text(json.dumps({**json.loads(tokens.read_text()), "model_max_length": 8}))
    with pytest.raises(UserError, match="too short to say that a picture is a fake"):
        build(pictures, init_from=str(other))


def test_a_run_learns_and_logs(pictures: str, tmp_path: Path) -> None:
    method = build(pictures, "self_e", fake_from=None, span_share=0.1)
    Trainer(method, TrainingSettings(320, batch_size=16, cpu=True, log_every=1), tmp_path).fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["self_e/loss"] for line in lines if "self_e/loss" in line]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


@pytest.mark.parametrize(
    ("name", "bad", "what"),
    [
        ("self_e", {"same": 1.5}, "same"),
        ("self_e", {"same": 1.0, "fake_from": 0.5}, "fake_from must be null"),
        ("self_e", {"evaluator_decay": 1.0}, "decay"),
        ("self_e", {"init_from": "nowhere"}, "no teacher at nowhere"),
        ("self_e", {"time_mean": 1e4}, "above 0 and finite"),
        ("self_e", {"drop_text": 0.0}, "drop_text is 0"),
        ("self_e", {"span_from": 1.0}, "end after the run does"),
        ("self_e", {"span_from": 0.5, "span_share": 0.6}, "end after the run does"),
        ("self_e", {"judgement_scale": 0.0}, "judgement_scale is 0.0; it must be a number above 0"),
        ("mean_flow", {"drop_text": 0.0}, "set guidance to null"),
        ("shortcut", {"drop_text": 0.0}, "set guidance to 1"),
        ("mean_flow", {"attention": "sdpa"}, "no forward mode"),
        ("mean_flow", {"floor": 0.0}, "floor"),
        ("shortcut", {"clip": 0.0}, "clip"),
        ("mean_flow", {"guidance_mix": 1.0}, "guidance_mix"),
        ("shortcut", {"finest": 12}, "power of 2"),
    ],
)
def test_bad_input_is_named(pictures: str, name: str, bad: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        build(pictures, name, **bad)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SelfE", "MeanFlow"])
def test_two_processes_log_what_one_logs(pictures: str, tmp_path: Path, name: str) -> None:
    options = {"SelfE": {"span_share": 0.0, "fake_from": 0.0, "evaluator_decay": 0.9}, "MeanFlow": {"same": 0.5}}
    small = {**SMALL, "learning_rate": 1e-4}  # rounding stays far below the bound
    recipe = {
        "method": {
            "class_path": f"diffdistill.methods.{name}",
            "init_args": {"autoencoder": VAE, "data": pictures, **small, **options[name]},
        },
        "training": {"samples": 64, "batch_size": 8, "log_every": 1},
    }
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps(recipe))  # JSON is YAML
    logs = []
    for processes in (1, 2):
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes == 2 else []
        script = [str(ROOT / "train" / "distill.py"), "--config", str(config)]
        done = subprocess.run(
            [sys.executable, *several, *script, "--output_dir", str(tmp_path / str(processes))],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / str(processes) / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    key = {"SelfE": "self_e", "MeanFlow": "mean_flow"}[name]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] == list(range(1, 9))
    for one, two in zip(*logs, strict=True):
        # Adam's first steps, of the gradient's sign, let rounding grow
        assert one[f"{key}/loss"] == pytest.approx(two[f"{key}/loss"], rel=1e-4)
        assert one[f"{key}/grad_norm"] == pytest.approx(two[f"{key}/grad_norm"], rel=1e-3)


def test_what_to_start_from_is_looked_at_before_pictures_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffdistill.methods import any_step

    monkeypatch.setattr(any_step, "TextToImage", lambda **_: pytest.fail("pictures were read"))
    with pytest.raises(UserError, match="no teacher at nonsense"):
        SelfE(init_from="nonsense")
