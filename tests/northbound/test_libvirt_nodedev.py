"""A host that tells something new is seen by clients as devices that come, change and go."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hypervisor_shim.driver import Caller, Created, Event, NodeDeviceEvent, NodeDeviceUpdateEvent
from hypervisor_shim.errors import Code, LibvirtError
from nicagent.inventories import Inventories
from nicagent.inventory import Inventory
from nicagent.northbound.libvirt_nodedev import MetalNodeDevices
from nicagent.northbound.machine_xml import machines
from nicagent.store import Store
from tests.rig import two_hosts

TESTER = Caller("uid:0", "unix:uid=0", False, True, 1)


def told(*addresses: str, product: str = "") -> bytes:
    pci = [{"address": each, "vendor_id": "0x8086", "product_id": "0x0001"} for each in addresses]
    return msgspec.json.encode({"system": {"product": product}, "pci": pci})


async def test_what_a_host_tells_is_told_on(tmp_path: Path) -> None:
    config = two_hosts()
    store = await Store.open(tmp_path / "db")
    inventories = Inventories(dict.fromkeys(config.hosts, Inventory()), store)
    events: list[Event] = []
    devices = MetalNodeDevices(lambda: machines(config, inventories), "uuid", events.append)
    inventories.watch(lambda host: devices.refresh())

    await inventories.report("metal-2", told("0000:00:01.0", "0000:00:02.0"))
    await inventories.report("metal-2", told("0000:00:02.0", product="R650"))

    assert events == [
        NodeDeviceEvent("metal-2_pci_0000_00_01_0", Created.CREATED),
        NodeDeviceEvent("metal-2_pci_0000_00_02_0", Created.CREATED),
        NodeDeviceEvent("metal-2_pci_0000_00_01_0", Created.DELETED),
        NodeDeviceUpdateEvent("computer_metal-2"),
    ]
    assert devices.device("metal-2_pci_0000_00_01_0") is None
    with pytest.raises(LibvirtError) as caught:
        await devices.detach(TESTER, "metal-2_pci_0000_00_02_0", None, "virNodeDeviceDettach")
    assert caught.value.code is Code.OPERATION_UNSUPPORTED
    await store.close()
