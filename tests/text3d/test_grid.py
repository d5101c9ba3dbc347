"""Fields on regular grids: their order, chunks, and what a baked grid gives back."""

import numpy as np
import pytest
import torch
from tiny_generators import TINY, inputs, points, tiny
from torch import Tensor

from diffdistill.text3d.field import Field, FieldValues
from diffdistill.text3d.generators.grid import GridField, field_on_grid, grid_axis, sdf_on_grid


class Slopes:
    """Two objects whose values are linear in x, y and z, and which notes how many points it is asked for."""

    radius = 2.0

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 2

    def sdf(self, points: Tensor) -> Tensor:
        self.asked.append(points.shape[1])
        return (points @ torch.tensor([1.0, 10.0, 100.0])).expand(2, -1) * torch.tensor([[1.0], [-1.0]])

    def __call__(self, points: Tensor) -> FieldValues:
        return FieldValues(self.sdf(points), (points / 4 + 0.5).expand(2, -1, -1))


@torch.no_grad()
def test_grids_have_the_order_x_y_z_and_both_faces() -> None:
    axis = np.linspace(-2.0, 2.0, 5)
    np.testing.assert_array_equal(grid_axis(2.0, 5).numpy(), axis.astype(np.float32))
    np.testing.assert_array_equal(grid_axis(0.7, 33).numpy(), np.linspace(-0.7, 0.7, 33).astype(np.float32))
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    for chunk in (1, 3, 5, 12, 25, 60, 125, 1000):
        field = Slopes()
        sdf, colour = field_on_grid(field, 5, chunk)
        assert max(field.asked) <= chunk and sum(field.asked) == 125
        np.testing.assert_allclose(sdf[0], x + 10 * y + 100 * z, rtol=0, atol=2e-5)
        np.testing.assert_allclose(sdf[1], -sdf[0])
        np.testing.assert_allclose(colour[1], np.stack([x, y, z], -1) / 4 + 0.5, rtol=0, atol=1e-6)
        assert torch.equal(sdf_on_grid(Slopes(), 5, chunk), sdf)


@torch.no_grad()
def test_a_grid_field_keeps_linear_values_everywhere() -> None:
    field = Slopes()
    baked = GridField.of(field, 5)
    for at in (points(2, radius=2.0), points(1, radius=2.0)):
        torch.testing.assert_close(baked.sdf(at), field.sdf(at), rtol=0, atol=2e-4)  # of values up to 222
        torch.testing.assert_close(baked(at).colour, field(at).colour, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_grid_field_is_the_field_at_the_points_of_its_grid(name: str) -> None:
    field: Field = tiny(name)(**inputs())
    baked = GridField.of(field, 7, chunk=60)
    axis = grid_axis(field.radius, 7)
    at = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(1, -1, 3)
    wanted = field(at)
    assert len(baked) == 3 and baked.radius == field.radius and baked.sdf_grid.shape == (3, 7, 7, 7)
    torch.testing.assert_close(baked.sdf_grid.flatten(1), wanted.sdf, rtol=0, atol=1e-5)
    for found in (baked(at), baked(at.expand(3, -1, -1)), baked.on_axes(axis, axis, axis)):
        torch.testing.assert_close(found.sdf, wanted.sdf, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.colour, wanted.colour, rtol=0, atol=1e-5)
    again = GridField.of(baked, 7)
    torch.testing.assert_close(again.colour_grid, baked.colour_grid, rtol=0, atol=1e-5)


def test_gradients_pass_through_grids_in_chunks() -> None:
    gradients = []
    for chunk in (40, 10**6):
        made = tiny("hyper")
        sdf, colour = field_on_grid(made(**inputs()), 6, chunk)
        (GridField(sdf, colour, 2.0)(points(3)).sdf.sum() + colour.square().sum()).backward()
        gradients.append([parameter.grad for parameter in made.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_grids_that_cannot_be_are_refused() -> None:
    for call, message in (
        (lambda: field_on_grid(Slopes(), 1), "resolution is 1; it must be 2 or more"),
        (lambda: sdf_on_grid(Slopes(), 4, chunk=0), "chunk is 0; it must be 1 or more"),
        (lambda: GridField(torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 3, 3), 1.0), "shapes are"),
        (lambda: GridField.of(Slopes(), 3)(torch.zeros(3, 4, 3)), "points are for 3 objects; there are 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
