"""The libvirt calls of kvmagent of ZStack 5.3 (vm_plugin.py): connection, a machine's life, disks, NICs."""

from __future__ import annotations

from functools import partial
from xml.dom import minidom

import libvirt
import libvirt_qemu

from tests.clients.documents import CLOUDS
from tests.clients.programs import eventually
from tests.clients.sequences import Sequence
from tests.hypervisor_shim.serving import Served

VOLUME = """<disk type="file" device="disk"><driver name="qemu" type="qcow2" cache="none"/>
<source file="/zstack_ps/dataVolumes/7e9b.qcow2"/><target dev="vdb" bus="virtio"/>
<serial>7e9b8d5e7f4b4f0e8a4d1a2b3c4d5e6f</serial></disk>"""
NIC = """<interface type="bridge"><mac address="fa:2c:c8:47:3d:01"/><alias name="net1"/>
<source bridge="br_zsn0_100"/><target dev="vnic12.1"/><model type="virtio"/><mtu size="1450"/></interface>"""
SNAPSHOT = """<domainsnapshot><disks><disk name="vda" snapshot="external" type="file">
<source file="/zstack_ps/rootVolumes/new.qcow2"/><driver type="qcow2"/></disk></disks></domainsnapshot>"""
UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
LIVELY = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
NAME = "vnic12.0"


def test_kvmagents_calls_from_connection_to_deletion(loop: None, agent: Served) -> None:
    zstack = Sequence()
    seen: list[tuple[int, int]] = []
    conn = libvirt.open(agent.uri)
    zstack.must("getURI", conn.getURI)
    zstack.must("getLibVersion", conn.getLibVersion)
    capabilities = minidom.parseString(conn.getCapabilities())
    host = capabilities.getElementsByTagName("host")[0]
    uuid = host.getElementsByTagName("uuid")[0].firstChild
    assert uuid is not None and uuid.nodeValue, "kvmagent keys its host by this"
    assert int(host.getElementsByTagName("cells")[0].getAttribute("num")) >= 1

    def lifecycle(_: object, __: object, event: int, detail: int, ___: object) -> None:
        seen.append((event, detail))

    def ignored(*_: object) -> None:
        pass

    register = conn.domainEventRegisterAny
    for event, callback in (
        (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
        (libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB, ignored),
        (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, ignored),
    ):
        zstack.must("domainEventRegisterAny", partial(register, None, event, callback, None))
    zstack.must("registerCloseCallback", partial(conn.registerCloseCallback, ignored, None))

    # start_vm
    document = CLOUDS["zstack"]
    try:
        conn.lookupByName(document.domain)
        raise AssertionError("the machine is there already")
    except libvirt.libvirtError as unknown:
        assert unknown.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
    vm = conn.defineXML(document.xml)
    zstack.must("createWithFlags", lambda: vm.createWithFlags(0))
    eventually(lambda: (libvirt.VIR_DOMAIN_EVENT_STARTED, 0) in seen, 5, "the event of the start")
    assert vm.info()[0] == libvirt.VIR_DOMAIN_RUNNING
    live = minidom.parseString(vm.XMLDesc(0))
    (target,) = (
        disk.getElementsByTagName("target")[0].getAttribute("dev")
        for disk in live.getElementsByTagName("disk")
        if "5c9a8d5e7f4b4f0e8a4d1a2b3c4d5e6f" in disk.toxml()
    )
    assert target == "vda", "kvmagent finds a volume by its serial number"
    assert vm.ID() in conn.listDomainsID() and conn.lookupByID(vm.ID()).name() == vm.name()

    # what its monitors and its user ask for
    for what, call in (
        ("memoryStats", vm.memoryStats),
        ("blockInfo", lambda: vm.blockInfo("vda", 0)),
        ("jobStats", vm.jobStats),
        ("blockJobInfo", lambda: vm.blockJobInfo("vda", 0)),
        ("setVcpusFlags", lambda: vm.setVcpusFlags(4, LIVE)),
        ("setMemoryFlags", lambda: vm.setMemoryFlags(4 << 20, LIVE)),
        ("attach a volume", lambda: vm.attachDeviceFlags(VOLUME, LIVE)),
        ("detach a volume", lambda: vm.detachDeviceFlags(VOLUME, LIVE)),
        ("attach a NIC", lambda: vm.attachDevice(NIC)),
        ("update a NIC", lambda: vm.updateDeviceFlags(NIC.replace("1450", "1400"), LIVE)),
        ("detach a NIC", lambda: vm.detachDevice(NIC)),
        (
            "take a snapshot",
            lambda: vm.snapshotCreateXML(
                SNAPSHOT,
                libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
            ),
        ),
        ("blockRebase", lambda: vm.blockRebase("vda", None, 0, 0)),
        ("suspend", vm.suspend),
        ("diskErrors", vm.diskErrors),
        ("ioThreadInfo", vm.ioThreadInfo),
        ("setBlockIoTune", lambda: vm.setBlockIoTune("vda", {"total_bytes_sec": 1 << 20}, LIVE)),
        ("setInterfaceParameters", lambda: vm.setInterfaceParameters(NAME, {"inbound.average": 128}, LIVE)),
        ("pinEmulator", lambda: vm.pinEmulator((True, False), LIVE)),
        ("domainXMLToNative", lambda: conn.domainXMLToNative("qemu-argv", document.xml)),
        ("qemuMonitorCommand", lambda: libvirt_qemu.qemuMonitorCommand(vm, "info status", 1)),
        (
            "coreDumpWithFormat",
            lambda: vm.coreDumpWithFormat("/var/crash/vm", 1, libvirt.VIR_DUMP_MEMORY_ONLY),
        ),
        (
            "migrateToURI2",
            lambda: vm.migrateToURI2("qemu+tcp://192.0.2.42/system", None, None, LIVELY, None, 0),
        ),
        ("screenshot", lambda: vm.screenshot(conn.newStream(), 0)),
    ):
        zstack.may(what, call, _REFUSALS)
    if vm.info()[0] == libvirt.VIR_DOMAIN_PAUSED:
        zstack.must("resume", vm.resume)

    # stop_vm, strategy grace, then destroy_vm
    zstack.must("shutdown", vm.shutdown)
    if vm.isActive():
        zstack.must("destroy", vm.destroy)
    assert vm.info()[0] == libvirt.VIR_DOMAIN_SHUTOFF and vm.isPersistent()
    zstack.must("undefineFlags", lambda: vm.undefineFlags(UNDEFINE))
    conn.close()
    zstack.done()


#: Beside "cannot": 55 not in this state, 8 such a value never. kvmagent reports the sentence to its user.
_REFUSALS = frozenset({3, 84, 74, 67, 55, 8})
