"""Self-E as a method: its judge, its schedules, and flow matching as its special case."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from any_step_builds import build, first_loss

from diffdistill.distill import SampleRandom, denoising_loss
from diffdistill.methods import unwrap
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


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
        stock = model.inner(x_t, told, encoder_hidden_states=model.encode(batch["ids"])).sample
        value = model(x_t, told, told * 0.3, batch["ids"])
    assert torch.equal(value, stock)


def test_the_judge_is_the_average_and_follows_once_a_step(pictures: str) -> None:
    method = build(pictures)
    before = [p.clone() for p in method.networks["average"].parameters()]
    with torch.no_grad():
        for p in method.networks["model"].parameters():
            p.add_(0.1)
    method.begin_step(0)
    for a, b in zip(method.networks["average"].parameters(), before, strict=True):
        assert torch.equal(a, b)
    method.begin_step(1)
    for _ in range(3):  # which changes nothing, however often it is asked
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


def test_before_s_moves_from_t_the_product_is_told_s_equal_to_t(pictures: str) -> None:
    method = build(pictures, span_from=0.25)
    for progress, fractions in ((0.0, (0.0, 0.0)), (0.25, (0.0, 0.0)), (0.3, (0.75, 0.5))):
        method.progress = progress
        product = method.product()
        assert (product.target_fraction, product.one_step_target_fraction) == fractions


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


def test_a_run_learns_and_logs(pictures: str, tmp_path: Path) -> None:
    method = build(pictures, "self_e", fake_from=None, span_share=0.1)
    Trainer(method, TrainingSettings(320, batch_size=16, cpu=True, log_every=1), tmp_path).fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["self_e/loss"] for line in lines if "self_e/loss" in line]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
