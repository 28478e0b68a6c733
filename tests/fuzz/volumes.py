"""Pools in memory whose volumes also have content: what streams carry, holes included."""

from __future__ import annotations

import asyncio

from hypervisor_shim.driver import Caller, Opened
from hypervisor_shim.driver.storage import VolumeRef
from hypervisor_shim.driver.stream import Hole, Whole
from hypervisor_shim.errors import Code, error
from hypervisor_shim.memory.storage import MemoryStorage

SIZE = 300_000  # bytes of content of every volume


class Taking:
    """Takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._closed = asyncio.Event()

    async def read(self, limit: int) -> bytes:
        await self._closed.wait()
        return b""

    async def write(self, data: bytes) -> None:
        await self.skip(len(data))

    async def skip(self, length: int) -> None:
        """A hole of so many bytes."""
        if length > self._room:
            raise error(Code.OPERATION_FAILED, "more than the volume holds")
        self._room -= length
        await asyncio.sleep(0)

    async def finish(self) -> None:
        """All of it has arrived."""

    async def close(self) -> None:
        self._closed.set()


class Holey(Whole):
    """Every other piece is a hole."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._hole = False

    async def read(self, limit: int) -> bytes | Hole:  # type: ignore[override]
        self._hole = not self._hole
        data = await super().read(min(limit, 10_000))
        return Hole(len(data)) if data and self._hole else data


class Filled(MemoryStorage):
    async def upload(
        self, caller: Caller, volume: VolumeRef, offset: int, length: int, *, sparse: bool
    ) -> Opened:
        taking = Taking(max(min(SIZE - offset, length or SIZE), 0))
        return Opened(taking, skip=taking.skip if sparse else None)

    async def download(
        self, caller: Caller, volume: VolumeRef, offset: int, length: int, *, sparse: bool
    ) -> Opened:
        content = bytes(max(min(SIZE - offset, length or SIZE), 0))
        return Opened(Holey(content) if sparse else Whole(content))
