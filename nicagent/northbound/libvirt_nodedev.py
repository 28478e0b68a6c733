"""The devices of the hosts as libvirt's node devices: a view of the inventories, which changes with them.

The one host of an agent is `computer`, as on any libvirt node. Of several, each is `computer_NAME` below a
`computer` that stands for all, and its name is in those of its devices: every box has the same PCI addresses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from hypervisor_shim.driver import Caller, Created, Event, NodeDeviceEvent, NodeDeviceUpdateEvent
from hypervisor_shim.driver.nodedev import NodeDevice, NodeDevices, no_device
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.nodedev import (
    Device,
    Identified,
    MdevType,
    Net,
    Pci,
    PciAddress,
    Storage,
    System,
    format_device,
    kinds,
)
from nicagent import inventory
from nicagent.northbound.machine_xml import Machine

ROOT = "computer"


class MetalNodeDevices(NodeDevices):
    """`machines` tells of the hosts of this moment; `refresh` is called when that has changed."""

    def __init__(
        self, machines: Callable[[], Sequence[Machine]], host_uuid: str, publish: Callable[[Event], None]
    ) -> None:
        self._machines = machines
        self._host_uuid = host_uuid
        self._publish = publish
        self._devices = self._made()

    def _made(self) -> dict[str, Device]:
        return {device.name: device for device in devices_of(self._machines(), self._host_uuid)}

    def refresh(self) -> None:
        """Look at the hosts again, and tell what came, changed and went."""
        before, self._devices = self._devices, self._made()
        for name in before:
            if name not in self._devices:
                self._publish(NodeDeviceEvent(name, Created.DELETED))
        for name, device in self._devices.items():
            if name not in before:
                self._publish(NodeDeviceEvent(name, Created.CREATED))
            elif device != before[name]:
                self._publish(NodeDeviceUpdateEvent(name))

    def devices(self) -> list[NodeDevice]:
        return [_shown(each) for each in self._devices.values()]

    def device(self, name: str) -> NodeDevice | None:
        found = self._devices.get(name)
        return None if found is None else _shown(found)

    def xml(self, name: str) -> str:
        found = self._devices.get(name)
        if found is None:
            raise no_device(name)
        return format_device(found)

    def by_wwn(self, wwnn: str, wwpn: str) -> NodeDevice | None:
        return None  # no fibre channel adapter is known to this agent

    # ---- refused: devices stay where they are plugged

    async def create(self, caller: Caller, document: str) -> NodeDevice:
        raise _refused("virtual ports and mediated devices are made by the operating system of the host")

    async def define(self, caller: Caller, document: str) -> NodeDevice:
        raise _refused("mediated devices are defined in the operating system of the host")

    async def destroy(self, caller: Caller, name: str) -> None:
        raise _refused(f"{name} is a part of a physical host, not a device that was created here")

    async def undefine(self, caller: Caller, name: str) -> None:
        raise _refused(f"{name} is a part of a physical host, not a device that was defined here")

    async def start(self, caller: Caller, name: str) -> None:
        raise _refused(f"{name} is a part of a physical host and always there")

    async def set_autostart(self, caller: Caller, name: str, autostart: bool) -> None:
        raise _refused(f"{name} is a part of a physical host and always there")

    async def detach(self, caller: Caller, name: str, driver: str | None, function: str) -> None:
        raise _refused(f"{name} is handed to the domain with its whole host; no driver of ours holds it")

    async def reattach(self, caller: Caller, name: str) -> None:
        raise _refused(f"{name} is handed to the domain with its whole host; no driver of ours takes it back")

    async def reset(self, caller: Caller, name: str) -> None:
        raise _refused(f"{name} is reset with its whole host, by virsh reset of the domain")


def _refused(why: str) -> LibvirtError:
    return error(Code.OPERATION_UNSUPPORTED, why, origin=Origin.NODEDEV)


def _shown(device: Device) -> NodeDevice:
    found = kinds(device.capability)
    return NodeDevice(device.name, device.parent, found, frozenset(found))


# ---- from inventories to devices -------------------------------------------------------------------


def devices_of(machines: Sequence[Machine], host_uuid: str) -> Iterator[Device]:
    """Every device of every host, parents first."""
    if len(machines) == 1:
        yield from _host(machines[0], ROOT, None, "")
        return
    yield Device(ROOT, None, System(uuid=host_uuid))
    for machine in machines:
        yield from _host(machine, f"{ROOT}_{machine.name}", ROOT, f"{machine.name}_")


def _host(machine: Machine, name: str, parent: str | None, prefix: str) -> Iterator[Device]:
    known = machine.inventory
    yield Device(name, parent, _system(known))
    places = {each.address: f"{prefix}pci_{_plain(each.address)}" for each in known.pci}
    for pci in _parents_first(known.pci):
        above = places.get(pci.parent, name)
        yield Device(places[pci.address], above, _pci(pci), driver=pci.driver or None)
    for mac, interface, pci_address, speed in _nics(machine):
        yield Device(
            f"{prefix}net_{_plain(interface)}_{_plain(mac)}",
            places.get(pci_address, name),
            Net(interface, mac, speed),
        )
    for disk in known.disks:
        tail = f"_{_plain(disk.serial)}" if disk.serial else ""
        yield Device(f"{prefix}block_{_plain(disk.name)}{tail}", places.get(disk.pci, name), _storage(disk))


def _plain(text: str) -> str:
    """As libvirt makes names of devices: what is neither letter nor digit becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9]", "_", text)


