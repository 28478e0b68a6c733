"""A disk behind an NBD export on a unix socket: qcow2, RBD and LUKS by way of qemu-storage-daemon.

Any number of requests are in flight. When the server goes away, they are held and sent again once it is back:
doing one twice has the same effect. After `hold` seconds without a server they end with ETIMEDOUT.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable
from typing import cast

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp import nbd
from nicagent.storage.nvmetcp.backend import DRAIN_SECONDS, Backend, BackendError
from nicagent.storage.nvmetcp.nbd import NOTHING, Command, Link, Request
from nicagent.storage.nvmetcp.operation import Operation, ended, running
from nicagent.storage.nvmetcp.wakeup import WakeUp

log = logging.getLogger(__name__)

OPEN_TIMEOUT = 10.0  # seconds until a server must answer when a namespace is opened
HANDSHAKE_TIMEOUT = 5.0  # seconds
RETRY_DELAY = 0.2  # seconds between attempts to reach a server that went away
TRIM_MAX = 1 << 30  # bytes of one request without payload: its length has 32 bits
WRITE_MAX = 1 << 20  # bytes of zeroes written at a time to a server that cannot WRITE_ZEROES
HELD_MAX = 4096  # requests in flight and held together


class NbdBackend(Backend):
    """See `Backend`."""

    discard_reads_zero = False  # TRIM is a hint

    def __init__(
        self, path: str, export: str, *, readonly: bool, block_size: int, hold: float, wake_up: WakeUp
    ) -> None:
        self.path = path
        self.export = export
        self.size = 0
        self._readonly = readonly
        self._block_size = block_size
        self._hold = hold
        self._wake_up = wake_up
        self._flags = 0
        self._requests: dict[int, Request] = {}  # by handle, in order of arrival
        self._next_handle = 1
        self._outgoing: list[bytes | memoryview] = []
        self._link: Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._news = asyncio.Event()  # set when a request is over that somebody may wait for
        self._draining = False
        self._linked = asyncio.Event()  # a server is there
        self._shown = 0  # bytes, by the server's last word
        self._closed = False
        self._loop = asyncio.get_running_loop()

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
        requests = list(self._requests.values())
        self._requests.clear()
        for request in requests:
            request.end(BackendError(errno.ESHUTDOWN, f"{self._where} is closed"))
        self._news.set()

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
            self._linked.set()
            self._send_again()
            since = self._loop.time()
            await link.ended
            self._link = None
            self._linked.clear()
            self._lost()
            if self._loop.time() - since < RETRY_DELAY:  # a server that hangs up at once is not to be chased
                await asyncio.sleep(RETRY_DELAY)

    async def _connect(self) -> Link:
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            size, flags = await nbd.negotiate(reader, writer, self.export)
            if flags & nbd.READ_ONLY and not self._readonly:
                raise NicagentError(
                    Kind.INVALID, f"{self._where} is read-only", "export it writable or set `readonly`"
                )
            if size == 0 or size % self._block_size or (self.size and size < self.size):
                raise NicagentError(
                    Kind.INVALID, f"{self._where} has an unusable size of {size} bytes", "see its image"
                )
            self.size = self.size or size
            self._shown = size
            self._flags = flags
            link = Link(self._requests, self._over, self._wake_up, writer)
            # The handshake leaves nothing in the reader: a server sends no byte before the first request.
            transport = cast(asyncio.Transport, writer.transport)
            transport.set_protocol(link)
            link.connection_made(transport)
            transport.resume_reading()
        except BaseException:
            writer.close()
            raise
        return link

    async def refresh(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OPEN_TIMEOUT):
                await self._linked.wait()  # a size changes while the server has let go of the disk
        if self._shown == self.size or not self._shown:
            return False
        self.size = self._shown
        return True

    async def drained(self) -> None:
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._requests:
                    self._news.clear()
                    await self._news.wait()

    # Requests ----------------------------------------------------------------------------------------------

    def read(self, offset: int, into: memoryview) -> Operation:
        return self._submit(Command.READ, 0, offset, len(into), into)

    def write(self, offset: int, data: memoryview, *, durable: bool) -> Operation:
        if durable and not self._flags & nbd.SEND_FUA:
            return self._then_flush(self.write(offset, data, durable=False))
        return self._submit(Command.WRITE, nbd.CMD_FLAG_FUA if durable else 0, offset, len(data), data)

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool, durable: bool) -> Operation:
        if not self._flags & nbd.SEND_WRITE_ZEROES:
            zeroes = memoryview(bytes(min(length, WRITE_MAX)))
            return self._in_parts(
                offset, length, WRITE_MAX, lambda at, part: self.write(at, zeroes[:part], durable=durable)
            )
        if durable and not self._flags & nbd.SEND_FUA:
            return self._then_flush(self.write_zeroes(offset, length, may_unmap=may_unmap, durable=False))
        flags = (0 if may_unmap else nbd.CMD_FLAG_NO_HOLE) | (nbd.CMD_FLAG_FUA if durable else 0)
        return self._submit(Command.WRITE_ZEROES, flags, offset, length, NOTHING)

    def discard(self, offset: int, length: int) -> Operation:
        if not self._flags & nbd.SEND_TRIM:
            return ended()
        return self._in_parts(
            offset, length, TRIM_MAX, lambda at, part: self._submit(Command.TRIM, 0, at, part, NOTHING)
        )

    def flush(self) -> Operation:
        if not self._flags & nbd.SEND_FLUSH:
            return ended()
        return self._submit(Command.FLUSH, 0, 0, 0, NOTHING)

    async def settled(self) -> None:
        if self._link is None:
            self._drop_cancelled()
        while any(request.cancelled for request in self._requests.values()):
            self._news.clear()
            await self._news.wait()

    def _in_parts(
        self, offset: int, length: int, limit: int, do: Callable[[int, int], Operation]
    ) -> Operation:
        if length <= limit:
            return do(offset, length)

        async def parts() -> None:
            for at in range(offset, offset + length, limit):
                await do(at, min(limit, offset + length - at))

        return running(parts())

    def _then_flush(self, first: Operation) -> Operation:
        async def both() -> None:
            await first
            await self.flush()

        return running(both())

    def _submit(self, command: Command, flags: int, offset: int, length: int, data: memoryview) -> Operation:
        if self._closed or len(self._requests) >= HELD_MAX:
            number = errno.ESHUTDOWN if self._closed else errno.ETIMEDOUT
            return ended(BackendError(number, f"{self._where} takes no more requests"))
        request = Request(command, flags, offset, length, data)
        handle = self._next_handle
        self._next_handle += 1
        self._requests[handle] = request
        if self._link is None:
            request.deadline = self._loop.time() + self._hold
        else:
            self._send(handle, request)
        return request

    def _send(self, handle: int, request: Request) -> None:
        if not self._outgoing:
            self._wake_up.at_end(self._push)
        self._outgoing.append(request.header(handle))
        if request.command is Command.WRITE:
            self._outgoing.append(request.data)

    def _push(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._link is not None and outgoing:
            self._link.send(outgoing)

    def _over(self, handle: int, number: int) -> None:
        """The server has replied, with an errno or 0."""
        request = self._requests.pop(handle)
        if request.cancelled or self._draining:
            self._news.set()
        request.end(BackendError(number, f"{self._where}: error {number}") if number else None)

    # Without a server --------------------------------------------------------------------------------------

    def _lost(self) -> None:
        """The server went away: what nobody waits for is dropped, the rest gets its deadline."""
        log.warning("%s went away with %d requests in flight", self._where, len(self._requests))
        self._outgoing.clear()
        self._drop_cancelled()
        deadline = self._loop.time() + self._hold
        for request in self._requests.values():
            request.deadline = deadline

    def _drop_cancelled(self) -> None:
        """Forgets what nobody waits for; only while no server can have it."""
        for handle in [handle for handle, request in self._requests.items() if request.cancelled]:
            del self._requests[handle]
        self._news.set()

    def _expire(self) -> None:
        self._drop_cancelled()
        now = self._loop.time()
        for handle in [handle for handle, request in self._requests.items() if now >= request.deadline]:
            self._requests.pop(handle).end(BackendError(errno.ETIMEDOUT, f"{self._where} stayed away"))

    def _send_again(self) -> None:
        self._drop_cancelled()
        for handle, request in self._requests.items():
            request.deadline = 0.0
            self._send(handle, request)
