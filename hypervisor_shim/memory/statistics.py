"""Counters and tunables of domains in memory: made up of the time, as the test driver's are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hypervisor_shim.driver.facts import Caller, Impact
from hypervisor_shim.driver.statistics import (
    Counters,
    CpuTime,
    DiskCounters,
    InterfaceCounters,
    MemoryTag,
    Param,
    Statistics,
    Tuning,
    Vcpu,
)
from hypervisor_shim.errors import Code, error
from hypervisor_shim.xdr import Tag
from hypervisor_shim.xml.domain_change import with_memory, with_vcpus

if TYPE_CHECKING:
    from hypervisor_shim.memory.domains import MemoryDriver

TIB = 1 << 40
CAPACITY = TIB - 5_177_344  # bytes, of every disk
_UNLIMITED = 9007199254740991  # KiB (libvirt: VIR_DOMAIN_MEMORY_PARAM_UNLIMITED)
_PERF = """
    cmt mbmt mbml cpu_cycles instructions cache_references cache_misses branch_instructions branch_misses
    bus_cycles stalled_cycles_frontend stalled_cycles_backend ref_cpu_cycles cpu_clock task_clock page_faults
    context_switches cpu_migrations page_faults_min page_faults_maj alignment_faults emulation_faults
"""
_DEVICE_LIMITS = ("read_iops_sec", "write_iops_sec", "read_bytes_sec", "write_bytes_sec")
DEFAULTS: Mapping[Tuning, tuple[Param, ...]] = {
    Tuning.SCHEDULER: (("weight", Tag.UINT, 50),),
    Tuning.MEMORY: tuple(
        (name, Tag.ULLONG, _UNLIMITED) for name in ("hard_limit", "soft_limit", "swap_hard_limit")
    ),
    Tuning.BLKIO: (
        ("weight", Tag.UINT, 0),
        ("device_weight", Tag.STRING, ""),
        *((f"device_{name}", Tag.STRING, "") for name in _DEVICE_LIMITS),
    ),
    Tuning.NUMA: (("numa_mode", Tag.INT, 0), ("numa_nodeset", Tag.STRING, "")),
    Tuning.PERF: tuple((name, Tag.BOOLEAN, 0) for name in _PERF.split()),
}


class MemoryStatistics(Statistics):
    detailed = False

    def __init__(self, driver: MemoryDriver) -> None:
        self._driver = driver
        self._pins: dict[tuple[bytes, int | None], frozenset[int]] = {}
        self._tuned: dict[tuple[bytes, Tuning], dict[str, Any]] = {}

    async def counters(self, uuids: Sequence[bytes], *, wait: bool = True) -> Mapping[bytes, Counters]:
        return {uuid: self._of(uuid) for uuid in uuids if self._driver.domain(uuid) is not None}

    def _of(self, uuid: bytes) -> Counters:
        info, definition = self._driver.domain(uuid), self._driver.described(uuid)
        assert info is not None
        disks = tuple(
            DiskCounters(each.target, each.path, capacity=CAPACITY, allocation=TIB, physical=TIB)
            for each in definition.disks
        )
        if not info.active:
            return Counters(disks)
        now = time.time_ns()
        counted = (now // 10_000, now // 20_000, now // 30_000, now // 40_000)
        disks = tuple(
            DiskCounters(
                *(each.target, each.path),
                read_requests=counted[0],
                read_bytes=counted[1],
                write_requests=counted[2],
                write_bytes=counted[3],
                errors=now // 2_000_000_000,
                capacity=CAPACITY,
                allocation=TIB,
                physical=TIB,
                failing=1 + number % 2,
            )
            for number, each in enumerate(definition.disks)
        )
        packets = (now // 100_000, now // 10**9, now // (2 * 10**9))
        interfaces = tuple(
            InterfaceCounters(
                *(each.target or f"net{number}", each.mac),
                *(counted[0], *packets),
                *(counted[1], *packets),
            )
            for number, each in enumerate(definition.interfaces)
        )
        spent = info.cpu_time_ns or 0
        return Counters(
            disks,
            interfaces,
            _memory(info.mem_kib, info.max_mem_kib),
            tuple(Vcpu(n, time_ns=spent, cpu=self._last(uuid, n)) for n in range(info.vcpus)),
            CpuTime(spent * info.vcpus, spent // 10, spent // 10),
            tuple(CpuTime(spent, guest=spent) for _ in range(info.vcpus)),
        )

    def _last(self, uuid: bytes, vcpu: int) -> int:
        return max(self._affinity(uuid, vcpu))

    def _affinity(self, uuid: bytes, vcpu: int | None) -> frozenset[int]:
        every = frozenset(range(self._driver.node_info().cpus))
        return self._pins.get((uuid, vcpu), every)

    def affinity(self, uuid: bytes, impact: Impact) -> Sequence[frozenset[int]]:
        info = self._driver.domain(uuid)
        return [] if info is None else [self._affinity(uuid, number) for number in range(info.max_vcpus)]

    def emulator_affinity(self, uuid: bytes, impact: Impact) -> frozenset[int]:
        return self._affinity(uuid, None)

    async def pin(
        self, caller: Caller, uuid: bytes, vcpu: int | None, cpus: frozenset[int], impact: Impact
    ) -> None:
        self._pins[uuid, vcpu] = cpus

    async def set_vcpus_live(self, caller: Caller, uuid: bytes, count: int) -> None:
        self._driver.change_live(uuid, lambda definition: with_vcpus(definition, count))

    async def set_memory_live(self, caller: Caller, uuid: bytes, kib: int) -> None:
        self._driver.change_live(uuid, lambda definition: with_memory(definition, kib))

    def scheduler(self, uuid: bytes) -> str:
        return "fair"

    def parameters(self, uuid: bytes, tuning: Tuning, impact: Impact) -> Sequence[Param]:
        if tuning not in DEFAULTS:
            raise error(Code.NO_SUPPORT, f"virDomainGet{tuning.value}")
        tuned = self._tuned.get((uuid, tuning), {})
        return [(name, tag, tuned.get(name, value)) for name, tag, value in DEFAULTS[tuning]]

    async def set_parameters(
        self, caller: Caller, uuid: bytes, tuning: Tuning, params: Sequence[Param], impact: Impact
    ) -> None:
        self._tuned.setdefault((uuid, tuning), {}).update({name: value for name, _, value in params})


def _memory(current: int, most: int) -> Mapping[MemoryTag, int]:
    """Half of what it has is in use; KiB."""
    return {
        MemoryTag.ACTUAL_BALLOON: current,
        MemoryTag.SWAP_IN: 0,
        MemoryTag.SWAP_OUT: 0,
        MemoryTag.MAJOR_FAULT: 0,
        MemoryTag.MINOR_FAULT: 0,
        MemoryTag.UNUSED: current // 2,
        MemoryTag.AVAILABLE: current,
        MemoryTag.USABLE: current // 2,
        MemoryTag.LAST_UPDATE: int(time.time()),
        MemoryTag.DISK_CACHES: current // 8,
        MemoryTag.HUGETLB_PGALLOC: 0,
        MemoryTag.HUGETLB_PGFAIL: 0,
        MemoryTag.RSS: current // 2,
    }
