"""What lies behind the connections of a run: a driver, made afresh for each."""

from __future__ import annotations

from typing import Protocol

from hypervisor_shim.driver import Driver
from hypervisor_shim.memory import MemoryDriver

from .volumes import Filled

WITH_CONSOLE = (
    "<domain type='test'><name>test</name><uuid>6695eb01f6a4830479aa97f2502e193f</uuid><memory>1024</memory>"
    "<os><type>hvm</type></os><devices><disk type='file' device='disk'><source file='/x'/>"
    "<target dev='vda' bus='virtio'/></disk><interface type='network'><mac address='52:54:00:00:00:01'/>"
    "<source network='default'/></interface><serial type='pty'/></devices></domain>"
)


class World(Protocol):
    """`patience`: seconds that a call's work in threads and processes is waited for; after that it goes on
    beside the next call."""

    patience: float

    async def begin(self) -> Driver:
        """A driver in a state that is the same each time."""

    async def end(self) -> None:
        """Nothing is left of it."""

    def marks(self) -> object:
        """Compares equal as long as nothing was done to hosts and nothing was written."""


class InMemory:
    """The reference driver, with the domain `test` and `others`."""

    patience = 0.0

    def __init__(self, *others: str) -> None:
        self._documents = (WITH_CONSOLE, *others)

    async def begin(self) -> MemoryDriver:
        driver = MemoryDriver(self._documents)
        driver.storage = Filled(driver._publish)
        return driver

    async def end(self) -> None:
        """It is memory."""

    def marks(self) -> object:
        return None
