"""Training the codec: its perceptual term is the distance that is measured, and a run ends in files that decode."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from small_codec import SETTINGS, picture, save_small_codec
from torch.nn import functional as F

from diffdistill.codec import Codec
from diffdistill.codec.one_step import DenoiserSettings
from diffdistill.data.photographs import PhotographData, load_photographs, random_crop
from diffdistill.errors import UserError
from diffdistill.evaluation.pairs.perceptual import st_lpips
from diffdistill.methods import CodecFlow, ImageCodec, Method, OptimizerSettings
from diffdistill.methods.codec_judge import CodecJudge
from diffdistill.methods.codec_loss import PerceptualLoss
from diffdistill.methods.codec_rate_distortion import CodecLoss, RateDistortion, cut, smoothness, weights_of
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i, size in enumerate(((200, 260), (180, 180), (150, 400))):
        Image.fromarray(picture(*size, seed=i).permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    Image.fromarray(picture(50, 300).permute(1, 2, 0).numpy()).save(folder / "narrow.png")
    return folder


def test_photographs_and_their_crops(photographs: Path) -> None:
    found = load_photographs(str(photographs), 128)
    assert found.names == ["0.png", "1.png", "2.png"] and found.left_out == 1
    whole = random_crop(found.images[0], 128, [0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert torch.equal(whole, found.images[0][:, :128, :128])
    mirrored = random_crop(found.images[0], 128, [0.101, *[0.0] * 7])
    assert torch.equal(mirrored, whole.flip(-1))
    assert random_crop(found.images[2], 128, [0.9, 0.9, *[0.999] * 6]).shape == (3, 128, 128)
    with pytest.raises(UserError, match="at least 1000 pixels"):
        load_photographs(str(photographs), 1000)


def test_the_perceptual_term_is_the_measured_distance() -> None:
    try:
        measured = st_lpips("alex")
    except UserError as error:
        pytest.skip(str(error))
    x, y = (torch.stack([picture(128, 128, s), picture(128, 160, s)[:, :, :128]]).float() / 255 for s in (0, 1))
    y = (0.7 * x + 0.3 * y).requires_grad_()
    found = PerceptualLoss()(x, y)
    torch.testing.assert_close(found.double(), measured(x, y.detach()), rtol=0.02, atol=0)
    found.sum().backward()
    assert y.grad is not None and y.grad.isfinite().all()
    assert float(PerceptualLoss()(x, x).abs().max()) < 1e-6


def test_weights_between_levels() -> None:
    found = weights_of(torch.tensor([0.0, 50.0, 100.0]))
    torch.testing.assert_close(found[[0, 2]], torch.tensor([[5.0, 0.2, 2.6], [350.0, 20.0, 0.45]]))
    torch.testing.assert_close(found[1], torch.tensor([28.0 * 65, 1.2 * 3, 1.5]).sqrt())


def test_the_perceptual_term_sees_parts_at_several_scales() -> None:
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0.0, 0.999], [0.5, 0.5], [0.3, 0.3]])
    made = cut(x, places, [16, 32, 64], 32)
    torch.testing.assert_close(made[1], x[1, :, 16:48, 16:48])
    torch.testing.assert_close(made[2], F.interpolate(x[2:], size=32, mode="bilinear", antialias=True)[0])
    torch.testing.assert_close(made[0, :, 0, 0], x[0, :, 0, 48])
    for wrong in ((), (0.1,), (1.0, 5.0), (float("nan"),)):
        with pytest.raises(UserError, match="perceptual_scales"):
            RateDistortion(CodecLoss(perceptual=0, perceptual_scales=wrong), 128)


def test_smooth_places_count_more() -> None:
    flat, noise = torch.full((1, 3, 64, 64), 0.5), torch.full((1, 3, 64, 64), 0.5)
    noise[..., ::2] += 0.06
    noise[..., 1::2] -= 0.06
    torch.testing.assert_close(smoothness(flat), torch.full((1, 1, 64, 64), 0.03 * 255 / 3))
    expected = 0.03 / (0.06**2 + (3 / 255) ** 2) ** 0.5
    torch.testing.assert_close(
        smoothness(noise)[..., 8:-8, 8:-8], torch.full((1, 1, 48, 48), expected), rtol=1e-3, atol=0
    )
    half = torch.cat([flat[..., :32], noise[..., 32:]], 3)
    torch.testing.assert_close(smoothness(half)[..., :29], smoothness(flat)[..., :29])  # nearly up to the edge


def test_a_run_its_continuation_and_its_codec(photographs: Path, tmp_path: Path) -> None:
    def method() -> ImageCodec:
        torch.manual_seed(0)
        return ImageCodec(PhotographData(str(photographs)), network=SETTINGS, loss=CodecLoss(perceptual=0.0), crop=128)

    settings = TrainingSettings(16, batch_size=4, cpu=True, log_every=1, checkpoint_every=8, validate_every=16)
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    exported = Trainer(method(), settings, folders[0]).fit()
    half = TrainingSettings(8, batch_size=4, cpu=True, log_every=1, checkpoint_every=8)
    Trainer(method(), half, folders[1]).fit()
    again = Trainer(method(), settings, folders[1], resume="latest").fit()
    codecs = [Codec(folder) for folder in (exported, again)]
    assert codecs[0].fingerprint == codecs[1].fingerprint
    image = picture(90, 130)
    data = codecs[0].encode(image, 50)
    assert torch.equal(codecs[0].decode(data), codecs[1].decode(data))
    started = ImageCodec(
        PhotographData(str(photographs)),
        network=SETTINGS,
        loss=CodecLoss(perceptual=0.0),
        crop=128,
        init_from=str(exported),
    )
    assert started.content["init_from"] == codecs[0].fingerprint


DENOISER = DenoiserSettings(width=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_codec(tmp_path_factory.mktemp("base"))


def run(method: Method, folder: Path, samples: int = 8) -> Path:
    folder.mkdir()
    settings = TrainingSettings(samples, batch_size=4, cpu=True, log_every=1, validate_every=samples)
    return Trainer(method, settings, folder).fit()


@pytest.mark.parametrize("condition", ["code", "none"])
def test_flow_matching_changes_no_file_and_its_denoiser_is_adapted(
    condition: Literal["code", "none"], base: Path, photographs: Path, tmp_path: Path
) -> None:
    data, image = PhotographData(str(photographs)), picture(90, 130)
    flow = run(CodecFlow(data, str(base), DENOISER, condition, crop=128), tmp_path / "flow")
    first, second = Codec(base), Codec(flow)
    assert second.network.denoiser is not None
    assert second.network.denoiser.transformer.out.weight.abs().max() > 0  # it learned something
    files = first.encode(image, 40), second.encode(image, 40)
    assert files[0][10:-4] == files[1][10:-4]  # all but the fingerprint and the checksum
    assert (first.decode(files[0]).int() - second.decode(files[1]).int()).abs().max() <= 1
    adapted = ImageCodec(
        data,
        network=dataclasses.replace(SETTINGS, denoiser=DENOISER),
        loss=CodecLoss(perceptual=0.0, alignment=0.05),
        crop=128,
        init_from=str(flow),
        trained="decoder",
        judge=CodecJudge(0.1),
        optimizer=OptimizerSettings(1e-3),
    )
    before = {k: v.clone() for k, v in adapted.networks["codec"].state_dict().items()}
    teacher = {k: v.clone() for k, v in adapted.frozen["teacher"].state_dict().items()}
    fake = {k: v.clone() for k, v in adapted.networks["fake"].state_dict().items()}
    third = Codec(run(adapted, tmp_path / "adapted", 16))
    after = adapted.networks["codec"].state_dict()
    for name, value in before.items():
        moved = not torch.equal(value, after[name])
        assert not moved or not name.startswith(("encoder.", "latent_codec.", "lapped.")), name
    assert not torch.equal(before["denoiser.step"], after["denoiser.step"])
    assert all(torch.equal(value, adapted.frozen["teacher"].state_dict()[name]) for name, value in teacher.items())
    assert any(not torch.equal(value, adapted.networks["fake"].state_dict()[name]) for name, value in fake.items())
    assert third.encode(image, 40)[10:-4] == files[0][10:-4]
    assert third.decode(third.encode(image, 40)).shape == image.shape
    config = tmp_path / "adapted" / "export" / "config.json"
    config.write_text(config.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(
        UserError, match="is of format 1; this program reads format 2 of such codecs"
    ):  # it took another step
        Codec(config.parent)


def test_another_step_around_the_same_transformer(base: Path, photographs: Path, tmp_path: Path) -> None:
    data = PhotographData(str(photographs))
    flow = run(CodecFlow(data, str(base), DENOISER, crop=128), tmp_path / "flow")
    settings = dataclasses.replace(DENOISER, step="token", conditional=False)
    made = ImageCodec(
        data, dataclasses.replace(SETTINGS, denoiser=settings), crop=128, loss=CodecLoss(perceptual=0.0),
        init_from=str(flow),
    )  # fmt: skip
    before, after = Codec(flow).network.denoiser, made.networks["codec"].denoiser
    assert before is not None and after.settings.step == "token"
    assert torch.equal(before.transformer.out.weight, after.transformer.out.weight)
    assert torch.equal(before.rms, after.rms) and before.transformer.out.weight.abs().max() > 0
    other = dataclasses.replace(SETTINGS, denoiser=dataclasses.replace(DENOISER, depth=2))
    with pytest.raises(UserError, match="the codec has a denoiser of the shape"):
        ImageCodec(data, other, crop=128, init_from=str(flow))


def test_a_denoiser_from_nothing_starts_as_the_codec(base: Path, photographs: Path) -> None:
    for kind in ("transformer", "convolutions"):
        network = dataclasses.replace(SETTINGS, denoiser=dataclasses.replace(DENOISER, kind=kind))
        made = ImageCodec(
            PhotographData(str(photographs)), network, crop=128, loss=CodecLoss(perceptual=0.0), init_from=str(base)
        )
        images, quality = picture(64, 64)[None].float() / 255, torch.tensor([30.0])
        found, bits = made.networks["codec"].reconstruct(images, quality)
        expected, expected_bits = Codec(base).network.reconstruct(images, quality)
        assert bits == pytest.approx(expected_bits, rel=1e-4)
        far = 1e-4 if kind == "convolutions" else 0.03  # a transformer begins with a short step
        assert float((found - expected).abs().mean()) < far


def test_what_needs_a_trained_codec_says_so(base: Path, photographs: Path) -> None:
    data = PhotographData(str(photographs))
    with pytest.raises(UserError, match="name one by init_from"):
        ImageCodec(data, crop=128, trained="decoder")
    with pytest.raises(UserError, match="network.denoiser needs a trained codec"):
        ImageCodec(data, dataclasses.replace(SETTINGS, denoiser=DENOISER), crop=128)
    with pytest.raises(UserError, match="a pre-trained denoiser"):
        ImageCodec(data, SETTINGS, crop=128, init_from=str(base), judge=CodecJudge(0.1))
    with pytest.raises(UserError, match="not that of `network`"):
        ImageCodec(data, crop=128, init_from=str(base))
    with pytest.raises(UserError, match="flow matching trains a transformer"):
        CodecFlow(data, str(base), DenoiserSettings("convolutions"), crop=128)


def test_settings_out_of_range(photographs: Path) -> None:
    with pytest.raises(UserError, match="crop is 100; it must be a multiple of 64"):
        ImageCodec(PhotographData(str(photographs)), crop=100)
    with pytest.raises(UserError, match="perceptual_side is 500"):
        ImageCodec(PhotographData(str(photographs)), crop=128, loss=CodecLoss(perceptual_side=500))
