"""Devices that come and go, as libvirt-python asks for them: flags, codes, the document afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import libvirt
import pytest

from hypervisor_shim.memory import MemoryDriver
from tests.hypervisor_shim.serving import serving

DISK = "<disk type='file' device='disk'><source file='/x.img'/><target dev='{}' bus='virtio'/></disk>"
NIC = "<interface type='network'><mac address='{}'/><source network='{}'/></interface>"
MAC = "52:54:00:aa:bb:cc"
LIVE, CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE


@pytest.fixture
def domain() -> Iterator[libvirt.virDomain]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    with TemporaryDirectory(prefix="nic-") as place, serving(MemoryDriver(), Path(place)) as served:
        connection = libvirt.open(served.uri)
        yield connection.lookupByName("test")
        connection.close()


def code(work: object, *arguments: object) -> int:
    with pytest.raises(libvirt.libvirtError) as refused:
        work(*arguments)  # type: ignore[operator]
    return int(refused.value.get_error_code())


def test_live_config_and_both_mean_what_they_say(domain: libvirt.virDomain) -> None:
    domain.attachDevice(DISK.format("vdb"))
    assert "vdb" in domain.XMLDesc(0) and "vdb" not in domain.XMLDesc(INACTIVE)
    domain.attachDeviceFlags(DISK.format("vdc"), CONFIG)
    assert "vdc" not in domain.XMLDesc(0) and "vdc" in domain.XMLDesc(INACTIVE)
    domain.attachDeviceFlags(NIC.format(MAC, "default"), LIVE | CONFIG)
    assert MAC in domain.XMLDesc(0) and MAC in domain.XMLDesc(INACTIVE)
    domain.updateDeviceFlags(NIC.format(MAC, "other"), LIVE)
    assert "network='other'" in domain.XMLDesc(0) and "network='other'" not in domain.XMLDesc(INACTIVE)
    domain.detachDeviceFlags(NIC.format(MAC, "default"), LIVE | CONFIG)
    domain.detachDevice(DISK.format("vdb"))
    assert MAC not in domain.XMLDesc(0) + domain.XMLDesc(INACTIVE) and "vdb" not in domain.XMLDesc(0)
    domain.detachDeviceFlags(DISK.format("vdc"), CONFIG)
    domain.destroy()
    domain.attachDeviceFlags(DISK.format("vdd"), libvirt.VIR_DOMAIN_AFFECT_CURRENT)
    assert "vdd" in domain.XMLDesc(0), "the current state of a domain that is off is its definition"


def test_refusals_have_libvirts_codes(domain: libvirt.virDomain) -> None:
    domain.attachDeviceFlags(DISK.format("vdb"), LIVE | CONFIG)
    assert code(domain.attachDevice, DISK.format("vdb")) == libvirt.VIR_ERR_OPERATION_FAILED
    assert code(domain.attachDeviceFlags, DISK.format("vdb"), CONFIG) == libvirt.VIR_ERR_INVALID_ARG
    assert code(domain.detachDevice, DISK.format("vdz")) == libvirt.VIR_ERR_DEVICE_MISSING
    assert code(domain.detachDeviceFlags, NIC.format(MAC, "x"), CONFIG) == libvirt.VIR_ERR_DEVICE_MISSING
    assert code(domain.updateDeviceFlags, NIC.format(MAC, "x"), LIVE) == libvirt.VIR_ERR_DEVICE_MISSING
    assert code(domain.detachDeviceAlias, "net7", LIVE) == libvirt.VIR_ERR_DEVICE_MISSING
    assert code(domain.attachDevice, "<rng model='virtio'/>") == libvirt.VIR_ERR_OPERATION_UNSUPPORTED
    assert code(domain.attachDevice, "<toaster/>") == libvirt.VIR_ERR_XML_ERROR
    assert code(domain.attachDevice, "<disk") == libvirt.VIR_ERR_XML_DETAIL
    assert code(domain.attachDevice, "<!DOCTYPE x><disk/>") == libvirt.VIR_ERR_XML_DETAIL
    assert code(domain.attachDeviceFlags, DISK.format("vdc"), 64) == libvirt.VIR_ERR_INVALID_ARG
    domain.destroy()
    assert code(domain.attachDevice, DISK.format("vdc")) == libvirt.VIR_ERR_OPERATION_INVALID
    domain.create()
    domain.undefine()
    assert code(domain.attachDeviceFlags, DISK.format("vdc"), CONFIG) == libvirt.VIR_ERR_OPERATION_INVALID


def test_one_half_that_cannot_be_stops_the_other(domain: libvirt.virDomain) -> None:
    domain.attachDeviceFlags(DISK.format("vdb"), CONFIG)
    code(domain.attachDeviceFlags, DISK.format("vdb"), LIVE | CONFIG)
    assert "vdb" not in domain.XMLDesc(0), "the live half was done though the other was refused"


def test_a_device_goes_by_its_alias(domain: libvirt.virDomain) -> None:
    domain.attachDeviceFlags(DISK.format("vdb"), LIVE | CONFIG)
    domain.detachDeviceAlias("virtio-vdb", LIVE)
    assert "vdb" not in domain.XMLDesc(0) and "vdb" in domain.XMLDesc(INACTIVE)


def test_a_screen_gets_another_password_and_stays_where_it_is(domain: libvirt.virDomain) -> None:
    screen = "<graphics type='{}' {}/>"
    old = screen.format("vnc", "port='5910' keymap='de' passwd='old'")
    connection = domain.connect()
    document = "<domain type='test'><name>s</name><memory>1024</memory><os><type>hvm</type></os>"
    vm = connection.defineXML(f"{document}<devices>{old}</devices></domain>")
    vm.create()
    secure = libvirt.VIR_DOMAIN_XML_SECURE
    vm.updateDeviceFlags(screen.format("vnc", "port='5910' keymap='de' passwd='new'"), LIVE)
    assert "passwd='new'" in vm.XMLDesc(secure) and "passwd='old'" in vm.XMLDesc(secure | INACTIVE)
    assert "passwd" not in vm.XMLDesc(0)
    for other in ("port='5911' keymap='de'", "keymap='de'", "port='5910'", "port='5910' keymap='fr'"):
        refused = code(vm.updateDeviceFlags, screen.format("vnc", other), LIVE)
        assert refused == libvirt.VIR_ERR_OPERATION_UNSUPPORTED, other
    spice = screen.format("spice", "autoport='yes'")
    assert code(vm.updateDeviceFlags, spice, LIVE) == libvirt.VIR_ERR_DEVICE_MISSING
    assert code(vm.updateDeviceFlags, spice, CONFIG) == libvirt.VIR_ERR_INVALID_ARG
    assert code(vm.attachDevice, spice) == libvirt.VIR_ERR_OPERATION_UNSUPPORTED
    vm.updateDeviceFlags(screen.format("vnc", "port='5911'"), CONFIG)
    assert "port='5911'" in vm.XMLDesc(INACTIVE) and "port='5910'" in vm.XMLDesc(0)
    vm.destroy()
    vm.undefine()


@pytest.mark.parametrize("port", ["9" * 5000, "٣", "1 2", "0x10", "--1"])
def test_a_port_that_is_no_number_is_refused(domain: libvirt.virDomain, port: str) -> None:
    document = "<domain type='test'><name>s</name><memory>1024</memory><os><type>hvm</type></os>"
    document += f"<devices><graphics type='vnc' port='{port}'/></devices></domain>"
    assert code(domain.connect().defineXML, document) == libvirt.VIR_ERR_INTERNAL_ERROR
