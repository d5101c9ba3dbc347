"""Conditions: one shape is accepted; rows are taken, repeated, joined, dropped and moved as those of a tensor."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import (
    Condition,
    Denoiser,
    FlowSchedule,
    GaussianTeacher,
    MixtureTeacher,
    PerpNeg,
    check_condition,
    concatenate,
    drop_condition,
    expand,
    guided,
    move,
    perp_neg,
    repeat,
    rows_of,
    take_rows,
)
from diffdistill.distill import (
    backward_simulation,
    consistency_loss,
    consistency_sample,
    ddim_path,
    denoising_loss,
    few_step_sample,
    judge,
    progressive_loss,
    score_distillation_loss,
    score_identity_loss,
    teacher_signal,
    two_step_target,
)

MASK = torch.tensor([True, False, True])


class Pair(NamedTuple):
    tokens: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Text:
    tokens: Tensor


def text() -> Tensor:
    return torch.arange(1.0, 13.0).view(3, 2, 2)


def parts() -> dict[str, Tensor | None]:
    return {"text": text(), "mask": text() > 4, "size": torch.tensor([[64.0, 64.0]]), "pooled": None}


REFUSED: list[tuple[Any, str]] = [
    ([text()], "cond is a list"),
    ((text(), text()), "cond is a tuple"),
    (Pair(text(), text()), "cond is a Pair"),
    (Text(text()), "cond is a Text"),
    (1.0, "cond is a float"),
    ("a cat", "cond is a str"),
    ({"text": {"tokens": text()}}, r"cond\['text'\] is a dict"),
    ({"text": [text()]}, r"cond\['text'\] is a list"),
    ({"text": text(), "scale": 7.5}, r"cond\['scale'\] is a float"),
    (text()[:2], r"\(2, 2, 2\)"),
    ({"text": text(), "size": text()[:2]}, r"cond\['size'\].* \(2, 2, 2\)"),
    (torch.tensor(1.0), r"shape \(\)|cond \(\)"),
]


@pytest.mark.parametrize(("cond", "match"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_is_no_condition_of_the_batch_is_refused_everywhere(cond: Any, match: str) -> None:
    network_calls: list[Any] = []

    def network(x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        network_calls.append(cond)
        return x_t

    schedule = FlowSchedule()
    denoiser = Denoiser(network, schedule, "flow")
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5, dtype=torch.float64)
    calls = [
        lambda: check_condition(cond, 3),
        lambda: expand(cond, 3),
        lambda: concatenate({"cond": cond, "null": cond}, 3),
        lambda: drop_condition(cond, None, MASK),
        lambda: denoiser(x, t, cond),
        lambda: GaussianTeacher(schedule, 0.0, 1.0)(x, t, cond),
        lambda: guided(denoiser, x, t, cond, text()[:1], 1.0),
        lambda: guided(denoiser, x, t, cond, text()[:1], 2.0),
        lambda: guided(denoiser, x, t, cond, text()[:1], 2.0, batched=False),
        lambda: perp_neg(denoiser, x, t, cond, text()[:1], PerpNeg([], []), 2.0),
        lambda: judge("sds", denoiser, x, t, x, cond, text()[:1], 2.0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=match):
            call()
    assert not network_calls


def test_a_null_or_negative_of_another_number_of_rows_is_refused() -> None:
    denoiser = Denoiser(lambda x_t, time, cond: x_t, FlowSchedule(), "flow")
    x, t, two = torch.zeros(3, 2), torch.full((3,), 0.5, dtype=torch.float64), text()[:2]
    for scale in (0.0, 2.0):
        with pytest.raises(ValueError, match=r"null has shape \(2, 2, 2\)"):
            guided(denoiser, x, t, text(), two, scale)
    with pytest.raises(ValueError, match=r"negative 0 has shape \(2, 2, 2\)"):
        perp_neg(denoiser, x, t, text(), text(), PerpNeg([two], [1.0]), 2.0)
    with pytest.raises(ValueError, match=r"null has shape \(2, 2, 2\)"):
        judge("sds", denoiser, x, t, x, text(), two, 2.0)


def test_a_mixture_is_conditioned_on_weights_alone() -> None:
    model = MixtureTeacher(FlowSchedule(), torch.eye(2), torch.ones(2), torch.tensor([0.5, 0.5]))
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5, dtype=torch.float64)
    shared = model(x, t, torch.tensor([[1.0, 0.0]])).value
    assert torch.equal(shared, model(x, t, torch.tensor([[1.0, 0.0]] * 3)).value)
    with pytest.raises(ValueError, match="weights"):
        model(x, t, {"weights": torch.ones(3, 2)})


def test_a_network_gets_one_row_per_sample() -> None:
    seen: list[Any] = []

    def network(x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        seen.append(cond)
        return x_t

    x, t = torch.zeros(3, 2), torch.full((3,), 0.5, dtype=torch.float64)
    Denoiser(network, FlowSchedule(), "flow")(x, t, parts())
    assert {name: None if part is None else len(part) for name, part in seen[0].items()} == {
        "text": 3, "mask": 3, "size": 3, "pooled": None
    }  # fmt: skip
    Denoiser(network, FlowSchedule(), "flow")(x, t, None)
    assert seen[1] is None


def test_rows_are_those_of_each_tensor() -> None:
    assert rows_of(parts()) == 3 and rows_of({"size": torch.zeros(1, 2)}) == 1
    assert rows_of(None) is None and rows_of({"pooled": None}) is None
    places = torch.tensor([2, 0, 2, 1])
    for rows in (places, places.tolist(), range(0)):
        taken = take_rows(parts(), rows)
        assert isinstance(taken, dict) and taken["pooled"] is None
        index = torch.as_tensor(list(rows), dtype=torch.long)
        assert torch.equal(taken["text"], text()[index]) and torch.equal(taken["mask"], (text() > 4)[index])
        assert torch.equal(taken["size"], torch.full((len(index), 2), 64.0))
    assert take_rows(None, places) is None
    with pytest.raises(IndexError):
        take_rows(text(), [3])
    for bad in (MASK, torch.tensor([0.0, 1.0]), torch.tensor(1)):
        with pytest.raises(ValueError, match="must be integers"):
            take_rows(text(), bad)


def test_a_mapping_of_any_class_becomes_a_dict_and_the_argument_stays() -> None:
    before = OrderedDict(parts())
    taken = expand(before, 3)
    assert type(taken) is dict and list(taken) == list(before)
    assert before["size"] is not None and before["size"].shape == (1, 2)


def test_views_of_a_prompt_follow_each_other() -> None:
    views = repeat({"text": text(), "size": torch.ones(1, 2), "pooled": None}, 2)
    assert isinstance(views, dict) and views["pooled"] is None
    assert torch.equal(views["text"], text()[[0, 0, 1, 1, 2, 2]])
    assert rows_of(views) == 6 and views["size"].shape == (1, 2)  # shared by all views too
    with pytest.raises(ValueError, match="1 or more"):
        repeat(text(), 0)


def test_conditions_are_joined_in_their_order() -> None:
    joined = concatenate({"null": {"a": text()[:1], "b": None}, "cond": {"b": None, "a": text()}}, 3)
    assert isinstance(joined, dict) and joined["b"] is None
    assert torch.equal(joined["a"], torch.cat([text()[:1].expand(3, 2, 2), text()]))
    assert torch.equal(concatenate({"all": text(), "none": text()[:0], "one": text()[:1]}, [3, 0, 2]),
                       torch.cat([text(), text()[[0, 0]]]))  # fmt: skip
    assert concatenate({"one": None, "other": None}, 4) is None


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        (text(), None, "first is a tensor, second is None"),
        (text(), {"text": text()}, "second is a mapping with the parts text"),
        ({"a": text()}, {"b": text()}, "first is a mapping with the parts a, second is a mapping with the parts b"),
        (text(), text()[:, :1], r"first \(3, 2, 2\), second \(3, 1, 2\)"),
        ({"a": text()}, {"a": text()[:, :1]}, r"first\['a'\] \(3, 2, 2\), second\['a'\] \(3, 1, 2\)"),
        ({"a": text(), "b": None}, {"a": text(), "b": text()}, r"first\['b'\] absent, second\['b'\] \(3, 2, 2\)"),
        (text(), text()[:2], r"second has shape \(2, 2, 2\); its first dimension must be 3"),
    ],
)
def test_conditions_that_do_not_match_are_named(first: Condition, second: Condition, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        concatenate({"first": first, "second": second}, 3)


def test_dropped_rows_are_those_of_null() -> None:
    before = text()
    after = drop_condition(before, torch.zeros(1, 2, 2), MASK)
    assert isinstance(after, Tensor)
    assert torch.equal(after[1], before[1]) and not after[[0, 2]].any()
    assert torch.equal(before, text())
    per_row = drop_condition(before, -before, MASK)
    assert isinstance(per_row, Tensor) and torch.equal(per_row[2], -before[2])


def test_dropping_from_a_mapping_drops_from_each_part() -> None:
    null = {"text": torch.zeros(1, 2, 2), "mask": torch.zeros(1, 2, 2, dtype=torch.bool), "size": torch.zeros(3, 2)}
    made = drop_condition(parts(), {**null, "pooled": None}, MASK)
    assert isinstance(made, dict) and made["pooled"] is None
    for name, full in (("text", text()), ("mask", text() > 4), ("size", torch.full((3, 2), 64.0))):
        part = made[name]
        assert part is not None and part.dtype == full.dtype
        assert torch.equal(part[1], full[1]) and not part[[0, 2]].any()
    assert drop_condition(None, None, MASK) is None


def test_low_precision_stays() -> None:
    dropped = drop_condition(text().bfloat16(), torch.zeros(1, 2, 2), MASK)
    assert isinstance(dropped, Tensor) and dropped.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("null", "mask", "match"),
    [
        (torch.zeros(1, 3, 2), MASK, r"null \(3, 3, 2\), cond \(3, 2, 2\)"),
        (torch.zeros(2, 2, 2), MASK, r"null has shape \(2, 2, 2\)"),
        (None, MASK, "null is None"),
        ({"text": torch.zeros(1, 2, 2)}, MASK, "null is a mapping"),
        (torch.zeros(1, 2, 2), MASK[:2], r"cond has shape \(3, 2, 2\); its first dimension must be 2"),
        (torch.zeros(1, 2, 2), MASK.float(), "mask"),
        (torch.zeros(1, 2, 2), MASK[None], "mask"),
    ],
)
def test_a_null_that_does_not_match_is_an_error(null: Condition, mask: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        drop_condition(text(), null, mask)


def test_an_absent_part_must_be_absent_in_null() -> None:
    with pytest.raises(ValueError, match=r"null\['a'\] absent, cond\['a'\] \(3, 2, 2\)"):
        drop_condition({"a": text()}, {"a": None}, MASK)


def test_a_condition_moves_as_a_whole() -> None:
    moved = move(parts(), "meta")
    assert isinstance(moved, dict) and moved["pooled"] is None
    assert all(part is None or part.device.type == "meta" for part in moved.values())
    with pytest.raises(ValueError, match="list"):
        move([text()], "cpu")  # type: ignore[arg-type]


def test_losses_and_samplers_check_the_condition_whatever_the_score_model() -> None:
    """Of a score model of one's own, which need not check, no sample gets the condition of another."""

    class Own:
        schedule = FlowSchedule()

        def __call__(self, x_t: Tensor, t: Tensor, cond: Condition, /) -> Any:
            raise AssertionError("the model was called")

    own, x, t, two = Own(), torch.zeros(3, 2), torch.full((3,), 0.5, dtype=torch.float64), text()[:2]
    times, step = torch.tensor([1.0, 0.5], dtype=torch.float64), torch.ones(3, dtype=torch.long)
    calls = [
        lambda: denoising_loss(own, x, t, x, two),
        lambda: score_identity_loss(own, own, x, t, x, two, None),
        lambda: teacher_signal(own, x, x, t, t / 2, two, None, 1.0),
        lambda: few_step_sample(own, x, times, [x], two),
        lambda: backward_simulation(own, x, times, [x], two, step),
        lambda: ddim_path(own, x, [9, 4], two, step),
        lambda: two_step_target(own, x, t, t / 2, t / 4, two, None, 1.0),
        lambda: progressive_loss(own, x, t, x, two),
        lambda: consistency_loss(own, own, own, x, t, t / 2, x, two, None, 1.0),
        lambda: consistency_sample(own, x, [1.0], two),
        lambda: score_distillation_loss("vsd", "dmd", own, x, t, x, two, None, 1.0, fake=own),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"cond has shape \(2, 2, 2\); its first dimension must be 3"):
            call()
