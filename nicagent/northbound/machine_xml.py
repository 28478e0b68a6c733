"""The machines behind this agent in libvirt's capability documents and node info: pure functions.

A host is a NUMA cell: what a domain gets lies in one of them, whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.driver import NodeInfo
from hypervisor_shim.xml import cpu as cpu_xml
from hypervisor_shim.xml.write import write_element
from nicagent.config import Config, Host
from nicagent.inventories import Inventories
from nicagent.inventory import Inventory

#: What a definition may write as the bus of a disk. It is a wish: the host's wiring decides.
_BUSES = ("virtio", "sata", "scsi")
_MODEL_MAX = 31  # bytes of the model in libvirt's node info


@dataclass(frozen=True)
class Machine:
    """A host with all that is known of it."""

    name: str
    host: Host
    inventory: Inventory

    @property
    def topology(self) -> tuple[int, int, int]:
        """Sockets, cores of each, threads of each. Unknown, or told otherwise than the config's `cpus`: one
        socket, and every CPU a core of its own."""
        cpu = self.inventory.cpu
        known = (cpu.sockets or 1, cpu.cores or 1, cpu.threads or 1)
        sockets, cores, threads = known
        return known if sockets * cores * threads == self.host.cpus else (1, self.host.cpus, 1)

    @property
    def cpu(self) -> cpu_xml.Cpu:
        """Its CPU. A model that only repeats the architecture says nothing."""
        host, cpu = self.host, self.inventory.cpu
        model = None if host.cpu_model == host.arch else host.cpu_model
        return cpu_xml.Cpu(host.arch, model, cpu.vendor or None, frozenset(cpu.features))


def machines(config: Config, inventories: Inventories) -> tuple[Machine, ...]:
    """Every host, in the config's order."""
    return tuple(Machine(name, host, inventories.of(name)) for name, host in config.hosts.items())


def node_info(machines: Sequence[Machine]) -> NodeInfo:
    """All hosts taken together: what a scheduler may fill. Memory in KiB.

    Hosts that are alike are so many NUMA nodes. Of others no product of sockets, cores and threads is true:
    all CPUs are cores of one socket then, as libvirtd has it.
    """
    topologies = {each.topology for each in machines}
    cpus = sum(each.host.cpus for each in machines)
    nodes, shape = (len(machines), topologies.pop()) if len(topologies) == 1 else (1, (1, cpus, 1))
    speeds = {each.inventory.cpu.mhz for each in machines}
    models = {each.host.cpu_model for each in machines}
    return NodeInfo(
        model=(models.pop() if len(models) == 1 else machines[0].host.arch)[:_MODEL_MAX],
        memory_kib=sum(each.host.memory_mib for each in machines) * 1024,
        cpus=cpus,
        mhz=(speeds.pop() if len(speeds) == 1 else None) or 0,
        nodes=nodes,
        sockets=shape[0],
        cores=shape[1],
        threads=shape[2],
    )


def common_cpu(machines: Sequence[Machine]) -> cpu_xml.Cpu:
    """What the CPUs of all hosts have in common, as far as known."""
    cpus = [each.cpu for each in machines]
    arches, models, vendors = ({getattr(cpu, key) for cpu in cpus} for key in ("arch", "model", "vendor"))
    alike = len(models) == 1
    return cpu_xml.Cpu(
        arches.pop() if len(arches) == 1 else machines[0].host.arch,
        models.pop() if alike else None,
        vendors.pop() if len(vendors) == 1 else None,
        frozenset.intersection(*(cpu.features for cpu in cpus)) if alike else frozenset(),
    )


# ---- <capabilities> ------------------------------------------------------------------------------


def capabilities(machines: Sequence[Machine], host_uuid: str) -> str:
    """One guest type, hvm, an architecture of the hosts' each. Clouds key agents by `host_uuid`."""
    root = Element("capabilities")
    host = SubElement(root, "host")
    SubElement(host, "uuid").text = host_uuid
    _host_cpu(host, machines)
    SubElement(host, "power_management")
    _cells(host, machines)
    model = SubElement(host, "secmodel")
    SubElement(model, "model").text = "none"
    SubElement(model, "doi").text = "0"
    for arch in dict.fromkeys(each.host.arch for each in machines):
        _guest(root, arch, max(each.host.cpus for each in machines if each.host.arch == arch))
    return write_element(root)


def _host_cpu(host: Element, machines: Sequence[Machine]) -> None:
    common, info = common_cpu(machines), node_info(machines)
    cpu = SubElement(host, "cpu")
    for tag, value in (("arch", common.arch), ("model", common.model), ("vendor", common.vendor)):
        if value is not None:
            SubElement(cpu, tag).text = value
    shape = {"sockets": info.sockets, "dies": 1, "cores": info.cores, "threads": info.threads}
    SubElement(cpu, "topology", {key: str(value) for key, value in shape.items()})
    for name in sorted(common.features):
        SubElement(cpu, "feature", {"name": name})


