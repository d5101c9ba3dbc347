"""What `generate` and `Teacher.embed` take: folders, prompts in any iterable, seeds; what they refuse, in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline as tiny
import torch

from diffdistill.comparison.generated import Generated
from diffdistill.errors import UserError
from diffdistill.models.generate import generate, load_generator
from diffdistill.models.teacher import Teacher, load_teacher

PROMPTS = ["red apple", "blue car", "red apple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_pipeline(tmp_path_factory.mktemp("stock") / "model")


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(folder)


def images(model: Any, prompts: Any = PROMPTS, steps: Any = 1, guidance: Any = 1.0, **more: Any) -> torch.Tensor:
    return torch.cat(list(generate(model, prompts, steps, guidance, **more)))


def one_line(call: Callable[[], Any]) -> str:
    """The one line of the error."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_path_and_an_iterator_of_prompts_are_the_same_images(folder: Path, teacher: Teacher) -> None:
    expected = images(str(folder))
    assert expected.shape[0] == 3
    assert torch.equal(images(folder), expected) and torch.equal(images(teacher), expected)
    assert torch.equal(images(teacher, (text for text in PROMPTS)), expected)
    assert torch.equal(images(teacher, tuple(PROMPTS), seeds=(i for i in range(3))), expected)
    assert isinstance(load_generator(folder, 1), Teacher)
    assert torch.equal(teacher.embed(iter(PROMPTS)), teacher.embed(PROMPTS))  # type: ignore[arg-type]
    assert len(Generated(folder, iter(PROMPTS), 3, 1, 1.0, 0)) == 3


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -5.0, 0.5, "2", None])
def test_a_guidance_below_1_or_not_finite_is_refused(teacher: Teacher, guidance: Any) -> None:
    for call in (
        lambda: images(teacher, guidance=guidance),
        lambda: Generated(teacher, PROMPTS, 3, 1, guidance, 0),
    ):
        assert one_line(call) == f"guidance is {guidance!r}; it must be a number from 1, which is unguided"


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ("a blue apple", "prompts is 'a blue apple'; it must be a list of texts"),
        (["red", 3], "prompts[1] is 3; it must be a text"),
        ([["red"]], "prompts[0] is ['red']"),
        (None, "prompts is None"),
        ([], "there are no prompts"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(teacher: Teacher, prompts: Any, says: str) -> None:
    assert says in one_line(lambda: images(teacher, prompts))
    assert says in one_line(lambda: teacher.embed(prompts))
    assert says in one_line(lambda: Generated(teacher, prompts, 3, 1, 1.0, 0))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be a whole number"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"seed": 2**64}, "torch takes seeds"),
        ({"seeds": [1, 2]}, "there are 2 seeds and 3 prompts"),
        ({"seeds": [1, 2, "3"]}, "a seed is '3'"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
    ],
)
def test_numbers_out_of_range_are_refused(teacher: Teacher, more: dict[str, Any], says: str) -> None:
    assert says in one_line(lambda: images(teacher, **more))


def test_what_is_no_model_is_refused(teacher: Teacher) -> None:
    assert "the model is None" in one_line(lambda: images(None))
    assert "the model is a UNetBackbone; it must be a folder" in one_line(lambda: images(teacher.backbone))
    assert "the model is None" in one_line(lambda: load_generator(None))  # type: ignore[arg-type]
    assert "the teacher is 3" in one_line(lambda: load_teacher(3))  # type: ignore[arg-type]
