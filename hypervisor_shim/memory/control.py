"""Suspending, renaming, typing at and looking at domains in memory, as the test driver does."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hypervisor_shim.driver.control import Control, Screenshot
from hypervisor_shim.driver.facts import Caller, Lifecycle, RunningReason, State
from hypervisor_shim.driver.stream import Whole
from hypervisor_shim.errors import Code, error, no_domain
from hypervisor_shim.xml.domain_change import with_name

if TYPE_CHECKING:
    from hypervisor_shim.memory.domains import MemoryDriver

_PAUSED_BY_USER = 1


class MemoryControl(Control):
    def __init__(self, driver: MemoryDriver) -> None:
        self._driver = driver

    def _state(self, uuid: bytes) -> tuple[str, State]:
        info = self._driver.domain(uuid)
        if info is None:
            raise no_domain(uuid)
        return info.name, info.state

    async def suspend(self, caller: Caller, uuid: bytes) -> None:
        name, state = self._state(uuid)
        if state is not State.RUNNING:
            raise error(Code.INTERNAL_ERROR, f"domain '{name}' not running")
        self._driver.change_state(uuid, State.PAUSED, _PAUSED_BY_USER, Lifecycle.SUSPENDED)

    async def resume(self, caller: Caller, uuid: bytes) -> None:
        name, state = self._state(uuid)
        if state is not State.PAUSED:
            raise error(Code.INTERNAL_ERROR, f"domain '{name}' not paused")
        self._driver.change_state(uuid, State.RUNNING, RunningReason.UNPAUSED, Lifecycle.RESUMED)

    async def rename(self, caller: Caller, uuid: bytes, name: str) -> None:
        self._driver.rename(uuid, with_name(self._driver.described(uuid, inactive=True), name))

    async def send_keys(
        self, caller: Caller, uuid: bytes, codeset: int, hold_ms: int, keys: Sequence[int]
    ) -> None:
        """Nobody is there to read them."""

    async def send_signal(self, caller: Caller, uuid: bytes, pid: int, signal: int) -> None:
        if pid != 1:
            raise error(Code.INVALID_ARG, "only sending a signal to pid 1 is supported")

    async def screenshot(self, caller: Caller, uuid: bytes, screen: int) -> Screenshot:
        return Screenshot("image/png", Whole(picture(640, 480)))

    async def set_lifecycle_action(self, caller: Caller, uuid: bytes, event: int, action: int) -> None:
        """Nothing ever happens to a domain in memory by itself."""


def picture(width: int, height: int) -> bytes:
    """A PNG (RFC 2083) of a grey gradient."""
    rows = b"".join(b"\0" + bytes(255 * x // width for x in range(width)) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
