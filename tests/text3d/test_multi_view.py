"""The multi-view prior: views are a set, words are dropped and cameras are not, and a saved prior is the same prior."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from diffdistill.diffusion import guided
from diffdistill.errors import UserError
from diffdistill.text3d.multi_view import MultiViewSettings, MultiViewUNet, of_cameras
from diffdistill.text3d.prior import MultiViewPrior, digest_of, load_prior, save_prior, without_words
from diffdistill.text3d.words import Vocabulary

WORDS = Vocabulary(("red", "blue", "mug", "chair"))
SMALL = MultiViewSettings(size=16, views=3, widths=(16, 16, 32), embedding=32)


def prior(seed: int = 0) -> MultiViewPrior:
    torch.manual_seed(seed)
    network = MultiViewUNet(SMALL, len(WORDS.words)).eval()
    with torch.no_grad():  # what is zero at the start would hide everything
        for p in network.parameters():
            p += 0.05 * torch.randn_like(p)
        network.words.weight[0] = 0
    return MultiViewPrior(network, WORDS)


def sample(views: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, views, 3, 16, 16, generator=draw)
    camera = 360 * torch.rand(2, views, 2, generator=draw) - 90
    return x, camera, torch.rand(2, 3, generator=draw)


@torch.no_grad()
def test_views_are_a_set_and_see_each_other() -> None:
    made, (x, camera, background) = prior(), sample()
    t, order = torch.tensor([300, 700]), [2, 0, 1]
    plain = made.backbone(x, t, made.condition(["a red mug", "a chair"], camera, background))
    turned = made.backbone(x[:, order], t, made.condition(["a red mug", "a chair"], camera[:, order], background))
    torch.testing.assert_close(turned, plain[:, order], rtol=0, atol=1e-4)
    changed = x.clone()
    changed[:, 0] += 1
    other = made.backbone(changed, t, made.condition(["a red mug", "a chair"], camera, background))
    assert (other[:, 1] - plain[:, 1]).abs().max() > 1e-4
    both = [
        made.backbone(x[i : i + 1], t[i : i + 1], made.condition([name], camera[i : i + 1], background[i : i + 1]))
        for i, name in enumerate(("a red mug", "a chair"))
    ]
    torch.testing.assert_close(torch.cat(both), plain, rtol=0, atol=1e-4)  # objects do not


@torch.no_grad()
def test_guidance_follows_the_words_alone() -> None:
    made, (x, camera, background) = prior(), sample()
    cond = made.condition(["a red mug", "a blue chair"], camera, background)
    null, t = without_words(cond), torch.tensor([300, 700])
    score = made.denoiser()
    e_0, e_c = (score(x, t, c).value for c in (made.condition(["", ""], camera, background), cond))
    found = guided(score, x, t, cond, null, 3.0).value
    torch.testing.assert_close(found, e_0 + 3 * (e_c - e_0), rtol=0, atol=1e-4)
    moved = made.condition(["", ""], camera + 40, background)
    assert (score(x, t, moved).value - e_0).abs().max() > 1e-4  # cameras stay in the empty condition


def test_cameras_are_periodic() -> None:
    camera = torch.tensor([[10.0, 20.0], [370.0, 20.0], [190.0, 20.0]])
    found = of_cameras(camera)
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 0.5


def test_words() -> None:
    assert WORDS.ids(["A RED mug!", "the chair"]).tolist() == [[1, 3, 0], [4, 0, 0]]
    for prompt, said in (
        ("a red mgu", "'mgu' of the prompt 'a red mgu'; did you mean 'mug'"),
        ("red red red mug", "has 4 words"),
    ):
        with pytest.raises(UserError, match=said):
            WORDS.ids([prompt])
    with pytest.raises(UserError, match="has no word"):
        WORDS.ids(["the"], empty=False)
    for words in ((), ("red", "red"), ("Red",), ("a",), ("two words",)):
        with pytest.raises(UserError):
            Vocabulary(words)


def test_a_saved_prior_comes_back(tmp_path: Path) -> None:
    made = prior()
    made.backbone.float()
    save_prior(made, tmp_path / "prior")
    again = load_prior(tmp_path / "prior")
    assert again.vocabulary == WORDS and again.backbone.settings == SMALL
    for (name, a), (_, b) in zip(made.backbone.state_dict().items(), again.backbone.state_dict().items(), strict=True):
        assert torch.equal(a.half().float(), b), name
    save_prior(again, tmp_path / "twice")
    assert digest_of(again) == digest_of(load_prior(tmp_path / "twice")) != digest_of(made)
    assert not any(p.requires_grad for p in again.backbone.parameters())
    weights = tmp_path / "prior" / "prior.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(UserError, match="damaged"):
        load_prior(tmp_path / "prior")
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    config["network"] |= {"widths": [2048, 2048, 2048], "embedding": 4096, "size": 512}  # 8 GiB, if it were built
    (tmp_path / "twice" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="of another shape"):
        load_prior(tmp_path / "twice")
    (tmp_path / "prior" / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is no JSON"):
        load_prior(tmp_path / "prior")
    (tmp_path / "prior" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="format"):
        load_prior(tmp_path / "prior")
    with pytest.raises(UserError, match="config.json is missing"):
        load_prior(tmp_path)


def test_shapes_that_cannot_be() -> None:
    for change in ({"size": 20}, {"views": 0}, {"widths": (16, 16, 20)}, {"embedding": 33}):
        with pytest.raises(UserError):
            dataclasses.replace(SMALL, **change)
