"""What Self-E, flow matching, MeanFlow and shortcut models share: resuming, precision, starts, exports, bad input."""

import json
import math
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny_pipeline as tiny
import torch
from any_step_builds import METHODS, SMALL, TEACHER, VAE, build, first_loss
from made import made, nested
from processes import train_on_one_and_on_two
from safetensors.torch import load_file

from diffdistill.diffusion import Denoiser, ddim
from diffdistill.diffusion.any_step import TwoTimeDenoiser, any_step
from diffdistill.errors import UserError
from diffdistill.methods import SelfE, unwrap
from diffdistill.models.any_step_pipeline import AnyStepModel, load_any_step
from diffdistill.models.generate import generate
from diffdistill.models.teacher import load_teacher
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


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
    second = moved["inner.time_embedding.interval.linear_2.weight"]
    assert bool(second.abs().max() > 0)  # both times are learnt


@pytest.mark.parametrize("name", METHODS)
def test_in_bfloat16_all_of_the_network_learns_what_it_learns_in_float32(pictures: str, name: str) -> None:
    """Autocast keeps the weights it has cast: they must not be those of a pass without a graph."""
    method = build(pictures, name)
    model = method.networks["model"]
    with torch.no_grad():
        for p in model.inner.time_embedding.interval.linear_2.parameters():
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

    for part in (unwrap(method.networks["model"]).inner, unwrap(method.networks["model"]).text_encoder):
        part.register_forward_pre_hook(seen)
    with torch.autocast("cpu", torch.bfloat16):
        first_loss(method)
    assert len(passes) == 2 and all(graphs[0] for graphs in passes.values())


def test_the_pictures_shift_and_the_grids_are_two_things(pictures: str) -> None:
    for name, expected in (("self_e", math.exp(0.42)), ("mean_flow", 1.0), ("shortcut", 1.0)):
        still, moved = (build(pictures, name, augmentation__shift=shift, augmentation__variants=2) for shift in (0, 3))
        assert still.schedule.shift == moved.schedule.shift == pytest.approx(expected)
        assert still.source.latents.shape[1] == 1 and moved.source.latents.shape[1] == 2


def test_a_preview_is_not_guided_twice(pictures: str) -> None:
    for name, more, expected in (
        ("self_e", {}, 2.0), ("mean_flow", {}, 1.0), ("mean_flow", {"guidance_scale": None}, 2.0),
        ("shortcut", {}, 1.0),
        ("shortcut", {"guidance_scale": 1.0}, 1.0),
        ("shortcut", {"guidance_scale": 1.0, "drop_bootstrapped": True}, 2.0),
    ):  # fmt: skip
        method = build(pictures, name, **more)
        with patch.object(AnyStepModel, "sample", return_value=torch.zeros(16, 8, 8, 8)) as called:
            method.validate()
        assert [(c.args[3], c.args[4]) for c in called.call_args_list] == [(1, 1.0), (8, expected)]


@pytest.mark.parametrize("name", METHODS)
def test_the_product_generates_in_any_number_of_steps_and_one_of_them_is_stock(
    pictures: str, tmp_path: Path, name: str
) -> None:
    method = build(pictures, name, export__stock_one_step=True)
    with torch.no_grad():
        for p in method.networks["model"].inner.time_embedding.interval.parameters():
            p.normal_(std=0.3)
    folder = tmp_path / "export"
    folder.mkdir()
    method.progress = 0.9
    method.export(folder)
    loaded = load_any_step(folder)
    assert (loaded.target_fraction, loaded.one_step_target_fraction) == {
        "self_e": (0.75, 0.5), "flow": (0.0, 0.0)
    }.get(name, (1.0, 1.0))  # fmt: skip
    assert loaded.finest_steps == (8 if name == "self_e" else None)
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
    assert method.validate().images.shape == (32, 3, 64, 64)


def test_it_starts_from_a_flow_matching_model(pictures: str, tmp_path: Path) -> None:
    flow = build(pictures, "flow")
    folder = tmp_path / "flow"
    folder.mkdir()
    flow.export(folder)
    tuned = build(pictures, "self_e", network__init_from=str(folder))
    ids = flow.source.tokenize(["red apple, noto"])
    arguments = torch.randn(1, 8, 8, 8), torch.tensor([700.0]), torch.tensor([200.0])
    with torch.no_grad():
        for network in ("model", "average"):
            found = tuned.networks[network](*arguments, ids)
            torch.testing.assert_close(found, flow.networks["model"](*arguments, ids))
    assert tuned.content != flow.content
    assert all(p.requires_grad for p in tuned.networks["model"].parameters())
    with pytest.raises(UserError, match="has time_scale 1000, but here it is 16"):
        build(pictures, "mean_flow", network__init_from=str(folder))


