"""One host or several as a libvirt node: numbers that agree, devices with names of their own."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec
import pytest

from hypervisor_shim.errors import Code, LibvirtError
from hypervisor_shim.xml.cpu import Comparison, parse_cpu
from hypervisor_shim.xml.nodedev import format_device
from nicagent import config
from nicagent.inventory import Cpu, Inventory, MdevType, NicDevice, PciDevice, System
from nicagent.northbound import machine_xml
from nicagent.northbound.libvirt_node import MetalNode
from nicagent.northbound.libvirt_nodedev import devices_of
from nicagent.northbound.machine_xml import Machine

UUID = "11111111-2222-3333-4444-555555555555"
HOST = config.parse(
    """
    [hosts.metal-1]
    power = {driver = "gpio"}
    storage = {transport = "virtio", slot = "/slot"}
    nics = [{device = "port0", mac = "52:54:00:00:00:01"}]
    cpus = 16
    cpu_model = "Icelake-Server"
    memory_mib = 4096
    [hosts.metal-1.inventory.cpu]
    sockets = 2
    cores = 4
    threads = 2
    mhz = 2000
    features = ["vmx", "avx512f"]
    """
).hosts["metal-1"]


def machine(name: str = "metal-1", **changes: object) -> Machine:
    host = msgspec.structs.replace(HOST, **changes)
    return Machine(name, host, host.inventory)


def cells(machines: list[Machine]) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(machine_xml.capabilities(machines, UUID))
    return root.findall("host/topology/cells/cell")


def test_one_host_is_what_it_is() -> None:
    info = machine_xml.node_info([machine()])
    assert (info.cpus, info.nodes, info.sockets, info.cores, info.threads) == (16, 1, 2, 4, 2)
    assert (info.model, info.mhz, info.memory_kib) == ("Icelake-Server", 2000, 4 << 20)
    siblings = [cpu.attrib for cpu in cells([machine()])[0].iter("cpu")]
    assert siblings[3] == {"id": "3", "socket_id": "0", "die_id": "0", "core_id": "1", "siblings": "2-3"}
    assert siblings[15]["socket_id"] == "1"


@pytest.mark.parametrize(
    "others",
    [
        [machine("metal-2")],
        [machine("metal-2", cpus=3)],
        [machine("metal-2", cpus=1, arch="aarch64", cpu_model="aarch64")] * 2,
    ],
    ids=["alike", "another size", "another kind"],
)
def test_the_numbers_of_several_hosts_agree(others: list[Machine]) -> None:
    machines = [machine(), *others]
    info = machine_xml.node_info(machines)
    assert info.cpus == info.nodes * info.sockets * info.cores * info.threads
    found = cells(machines)
    assert len(found) == len(machines), "a host is a cell: a domain lies in one, whole"
    ids = [cpu.attrib["id"] for cell in found for cpu in cell.iter("cpu")]
    assert ids == [str(number) for number in range(info.cpus)]
    places = [
        (cpu.get("socket_id"), cpu.get("core_id"), cpu.get("id")) for c in found for cpu in c.iter("cpu")
    ]
    assert len(set(places)) == info.cpus
    assert sum(int(cell.findtext("memory") or 0) for cell in found) == info.memory_kib


def test_a_topology_that_is_not_of_the_hosts_cpus_is_not_believed() -> None:
    told = Inventory(cpu=Cpu(sockets=1, cores=64, threads=2))
    assert Machine("metal-1", HOST, told).topology == (1, 16, 1)


def test_what_is_not_known_is_left_out() -> None:
    bare = machine(cpu_model="x86_64", inventory=Inventory())
    root = ElementTree.fromstring(machine_xml.capabilities([bare], UUID))
    assert root.find("host/cpu/model") is None and root.findtext("host/cpu/arch") == "x86_64"
    domain = ElementTree.fromstring(machine_xml.domain_capabilities([bare], "x86_64"))
    assert domain.find("os/enum[@name='firmware']/value") is None
    assert "<product>" not in format_device(next(devices_of([bare], UUID)))


def test_firmware_is_told_as_known() -> None:
    for kind in ("efi", "bios"):
        known = msgspec.convert({"firmware": {"kind": kind}}, Inventory)
        root = ElementTree.fromstring(machine_xml.domain_capabilities([machine(inventory=known)], "x86_64"))
        assert root.findtext("os/enum[@name='firmware']/value") == kind


# ---- the node's calls


def node(*machines: Machine, free: tuple[str, ...] = ()) -> MetalNode:
    return MetalNode(lambda: machines, lambda: frozenset(free))


def test_one_domain_has_at_most_the_cpus_of_the_largest_host() -> None:
    two = node(machine(), machine("metal-2", cpus=64))
    assert (two.max_vcpus(None), two.max_vcpus("KVM"), len(two.cpu_map())) == (64, 64, 80)
    with pytest.raises(LibvirtError, match="unknown type 'lxc'"):
        two.max_vcpus("lxc")


def test_free_memory_is_that_of_free_hosts() -> None:
    two = node(machine(), machine("metal-2"), free=("metal-2",))
    assert two.cells_free_memory() == [0, 4 << 30]
    assert two.memory_stats(None) == {"total": 8 << 20, "free": 4 << 20}
    assert two.memory_stats(0) == {"total": 4 << 20, "free": 0}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("<model>Icelake-Server</model>", Comparison.SUPERSET),
        ("<model>Icelake-Server</model><feature name='vmx'/>", Comparison.SUPERSET),
        ("<model>Icelake-Server</model><feature name='vmx'/><feature name='avx512f'/>", Comparison.IDENTICAL),
        ("<model>Icelake-Server</model><feature name='sgx'/>", Comparison.INCOMPATIBLE),
        ("<model>Icelake-Server</model><feature policy='optional' name='sgx'/>", Comparison.SUPERSET),
        ("<model>Icelake-Server</model><feature policy='forbid' name='vmx'/>", Comparison.INCOMPATIBLE),
        ("<model>Penryn</model>", Comparison.INCOMPATIBLE),
        ("<arch>aarch64</arch>", Comparison.INCOMPATIBLE),
    ],
)
def test_a_cpu_is_compared_by_what_is_declared(document: str, expected: Comparison) -> None:
    wanted = parse_cpu(f"<cpu>{document}</cpu>")
    assert node(machine()).compare_cpu(wanted, "virConnectCompareCPU") is expected


def test_a_cpu_that_is_not_declared_is_not_compared() -> None:
    unknown = node(machine(cpu_model="x86_64"))
    with pytest.raises(LibvirtError, match="metal-1 is not declared") as caught:
        unknown.compare_cpu(parse_cpu("<cpu><model>Penryn</model></cpu>"), "virConnectCompareCPU")
    assert caught.value.code is Code.NO_SUPPORT, "nova goes on without comparing at this code only"
    with pytest.raises(LibvirtError):
        unknown.cpu_models("x86_64")


def test_what_a_model_implies_is_not_made_up() -> None:
    """nova asks so at its start, of a host whose model is told, and ends at any other code."""
    cpu = machine().cpu
    with pytest.raises(LibvirtError) as caught:
        node(machine()).baseline_cpu([cpu], "virConnectBaselineCPU", expand=True, migratable=False)
    assert caught.value.code is Code.NO_SUPPORT
    plain = node(machine()).baseline_cpu([cpu], "virConnectBaselineCPU", expand=False, migratable=False)
    assert parse_cpu(plain).features == {"vmx", "avx512f"}


# ---- devices

GPU = PciDevice(
    address="0000:3b:00.0",
    vendor_id="0x10de",
    product_id="0x20b5",
    vendor="NVIDIA Corporation",
    product="A100 80GB PCIe",
    class_code="0x030200",
    parent="0000:3a:00.0",
    sriov_total=16,
    functions=("0000:3b:00.4",),
    mdev_types=(MdevType(id="nvidia-1053", name="GRID A100D-1-10C", available=7),),
)
BRIDGE = PciDevice(address="0000:3a:00.0", vendor_id="0x8086", product_id="0x347a")
NIC = NicDevice(mac="52:54:00:00:00:01", name="ens1", pci="0000:3a:00.0")
FULL = Inventory(system=System(product="R650", uuid=UUID), pci=(GPU, BRIDGE), nics=(NIC,))


def test_a_host_is_a_tree_with_libvirts_names() -> None:
    found = {each.name: each for each in devices_of([machine(inventory=FULL)], UUID)}
    assert {name: each.parent for name, each in found.items()} == {
        "computer": None,
        "pci_0000_3a_00_0": "computer",
        "pci_0000_3b_00_0": "pci_0000_3a_00_0",
        "net_ens1_52_54_00_00_00_01": "pci_0000_3a_00_0",
    }
    assert (
        format_device(found["pci_0000_3b_00_0"])
        == """\
