"""Limits of disks in memory; there are no bytes behind them to work on, so all else is refused."""

from __future__ import annotations

from hypervisor_shim.driver import Caller, Impact
from hypervisor_shim.driver.block import Block, IoTune
from hypervisor_shim.memory.devices import Find
from hypervisor_shim.xml.device import disk_named, with_limits


class MemoryBlock(Block):
    """`find` gives the domain by its UUID or raises NO_DOMAIN."""

    def __init__(self, find: Find) -> None:
        self._find = find

    def io_tune(self, uuid: bytes, disk: str | None, impact: Impact) -> IoTune:
        domain = self._find(uuid)
        definition = domain.live if impact & Impact.LIVE else domain.config
        assert definition is not None
        return {} if disk is None else disk_named(definition, disk).iotune

    async def set_io_tune(
        self, caller: Caller, uuid: bytes, disk: str, given: IoTune, impact: Impact
    ) -> None:
        domain = self._find(uuid)
        config, live = domain.config, domain.live
        if impact & Impact.CONFIG and config is not None:
            known = disk_named(config, disk)
            config = with_limits(config, known.target, {**known.iotune, **given})
        if impact & Impact.LIVE and live is not None:
            known = disk_named(live, disk)
            live = with_limits(live, known.target, {**known.iotune, **given})
        domain.config, domain.live = config, live
