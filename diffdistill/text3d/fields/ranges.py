"""Numbers of settings, checked."""

from __future__ import annotations

from diffdistill.errors import UserError, shown


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise UserError for what is no whole number in [least, most].

    >>> check_whole("depth", 0, 1, 64)
    Traceback (most recent call last):
    diffdistill.errors.UserError: depth is 0; it must be a whole number from 1 to 64
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name} is {shown(value)}; it must be a whole number from {least} to {most}")


def check_number(name: str, value: object, above: float, most: float) -> None:
    """Raise UserError for what is no number in (above, most].

    >>> check_number("radius", -1.0, 0.0, 100.0)
    Traceback (most recent call last):
    diffdistill.errors.UserError: radius is -1.0; it must be a number above 0.0, at most 100.0
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not above < value <= most:
        raise UserError(f"{name} is {shown(value)}; it must be a number above {above}, at most {most}")
