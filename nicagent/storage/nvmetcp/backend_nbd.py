"""A disk behind an NBD export on a unix socket: qcow2, RBD and LUKS by way of qemu-storage-daemon.

Fixed newstyle handshake with NBD_OPT_GO, simple replies, any number of requests in flight. When the server
goes away, requests are held and sent again once it is back: doing one twice has the same effect. After `hold`
seconds without a server they end with ETIMEDOUT. Source: the NBD protocol document, proto.md.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import cast

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp.backend import Backend, BackendError

log = logging.getLogger(__name__)

RX_SIZE = 64 << 10  # bytes: replies; payloads land where they are wanted
LAND_DIRECTLY = 16 << 10  # bytes of a payload from which on it is received in place
OPEN_TIMEOUT = 10.0  # seconds until a server must answer when a namespace is opened
HANDSHAKE_TIMEOUT = 5.0  # seconds
RETRY_DELAY = 0.2  # seconds between attempts to reach a server that went away
TRIM_MAX = 1 << 30  # bytes of one request without payload: its length has 32 bits
WRITE_MAX = 1 << 20  # bytes of zeroes written at a time to a server that cannot WRITE_ZEROES
OPTION_MAX = 64 << 10  # bytes of an option reply
HELD_MAX = 4096  # requests in flight and held together

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


class Command(IntEnum):
    """Request types."""

    READ = 0
    WRITE = 1
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


@dataclass(slots=True)
class Request:
    """One request until its reply. `data` is the payload of a write, the destination of a read."""

    command: Command
    flags: int
    offset: int
    length: int
    future: asyncio.Future[None]
    data: memoryview
    deadline: float = 0.0  # loop time; 0 while a server is there

    def header(self, handle: int) -> bytes:
        """As sent."""
        return REQUEST.pack(REQUEST_MAGIC, self.flags, self.command, handle, self.offset, self.length)


class NbdBackend(Backend):
    """See `Backend`."""

    discard_reads_zero = False  # TRIM is a hint

    def __init__(self, path: str, export: str, *, readonly: bool, block_size: int, hold: float) -> None:
        self.path = path
        self.export = export
        self.size = 0
        self._readonly = readonly
        self._block_size = block_size
        self._hold = hold
        self._flags = 0
        self._requests: dict[int, Request] = {}  # by handle, in order of arrival
        self._next_handle = 1
        self._outgoing: list[bytes | memoryview] = []
        self._link: _Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._settled.set()
        self._abandoned: set[int] = set()  # handles of cancelled requests the server may still be doing
        self._closed = False

    @property
    def _where(self) -> str:
        return f"NBD export {self.export!r} at {self.path}"

    # Life --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        first = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(first))
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await asyncio.shield(first)
        except TimeoutError:
            await self.close()
            raise NicagentError(
                Kind.UNAVAILABLE, f"{self._where} does not answer", "is its qemu-storage-daemon running?"
            ) from None
        except NicagentError:
            await self.close()
            raise

    async def close(self) -> None:
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._link is not None:
            self._link.end()
            self._link = None
        for handle in list(self._requests):
            self._finish(handle, BackendError(errno.ESHUTDOWN, f"{self._where} is closed"))

    async def _keep(self, first: asyncio.Future[None]) -> None:
        """Connects, and connects again whenever the server went away."""
        said = False
        while True:
            try:
                async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                    link = await self._connect()
            except (OSError, TimeoutError, EOFError) as error:
                if not said:
                    log.warning("%s: %s; waiting for it", self._where, error or "no answer")
                    said = True
                self._expire()
                await asyncio.sleep(RETRY_DELAY)
                continue
            except NicagentError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                log.warning("%s", error)
                self._expire()
                await asyncio.sleep(RETRY_DELAY)
                continue
            said = False
            if not first.done():
                first.set_result(None)
            elif self._requests:
                log.info("%s is back, %d requests go on", self._where, len(self._requests))
            self._link = link
            self._send_again()
            await link.ended
            self._link = None
            self._lost()

    async def _connect(self) -> _Link:
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            size, flags = await _negotiate(reader, writer, self.export)
            if flags & READ_ONLY and not self._readonly:
                raise NicagentError(
                    Kind.INVALID, f"{self._where} is read-only", "export it writable or set `readonly`"
                )
            if size == 0 or size % self._block_size or (self.size and size < self.size):
                raise NicagentError(
                    Kind.INVALID, f"{self._where} has an unusable size of {size} bytes", "see its image"
                )
            self.size = self.size or size
            self._flags = flags
            link = _Link(self)
            # The handshake leaves nothing in the reader: a server sends no byte before the first request.
            transport = cast(asyncio.Transport, writer.transport)
            transport.set_protocol(link)
            link.connection_made(transport)
            transport.resume_reading()
        except BaseException:
            writer.close()
            raise
        return link

    # Requests ----------------------------------------------------------------------------------------------

    def read(self, offset: int, into: memoryview) -> asyncio.Future[None]:
        return self._submit(Command.READ, 0, offset, len(into), into)

    def write(self, offset: int, data: memoryview, *, durable: bool) -> asyncio.Future[None]:
        if durable and not self._flags & SEND_FUA:
            return self._then_flush(self.write(offset, data, durable=False))
        return self._submit(Command.WRITE, CMD_FLAG_FUA if durable else 0, offset, len(data), data)

    def write_zeroes(
        self, offset: int, length: int, *, may_unmap: bool, durable: bool
    ) -> asyncio.Future[None]:
        if not self._flags & SEND_WRITE_ZEROES:
            zeroes = memoryview(bytes(min(length, WRITE_MAX)))
            return self._in_parts(
                offset, length, WRITE_MAX, lambda at, part: self.write(at, zeroes[:part], durable=durable)
            )
        if durable and not self._flags & SEND_FUA:
            return self._then_flush(self.write_zeroes(offset, length, may_unmap=may_unmap, durable=False))
        flags = (0 if may_unmap else CMD_FLAG_NO_HOLE) | (CMD_FLAG_FUA if durable else 0)
        return self._submit(Command.WRITE_ZEROES, flags, offset, length, _NOTHING)

    def discard(self, offset: int, length: int) -> asyncio.Future[None]:
        if not self._flags & SEND_TRIM:
            return _done()
        return self._in_parts(
            offset, length, TRIM_MAX, lambda at, part: self._submit(Command.TRIM, 0, at, part, _NOTHING)
        )

    def flush(self) -> asyncio.Future[None]:
        if not self._flags & SEND_FLUSH:
            return _done()
        return self._submit(Command.FLUSH, 0, 0, 0, _NOTHING)

    async def settled(self) -> None:
        await self._settled.wait()

    def _in_parts(
        self, offset: int, length: int, limit: int, do: Callable[[int, int], asyncio.Future[None]]
    ) -> asyncio.Future[None]:
        if length <= limit:
            return do(offset, length)

        async def parts() -> None:
            for at in range(offset, offset + length, limit):
                await do(at, min(limit, offset + length - at))

        return asyncio.ensure_future(parts())

    def _then_flush(self, first: asyncio.Future[None]) -> asyncio.Future[None]:
        async def both() -> None:
            await first
            await self.flush()

        return asyncio.ensure_future(both())

    def _submit(
        self, command: Command, flags: int, offset: int, length: int, data: memoryview
    ) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._closed or len(self._requests) >= HELD_MAX:
            number = errno.ESHUTDOWN if self._closed else errno.ETIMEDOUT
            future.set_exception(BackendError(number, f"{self._where} takes no more requests"))
            return future
        request = Request(command, flags, offset, length, future, data)
        handle = self._next_handle
        self._next_handle += 1
        self._requests[handle] = request
        future.add_done_callback(lambda ended: self._cancelled(handle) if ended.cancelled() else None)
        if self._link is None:
            request.deadline = loop.time() + self._hold
        else:
            self._send(handle, request)
        return future

    def _send(self, handle: int, request: Request) -> None:
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._push)
        self._outgoing.append(request.header(handle))
        if request.command is Command.WRITE:
            self._outgoing.append(request.data)

    def _push(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._link is not None and outgoing:
            self._link.send(outgoing)

    def _finish(self, handle: int, error: BackendError | None) -> None:
        request = self._requests.pop(handle, None)
        if request is None:
            return
        if handle in self._abandoned:
            self._abandoned.discard(handle)
            if not self._abandoned:
                self._settled.set()
        if request.future.done():
            return
        if error is None:
            request.future.set_result(None)
        else:
            request.future.set_exception(error)

    def _cancelled(self, handle: int) -> None:
        """Nobody waits: forget it if the server has not got it, else remember that it may still happen."""
        request = self._requests.get(handle)
        if request is None:
            return
        if self._link is None:
            del self._requests[handle]
        else:
            self._abandoned.add(handle)
            self._settled.clear()

    def _lost(self) -> None:
        """The server went away: what nobody waits for is dropped, the rest gets its deadline."""
        log.warning("%s went away with %d requests in flight", self._where, len(self._requests))
        self._outgoing.clear()
        deadline = asyncio.get_running_loop().time() + self._hold
        for handle, request in list(self._requests.items()):
            if request.future.done():
                del self._requests[handle]
            else:
                request.deadline = deadline
        self._abandoned.clear()
        self._settled.set()

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        for handle, request in list(self._requests.items()):
            if request.deadline and now >= request.deadline:
                self._finish(handle, BackendError(errno.ETIMEDOUT, f"{self._where} stayed away"))

    def _send_again(self) -> None:
        for handle, request in list(self._requests.items()):
            request.deadline = 0.0
            self._send(handle, request)

    # For the link ------------------------------------------------------------------------------------------

    def replied(self, handle: int, number: int) -> memoryview | None:
        """A reply header came. Returns where a payload goes that follows it; ends the request otherwise."""
        request = self._requests.get(handle)
        if request is None:
            raise ConnectionError(f"reply to unknown handle {handle}")
        if number:
            self._finish(handle, BackendError(number, f"{self._where}: error {number}"))
        elif request.command is Command.READ:
            return request.data
        else:
            self._finish(handle, None)
        return None

    def delivered(self, handle: int) -> None:
        """A read's payload is complete."""
        self._finish(handle, None)


