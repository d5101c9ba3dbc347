"""Variants are the same image elsewhere or mirrored, and never another thing."""

import torch

from diffdistill.data.augment import varied

BLACK_CORNER = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
BLACK_CORNER[..., 3:5, 2:4] = 0


def test_without_shift_or_mirror_nothing_changes() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(varied(images, ["dog"] * 5, 0, False, 3), images)


def test_shifts_move_ink_by_whole_pixels_within_bounds() -> None:
    many = BLACK_CORNER.expand(64, -1, -1, -1)
    out = varied(many, ["dog"] * 64, 2, False, 0)
    assert (out == 0).flatten(1).sum(1).eq((BLACK_CORNER == 0).sum()).all()
    rows = {int((picture[0] == 0).nonzero()[0, 0]) for picture in out}
    assert rows == {1, 2, 3, 4, 5}
    assert torch.equal(out, varied(many, ["dog"] * 64, 2, False, 0))
    assert not torch.equal(out, varied(many, ["dog"] * 64, 2, False, 1))


def test_half_are_mirrored_but_for_names_that_tell_sides_apart() -> None:
    many, names = BLACK_CORNER.expand(400, -1, -1, -1), ["dog", "clock face three oclock"] * 200
    out = varied(many, names, 0, True, 0)
    turned = torch.tensor([torch.equal(picture, BLACK_CORNER[0].flip(-1)) for picture in out])
    assert 70 < turned[::2].sum() < 130 and not turned[1::2].any()
