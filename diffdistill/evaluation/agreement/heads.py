"""Two small heads that map an image tower's and a sentence encoder's vectors to one space, and their training.

    image's vector (512) - mean -> Linear --------------------------> length 1 (256) \\
                                                                                      cosine
    caption's vector (384) -> Linear -> GELU -> dropout -> Linear --> length 1 (256) /

Both towers stay frozen (LiT, Zhai et al. 2021, arXiv 2111.07991). The loss is InfoNCE in both directions, where every
caption of the batch that equals an image's own is right. Heads that were trained on emoji say nothing about
photographs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.files import write_atomic

WIDTH = 256
_RECORD = "diffdistill"
_MAX_BYTES = 64 << 20


class Heads(nn.Module):
    """The two heads; `record` says what they were trained on, with which towers, and how well they retrieve.

    Args:
        picture: size of the image tower's vectors.
        sentence: size of the sentence encoder's vectors.
        hidden: width of the caption's head.
        dropout: of the caption's head, in training.
    """

    def __init__(self, picture: int = 512, sentence: int = 384, hidden: int = 512, dropout: float = 0.3) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(picture))
        self.picture = nn.Linear(picture, WIDTH)
        self.sentence = nn.Sequential(
            nn.Linear(sentence, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, WIDTH)
        )
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.record: dict[str, Any] = {}

    def pictures(self, vectors: Tensor) -> Tensor:
        """Map the image tower's vectors (N, picture) to embeddings (N, 256) of length 1."""
        return F.normalize(self.picture(vectors - self.mean), dim=1)

    def captions(self, vectors: Tensor) -> Tensor:
        """Map the sentence encoder's vectors (N, sentence) to embeddings (N, 256) of length 1."""
        return F.normalize(self.sentence(vectors), dim=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write half-precision safetensors with `record`, in one rename."""
        from safetensors.torch import save

        tensors = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        write_atomic(path, save(tensors, {_RECORD: json.dumps(self.record)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Heads:
        """Read heads that `save` wrote.

        Raises:
            UserError: there is no such file, or it holds something else.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UserError(f"there are no heads at {path}; train/align_heads.py makes them")
        if Path(path).stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is too large: a file of heads has at most {_MAX_BYTES} bytes")
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})[_RECORD])
                tensors = {name: file.get_tensor(name).float() for name in sorted(file.keys())}
            (hidden, sentence), picture = tensors["sentence.0.weight"].shape, len(tensors["mean"])
            if tensors["picture.weight"].shape != (WIDTH, picture):  # before as much memory is taken
                raise ValueError(f"picture.weight is {tuple(tensors['picture.weight'].shape)}")
            with torch.random.fork_rng(devices=[]):
                heads = cls(picture, sentence, hidden)
            heads.load_state_dict(tensors)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} holds no heads ({type(error).__name__}: {error})") from error
        if not (isinstance(record, dict) and isinstance(record.get("towers", {}), dict)):
            raise UserError(f"{path} holds no heads: its record is damaged")
        heads.record = record
        return heads.eval().requires_grad_(False)


class Pairs(NamedTuple):
    """Training data of the heads.

    Attributes:
        pictures: vectors of N images, Tensor of shape (N, picture).
        sentences: vectors of M distinct captions, Tensor of shape (M, sentence).
        choices: for each image the rows of the K captions it may be shown with, Tensor of shape (N, K).
        odds: how often each of the K captions is shown, Tensor of shape (K,).
    """

    pictures: Tensor
    sentences: Tensor
    choices: Tensor
    odds: Tensor


def fit(
    pairs: Pairs,
    epochs: int = 40,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    noise: float = 0.0,
    seed: int = 0,
) -> Heads:
    """Train heads on pairs of vectors, which takes a few seconds.

    Args:
        pairs: the training data.
        epochs, batch_size, learning_rate, weight_decay: of AdamW, whose learning rate falls to 0 along a cosine.
        noise: standard deviation of the noise on an image's vector, in units of the vectors' own standard deviation.
        seed: of the first weights, the batches and the dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = Heads(pairs.pictures.shape[1], pairs.sentences.shape[1])
        heads.mean.copy_(pairs.pictures.mean(0))
        spread = pairs.pictures.std(0)
        steps = epochs * (-(-len(pairs.pictures) // batch_size))
        decayed = [p for p in heads.parameters() if p.ndim > 1]
        others = [p for p in heads.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(pairs.pictures)).split(batch_size):
                which = torch.multinomial(pairs.odds, len(rows), replacement=True)
                shown = pairs.choices[rows, which]
                x = pairs.pictures[rows]
                x = x + noise * spread * torch.randn_like(x)
                loss = info_nce(heads, x, pairs.sentences[shown], shown)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return heads.eval().requires_grad_(False)


def info_nce(heads: Heads, pictures: Tensor, sentences: Tensor, shown: Tensor) -> Tensor:
    """InfoNCE in both directions (van den Oord et al. 2018, arXiv 1807.03748, eq. 4); equal captions are all right.

    Args:
        heads: the heads that are trained.
        pictures: the images' vectors, Tensor of shape (N, picture).
        sentences: the vectors of their captions, Tensor of shape (N, sentence).
        shown: a number for each caption, Tensor of shape (N,); equal captions have equal numbers.
    """
    logits = heads.pictures(pictures) @ heads.captions(sentences).T * heads.log_scale.exp()
    right = (shown[:, None] == shown[None, :]).to(logits.dtype)
    target = right / right.sum(1, keepdim=True)  # symmetric pattern, so the same for both directions
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