<device>
  <name>pci_0000_3b_00_0</name>
  <parent>pci_0000_3a_00_0</parent>
  <capability type='pci'>
    <class>0x030200</class>
    <domain>0</domain>
    <bus>59</bus>
    <slot>0</slot>
    <function>0</function>
    <product id='0x20b5'>A100 80GB PCIe</product>
    <vendor id='0x10de'>NVIDIA Corporation</vendor>
    <capability type='virt_functions' maxCount='16'>
      <address domain='0x0000' bus='0x3b' slot='0x00' function='0x4'/>
    </capability>
    <capability type='mdev_types'>
      <type id='nvidia-1053'>
        <name>GRID A100D-1-10C</name>
        <deviceAPI>vfio-pci</deviceAPI>
        <availableInstances>7</availableInstances>
      </type>
    </capability>
  </capability>
</device>
"""
    )


def test_the_same_addresses_in_two_boxes_are_two_devices() -> None:
    machines = [machine("a", inventory=FULL), machine("b", inventory=FULL)]
    names = [each.name for each in devices_of(machines, UUID)]
    assert len(names) == len(set(names)) == 9
    parents = {each.name: each.parent for each in devices_of(machines, UUID)}
    assert parents["computer_b"] == "computer" and parents["b_pci_0000_3a_00_0"] == "computer_b"
    seen: set[str | None] = {None}
    for name, parent in parents.items():
        assert parent in seen, f"{name} comes before its parent"
        seen.add(name)


def test_hosts_whose_names_are_nearly_the_same_keep_their_own_devices() -> None:
    machines = [machine("metal-1", inventory=FULL), machine("metal.1", inventory=FULL)]
    names = [each.name for each in devices_of(machines, UUID)]
    assert len(set(names)) == len(names) == 9


def test_a_chain_as_long_as_a_report_may_be_is_a_chain() -> None:
    addresses = [f"0000:{n >> 5:02x}:{n & 31:02x}.0" for n in range(1024)]
    chain = [
        PciDevice(address=at, vendor_id="0x0001", product_id="0x0001", parent=above)
        for at, above in zip(addresses, [*addresses[1:], ""], strict=True)
    ]
    found = list(devices_of([machine(inventory=Inventory(pci=tuple(chain)))], UUID))
    assert found[1].name == "pci_0000_1f_1f_0" and found[1].parent == "computer"
