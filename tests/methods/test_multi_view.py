"""The training of a multi-view prior: what it is shown, its loss by hand, and runs that resume exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made import made
from safetensors.torch import load_file
from torch import Tensor

from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import MultiViewDiffusion
from diffdistill.methods.multi_view import digest_of_views, sample_views
from diffdistill.text3d.multi_view import MultiViewSettings
from diffdistill.text3d.prior import load_prior
from diffdistill.text3d.things.catalogue import COLOURS, split_of
from diffdistill.text3d.things.view_files import ThingViews, views_as_bytes
from diffdistill.text3d.things.viewpoints import ring_views
from diffdistill.text3d.things.views import Views
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

NAMES = [f"thing {word}" for word in ("ant", "bat", "cat", "dog", "elk", "fox", "gnu", "hen")]  # in the order of files
SMALL = MultiViewSettings(size=16, views=4, widths=(16, 16, 16), embedding=16)
RINGS = 2


def thing(name: str, seed: int, kind: str = "shades") -> ThingViews:
    """Noise of 16 pixels, as a file of views has it: no channel is above alpha, and the corners are empty."""
    generator = torch.Generator().manual_seed(seed)
    channels = {"shades": 3, "colours": 4}[kind]

    def noise(*shape: int) -> Tensor:
        values = torch.randint(0, 256, (*shape, channels, 16, 16), generator=generator, dtype=torch.uint8)
        values[..., -1, :2, :2] = 0
        return torch.cat([values[..., :-1, :, :].minimum(values[..., -1:, :, :]), values[..., -1:, :, :]], -3)

    start = torch.rand(2, RINGS, generator=generator)
    return ThingViews(name, kind, noise(RINGS, 4), noise(24), 360 * start[0], 65 * start[1] - 15)


def save(folder: Path, kind: str = "shades", count: int = 8) -> Path:
    folder.mkdir(parents=True)
    for seed, name in enumerate(NAMES[:count]):
        (folder / f"{name}.npz").write_bytes(views_as_bytes(thing(name, seed, kind)))
    return folder


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("views") / "shades")


def build(views: Path, seed: int = 0, prepare: bool = True, **more: Any) -> Any:
    torch.manual_seed(seed)
    return made(MultiViewDiffusion, prepare, **{"data__source": str(views), "network": SMALL, **more})


def stirred(method: Any) -> Any:
    """Layers that are zero at the start say something."""
    generator = torch.Generator().manual_seed(1)
    for p in method.networks["prior"].parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    method.networks["prior"].words.weight.data[0] = 0
    return method


def loss_of(method: Any, indices: list[int]) -> Tensor:
    random = SampleRandom(0, indices)
    loss: Tensor = method.phases(0)[0].loss(method.batch(indices, random), random, {})[0]
    return loss


def gradient(method: Any, indices: list[int]) -> Tensor:
    parameters = list(method.networks["prior"].parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss_of(method, indices), parameters)])


def test_each_ring_of_each_prompt_is_a_record_and_held_out_prompts_are_none(views: Path) -> None:
    method = build(views)
    split = split_of(NAMES)
    assert len(method) == RINGS * (64 - len(split.unseen))
    seen = []
    for first in range(0, len(method), 13):
        records = range(first, min(first + 13, len(method)))
        cond = method.batch(list(records), SampleRandom(0, records))["cond"]
        cameras = cond["camera"].flatten(1).tolist()
        seen += [(tuple(a), tuple(b)) for a, b in zip(cond["words"].tolist(), cameras, strict=True)]
    wanted = set()
    for number, name in enumerate(NAMES):
        starts = thing(name, number)
        for azimuth, elevation in zip(starts.azimuth, starts.elevation, strict=True):
            camera = torch.stack(ring_views(azimuth[None], elevation[None]), -1)[0]
            for colour in COLOURS:
                if not any(str(p) == f"{'an' if colour[0] == 'o' else 'a'} {colour} {name}" for p in split.unseen):
                    words = method.vocabulary.ids([f"{colour} {name}"])[0].tolist()
                    wanted.add((tuple(words), tuple(camera.flatten().tolist())))
    assert set(seen) == wanted and len(seen) == len(wanted)


def test_views_lie_on_the_background_that_the_network_is_told(views: Path) -> None:
    method, random = build(views, data__share_of_white=0.5), SampleRandom(0, range(64))
    batch = method.batch(list(range(64)), random)
    background = batch["cond"]["background"]
    corners = batch["x0"][..., :2, :2]  # nothing is there
    torch.testing.assert_close(corners, (2 * background - 1)[:, None, :, None, None].expand_as(corners))
    white = (background == 1).all(1)
    assert 20 < int(white.sum()) < 44
    drawn = random.uniform("background", (3,)).float()
    assert torch.equal(background[~white], drawn[~white])
    for share, wanted in ((1.0, True), (0.0, False)):
        told = build(views, data__share_of_white=share).batch(list(range(9)), SampleRandom(0, range(9)))["cond"]
        assert torch.equal((told["background"] == 1).all(1), torch.full((9,), wanted))


@pytest.mark.parametrize(("drop", "high_noise"), [(0.0, 0.0), (0.5, 1.0), (1.0, 3.0)])
def test_the_loss_is_the_squared_error_of_v_and_drops_words_alone(views: Path, drop: float, high_noise: float) -> None:
    method, indices = stirred(build(views, drop_words=drop, high_noise=high_noise)), list(range(5, 13))
    random = SampleRandom(0, indices)
    batch = method.batch(indices, random)
    schedule, x0, cond = method.prior.schedule, batch["x0"], dict(batch["cond"])
    lost = random.uniform("drop") < drop
    assert int(lost.sum()) in {0.0: (0,), 0.5: range(1, 8), 1.0: (8,)}[drop]
    cond["words"] = torch.where(lost[:, None], 0, cond["words"])
    t = (1000 * random.uniform("time") ** (1 / (1 + high_noise))).floor().long()  # P(time < t) = t^(1 + high_noise)
    alpha, sigma = (level(t).float().view(-1, 1, 1, 1, 1) for level in (schedule.alpha, schedule.sigma))
    eps = random.normal("noise", x0.shape[1:])
    found = method.networks["prior"](alpha * x0 + sigma * eps, t, cond)
    expected = (found - (alpha * eps - sigma * x0)).square().mean()
    torch.testing.assert_close(loss_of(method, indices), expected)


def test_a_batch_of_three_gives_the_mean_of_three_gradients(views: Path) -> None:
    method = stirred(build(views))
    single = torch.stack([gradient(method, [i]) for i in (3, 50, 99)])
    whole = gradient(method, [3, 50, 99])
    assert (whole - single.mean(0)).norm() < 1e-4 * whole.norm()
    assert (single[0] - single[1]).norm() > 0.1 * single[0].norm()


def last(run: Path, group: str) -> dict[str, Tensor]:
    return load_file(run / "checkpoint-0000000012" / f"{group}.safetensors")


def test_a_resumed_run_ends_in_the_same_weights_and_is_a_prior(views: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(12, batch_size=3, checkpoint_every=6, cpu=True, warmup_samples=3, ema_decay=0.5)
    for run in ("whole", "resumed"):
        (tmp_path / run).mkdir()
    Trainer(build(views, prepare=False), settings, tmp_path / "whole").fit()
    middle = str(tmp_path / "whole" / "checkpoint-0000000006")
    Trainer(build(views, 1, prepare=False), settings, tmp_path / "resumed", resume=middle).fit()
    for group in ("prior", "prior.optimizer", "ema"):
        a, b = last(tmp_path / "whole", group), last(tmp_path / "resumed", group)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), group
    start, end = build(views, prepare=False).networks["prior"], last(tmp_path / "whole", "prior")
    assert sum(not torch.equal(p, end[name]) for name, p in start.named_parameters()) > 20
    assert not end["words.weight"][0].any()  # no word stays no word
    exported, average = load_prior(tmp_path / "whole" / "export"), last(tmp_path / "whole", "ema")
    assert exported.vocabulary == build(views, prepare=False).vocabulary and exported.backbone.settings == SMALL
    for name, value in exported.backbone.named_parameters():
        assert torch.equal(value, average[name].half().float()), name
    again = build(views, 2, prepare=False, init_from=str(tmp_path / "whole" / "export"))
    for name, value in again.networks["prior"].named_parameters():
        assert torch.equal(value, dict(exported.backbone.named_parameters())[name]) and value.requires_grad, name


def test_validation_shows_rings_of_prompts_on_white(views: Path) -> None:
    method = build(views)
    shown = method.validate().images
    assert shown.shape == (4 * 8, 3, 16, 16) and float(shown.min()) >= 0 and float(shown.max()) <= 1
    assert torch.equal(method.validate().images, shown)
    # a network whose v is zero predicts alpha x_t and sigma x_t, so each step of DDIM is a multiple of what it was
    network = method.networks["prior"]
    assert not any(p.any() for p in network.out.parameters())
    prompts = ["red thing ant", "blue thing bat"]
    found = sample_views(method.prior, network, prompts, torch.device("cpu"), seed=3)
    noise = SampleRandom(3, range(2)).normal("preview", (4, 3, 16, 16))
    ratio = (found - 0.5).flatten() / noise.flatten()
    inside = (found.flatten() > 0.01) & (found.flatten() < 0.99)
    assert int(inside.sum()) > 100 and float(ratio[inside].std()) < 1e-3


# ---- content and bad settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shades", "colours"])
def test_content_follows_all_that_is_read_of_the_views(kind: str) -> None:
    """Pixels of any ring or reference view, cameras, and the colours that a thing's channels are mixed with."""
    plain = [thing(name, seed, kind) for seed, name in enumerate(NAMES[:2])]
    before = digest_of_views(Views(plain))
    assert digest_of_views(Views([thing(name, seed, kind) for seed, name in enumerate(NAMES[:2])])) == before

    def other(**change: Any) -> str:
        values = {**plain[1].__dict__, **change}
        return digest_of_views(Views([plain[0], ThingViews(**values)]))

    rings, references = plain[1].rings.clone(), plain[1].references.clone()
    rings[1, 2, :, 9, 9] = 255 - rings[1, 2, :, 9, 9]
    references[20, :, 9, 9] = 255 - references[20, :, 9, 9]
    changed = {
        "rings": other(rings=rings),
        "references": other(references=references),
        "azimuth": other(azimuth=plain[1].azimuth.flip(0)),
        "elevation": other(elevation=plain[1].elevation - 0.5),
        "name": other(name="thing bee"),
        "mix": other(companion=(0.9, 0.5, 0.1)) if kind == "shades" else other(white=0.6),
    }
    assert len({before, *changed.values()}) == 1 + len(changed), changed
    assert other(source={"made": "by hand"}) == before


