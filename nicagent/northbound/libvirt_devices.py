"""Disks and interfaces of metal that come and go: namespaces by AER, ports by netlink."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

from hypervisor_shim.driver import (
    Caller,
    DeviceAddedEvent,
    DeviceRemovalFailedEvent,
    DeviceRemovedEvent,
    Impact,
)
from hypervisor_shim.driver.devices import Devices
from hypervisor_shim.errors import Code, error, uuid_text
from hypervisor_shim.xml.bandwidth import interface_named, merged, with_bandwidth
from hypervisor_shim.xml.device import (
    alias_of,
    device_by_alias,
    parse_device,
    refuse_kind,
    with_device,
    with_update,
    without_device,
)
from hypervisor_shim.xml.domain_def import Bandwidth, Device, DomainDef, Interface
from hypervisor_shim.xml.write import write_element
from nicagent.errors import Kind, NicagentError, NotReleased
from nicagent.model import Cause, DisplayBinding, DomainStatus
from nicagent.northbound.libvirt_ground import Ground
from nicagent.northbound.libvirt_words import cause_of, translated

Edit = Callable[[DomainDef, Device, bool], DomainDef]


class MetalDevices(Devices):
    """What a NIC or a SmartNIC can plug into a server, or take out of it, while that runs."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def attach(self, caller: Caller, uuid: bytes, device: Device, impact: Impact) -> None:
        def edit(known: DomainDef, wanted: Device, live: bool) -> DomainDef:
            return with_device(known, wanted, live=live)

        async with self._ground.controller.devices.changing(uuid_text(uuid)):
            refuse_kind(device, "attach", live=bool(impact & Impact.LIVE))
            if impact & Impact.LIVE:
                edit(self._ground.live(uuid), device, True)  # what is wrong with it comes before what is full
                await self._check_pluggable(uuid, device, more=1)
            device = self._with_mac(uuid, device, impact)
            await self._change(caller, uuid, device, impact, edit, f"attach {device.kind} {device.name}")
            if impact & Impact.LIVE:
                alias = alias_of(self._ground.live(uuid), device)
                self._ground.publish(DeviceAddedEvent(self._ground.info(uuid), alias))

    async def detach(self, caller: Caller, uuid: bytes, device: Device, impact: Impact) -> None:
        def edit(known: DomainDef, gone: Device, live: bool) -> DomainDef:
            return without_device(known, gone, live=live)

        async with self._ground.controller.devices.changing(uuid_text(uuid)):
            refuse_kind(device, "detach", live=bool(impact & Impact.LIVE))
            alias = ""
            if impact & Impact.LIVE:
                alias = alias_of(self._ground.live(uuid), device)
                await self._check_pluggable(uuid, device)
            await self._change(caller, uuid, device, impact, edit, f"detach {device.kind} {device.name}")
            if impact & Impact.LIVE:
                self._ground.publish(DeviceRemovedEvent(self._ground.info(uuid), alias))

    async def update(self, caller: Caller, uuid: bytes, device: Device, impact: Impact) -> None:
        def edit(known: DomainDef, wanted: Device, live: bool) -> DomainDef:
            if live and wanted.kind == "graphics":
                _check_place(self._ground.status(uuid).display, wanted)
            changed = with_update(known, wanted, live=live)
            if live and changed.disks != known.disks and not _medium_moves(known, wanted):
                raise error(
                    Code.OPERATION_UNSUPPORTED,
                    f"disk {wanted.name} of a running server cannot become another one; detach it, or eject "
                    "a CD, and attach the other, or change its limits with blkdeviotune",
                )
            return changed

        async with self._ground.controller.devices.changing(uuid_text(uuid)):
            if impact & Impact.LIVE and _medium_moves(self._ground.live(uuid), device):
                out = device.disk is not None and device.disk.empty
                await self._check_pluggable(uuid, device, more=0 if out else 1)
            await self._change(caller, uuid, device, impact, edit, f"update {device.kind} {device.name}")

    async def detach_alias(self, caller: Caller, uuid: bytes, alias: str, impact: Impact) -> None:
        if impact & Impact.CONFIG:
            raise error(Code.OPERATION_UNSUPPORTED, "only a running domain's devices have aliases")
        await self.detach(caller, uuid, device_by_alias(self._ground.live(uuid), alias), impact)

    def bandwidth(self, uuid: bytes, interface: str, impact: Impact) -> Bandwidth:
        return self._interface(uuid, interface, live=bool(impact & Impact.LIVE)).bandwidth

    async def set_bandwidth(
        self, caller: Caller, uuid: bytes, interface: str, given: Mapping[str, int], impact: Impact
    ) -> None:
        def edit(known: DomainDef, live: bool) -> DomainDef:
            one = self._interface(uuid, interface, live=live)
            return with_bandwidth(known, one.mac, merged(one.bandwidth, given))

        async with self._ground.controller.devices.changing(uuid_text(uuid)):
            with translated():
                await self._make(uuid, impact, edit, cause_of(caller, f"bandwidth of {interface}"))

    def _interface(self, uuid: bytes, name: str, *, live: bool) -> Interface:
        ground = self._ground
        if not live:
            return interface_named(ground.persistent(uuid), name, {})
        return interface_named(ground.live(uuid), name, ground.port_names(ground.status(uuid)))

    async def _change(
        self, caller: Caller, uuid: bytes, device: Device, impact: Impact, edit: Edit, why: str
    ) -> None:
        ground = self._ground
        with translated():
            try:
                await self._make(
                    *(uuid, impact, lambda known, live: edit(known, device, live), cause_of(caller, why))
                )
            except NotReleased:
                alias = alias_of(ground.live(uuid), device)
                ground.publish(DeviceRemovalFailedEvent(ground.info(uuid), alias))
                raise

    async def _make(
        self, uuid: bytes, impact: Impact, edit: Callable[[DomainDef, bool], DomainDef], cause: Cause
    ) -> None:
        """Of the run, of the definition, or of both what `edit` makes of them."""
        ground = self._ground
        config = edit(ground.persistent(uuid), False) if impact & Impact.CONFIG else None
        live = edit(ground.live(uuid), True) if impact & Impact.LIVE else None
        await ground.controller.devices.change(
            uuid_text(uuid),
            None if live is None else ground.to_domain(live),
            None if config is None else ground.to_domain(config),
            cause,
        )

    async def _check_pluggable(self, uuid: bytes, device: Device, *, more: int = 0) -> None:
        self._ground.running(uuid)
        if device.disk is None:
            return
        gone = () if more else (device.name,)
        try:
            await self._ground.controller.devices.check_pluggable(uuid_text(uuid), more=more, gone=gone)
        except NicagentError as e:
            code = Code.OPERATION_UNSUPPORTED if e.kind is Kind.UNSUPPORTED else Code.OPERATION_FAILED
            raise error(code, str(e)) from None

    def _with_mac(self, uuid: bytes, device: Device, impact: Impact) -> Device:
        """A NIC has the MAC that it has: one that the client left open is that of the first free NIC."""
        if not device.mac_made_up:
            return device
        ground = self._ground
        status = ground.status(uuid)
        used = set()
        if impact & Impact.CONFIG:
            used |= {each.mac for each in ground.persistent(uuid).interfaces}
        if impact & Impact.LIVE:
            used |= {each.mac for each in ground.live(uuid).interfaces}
        free = next((mac for mac in self._macs(status) if mac not in used), None)
        if free is None:
            where = status.host or status.domain.host
            lacks = f"host {where} has no NIC left" if where else "no host has a NIC left"
            raise error(Code.OPERATION_UNSUPPORTED, f"{lacks} for one more interface")
        element = deepcopy(device.element)
        mac = element.find("mac")
        assert mac is not None
        mac.set("address", free)
        return parse_device(write_element(element))

    def _macs(self, status: DomainStatus) -> list[str]:
        """The MACs of the NICs that the domain may have: of its host, else of the one that it is pinned to or
        has addresses of, else of the one with the most.
        """
        hosts = self._ground.config.hosts
        host = status.host or status.domain.host
        if host in hosts:
            return [nic.mac for nic in hosts[host].nics]
        mine = {port.mac for port in status.domain.ports}
        ranked = sorted(
            hosts.values(), key=lambda each: (len(mine & {nic.mac for nic in each.nics}), len(each.nics))
        )
        return [nic.mac for nic in ranked[-1].nics] if ranked else []


def _medium_moves(known: DomainDef, wanted: Device) -> bool:
    """Whether a medium goes into an empty drive, or comes out of one: to a server a disk that is plugged."""
    if wanted.disk is None:
        return False
    drive = next((disk for disk in known.disks if disk.target == wanted.disk.target), None)
    return drive is not None and drive.empty != wanted.disk.empty


def _check_place(shown: DisplayBinding | None, wanted: Device) -> None:
    """A definition may leave the address open; a running domain's document has it."""
    address = wanted.element.get("listen")
    if shown is not None and address not in (None, shown.address):
        raise error(Code.OPERATION_UNSUPPORTED, "cannot change listen address setting on vnc graphics")
