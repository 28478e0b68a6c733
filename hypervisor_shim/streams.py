"""Bytes (a console, a volume, a picture) carried by the serial of the call that opened it.

Outward, a read of the source becomes a packet and the next read waits until the client's socket has taken
it. Inward, what the source has not taken yet is counted, and past a limit the client's socket is not read.
So a stream holds a bounded number of bytes whichever side is slow. What is not stored may travel as a hole:
a length instead of zeros.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from hypervisor_shim.driver import Opened
from hypervisor_shim.driver.stream import Hole
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.frame import STREAM_DATA_MAX, Program, Status, Type, error_body, packet
from hypervisor_shim.xdr import HYPER, UINT, Record, XdrError

log = logging.getLogger(__name__)

INBOUND_MAX = 1024 * 1024  # bytes a source has not taken yet, before the socket is no longer read
PIECES_MAX = 1024  # packets, however small, likewise: a hole takes no bytes
STREAMS_MAX = 16  # open at once, per client
_HOLE = Record(HYPER, UINT)  # length, flags (none are known)


class Stream:
    """One open stream. `send` gives a packet to the socket, `drained` waits until it wants more, `held` is
    told when this stream begins (True) and ceases (False) to hold back the socket."""

    def __init__(
        self,
        procedure: int,
        serial: int,
        opened: Opened,
        *,
        send: Callable[[bytes], None],
        drained: Callable[[], Awaitable[None]],
        held: Callable[[bool], None],
    ) -> None:
        self.procedure = procedure
        self.serial = serial
        self._source = opened.stream
        self._skip = opened.skip
        self._send = send
        self._drained = drained
        self._held = held
        self._inbound: deque[bytes | Hole] = deque()
        self._inbound_size = 0
        self._holding = False
        self._finishing = False
        self._arrived = asyncio.Event()
        self._over = asyncio.Event()

    def receive(self, status: int, data: bytes) -> None:
        """A packet of this stream came in."""
        if self._over.is_set():
            return
        if status == Status.CONTINUE:
            if data:  # an empty one is the client's end of file: nothing more to write, reading goes on
                self._take(data, len(data))
        elif status == Status.OK:  # finished; the echo says that all of it has arrived
            self._finishing = True
            self._arrived.set()
        else:  # aborted; the client waits for the echo of that too
            self._answer(Status.OK)
            self._over.set()

    def receive_hole(self, body: bytes) -> None:
        """A hole came in."""
        if self._over.is_set():
            return
        try:
            (length, flags), _ = _HOLE.read(body, 0, len(body))
        except XdrError:
            length, flags = -1, 0
        if self._skip is None:
            detail = "Holes are not supported with this stream"
            self._fail(error(Code.OPERATION_FAILED, detail, origin=Origin.STREAMS))
        elif length < 0 or flags:
            self._fail(error(Code.INVALID_ARG, f"a hole of {length} bytes", origin=Origin.STREAMS))
        else:
            self._take(Hole(length), 0)

    def _take(self, piece: bytes | Hole, size: int) -> None:
        self._inbound.append(piece)
        self._inbound_size += size
        self._arrived.set()
        self._hold(self._full())

    def _full(self) -> bool:
        return self._inbound_size > INBOUND_MAX or len(self._inbound) > PIECES_MAX

    def abandon(self) -> None:
        """The client is gone: `run` ends, and closes the source, without a word."""
        self._over.set()

    async def run(self) -> None:
        """Carry bytes both ways until the client finishes or aborts, or the source fails. Closes it."""
        carriers = [asyncio.create_task(self._outward()), asyncio.create_task(self._inward())]
        over = asyncio.create_task(self._over.wait())
        try:
            pending = {over, *carriers}
            while not self._over.is_set():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for failed in [task for task in done if not task.cancelled() and task.exception()]:
                    self._fail(failed.exception())
        finally:
            self._over.set()
            self._hold(False)
            for task in (over, *carriers):
                task.cancel()
            try:
                await asyncio.gather(over, *carriers, return_exceptions=True)
            finally:
                await self._source.close()

    def _fail(self, cause: BaseException | None) -> None:
        if not isinstance(cause, LibvirtError):
            log.error("a stream failed", exc_info=cause)
            detail = "the stream failed; see the server's log"
            cause = error(Code.INTERNAL_ERROR, detail, origin=Origin.STREAMS)
        self._answer(Status.ERROR, error_body(cause))
        self._over.set()

    async def _outward(self) -> None:
        while piece := await self._source.read(STREAM_DATA_MAX):
            if isinstance(piece, Hole):
                out: list[bytes] = []
                _HOLE.write((piece.length, 0), out)
                self._answer(Status.CONTINUE, b"".join(out), Type.STREAM_HOLE)
            else:
                self._answer(Status.CONTINUE, piece)
            await self._drained()
        self._answer(Status.CONTINUE)  # end of file; the client will finish

    async def _inward(self) -> None:
        while True:
            await self._arrived.wait()
            while self._inbound:
                piece = self._inbound.popleft()
                if isinstance(piece, Hole):
                    assert self._skip is not None
                    await self._skip(piece.length)
                else:
                    await self._source.write(piece)
                    self._inbound_size -= len(piece)
                self._hold(self._full())
            self._arrived.clear()
            if self._finishing:
                await self._source.finish()
                self._answer(Status.OK)
                self._over.set()
                return

    def _hold(self, holding: bool) -> None:
        if holding != self._holding:
            self._holding = holding
            self._held(holding)

    def _answer(self, status: Status, body: bytes = b"", type: Type = Type.STREAM) -> None:
        self._send(packet(Program.REMOTE, 1, self.procedure, type, self.serial, status, body))