def test_content_names_the_prior_that_a_run_goes_on_from(views: Path, tmp_path: Path) -> None:
    method = build(views)
    assert method.content.keys() == {"data.source"}
    method.export(tmp_path / "first")
    stirred(method).export(tmp_path / "second")
    contents = [build(views, init_from=str(tmp_path / name)).content for name in ("first", "second")]
    assert contents[0]["data.source"] == contents[1]["data.source"] == method.content["data.source"]
    assert contents[0]["init_from"] != contents[1]["init_from"]


def test_what_cannot_be_is_refused(views: Path, tmp_path: Path) -> None:
    few = save(tmp_path / "few", count=7)
    build(views).export(tmp_path / "prior")
    wider = MultiViewSettings(16, 4, (32, 16, 16), 16)
    for more, said in (
        ({"network": MultiViewSettings(16, 3, (16, 16, 16), 16)}, "network.views is 3; a ring of views has 4"),
        ({"network": MultiViewSettings(24, 4, (16, 16, 16), 16)}, "size is 24; it must divide 16"),
        ({"high_noise": -0.5}, "high_noise is -0.5; it must be in"),
        ({"drop_words": 1.5}, "drop_words is 1.5"),
        ({"data__share_of_white": -0.1}, "share_of_white is -0.1"),
        ({"data__source": str(tmp_path / "nothing")}, "nothing holds no views"),
        ({"data__source": str(few)}, "there are 7 things; a split needs 8 or more"),
        ({"data__natural": True}, "needs a colour"),
        ({"init_from": str(tmp_path / "nowhere")}, "there is no multi-view prior at .*nowhere"),
        ({"init_from": str(tmp_path / "prior"), "network": wider}, "has another shape or other words"),
    ):
        with pytest.raises(UserError, match=said):
            build(views, prepare=False, **more)
    build(save(tmp_path / "own", "colours"), prepare=False, data__natural=True)
