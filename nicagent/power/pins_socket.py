"""A gpiozero pin factory for lines behind a socket, as gpiozero's own pigpio factory reaches its daemon.

The chassis of an emulated host serves its front-panel lines on a unix socket (`linewire`). With this
factory the very same gpiozero devices, and so the very same power driver, work on them:

    factory = SocketFactory("/run/nicagent/metal-1/lines.sock", consumer="nicagent")
    led = DigitalInputDevice(24, pull_up=None, active_state=True, pin_factory=factory)
    button = DigitalOutputDevice(23, initial_value=None, pin_factory=factory)  # None: as is, no edge

Promise 1 rules here: making a pin touches nothing, `function = "output"` claims the line as it is, and
closing a pin, the factory, or dying only lets go. What the line does then is the chassis' setting, as it is
the kernel's on metal.

Threads: one reads the socket, one calls `when_changed`, so a callback may use pins itself. Calls are
synchronous and end within `timeout` seconds. When the chassis goes away every call raises NicagentError
UNAVAILABLE and `on_disconnect` is called once; the next call, or `reconnect()`, connects again, claims anew
what was claimed (as is) and reports a watched level that moved meanwhile.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpiozero.exc import PinInvalidFunction, PinInvalidPull, PinInvalidState, PinSetInput
from gpiozero.pins.pi import PiFactory, PiPin

from nicagent.errors import Kind, NicagentError
from nicagent.power.linewire import (
    MESSAGE_LIMIT,
    Direction,
    Edge,
    Op,
    Reply,
    Request,
    WireError,
    decode_answer,
    encode,
)

BOARD_REVISION = 0xC03111  # a Raspberry Pi 4B: the board whose pin names this factory speaks
EDGE_BACKLOG = 10_000  # edges waiting for a slow callback; older ones are dropped, the latest level is kept


class _Waiting:
    """A request under way: the thread that asked sleeps on `done`."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.reply: Reply | None = None


class _Link:
    """One connection and its reader thread; never reused once broken."""

    def __init__(self, path: Path, timeout: float, on_edge: Callable[[Edge], None]) -> None:
        self._timeout = timeout
        self._on_edge = on_edge
        self._lock = threading.Lock()  # guards _waiting, _next_id, broken and the order of writes
        self._waiting: dict[int, _Waiting] = {}
        self._next_id = 1
        self.broken = False
        self.on_break: Callable[[], None] | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._reader = threading.Thread(target=self._read, name=f"lines {path.name}", daemon=True)
        self._reader.start()

    def ask(self, op: Op, **fields: Any) -> Reply:
        """Send one request and await its reply. Raises OSError when the link breaks or stays silent."""
        waiting = _Waiting()
        with self._lock:
            if self.broken:
                raise ConnectionError("the connection is closed")
            number = self._next_id
            self._next_id += 1
            self._waiting[number] = waiting
            try:
                self._socket.sendall(encode(Request(number, op, **fields)))
            except OSError:
                self._waiting.pop(number, None)
                raise
        if not waiting.done.wait(self._timeout):
            self.close()  # a late answer must not be taken for the next one's
            raise TimeoutError(f"no answer within {self._timeout:g} s")
        if waiting.reply is None:
            raise ConnectionError("the connection ended")
        return waiting.reply

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader, which then closes

    def join(self) -> None:
        if threading.current_thread() is not self._reader:
            self._reader.join(self._timeout)

    def _read(self) -> None:
        pending = b""
        try:
            while chunk := self._receive():
                pending += chunk
                *lines, pending = pending.split(b"\n")
                for line in lines:
                    self._take(line)
                if len(pending) > MESSAGE_LIMIT:
                    break
        except (OSError, WireError):
            pass  # a peer that stopped making sense is a peer that went away
        with self._lock:
            self.broken = True
            waiting, self._waiting = self._waiting, {}
        self._socket.close()
        for each in waiting.values():
            each.done.set()
        if self.on_break is not None:
            self.on_break()

    def _receive(self) -> bytes:
        while True:
            try:
                return self._socket.recv(65536)
            except TimeoutError:  # the socket's timeout is meant for connect and send
                continue

    def _take(self, line: bytes) -> None:
        answer = decode_answer(line)
        if isinstance(answer, Edge):
            self._on_edge(answer)
            return
        with self._lock:
            waiting = self._waiting.pop(answer.id, None)
        if waiting is not None:
            waiting.reply = answer
            waiting.done.set()


