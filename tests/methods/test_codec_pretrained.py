"""Training the codec around pretrained networks: the loss falls, only new parts move, and a run ends in a codec."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_codec import picture
from small_pretrained import SETTINGS, save_parts, transformer

from diffdistill.codec import Codec
from diffdistill.codec.adapters import is_adapter
from diffdistill.codec.bitstream import from_bytes
from diffdistill.codec.pretrained_source import PretrainedSource
from diffdistill.data.photographs import PhotographData
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import PretrainedImageCodec
from diffdistill.methods.codec_rate_distortion import CodecLoss
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

LOSS = CodecLoss(error=0.025, masking=0.0, perceptual=0.0, alignment=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    (folder / "photographs").mkdir()
    for i, size in enumerate(((300, 260), (256, 256), (270, 400))):
        Image.fromarray(picture(*size, seed=i).permute(1, 2, 0).numpy()).save(folder / "photographs" / f"{i}.png")
    save_parts(folder)
    return folder


def method(folder: Path, **settings: Any) -> PretrainedImageCodec:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "autoencoder": PretrainedSource(str(folder / "vae")),
        "transformer": PretrainedSource(str(folder / "transformer")),
        "network": SETTINGS,
        "loss": LOSS,
        **settings,
    }
    return PretrainedImageCodec(PhotographData(str(folder / "photographs")), **given)


def test_training_lowers_the_loss_and_moves_new_parts_alone(folder: Path) -> None:
    made = method(folder, contrastive=0.05)
    network = made.networks["codec"]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    random = SampleRandom(0, range(4))
    batch = made.batch([0, 1, 2, 0], random)
    assert torch.equal(batch["images"], made.batch([0, 1, 2, 0], random)["images"])
    (phase,) = made.phases(0)
    assert phase.trains == ("codec", "pair") and phase.whole_batch
    trained = [p for each in made.networks.values() for p in each.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, 3e-3), []
    for _ in range(12):
        loss, logs = phase.loss(batch, random, {})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in trained)
    assert losses[-1] < 0.9 * losses[0] and {"bpp", "psnr_db", "alignment", "contrastive"} <= logs.keys()
    for name, p in network.named_parameters():
        pretrained = name.startswith(("autoencoder.", "transformer.")) and not is_adapter(name)
        assert torch.equal(p, before[name]) == pretrained, name


def test_terms_of_the_loss(folder: Path) -> None:
    """Weights of 1 at one term alone give that term, as the log has it, times the sample's weight."""
    random = SampleRandom(0, range(2))
    totals = {}
    for name, loss in (
        ("none", replace(LOSS, error=0.0, alignment=0.0)),
        ("error", replace(LOSS, error=1.0, alignment=0.0)),
        ("alignment", replace(LOSS, error=0.0, alignment=1.0)),
        ("masked", replace(LOSS, error=1.0, alignment=0.0, masking=1.0)),
    ):
        made = method(folder, loss=loss)
        batch = made.batch([0, 1], random)
        batch["quality"] = torch.full((2,), 100.0)  # an error weight of 350, a sample's weight of 0.45
        totals[name], logs = made._loss(batch, random, {})
    torch.testing.assert_close(totals["none"], 0.45 * logs["bpp"])
    torch.testing.assert_close(totals["error"] - totals["none"], 0.45 * 350 * logs["error"])
    torch.testing.assert_close(totals["alignment"] - totals["none"], 0.45 * 20 * logs["alignment"])
    assert totals["masked"] != totals["error"]


@pytest.mark.parametrize("step", ["element", "sample"])
def test_a_run_its_continuation_and_its_codec(folder: Path, tmp_path: Path, step: Any) -> None:
    settings = TrainingSettings(8, batch_size=2, cpu=True, log_every=1, checkpoint_every=4, validate_every=8)
    network = replace(SETTINGS, step=step)
    runs = [tmp_path / "whole", tmp_path / "parts"]
    for run in runs:
        run.mkdir()
    exported = Trainer(method(folder, network=network), settings, runs[0]).fit()
    half = TrainingSettings(4, batch_size=2, cpu=True, log_every=1, checkpoint_every=4)
    Trainer(method(folder, network=network), half, runs[1]).fit()
    again = Trainer(method(folder, network=network, export_whole=True), settings, runs[1], resume="latest").fit()
    codecs = [Codec(each) for each in (exported, again)]
    image = picture(90, 130)
    found = codecs[0].read_integers(from_bytes(codecs[0].encode(image, 50)))  # encoders in float16 may round otherwise
    decoded = [codec.image(found, 50, (90, 130)) for codec in codecs]
    assert decoded[0].shape == image.shape
    torch.testing.assert_close(decoded[0].float(), decoded[1].float(), rtol=0, atol=12)  # merged weights are float16
    started = method(folder, network=network, init_from=str(exported))
    assert started.content["init_from"] == codecs[0].fingerprint
    assert started.content["transformer.source"] == method(folder, network=network).content["transformer.source"]
    trained = {name for name, p in started.networks["codec"].named_parameters() if p.requires_grad}
    fresh = method(folder, network=network).networks["codec"]
    assert trained == {name for name, p in fresh.named_parameters() if p.requires_grad}


def test_settings_out_of_range(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crop is 320; it must be a multiple of 256"):
        method(folder, crop=320)
    with pytest.raises(UserError, match="perceptual_side is 500"):
        method(folder, loss=CodecLoss(perceptual_side=500))
    with pytest.raises(UserError, match="contrastive is -1"):
        method(folder, contrastive=-1.0)
    with pytest.raises(UserError, match="autoencoder .* is a SanaTransformer2DModel.*; expected AutoencoderDC"):
        method(folder, autoencoder=PretrainedSource(str(folder / "transformer")))
    transformer(in_channels=8).save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match="takes 8 channels and the autoencoder makes 4"):
        method(folder, transformer=PretrainedSource(str(tmp_path / "wide")))
    with pytest.raises(UserError, match="no weights of the variant 'fp16'"):
        method(folder, transformer=PretrainedSource(str(folder / "transformer"), "fp16"))
