"""`diffdistill text3d eval --model DIR --views DIR -o OUT`: a model beside true renders, as tables and a page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.eval.options import in_options
from diffdistill.cli.paths import check_writable, find
from diffdistill.cli.text3d.model import add_model, open_model
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.text3d.evaluation.evaluation import Evaluation
    from diffdistill.text3d.evaluation.text_retrieval import TextRetrieval
    from diffdistill.text3d.judge_network import JudgeNetwork
    from diffdistill.text3d.things.catalogue import Prompt
    from diffdistill.text3d.things.views import Views

SETTINGS, JUDGE = "settings.json", "judge.safetensors"
CLIP = "ViT-B-32-quickgelu/openai"
MEASURES = ("mesh", "kd", "variety")
JUDGE_SEED = 7919  # of the renders that a judge is trained on: the prior's have seed 0
IN_WORDS = {
    "model": "model",
    "sharpness": "sharpness",
    "splits": "prompts or splits",
    "queries": "candidates of retrieval",
    "judge": "judge",
    "views": "views",
    "measures": "--measures",
    "how": "settings of the measures",
    "clip": "--clip",
    "kd": "features of render-KD",
    "measured_by": "way of measuring",
}


def main(argv: Sequence[str]) -> None:
    """Measure a text-to-3D model on prompts whose true renders are known.

    It writes a page, index.html, with rows.json, summary.json and table.csv.

    Raises:
        UserError: bad input, or OUT holds something else.
    """
    o = _options(argv)
    _check_out(o.out)

    from tqdm import tqdm

    from diffdistill.data.prompts import read_prompts
    from diffdistill.evaluation.features.mobilenet import MobileNetFeatures
    from diffdistill.text3d.evaluation.evaluation import Evaluation
    from diffdistill.text3d.evaluation.fingerprints import digest_of_model
    from diffdistill.text3d.evaluation.record import record_of
    from diffdistill.text3d.evaluation.splits import of_things, split_of_views
    from diffdistill.text3d.measures import QUICK, MeasureSettings, Ruler
    from diffdistill.text3d.things.views import load_views

    folder = Path(find(o.model))
    model, views = open_model(o), load_views(find(o.views), size=o.size)
    split = split_of_views(views, None if o.trained is None else read_prompts(find(o.trained)))
    split = of_things(split, o.things) if o.things else split
    model.embedder([str(prompt) for prompt in split.all])  # a word that it does not know is refused before the work
    text = _text_towers(o)  # before a judge is trained, since weights may be missing
    judge = _judge(o, views)
    ruler = Ruler(views, judge, QUICK if o.quick else MeasureSettings())
    retrieval = None if text is None else text(judge.prompts)
    features = MobileNetFeatures(device=o.device) if "kd" in o.measures else None
    made_of = (model, digest_of_model(folder), ruler, split, o.out, o.measures)
    evaluation = Evaluation(*made_of, text=retrieval, features=features)
    _claim(o.out, evaluation.settings)
    with tqdm(total=evaluation.steps(), unit="prompt", disable=o.quiet) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update()

        evaluation.step = step
        record = {"name": folder.resolve().name, **record_of(evaluation)}
    _write(o.out, record, evaluation)
    print(o.out / "index.html")


def _write(out: Path, record: dict[str, Any], evaluation: Evaluation) -> None:
    from diffdistill.files import write_atomic, write_json_atomic
    from diffdistill.text3d.evaluation.page import html_page
    from diffdistill.text3d.evaluation.pictures import as_bytes, beside
    from diffdistill.text3d.evaluation.table import csv_table

    pictures = {
        str(prompt): beside(made, as_bytes(evaluation.ruler.truth([prompt])[0]))
        for prompt, made in zip(evaluation.prompts, evaluation.views(), strict=True)
    }
    write_json_atomic(out / "rows.json", {"settings": record["settings"], "rows": record["rows"]})
    write_json_atomic(out / "summary.json", {key: value for key, value in record.items() if key != "rows"})
    write_atomic(out / "table.csv", csv_table(record).encode())
    write_atomic(out / "index.html", html_page(record, pictures).encode())


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="diffdistill text3d eval", description=(main.__doc__ or "").splitlines()[0])
    add_model(parser)
    parser.add_argument("--views", required=True, help="folder of true renders, which train/things.py makes")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a folder; a run that was interrupted goes on")
    parser.add_argument("--size", type=int, default=32, help="side of the views in pixels (default: 32)")
    parser.add_argument(
        "--trained",
        help="file of the prompts that the generator was trained on; by default those that the split of the views says",
    )
    parser.add_argument("--things", type=_words, default=[], help="measure some things alone, such as mug,table")
    parser.add_argument(
        "--judge",
        type=Path,
        help="file of the judge; by default judge.safetensors beside the views, trained if missing",
    )
    parser.add_argument(
        "--judge_views",
        help="train the judge on these true renders, of another seed than --views, if its file is missing; by default "
        "procedural things are rendered anew",
    )
    parser.add_argument(
        "--measures", type=_words, help="of mesh,kd,variety, beside those that take no time; by default all, or ''"
    )
    parser.add_argument(
        "--quick", action="store_true", help="coarse rendering, and no --measures unless they are given"
    )
    parser.add_argument(
        "--clip", nargs="?", const=CLIP, metavar="MODEL/TAG", help=f"retrieval by CLIP too (by default {CLIP})"
    )
    parser.add_argument("--clip_prefix", default="", help="text before every prompt, such as 'A photo depicts '")
    parser.add_argument("--clip_weights", help="CLIP's weights: a file, or download")
    parser.add_argument("--clip_weights_sha256", help="sha256 of CLIP's weights, where they are not the published ones")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    o = parser.parse_args(list(argv))
    if o.measures is None:
        o.measures = [] if o.quick else list(MEASURES)
    if wrong := [name for name in o.measures if name not in MEASURES]:
        raise UserError(f"--measures names {wrong[0]!r}; there are {', '.join(MEASURES)}")
    if o.size < 32 or o.size % 32:
        raise UserError(f"--size is {o.size}; it must be a multiple of 32, the size that the judge sees")
    for name in ("clip_prefix", "clip_weights", "clip_weights_sha256"):
        if getattr(o, name) and o.clip is None:
            raise UserError(f"--{name} needs --clip")
    if o.clip is not None and not all(o.clip.partition("/")):
        raise UserError(f"--clip {o.clip} should be MODEL/TAG, such as {CLIP}")
    if o.judge is not None and not o.judge.is_file() and o.judge_views is None:
        raise UserError(f"--judge {o.judge} is not there; name --judge_views DIR, on which one is trained into it")
    check_writable(o.out, "--out")
    return o


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _judge(o: argparse.Namespace, views: Views) -> JudgeNetwork:
    """The judge of the file, which is trained into it where it is missing."""
    from diffdistill.text3d import judge_network
    from diffdistill.text3d.things.views import load_views

    file = o.judge or Path(find(o.views)) / JUDGE
    if file.is_file():
        return judge_network.load_judge(file)
    if file.exists():
        raise UserError(f"--judge {file} is a folder; name a file")
    check_writable(file, "--judge")
    if not o.quiet:
        print(f"a judge is trained on true renders, once, into {file}", file=sys.stderr, flush=True)
    seen = _new_renders(views) if o.judge_views is None else load_views(find(o.judge_views), size=judge_network.SIDE)
    settings = judge_network.JudgeSettings.of_things(len(seen.names))
    judge_network.save_judge(judge_network.train_judge(seen, settings), file, settings)
    return judge_network.load_judge(file)


def _new_renders(views: Views) -> Views:
    """Renders of other instances of the same things, from other rings than the prior's.

    Raises:
        UserError: they are not procedural things.
    """
    from diffdistill.text3d.judge_network import SIDE
    from diffdistill.text3d.things import rendering
    from diffdistill.text3d.things.procedural import THINGS
    from diffdistill.text3d.things.views import Views

    if views.natural or not set(views.names) <= set(THINGS):
        raise UserError(
            "there is no judge yet; name --judge_views DIR, renders of another seed on which it is trained: python "
            f"train/things.py --models --out DIR --seed {JUDGE_SEED}"
        )
    settings = rendering.RenderSettings(size=SIDE, seed=JUDGE_SEED)
    return Views([rendering.procedural_views(name, settings) for name in views.names])


def _text_towers(o: argparse.Namespace) -> Callable[[Sequence[Prompt]], TextRetrieval] | None:
    """What makes the retrieval by CLIP among prompts, or None without --clip."""
    if o.clip is None:
        return None
    from diffdistill.evaluation.features.clip import ClipFeatures
    from diffdistill.text3d.evaluation.text_retrieval import TextRetrieval

    model, _, tag = o.clip.partition("/")
    with in_options(weights="--clip_weights", allow_other_weights="--clip_weights_sha256"):
        towers = ClipFeatures(model, tag, o.clip_weights, o.clip_prefix, o.device, o.clip_weights_sha256 or False)
    return lambda prompts: TextRetrieval(towers, prompts)


def _check_out(out: Path) -> None:
    """Raise UserError where the folder is there already and holds no evaluation, or is a file."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / SETTINGS).is_file():
        raise UserError(f"{out} is there already and holds no evaluation; name another folder")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder and note its settings, or raise UserError where it holds an evaluation of other ones."""
    from diffdistill.files import write_json_atomic

    file, wanted = out / SETTINGS, json.loads(json.dumps(settings))
    if not file.is_file():
        write_json_atomic(file, wanted)
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        other = [words for key, words in IN_WORDS.items() if there.get(key) != wanted[key]]
    except (ValueError, AttributeError, RecursionError):
        other = ["settings that cannot be read"]
    if other:
        raise UserError(f"{out} is there already, with other {' and '.join(other)}; name another folder")
