"""The NBD protocol from the client's side: the handshake, requests, and one connection that carries them.

Fixed newstyle handshake with NBD_OPT_GO, simple replies. Source: the NBD protocol document, proto.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from enum import IntEnum
from struct import Struct
from typing import cast

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp.operation import Operation
from nicagent.storage.nvmetcp.wakeup import WakeUp

log = logging.getLogger(__name__)

RX_SIZE = 128 << 10  # bytes: replies; payloads land where they are wanted
LAND_DIRECTLY = 16 << 10  # bytes of a payload from which on it is received in place
OPTION_MAX = 64 << 10  # bytes of an option reply

NBDMAGIC, IHAVEOPT = 0x4E42444D41474943, 0x49484156454F5054
OPTION_REPLY_MAGIC, REQUEST_MAGIC, REPLY_MAGIC = 0x3E889045565A9, 0x25609513, 0x67446698
OPT_GO, INFO_EXPORT = 7, 0
REP_ACK, REP_INFO, REP_ERROR = 1, 3, 1 << 31

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES = 1, 2, 4, 8, 32, 64
CMD_FLAG_FUA, CMD_FLAG_NO_HOLE = 1, 2

GREETING = Struct(">QQH")
OPTION = Struct(">QII")
OPTION_REPLY = Struct(">QIII")
EXPORT_INFO = Struct(">HQH")
REQUEST = Struct(">IHHQQI")
REPLY = Struct(">IIQ")

NOTHING = memoryview(b"")


class Command(IntEnum):
    """Request types."""

    READ = 0
    WRITE = 1
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


class Request(Operation):
    """One request until its reply. `data` is the payload of a write, the destination of a read."""

    __slots__ = ("command", "data", "deadline", "flags", "length", "offset")

    def __init__(self, command: Command, flags: int, offset: int, length: int, data: memoryview) -> None:
        super().__init__()
        self.command = command
        self.flags = flags
        self.offset = offset
        self.length = length
        self.data = data
        self.deadline = 0.0  # loop time; 0 while a server is there

    def header(self, handle: int) -> bytes:
        """As sent."""
        return REQUEST.pack(REQUEST_MAGIC, self.flags, self.command, handle, self.offset, self.length)


class Link(asyncio.BufferedProtocol):
    """One connection in transmission phase."""

    def __init__(
        self,
        requests: Mapping[int, Request],
        over: Callable[[int, int], None],
        wake_up: WakeUp,
        handshake: asyncio.StreamWriter,
    ) -> None:
        """`requests` by handle; `over` is called with a handle and an errno, or 0, once its reply is here.

        `handshake` is what negotiated: from Python 3.12 on a StreamWriter that nobody holds closes its
        transport, which is ours now.
        """
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._over = over
        self._wake_up = wake_up
        self._handshake = handshake
        self._transport: asyncio.Transport | None = None
        self._rx = bytearray(RX_SIZE)
        self._view = memoryview(self._rx)
        self._header = self._view[: REPLY.size]
        self._have = 0
        self._handle = 0  # of the reply whose payload is coming
        self._rest: memoryview = NOTHING  # where its remaining bytes go

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.ended.done():
            self.ended.set_result(None)

    def send(self, parts: list[bytes | memoryview]) -> None:
        """Writes without a bound of its own: callers bound what is in flight."""
        if self._transport is not None:
            self._transport.write(b"".join(parts) if len(parts) > 1 else parts[0])

    def end(self) -> None:
        """Drops the connection."""
        if self._transport is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        if len(self._rest) >= LAND_DIRECTLY:
            return self._rest
        if not self._have and not self._rest:
            oldest = next(iter(self._requests.values()), None)
            if oldest is not None and oldest.command is Command.READ and oldest.length >= LAND_DIRECTLY:
                return self._header  # and no more, so that the payload lands where it is wanted
        return self._view[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        self._wake_up.begin()
        try:
            self._received(nbytes)
        except ConnectionError as error:
            log.error("the NBD server breaks the protocol: %s", error)
            self.end()
        finally:
            self._wake_up.end()

    def _received(self, nbytes: int) -> None:
        if len(self._rest) >= LAND_DIRECTLY:
            self._rest = self._rest[nbytes:]
            if not self._rest:
                self._over(self._handle, 0)
            return
        self._have += nbytes
        at = self._consume()
        if at < self._have:
            self._view[: self._have - at] = self._view[at : self._have]
        self._have -= at

    def _consume(self) -> int:
        """Takes the replies that are here; returns how many bytes they had."""
        at, have = 0, self._have
        while True:
            rest = self._rest
            if rest:
                part = min(len(rest), have - at)
                rest[:part] = self._view[at : at + part]
                at += part
                self._rest = rest[part:]
                if self._rest:
                    return at
                self._over(self._handle, 0)
            if have - at < REPLY.size:
                return at
            magic, number, handle = REPLY.unpack_from(self._rx, at)
            request = self._requests.get(handle)
            if magic != REPLY_MAGIC or request is None:
                raise ConnectionError(f"reply magic {magic:#x}, handle {handle}")
            at += REPLY.size
            if number == 0 and request.command is Command.READ:
                self._handle, self._rest = handle, request.data
            else:
                self._over(handle, number)


async def negotiate(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, export: str
) -> tuple[int, int]:
    """Fixed newstyle handshake; returns the export's size in bytes and its transmission flags."""
    magic, option_magic, flags = GREETING.unpack(await reader.readexactly(GREETING.size))
    if (magic, option_magic) != (NBDMAGIC, IHAVEOPT) or not flags & 1:
        raise NicagentError(Kind.INVALID, "the server does not speak fixed newstyle NBD")
    name = export.encode()
    request = len(name).to_bytes(4, "big") + name + bytes(2)  # no information requests
    writer.write((1 | flags & 2).to_bytes(4, "big") + OPTION.pack(IHAVEOPT, OPT_GO, len(request)) + request)
    found: tuple[int, int] | None = None
    while True:
        magic, _, kind, length = OPTION_REPLY.unpack(await reader.readexactly(OPTION_REPLY.size))
        if magic != OPTION_REPLY_MAGIC or length > OPTION_MAX:
            raise NicagentError(Kind.INVALID, "the NBD server answers options out of protocol")
        payload = await reader.readexactly(length)
        if kind == REP_ACK and found is not None:
            cast(asyncio.Transport, writer.transport).pause_reading()
            return found
        if kind & REP_ERROR:
            reason = payload.decode(errors="replace") or f"error {kind:#x}"
            raise NicagentError(Kind.NOT_FOUND, f"the NBD server refuses export {export!r}: {reason}")
        if kind == REP_INFO and len(payload) == EXPORT_INFO.size:
            information, size, transmission = EXPORT_INFO.unpack(payload)
            if information == INFO_EXPORT:
                found = size, transmission
