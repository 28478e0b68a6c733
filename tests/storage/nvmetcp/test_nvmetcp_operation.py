"""An operation under way: its end is told once, at once, and never to one who gave up waiting."""

from __future__ import annotations

import asyncio

import pytest

from nicagent.storage.nvmetcp.operation import Operation, ended, running, together
from nicagent.storage.nvmetcp.wakeup import WakeUp


def test_listeners_are_told_at_once_in_their_order_and_only_once() -> None:
    told: list[tuple[str, Exception | None]] = []
    operation = Operation().then(lambda error: told.append(("first", error)))
    operation.then(lambda error: told.append(("second", error)))
    failure = OSError("medium")
    operation.end(failure)
    operation.end(None)
    assert told == [("first", failure), ("second", failure)]
    operation.then(lambda error: told.append(("late", error)))
    assert told[-1] == ("late", failure), "one who comes late is told on the spot"


def test_nobody_is_told_after_cancel() -> None:
    told: list[Exception | None] = []
    stopped: list[bool] = []
    operation = Operation(lambda: stopped.append(True)).then(told.append)
    operation.cancel()
    operation.cancel()
    operation.end(None)
    operation.then(told.append)
    assert (told, stopped) == ([], [True])


def test_several_are_over_when_the_last_is_with_the_first_error() -> None:
    told: list[Exception | None] = []
    parts = [Operation(), Operation(), ended()]
    together(parts).then(told.append)
    failure = OSError("medium")
    parts[1].end(failure)
    assert told == [], "one is still under way"
    parts[0].end(OSError("later"))
    assert told == [failure]


async def test_a_coroutine_is_an_operation_and_an_operation_can_be_awaited() -> None:
    inner = Operation()

    async def work() -> None:
        await inner

    outer = running(work())
    asyncio.get_running_loop().call_soon(inner.end, ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await outer
    abandoned = Operation()
    waiting = asyncio.ensure_future(_wait(abandoned))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert abandoned.cancelled, "who is cancelled no longer waits"


async def _wait(operation: Operation) -> None:
    await operation


async def test_what_is_sent_in_a_wake_up_leaves_at_its_end() -> None:
    wake_up, done = WakeUp(), []
    wake_up.begin()
    wake_up.at_end(lambda: done.append("in"))
    assert not done
    wake_up.end()
    assert done == ["in"]
    wake_up.at_end(lambda: done.append("between"))
    assert done == ["in"]
    await asyncio.sleep(0)
    assert done == ["in", "between"], "between wake-ups it is the next turn of the loop"
