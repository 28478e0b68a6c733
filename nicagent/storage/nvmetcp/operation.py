"""Something under way whose end is told at once.

An asyncio.Future tells its listeners in a later turn of the loop; here a reply that came in becomes an answer
that goes out in the same turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

Listener = Callable[[Exception | None], None]


class Operation:
    """Ends once, with an error or None. A listener that comes late is told on the spot.

    `cancel` means that nobody waits any more: no listener is told, whatever becomes of it.
    """

    __slots__ = ("_listeners", "_stop", "cancelled", "ended", "error")

    def __init__(self, stop: Callable[[], object] | None = None) -> None:
        """`stop` is called by `cancel`, at most once."""
        self.ended = False
        self.cancelled = False
        self.error: Exception | None = None
        self._listeners: list[Listener] = []
        self._stop = stop

    def then(self, listener: Listener) -> Operation:
        """Tells `listener` of the end; listeners are told in the order they came."""
        if not self.ended:
            self._listeners.append(listener)
        elif not self.cancelled:
            listener(self.error)
        return self

    def end(self, error: Exception | None = None) -> None:
        """It is over. Nothing happens if it was already, or was cancelled."""
        if self.ended:
            return
        self.ended = True
        self.error = error
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(error)

    def cancel(self) -> None:
        """Nobody waits. Idempotent."""
        if self.ended:
            return
        self.ended = self.cancelled = True
        self._listeners = []
        if self._stop is not None:
            self._stop()

    def __await__(self) -> Generator[Any, None, None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.then(tell)
        try:
            yield from future
        except asyncio.CancelledError:
            self.cancel()
            raise


def ended(error: Exception | None = None) -> Operation:
    """One that is over."""
    operation = Operation()
    operation.end(error)
    return operation


def running(work: Coroutine[Any, Any, None]) -> Operation:
    """One that is over when the coroutine is; cancelling it cancels that."""
    task = asyncio.ensure_future(work)
    operation = Operation(task.cancel)

    def over(task: asyncio.Task[None]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None or isinstance(error, Exception):
            operation.end(error)
        else:
            operation.cancel()

    task.add_done_callback(over)
    return operation


def together(operations: Sequence[Operation]) -> Operation:
    """One for several: over when all are, with the first error; cancelling it cancels them."""
    if len(operations) == 1:
        return operations[0]

    def cancel() -> None:
        for one in operations:
            one.cancel()

    whole = Operation(cancel)
    left = len(operations)
    first: Exception | None = None

    def tell(error: Exception | None) -> None:
        nonlocal left, first
        left -= 1
        first = first or error
        if not left:
            whole.end(first)

    for one in operations:
        one.then(tell)
    return whole
