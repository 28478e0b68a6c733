"""Blocking work keeps whoever waits for it, and so its lock, until it has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nicagent.config import Overlay
from nicagent.files import replace_private
from nicagent.network.guard import Guards
from nicagent.nft import Nft
from nicagent.provision import guard as provision_guard
from nicagent.storage import target
from nicagent.storage.nvmetcp.config import Listen, TargetConfig
from nicagent.threads import in_thread


class Slow:
    """Blocking work that waits to be let go."""

    def __init__(self) -> None:
        self.started, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, *args: Any) -> list[Any]:
        self.started.set()
        assert self.go.wait(10)
        self.ended.set()
        return []


async def cancelled_meanwhile(slow: Slow, work: Callable[[], Awaitable[object]]) -> None:
    """Cancel `work` while its thread runs, more than once, and see it end only with the thread."""
    task = asyncio.ensure_future(work())
    try:
        assert await asyncio.to_thread(slow.started.wait, 5)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done(), "the lock would be released while the thread goes on"
    finally:
        slow.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.ended.is_set()


async def test_a_cancelled_wait_ends_with_its_thread() -> None:
    slow = Slow()
    await cancelled_meanwhile(slow, lambda: in_thread(slow))


async def test_a_result_and_an_error_come_through() -> None:
    assert await in_thread(int, "12", base=8) == 10
    with pytest.raises(ValueError, match="invalid literal"):
        await in_thread(int, "x")


async def test_a_port_guards_transaction_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """libnftables is not thread-safe, and a late "add" must not follow the next request's "delete"."""
    slow = Slow()
    guards = Guards(Overlay(local="192.0.2.1"))
    monkeypatch.setattr(Nft, "_run_now", lambda *_: slow())
    await cancelled_meanwhile(slow, guards.counters)


async def test_a_provision_guards_transaction_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr(Nft, "_run_now", lambda *_: slow())
    await cancelled_meanwhile(slow, lambda: provision_guard.apply([], "metal-1"))


async def test_a_target_whose_start_is_cancelled_has_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a thread that comes late leaves a configuration that nobody asked for any more."""
    slow, write = Slow(), replace_private
    monkeypatch.setattr(target, "replace_private", lambda *args, **how: (slow(), write(*args, **how)))
    process = target.TargetProcess("metal-1", tmp_path, tmp_path / "log")
    config = TargetConfig((Listen("127.0.0.1", 4420),), str(process.control), ())
    await cancelled_meanwhile(slow, lambda: process.converge(config))
    assert list(tmp_path.iterdir()) == []
