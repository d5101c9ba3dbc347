"""The contrastive term in a method: its loss against its definition, its averages, its runs and its product."""

import copy
import json
from pathlib import Path

import pytest
import tiny_pipeline as tiny
import torch
from made import made
from processes import train_on_one_and_on_two
from torch import Tensor

from diffdistill.data.augment import changes, varied
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import LatentDiffusion, SelfE
from diffdistill.models.any_step_pipeline import load_any_step
from diffdistill.models.generate import generate
from diffdistill.models.self_conditioned import is_self_conditioned
from diffdistill.models.teacher import load_teacher
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

SMALL = {
    "data__size": 16,
    "network__block_out_channels": (32, 32), "network__text_width": 32, "network__text_layers": 1,
    "augmentation__shift": 2, "augmentation__mirror": True, "augmentation__variants": 3,
    "augmentation__recolour": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_tiny_pipeline(tmp_path_factory.mktemp("vae") / "pipeline") / "vae")


def method_of(pictures: str, vae: str, **settings: object) -> LatentDiffusion:
    torch.manual_seed(0)
    return made(LatentDiffusion, data__source=pictures, network__autoencoder=vae, **SMALL, **settings)


def loss_of(method: LatentDiffusion) -> tuple[Tensor, dict[str, Tensor]]:
    random = SampleRandom(0, range(4))
    (phase,) = method.phases(0)
    return phase.loss(method.batch([0, 3, 5, 7], random), random, {})


def test_the_loss_is_the_diffusion_loss_and_the_term(pictures: str, vae: str) -> None:
    plain, method = method_of(pictures, vae), method_of(pictures, vae, self_distillation__weight=0.5)
    method.networks["model"].load_state_dict(plain.networks["model"].state_dict())
    loss, logs = loss_of(method)
    assert method.phases(0)[0].whole_batch and method.phases(0)[0].networks == ("model", "heads")
    assert torch.allclose(logs["diffusion"], loss_of(plain)[0], atol=1e-6)
    assert loss.item() == pytest.approx((logs["diffusion"] + 0.5 * logs["contrast"]).item(), rel=1e-5)


