"""Train the heads of align_score on captioned emoji: `python train/align_heads.py --out HEADS.safetensors`.

One pass of the image tower takes a few minutes and is kept in the cache; the rest takes seconds. The concepts that are
held out from the training split of the set are held out here too. How well they are retrieved is stored in the file,
and every report shows it. With --validate N, N training concepts take the place of the held-out ones; choose settings
on these.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.cli.main import guard
from diffdistill.cli.paths import check_writable, find
from diffdistill.data.emoji import EmojiSet, load_emoji
from diffdistill.errors import UserError
from diffdistill.evaluation.agreement.align import TowerFeatures, tower_record
from diffdistill.evaluation.agreement.heads import Heads, Pairs, fit
from diffdistill.evaluation.agreement.minilm import SentenceEncoder
from diffdistill.evaluation.agreement.scores import agreement
from diffdistill.files import user_cache

NAME_ALONE = 0.3  # how often an image is shown with its name alone, without the style


def main() -> None:
    """Train the heads and print their record as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="assets/emoji", help="an emoji set")
    parser.add_argument("--out", type=Path, help="the file, ending in .safetensors")
    parser.add_argument("--epochs", type=int, default=40, help="number of passes over the data")
    parser.add_argument("--noise", type=float, default=0.3, help="standard deviation of the noise on the vectors")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument(
        "--validate", type=int, metavar="N", help="hold out N training concepts in place of the held-out ones"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file --out")
    o = parser.parse_args()
    if (o.out is None) == (o.validate is None):
        raise UserError("give --out, or give --validate to try settings without a file")
    if o.epochs < 1 or not 0 <= o.noise < 10:
        raise UserError(f"--epochs is {o.epochs} and --noise {o.noise:g}; they must be at least 1 and in [0, 10)")
    if o.out is not None:
        check_writable(o.out, "--out")
        if o.out.exists() and not o.overwrite:
            raise UserError(f"{o.out} is there already; add --overwrite or name another")
    pictures, held_out = load_emoji(find(o.data), "all"), set(load_emoji(find(o.data), "heldout").names)
    tower, encoder = TowerFeatures(), SentenceEncoder()
    vectors = _vectors(tower, pictures)
    if o.validate is not None:
        left = sorted(set(pictures.names) - held_out)
        if not 2 <= o.validate < len(left):
            raise UserError(f"--validate is {o.validate}; it must be in [2, {len(left)})")
        away = set(random.Random(o.seed).sample(left, o.validate))
        kept = [i for i, name in enumerate(pictures.names) if name not in held_out]
        pictures, vectors, held_out = pictures.subset(kept), vectors[kept], away
    heads = _fitted(pictures, vectors, encoder, held_out, o)
    heads.record = {
        "towers": tower_record(tower, encoder),
        "held_out": _retrieval(heads, pictures, vectors, encoder, lambda name: name in held_out),
        "trained_on": _retrieval(heads, pictures, vectors, encoder, lambda name: name not in held_out),
        "settings": {"epochs": o.epochs, "noise": o.noise, "seed": o.seed, "name_alone": NAME_ALONE},
    }
    if o.out is not None:
        heads.save(o.out)
    print(json.dumps(heads.record, indent=1))


def _vectors(tower: TowerFeatures, pictures: EmojiSet) -> Tensor:
    """The vectors of the image tower, from the cache if an earlier run made them."""
    import hashlib

    from safetensors.torch import load_file, save

    from diffdistill.files import write_atomic

    contents = hashlib.sha256(pictures.images.numpy().tobytes()).hexdigest()
    key = hashlib.sha256(json.dumps([contents, tower.protocol], sort_keys=True).encode()).hexdigest()[:24]
    file = user_cache() / f"tower-{key}.safetensors"
    if not file.is_file():
        write_atomic(file, save({"vectors": tower(pictures.images, progress=True)}))
    return load_file(file)["vectors"]


def _fitted(pictures: EmojiSet, vectors: Tensor, encoder: SentenceEncoder, held_out: set[str], o: Any) -> Heads:
    captions = sorted({*pictures.captions, *pictures.names})
    row = {caption: i for i, caption in enumerate(captions)}
    kept = [i for i, name in enumerate(pictures.names) if name not in held_out]
    choices = torch.tensor([[row[pictures.captions[i]], row[pictures.names[i]]] for i in kept])
    odds = torch.tensor([1 - NAME_ALONE, NAME_ALONE])
    pairs = Pairs(vectors[kept], encoder(captions), choices, odds)
    return fit(pairs, epochs=o.epochs, noise=o.noise, seed=o.seed)


def _retrieval(heads: Heads, pictures: EmojiSet, vectors: Tensor, encoder: SentenceEncoder, keep: Any) -> Any:
    """How well captions "NAME, STYLE" and names alone retrieve the images of the concepts that `keep` accepts."""
    kept = [i for i, name in enumerate(pictures.names) if keep(name)]
    found = {}
    with torch.inference_mode():
        for kind, texts in (("captions", pictures.captions), ("names", pictures.names)):
            chosen = [texts[i] for i in kept]
            a = agreement(heads.pictures(vectors[kept]), heads.captions(encoder(chosen)), chosen)
            found[kind] = {"r1": round(a.r1, 4), "r5": round(a.r5, 4), "among": a.captions, "score": round(a.score, 4)}
    return found


if __name__ == "__main__":
    sys.exit(guard(main))
