"""`eval calc --agreement` through the command: stub towers by hand, one process and two, open_clip's own, refusals."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_calls import in_two, noise, one_thread, refused, said
from PIL import Image
from stub_towers import stand_in
from tiny_pipeline import save_tiny_pipeline
from torch.nn import functional as F

from diffdistill.data.sources import open_source

TESTS = Path(__file__).parents[1]
PICTURES = ("red", "green", "blue", "red", "olive")
CAPTIONS = ["red apple", "green pear", "green car", "blue bird", "red apple"]
COSINES = [1, 1, 0, 0, 0.5**0.5]  # olive is as red as green


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "diffdistill.evaluation.agreement.align", stand_in())
    Path("pictures").mkdir()
    for i, colour in enumerate(PICTURES):
        Image.new("RGB", (8, 8), {"green": "#00ff00"}.get(colour, colour)).save(f"pictures/{i}.png")
    Path("captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return tmp_path


def captioned(*argv: str) -> tuple[str, ...]:
    return ("calc", "--images", "pictures", "--agreement", "align", "--captions", "captions.txt", *argv)


def test_numbers_of_pictures_and_their_captions(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = said(capsys, *captioned("--out", "report.json"))
    assert report == json.loads(Path("report.json").read_text())
    assert report["align_score(colours)"] == pytest.approx(np.mean(COSINES), rel=1e-6)
    assert report["align_score_se(colours)"] == pytest.approx(np.std(COSINES, ddof=1) / 5**0.5, rel=1e-6)
    # Four captions: the second image ties with "green car", the third's own ties with all but the nearer "blue
    # bird", the fourth's loses to "red apple" and ties with two, the fifth's ties with both greens.
    assert report["align_r1(colours)"] == pytest.approx((1 + 1 / 2 + 0 + 0 + 1 / 3) / 5)
    assert report["align_r5(colours)"] == 1
    assert (report["n"], report["align_n"], report["align_captions"]) == (5, 5, 4)
    assert report["align_protocol"]["extractor"] == "colours"
    assert report["align_protocol"]["protocol"].startswith("mobilenet-offline@")
    first = said(capsys, *captioned("--pictures", "3", "--batch_size", "2"))  # the first captions of the file
    assert first["align_score(colours)"] == pytest.approx(2 / 3, rel=1e-6)


def test_a_reference_and_captions_from_one_pass(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    from diffdistill.data.files import Folder

    pytest.importorskip("torchvision")
    noise("real", 4, 0)
    alone = said(capsys, "calc", "--images", "pictures", "--reference", "real")
    read: list[int] = []
    plain = Folder.read_bytes
    monkeypatch.setattr(
        Folder, "read_bytes", lambda self, i: (self.name == "pictures" and read.append(i)) or plain(self, i)
    )
    both = said(capsys, *captioned("--reference", "real"))
    assert sorted(read) == list(range(5))
    assert {key: both[key] for key in alone} == alone
    assert both["align_score(colours)"] == pytest.approx(np.mean(COSINES), rel=1e-6)


def test_two_processes_give_the_numbers_of_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one_thread():
        one = said(capsys, *captioned())
    in_two(captioned("--out", "two.json"), stand_in)
    assert json.loads(Path("two.json").read_text()) == one and one["n"] == 5


def test_a_generators_captions_are_its_prompts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_pipeline(here / "model")
    Path("prompts.jsonl").write_text('{"tag": "x", "prompt": "red apple"}\n{"prompt": "blue car"}\n')
    sampler = ("--model", "model", "--prompts", "prompts.jsonl", "--pictures", "5")
    made = said(capsys, "calc", *sampler, "--agreement", "align")
    assert (made["n"], made["align_captions"]) == (5, 2) and made["made_from"]["steps"] == 1
    said(capsys, "gen", *sampler, "--out", "out")
    stored = said(
        capsys, "calc", "--images", "out", "--agreement", "align", "--captions", "out/prompts.txt", "--threads", "0"
    )
    assert made["align_score(colours)"] == pytest.approx(stored["align_score(colours)"], rel=1e-6)


def test_an_emoji_set_knows_its_captions(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("set").mkdir()
    Path("set/concepts.tsv").write_text("1f34e\tred apple\n1f697\tblue car\n2b50\tgreen star\n")
    Path("set/heldout.txt").write_text("green star\n")
    for style in ("noto", "twemoji"):
        sheet = Image.new("RGB", (192, 64), "black")
        for i, colour in enumerate(("red", "blue", "#00ff00")):
            sheet.paste(colour, (64 * i, 0, 64 * i + 64, 64))
        sheet.save(f"set/{style}.webp", lossless=True)
    found = said(capsys, "calc", "--images", "set", "--agreement", "align")
    assert (found["align_score(colours)"], found["align_n"], found["align_captions"]) == (1, 4, 4)
    Path("others.txt").write_text("blue\n" * 4)
    others = said(capsys, "calc", "--images", "set", "--agreement", "align", "--captions", "others.txt")
    assert others["align_score(colours)"] == 0.5


def test_clip_is_open_clips_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_clip = pytest.importorskip("open_clip")
    image = {"image_size": 32, "layers": 2, "width": 24, "head_width": 12, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    Path("configs").mkdir()
    Path("configs/tiny-agreement.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": image, "text_cfg": text}))
    open_clip.add_model_config(here / "configs")
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-agreement")
    model.eval()
    torch.save(model.state_dict(), "tiny.pt")
    clip = ("calc", "--images", "pictures", "--captions", "captions.txt", "--agreement", "clip")
    given = ("--clip_model", "tiny-agreement/random", "--clip_weights", "tiny.pt", "--clip_prefix", "A photo of ")
    report = said(capsys, *clip, *given)
    source = open_source("pictures")
    pixels = [preprocess(Image.fromarray(source.read(i).permute(1, 2, 0).numpy())) for i in range(5)]
    with torch.no_grad():
        x = F.normalize(model.encode_image(torch.stack(pixels)), dim=1)
        tokens = open_clip.get_tokenizer("tiny-agreement")([f"A photo of {caption}" for caption in CAPTIONS])
        y = F.normalize(model.encode_text(tokens), dim=1)
    name = "clip_score(tiny-agreement/random, 'A photo of ', x1)"
    assert report[name] == pytest.approx(float((x * y).sum(1).mean()), abs=1e-5)
    assert report["clip_protocol"]["prefix"] == "A photo of "
    absent = refused(capsys, *clip, *given[:2], "--clip_weights", "absent.pt")
    assert "then pass --clip_weights PATH" in absent and "weights=" not in absent
    wrong = refused(capsys, *clip, *given[:4], "--clip_weights_sha256", "0" * 64)
    assert "asked for 000" in wrong


def test_refusals(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("few.txt").write_text("red\nblue\n")
    Path("gap.txt").write_text("red\n\nblue\nred\nred\n")
    calc, align = ("calc", "--images", "pictures"), ("--agreement", "align")
    for argv, says in (
        ((*calc, "--reference", "pictures", "--captions", "captions.txt"), "--captions needs --agreement"),
        ((*calc, *align), "--captions are missing; agreement needs one for each image"),
        ((*calc, *align, "--captions", "nowhere.txt"), "there is no caption file nowhere.txt"),
        ((*calc, *align, "--captions", "few.txt"), "few.txt holds 2 captions, pictures 5 images"),
        ((*calc, *align, "--captions", "gap.txt"), "gap.txt, line 2 is empty"),
        ((*calc, *align, "--captions", "captions.txt", "--on_corrupt", "skip"), "leave out --on_corrupt skip"),
        ((*calc, *align, "--captions", "captions.txt", "--clip_prefix", "a "), "--clip_prefix needs --agreement clip"),
        ((*calc, "--agreement", "clip", "--captions", "captions.txt"), "names no CLIP; add --clip_model MODEL/TAG"),
        (
            (*calc, "--agreement", "clip", "--captions", "captions.txt", "--clip_model", "ViT-B-32"),
            "--clip_model ViT-B-32 should be MODEL/TAG",
        ),
        (
            (*captioned()[:3], "--agreement", "clip", "--captions", "captions.txt", "--pictures", "5", "--protocol")
            + ("coco30k-clean256", "--clip_prefix", "a "),
            "--clip_prefix 'a ': coco30k-clean256@",
        ),
        (
            ("calc", "--model", "m", "--prompts", "captions.txt", *align, "--captions", "captions.txt"),
            "the captions of --model are its --prompts",
        ),
        ((*calc, "--agreement", "blip"), "invalid choice: 'blip'"),
    ):
        assert says in refused(capsys, *argv)


def test_embeddings_that_are_not_finite_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    towers = sys.modules["diffdistill.evaluation.agreement.align"].AlignFeatures
    monkeypatch.setattr(towers, "text", lambda self, captions: torch.full((len(captions), 3), torch.nan))
    assert "not finite" in refused(capsys, *captioned())
    monkeypatch.setattr(towers, "network", lambda self, x: x / 0)
    assert "pictures, 0.png to 4.png: features hold values that are not finite" in refused(capsys, *captioned())
