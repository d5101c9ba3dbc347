"""Mean cosine and retrieval: hand-made embeddings, ties, repeated captions, tiles."""

import pytest
import torch
from torch.nn import functional as F

import diffdistill.evaluation.agreement.scores as module
from diffdistill.evaluation.agreement.scores import agreement, report


def unit(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_score_and_error_are_the_plain_mean_and_its_standard_error() -> None:
    x, y = unit(50, 8), unit(50, 8, 1)
    cosines = F.cosine_similarity(x.double(), y.double())
    found = agreement(x, y, [str(i) for i in range(50)])
    assert found.score == pytest.approx(float(cosines.mean()), rel=1e-6)
    assert found.se == pytest.approx(float(cosines.std()) / 50**0.5, rel=1e-6)


def test_retrieval_is_that_of_a_sort() -> None:
    x, y = unit(40, 4), unit(40, 4, 1)
    order = (x.double() @ y.double().T).argsort(1, descending=True)
    right = torch.arange(40)[:, None]
    found = agreement(x, y, [str(i) for i in range(40)])
    assert found.r1 == float((order[:, :1] == right).any(1).double().mean())
    assert found.r5 == float((order[:, :5] == right).any(1).double().mean())


@pytest.mark.parametrize(("n", "d"), [(20, 4), (5, 256), (37, 256)])
def test_captions_that_all_say_the_same_score_chance(n: int, d: int) -> None:
    found = agreement(unit(n, d), unit(1, d, 1).expand(n, d), [str(i) for i in range(n)])
    assert found.r1 == pytest.approx(1 / n, rel=1e-12) and found.r5 == pytest.approx(5 / n, rel=1e-12)


def test_a_repeated_caption_is_one_choice() -> None:
    eye = torch.eye(3)
    found = agreement(eye[[0, 0, 1]], eye[[0, 0, 1]], ["a", "a", "b"])
    assert (found.r1, found.captions, found.n) == (1.0, 2, 3)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, captions = unit(30, 6), unit(30, 6, 1), [str(i) for i in range(30)]
    whole = agreement(x, y, captions)
    monkeypatch.setattr(module, "_TILE", 7)
    tiled = agreement(x, y, captions)
    assert (tiled.r1, tiled.r5) == (whole.r1, whole.r5)
    assert tiled.score == pytest.approx(whole.score, rel=1e-12)


@pytest.mark.parametrize(
    ("pictures", "texts", "captions", "says"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), ["a", "b"], "one shape"),
        (torch.ones(2, 3), torch.ones(2, 3), ["a"], "1 captions"),
        (torch.ones(0, 3), torch.ones(0, 3), [], "one shape"),
        (torch.full((1, 3), float("nan")), torch.ones(1, 3), ["a"], "not finite"),
    ],
)
def test_refusals(pictures: torch.Tensor, texts: torch.Tensor, captions: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        agreement(pictures, texts, captions)


def test_names_say_which_towers() -> None:
    class Towers:
        kind, key, protocol = "clip", "(ViT-B-32/openai, '', x1)", {"extractor": "clip"}

    eye = torch.eye(2)
    said = report(Towers(), agreement(eye, eye, ["a", "b"]))  # type: ignore[arg-type]
    assert said["clip_score(ViT-B-32/openai, '', x1)"] == 1.0 and said["clip_protocol"] == {"extractor": "clip"}
    assert said["clip_r1(ViT-B-32/openai, '', x1)"] == 1.0 and said["clip_captions"] == 2