@pytest.mark.parametrize("name", METHODS)
def test_it_starts_as_the_stock_teacher_and_goes_on_from_there(pictures: str, tmp_path: Path, name: str) -> None:
    teacher = load_teacher(TEACHER)
    method = build(pictures, name, network__init_from=TEACHER, export__stock_one_step=True)
    ids = method.source.tokenize(["red apple, noto", "blue car, twemoji"])
    embeddings = teacher.embed(["red apple, noto", "blue car, twemoji"])
    judge = Denoiser(teacher.backbone, teacher.schedule, "v")
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
    after = unwrap(method.networks["model"]).inner
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in after.parameters()) or name == "flow"
    with torch.no_grad():
        for p in after.time_embedding.interval.parameters():
            p.normal_(std=0.1)
    folder = tmp_path / "export"
    folder.mkdir()
    method.export(folder)
    again, model = build(pictures, name, network__init_from=str(folder)), load_any_step(folder)
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
    with pytest.raises(
        UserError, match=r"makes latents of shape \(4, 4, 4\), but those of the images have shape \(8, 8, 8\)"
    ):
        build(pictures, network__init_from=str(tiny.save_tiny_pipeline(tmp_path / "tiny")))
    other = tmp_path / "other"
    shutil.copytree(TEACHER, other)
    (other / "vae").joinpath("config.json").write_text(
        (Path(TEACHER) / "vae" / "config.json").read_text().replace('"scaling_factor": ', '"scaling_factor": 1')
    )
    with pytest.raises(UserError, match="has another autoencoder"):
        build(pictures, network__init_from=str(other))
    shutil.rmtree(other)
    shutil.copytree(TEACHER, other)
    scheduler = other / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**config, "prediction_type": "epsilon", "rescale_betas_zero_snr": True}))
    with pytest.raises(UserError, match="holds no signal"):
        build(pictures, network__init_from=str(other))
    scheduler.write_text(json.dumps(config))
    tokens = other / "tokenizer" / "tokenizer_config.json"
    tokens.write_text(json.dumps({**json.loads(tokens.read_text()), "model_max_length": 8}))
    with pytest.raises(UserError, match="too short for the words of fake_from"):
        build(pictures, network__init_from=str(other))


@pytest.mark.parametrize(
    ("name", "bad", "what"),
    [
        ("self_e", {"flow_matching_share": 1.5}, "flow_matching_share"),
        ("self_e", {"flow_matching_share": 1.0, "fake_from": 0.5}, "set fake_from to null"),
        ("self_e", {"ema_decay": 1.0}, "decay"),
        ("self_e", {"network__init_from": "nowhere"}, "no model at nowhere"),
        ("self_e", {"time_mean": 1e4}, "above 0 and finite"),
        ("self_e", {"augmentation__drop_text": 0.0}, "drop_text is 0"),
        ("self_e", {"span_from": 1.0}, "their sum must be at most 1"),
        ("self_e", {"span_from": 0.5, "span_share": 0.6}, "their sum must be at most 1"),
        ("self_e", {"sampling__finest_steps": 1}, "finest_steps is 1; it must be 2 or more"),
        ("self_e", {"judgement_scale": 0.0}, "judgement_scale is 0.0; it must be a number above 0"),
        ("mean_flow", {"augmentation__drop_text": 0.0}, "set guidance_scale to null"),
        ("shortcut", {"augmentation__drop_text": 0.0}, "set guidance_scale to 1"),
        ("mean_flow", {"network__attention": "sdpa"}, "no forward mode"),
        ("mean_flow", {"weight_eps": 0.0}, "weight_eps"),
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
    options = {
        "SelfE": {"span_share": 0.0, "fake_from": 0.0, "ema_decay": 0.9},
        "MeanFlow": {"flow_matching_share": 0.5},
    }
    small = {**SMALL, "optimizer__learning_rate": 1e-4}  # rounding stays far below the bound
    recipe = {
        "method": {
            "class_path": f"diffdistill.methods.{name}",
            "init_args": nested({"network__autoencoder": VAE, "data__source": pictures, **small, **options[name]}),
        },
        "training": {"samples": 64, "batch_size": 8, "log_every": 1},
    }
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps(recipe))  # JSON is YAML
    logs = []
    for run in train_on_one_and_on_two(config):
        logs.append([json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()])
    key = {"SelfE": "self_e", "MeanFlow": "mean_flow"}[name]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] == list(range(1, 9))
    for one, two in zip(*logs, strict=True):
        # Adam's first steps, of the gradient's sign, let rounding grow
        assert one[f"{key}/loss"] == pytest.approx(two[f"{key}/loss"], rel=1e-4)
        assert one[f"{key}/grad_norm"] == pytest.approx(two[f"{key}/grad_norm"], rel=1e-3)


def test_what_to_start_from_is_looked_at_before_pictures_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffdistill.methods import any_step

    monkeypatch.setattr(any_step, "load_captioned", lambda *_: pytest.fail("images were read"))
    with pytest.raises(UserError, match="no model at nonsense"):
        made(SelfE, network__init_from="nonsense")