def _parents_first(found: Iterable[inventory.PciDevice]) -> Iterator[inventory.PciDevice]:
    known = {each.address: each for each in found}
    given: set[str] = set()
    for each in known.values():
        chain: list[inventory.PciDevice] = []
        at: inventory.PciDevice | None = each
        while at is not None and at.address not in given:
            given.add(at.address)
            chain.append(at)
            at = known.get(at.parent)
        yield from reversed(chain)


def _system(known: inventory.Inventory) -> System:
    system, firmware = known.system, known.firmware
    return System(
        product=system.product or None,
        vendor=system.manufacturer or None,
        version=system.version or None,
        serial=system.serial or None,
        uuid=system.uuid or None,
        firmware_vendor=firmware.vendor or None,
        firmware_version=firmware.version or None,
        firmware_date=firmware.date or None,
    )


def _pci(pci: inventory.PciDevice) -> Pci:
    return Pci(
        PciAddress.parse(pci.address),
        Identified(int(pci.product_id, 16), pci.product or None),
        Identified(int(pci.vendor_id, 16), pci.vendor or None),
        class_code=int(pci.class_code, 16) if pci.class_code else None,
        max_functions=pci.sriov_total,
        functions=tuple(map(PciAddress.parse, pci.functions)),
        physical=PciAddress.parse(pci.physical_function) if pci.physical_function else None,
        mdev_types=tuple(
            MdevType(each.id, each.api, each.available, each.name or None) for each in pci.mdev_types
        ),
        numa_node=pci.numa_node,
    )


def _nics(machine: Machine) -> Iterator[tuple[str, str, str, int | None]]:
    """MAC, interface, PCI address and speed: those of the inventory, and those the agent is wired to. A NIC
    whose name in the host's system is not known is called by its place in the config."""
    host = machine.host
    wired: Mapping[str, str] = {
        **{nic.mac: f"nic{number}" for number, nic in enumerate(host.nics)},
        **({host.provision.mac: "provision"} if host.provision is not None else {}),
    }
    told = {nic.mac: nic for nic in machine.inventory.nics}
    for mac in [*wired, *(mac for mac in told if mac not in wired)]:
        nic = told.get(mac)
        place = wired.get(mac, "nic")
        if nic is None:
            yield mac, place, "", None
        else:
            yield mac, nic.name or place, nic.pci, nic.speed_mbit


def _storage(disk: inventory.DiskDevice) -> Storage:
    return Storage(
        f"/dev/{disk.name}",
        bus=disk.bus or None,
        model=disk.model or None,
        vendor=disk.vendor or None,
        serial=disk.serial or None,
        size=disk.size_bytes,
        block_size=disk.block_bytes,
    )
