"""Makes the tokenizer and the text encoder of a saved pipeline readable for transformers 4 as well as 5.

transformers 5 writes `tokenizer.json` alone, but the CLIPTokenizer of transformers 4 needs `vocab.json` and
`merges.txt`. transformers 5 also writes the names of a text encoder's weights without the prefix `text_model.`, which
transformers 4 expects and transformers 5 removes when it reads. For names that it does not find, transformers 4 draws
random weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

PREFIX = "text_model."
PROJECTION = "text_projection."  # of CLIPTextModelWithProjection; it has no prefix in either version


def make_portable(
    tokenizer: Any, folder: Path, tokenizer_part: str = "tokenizer", encoder_part: str = "text_encoder"
) -> None:
    """Complete the files of a pipeline's CLIP tokenizer and text encoder that transformers 5 wrote.

    Added tokens are in tokenizer.json, where both versions look for them.

    Args:
        tokenizer: the tokenizer that was saved.
        folder: folder of the pipeline.
        tokenizer_part: subfolder of the tokenizer.
        encoder_part: subfolder of the text encoder.
    """
    _rename_weights(folder / encoder_part)
    tokenizer.backend_tokenizer.model.save(str(folder / tokenizer_part))  # vocab.json and merges.txt


def _rename_weights(folder: Path) -> None:
    """Give the weights of a CLIP text model in a folder the prefix, in place; names that have it stay."""
    from safetensors.torch import load_file, save_file

    for path in sorted(folder.glob("*.safetensors")):
        weights = load_file(path)
        renamed = {_prefixed(name): value for name, value in weights.items()}
        if renamed.keys() != weights.keys():
            part = path.with_name(f".{path.name}.part")
            save_file(renamed, part, metadata={"format": "pt"})
            shutil.copymode(path, part)
            part.replace(path)
    for path in sorted(folder.glob("*.safetensors.index*.json")):  # the index of weights in several files
        index = json.loads(path.read_text())
        index["weight_map"] = {_prefixed(name): file for name, file in index["weight_map"].items()}
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _prefixed(name: str) -> str:
    return name if name.startswith((PREFIX, PROJECTION)) else PREFIX + name
