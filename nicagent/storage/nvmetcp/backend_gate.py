"""A back end that makes operations wait, while another one before it comes to rest.

When a namespace's bytes are to be reached another way (a file directly, or through the block engine), writes
that are still on the first way must land before anything takes the second: an engine that copies a cluster
would else copy it without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nicagent.storage.nvmetcp.backend import Backend
from nicagent.storage.nvmetcp.operation import Operation, running


class GateBackend(Backend):
    """Passes everything on to `inner`, once it is open."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.size = inner.size
        self.discard_reads_zero = inner.discard_reads_zero
        self._opened = asyncio.Event()

    def lift(self) -> None:
        """Let what waits go on."""
        self._opened.set()

    async def open(self) -> None:
        """The inner one is open."""

    async def close(self) -> None:
        self.lift()
        await self.inner.close()

    def read(self, offset: int, into: memoryview) -> Operation:
        return self._later(lambda: self.inner.read(offset, into))

    def write(self, offset: int, data: memoryview, *, durable: bool) -> Operation:
        return self._later(lambda: self.inner.write(offset, data, durable=durable))

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool, durable: bool) -> Operation:
        return self._later(
            lambda: self.inner.write_zeroes(offset, length, may_unmap=may_unmap, durable=durable)
        )

    def discard(self, offset: int, length: int) -> Operation:
        return self._later(lambda: self.inner.discard(offset, length))

    def flush(self) -> Operation:
        return self._later(self.inner.flush)

    async def settled(self) -> None:
        await self._opened.wait()
        await self.inner.settled()

    def _later(self, begin: Callable[[], Operation]) -> Operation:
        async def waited() -> None:
            await self._opened.wait()
            await begin()

        return running(waited())