class SocketFactory(PiFactory):  # type: ignore[misc]
    """gpiozero pins over a chassis' line socket.

    `path`: the socket. `consumer`: this holder's name in refusals and in the chassis' log. `timeout`:
    seconds for one call. `on_disconnect`: called from the reader thread, once per lost connection, not on
    close(). Raises NicagentError UNAVAILABLE when nothing listens on `path`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        consumer: str = "nicagent",
        timeout: float = 2.0,
        on_disconnect: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.pin_class = SocketPin
        self._path = Path(path)
        self._consumer = consumer
        self._timeout = timeout
        self._on_disconnect = on_disconnect
        self._connect_lock = threading.RLock()
        self._edges: queue.Queue[Edge | None] = queue.Queue(EDGE_BACKLOG)
        self._closed = False
        self._link: _Link | None = None
        self._caller: threading.Thread | None = None
        self.reconnect()

    @property
    def connected(self) -> bool:
        """Whether the chassis was there when last heard of; asks nothing."""
        return self._link is not None and not self._link.broken

    def reconnect(self) -> None:
        """Connect (again), claim what was claimed as it is, watch what was watched. No-op while connected."""
        with self._connect_lock:
            if self._closed:
                raise NicagentError(Kind.WRONG_STATE, f"the pin factory on {self._path} is closed")
            if self.connected:
                return
            try:
                link = _Link(self._path, self._timeout, self._enqueue)
            except OSError as error:
                raise self._gone(error) from None
            self._link = link
            link.on_break = lambda: self._broken(link)
            for pin in list(self.pins.values()):
                pin.restore(link)

    def ask(self, op: Op, **fields: Any) -> Reply:
        """One request to the chassis, connecting first if needed.

        Raises NicagentError: UNAVAILABLE when the chassis is gone or silent, DENIED when it refuses.
        """
        self.reconnect()
        assert self._link is not None
        return self.ask_on(self._link, op, **fields)

    def ask_on(self, link: _Link, op: Op, **fields: Any) -> Reply:
        try:
            reply = link.ask(op, **fields)
        except OSError as error:
            raise self._gone(error) from None
        if not reply.ok:
            raise NicagentError(Kind.DENIED, f"the chassis at {self._path} refused to {op}: {reply.error}")
        return reply

    def claim(self, line: int, direction: Direction, level: int | None, link: _Link | None = None) -> None:
        """Claim a line for this connection; `level` None leaves it as it is."""
        fields = {"line": line, "direction": direction, "level": level, "consumer": self._consumer}
        if link is None:
            self.ask("claim", **fields)
        else:
            self.ask_on(link, "claim", **fields)

    def close(self) -> None:
        """Let go of every line and of the socket. Causes no edge; never raises for a chassis that is gone."""
        if self._closed:
            return
        for pin in self.pins.values():
            pin.forget()
        super().close()
        self._closed = True
        if self._link is not None:
            self._link.on_break = None
            self._link.close()
            self._link.join()
        if self._caller is not None and self._caller is not threading.current_thread():
            self._put(None)
            self._caller.join(self._timeout)

    @staticmethod
    def ticks() -> float:
        return time.monotonic()

    @staticmethod
    def ticks_diff(later: float, earlier: float) -> float:
        return later - earlier

    def _get_revision(self) -> int:
        return BOARD_REVISION

    def start_callbacks(self) -> None:
        """Start the thread that calls `when_changed`; there is none until a pin watches its line."""
        with self._connect_lock:
            if self._caller is None:
                self._caller = threading.Thread(target=self._call, name="line edges", daemon=True)
                self._caller.start()

    def _gone(self, error: Exception) -> NicagentError:
        return NicagentError(
            Kind.UNAVAILABLE,
            f"the chassis does not answer on {self._path} ({error})",
            "check that the emulator runs and that the host's `lines` path is right",
        )

    def _broken(self, link: _Link) -> None:
        if self._link is link and not self._closed and self._on_disconnect is not None:
            self._on_disconnect()

    def _enqueue(self, edge: Edge) -> None:
        self._put(edge)

    def _put(self, item: Edge | None) -> None:
        while True:
            try:
                self._edges.put_nowait(item)
                return
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._edges.get_nowait()

    def _call(self) -> None:
        while (edge := self._edges.get()) is not None:
            for pin in list(self.pins.values()):
                if pin.offset == edge.line:
                    pin.edge(edge.level, edge.t_ns / 1e9)


class SocketPin(PiPin):  # type: ignore[misc]
    """One line. Untouched until something asks for a function or a level."""

    _when_changed: Any  # a weak reference to gpiozero's callback, kept by PiPin

    def __init__(self, factory: SocketFactory, info: Any) -> None:
        super().__init__(factory, info)
        self._claimed: Direction | None = None
        self._pull = "floating"  # kept for gpiozero's sake: the other end of the wire drives the line
        self._bounce: float | None = None
        self._edges = "both"
        self._watched_level: int | None = None  # level last reported, None while not watching
        self._reported_at = float("-inf")

    @property
    def offset(self) -> int:
        return int(self._number)

    def close(self) -> None:
        """Let go of the line; by itself this causes no edge."""
        self.when_changed = None
        if self._claimed is not None:
            self._claimed = None
            if self._factory.connected:
                with contextlib.suppress(NicagentError):  # gone meanwhile: then it is released already
                    self._factory.ask("release", line=self._number)

    def forget(self) -> None:
        """The connection is about to end and takes the claim along: nothing to tell the chassis."""
        self._claimed = None
        self._watched_level = None
        self._when_changed = None

    def restore(self, link: _Link) -> None:
        """After a reconnect: claim as is, watch again, report a level that moved in the dark.

        A line that somebody else took meanwhile stays theirs: the next use of this pin is refused with
        their name.
        """
        with contextlib.suppress(NicagentError):
            if self._claimed is not None:
                self._factory.claim(self._number, self._claimed, None, link)
        if self._watched_level is not None:
            level = int(self._factory.ask_on(link, "watch", line=self._number).level or 0)
            if level != self._watched_level:
                self._factory._put(Edge(self._number, 1 if level else 0, time.monotonic_ns()))

    def output_with_state(self, state: bool) -> None:
        self._factory.claim(self._number, "out", int(bool(state)))
        self._claimed = "out"

    def input_with_pull(self, pull: str) -> None:
        self._set_function("input")
        self._set_pull(pull)

    def _get_function(self) -> str:
        return "output" if self._claimed == "out" else "input"

    def _set_function(self, value: str) -> None:
        directions: dict[str, Direction] = {"input": "in", "output": "out"}
        if value not in directions:
            raise PinInvalidFunction(f"invalid function {value!r} for pin {self!r}")
        self._factory.claim(self._number, directions[value], None)
        self._claimed = directions[value]

    def _get_state(self) -> int:
        return int(self._factory.ask("get", line=self._number).level or 0)

    def _set_state(self, value: float) -> None:
        if self._claimed != "out":
            raise PinSetInput(f"cannot set state of pin {self!r}: it is an input")
        if value not in (0, 1):
            raise PinInvalidState(f"invalid state {value!r} for pin {self!r}: a line is 0 or 1")
        self._factory.ask("set", line=self._number, level=int(value))

    def _get_pull(self) -> str:
        return self._pull

    def _set_pull(self, value: str) -> None:
        if value not in ("up", "down", "floating"):
            raise PinInvalidPull(f"invalid pull {value!r} for pin {self!r}")
        self._pull = value

    def _get_bounce(self) -> float | None:
        return self._bounce

    def _set_bounce(self, value: float | None) -> None:
        self._bounce = value

    def _get_edges(self) -> str:
        return self._edges

    def _set_edges(self, value: str) -> None:
        self._edges = value

    def _enable_event_detect(self) -> None:
        self._factory.start_callbacks()
        self._watched_level = int(self._factory.ask("watch", line=self._number).level or 0)

    def _disable_event_detect(self) -> None:
        self._watched_level = None
        if self._factory.connected:
            with contextlib.suppress(NicagentError):
                self._factory.ask("unwatch", line=self._number)

    def edge(self, level: int, at: float) -> None:
        """From the callback thread: the line moved to `level` at monotonic second `at`."""
        if self._watched_level is None:
            return
        moved, self._watched_level = level != self._watched_level, level
        wanted = self._edges == "both" or (self._edges == "rising") == bool(level)
        quiet = self._bounce is not None and at - self._reported_at < self._bounce
        if moved and wanted and not quiet and self._when_changed is not None:
            self._reported_at = at
            self._call_when_changed(at, level)
