"""The front-panel lines of a chassis: their levels, their one holder, the kept waveform, and the socket
server.

Who drives a line is wired: the button and reset lines are driven by whoever holds them and fall to their idle
level (a pull resistor) when nobody does; the LED lines are driven by the chassis and can only be read.
Every edge is recorded with its monotonic time and its cause, kept (bounded) for questions and appended to a
log.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from nicagent.errors import Kind, NicagentError
from nicagent.power.linewire import (
    MESSAGE_LIMIT,
    WAVEFORM_LIMIT,
    Cause,
    Direction,
    Edge,
    Level,
    Recorded,
    Reply,
    Request,
    WireError,
    decode_request,
    encode,
)

WAVEFORM_KEPT = 50_000  # edges kept in memory per chassis
LOG_LIMIT = 8 << 20  # bytes of log before it is set aside as `.1`, replacing the older one
BACKLOG_LIMIT = 1 << 20  # bytes of events a client may leave unread before it is cut off

# What a kernel does with an output when its holder's file descriptor closes: leave it, or make it an input.
OnHolderDeath = Literal["keep", "input"]


@dataclass(frozen=True)
class LineSpec:
    """One line: its offset, its name, its level when nobody drives it, and whether the chassis drives it."""

    offset: int
    name: str
    idle: Level
    chassis_drives: bool


class Refused(Exception):
    """A request the lines do not grant; the text goes to the client."""


@dataclass(frozen=True)
class Holder:
    """Who holds a line: `token` tells connections apart, name and pid tell people."""

    token: object
    name: str
    pid: int

    def __str__(self) -> str:
        return f"{self.name or 'unnamed'} (pid {self.pid})"


@dataclass
class _Line:
    spec: LineSpec
    level: Level
    holder: Holder | None = None
    direction: Direction = "in"


@dataclass
class LineBank:
    """Levels and holders of one chassis' lines; no I/O. Listeners hear every edge after it happened."""

    specs: Sequence[LineSpec]
    on_holder_death: OnHolderDeath
    clock: Callable[[], int] = time.monotonic_ns
    listeners: list[Callable[[Recorded], None]] = field(default_factory=list)
    _lines: dict[int, _Line] = field(init=False)
    _edges: deque[Recorded] = field(init=False)
    _seq: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._lines = {spec.offset: _Line(spec, spec.idle) for spec in self.specs}
        self._edges = deque(maxlen=WAVEFORM_KEPT)

    def level(self, offset: int) -> Level:
        return self._find(offset).level

    def levels(self) -> Mapping[str, Level]:
        return {line.spec.name: line.level for line in self._lines.values()}

    def holder(self, offset: int) -> Holder | None:
        return self._find(offset).holder

    def claim(self, offset: int, holder: Holder, direction: Direction, level: Level | None) -> Level:
        """Take a line, or change one's own claim. No level is "as is": an output keeps the level it has."""
        line = self._find(offset)
        if line.holder is not None and line.holder.token is not holder.token:
            raise Refused(f"line {offset} ({line.spec.name}) is busy, held by {line.holder}")
        if direction == "out" and line.spec.chassis_drives:
            raise Refused(f"line {offset} ({line.spec.name}) is driven by the chassis: claim it as input")
        if direction == "in" and level is not None:
            raise Refused("an input takes no level")
        line.holder, line.direction = holder, direction
        if level is not None:
            self._move(line, level, "holder", holder)
        elif direction == "in" and not line.spec.chassis_drives:
            self._move(line, line.spec.idle, "holder", holder)
        return line.level

    def set(self, offset: int, holder: Holder, level: Level) -> Level:
        line = self._find(offset)
        if line.holder is None or line.holder.token is not holder.token:
            owner = f"held by {line.holder}" if line.holder else "not claimed"
            raise Refused(f"line {offset} ({line.spec.name}) is {owner}: claim it first")
        if line.direction != "out":
            raise Refused(f"line {offset} ({line.spec.name}) is claimed as input")
        self._move(line, level, "holder", line.holder)
        return line.level

    def release(self, offset: int, holder: Holder) -> Level:
        line = self._find(offset)
        if line.holder is not None and line.holder.token is holder.token:
            self._let_go(line, "release")
        return line.level

    def holder_gone(self, token: object) -> None:
        """A connection ended. Its lines do what the kernel would do: keep their level, or fall back to
        idle.
        """
        for line in self._lines.values():
            if line.holder is not None and line.holder.token is token:
                self._let_go(line, "holder-death")

    def drive(self, offset: int, level: Level, who: str) -> None:
        """The chassis' own side of a line: an LED that lights."""
        line = self._find(offset)
        if line.spec.chassis_drives:
            self._move(line, level, "chassis", Holder(None, who, 0))

    def waveform(
        self, offset: int | None = None, since: int = 0, limit: int = WAVEFORM_LIMIT
    ) -> list[Recorded]:
        """Edges with `seq` > since, oldest first, at most `limit`, of one line or all."""
        found = (e for e in self._edges if e.seq > since and offset in (None, e.line))
        return [edge for edge, _ in zip(found, range(max(0, limit)), strict=False)]

    def _find(self, offset: int | None) -> _Line:
        line = self._lines.get(-1 if offset is None else offset)
        if line is None:
            known = ", ".join(str(number) for number in sorted(self._lines))
            raise Refused(f"there is no line {offset}; this chassis has {known}")
        return line

    def _let_go(self, line: _Line, cause: Cause) -> None:
        holder, line.holder = line.holder, None
        was, line.direction = line.direction, "in"
        if was == "out" and self.on_holder_death == "input" and holder is not None:
            self._move(line, line.spec.idle, cause, holder)

    def _move(self, line: _Line, level: Level, cause: Cause, who: Holder) -> None:
        if level == line.level:
            return
        line.level = level
        self._seq += 1
        edge = Recorded(self._seq, self.clock(), line.spec.offset, level, cause, who.name, who.pid)
        self._edges.append(edge)
        for listener in tuple(self.listeners):
            listener(edge)


