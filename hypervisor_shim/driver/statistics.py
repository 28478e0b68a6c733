"""What is counted and measured of domains, and what of them can be tuned.

A number that is not known is None or not there, never zero: libvirt's answers have a way to leave each out.
One call brings the counters of many domains; every answer about one domain is cut from the same facts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, IntFlag
from typing import Any

from hypervisor_shim.driver.facts import Caller, Impact
from hypervisor_shim.errors import Code, LibvirtError, error

#: `(name, tag, value)` as on the wire; tags are `xdr.Tag`.
Param = tuple[str, int, Any]


class MemoryTag(IntEnum):
    """What a figure of memory is of (libvirt: virDomainMemoryStatTags). KiB, or counts."""

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJOR_FAULT = 2
    MINOR_FAULT = 3
    UNUSED = 4
    AVAILABLE = 5
    ACTUAL_BALLOON = 6
    RSS = 7
    USABLE = 8
    LAST_UPDATE = 9
    DISK_CACHES = 10
    HUGETLB_PGALLOC = 11
    HUGETLB_PGFAIL = 12


class VcpuState(IntEnum):
    """libvirt: virVcpuState."""

    OFFLINE = 0
    RUNNING = 1
    BLOCKED = 2


@dataclass(frozen=True, slots=True)
class DiskCounters:
    """One disk. Requests and bytes since it came up, times in ns, sizes in bytes. `path`: its source."""

    target: str
    path: str | None = None
    read_requests: int | None = None
    read_bytes: int | None = None
    read_ns: int | None = None
    write_requests: int | None = None
    write_bytes: int | None = None
    write_ns: int | None = None
    flush_requests: int | None = None
    flush_ns: int | None = None
    errors: int | None = None
    capacity: int | None = None
    allocation: int | None = None
    physical: int | None = None
    failing: int = 0  # 0 no error, 1 some error, 2 out of space (libvirt: virDomainDiskErrorCode)


@dataclass(frozen=True, slots=True)
class InterfaceCounters:
    """One interface, from the domain's point of view: rx is what it received. `name`: its target in the
    domain's document; `device`: what it is called on the node, if that is another name."""

    name: str
    mac: str
    rx_bytes: int | None = None
    rx_packets: int | None = None
    rx_errors: int | None = None
    rx_drops: int | None = None
    tx_bytes: int | None = None
    tx_packets: int | None = None
    tx_errors: int | None = None
    tx_drops: int | None = None
    device: str = ""


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Time in ns that a processor, or all of them, spent for the domain."""

    total: int
    user: int | None = None
    system: int | None = None
    guest: int | None = None  # the part in which the domain's own code ran


@dataclass(frozen=True, slots=True)
class Vcpu:
    """A virtual processor now. `cpu`: of the node, on which it runs; -2 = not known, -1 = offline."""

    number: int
    state: VcpuState = VcpuState.RUNNING
    time_ns: int | None = None
    cpu: int = -2


@dataclass(frozen=True, slots=True)
class Counters:
    """All that is known of one domain; empty while it does not run (disks still have sizes)."""

    disks: Sequence[DiskCounters] = ()
    interfaces: Sequence[InterfaceCounters] = ()
    memory: Mapping[MemoryTag, int] = field(default_factory=dict)
    vcpus: Sequence[Vcpu] = ()
    cpu: CpuTime | None = None
    per_cpu: Sequence[CpuTime] = ()


class Groups(IntFlag):
    """Groups of virConnectGetAllDomainStats."""

    STATE = 1
    CPU = 2
    BALLOON = 4
    VCPU = 8
    INTERFACE = 16
    BLOCK = 32
    PERF = 64
    IOTHREAD = 128
    MEMORY = 256
    DIRTYRATE = 512
    VM = 1024


class Tuning(Enum):
    """What can be tuned, by the part of the API's names that tells them apart."""

    SCHEDULER = "SchedulerParameters"
    MEMORY = "MemoryParameters"
    BLKIO = "BlkioParameters"
    NUMA = "NumaParameters"
    PERF = "PerfEvents"
    IOTHREAD = "IOThread"


class Statistics(ABC):
    """Must: `counters`, `affinity`. May: the rest (default: code 3)."""

    #: Groups that `counters` knows something of: a client that insists on others is refused.
    groups: Groups = (
        Groups.STATE | Groups.CPU | Groups.BALLOON | Groups.VCPU | Groups.INTERFACE | Groups.BLOCK
    )
    #: Whether block counters are more than virDomainBlockStats tells: times, flushes, all disks together.
    detailed = True

    @abstractmethod
    async def counters(self, uuids: Sequence[bytes], *, wait: bool = True) -> Mapping[bytes, Counters]:
        """Of as many of these as can be told in short time. Not `wait`: only what is at hand."""

    @abstractmethod
    def affinity(self, uuid: bytes, impact: Impact) -> Sequence[frozenset[int]]:
        """For each virtual processor those of the node on which it may run."""

    def emulator_affinity(self, uuid: bytes, impact: Impact) -> frozenset[int]:
        raise _unsupported("virDomainGetEmulatorPinInfo")

    async def pin(
        self, caller: Caller, uuid: bytes, vcpu: int | None, cpus: frozenset[int], impact: Impact
    ) -> None:
        """Let a virtual processor (None: the emulator) run on these only."""
        raise _unsupported("virDomainPinVcpu" if vcpu is not None else "virDomainPinEmulator")

    async def set_vcpus_live(self, caller: Caller, uuid: bytes, count: int) -> None:
        raise _unsupported("virDomainSetVcpusFlags")

    async def set_memory_live(self, caller: Caller, uuid: bytes, kib: int) -> None:
        raise _unsupported("virDomainSetMemoryFlags")

    def scheduler(self, uuid: bytes) -> str:
        """What schedules the domain's processors."""
        raise _unsupported("virDomainGetSchedulerType")

    def parameters(self, uuid: bytes, tuning: Tuning, impact: Impact) -> Sequence[Param]:
        raise _unsupported(f"virDomainGet{tuning.value}")

    async def set_parameters(
        self, caller: Caller, uuid: bytes, tuning: Tuning, params: Sequence[Param], impact: Impact
    ) -> None:
        raise _unsupported(f"virDomainSet{tuning.value}")

    def job(self, uuid: bytes) -> Mapping[str, int]:
        """The running job's figures by virDomainJobInfo's names, and `type`; empty: no job runs."""
        raise _unsupported("virDomainGetJobInfo")

    async def abort_job(self, caller: Caller, uuid: bytes) -> None:
        raise _unsupported("virDomainAbortJob")


def _unsupported(function: str) -> LibvirtError:
    return error(Code.NO_SUPPORT, function)
