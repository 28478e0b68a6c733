"""Devices of domains in memory: definitions change, and that is all there is to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from hypervisor_shim.driver import Caller, DeviceAddedEvent, DeviceRemovedEvent, DomainInfo, Event, Impact
from hypervisor_shim.driver.devices import Devices
from hypervisor_shim.errors import Code, error
from hypervisor_shim.xml.bandwidth import interface_named, merged, with_bandwidth
from hypervisor_shim.xml.device import (
    alias_of,
    device_by_alias,
    with_device,
    with_update,
    without_device,
)
from hypervisor_shim.xml.domain_def import Bandwidth, Device, DomainDef


class Holder(Protocol):
    """What the families of the memory driver need of a domain of it."""

    info: DomainInfo
    config: DomainDef | None
    live: DomainDef | None


Find = Callable[[bytes], Holder]
Publish = Callable[[Event], None]


class MemoryDevices(Devices):
    """`find` gives the domain by its UUID or raises NO_DOMAIN."""

    def __init__(self, find: Find, publish: Publish) -> None:
        self._find = find
        self._publish = publish

    async def attach(self, caller: Caller, uuid: bytes, device: Device, impact: Impact) -> None:
        domain = self._apply(uuid, impact, lambda known, live: with_device(known, device, live=live))
        if impact & Impact.LIVE and domain.live is not None:
            self._publish(DeviceAddedEvent(domain.info, alias_of(domain.live, device)))

    async def detach(self, caller: Caller, uuid: bytes, device: Device, impact: Impact) -> None:
        before = self._find(uuid).live
        domain = self._apply(uuid, impact, lambda known, live: without_device(known, device, live=live))
        if impact & Impact.LIVE and before is not None:
            self._publish(DeviceRemovedEvent(domain.info, alias_of(before, device)))

    async def update(self, caller: Caller, uuid: bytes, device: Device, impact: Impact) -> None:
        self._apply(uuid, impact, lambda known, live: with_update(known, device, live=live))

    async def detach_alias(self, caller: Caller, uuid: bytes, alias: str, impact: Impact) -> None:
        domain = self._find(uuid)
        if impact & Impact.CONFIG:
            raise error(Code.OPERATION_UNSUPPORTED, "only a running domain's devices have aliases")
        assert domain.live is not None
        await self.detach(caller, uuid, device_by_alias(domain.live, alias), impact)

    def bandwidth(self, uuid: bytes, interface: str, impact: Impact) -> Bandwidth:
        domain = self._find(uuid)
        definition = domain.live if impact & Impact.LIVE else domain.config
        assert definition is not None
        return interface_named(definition, interface, {}).bandwidth

    async def set_bandwidth(
        self, caller: Caller, uuid: bytes, interface: str, given: Mapping[str, int], impact: Impact
    ) -> None:
        def changed(known: DomainDef, live: bool) -> DomainDef:
            one = interface_named(known, interface, {})
            return with_bandwidth(known, one.mac, merged(one.bandwidth, given))

        self._apply(uuid, impact, changed)

    def _apply(self, uuid: bytes, impact: Impact, change: Callable[[DomainDef, bool], DomainDef]) -> Holder:
        """All that is asked, or an error and nothing."""
        domain = self._find(uuid)
        config, live = domain.config, domain.live
        if impact & Impact.CONFIG and config is not None:
            config = change(config, False)
        if impact & Impact.LIVE and live is not None:
            live = change(live, True)
        domain.config, domain.live = config, live
        return domain
