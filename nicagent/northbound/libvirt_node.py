"""The hosts behind the agent as libvirt's node: what may be placed there, and what nobody here can know.

Free memory is that of free hosts: a domain gets a whole host. What happens inside a host that runs is its own
system's business, and refused with a sentence that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.driver.node import Node, Params
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.cpu import Comparison, Cpu, baseline, compare, format_guest_cpu
from hypervisor_shim.xml.sysinfo import format_sysinfo
from nicagent.inventory import Inventory
from nicagent.northbound.machine_xml import Machine, common_cpu

_TYPES = ("kvm", "qemu")


class MetalNode(Node):
    """`machines` and `free` tell of this moment: the hosts, and the names of those without a domain."""

    def __init__(self, machines: Callable[[], Sequence[Machine]], free: Callable[[], frozenset[str]]) -> None:
        self._machines = machines
        self._free = free

    def max_vcpus(self, type: str | None) -> int:
        """Those of the largest host: no domain spans two."""
        if type is not None and type.lower() not in _TYPES:
            raise error(Code.INVALID_ARG, f"unknown type '{type}'")
        return max(each.host.cpus for each in self._machines())

    # ---- memory

    def cells_free_memory(self) -> Sequence[int]:
        free = self._free()
        return [each.host.memory_mib << 20 if each.name in free else 0 for each in self._machines()]

    def memory_stats(self, cell: int | None) -> Mapping[str, int]:
        """What is known: all there is, and what free hosts have. Buffers and caches are the hosts' own."""
        machines, free = self._machines(), self.cells_free_memory()
        if cell is not None and cell >= len(machines):
            raise error(
                Code.INVALID_ARG,
                f"cellNum in virNodeGetMemoryStats must be less than or equal to {len(machines) - 1}",
            )
        chosen = range(len(machines)) if cell is None else (cell,)
        return {
            "total": sum(machines[number].host.memory_mib for number in chosen) * 1024,
            "free": sum(free[number] for number in chosen) // 1024,
        }

    def free_pages(self, sizes: Sequence[int], first_cell: int, cells: int) -> Sequence[int]:
        raise _refused(
            "free pages are counted by the operating system of a physical host, in which no agent sits"
        )

    def memory_parameters(self) -> Params:
        raise _refused(
            "page merging is tuned by the operating system of a physical host, in which no agent sits"
        )

    async def set_memory_parameters(self, caller: Caller, params: Params) -> None:
        raise _refused(
            "page merging is tuned by the operating system of a physical host, in which no agent sits"
        )

    async def alloc_pages(self, caller: Caller, pages: Mapping[int, int]) -> int:
        raise _refused(
            "huge pages are reserved by the operating system of a physical host, in which no agent sits"
        )

    # ---- CPUs

    def cpu_map(self) -> Sequence[bool]:
        """Every CPU may be used: a host that is off is switched on for its domain."""
        return [True] * sum(each.host.cpus for each in self._machines())

    def cpu_stats(self, cpu: int | None) -> Mapping[str, int]:
        raise _refused(
            "CPU time is counted by the operating system of a physical host, in which no agent sits"
        )

    def cpu_models(self, arch: str) -> Sequence[str]:
        machines = [each for each in self._machines() if each.host.arch == arch]
        if not machines:
            raise error(Code.INVALID_ARG, f"no host here has the architecture {arch}")
        models = [each.cpu.model for each in machines]
        if None in models:  # none at all would mean to clients that every model will do
            raise _no_model(machines)
        return sorted({model for model in models if model is not None})

    def compare_cpu(self, wanted: Cpu, function: str) -> Comparison:
        """With what all hosts have in common: a domain may be placed on any of them."""
        host = common_cpu(self._machines())
        if host.model is None and (wanted.model is not None or wanted.features):
            raise _no_model(self._machines())
        return compare(host, wanted)

    def baseline_cpu(self, cpus: Sequence[Cpu], function: str, *, expand: bool, migratable: bool) -> str:
        if expand:
            detail = f"{function}: the features that a CPU model implies are not known here"
            raise error(Code.NO_SUPPORT, detail, origin=Origin.CPU)
        return format_guest_cpu(baseline(cpus, migratable=migratable))

    # ---- the rest

    def sysinfo(self) -> str:
        machines = self._machines()
        if len(machines) > 1:
            raise error(
                Code.OPERATION_UNSUPPORTED,
                f"there are {len(machines)} hosts, and a machine's own tables are of one of them: "
                "see virsh nodedev-list --cap system",
            )
        sections = sysinfo_sections(machines[0].inventory)
        if not any(sections.values()):
            raise error(
                Code.OPERATION_UNSUPPORTED,
                f"the firmware tables of host {machines[0].name} are not known: "
                "they are declared in the config, or told at its next boot from the network",
            )
        return format_sysinfo(sections)

    def sev_info(self) -> Params:
        raise error(Code.OPERATION_UNSUPPORTED, "a physical server is no confidential guest of its own")

    async def suspend(self, caller: Caller, target: int, seconds: int) -> None:
        raise error(
            Code.OPERATION_UNSUPPORTED,
            "the node is this agent, which stays up for its hosts; a host is switched off by its domain",
        )


def sysinfo_sections(inventory: Inventory) -> Mapping[str, Mapping[str, str]]:
    """What is known of a host, by libvirt's names of SMBIOS' sections and entries."""
    firmware, system, board = inventory.firmware, inventory.system, inventory.board
    enclosure, cpu = inventory.enclosure, inventory.cpu
    sections = {
        "bios": {
            "vendor": firmware.vendor,
            "version": firmware.version,
            "date": firmware.date,
            "release": firmware.release,
        },
        "system": {
            "manufacturer": system.manufacturer,
            "product": system.product,
            "version": system.version,
            "serial": system.serial,
            "uuid": system.uuid,
            "sku": system.sku,
            "family": system.family,
        },
        "baseBoard": {
            "manufacturer": board.manufacturer,
            "product": board.product,
            "version": board.version,
            "serial": board.serial,
        },
        "chassis": {
            "manufacturer": enclosure.manufacturer,
            "version": enclosure.version,
            "serial": enclosure.serial,
            "asset": enclosure.asset,
        },
        "processor": {"manufacturer": cpu.vendor, "version": cpu.name},
    }
    return {
        name: {key: value for key, value in entries.items() if value} for name, entries in sections.items()
    }


def _refused(why: str) -> LibvirtError:
    return error(Code.OPERATION_UNSUPPORTED, why)


def _no_model(machines: Sequence[Machine]) -> LibvirtError:
    """Code 3, by which nova knows that it has to do without comparing."""
    unnamed = [each.name for each in machines if each.cpu.model is None]
    which = (
        f"the CPU model of host {unnamed[0]} is not declared" if unnamed else "the hosts' CPU models differ"
    )
    return error(Code.NO_SUPPORT, f"{which}: see hosts.NAME.cpu_model in the config", origin=Origin.CPU)