def test_the_term_is_of_two_views_without_captions(pictures: str, vae: str) -> None:
    method = method_of(pictures, vae, self_distillation__weight=1.0, self_distillation__tap="down.1")
    _, logs = loss_of(method)
    random, schedule = SampleRandom(0, range(4)), method.schedule
    batch, seen = method.batch([0, 3, 5, 7], random), []
    unet, heads = method.networks["model"].inner, method.networks["heads"]
    null = method.networks["model"].encode(method.source.tokenize([""])).expand(4, -1, -1)
    handle = unet.down_blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    for name, x0 in (("query", batch["x0"]), ("key", batch["other"])):
        t = schedule.timestep(random.uniform(f"{name}/time"), 0.0, 0.4)
        assert int(t.max()) < 400
        unet(schedule.add_noise(x0, random.normal(f"{name}/noise", x0.shape[1:]), t), t, encoder_hidden_states=null)
    handle.remove()
    q = torch.nn.functional.normalize(heads.predictor(heads.projector(seen[0].mean((2, 3)))), dim=1)
    k = torch.nn.functional.normalize(heads.projector(seen[1].mean((2, 3))), dim=1)
    scores = q @ k.T / 0.2
    expected = 2 * 0.2 * (torch.logsumexp(scores, 1) - scores.diagonal()).mean()
    assert logs["contrast"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert not torch.equal(batch["x0"], batch["other"])  # another variant of each image


def test_the_keys_come_from_the_average_and_have_no_gradient(pictures: str, vae: str) -> None:
    method = method_of(pictures, vae, self_distillation__weight=1.0, self_distillation__ema_decay=0.5)
    start = copy.deepcopy(method.networks["model"].state_dict())
    with torch.no_grad():
        for p in method.networks["model"].parameters():
            p.add_(1.0)
    method.begin_step(1)  # d = min(.5, 2 / 11) = 2 / 11
    name = "inner.conv_in.weight"
    expected = start[name] + 9 / 11
    assert torch.allclose(method.networks["average"].state_dict()[name], expected, atol=1e-6)
    loss_of(method)[0].backward()
    assert all(p.grad is None for n in ("average", "average_heads") for p in method.networks[n].parameters())
    assert all(p.grad is not None for p in method.networks["heads"].parameters())


def test_changes_say_how_images_were_varied() -> None:
    # a white image with one dark pixel: where it goes says the shift, and whether it was mirrored
    images = torch.full((30, 3, 9, 9), 255, dtype=torch.uint8)
    images[:, :, 4, 3] = 0
    names = ["apple"] * 29 + ["left arrow"]
    made_images, told = varied(images, names, 2, True, 5), changes(names, 2, True, 5)
    for image, (down, right, flipped) in zip(made_images, told.tolist(), strict=True):
        y, x = (image[0] == 0).nonzero()[0].tolist()
        x = 8 - x if flipped else x
        assert (y - 4, x - 3) == (round(2 * down), round(2 * right))
    assert set(told[:, 2].tolist()) == {0.0, 1.0} and told[29, 2] == 0
    assert not changes(names, 0, False, 5).any()


def test_a_network_that_is_told_changes_equals_one_that_is_not_at_first(pictures: str, vae: str) -> None:
    plain, told = method_of(pictures, vae), method_of(pictures, vae, augmentation__conditioned=True)
    told.networks["model"].load_state_dict(plain.networks["model"].state_dict(), strict=False)
    assert torch.equal(loss_of(plain)[0], loss_of(told)[0])
    torch.nn.init.normal_(told.networks["model"].change.linear_2.weight)
    model = told.networks["model"]
    x, t, ids = torch.randn(2, 4, 8, 8), torch.tensor([5.0, 9.0]), told.source.tokenize(["a", "b"])
    assert not torch.equal(model(x, t, ids), model(x, t, ids, torch.ones(2, 3)))
    assert torch.equal(model(x, t, ids), model(x, t, ids, torch.zeros(2, 3)))  # no bias: an unchanged image adds zero


def test_a_run_with_all_of_it_is_exported_and_samples(pictures: str, vae: str, tmp_path: Path) -> None:
    method = method_of(
        pictures, vae, self_distillation__weight=0.5, network__self_conditioning__tap="mid",
        augmentation__conditioned=True,
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    folder = Trainer(method, TrainingSettings(8, batch_size=4, cpu=True, log_every=1), tmp_path / "run").fit()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"teacher/diffusion", "teacher/contrast", "teacher/loss"} <= log[-1].keys()
    teacher = load_teacher(folder)
    assert (
        is_self_conditioned(teacher.backbone.inner) and teacher.backbone.inner.config.self_conditioning["tap"] == "mid"
    )
    assert next(generate(teacher, ["red apple"], steps=2, guidance=2.0)).shape == (1, 3, 16, 16)
    # the product is a start for further training, which may be self-conditioned in the same way alone
    again = method_of(pictures, vae, network__init_from=str(folder), network__self_conditioning__tap="mid")
    assert is_self_conditioned(again.networks["model"].inner)
    with pytest.raises(UserError, match="and not with"):
        method_of(pictures, vae, network__init_from=str(folder), network__self_conditioning__tap="down.0")


@pytest.mark.parametrize("start", ["none", "plain", "self-conditioned"])
def test_any_step_models_may_be_self_conditioned(pictures: str, vae: str, tmp_path: Path, start: str) -> None:
    torch.manual_seed(0)
    settings = {"data__source": pictures, "network__autoencoder": vae, "network__self_conditioning__tap": "mid"}
    if start != "none":
        of = {} if start == "plain" else {"network__self_conditioning__tap": "mid"}
        method_of(pictures, vae, **of).export(tmp_path / "start")
        settings["network__init_from"] = str(tmp_path / "start")
    method = made(SelfE, **SMALL, **settings, export__stock_one_step=True)
    network = method.networks["model"]
    torch.nn.init.normal_(network.inner.self_conditioner.linear_2.weight)
    method.export(tmp_path / "model")
    again = load_any_step(tmp_path / "model").network
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 500.0])
    cond = network.encode(method.source.tokenize(["a", "b"]))
    assert torch.allclose(network(x, t, t - 100, cond), again(x, t, t - 100, cond), atol=1e-3)
    assert load_teacher(tmp_path / "model" / "one_step").backbone.inner.config.self_conditioning["tap"] == "mid"


def test_two_processes_log_what_one_logs(pictures: str, vae: str, tmp_path: Path) -> None:
    from made import nested

    settings = {**SMALL, "data__source": pictures, "network__autoencoder": vae, "self_distillation__weight": 0.5}
    recipe = {
        "method": {
            "class_path": "diffdistill.methods.LatentDiffusion",
            "init_args": nested({**settings, "optimizer__learning_rate": 1e-5}),
        },
        "training": {"samples": 16, "batch_size": 8, "log_every": 1},
    }
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps(recipe, default=list))
    one, two = (
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in train_on_one_and_on_two(config)
    )
    for a, b in zip(one, two, strict=True):
        for key in ("teacher/diffusion", "teacher/contrast", "teacher/loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), (key, a["step"])


def test_what_cannot_be_is_refused(pictures: str, vae: str) -> None:
    for bad, what in (
        ({"self_distillation__weight": -1.0}, "weight is -1"),
        ({"self_distillation__t_max": 0.0}, "t_max is 0"),
        ({"self_distillation__weight": 1.0, "self_distillation__tap": "bottom"}, "no tap 'bottom'"),
        ({"self_distillation__weight": 1.0, "augmentation__shift": 0, "augmentation__mirror": False}, "two variants"),
        ({"augmentation__conditioned": True, "augmentation__shift": 0, "augmentation__mirror": False}, "neither"),
        ({"network__self_conditioning__tap": "up.1"}, "the last block"),
    ):
        with pytest.raises(UserError, match=what):
            made(LatentDiffusion, data__source=pictures, network__autoencoder=vae, **{**SMALL, **bad})
    with pytest.raises(UserError, match="conditioned"):
        made(SelfE, data__source=pictures, network__autoencoder=vae, **SMALL, augmentation__conditioned=True)
