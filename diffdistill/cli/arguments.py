"""An argparse parser whose errors are one line, and name the nearest option."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any, NoReturn

from diffdistill.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit. Options are not abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        odd = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if odd:
            near = difflib.get_close_matches(odd[1], self._option_string_actions, 1, cutoff=0.0)
            message = f"unknown option {odd[1]}; the nearest is {near[0]}"
        raise UserError(f"{message} ({self.prog} --help says more)")
