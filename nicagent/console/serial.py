"""A host's serial console: one line to the hardware, any number of readers, a kept log.

The line is a tty, or the unix socket of an emulated chassis. It is held by this module alone and opened
again when it goes away (a USB adapter pulled, the agent quicker than its peer). What comes in goes to the log
and to every session; a session that does not read loses its oldest bytes, never the others' (bounded memory).
What any session writes goes out: as at a real console, two people typing see each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import stat
import termios
import tty
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nicagent.errors import Kind, NicagentError

log = logging.getLogger("nicagent.console")

CHUNK = 4096  # bytes that a tty gives at once; the kernel has no more
GULP = 16  # such reads of a line that does not pause, before what they brought is passed on
BACKLOG = 1 << 20  # bytes kept for a session that does not read
REPLAY = 4096  # bytes of the past that a new session is shown
RETRY_FIRST, RETRY_LAST = 0.1, 5.0  # seconds between attempts to open the line
WRITE_SECONDS = 30.0  # a line that takes nothing for so long is given up


class SerialConsole:
    """The console of one host. `run` holds the line; sessions come and go."""

    def __init__(self, host: str, path: Path, baud: int, log_path: Path, log_bytes: int) -> None:
        self.host = host
        self._path = path
        self._baud = baud
        self._log = _RotatingLog(log_path, log_bytes)
        self._sessions: list[ConsoleSession] = []
        self._line: _Line | None = None
        self._recent = bytearray(self._log.tail(REPLAY))

    @property
    def connected(self) -> bool:
        """Whether the line is open now."""
        return self._line is not None

    async def run(self) -> None:
        """Hold the line until cancelled."""
        wait = RETRY_FIRST
        try:
            while True:
                try:
                    self._line = await _open(self._path, self._baud, self._take)
                    wait = RETRY_FIRST
                    await self._line.over.wait()
                    log.info("%s: the console line %s was closed at its other end", self.host, self._path)
                except (OSError, NicagentError) as e:
                    level = logging.WARNING if wait == RETRY_FIRST else logging.DEBUG
                    log.log(level, "%s: console line %s: %s", self.host, self._path, e)
                finally:
                    self._hang_up()
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY_LAST)
        finally:
            for session in list(self._sessions):
                session.end()
            self._log.close()

    def _take(self, data: bytes) -> None:
        self._log.write(data)
        self._recent += data[-REPLAY:]
        if len(self._recent) > 8 * REPLAY:  # seldom: what is cut off is moved
            del self._recent[:-REPLAY]
        for session in self._sessions:
            session.feed(data)

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def attach(self, *, replay: bool = False, force: bool = False) -> ConsoleSession:
        """A new session. `replay` shows it the last output; `force` ends all others first."""
        if force:
            for other in list(self._sessions):
                other.end()
        session = ConsoleSession(self)
        if replay and self._recent:
            session.feed(bytes(self._recent[-REPLAY:]))
        self._sessions.append(session)
        return session

    def detach(self, session: ConsoleSession) -> None:
        """Forget a session."""
        if session in self._sessions:
            self._sessions.remove(session)

    async def send(self, data: bytes) -> None:
        """Put bytes on the line; returning late is the line's own pace. Raises UNAVAILABLE."""
        line = self._line
        if line is None:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"the console line of {self.host} ({self._path}) is not connected",
                "nicagent doctor tells why",
            )
        line.writer.write(data)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await line.writer.drain()
        except (OSError, TimeoutError):
            self._hang_up()
            raise NicagentError(
                Kind.UNAVAILABLE, f"the console line of {self.host} takes nothing", "it is being opened again"
            ) from None


class ConsoleSession:
    """One reader (and writer) of a console."""

    def __init__(self, console: SerialConsole) -> None:
        self._console = console
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._ready = asyncio.Event()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether anything more can come."""
        return self._ended

    def feed(self, data: bytes) -> None:
        """Take output; the oldest is dropped beyond BACKLOG."""
        self._chunks.append(data)
        self._held += len(data)
        while self._held > BACKLOG:
            self._held -= len(self._chunks.popleft())
        self._ready.set()

    def end(self) -> None:
        """No more output will come."""
        self._ended = True
        self._ready.set()
        self._console.detach(self)

    async def read(self, limit: int) -> bytes:
        """At least 1 and at most `limit` bytes; b"" once the session has ended."""
        while not self._chunks:
            if self._ended:
                return b""
            self._ready.clear()
            await self._ready.wait()
        data = self._chunks.popleft()
        if self._chunks:  # for a reader that is behind, one long piece costs less than many short ones
            data = b"".join((data, *self._chunks))
            self._chunks.clear()
        if len(data) > limit:
            self._chunks.append(data[limit:])
            data = data[:limit]
        self._held -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Type at the console."""
        await self._console.send(data)

    async def finish(self) -> None:
        """A line has no last byte: what was written is on its way."""

    async def close(self) -> None:
        """Leave. Idempotent."""
        self.end()


