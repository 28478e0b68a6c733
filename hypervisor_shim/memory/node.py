"""The machine of libvirt's test driver: its numbers are what it answers, and mean nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypervisor_shim.driver.node import Node
from hypervisor_shim.errors import Code, error, unsupported
from hypervisor_shim.xml.cpu import Cpu, baseline, format_guest_cpu
from hypervisor_shim.xml.sysinfo import format_sysinfo

_MAX_VCPUS = 32
_FREE = 3 << 20  # bytes
_CELLS = (2 << 20, 4 << 20)  # bytes
_STATS: Mapping[str, int] = {
    "user": 9_797_400_000,
    "kernel": 34_678_723_400_000,
    "idle": 87_264_900_000,
    "iowait": 763_600_000,
}
_CPUS = (True, False, True, False, True, False, False, False)
_BIOS: Mapping[str, str] = {
    "vendor": "LENOVO",
    "version": "G4ETA1WW (2.61 )",
    "date": "05/07/2014",
    "release": "2.61",
}
_MODELS: Mapping[str, Sequence[str]] = {
    "x86_64": ("qemu64", "kvm64", "Penryn", "Nehalem"),
    "i686": ("qemu32", "kvm32"),
    "aarch64": (),
}


class MemoryNode(Node):
    """Always the same."""

    def max_vcpus(self, type: str | None) -> int:
        return _MAX_VCPUS

    def free_memory(self) -> int:
        return _FREE

    def cells_free_memory(self) -> Sequence[int]:
        return _CELLS

    def cpu_map(self) -> Sequence[bool]:
        return _CPUS

    def sysinfo(self) -> str:
        return format_sysinfo({"bios": _BIOS})

    def cpu_stats(self, cpu: int | None) -> Mapping[str, int]:
        return _STATS

    def cpu_models(self, arch: str) -> Sequence[str]:
        if arch not in _MODELS:
            raise error(Code.INVALID_ARG, f"cannot find architecture {arch}")
        return _MODELS[arch]

    def baseline_cpu(self, cpus: Sequence[Cpu], function: str, *, expand: bool, migratable: bool) -> str:
        if function != "virConnectBaselineCPU":
            raise unsupported(function)
        if expand:
            detail = f"{function}: the features that a CPU model implies are not known here"
            raise error(Code.NO_SUPPORT, detail)
        return format_guest_cpu(baseline(cpus, migratable=migratable))
