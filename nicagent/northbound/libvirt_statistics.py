"""Counters of metal in libvirt's words: what targets, ports and the host's own OS have counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypervisor_shim.driver import Caller, DomainInfo, Impact
from hypervisor_shim.driver.statistics import (
    Counters as Told,
)
from hypervisor_shim.driver.statistics import (
    CpuTime,
    DiskCounters,
    InterfaceCounters,
    MemoryTag,
    Param,
    Statistics,
    Tuning,
    Vcpu,
    VcpuState,
)
from hypervisor_shim.errors import Code, LibvirtError, error, uuid_text
from nicagent.counters import Counters, Reading, Sizes
from nicagent.hostlink.contract import answers
from nicagent.model import Disk, DomainStatus, ExportStatus
from nicagent.northbound.libvirt_ground import Ground

OFF_MAX = 16_384  # domains that are off, of which is kept what is told
SECTOR = 512  # bytes, of the kernel's own counting
MILLI = 1_000_000  # ns


class MetalStatistics(Statistics):
    def __init__(self, ground: Ground, counters: Counters) -> None:
        self._ground = ground
        self._counters = counters
        self._off: dict[bytes, tuple[DomainInfo, Told]] = {}  # made again when the domain's facts are others

    async def counters(self, uuids: Sequence[bytes], *, wait: bool = True) -> Mapping[bytes, Told]:
        told, on = {}, []
        for uuid in uuids:
            info, kept = self._ground.info(uuid), self._off.get(uuid)
            if kept is not None and kept[0] is info:
                told[uuid] = kept[1]
            elif info.active:
                on.append(uuid)
            else:
                told[uuid] = self._of_one_off(uuid, info)
        known = await self._counters.of(map(uuid_text, on), wait=wait)
        told.update({uuid: self._told(uuid, known.get(uuid_text(uuid))) for uuid in on})
        if len(uuids) == 1 and not known:  # of one that is off the volumes are looked at too
            sizes = await self._counters.sizes(self._ground.status(uuids[0]).domain.disks)
            one = told[uuids[0]]
            disks = [_sized(disk, sizes.get(disk.target)) for disk in one.disks]
            told[uuids[0]] = replace(one, disks=disks)
        return told

    def _of_one_off(self, uuid: bytes, info: DomainInfo) -> Told:
        if len(self._off) >= OFF_MAX:
            self._off.clear()
        told = self._told(uuid, None)
        self._off[uuid] = info, told
        return told

    def _told(self, uuid: bytes, reading: Reading | None) -> Told:
        status = self._ground.status(uuid)
        if reading is None or status.id is None:
            return Told([DiskCounters(disk.target, disk.path) for disk in status.domain.disks])
        exports = {each.target: each for each in reading.exports}
        disks = [_disk(each.disk, exports.get(each.disk.target), reading) for each in status.exports]
        return Told(
            disks,
            _interfaces(status, self._ground.port_names(status), reading),
            {MemoryTag.ACTUAL_BALLOON: status.domain.memory_kib},
            self._vcpus(status, reading.guest_cpus),
            _all_of(reading.guest_cpus),
            [_time(cpu) for cpu in reading.guest_cpus],
        )

    def _vcpus(self, status: DomainStatus, cpus: Sequence[answers.CpuStats]) -> list[Vcpu]:
        """A processor of metal runs while the power is on, on itself."""
        times = {cpu.cpu: _time(cpu).total for cpu in cpus}
        first = self._first_cpu(status)
        return [
            Vcpu(number, VcpuState.RUNNING, times.get(number), first + number)
            for number in range(status.domain.vcpus)
        ]

    def _first_cpu(self, status: DomainStatus) -> int:
        """The node has all hosts' processors, numbered in the order of the config."""
        before = 0
        for name, host in self._ground.config.hosts.items():
            if name == status.host:
                break
            before += host.cpus
        return before

    def affinity(self, uuid: bytes, impact: Impact) -> Sequence[frozenset[int]]:
        """A domain that is off may come to any host; a running one has its host's processors."""
        status = self._ground.status(uuid)
        if status.host is None:
            every = frozenset(range(sum(host.cpus for host in self._ground.config.hosts.values())))
            return [every] * status.domain.vcpus
        first = self._first_cpu(status)
        return [frozenset({first + number}) for number in range(status.domain.vcpus)]

    # ---- what metal is not asked to do

    def emulator_affinity(self, uuid: bytes, impact: Impact) -> frozenset[int]:
        raise error(Code.OPERATION_UNSUPPORTED, "a physical server has no emulator threads")

    async def pin(
        self, caller: Caller, uuid: bytes, vcpu: int | None, cpus: frozenset[int], impact: Impact
    ) -> None:
        raise error(
            Code.OPERATION_UNSUPPORTED,
            "the processors of a physical server are its own; they run on themselves",
        )

    async def set_vcpus_live(self, caller: Caller, uuid: bytes, count: int) -> None:
        raise error(
            Code.OPERATION_UNSUPPORTED,
            "a running physical server keeps its processors; change the definition with --config",
        )

    async def set_memory_live(self, caller: Caller, uuid: bytes, kib: int) -> None:
        raise error(
            Code.OPERATION_UNSUPPORTED,
            "a running physical server keeps its memory; change the definition with --config",
        )

    def scheduler(self, uuid: bytes) -> str:
        raise _not_tuned(Tuning.SCHEDULER)

    def parameters(self, uuid: bytes, tuning: Tuning, impact: Impact) -> Sequence[Param]:
        raise _not_tuned(tuning)

    async def set_parameters(
        self, caller: Caller, uuid: bytes, tuning: Tuning, params: Sequence[Param], impact: Impact
    ) -> None:
        raise _not_tuned(tuning)

    def job(self, uuid: bytes) -> Mapping[str, int]:
        """No memory is ever on its way anywhere; block jobs have calls of their own."""
        return {}

    async def abort_job(self, caller: Caller, uuid: bytes) -> None:
        raise error(Code.OPERATION_INVALID, "no job is active on the domain")