class _RotatingLog:
    """Output on disk: at most `limit` bytes in the current file and as many in the previous one.

    A full disk costs log lines, never the console.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()

    def write(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), self._limit):
                self._write(data[start : start + self._limit])
        except OSError as e:
            log.debug("%s: %s", self._path, e.strerror)

    def _write(self, data: bytes) -> None:
        if self._size + len(data) > self._limit:
            self._path.replace(self._path.with_suffix(".1"))
            # The old file is closed only once there is a new one: on a full disk there may be none.
            self._file, old = self._path.open("ab", buffering=0), self._file
            self._size = 0
            old.close()
        self._size += self._file.write(data)

    def tail(self, size: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read()

    def close(self) -> None:
        self._file.close()


class _Incoming(asyncio.streams.FlowControlMixin):
    """Gives on what comes in as it comes, and tells the end."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        super().__init__()
        self._take = take
        self.over = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.over.set()


class _Tty:
    """Reads a tty and owns its descriptor. (asyncio's transport for pipes asks for 256 KiB each time, which
    costs more than the 4 KiB at most that a tty gives.)"""

    def __init__(self, fd: int, take: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._take = take
        self._loop = asyncio.get_running_loop()
        self.over = asyncio.Event()
        self._loop.add_reader(fd, self._ready)

    def _ready(self) -> None:
        pieces: list[bytes] = []
        hung_up = False
        try:
            while len(pieces) < GULP:
                pieces.append(os.read(self._fd, CHUNK))
                if len(pieces[-1]) < CHUNK - 1:  # of its ring of CHUNK bytes one is never used
                    hung_up = not pieces[-1]
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            hung_up = True
        if data := b"".join(pieces):
            self._take(data)
        if hung_up:
            self.close()

    def close(self) -> None:
        """Idempotent."""
        if not self.over.is_set():
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self.over.set()


@dataclass(frozen=True)
class _Line:
    """The line while it is open: a tty has a transport each way, a socket one for both."""

    writer: asyncio.StreamWriter
    incoming: asyncio.BaseTransport | _Tty
    over: asyncio.Event

    def close(self) -> None:
        # What nobody has taken is dropped with the line: a close that waits for it would never end.
        self.writer.transport.abort()
        self.incoming.close()
        self.over.set()


async def _open(path: Path, baud: int, take: Callable[[bytes], None]) -> _Line:
    """Both ways; what comes in is given to `take`."""
    if stat.S_ISSOCK(path.stat().st_mode):
        loop = asyncio.get_running_loop()
        transport, incoming = await loop.create_unix_connection(lambda: _Incoming(take), str(path))
        return _Line(asyncio.StreamWriter(transport, incoming, None, loop), transport, incoming.over)
    return await _open_tty(path, baud, take)


async def _open_tty(path: Path, baud: int, take: Callable[[bytes], None]) -> _Line:
    """A tty in raw mode, 8N1, held exclusively (TIOCEXCL), modem lines left alone (CLOCAL)."""
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise NicagentError(Kind.INVALID, f"console: {baud} baud is no speed of a tty", "115200 is usual")
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, termios.TIOCEXCL)
        tty.setraw(fd, termios.TCSANOW)
        mode = termios.tcgetattr(fd)
        mode[2] |= termios.CLOCAL | termios.CREAD
        mode[4] = mode[5] = speed
        termios.tcsetattr(fd, termios.TCSANOW, mode)
    except termios.error as e:
        os.close(fd)
        raise OSError(e.args[0], f"not a tty: {e.args[-1]}") from None
    except OSError:
        os.close(fd)
        raise
    loop = asyncio.get_running_loop()
    # Two descriptors of one line: asyncio's pipe transports read or write, never both.
    out = os.fdopen(os.dup(fd), "wb", buffering=0)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(out.close)
        incoming = _Tty(fd, take)
        on_failure.callback(incoming.close)
        transport, writing = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop=loop), out
        )
        on_failure.pop_all()
    return _Line(asyncio.StreamWriter(transport, writing, None, loop), incoming, incoming.over)
