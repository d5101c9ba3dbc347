"""The measures of text-to-3D: true objects score what they must, and each number against its closed form."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from stub_towers import StubTowers
from text3d.analytic_fields import Spheres
from text3d.true_models import Everywhere, Model, NearestJudge, TwoFaced, views_of
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.distances.kernel import kernel_distance
from diffdistill.text3d.evaluation.janus import alike, janus, opposite_alike
from diffdistill.text3d.evaluation.render_kd import distance_of, own_distance, pair_terms
from diffdistill.text3d.evaluation.splits import of_things, split_of_views
from diffdistill.text3d.evaluation.surface import surface_of
from diffdistill.text3d.evaluation.text_retrieval import TextRetrieval
from diffdistill.text3d.evaluation.variety import variety
from diffdistill.text3d.generators.grid import sdf_on_grid
from diffdistill.text3d.measures import QUICK, MeasureSettings, Ruler, iou_of, measured, reference_renders, summary
from diffdistill.text3d.things.catalogue import Prompt, split_of
from diffdistill.text3d.things.procedural import THINGS
from diffdistill.text3d.things.true_field import TrueField

NAMES = ("chair", "mug", "table", "cone")
NUMBERS = ("recall_at_1", "r_probability", "psnr_db", "iou", "opacity", "empty", "diverged")
PROMPTS = [Prompt(name, colour) for name, colour in zip(NAMES, ("red", "blue", "green", "purple"), strict=True)]


@pytest.fixture(scope="module")
def ruler() -> Ruler:
    views = views_of(*NAMES)
    return Ruler(views, NearestJudge(views))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_true_objects_score_what_true_renders_do(ruler: Ruler) -> None:
    rows = ruler.rows(Model(TrueField), PROMPTS)
    for row, prompt in zip(rows, PROMPTS, strict=True):
        assert (row["prompt"], row["thing"], row["colour"]) == (str(prompt), prompt.thing, prompt.colour)
        of_truth = ruler.retrieval(prompt, ruler.truth([prompt])[0])
        assert row["recall_at_1"] == of_truth.recall_at_1 == 1.0
        assert row["r_probability"] == pytest.approx(of_truth.mean_probability)
        assert row["psnr_db"] > 25 and row["iou"] == 1.0
        assert not row["empty"] and not row["diverged"]
        most = ruler.true_psnr(prompt, Model(TrueField).sharpness, 1.0)
        assert most == pytest.approx(row["psnr_db"], abs=1e-3)  # the most that is possible
    wide = TrueField(PROMPTS)  # in a box twice as large
    wide.radius = 2.0
    for volume, prompt in zip(ruler.volume(wide), PROMPTS, strict=True):
        assert ruler.iou(volume, prompt, 2.0) == 1.0
    shown = ruler.show(TrueField(PROMPTS), 200.0)
    true = ruler.truth(PROMPTS)
    for made, own in zip(shown.images, true, strict=True):
        assert abs(janus(made, own)) < 0.02
    error = (shown.images - true).square().flatten(1).mean(1)  # brute force
    assert torch.allclose(torch.tensor([row["psnr_db"] for row in rows]), -10 * error.log10(), atol=1e-4)


def test_other_objects_of_the_same_prompts_score_worse(ruler: Ruler) -> None:
    swapped = {"chair": "table", "table": "chair", "mug": "cone", "cone": "mug"}
    wrong = Model(lambda prompts: TrueField([Prompt(swapped[p.thing], p.colour) for p in prompts]))
    for row in ruler.rows(wrong, PROMPTS):
        assert row["recall_at_1"] < 0.1 and row["psnr_db"] < 18 and row["iou"] < 0.75


def test_empty_diverged_and_not_finite_objects(ruler: Ruler) -> None:
    for distance, empty, diverged in ((1.0, True, False), (-1.0, False, True), (float("nan"), False, True)):
        rows = ruler.rows(Model(lambda prompts: Everywhere(len(prompts), distance)), PROMPTS[:2])  # noqa: B023
        for row in rows:
            assert (row["empty"], row["diverged"]) == (empty, diverged)
            assert row["iou"] < 0.25 and np.isfinite([row["psnr_db"], row["r_probability"], row["opacity"]]).all()
        counts = summary(rows)
        assert (counts["empty"], counts["diverged"]) == (2 * empty, 2 * diverged)
    one_is_nan = Everywhere(2, 1.0)
    one_is_nan.sdf = lambda points: torch.tensor([[float("nan")], [1.0]]).expand(2, points.shape[1])  # type: ignore[method-assign]
    rows = ruler.rows(Model(lambda prompts: one_is_nan), PROMPTS[:2])
    assert [row["diverged"] for row in rows] == [True, False] and [row["empty"] for row in rows] == [False, True]


def test_a_ruler_is_used_again_and_the_functions_say_the_same(ruler: Ruler) -> None:
    quick = Ruler(ruler.views, ruler.judge, QUICK)
    model = Model(TrueField)
    rows = quick.rows(model, PROMPTS)
    again = Ruler(ruler.views, ruler.judge, MeasureSettings(32, 32, 32, at_once=3)).rows(model, PROMPTS)
    for row, same, other in zip(rows, quick.rows(model, PROMPTS), again, strict=True):
        assert row == same
        assert [row[key] for key in NUMBERS] == pytest.approx([other[key] for key in NUMBERS], rel=1e-4)
    assert measured(model, PROMPTS[:1], ruler.views, ruler.judge, QUICK) == rows[:1]
    shown = reference_renders(TrueField(PROMPTS[:1]), 32, 200.0, QUICK)
    assert torch.equal(shown.images, quick.show(TrueField(PROMPTS[:1]), 200.0).images)
    assert summary(rows)["recall_at_1"] == 1.0 and summary(rows)["things"]["mug"]["iou"] == 1.0
    fewer = [{k: v for k, v in row.items() if k != "iou"} for row in rows]
    assert list(summary(fewer)["things"])[0] == min(rows, key=lambda row: row["psnr_db"])["thing"]
    with pytest.raises(UserError, match="the judge does not know 'a red lamp'; it was trained on chair, mug"):
        quick.number(Prompt("lamp", "red"))
    with pytest.raises(UserError, match="volume 3"):
        MeasureSettings(volume=3)


def test_iou_is_that_of_spheres_in_closed_form(ruler: Ruler) -> None:
    spheres = Spheres(torch.tensor([0.69, 0.345]), torch.zeros(2, 3), torch.zeros(2, 3))
    found = iou_of(spheres, [Prompt("ball", "red"), Prompt("ball", "blue")], 64)  # the mean ball has radius .69
    assert found is not None and found[0] == 1.0 and abs(found[1] - 1 / 8) < 5e-3
    assert iou_of(spheres, [Prompt("ball"), Prompt("ball")]) is None
    assert ruler.iou(torch.zeros(4, 4, 4), Prompt("armchair")) is None


def test_alike_and_janus_in_closed_form() -> None:
    left, right = torch.ones(3, 8, 8), torch.ones(3, 8, 8)
    left[:, :, :4], right[:, :, 4:] = 0, 0
    white, wide = torch.ones(3, 8, 8), torch.ones(3, 8, 8)
    wide[:, :, :6] = 0
    assert [float(alike(left, other)) for other in (left, right, white)] == [1, 0, 0]
    assert float(alike(white, white)) == 1 and float(alike(left, wide)) == pytest.approx(2 * 4 / (4 + 6))
    assert float(alike(1 - (1 - left) * 0.5, left)) == pytest.approx(2 * 0.5 / (0.25 + 1))
    faces = torch.stack([left, white, wide, white, right, white, left, white] * 3)  # pairs: 0, 1, 8/10, 1
    assert opposite_alike(faces) == pytest.approx((0 + 1 + 0.8 + 1) / 4)
    both = torch.stack([left, left, left, left, left, left, left, left] * 3)
    assert janus(both, faces) == pytest.approx(1 - 0.7) and janus(faces, both) == pytest.approx(0.7 - 1)


def test_an_object_with_two_faces_is_as_alike_as_can_be() -> None:
    prompts = [Prompt("chair", "red"), Prompt("mug", "blue"), Prompt("table", "green")]
    two = reference_renders(TwoFaced(prompts, lit=False), 32, 100.0).images
    assert all(opposite_alike(views) > 1 - 1e-4 for views in two)  # half a turn changes nothing: it is 1
    true = reference_renders(TrueField(prompts, lit=False), 32, 100.0).images
    chair, mug, table = (janus(*pair) for pair in zip(two, true, strict=True))
    assert chair > 0.25 and mug > 0.05 and abs(table) < 1e-3  # a table has no face


def test_render_kd_by_brute_force() -> None:
    made, true = random(5, 3, 7), random(5, 3, 7, seed=1) * 1.2 + 0.3

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a.double() @ b.double() / 7 + 1) ** 3)

    def distance(prompts: list[int]) -> float:
        found = [
            kernel(made[p, v], made[q, w]) + kernel(true[p, v], true[q, w])
            - kernel(made[p, v], true[q, w]) - kernel(true[p, v], made[q, w])
            for p in prompts for q in prompts if p != q for v in range(3) for w in range(3)
        ]  # fmt: skip
        return sum(found) / len(found)

    terms = pair_terms(made, true)
    found = distance_of(terms)
    assert torch.equal(terms, terms.T) and found.kd == pytest.approx(distance(list(range(5))))
    without = torch.tensor([distance([p for p in range(5) if p != left]) for left in range(5)])
    assert found.se == pytest.approx(float((4 / 5 * (without - without.mean()).square().sum()).sqrt()), rel=1e-4)
    part = [0, 2, 3]
    assert distance_of(terms[part][:, part]).kd == pytest.approx(distance(part))
    assert distance_of(terms[:2, :2]).se is None
    with pytest.raises(ValueError, match="there are 1 prompts"):
        distance_of(terms[:1, :1])


def test_render_kd_is_the_kernel_distance_without_own_pairs_and_0_for_equal_views() -> None:
    made, true = random(40, 6), random(40, 6, seed=1) + 0.4
    inner = (made.double() @ true.double().T / 6 + 1) ** 3
    apart = (inner.sum() - inner.trace()) / (40 * 39)
    kd, se = kernel_distance(made, true)
    ours = distance_of(pair_terms(made[:, None], true[:, None]))
    assert ours.kd == pytest.approx(kd + 2 * float(inner.mean() - apart)) == own_distance(made, true)
    assert ours.se is not None and 0.5 < ours.se / se < 2
    equal = distance_of(pair_terms(made.view(8, 5, 6), made.view(8, 5, 6)))
    assert equal == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    for wrong in (made[:, None, :3], made):
        with pytest.raises(ValueError, match="must be"):
            pair_terms(wrong, made[:, None])


def test_surfaces_of_spheres_and_of_true_things() -> None:
    middles = torch.tensor([[-0.4, 0, 0], [0.4, 0, 0], [0.0, 0, 0.8]])
    spheres = Spheres(torch.tensor([0.3, 0.25, 0.05]), middles, torch.zeros(3, 3))
    one, two, small = sdf_on_grid(spheres, 64)
    assert surface_of(one, 1.0) == (True, 1, 0)
    assert surface_of(torch.minimum(one, two), 1.0) == (True, 2, 0)
    hollow = torch.maximum(one, -(one + 0.15))
    assert surface_of(hollow, 1.0) == (True, 2, 0)  # the inner surface is a part
    large = sdf_on_grid(Spheres(torch.tensor([0.8]), torch.zeros(1, 3), torch.zeros(1, 3)), 64)[0]
    speck = sdf_on_grid(Spheres(torch.tensor([0.05]), torch.full((1, 3), 0.8), torch.zeros(1, 3)), 64)[0]
    assert surface_of(torch.minimum(large, speck), 1.0) == (True, 1, 1)  # (1/16)^2 = 0.4 % of the area
    assert surface_of(large - 0.5, 1.0) == (True, 1, 0)  # the box cuts it, and flat faces close it
    for bad in (torch.ones_like(one), torch.full_like(one, float("nan"))):
        assert surface_of(bad, 1.0) == (False, 0, 0)


def test_variety_is_the_mean_over_pairs() -> None:
    views = torch.rand(4, 24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pairs = [float((a - b).square().mean().sqrt()) for a, b in combinations(views, 2)]
    assert variety(views) == pytest.approx(sum(pairs) / 6)
    assert variety((views * 255).round().to(torch.uint8)) == pytest.approx(variety(views), rel=1e-2)
    assert variety(views[:1].expand(3, -1, -1, -1, -1)) == 0 and variety(views[:1]) is None


def test_retrieval_by_towers() -> None:
    prompts = [Prompt("mug", "red"), Prompt("mug", "green"), Prompt("mug", "blue")]

    class Towers(StubTowers):
        def text(self, captions: list[str]) -> Tensor:  # type: ignore[override]
            return super().text([caption.split()[1] for caption in captions])

    retrieval = TextRetrieval(Towers(), prompts)
    colours = torch.tensor([[1.0, 0.2, 0.0], [0.2, 0.6, 0.59]])
    found = retrieval(colours[:, :, None, None].expand(2, 3, 32, 32), 1)
    assert found.hit.tolist() == [False, True]
    unit = (colours * 255).round() / (colours * 255).round().norm(dim=1, keepdim=True)
    assert torch.allclose(found.probability, (100 * unit.double()).softmax(1)[:, 1], atol=1e-6)
    assert retrieval.protocol["scale"] == 100 and "weights_sha256" in retrieval.protocol


def test_splits_by_who_saw_the_prompts() -> None:
    class Named:
        names, natural = tuple(sorted(THINGS)), False

    views: Any = Named()
    whole = split_of(Named.names)
    assert split_of_views(views) == whole  # as the prior's
    texts = [str(prompt) for prompt in (*whole.trained[:3], whole.composed[0])]
    found = split_of_views(views, [texts[0].upper(), *texts[1:], texts[0].split(maxsplit=1)[1]])
    assert [str(prompt) for prompt in found.trained] == texts
    things = {prompt.thing for prompt in found.trained}
    assert {prompt.thing for prompt in found.all} == things and len(set(found.all)) == 8 * len(things)
    assert set(found.unseen) == {prompt for prompt in whole.unseen if prompt.thing in things}
    assert set(found.composed) & set(whole.unseen) == set()
    with pytest.raises(UserError, match="trained on 'a red dog', of which there are no views; there are 96 prompts"):
        split_of_views(views, ["a red dog"])
    part = of_things(whole, ["mug", "car"])
    assert len(part.all) == 16 and set(part.unseen) <= set(whole.unseen)
    with pytest.raises(UserError, match="no prompt of 'dog'; there are those of ball"):
        of_things(whole, ["mug", "dog"])
