"""The classifier for evaluation: its numbers against brute force, and that it learns and comes back from a file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.judge_network import (
    JudgeNetwork,
    JudgeSettings,
    Retrieval,
    load_judge,
    save_judge,
    train_judge,
)
from diffdistill.text3d.things.catalogue import COLOURS, Prompt
from diffdistill.text3d.things.procedural import THINGS
from diffdistill.text3d.things.rendering import RenderSettings, procedural_views
from diffdistill.text3d.things.views import Views


def test_retrieval_against_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    network = JudgeNetwork(["mug", "car", "tree"])
    assert network.prompts[9] == Prompt("car", list(COLOURS)[1]) and len(network.prompts) == 24
    generator = torch.Generator().manual_seed(0)
    thing, colour = (torch.randn(40, n, generator=generator).log_softmax(1) for n in (3, 8))
    place = torch.arange(40.0)[:, None, None, None].expand(40, 3, 32, 32)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        rows = images[:, 0, 0, 0].long()
        return thing[rows], colour[rows]

    monkeypatch.setattr(network, "forward", forward)
    own = torch.randint(0, 24, (40,), generator=generator)
    found = network.retrieval(place, own, batch=7)
    for i in range(40):
        each = [thing[i, k // 8].exp() * colour[i, k % 8].exp() for k in range(24)]
        assert abs(sum(each) - 1) < 1e-5
        assert bool(found.hit[i]) == (max(range(24), key=lambda k: each[k]) == int(own[i]))  # noqa: B023
        assert abs(found.probability[i] - each[int(own[i])]) < 1e-6
    assert network.training  # it is left as it was
    with pytest.raises(UserError, match=r"there are 40 images and \(3,\) indexes"):
        network.retrieval(place, own[:3])


def test_the_means() -> None:
    found = Retrieval(torch.tensor([True, False, True, True]), torch.tensor([1.0, 0.0, 0.5, 0.5]))
    assert (found.recall_at_1, found.mean_probability) == (0.75, 0.5)


def test_images_of_64_pixels_are_judged_as_their_means() -> None:
    network = JudgeNetwork(["mug", "car"]).eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.avg_pool2d(images, 2)
    for one, other in zip(network(images), network(small), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert 50_000 < sum(p.numel() for p in JudgeNetwork(list(THINGS)).parameters()) < 150_000
    for shape in ((3, 3, 48, 48), (3, 32, 32), (2, 3, 32, 64)):
        with pytest.raises(UserError, match="they must be"):
            network(torch.zeros(shape))


def test_it_learns_in_seconds_and_comes_back_from_a_file(tmp_path: Path) -> None:
    things = ("ball", "table")
    views = Views([procedural_views(name, RenderSettings(32, 2, 2, 1, seed=1)) for name in things])
    settings = JudgeSettings(iterations=60, batch=12, rate=8e-3, seed=3)
    state = torch.random.get_rng_state()
    network = train_judge(views, settings)
    assert torch.equal(state, torch.random.get_rng_state())  # it draws from its own numbers only
    images = views.references(views.indexes(network.prompts)).images.flatten(0, 1)
    own = torch.arange(16).repeat_interleave(24)
    found = network.retrieval(images, own)
    assert found.recall_at_1 > 0.4 and network.retrieval(images, (own + 8) % 16).recall_at_1 < 0.2  # chance is 0.06
    save_judge(network, tmp_path / "judge.safetensors", settings)
    again = load_judge(tmp_path / "judge.safetensors")
    assert again.prompts == network.prompts
    assert torch.equal(again.retrieval(images, own).probability, found.probability)
    data = (tmp_path / "judge.safetensors").read_bytes()
    for damaged in (data[:-100], b"none", data.replace(b"judge", b"other", 1)):
        (tmp_path / "bad.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="bad.safetensors holds no judge network"):
            load_judge(tmp_path / "bad.safetensors")
    with torch.no_grad():
        network.colour.bias[0] = float("nan")
    save_judge(network, tmp_path / "nan.safetensors", settings)
    with pytest.raises(UserError, match="values that are not finite"):
        load_judge(tmp_path / "nan.safetensors")
    network.things = (*things, "mug")  # more names than the weights are of
    save_judge(network, tmp_path / "more.safetensors", settings)
    with pytest.raises(UserError, match="it names 3 things"):
        load_judge(tmp_path / "more.safetensors")


def test_settings_are_checked() -> None:
    for wrong in ({"iterations": 0}, {"batch": 0}, {"rate": 0.0}, {"noise": 2.0}, {"smoothing": 1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            JudgeSettings(**wrong)  # type: ignore[arg-type]
