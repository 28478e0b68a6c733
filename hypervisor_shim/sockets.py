"""The plain sockets of a server's clients, watched by an epoll of their own.

For each socket that has something to read, asyncio puts a handle into its queue, enters a context and passes
through a transport that serves every purpose: more work than the answer to most calls. Here the loop is woken
once for all sockets that are ready, and each is read and answered on the spot. (A TLS connection stays
asyncio's: there the cipher is what costs.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

_TURN = 0.0005  # seconds that sockets are served before the loop's other work has its turn
_BATCH = 64  # sockets that are served between two looks at the clock
_FEW, _MANY = 4096, 256 * 1024  # bytes: asked for of a client that makes calls, or that sends data
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_WRITE_HIGH = 64 * 1024  # unless `set_write_buffer_limits` says otherwise


class Receiver(Protocol):
    """What a socket tells, as asyncio's transports do; but what came in is given as bytes."""

    missing: int  # bytes to the end of what it has the beginning of; no more are taken at once, to copy less

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...

    def received(self, data: bytes) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...


class Sockets:
    """All plain sockets of one server, in the loop that was running when it was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._open: dict[int, PlainSocket] = {}
        self._closing = False
        self.gathering = False  # little that is written now waits until the batch is read
        self.written: list[PlainSocket] = []  # while gathering
        self._loop.add_reader(self._epoll.fileno(), self._serve)

    def add(self, sock: socket.socket, receiver: Receiver) -> None:
        """Serve a connected socket that does not block. From now on it is ours to close."""
        transport = PlainSocket(self, sock, receiver)
        self._open[sock.fileno()] = transport
        receiver.connection_made(transport)
        transport.resume_reading()

    def close(self) -> None:
        """No socket will be added any more; those that are there go on until they are closed."""
        self._closing = True
        self._end_when_empty()

    def _serve(self) -> None:
        """Read and answer every socket that is ready, then send the answers: each wakes a client, and that
        takes the processor and its caches from whoever has not finished. Where several were ready, more may
        be by the time that they are served."""
        sockets, poll = self._open, self._epoll.poll
        turn_ends = time.monotonic() + _TURN
        while True:
            ready = poll(0, _BATCH)
            self.gathering = len(ready) > 1
            for number, mask in ready:
                if (one := sockets.get(number)) is None:
                    continue
                if mask == _IN:
                    one.read()
                else:
                    one.ready(mask)
            self.gathering = False
            written, self.written = self.written, []
            for one in written:
                one.flush()
            if len(ready) < 2 or time.monotonic() > turn_ends:
                return

    def watch(self, number: int, before: int, wanted: int) -> None:
        """Be told of other events of a socket than before; none is 0, and then not of its end either."""
        if not before:
            self._epoll.register(number, wanted)
        elif wanted:
            self._epoll.modify(number, wanted)
        else:
            self._epoll.unregister(number)

    def forget(self, number: int, end: Callable[[Exception | None], None], cause: Exception | None) -> None:
        """A socket wants to hear nothing more. It is closed in a later turn of the loop: until then its
        number is in use, and the batch that is being served may name it."""
        del self._open[number]
        self._loop.call_soon(self._end, end, cause)

    def _end(self, end: Callable[[Exception | None], None], cause: Exception | None) -> None:
        end(cause)
        self._end_when_empty()

    def _end_when_empty(self) -> None:
        if self._closing and not self._open and not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


class PlainSocket(asyncio.Transport):
    """One socket: as much of a transport as a connection uses, with asyncio's own meaning of each word."""

    __slots__ = ("_all", "_amount", "_closing", "_full", "_high", "_lost", "_mask", "_number", "_receiver",
                 "_sock", "_unsent")  # fmt: skip

    def __init__(self, all: Sockets, sock: socket.socket, receiver: Receiver) -> None:
        super().__init__()
        self._all = all
        self._sock = sock
        self._number = sock.fileno()
        self._receiver = receiver
        self._amount = _FEW
        self._mask = 0
        self._unsent = bytearray()
        self._high = _WRITE_HIGH
        self._full = False  # the receiver was told to write no more
        self._closing = False
        self._lost = False  # nothing more will be sent or read

    # ---- what epoll tells

    def ready(self, mask: int) -> None:
        """There is more to it than something to read."""
        if mask != _OUT:
            self.read()
        if mask != _IN:
            self.flush()

    def read(self) -> None:
        """Take what is there. A receiver that fails loses its socket."""
        if not self._mask & _IN:
            return
        missing = self._receiver.missing
        try:
            data = self._sock.recv(self._amount if missing <= _FEW else min(missing, _MANY))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as failed:
            self._lose(failed)
            return
        if not data:
            self.close()
            return
        self._amount = _MANY if len(data) >= _FEW else _FEW
        try:
            self._receiver.received(data)
        except Exception:
            log.exception("a client's connection failed")
            self.abort()

    def flush(self) -> None:
        """Send what was kept."""
        if self._lost or not self._unsent:
            return
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as failed:
            self._lose(failed)
            return
        del self._unsent[:sent]
        if self._unsent:
            self._watch(self._mask | _OUT)
        elif self._mask & _OUT:
            self._watch(self._mask & ~_OUT)
        if self._full and len(self._unsent) <= self._high // 4:
            self._full = False
            self._receiver.resume_writing()
        if self._closing and not self._unsent:
            self._lose(None)

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._all.watch(self._number, self._mask, mask)
            self._mask = mask

    # ---- what the connection wants

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, and keep what the socket does not take."""
        if self._lost:
            return
        all = self._all
        if all.gathering and len(data) < _FEW:
            if not self._unsent:
                all.written.append(self)
        elif not self._unsent:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as failed:
                self._lose(failed)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            self._watch(self._mask | _OUT)
        self._unsent += data
        if not self._full and len(self._unsent) > self._high:
            self._full = True
            self._receiver.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """`low` is always a quarter of `high`."""
        self._high = _WRITE_HIGH if high is None else high

    def pause_reading(self) -> None:
        self._watch(self._mask & ~_IN)

    def resume_reading(self) -> None:
        if not self._closing:
            self._watch(self._mask | _IN)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Read no more; close once everything is sent."""
        if not self._closing:
            self._closing = True
            self._watch(self._mask & ~_IN)
            if not self._unsent:
                self._lose(None)

    def abort(self) -> None:
        """Close now; of what was written, the socket gets what it takes."""
        if self._unsent and not self._lost:
            with contextlib.suppress(OSError):
                self._sock.send(self._unsent)
        self._lose(None)

    def _lose(self, cause: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._unsent.clear()
        self._watch(0)
        self._all.forget(self._number, self._end, cause)

    def _end(self, cause: Exception | None) -> None:
        try:
            self._receiver.connection_lost(cause)
        finally:
            self._sock.close()
