"""`diffdistill text3d eval`: rows are kept, the record agrees with its rows, the page shows every prompt; refusals."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from stub_towers import StubTowers
from text3d.true_models import Everywhere, Model, NearestJudge, TwoFaced, prompt_of, thing, views_of
from torch import Tensor

from diffdistill.cli.main import guard
from diffdistill.cli.text3d.eval import main
from diffdistill.errors import UserError
from diffdistill.evaluation.features import clip, mobilenet
from diffdistill.evaluation.features.base import Extractor
from diffdistill.text3d import judge_network
from diffdistill.text3d.embedder import WordEmbedder
from diffdistill.text3d.evaluation.evaluation import Evaluation
from diffdistill.text3d.evaluation.page import html_page
from diffdistill.text3d.evaluation.pictures import as_bytes, beside, read_sheet, write_sheet
from diffdistill.text3d.evaluation.record import record_of
from diffdistill.text3d.evaluation.table import csv_table
from diffdistill.text3d.evaluation.text_retrieval import TextRetrieval
from diffdistill.text3d.field import Field
from diffdistill.text3d.judge_network import JudgeNetwork, load_judge, save_judge
from diffdistill.text3d.measures import QUICK, Ruler
from diffdistill.text3d.model import TextTo3DModel, save_model
from diffdistill.text3d.things import rendering
from diffdistill.text3d.things.catalogue import COLOURS, Prompt, Split
from diffdistill.text3d.things.procedural import THINGS
from diffdistill.text3d.things.true_field import TrueField
from diffdistill.text3d.things.view_files import ThingViews, read_views, views_as_bytes
from diffdistill.text3d.words import Vocabulary

NAMES = ("cone", "table", "chair")
SPLIT = Split(
    tuple(prompt_of(f"a {text}") for text in ("red cone", "blue cone", "red table", "blue table", "red chair")),
    (Prompt("chair", "blue"),),
    (Prompt("cone", "pink"),),
)


class Means(Extractor):
    """The mean colours of the quarters of an image as its features."""

    name, dim, resize, weights_sha256 = "means", 12, "none", "0" * 64

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def prepare(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def network(self, x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def ruler() -> Ruler:
    views = views_of(*NAMES)
    return Ruler(views, NearestJudge(views), QUICK)


def faulty(prompts: list[Prompt]) -> Field:
    """True objects, but chairs have two faces; nothing is there for a blue table."""
    if any(prompt == Prompt("table", "blue") for prompt in prompts):
        return Everywhere(len(prompts), 1.0)
    return TwoFaced(prompts) if prompts[0].thing == "chair" else TrueField(prompts)


def evaluation(ruler: Ruler, folder: Path, **other: object) -> Evaluation:
    one_by_one = Ruler(ruler.views, ruler.judge, type(QUICK)(32, 32, 32, at_once=1))
    given: dict[str, object] = {"model": Model(faulty), "fingerprint": "f" * 64, "ruler": one_by_one, "split": SPLIT}
    return Evaluation(**(given | {"folder": folder, "features": Means()} | other))  # type: ignore[arg-type]


def test_the_record_agrees_with_its_rows_and_a_second_run_makes_nothing(ruler: Ruler, tmp_path: Path) -> None:
    first = evaluation(ruler, tmp_path)
    record = record_of(first)
    rows = {row["prompt"]: row for row in record["rows"]}
    assert list(rows) == [str(prompt) for prompt in SPLIT.all]
    assert [row["split"] for row in record["rows"]] == ["trained"] * 5 + ["composed", "unseen"]
    assert [text for text, row in rows.items() if row["empty"]] == ["a blue table"]
    assert rows["a blue table"]["janus"] is None and rows["a blue table"]["watertight"] is False
    assert rows["a blue chair"]["janus"] > 0.2 and abs(rows["a pink cone"]["janus"]) < 0.02
    assert rows["a pink cone"]["components"] == rows["a pink cone"]["true_components"] == 1
    assert record["splits"]["all"]["janus_most"] == max(row["janus"] or 0 for row in record["rows"])
    assert rows["a pink cone"]["iou"] == 1.0 and rows["a pink cone"]["watertight"] is True
    splits = record["splits"]
    assert list(splits) == ["trained", "composed", "unseen", "all"]
    assert splits["trained"]["share_empty"] == 0.2 and splits["all"]["prompts"] == 7
    own = [row["psnr_db"] for row in record["rows"] if row["split"] == "trained"]
    assert splits["trained"]["psnr_db"] == pytest.approx(sum(own) / 5)
    assert splits["trained"]["worst_prompt"] == "a blue table" and splits["trained"]["worst_thing"] == "table"
    assert list(record["things"]) == sorted(record["things"], key=lambda name: record["things"][name]["iou"])
    assert record["judge"]["recall_at_1"] == 1.0 and record["judge"]["queries"] == 24
    assert record["settings"]["views"]["side"] == 32 and len(record["settings"]["queries"]) == 24
    cone = record["things"]["cone"]
    assert cone["variety"] == pytest.approx(cone["true_variety"], rel=0.05) and cone["render_kd"] < 1e-3
    assert splits["composed"]["render_kd"] is None  # of a single prompt there are no pairs
    assert rows["a blue table"]["own_kd"] > 10 * abs(rows["a red table"]["own_kd"])
    own = torch.tensor([row["own_kd"] for row in record["rows"] if row["split"] == "trained"])
    assert splits["trained"]["own_kd"] == pytest.approx(float(own.mean()), rel=1e-4)
    assert splits["trained"]["own_kd_se"] == pytest.approx(float(own.std()) / 5**0.5, rel=1e-4)
    assert splits["trained"]["render_kd_se"] > 0 and splits["composed"]["own_kd_se"] is None
    sheet = read_sheet(first.sheet(SPLIT.unseen[0]), 32)
    assert sheet.shape == (24, 3, 32, 32) and first.sheet(SPLIT.unseen[0]).name == "a_pink_cone.png"

    steps: list[str] = []
    second = evaluation(ruler, tmp_path, step=steps.append)
    assert record_of(second) == record and second.model.asked == 0  # type: ignore[attr-defined]
    second.sheet(SPLIT.trained[0]).unlink()  # a row counts only with its views
    third = evaluation(ruler, tmp_path)
    assert record_of(third) == record and third.model.asked == 1  # type: ignore[attr-defined]
    other = evaluation(ruler, tmp_path, fingerprint="e" * 64)
    assert other.rows() and other.model.asked == 7  # type: ignore[attr-defined]


def test_true_views_have_no_distance_from_themselves(ruler: Ruler, tmp_path: Path) -> None:
    made = evaluation(ruler, tmp_path, measures=["kd"])
    made.rows()
    for prompt in SPLIT.all:  # as if the model had made them
        write_sheet(made.sheet(prompt), as_bytes(ruler.truth([prompt])[0]))
    record = record_of(made)
    assert all(abs(row["own_kd"]) < 1e-12 for row in record["rows"])
    assert abs(record["splits"]["all"]["render_kd"]) < 1e-12 and abs(record["splits"]["all"]["render_kd_se"]) < 1e-12
    assert "watertight" not in record["rows"][0] and "variety" not in record["things"]["cone"]


def test_variety_of_a_generator_that_takes_noise(ruler: Ruler, tmp_path: Path) -> None:
    class Noisy(Model):
        generator = SimpleNamespace(noise_dim=3)

        def __call__(self, prompts: list[str], noise: Tensor | None = None) -> Field:  # type: ignore[override]
            assert noise is None or noise.shape == (4, 3)
            objects = [prompt_of(text) for text in prompts]
            shades = torch.full((len(objects), 5), 0.5) if noise is None else (noise[:, :1] > 0).float().expand(-1, 5)
            return TrueField(objects, shades if self.make is TrueField else None)

    split = Split((Prompt("cone", "red"),), (), ())
    for make, several in ((TrueField, True), (faulty, False)):
        found = evaluation(ruler, tmp_path / make.__name__, model=Noisy(make), split=split, measures=["variety"])
        record = record_of(found)
        assert (record["rows"][0]["variety"] > 0.02) == several and record["things"]["cone"]["variety"] >= 0
        assert record["rows"][0]["variety"] == record["splits"]["all"]["variety"]
        assert "true_variety" not in record["things"]["cone"]


def test_what_is_refused_before_the_work(ruler: Ruler, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the judge does not know 'a red mug'"):
        evaluation(ruler, tmp_path, split=Split((Prompt("mug", "red"),), (), ()))
    with pytest.raises(UserError, match="no measure 'fid'; there are mesh, kd, variety"):
        evaluation(ruler, tmp_path, measures=["fid"])
    with pytest.raises(UserError, match="no prompt"):
        evaluation(ruler, tmp_path, split=Split((), (), ()))
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    (tmp_path / "damaged.png").write_bytes(b"none")
    for name in ("small", "damaged", "missing"):
        with pytest.raises(UserError, match=f"{name}.png holds no reference views"):
            read_sheet(tmp_path / f"{name}.png", 32)


def test_pictures_show_four_views_above_the_true_ones(tmp_path: Path) -> None:
    made, true = (torch.full((24, 3, 8, 8), shade, dtype=torch.uint8) for shade in (0, 200))
    for k, value in enumerate((10, 20, 30, 40)):
        made[8 + 2 * k] = value  # azimuths 0, 90, 180 and 270 at 20 degrees
    kind, data = beside(made, true).split(",", 1)
    assert kind == "data:image/webp;base64"
    import base64

    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (32, 16)
        assert [picture.getpixel((8 * k + 4, y))[0] for y in (4, 12) for k in range(4)] == [10, 20, 30, 40] + 4 * [200]
    views = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_sheet(tmp_path / "v.png", views)
    assert torch.equal(read_sheet(tmp_path / "v.png", 8), views)
    with Image.open(tmp_path / "v.png") as picture:
        assert picture.getpixel((8 * 3 + 5, 8 * 2 + 7)) == tuple(views[2 * 8 + 3, :, 7, 5].tolist())


class Page(HTMLParser):
    """Elements with their attributes; it fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_and_the_table(ruler: Ruler, tmp_path: Path) -> None:
    class Towers(StubTowers):
        def text(self, captions: list[str]) -> Tensor:  # type: ignore[override]
            return torch.stack([torch.tensor(COLOURS[caption.split()[1]]) for caption in captions])

    text = TextRetrieval(Towers(), ruler.judge.prompts)
    record = {"name": "a <b>", **record_of(evaluation(ruler, tmp_path, text=text))}
    for row in record["rows"]:
        assert 0 <= row["clip_r_probability"] <= 1 and row["clip_true_recall_at_1"] in [k / 24 for k in range(25)]
    pictures = {row["prompt"]: f"data:image/webp;base64,{i}" for i, row in enumerate(record["rows"])}
    made = html_page(record, pictures)
    page = Page(made)
    cards = [image["alt"].split(":")[0] for image in page.all("img")]
    assert sorted(cards) == sorted(pictures) and cards[0] == "a blue table"  # the empty one is the worst
    ious = {row["prompt"]: row["iou"] for row in record["rows"]}
    assert cards[1:] == sorted(cards[1:], key=lambda prompt: ious[prompt])
    assert {image["src"] for image in page.all("img")} == set(pictures.values())
    assert len(page.all("table")) == 3 and "a &lt;b&gt;" in made and "<b>a <b>" not in made
    ids = {attributes["id"] for _, attributes in page.found if "id" in attributes}
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= ids
    assert not re.search(r'(src|href)="(?!#|data:)', made) and "http" not in made.replace("http-equiv", "")
    for said in ("held out from the generator, 1 prompts", "The worst thing is the table", "Some objects are empty"):
        assert said.lower() in made.lower()
    assert html_page(record, pictures) == made
    lines = list(csv.DictReader(io.StringIO(csv_table(record))))
    assert [line["of"] for line in lines] == ["prompt"] * 7 + ["split"] * 4 + ["thing"] * 3
    for line, row in zip(lines, record["rows"], strict=False):
        assert line["name"] == row["prompt"] and float(line["iou"]) == row["iou"] and line["empty"] == str(row["empty"])
    assert lines[2]["prompts"] == "" and lines[7]["prompts"] == "5"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, true renders of 8 things, and a judge that was not trained."""
    folder = tmp_path_factory.mktemp("made")
    words = (*COLOURS, *THINGS)
    torch.manual_seed(0)
    embedder = WordEmbedder(Vocabulary(words), torch.cat([torch.zeros(1, 8), torch.randn(len(words), 8)]))
    save_model(TextTo3DModel("hyper_small", embedder), folder / "model")
    names = ["ball", "cone", "cube", "mug", "table", "chair", "lamp", "car"]
    (folder / "views").mkdir()
    for name in names:
        shown = replace(thing(name if name in NAMES else "cone"), name=name)
        (folder / "views" / f"{name}.npz").write_bytes(views_as_bytes(shown))
    save_judge(JudgeNetwork(sorted(names)), folder / "judge.safetensors")
    return folder


def call(made: Path, out: Path, *more: str) -> int:
    options = ["--model", str(made / "model"), "--views", str(made / "views"), "-o", str(out), "--quiet", *more]
    return guard(lambda: main(options))


def test_the_command(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mobilenet, "MobileNetFeatures", Means)
    out, judge = tmp_path / "out", ("--judge", str(made / "judge.safetensors"))
    many = ("--quick", "--measures", "mesh,kd")
    assert call(made, out, *judge, "--things", "mug", *many) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    assert {path.name for path in out.iterdir()} == {
        "index.html", "kept", "rows.json", "settings.json", "summary.json", "table.csv", "views",
    }  # fmt: skip
    rows, summary = (json.loads((out / name).read_text()) for name in ("rows.json", "summary.json"))
    assert len(rows["rows"]) == 8 == len(list((out / "views").iterdir())) and list(summary["things"]) == ["mug"]
    assert summary["splits"]["all"]["prompts"] == 8 and summary["name"] == "model"
    assert rows["settings"]["kd"]["extractor"] == "means" and rows["rows"][0]["components"] == 1
    assert len(Page((out / "index.html").read_text()).all("img")) == 8
    before = (out / "index.html").read_bytes()
    assert call(made, out, *judge, "--things", "mug", *many) == 0
    assert (out / "index.html").read_bytes() == before
    capsys.readouterr()
    assert call(made, out, *judge, "--things", "mug", "--quick") == 2
    assert "with other --measures and features of render-KD" in capsys.readouterr().err
    other = made.parent / "other"
    shutil.copytree(made, other, dirs_exist_ok=True)
    config = other / "model" / "config.json"
    config.write_text(config.read_text().replace("60.0", "50.0"))
    assert call(other, out, *judge, "--things", "mug", *many) == 2
    assert f"{out} is there already, with other model and sharpness; name another folder" in capsys.readouterr().err


def test_a_judge_that_is_missing_is_trained_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, seeds = [], []
    monkeypatch.setattr(
        judge_network, "train_judge", lambda views, settings: calls.append(views.names) or JudgeNetwork(views.names)
    )

    def rendered(name: str, settings: rendering.RenderSettings) -> ThingViews:
        seeds.append(settings.seed)
        return read_views(made / "views" / f"{name}.npz")

    monkeypatch.setattr(rendering, "procedural_views", rendered)
    trained = tmp_path / "trained.txt"
    trained.write_text("a red ball\na blue ball\n")
    options = ("--quick", "--trained", str(trained))
    for name in ("one", "two"):
        assert call(made, tmp_path / name, *options) == 0, capsys.readouterr().err
    assert set(seeds) == {7919}  # other renders than the prior's
    assert len(calls) == 1 and load_judge(made / "views" / "judge.safetensors").things == calls[0]
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["splits"]["trained"]["prompts"] == 2 and summary["splits"]["all"]["prompts"] == 8
    own = tmp_path / "own.safetensors"
    capsys.readouterr()
    assert call(made, tmp_path / "three", *options, "--judge", str(own)) == 2
    assert "own.safetensors is not there; name --judge_views DIR" in capsys.readouterr().err
    assert call(made, tmp_path / "three", *options, "--judge", str(own), "--judge_views", str(made / "views")) == 0
    assert own.is_file() and len(calls) == 2


def test_clip_where_its_weights_are_there(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = []

    class Towers(StubTowers):
        def __init__(self, *arguments: object) -> None:
            given.extend(arguments)
            if arguments[2] is None:
                raise UserError('CLIP weights not found: get them, then pass weights=PATH, or weights="download"')
            super().__init__()

        def text(self, captions: list[str]) -> Tensor:  # type: ignore[override]
            return torch.rand(len(captions), 3, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(clip, "ClipFeatures", Towers)
    some = ("--judge", str(made / "judge.safetensors"), "--things", "table", "--quick", "--clip")
    assert call(made, tmp_path / "out", *some) == 2
    assert "get them, then pass --clip_weights PATH, or --clip_weights download" in capsys.readouterr().err
    weights = ("--clip_weights", "w.bin", "--clip_prefix", "A photo depicts ")
    assert call(made, tmp_path / "out", *some, *weights) == 0, capsys.readouterr().err
    assert given[6:] == ["ViT-B-32-quickgelu", "openai", "w.bin", "A photo depicts ", "cpu", False]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert 0 <= summary["splits"]["all"]["clip_r_probability"] <= 1 and summary["settings"]["clip"]["scale"] == 100


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--measures", "fid"), "--measures names 'fid'; there are mesh, kd, variety"),
        (("--size", "48"), "--size is 48; it must be a multiple of 32"),
        (("--clip_weights", "x"), "--clip_weights needs --clip"),
        (("--clip", "ViT"), "--clip ViT should be MODEL/TAG"),
        (("--things", "dog"), "there is no prompt of 'dog'"),
        (("--model", "/nowhere"), "there is no text-to-3D model at /nowhere"),
        (("--model", "{few}"), "the model does not know the word 'ball' of the prompt 'an orange ball'"),
    ],
)
def test_refusals(
    made: Path, tmp_path: Path, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    save_model(TextTo3DModel("hyper_small", WordEmbedder(Vocabulary(tuple(COLOURS)), torch.zeros(9, 8))), few)
    more = tuple(word.format(few=few) for word in more)
    assert call(made, tmp_path / "out", "--judge", str(made / "judge.safetensors"), *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert call(made, tmp_path, "--judge", str(made / "judge.safetensors")) == 2
    assert "is there already and holds no evaluation" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
