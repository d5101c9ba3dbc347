"""R@1 and R-probability by an image and a text tower, such as CLIP's: which prompt is the nearest to a view?

    views --image tower--> unit vectors --cosine with the texts of all candidates, times 100--> softmax over candidates

Notable:
- R@1 is the share of views whose nearest text, among all candidates, is the own prompt (the CLIP R-precision of
  DreamFields, for single views); R-probability is the mean probability of the own prompt (ATT3D, arXiv 2306.07349);
- 100 is the scale of CLIP's logits after its training (Radford et al. 2021, section 2.5);
- views of 32 pixels are enlarged to what the tower takes. So the same numbers of true renders are measured, and are
  what can be had at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffdistill.evaluation.agreement.scores import Towers
from diffdistill.text3d.judge_network import Retrieval
from diffdistill.text3d.things.catalogue import Prompt

SCALE = 100.0  # of cosines


class TextRetrieval:
    """Retrieval of views among prompts by two towers.

    Args:
        towers: an image and a text tower, such as `evaluation.features.clip.ClipFeatures`.
        prompts: the candidates.
    """

    def __init__(self, towers: Towers, prompts: Sequence[Prompt]) -> None:
        self.towers, self.prompts = towers, tuple(prompts)
        self._texts = towers.text([str(prompt) for prompt in prompts]).double()

    def __call__(self, images: Tensor, index: int) -> Retrieval:
        """How well views of one prompt are found.

        Args:
            images: (N, 3, S, S) in [0, 1].
            index: the prompt's place among the candidates.
        """
        cosines = self.towers(images).double() @ self._texts.T
        likely = (SCALE * cosines).log_softmax(1)
        return Retrieval(likely.argmax(1) == index, likely[:, index].exp())

    @property
    def protocol(self) -> dict[str, Any]:
        """What a number has to carry."""
        return {**self.towers.protocol, "scale": SCALE}
