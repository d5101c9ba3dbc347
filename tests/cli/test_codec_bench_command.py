"""`diffdistill codec bench`: clocks against a made-up one, a split that adds up, and what is refused."""

import json
from pathlib import Path

import pytest
from small_codec import save_small_codec

from diffdistill.cli.codec import timing
from diffdistill.cli.main import main


def test_clocks_count_each_call_and_leave_the_object_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Worker:
        calls = 0

        def work(self, seconds: float) -> float:
            self.calls += 1
            clock[0] += seconds
            return 2 * seconds

    monkeypatch.setattr(timing, "now", lambda: clock[0])
    worker = Worker()
    part = timing.Part(worker, "work")
    for _ in range(2):  # the second block begins anew
        with part.timed():
            assert worker.work(3.0) == 6.0 and worker.work(4.0) == 8.0
            clock[0] += 100  # outside of the part
        assert part.seconds == 7.0 and "work" not in vars(worker)
    assert timing.taken(part.again) == 7.0 and worker.calls == 6
    assert timing.taken(part.again) == 7.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_codec(tmp_path_factory.mktemp("codec")))


def test_the_split_of_decoding(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["codec", "bench", "-m", model, "--size", "96x64", "--runs", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    own, split = found["codec"], found["codec"]["split_s"]
    assert set(split) == {"entropy", "context", "decoder", "overhead"} and all(0 < v < 10 for v in split.values())
    assert own["decode_megapixels_a_second"] == pytest.approx(96 * 64 / 1e6 / own["decode_s"])
    assert own["decode_over_networks"] > 0.5 and own["networks_s"] > 0
    assert found["others"][0]["codec"] == "AVIF, its smallest file"  # a container is larger than such a small file
    assert found["size"] == "96x64"
    monkeypatch.setattr(timing, "strips", lambda *_: [(0, 1), (1, 2)])  # as for an image of several strips
    monkeypatch.setattr("diffdistill.codec.strips.CELLS", 16)
    assert main(["codec", "bench", "-m", model, "--size", "192x256", "--runs", "2", "--json"]) == 0
    split = json.loads(capsys.readouterr().out)["codec"]["split_s"]
    assert split["overhead"] < split["context"]
    assert main(["codec", "bench", "-m", model, "--size", "96x64", "--runs", "1"]) == 0
    assert "Decoding takes" in capsys.readouterr().out


def test_what_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*more: str) -> str:
        assert main(["codec", "bench", "-m", model, "--size", "64x64", "--runs", "1", *more]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "--size is '64'" in refused("--size", "64")
    assert "--runs is 0" in refused("--runs", "0")
    assert "--quality is 101" in refused("-q", "101")
    assert "cannot be run: No such file" in refused("--compressai_python", str(tmp_path / "python"))
    assert "cannot be read" in refused("--image", str(tmp_path / "none.png"))
