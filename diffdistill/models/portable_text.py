"""Tokenizer and text encoder of a saved pipeline as transformers 4 and transformers 5 both read them.

transformers 5 writes `tokenizer.json` alone, where the CLIPTokenizer of transformers 4 asks for `vocab.json` and
`merges.txt`; and it names a text encoder's weights without the prefix `text_model.`, which transformers 4 expects and
transformers 5 removes when it reads. Names it does not find, transformers 4 fills with random weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

PREFIX = "text_model."


def make_portable(tokenizer: Any, folder: Path) -> None:
    """Complete what transformers 5 wrote of a pipeline's text part, in the folders text_encoder and tokenizer.

    Added tokens are in tokenizer.json, where both look for them.
    """
    _rename_weights(folder / "text_encoder")
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json and merges.txt


def _rename_weights(folder: Path) -> None:
    """Give the CLIPTextModel's weights in a folder the prefix, in place; names that have it stay."""
    from safetensors.torch import load_file, save_file

    for path in sorted(folder.glob("*.safetensors")):
        weights = load_file(path)
        if any(not name.startswith(PREFIX) for name in weights):
            renamed = {_prefixed(name): value for name, value in weights.items()}
            part = path.with_name(f".{path.name}.part")
            save_file(renamed, part, metadata={"format": "pt"})
            shutil.copymode(path, part)
            part.replace(path)
    for path in sorted(folder.glob("*.safetensors.index*.json")):  # of several files
        index = json.loads(path.read_text())
        index["weight_map"] = {_prefixed(name): file for name, file in index["weight_map"].items()}
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _prefixed(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name
