"""The machine behind the connection: memory, CPUs and their models, firmware tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.errors import unsupported
from hypervisor_shim.xml.cpu import Comparison, Cpu

Params = Sequence[tuple[str, int, Any]]  # name, tag, value of typed parameters


class Node(ABC):
    """Must: what a client needs to place a domain. May: the rest (default: code 3). A driver that knows why
    it cannot answer raises an error of its own that says so.
    """

    @abstractmethod
    def max_vcpus(self, type: str | None) -> int:
        """Of one domain of a virtualisation type (None: the default one)."""

    @abstractmethod
    def cells_free_memory(self) -> Sequence[int]:
        """Bytes that new domains may have, per NUMA cell."""

    def free_memory(self) -> int:
        """Bytes that new domains may have."""
        return sum(self.cells_free_memory())

    @abstractmethod
    def cpu_map(self) -> Sequence[bool]:
        """Per CPU, whether it may be used."""

    def sysinfo(self) -> str:
        """The `<sysinfo>` document."""
        raise unsupported("virConnectGetSysinfo")

    def cpu_stats(self, cpu: int | None) -> Mapping[str, int]:
        """Nanoseconds by what they were spent on (kernel, user, idle, iowait); `cpu` None: all of them."""
        raise unsupported("virNodeGetCPUStats")

    def memory_stats(self, cell: int | None) -> Mapping[str, int]:
        """KiB by name (total, free, buffers, cached), as far as known; `cell` None: all of them."""
        raise unsupported("virNodeGetMemoryStats")

    def cpu_models(self, arch: str) -> Sequence[str]:
        """Names of CPU models of an architecture that a definition may ask for."""
        raise unsupported("virConnectGetCPUModelNames")

    def compare_cpu(self, wanted: Cpu, function: str) -> Comparison:
        """How the hosts' CPU stands to the one that is wanted; `function` is the form that was called."""
        raise unsupported(function)

    def baseline_cpu(self, cpus: Sequence[Cpu], function: str, *, expand: bool, migratable: bool) -> str:
        """The `<cpu>` of what all of them have; `expand`: with the features that its model implies."""
        raise unsupported(function)

    def free_pages(self, sizes: Sequence[int], first_cell: int, cells: int) -> Sequence[int]:
        """Free pages per cell and size (KiB), cell by cell."""
        raise unsupported("virNodeGetFreePages")

    def memory_parameters(self) -> Params:
        raise unsupported("virNodeGetMemoryParameters")

    def sev_info(self) -> Params:
        raise unsupported("virNodeGetSEVInfo")

    async def set_memory_parameters(self, caller: Caller, params: Params) -> None:
        raise unsupported("virNodeSetMemoryParameters")

    async def alloc_pages(self, caller: Caller, pages: Mapping[int, int]) -> int:
        """Reserve huge pages: size in KiB → how many. How many sizes were changed."""
        raise unsupported("virNodeAllocPages")

    async def suspend(self, caller: Caller, target: int, seconds: int) -> None:
        """`target`: 0 memory, 1 disk, 2 both."""
        raise unsupported("virNodeSuspendForDuration")
