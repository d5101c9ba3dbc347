"""The codec around SANA and DC-AE as files of both kinds: what comes back, what is refused, and what is kept."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import plain_decoder
import pytest
import torch
from small_codec import picture
from small_pretrained import SETTINGS, autoencoder, small_pretrained, transformer
from tiny_families import save_tiny_sana

from diffdistill.codec import Codec
from diffdistill.codec.adapters import is_adapter, merged_weights
from diffdistill.codec.bitstream import OtherModelError, from_bytes
from diffdistill.codec.pretrained import PretrainedCodecNetwork
from diffdistill.codec.pretrained_saved import load_pretrained_codec, save_pretrained_codec
from diffdistill.codec.pretrained_source import PretrainedSource, open_pretrained, pretrained_network
from diffdistill.codec.saved import load_codec, open_codec
from diffdistill.errors import UserError
from diffdistill.models.digests import weights_digest


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> PretrainedCodecNetwork:
    return small_pretrained(tmp_path_factory.mktemp("parts")).eval()


@pytest.fixture(scope="module", params=[False, True], ids=["named", "whole"])
def codec(
    request: pytest.FixtureRequest, network: PretrainedCodecNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Codec:
    folder = tmp_path_factory.mktemp("codec")
    save_pretrained_codec(network, folder, whole=request.param)
    return Codec(folder)


@pytest.mark.parametrize("size", [(1, 1), (300, 70), (257, 512)])
def test_round_trip(codec: Codec, size: tuple[int, int]) -> None:
    image = picture(*size)
    found, y = codec.integers(image, 30)
    data = codec.encode(image, 30, check_integers=True)
    read = codec.read_integers(from_bytes(data))
    assert (read.z == found.z).all() and (read.r == found.r).all() and (read.indexes == found.indexes).all()
    assert found.r.any() and found.z.shape == (8, -(-size[0] // 256), -(-size[1] // 256))
    decoded = codec.decode(data)
    assert decoded.shape == image.shape
    of = torch.tensor([30.0])
    with torch.inference_mode():
        expected = codec.network.decode(y, of, torch.from_numpy(found.indexes)[None].float())
    wanted = (expected[0, :, : size[0], : size[1]].clamp(0, 1) * 255).round()
    torch.testing.assert_close(decoded.float(), wanted, rtol=0, atol=1)


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_integers_do_not_depend_on_threads(codec: Codec, threads: Any) -> None:
    image = picture(300, 500)
    coded_image = from_bytes(codec.encode(image, 60, check_integers=True))
    found = codec.integers(image, 60)[0]
    for n in (1, 2):
        threads(n)
        read = codec.read_integers(coded_image)
        assert all((a == b).all() for a, b in zip(read, found, strict=True))


def test_a_saved_codec_computes_the_same(network: PretrainedCodecNetwork, codec: Codec) -> None:
    """Up to the rounding of weights to float16, with adapters or with weights in which they are merged."""
    quality = torch.tensor([50.0])
    with torch.no_grad():
        code = network.latent_codec.rounded(network.encode(torch.rand(1, 3, 256, 256)), quality)
        expected, found = (made.decode(code.y, quality, code.indexes) for made in (network, codec.network))
    assert (found - expected).square().mean().sqrt() < 0.005 * expected.std()
    assert not any(p.requires_grad for p in codec.network.parameters())


def test_merged_weights_compute_the_same(network: PretrainedCodecNetwork) -> None:
    plain, x = autoencoder(), torch.randn(2, 4, 2, 3)
    plain.load_state_dict(merged_weights(network.autoencoder))
    with torch.no_grad():
        expected = network.autoencoder.decode(x).sample
        torch.testing.assert_close(plain.decode(x).sample, expected, rtol=0, atol=1e-4)
        stored = network.autoencoder.state_dict()
        plain.load_state_dict({k.replace(".base_layer.", "."): v for k, v in stored.items() if not is_adapter(k)})
        assert (plain.decode(x).sample - expected).abs().max() > 1e-3  # the adapters matter


def test_the_fingerprint_covers_the_pretrained_weights_and_not_their_place(tmp_path: Path) -> None:
    made = small_pretrained(tmp_path / "parts")
    save_pretrained_codec(made, tmp_path / "codec")
    first = Codec(tmp_path / "codec")
    shutil.move(tmp_path / "parts", tmp_path / "moved")
    with pytest.raises(UserError, match="there is no model at"):
        Codec(tmp_path / "codec")
    file = tmp_path / "codec" / "config.json"
    file.write_text(file.read_text().replace(str(tmp_path / "parts"), str(tmp_path / "moved")))
    assert Codec(tmp_path / "codec").fingerprint == first.fingerprint

    config = json.loads(file.read_text())
    other = transformer().requires_grad_(False)
    other.save_pretrained(tmp_path / "other")
    config["pretrained"]["transformer"]["source"] = str(tmp_path / "other")
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="the transformer at .*other has the digest .* was trained with") as caught:
        Codec(tmp_path / "codec")
    assert "\n" not in str(caught.value)

    made.transformer.proj_out.base_layer.bias.data += 0.01
    save_pretrained_codec(made, tmp_path / "changed", whole=True)
    made.transformer.proj_out.base_layer.bias.data -= 0.01
    save_pretrained_codec(made, tmp_path / "whole", whole=True)
    changed, whole = Codec(tmp_path / "changed"), Codec(tmp_path / "whole")
    assert len({changed.fingerprint, whole.fingerprint, first.fingerprint}) == 3
    with pytest.raises(OtherModelError):
        changed.decode(whole.encode(picture(20, 20)))


def test_kinds_of_codec_are_told_apart(network: PretrainedCodecNetwork, tmp_path: Path) -> None:
    save_pretrained_codec(network, tmp_path)
    assert isinstance(open_codec(tmp_path).network, PretrainedCodecNetwork)
    with pytest.raises(UserError, match="has pretrained networks"):
        load_codec(tmp_path)
    (tmp_path / "codec.safetensors").write_bytes((tmp_path / "codec.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        load_pretrained_codec(tmp_path)


def test_shapes_are_checked_before_memory_is_taken(network: PretrainedCodecNetwork, tmp_path: Path) -> None:
    save_pretrained_codec(network, tmp_path, whole=True)
    file = tmp_path / "config.json"
    saved = file.read_text()
    for place, key, value, says in (
        (("settings",), "analysis_widths", [4096, 4096], "config.json asks for"),
        (("pretrained", "transformer", "config"), "num_layers", 10**6, "more than 256 layers"),
        (("pretrained", "transformer", "config"), "num_attention_heads", 4096, "config.json asks for"),
    ):
        config = json.loads(saved)
        part = config
        for name in place:
            part = part[name]
        assert key in part
        part[key] = value
        file.write_text(json.dumps(config))
        built = mock.patch("diffdistill.codec.pretrained_saved._empty", side_effect=AssertionError("built"))
        with built, pytest.raises(UserError, match=says):
            load_pretrained_codec(tmp_path)


def test_the_second_decoder_reads_its_files(network: PretrainedCodecNetwork, tmp_path: Path) -> None:
    save_pretrained_codec(network, tmp_path)
    codec, model, image = Codec(tmp_path), plain_decoder.model_of(tmp_path), picture(130, 300)
    read, (found, _) = plain_decoder.decode(codec.encode(image, 40), model), codec.integers(image, 40)
    assert read["z"] == found.z.tolist() and read["r"] == found.r.tolist()


def test_of_a_repository_only_the_networks_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_sana(tmp_path / "sana", stages=6)
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    asked: list[str] = []

    def snapshot(source: str, allow_patterns: list[str]) -> str:
        assert source == "owner/sana"
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, source: names)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    where = PretrainedSource("owner/sana")
    network = pretrained_network(where, where, replace(SETTINGS, transformer_rank=0))
    assert {Path(name).parts[0] for name in asked if name.endswith(".safetensors")} == {"vae", "transformer"}
    assert network.origins["transformer"].source == "owner/sana"
    alone, origin = open_pretrained("transformer", PretrainedSource(str(folder / "transformer")))
    assert origin.digest == network.origins["transformer"].digest
    assert weights_digest(alone) == weights_digest(network.transformer)