WHY_NOT: Mapping[Tuning, str] = {
    Tuning.SCHEDULER: "nothing schedules the processors of a physical server",
    Tuning.MEMORY: "the memory of a physical server has no limits but its size",
    Tuning.BLKIO: "disks of a physical server have no weights; limit them with blkdeviotune",
    Tuning.NUMA: "the memory of a physical server lies where it is plugged in",
    Tuning.PERF: "nothing counts the processor events of a physical server from outside",
    Tuning.IOTHREAD: "a physical server has no emulator that could have I/O threads",
}


def _not_tuned(tuning: Tuning) -> LibvirtError:
    return error(Code.OPERATION_UNSUPPORTED, f"metal is not tuned like this: {WHY_NOT[tuning]}")


def _disk(disk: Disk, export: ExportStatus | None, reading: Reading) -> DiskCounters:
    """By the target's count, else by the guest's own."""
    counted = DiskCounters(disk.target, disk.path)
    guest = reading.guest_disks.get(disk.target)
    if export is not None and export.read_ops is not None:
        counted = replace(
            counted,
            read_requests=export.read_ops,
            read_bytes=export.read_bytes,
            write_requests=export.write_ops,
            write_bytes=export.write_bytes,
            flush_requests=export.flush_ops,
        )
    elif guest is not None:
        counted = replace(
            counted,
            read_requests=guest.read_ios,
            read_bytes=_times(guest.read_sectors, SECTOR),
            read_ns=_times(guest.read_ticks, MILLI),
            write_requests=guest.write_ios,
            write_bytes=_times(guest.write_sectors, SECTOR),
            write_ns=_times(guest.write_ticks, MILLI),
            flush_requests=guest.flush_ios,
            flush_ns=_times(guest.flush_ticks, MILLI),
        )
    return _sized(counted, reading.sizes.get(disk.target))


def _times(value: int | None, factor: int) -> int | None:
    """A guest may say anything: what does not fit 63 bits is not known."""
    return None if value is None or value > (1 << 63) // factor - 1 else value * factor


def _sized(disk: DiskCounters, sizes: Sizes | None) -> DiskCounters:
    if sizes is None:
        return disk
    return replace(disk, capacity=sizes.capacity, allocation=sizes.allocation, physical=sizes.physical)


def _interfaces(status: DomainStatus, names: Mapping[str, str], reading: Reading) -> list[InterfaceCounters]:
    ports = {port.device: port for port in reading.ports}
    told = []
    for binding in status.bindings:
        port = ports.get(binding.device)
        one = InterfaceCounters(names[binding.mac], binding.mac, device=binding.device)
        if port is not None:
            one = replace(
                one,
                rx_bytes=port.rx_bytes,
                rx_packets=port.rx_packets,
                tx_bytes=port.tx_bytes,
                tx_packets=port.tx_packets,
            )
        told.append(one)
    return told


_LONGEST = (1 << 63) // MILLI // 8 - 1  # ms that still fit 63 bits as ns, seven of them added up


def _time(cpu: answers.CpuStats) -> CpuTime:
    """What a processor did but idle, as the OS accounts for it."""
    user, system = min(cpu.user + cpu.nice, _LONGEST), min(cpu.system + cpu.irq + cpu.softirq, _LONGEST)
    return CpuTime((user + system) * MILLI, user * MILLI, system * MILLI)


def _all_of(cpus: Sequence[answers.CpuStats]) -> CpuTime | None:
    if not cpus:
        return None
    times = [_time(cpu) for cpu in cpus]
    most = (1 << 63) - 1
    return CpuTime(
        min(sum(time.total for time in times), most),
        min(sum(time.user or 0 for time in times), most),
        min(sum(time.system or 0 for time in times), most),
    )