class LineLog:
    """Appends every edge to a file, a JSON object a line; set aside at LOG_LIMIT."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def __call__(self, edge: Recorded) -> None:
        self._file.write(msgspec.json.encode(edge) + b"\n")
        if self._file.tell() > LOG_LIMIT:
            self._file.close()
            self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))
            self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()


class _Client(asyncio.Protocol):
    """One connection: requests in, replies and watched edges out. It is the token of the lines it holds."""

    def __init__(self, bank: LineBank, clients: set[_Client]) -> None:
        self._bank = bank
        self._clients = clients
        self._transport: asyncio.Transport | None = None
        self._pending = b""
        self._watched: set[int] = set()
        self._pid = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pid = _peer_pid(transport.get_extra_info("socket"))
        self._clients.add(self)
        self._bank.listeners.append(self._edge)

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.discard(self)
        self._bank.listeners.remove(self._edge)
        self._bank.holder_gone(self)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._pending += data
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            try:
                request = decode_request(line)
            except WireError as error:
                self._transport.write(encode(Reply(0, False, error=f"not a request: {error}")))
                self._transport.close()
                return
            self._transport.write(encode(self._answer(request)))
        if len(self._pending) > MESSAGE_LIMIT:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _answer(self, request: Request) -> Reply:
        try:
            return self._do(request)
        except Refused as refusal:
            return Reply(request.id, False, error=str(refusal))

    def _do(self, request: Request) -> Reply:
        bank = self._bank
        if request.op == "waveform":
            limit = min(request.limit, WAVEFORM_LIMIT)
            return Reply(request.id, True, edges=tuple(bank.waveform(request.line, request.since, limit)))
        if request.line is None:
            raise Refused(f"{request.op} needs a line")
        holder = Holder(self, request.consumer, self._pid)
        level = bank.level(request.line)
        match request.op:
            case "claim":
                if request.direction is None:
                    raise Refused("claim needs a direction, in or out")
                level = bank.claim(request.line, holder, request.direction, request.level)
            case "set":
                if request.level is None:
                    raise Refused("set needs a level, 0 or 1")
                level = bank.set(request.line, holder, request.level)
            case "release":
                level = bank.release(request.line, holder)
            case "watch":
                self._watched.add(request.line)
            case "unwatch":
                self._watched.discard(request.line)
        return Reply(request.id, True, level=level)

    def _edge(self, edge: Recorded) -> None:
        if edge.line not in self._watched or self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > BACKLOG_LIMIT:
            self._transport.abort()
            return
        self._transport.write(encode(Edge(edge.line, edge.level, edge.t_ns)))


def _peer_pid(sock: socket.socket) -> int:
    """The connecting process (SO_PEERCRED, unix(7)); 0 when it lives in a pid namespace we cannot see."""
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


class LineServer:
    """Serves a LineBank on a unix socket. `async with` it; leaving cuts every client off."""

    def __init__(self, bank: LineBank, path: Path) -> None:
        self._bank = bank
        self._path = path
        self._clients: set[_Client] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> LineServer:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(
                lambda: _Client(self._bank, self._clients), str(self._path)
            )
        except OSError as error:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"cannot serve lines on {self._path}: {error.strerror or error}",
                "choose a run directory with a short path (a unix socket's path holds 107 bytes)",
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            for client in tuple(self._clients):
                client.close()
            await self._server.wait_closed()
