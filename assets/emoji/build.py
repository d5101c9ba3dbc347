"""Rebuild the embedded emoji set from its two public packages.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    python assets/emoji/build.py emoji-datasource-google-16.0.0.tgz emoji-datasource-twitter-16.0.0.tgz

Writes beside this script: one lossless sheet of 64-pixel pictures per style on white, `concepts.tsv` (one line a
cell: code point, name, subcategory) and `heldout.txt` (names of the concepts that no training ever sees)
and `prompts.txt` (the captions of all others).
Flags, symbols, components and skin-tone variants are left out: they are letters, arrows and near-duplicates.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SIZE = 64
COLUMNS = 38
HELD_OUT = 64
LEFT_OUT = ("Flags", "Symbols", "Component")


def concepts(google: tarfile.TarFile, twitter: tarfile.TarFile) -> list[dict]:
    """Entries drawn by both vendors, in code-point order."""
    lists = []
    for archive, flag in ((google, "has_img_google"), (twitter, "has_img_twitter")):
        member = archive.extractfile("package/emoji.json")
        assert member is not None
        lists.append({e["unified"]: e for e in json.load(member) if e[flag] and e["category"] not in LEFT_OUT})
    return [lists[0][code] for code in sorted(lists[0].keys() & lists[1].keys())]


def picture(archive: tarfile.TarFile, vendor: str, file: str) -> Image.Image:
    member = archive.extractfile(f"package/img/{vendor}/64/{file}")
    assert member is not None
    cut_out = Image.open(io.BytesIO(member.read())).convert("RGBA")
    if cut_out.size != (SIZE, SIZE):
        cut_out = cut_out.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", cut_out.size, "white")
    white.alpha_composite(cut_out)
    return white.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("google", type=Path)
    parser.add_argument("twitter", type=Path)
    arguments = parser.parse_args()
    with tarfile.open(arguments.google) as google, tarfile.open(arguments.twitter) as twitter:
        entries = concepts(google, twitter)
        rows = -(-len(entries) // COLUMNS)
        for style, archive, vendor in (("noto", google, "google"), ("twemoji", twitter, "twitter")):
            sheet = Image.new("RGB", (COLUMNS * SIZE, rows * SIZE), "white")
            for i, entry in enumerate(entries):
                sheet.paste(picture(archive, vendor, entry["image"]), (i % COLUMNS * SIZE, i // COLUMNS * SIZE))
            sheet.save(HERE / f"{style}.webp", lossless=True, quality=100, method=6)
    names = [entry["name"].lower().replace("\t", " ") for entry in entries]
    lines = [f"{e['unified']}\t{name}\t{e['subcategory']}" for e, name in zip(entries, names, strict=True)]
    (HERE / "concepts.tsv").write_text("\n".join(lines) + "\n")
    held_out = sorted(random.Random(0).sample(range(len(entries)), HELD_OUT))
    (HERE / "heldout.txt").write_text("".join(names[i] + "\n" for i in held_out))
    hidden = {names[i] for i in held_out}
    prompts = [f"{name}, {style}\n" for style in ("noto", "twemoji") for name in names if name not in hidden]
    (HERE / "prompts.txt").write_text("".join(prompts))
    print(f"{len(entries)} concepts, {HELD_OUT} held out")


if __name__ == "__main__":
    main()
