"""Ctrl-C: the first one lets the step finish, so that the run can be saved; the second one interrupts at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interrupt:
    """Whether Ctrl-C has been pressed."""

    asked: bool = False


@contextmanager
def finish_step_on_interrupt(processes: int) -> Iterator[Interrupt]:
    """Within the block the first Ctrl-C sets `asked`, and the second one raises KeyboardInterrupt.

    With several processes, which would not agree on the step, and outside the main thread, Ctrl-C stays as it is.
    """
    interrupt = Interrupt()
    if processes > 1 or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