_NOTHING = memoryview(b"")


def _done() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


class _Link(asyncio.BufferedProtocol):
    """One connection in transmission phase."""

    def __init__(self, backend: NbdBackend) -> None:
        self._backend = backend
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rx = bytearray(RX_SIZE)
        self._view = memoryview(self._rx)
        self._have = 0
        self._handle = 0  # of the reply whose payload is coming
        self._rest: memoryview = _NOTHING  # where its remaining bytes go

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.ended.done():
            self.ended.set_result(None)

    def send(self, parts: list[bytes | memoryview]) -> None:
        """Writes without a bound of its own: callers bound what is in flight."""
        if self._transport is not None:
            self._transport.write(b"".join(parts))

    def end(self) -> None:
        """Drops the connection."""
        if self._transport is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._rest if len(self._rest) >= LAND_DIRECTLY else self._view[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        if len(self._rest) >= LAND_DIRECTLY:
            self._rest = self._rest[nbytes:]
            if not self._rest:
                self._backend.delivered(self._handle)
            return
        self._have += nbytes
        try:
            at = self._consume()
        except ConnectionError as error:
            log.error("the NBD server breaks the protocol: %s", error)
            self.end()
            return
        self._view[: self._have - at] = self._view[at : self._have]
        self._have -= at

    def _consume(self) -> int:
        at, have = 0, self._have
        while True:
            if self._rest:
                part = min(len(self._rest), have - at)
                self._rest[:part] = self._view[at : at + part]
                self._rest = self._rest[part:]
                at += part
                if self._rest:
                    return at
                self._backend.delivered(self._handle)
            if have - at < REPLY.size:
                return at
            magic, number, self._handle = REPLY.unpack_from(self._rx, at)
            if magic != REPLY_MAGIC:
                raise ConnectionError(f"reply magic {magic:#x}")
            at += REPLY.size
            self._rest = self._backend.replied(self._handle, number) or _NOTHING


async def _negotiate(
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
