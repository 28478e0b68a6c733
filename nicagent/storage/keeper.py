"""Seeing to it that processes which outlive us stay alive: wait for the end of one, mend, back off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from nicagent.errors import Kind, NicagentError
from nicagent.files import make_private_directory
from nicagent.proc import TERM_GRACE, Daemon

log = logging.getLogger(__name__)

FIRST_DELAY = 0.1  # seconds before the second attempt in a row; the first is at once
LAST_DELAY = 30.0  # seconds, promised by the contract
LOG_LIMIT = 1 << 20  # bytes of a process's log; a longer one is dropped before the next start
END_DEADLINE = 20.0  # seconds for a process that no pidfile knows
DYING = 1.0  # seconds that a killed process may take to be gone
POLL = 0.01  # seconds between looks
PEERCRED = struct.Struct("3i")  # pid, uid, gid
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


async def has_died(daemon: Daemon) -> bool:
    """Whether a process that just let us down is dead or dying: a killed one may take a moment to be gone."""
    pid = daemon.pid()
    if pid is None:
        return True
    try:
        async with asyncio.timeout(DYING):
            await any_ended([pid])
    except TimeoutError:
        return False
    return True


def reap(pid: int) -> None:
    """Collect a dead process if it was our child: a zombie would otherwise stay as long as the agent."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def end_listener(path: Path, mark: str) -> None:
    """End whoever serves a unix socket, if its command line holds `mark`.

    For a process whose starter died before it wrote the pidfile: it holds locks and ports, and nothing but
    its socket leads to it. Returns once it is gone. Raises UNAVAILABLE when it does not go.
    """
    try:
        async with asyncio.timeout(END_DEADLINE):
            while (pid := _listener(path)) is not None:
                # Until it listens itself, the socket is still its dead starter's.
                if _command_line_holds(pid, mark):
                    log.warning("ending process %d, which serves %s and no pidfile knows", pid, path)
                    await _end(pid)
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise NicagentError(
            Kind.UNAVAILABLE, f"another process serves {path} and does not end", "find it: ss -xlp"
        ) from None


def _listener(path: Path) -> int | None:
    """Pid of whoever called listen(2) on a socket last (unix(7), SO_PEERCRED); None when nobody serves it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pass  # somebody serves it, only not now
        except OSError:
            return None
        pid, _, _ = PEERCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEERCRED.size))
        return int(pid)


def _command_line_holds(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def _end(pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TERM_GRACE):
                await any_ended([pid])
                reap(pid)
                return


def trim_log(path: Path) -> None:
    """Make room for a log, and bound it. It names initiators and volumes, so it is the agent's alone."""
    make_private_directory(path.parent)
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.unlink()
    path.touch(mode=0o600)
    path.chmod(0o600)


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
    takes its caller's own lock and does nothing when all is well. `met` is False while what is wanted has
    never been there, whatever lives: `mend` makes that good as well, and sets it.
    """

    def __init__(
        self, name: str, pids: Callable[[], Sequence[int | None]], mend: Callable[[], Awaitable[None]]
    ) -> None:
        self._name = name
        self._pids = pids
        self._mend = mend
        self._wanted = asyncio.Event()
        self.met = True

    def want(self, wanted: bool, *, met: bool = True) -> None:
        """Processes are to live from now on, or no longer."""
        self.met = met
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
            if self.met and len(live) == len(pids):
                since = time.monotonic()
                await any_ended(live)
                for pid in live:
                    reap(pid)
                if time.monotonic() - since >= STEADY:
                    delay = 0.0
                continue
            # A present that just failed would fail again at once; and its caller may be about to withdraw.
            await asyncio.sleep(delay if self.met else max(delay, FIRST_DELAY))
            delay = min(max(2 * delay, FIRST_DELAY), LAST_DELAY)
            if not self._wanted.is_set():
                continue
            what = "a process of the data path is gone" if self.met else "the disks could not be presented"
            log.warning("%s: %s, trying again", self._name, what)
            try:
                await self._mend()
            except NicagentError as e:
                log.error("%s: the data path does not come back: %s; next try in %g s", self._name, e, delay)
            except OSError as e:
                log.error("%s: the data path does not come back: %s; next try in %g s", self._name, e, delay)
