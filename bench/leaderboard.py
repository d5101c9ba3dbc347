"""The methods raced against each other: one teacher, equal images seen, one ruler.

    python bench/leaderboard.py              # all methods, seed 0
    python bench/leaderboard.py --methods swiftbrush dmd2 --seeds 0 1 2 --images 25600
    python bench/leaderboard.py --images 12800 --measured_seeds 0    # the race in docs/results.md
    python bench/leaderboard.py --write      # table in docs/results.md, plot, images, from what is there
    python bench/leaderboard.py --redraw     # plot of KD against steps, from the table in docs/results.md

    train      each method by its config, cut to --images, product exported at every quarter     OUT/NAME-sSEED/
    measure    `diffdistill eval sweep` of the products at 1, 2, 4, 8 steps                      OUT/NAME-sSEED/final/
    --curve    and of what was exported on the way, at the steps a method is meant for           OUT/NAME-sSEED/curve/
    write      table and plot; with --write a row of images a method too

Notable:
- every part is resumed where it was interrupted, and what is there is not made again;
- a method trains 6 to 35 CPU minutes and is measured in 4 to 15, the whole race about 6 hours on one core;
- CPU minutes are those of the training process and all its threads, so other work beside it matters little;
- methods that train from data start from the teacher's own network too (`init_from`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from recipe_runs import MADE_FROM, check_made_from, made_from
from sweep_rows import read_rows

from diffdistill.errors import UserError
from diffdistill.files import write_json_atomic

STEPS = (1, 2, 4, 8)
AGREEMENT = ("--agreement", "align", "--agreement_pictures", "64")  # its tower takes longer than a one-step image


@dataclass(frozen=True)
class Entry:
    """A method in the race.

    Args:
        config: in configs/.
        options: of `diffdistill train`, beside it.
        steps: those it is meant for, at which its curve is drawn.
        guidance: scales that its product is sampled with; one that distilled guidance into itself has 1 alone.
    """

    config: str
    options: dict[str, str] = field(default_factory=dict)
    steps: tuple[int, ...] = (1,)
    guidance: tuple[float, ...] = (1.0,)


FROM_TEACHER = {
    "method.network.init_from": "assets/teacher",
    "method.optimizer.learning_rate": "4e-4",
    "training.batch_size": "32",
    "training.warmup_samples": "1280",
    "training.ema_decay": "0.99",
}

SELF_E = {"method.span_from": "0", "method.span_share": "0", "method.ema_decay": "0.99"}
SELF_E["method.sampling.finest_steps"] = "null"  # it is for more steps than are measured here

NO_IMAGES = {  # of a config that has a critic of real images
    "method.adversary.data.source": "null",
    "method.adversary.weight": "0.003",
    "method.adversary.critic_weight": "0.01",
}
PLAIN = {  # SwiftBrush alone, of a config that has pairs too
    **NO_IMAGES,
    "method.pairs.count": "0",
    "method.regression.alone": "0",
    "method.regression.weight": "0",
    "method.times.t_max": "0.5",
}

PAIRS = {"training.max_minutes": "0", "method.regression.alone": "200"}  # of 400 steps with 12,800 images

ENTRIES = {
    "swiftbrush": Entry("emoji_quickstart", {"training.max_minutes": "0", **PLAIN}),
    "swiftbrush-pairs": Entry("emoji_quickstart", {**PAIRS, **NO_IMAGES}),
    "swiftbrush-images": Entry("emoji_quickstart", PAIRS),
    "dmd2": Entry("emoji_dmd2", {"method.steps": "1"}),
    "dmd2-2": Entry("emoji_dmd2", steps=(2,)),
    "diff_instruct": Entry("emoji_diff_instruct"),
    "sid": Entry("emoji_sid"),
    "asd": Entry("emoji_asd"),
    "boot": Entry("emoji_boot"),
    "boot-inverse_square": Entry("emoji_boot", {"method.weight": "inverse_square", "method.delta": "0.025"}),
    "boot-clipped": Entry("emoji_boot", {"method.weight": "clipped", "method.delta": "0.025"}),
    "boot-uniform": Entry("emoji_boot", {"method.weight": "uniform"}),
    "progressive": Entry("emoji_progressive"),
    "consistency": Entry("emoji_consistency", steps=STEPS),
    "self_e": Entry("emoji_self_e", {**FROM_TEACHER, **SELF_E}, STEPS, (1.0, 2.0)),
    "mean_flow": Entry("emoji_mean_flow", {**FROM_TEACHER, "method.optimizer.learning_rate": "1e-4"}, STEPS),
    "shortcut": Entry("emoji_shortcut", FROM_TEACHER, STEPS),
}


def train(name: str, seed: int, images: int, out: Path) -> Path:
    """The run's folder, trained to its end; `memory.json` in it has the largest resident set, in MiB.

    Raises:
        SystemExit: the folder holds a run of other settings.
    """
    run, entry = out / f"{name}-s{seed}", ENTRIES[name]
    batch = 32
    part = images // 4 // batch * batch
    options = {
        "training.samples": str(images),
        "training.seed": str(seed),
        "training.export_every": str(part),
        "training.validate_every": str(part),
        "training.checkpoint_every": str(part),
        **entry.options,
    }
    config = f"configs/{entry.config}.yaml"
    record = made_from(config, options)
    if run.is_dir():
        check_made_from(run, record)
    if (run / "export").is_dir():
        return run
    run.mkdir(parents=True, exist_ok=True)
    write_json_atomic(run / MADE_FROM, record)
    argv = ["--config", config, *(f"--{key}={value}" for key, value in {**options, "output_dir": str(run)}.items())]
    if any(run.glob("checkpoint-*")):
        argv = ["--resume", "latest", "--output_dir", str(run)]
    else:
        argv.append("--overwrite=true")
    process = subprocess.Popen([sys.executable, "train/distill.py", *argv], stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{name}, seed {seed}: training ended with exit code {process.returncode}")
    write_json_atomic(run / "memory.json", {"peak_mib": used.ru_maxrss // 1024})
    return run


def sweep(
    race: Path, out: Path, named: dict[str, Path], steps: tuple[int, ...], guidance: tuple[float, ...], *more: str
) -> None:
    """Write out/sweep.json; pipelines of one scale, 1, are measured without guidance. All sweeps share cells."""
    cells = out / "cells"
    if not cells.exists():
        common = race / "cells"
        common.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        cells.symlink_to(common.resolve())
    products = [f"{name}={path}" for name, path in named.items()]
    how = ["--students", *products]
    if guidance != (1.0,):
        how = ["--models", *products, "--guidance", *(f"{scale:g}" for scale in guidance)]
    argv = [*how, "--steps", *map(str, steps), "--out", str(out), *more]
    subprocess.run([sys.executable, "eval/sweep.py", *argv], check=True, stdout=sys.stderr)


def measure(name: str, seed: int, o: argparse.Namespace) -> None:
    """The product at all steps; with --curve what was exported on the way too, unless another seed has that."""
    entry, run = ENTRIES[name], o.out / f"{name}-s{seed}"
    pictures = ("--pictures", str(o.pictures))
    seeds = ("--seeds", *map(str, o.measured_seeds))
    sweep(o.out, run / "final", {name: run / "export"}, STEPS, entry.guidance, *pictures, *seeds, *AGREEMENT)
    if not o.curve:
        return
    parts = {folder.name: folder for folder in sorted(run.glob("export-*"))}
    others = (other for other in o.out.glob(f"{name}-s[0-9]*") if other != run)
    if parts and not any(read_rows(other / "curve" / "sweep.json") for other in others):
        seeds, products = seeds[:2], {**parts, "export": run / "export"}
        more = (*pictures, *seeds, "--agreement", "none", "--variety_captions", "0")
        sweep(o.out, run / "curve", products, entry.steps, entry.guidance, *more)


def measure_teacher(o: argparse.Namespace) -> None:
    more = ("--pictures", str(o.pictures), "--seeds", *map(str, o.measured_seeds), *AGREEMENT)
    sweep(o.out, o.out / "teacher", {"teacher": Path("assets/teacher")}, (*STEPS, 50), (2.0, 3.0), *more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(ENTRIES), choices=ENTRIES, metavar="NAME",
                        help=f"default all: {', '.join(ENTRIES)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training; default 0")
    parser.add_argument("--images", type=int, default=25_600, help="seen by each method; default 25600")
    parser.add_argument("--pictures", type=int, default=256, help="for each of --measured_seeds; default 256")
    parser.add_argument(
        "--measured_seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="of prompts, reference and noise; default 0 1 2",
    )
    parser.add_argument("--curve", action="store_true", help="measure what was exported during training too")
    parser.add_argument("--train_only", action="store_true", help="measure nothing")
    parser.add_argument("--write", action="store_true", help="only table, plot and images, in docs/")
    parser.add_argument("--redraw", action="store_true", help="only the plot of KD against steps, from the table")
    parser.add_argument("--out", type=Path, default=Path("runs/leaderboard"))
    o = parser.parse_args()
    results, picture = Path("docs/results.md"), Path("docs/images/leaderboard.png")
    if o.redraw:
        from leaderboard_report import from_table, plot

        plot(*from_table(results), picture)
        return
    if not o.write:
        for seed in o.seeds:
            for name in o.methods:
                train(name, seed, o.images, o.out)
                if not o.train_only:
                    measure(name, seed, o)
        if not o.train_only:
            measure_teacher(o)
    from leaderboard_report import write  # matplotlib

    if o.write:
        from leaderboard_pictures import draw

        draw(o.out, ENTRIES, Path("docs/images/leaderboard_pictures.jpg"))
    print(json.dumps(write(o.out, ENTRIES, results, picture), indent=1))


if __name__ == "__main__":
    main()
