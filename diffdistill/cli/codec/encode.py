"""`diffdistill codec encode photo.png -o photo.ddc`: compress images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.codec.jobs import STANDARD, Job, as_png, jobs, run, write
from diffdistill.cli.codec.model import add_model, open_model
from diffdistill.cli.codec.parallel import add_jobs, check_jobs
from diffdistill.data.listing import PICTURES
from diffdistill.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Compress images to .ddc files: one file, several files, or folders, which the output folder mirrors.

    Raises:
        UserError: bad input; no file is left half-written.
    """
    parser = OneLineParser(prog="diffdistill codec encode", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("inputs", nargs="+", metavar="IN", help="images, folders of images, or - for standard input")
    parser.add_argument("-o", "--out", required=True, help="a .ddc file, a folder, or - for standard output")
    add_model(parser)
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("-q", "--quality", type=int, help="0 (smallest) to 100 (best); 50 by default")
    rate.add_argument("--target_bpp", type=float, help="the best quality of at most so many bits a pixel")
    rate.add_argument("--target_size", type=int, help="the best quality of at most so many bytes")
    parser.add_argument(
        "--alpha",
        choices=("white", "black", "refuse"),
        default="white",
        help="what transparent parts are put on (default: white)",
    )
    parser.add_argument("--eight_bit", action="store_true", help="scale images of more than 8 bits a channel to 8")
    parser.add_argument("--verify", action="store_true", help="decode each file again, and store a checksum of it")
    parser.add_argument("--recon", metavar="PNG", help="also write what the file decodes to: a .png file, or a folder")
    add_jobs(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a file")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    o = parser.parse_args(list(argv))
    quality = 50 if o.quality is None else o.quality
    if not 0 <= quality <= 100:
        raise UserError(f"--quality is {quality}; it must be in [0, 100]")
    for name in ("target_bpp", "target_size"):
        value = getattr(o, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} is {value:g}; it must be a number above 0")
    check_jobs(o.jobs)
    todo = jobs(o.inputs, o.out, PICTURES, ".ddc", o.overwrite)
    recons: dict[str, Job] = {}
    if o.recon is not None:
        if o.recon == STANDARD:
            raise UserError("--recon is -; it must be a .png file or a folder")
        recons = {job.name: job for job in jobs(o.inputs, o.recon, PICTURES, ".png", o.overwrite, "--recon")}

    from PIL import Image

    from diffdistill.codec.bitstream import MOST_PIXELS
    from diffdistill.data.decode import Reading, read
    from diffdistill.evaluation.rate.search import best_within

    codec = open_model(o)
    how = Reading(o.alpha, profiles=True, eight_bit=o.eight_bit, keep_grey=True)

    def work(job: Job) -> dict[str, Any]:
        picture = read(job.content(), job.name, how, most_pixels=MOST_PIXELS)
        image, begin = picture.pixels, time.perf_counter()
        height, width = image.shape[1:]
        most = o.target_size if o.target_bpp is None else int(min(o.target_bpp * height * width / 8, 2**53))
        if most is None:
            data, used = codec.encode(image, quality, o.verify), quality
        else:
            analysis = codec.analyse(image)
            found = best_within(lambda q: codec.encode(analysis, q, o.verify), most)
            data, used = found.data, found.quality
            if not found.fits:
                asked = f"{most:,}" if o.target_bpp is None else f"{most:,}, or {o.target_bpp:g} bits a pixel,"
                raise UserError(f"{job.name} takes {len(data):,} bytes at the lowest quality; {asked} were asked for")
        if o.verify or o.recon is not None:
            again = codec.decode(data, job.name)
            if again.shape[1:] != image.shape[1:]:
                raise UserError(f"{job.name} decodes to another size")
        took = time.perf_counter() - begin
        if o.recon is not None:
            write(recons[job.name], as_png(again, image.shape[0] == 1))
        write(job, data)
        bits = f"{8 * len(data) / (height * width):.4f} bpp"
        return {
            "size": f"{width}x{height}",
            "bytes": len(data) if o.json else f"{len(data):,} bytes",
            "bpp": round(8 * len(data) / (height * width), 5) if o.json else bits,
            "quality": used if o.json else f"quality {used}",
            "seconds": round(took, 3) if o.json else f"{took:.2f} s",
            "notices": list(picture.notices),
        }

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS  # above it Pillow warns, and `read` refuses
    try:
        run(todo, work, o.json, o.jobs)
    finally:
        Image.MAX_IMAGE_PIXELS = before
