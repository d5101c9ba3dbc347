"""`diffdistill generate --model DIR --prompt "..." --out PATH`: images of a pipeline, as PNGs or as one grid."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from diffdistill.cli.arguments import OneLineParser, add_eta
from diffdistill.cli.paths import check_writable, find
from diffdistill.errors import UserError

GRID_COLUMNS = 8
OURS = re.compile(r"\d{5,}\.png")  # what this command writes into a folder


def main(argv: Sequence[str]) -> None:
    """Write images of a pipeline: 00000.png, ... into the folder --out, or one grid if --out ends in .png.

    Raises:
        UserError: bad input, or a file or folder that is in the way.
    """
    parser = OneLineParser(prog="diffdistill generate", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a pipeline folder or hub id")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", help="a prompt; repeat the option for several prompts")
    what.add_argument(
        "--prompts", type=Path, help="a file of prompts: .txt (one per line), .jsonl, .csv, .tsv or COCO's .json"
    )
    parser.add_argument("--steps", type=int, default=1, help="number of sampling steps")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale; 1 is unguided")
    add_eta(parser)
    parser.add_argument("--seed", type=int, default=0, help="image i starts from noise of seed SEED + i")
    parser.add_argument("--n", type=int, default=1, help="number of images for each prompt")
    parser.add_argument("--batch_size", type=int, default=32, help="images in a batch; it changes no image")
    parser.add_argument("--out", type=Path, required=True, help="a folder, or a .png file for a grid")
    parser.add_argument("--grid", action="store_true", help="also write a grid of the folder's images, as OUT-grid.png")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    options = parser.parse_args(list(argv))
    for name in ("steps", "n", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if not 1 <= options.guidance < math.inf:
        raise UserError(f"--guidance is {options.guidance:g}; it must be a number from 1, which is unguided")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed is {options.seed}; it must be in [0, 2^63)")
    out: Path = options.out
    one_file = out.suffix.lower() == ".png"
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp"):
        raise UserError(f"--out {out}: name a .png file for a grid, or a folder for PNGs")
    check_writable(out, "--out")
    if out.exists() and not options.overwrite:
        raise UserError(f"{out} is there already; add --overwrite or name another")
    folder = out.absolute()
    # beside the folder, because in the folder the grid would be taken for one of the images
    grid = out if one_file else folder.with_name(f"{folder.name}-grid.png")
    if options.grid and grid.exists() and not options.overwrite:
        raise UserError(f"{grid} is there already; add --overwrite, or leave out --grid")
    if out.exists() and one_file == out.is_dir():
        raise UserError(f"--out {out} is a {'folder' if one_file else 'file'}; name another")
    model = find(options.model)
    if Path(model).exists() and not (Path(model) / "model_index.json").is_file():
        inside = next(Path(model).glob("**/export/model_index.json"), None)
        hint = f"; there is one in {inside.parent}" if inside else ""
        raise UserError(f"--model {model} is no pipeline folder: it has no model_index.json{hint}")
    prompts = _prompts(options.prompt, options.prompts, options.n)

    import torch

    from diffdistill.data.save import check_finite, save_grid, save_picture
    from diffdistill.models.generate import generate, load_generator

    loaded = load_generator(model, options.steps)
    loaded.report_cut(prompts)
    images = generate(
        loaded, prompts, options.steps, options.guidance, options.seed, options.batch_size, eta=options.eta
    )
    kept, done, made = [], 0, 0
    for chunk in images:  # no file is changed before the first images exist, because the model may be refused
        check_finite(chunk, made)
        made += len(chunk)
        if done == 0 and out.is_dir():  # with --overwrite: no earlier image may stay among the new ones
            for old in out.glob("*.png"):
                if OURS.fullmatch(old.name):
                    old.unlink()
        if one_file or options.grid:
            kept.append(chunk)
        if not one_file:
            for image in chunk:
                save_picture(out / f"{done:05d}.png", image)
                done += 1
    if kept:
        save_grid(grid, torch.cat(kept), columns=min(GRID_COLUMNS, len(prompts)))
    print(out)


def _prompts(given: list[str] | None, file: Path | None, n: int) -> list[str]:
    from diffdistill.data.prompts import read_prompts

    if given is not None and not all(prompt.strip() for prompt in given):
        raise UserError("--prompt is empty; write what the image should show")
    prompts = given if given is not None else read_prompts(find(str(file)))
    return [prompt for prompt in prompts for _ in range(n)]
