"""The node devices of libvirt's test driver: a computer with fibre channel adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from hypervisor_shim.driver.events import Created, Event, NodeDeviceEvent
from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.driver.nodedev import NodeDevice, NodeDevices, no_device
from hypervisor_shim.errors import Code, Origin, error
from hypervisor_shim.xml.nodedev import (
    Device,
    FibreChannel,
    ScsiHost,
    System,
    format_device,
    kinds,
    parse_port_wish,
)

_FABRIC = "2000000043214321"
DEVICES = (
    Device(
        "computer",
        None,
        System(
            vendor="Libvirt",
            version="Test driver",
            serial="123456",
            uuid="11111111-2222-3333-4444-555555555555",
            firmware_vendor="Libvirt",
            firmware_version="Test Driver",
            firmware_date="01/22/2007",
        ),
    ),
    Device(
        "scsi_host1",
        "computer",
        ScsiHost(1, 0, FibreChannel("2000000012341234", "1000000012341234", _FABRIC), max_vports=0),
    ),
    Device(
        "scsi_host2",
        "computer",
        ScsiHost(2, 1, FibreChannel("2000000056785678", "1000000056785678", "2000000087658765"), 0),
    ),
    Device(
        "scsi_host11",
        "scsi_host1",
        ScsiHost(11, 10, FibreChannel("2000000034563456", "1000000034563456", _FABRIC)),
    ),
)
_NEXT_PORT = "scsi_host12"  # as the test driver names whatever it makes


class MemoryNodeDevices(NodeDevices):
    """Any devices; a virtual port that is asked for is a copy of the first one that is there."""

    def __init__(self, publish: Callable[[Event], None], devices: Iterable[Device] = DEVICES) -> None:
        self._publish = publish
        self._devices = {device.name: device for device in devices}

    def devices(self) -> list[NodeDevice]:
        return [_shown(device) for device in self._devices.values()]

    def device(self, name: str) -> NodeDevice | None:
        device = self._devices.get(name)
        return None if device is None else _shown(device)

    def xml(self, name: str) -> str:
        return format_device(self._find(name))

    async def create(self, caller: Caller, document: str) -> NodeDevice:
        wish = parse_port_wish(document)
        adapters = [each for each in self._devices.values() if "vports" in kinds(each.capability)]
        if wish.parent is not None and wish.parent not in self._devices:
            raise _internal("Could not find parent device for 'new device'")
        parent = next((each for each in adapters if wish.parent in (None, each.name)), None)
        if parent is None:
            raise _internal(f"Parent device {wish.parent} is not capable of vport operations")
        pattern = self._devices.get("scsi_host11", parent).capability
        assert isinstance(pattern, ScsiHost)
        port = FibreChannel(wish.wwnn, wish.wwpn, _FABRIC)
        made = Device(_NEXT_PORT, parent.name, replace(pattern, fibre_channel=port, max_vports=None))
        self._devices[made.name] = made
        self._publish(NodeDeviceEvent(made.name, Created.CREATED))
        return _shown(made)

    async def destroy(self, caller: Caller, name: str) -> None:
        self._find(name)
        del self._devices[name]
        self._publish(NodeDeviceEvent(name, Created.DELETED))

    def _find(self, name: str) -> Device:
        device = self._devices.get(name)
        if device is None:
            raise no_device(name)
        return device


def _shown(device: Device) -> NodeDevice:
    found = kinds(device.capability)
    return NodeDevice(device.name, device.parent, found[:1], frozenset(found), autostart=False)


def _internal(detail: str) -> Exception:
    return error(Code.INTERNAL_ERROR, detail, origin=Origin.NODEDEV)
