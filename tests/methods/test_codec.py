"""Training the codec: its perceptual term is the distance that is measured, and a run ends in files that decode."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from small_codec import SETTINGS, picture

from diffdistill.codec import Codec
from diffdistill.data.photographs import PhotographData, load_photographs, random_crop
from diffdistill.errors import UserError
from diffdistill.evaluation.pairs.perceptual import st_lpips
from diffdistill.methods import ImageCodec
from diffdistill.methods.codec import CodecLoss, weights_of
from diffdistill.methods.codec_loss import PerceptualLoss
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


def test_settings_out_of_range(photographs: Path) -> None:
    with pytest.raises(UserError, match="crop is 100; it must be a multiple of 64"):
        ImageCodec(PhotographData(str(photographs)), crop=100)
    with pytest.raises(UserError, match="perceptual_side is 500"):
        ImageCodec(PhotographData(str(photographs)), crop=128, loss=CodecLoss(perceptual_side=500))
