"""`diffdistill generate --model DIR --prompt "..." --out PATH`: PNGs, or one grid, from a pipeline folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffdistill.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Write the pictures: 00000.png, ... into the folder --out, or one grid where --out ends in .png.

    Raises:
        UserError: no pipeline, no prompt, or something in the way.
    """
    parser = argparse.ArgumentParser(prog="diffdistill generate", description=main.__doc__)
    parser.add_argument("--model", required=True, help="pipeline folder or hub id")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="one prompt")
    what.add_argument("--prompts", type=Path, help="text file, one prompt a line")
    parser.add_argument("--steps", type=int, default=1, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale; 1 is unguided")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=1, help="pictures per prompt")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True, help="folder, or a .png file for a grid")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args(argv)
    for name in ("steps", "n", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if options.out.exists() and not options.overwrite:
        raise UserError(f"{options.out} is there already; add --overwrite or name another")

    from diffdistill.data.prompts import read_prompts

    prompts = [options.prompt] if options.prompt else read_prompts(options.prompts)
    prompts = [prompt for prompt in prompts for _ in range(options.n)]

    import torch

    from diffdistill.models.generate import generate
    from diffdistill.models.pictures import save_grid, save_picture

    images = generate(options.model, prompts, options.steps, options.guidance, options.seed, options.batch_size)
    if options.out.suffix == ".png":
        save_grid(options.out, torch.cat(list(images)), columns=min(8, len(prompts)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    done = 0
    for chunk in images:
        for image in chunk:
            save_picture(options.out / f"{done:05d}.png", image)
            done += 1
