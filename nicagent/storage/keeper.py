"""Seeing to it that processes which outlive us stay alive: wait for the end of one, mend, back off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from nicagent.errors import NicagentError

log = logging.getLogger(__name__)

FIRST_DELAY = 0.1  # seconds before the second attempt in a row; the first is at once
LAST_DELAY = 30.0  # seconds, promised by the contract
LOG_LIMIT = 1 << 20  # bytes of a process's log; a longer one is dropped before the next start
TAIL = 4096  # bytes of a log searched for its last line
STEADY = 10.0  # seconds a mended process must live for its failures to be forgotten


async def any_ended(pids: Sequence[int]) -> None:
    """Return as soon as one of these processes has ended (pidfd_open(2): readable at the end)."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    with contextlib.ExitStack() as cleanup:
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            cleanup.callback(os.close, handle)
            loop.add_reader(handle, ended.set)
            cleanup.callback(loop.remove_reader, handle)
        await ended.wait()


def reap(pid: int) -> None:
    """Collect a dead process if it was our child: a zombie would otherwise stay as long as the agent."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def trim_log(path: Path) -> None:
    """Make room for a log, and bound it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.unlink()


def last_line(path: Path) -> str:
    """What a process said last."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return lines[-1] if lines else "it says nothing"


class Keeper:
    """Keeps a set of processes alive while it is wanted.

    `pids` tells the live ones, None for each that should be there and is not. `mend` brings them back; it
    takes its caller's own lock and does nothing when all is well.
    """

    def __init__(
        self, name: str, pids: Callable[[], Sequence[int | None]], mend: Callable[[], Awaitable[None]]
    ) -> None:
        self._name = name
        self._pids = pids
        self._mend = mend
        self._wanted = asyncio.Event()

    def want(self, wanted: bool) -> None:
        """Processes are to live from now on, or no longer."""
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    async def watch(self) -> None:
        """Run until cancelled. A process that does not come back is logged and tried again, never raised."""
        delay = 0.0
        while True:
            await self._wanted.wait()
            pids = self._pids()
            live = [pid for pid in pids if pid is not None]
            if len(live) == len(pids):
                since = time.monotonic()
                await any_ended(live)
                for pid in live:
                    reap(pid)
                if time.monotonic() - since >= STEADY:
                    delay = 0.0
                continue
            await asyncio.sleep(delay)
            delay = min(max(2 * delay, FIRST_DELAY), LAST_DELAY)
            if not self._wanted.is_set():
                continue
            log.warning("%s: a process of the data path is gone, starting it again", self._name)
            try:
                await self._mend()
            except NicagentError as e:
                log.error("%s: the data path does not come back: %s; next try in %g s", self._name, e, delay)
            except OSError as e:
                log.error("%s: the data path does not come back: %s; next try in %g s", self._name, e, delay)