def _cells(host: Element, machines: Sequence[Machine]) -> None:
    cells = SubElement(SubElement(host, "topology"), "cells", {"num": str(len(machines))})
    first_cpu = first_socket = 0
    for number, machine in enumerate(machines):
        cell = SubElement(cells, "cell", {"id": str(number)})
        SubElement(cell, "memory", {"unit": "KiB"}).text = str(machine.host.memory_mib * 1024)
        cpus = SubElement(cell, "cpus", {"num": str(machine.host.cpus)})
        sockets, cores, threads = machine.topology
        for place in range(machine.host.cpus):
            core = place // threads
            siblings = first_cpu + core * threads
            where = {
                "id": first_cpu + place,
                "socket_id": first_socket + core // cores,
                "die_id": 0,
                "core_id": core % cores,
                "siblings": siblings if threads == 1 else f"{siblings}-{siblings + threads - 1}",
            }
            SubElement(cpus, "cpu", {key: str(value) for key, value in where.items()})
        first_cpu += machine.host.cpus
        first_socket += sockets


def _guest(root: Element, arch: str, cpus: int) -> None:
    guest = SubElement(root, "guest")
    SubElement(guest, "os_type").text = "hvm"
    of_arch = SubElement(guest, "arch", {"name": arch})
    SubElement(of_arch, "wordsize").text = "64"
    SubElement(of_arch, "machine", {"maxCpus": str(cpus)}).text = "metal"
    # What clients call a machine by default; virt-manager shows no domain whose machine is not listed.
    for name in ("q35", "pc") if arch == "x86_64" else ("virt",):
        SubElement(of_arch, "machine", {"canonical": "metal", "maxCpus": str(cpus)}).text = name
    for kind in ("qemu", "kvm"):  # clients ask for one of them; either is the metal itself
        SubElement(of_arch, "domain", {"type": kind})
    features = SubElement(guest, "features")
    SubElement(features, "acpi", {"default": "on", "toggle": "no"})
    SubElement(features, "disksnapshot", {"default": "off", "toggle": "no"})


# ---- <domainCapabilities> ------------------------------------------------------------------------


def domain_capabilities(machines: Sequence[Machine], arch: str) -> str:
    """What a definition may ask of the metal of one architecture."""
    of_arch = [each for each in machines if each.host.arch == arch]
    root = Element("domainCapabilities")
    for tag, value in (
        ("path", "/usr/bin/nicagent"),
        ("domain", "kvm"),
        ("machine", "metal"),
        ("arch", arch),
    ):
        SubElement(root, tag).text = value
    SubElement(root, "vcpu", {"max": str(max(each.host.cpus for each in of_arch))})
    firmware = SubElement(root, "os", {"supported": "yes"})
    _enum(firmware, "firmware", sorted({_firmware(each) for each in of_arch} & {"bios", "efi"}))
    SubElement(firmware, "loader", {"supported": "no"})
    cpu = SubElement(root, "cpu")
    for mode, supported in (("host-passthrough", "yes"), ("host-model", "no"), ("custom", "no")):
        SubElement(cpu, "mode", {"name": mode, "supported": supported})
    devices = SubElement(root, "devices")
    disk = SubElement(devices, "disk", {"supported": "yes"})
    _enum(disk, "diskDevice", ("disk", "cdrom"))
    _enum(disk, "bus", _BUSES)
    streams = any(each.host.screen is not None and each.host.screen.rfb for each in of_arch)
    graphics = SubElement(devices, "graphics", {"supported": "yes" if streams else "no"})
    if streams:
        _enum(graphics, "type", ("vnc",))
    # A server has what it has: nothing of these is given to it. Named, for nova takes none left out.
    for each in ("video", "hostdev", "rng", "filesystem", "tpm"):
        SubElement(devices, each, {"supported": "no"})
    features = SubElement(root, "features")
    for each in ("gic", "vmcoreinfo", "genid", "sev"):
        SubElement(features, each, {"supported": "no"})
    return write_element(root)


def _firmware(machine: Machine) -> str:
    """What the host's firmware is, if known. Every 64-bit ARM server has UEFI (Arm's SBBR asks for it)."""
    return machine.inventory.firmware.kind or ("efi" if machine.host.arch == "aarch64" else "")


def _enum(parent: Element, name: str, values: Sequence[str]) -> None:
    made = SubElement(parent, "enum", {"name": name})
    for value in values:
        SubElement(made, "value").text = value
