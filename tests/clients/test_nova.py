"""The calls that nova's libvirt driver makes, in its order (its host.py, guest.py and driver.py)."""

from __future__ import annotations

from functools import partial
from xml.etree import ElementTree

import libvirt
import pytest

from tests.clients.documents import CLOUDS
from tests.clients.programs import eventually
from tests.clients.sequences import Sequence
from tests.hypervisor_shim.serving import Served

NOVA_NS = "http://openstack.org/xmlns/libvirt/nova/1.1"
CREDENTIALS = [
    libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_ECHOPROMPT, libvirt.VIR_CRED_REALM,
    libvirt.VIR_CRED_PASSPHRASE, libvirt.VIR_CRED_NOECHOPROMPT, libvirt.VIR_CRED_EXTERNAL,
]  # fmt: skip
VOLUME = """<disk type="block" device="disk"><driver name="qemu" type="raw" cache="none" io="native"/>
<source dev="/dev/disk/by-id/wwn-0x1"/><target bus="virtio" dev="vdc"/>
<serial>6e0c3d3e-7d0c-4bb2-8ab7-3a61b3a30002</serial></disk>"""
PORT = """<interface type="bridge"><mac address="fa:16:3e:5a:10:02"/><model type="virtio"/>
<driver name="vhost"/><source bridge="br-int"/><mtu size="1450"/><target dev="tap2c9d1b2e-9d"/>
<virtualport type="openvswitch"><parameters interfaceid="2c9d1b2e-9d8b-4a53-9a43-4a5c6e0a0002"/></virtualport>
</interface>"""
LIVE_AND_CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG


def test_novas_calls_from_connection_to_deletion(loop: None, agent: Served) -> None:
    nova, seen = Sequence(), []
    conn = libvirt.openAuth(agent.uri, [CREDENTIALS, lambda creds, _: 0 if not creds else -1, None], 0)

    # host.py: a new connection
    for event, callback in (
        (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lambda c, d, event, detail, o: seen.append((event, detail))),
        (
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
            lambda c, d, device, o: seen.append(("removed", device)),
        ),
        (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, lambda *_: None),
    ):
        nova.must("domainEventRegisterAny", partial(conn.domainEventRegisterAny, None, event, callback, 0))
    nova.must("registerCloseCallback", lambda: conn.registerCloseCallback(lambda *_: None, None))
    assert conn.getLibVersion() >= 10_000_000 and conn.getVersion() >= 8_002_002
    nova.must("getType", conn.getType)
    nova.must("getHostname", conn.getHostname)
    capabilities = ElementTree.fromstring(conn.getCapabilities())
    assert (
        capabilities.findtext("host/uuid") and capabilities.find("guest/arch/domain[@type='kvm']") is not None
    )
    nova.must("getInfo", conn.getInfo)
    nova.may("getCPUMap", conn.getCPUMap)
    nova.may("getCPUStats", lambda: conn.getCPUStats(libvirt.VIR_NODE_CPU_STATS_ALL_CPUS, 0))
    nova.may("getDomainCapabilities", lambda: conn.getDomainCapabilities(None, "x86_64", "q35", "kvm", 0))
    nova.may("getCPUModelNames", lambda: conn.getCPUModelNames("x86_64"))
    cpu = "<cpu><arch>x86_64</arch><model>Nehalem</model><vendor>Intel</vendor></cpu>"
    nova.may("compareCPU", lambda: conn.compareCPU(cpu, 0))
    nova.may("baselineCPU", lambda: conn.baselineCPU([cpu], libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES))
    nova.must("listAllDomains", lambda: conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE))
    nova.must(
        "listAllDevices", lambda: conn.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV)
    )

    # an instance is spawned
    document = CLOUDS["nova"]
    with pytest.raises(libvirt.libvirtError) as unknown:
        conn.lookupByUUIDString("7c4f2a52-4c0d-4f3a-9a55-0d1d6a6cf001")
    assert unknown.value.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
    guest = conn.defineXML(document.xml)
    guest.createWithFlags(0)
    eventually(lambda: (libvirt.VIR_DOMAIN_EVENT_STARTED, 0) in seen, 5, "the event of the start")
    assert guest.info()[0] == libvirt.VIR_DOMAIN_RUNNING and guest.ID() > 0 and guest.isPersistent()
    running = ElementTree.fromstring(guest.XMLDesc(0))
    assert [t.get("dev") for t in running.iterfind("devices/interface/target")] == ["tap1c9d1b2e-9d"]

    # it is used
    live = ElementTree.tostring(
        ElementTree.fromstring(f'<instance xmlns="{NOVA_NS}"><name>web-1b</name></instance>')
    ).decode()
    kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
    nova.must("setMetadata", lambda: guest.setMetadata(kind, live, "instance", NOVA_NS, LIVE_AND_CONFIG))
    nova.may("setTime", lambda: guest.setTime({"seconds": 1_700_000_000, "nseconds": 0}))
    nova.may("setUserPassword", lambda: guest.setUserPassword("root", "x", 0))
    nova.may("fsFreeze", lambda: guest.fsFreeze())
    nova.may("vcpus", guest.vcpus)
    nova.may("memoryStats", guest.memoryStats)
    nova.may("blockStats", lambda: guest.blockStats("vda"))
    nova.may("interfaceStats", lambda: guest.interfaceStats("tap1c9d1b2e-9d"))
    nova.may("jobStats", guest.jobStats)
    nova.must("injectNMI", lambda: guest.injectNMI(0))
    nova.may("suspend", guest.suspend)
    if guest.info()[0] == libvirt.VIR_DOMAIN_PAUSED:
        nova.must("resume", guest.resume)
    nova.may("managedSave", lambda: guest.managedSave(0))
    for what, device in (("volume", VOLUME), ("port", PORT)):
        nova.may(f"attach a {what}", partial(guest.attachDeviceFlags, device, LIVE_AND_CONFIG))
        nova.may(f"detach a {what}", partial(guest.detachDeviceFlags, device, LIVE_AND_CONFIG))

    # it is stopped and deleted
    if guest.isActive():
        nova.must("destroy", guest.destroy)
    eventually(lambda: (libvirt.VIR_DOMAIN_EVENT_STOPPED, 1) in seen, 5, "the event of the stop")
    flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    nova.must("undefineFlags", lambda: guest.undefineFlags(flags))
    nova.must("unregisterCloseCallback", conn.unregisterCloseCallback)
    conn.close()
    nova.done()
