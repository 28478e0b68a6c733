"""The turn of the event loop that runs, and what it leaves to its end.

Whatever one wake-up brings leaves in one write, at its end: a turn of the loop of its own for each write
would cost a system call, which is much beside a request of 4 KiB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class WakeUp:
    """One for all connections of a loop. Who receives calls `begin` and `end`, who sends `at_end`."""

    __slots__ = ("_left", "_loop", "_runs")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left: list[Callable[[], None]] = []
        self._runs = False

    def begin(self) -> None:
        """Bytes came."""
        self._runs = True

    def at_end(self, action: Callable[[], None]) -> None:
        """Calls `action` at the end of this wake-up, or in the next turn if none runs."""
        if self._runs:
            self._left.append(action)
        else:
            self._loop.call_soon(action)

    def end(self) -> None:
        """They are consumed."""
        self._runs = False
        left, self._left = self._left, []
        for action in left:
            action()
