"""The guests of domains in memory: as cooperative, and as made up, as the test driver's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.driver.guest import Address, AddressSource, FileSystem, Guest, GuestInterface
from hypervisor_shim.errors import no_domain

if TYPE_CHECKING:
    from hypervisor_shim.memory.domains import MemoryDriver

_MOUNTPOINTS = ("/", "/boot")


class MemoryGuest(Guest):
    def __init__(self, driver: MemoryDriver) -> None:
        self._driver = driver
        self._frozen: dict[bytes, set[str]] = {}
        self._clocks: dict[bytes, tuple[int, int]] = {}

    async def hostname(self, uuid: bytes, source: AddressSource) -> str:
        info = self._driver.domain(uuid)
        if info is None:
            raise no_domain(uuid)
        return f"{info.name}host"

    async def time(self, uuid: bytes) -> tuple[int, int]:
        """Of this machine, until it is set; then it stands still."""
        return self._clocks.get(uuid) or divmod(time.time_ns(), 1_000_000_000)

    async def set_time(self, caller: Caller, uuid: bytes, time: tuple[int, int] | None) -> None:
        if time is None:
            self._clocks.pop(uuid, None)
        else:
            self._clocks[uuid] = time

    async def file_systems(self, uuid: bytes) -> Sequence[FileSystem]:
        disks = self._driver.described(uuid).disks
        if not disks:
            return []
        target = disks[0].target
        return [
            FileSystem(mountpoint, f"{target}{number}", "ext4", (target,))
            for number, mountpoint in enumerate(_MOUNTPOINTS, 1)
        ]

    async def freeze(self, caller: Caller, uuid: bytes, mountpoints: Sequence[str]) -> int:
        frozen = self._frozen.setdefault(uuid, set())
        more = set(mountpoints or _MOUNTPOINTS) & set(_MOUNTPOINTS) - frozen
        frozen |= more
        return len(more)

    async def thaw(self, caller: Caller, uuid: bytes, mountpoints: Sequence[str]) -> int:
        frozen = self._frozen.setdefault(uuid, set())
        thawed = set(mountpoints or _MOUNTPOINTS) & frozen
        frozen -= thawed
        return len(thawed)

    async def trim(self, caller: Caller, uuid: bytes, mountpoint: str | None, minimum: int) -> None:
        """There is nothing to give back."""

    async def addresses(self, uuid: bytes, source: AddressSource) -> Sequence[GuestInterface]:
        """The first is .23 of the network `default`, and so on."""
        return [
            GuestInterface(
                each.target or f"net{number}", each.mac, (Address(0, f"192.168.122.{23 + number}", 24),)
            )
            for number, each in enumerate(self._driver.described(uuid).interfaces)
        ]

    async def set_password(
        self, caller: Caller, uuid: bytes, user: str, password: str, encrypted: bool
    ) -> None:
        """Whoever logs in to a domain in memory."""
