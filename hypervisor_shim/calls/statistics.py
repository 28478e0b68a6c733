"""Counters of domains: of one, and of many in one call. How they are tuned is in `tuning`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from hypervisor_shim.calls.checks import (
    DOMAIN,
    LIST_FLAGS,
    Ref,
    find_domain,
    known_flags,
    running_domain,
    selected,
)
from hypervisor_shim.driver import DomainInfo, served
from hypervisor_shim.driver.statistics import (
    Counters,
    CpuTime,
    DiskCounters,
    Groups,
    InterfaceCounters,
    Param,
    Statistics,
)
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error
from hypervisor_shim.events import domain_value
from hypervisor_shim.frame import NONNULL_DOMAIN
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import (
    HYPER,
    INT,
    LIST_MAX,
    TEXT,
    TYPED_PARAM,
    UHYPER,
    UINT,
    Array,
    Ready,
    Record,
    Tag,
)

MEMORY_STATS_MAX, DISK_ERRORS_MAX, CPU_STATS_MAX = 1024, 256, 4096
_STRING_PARAMS = 4  # flag of several calls: the client takes parameters that are text


def _statistics(session: Session, function: str) -> Statistics:
    return served(session.driver.statistics, function)


async def _counters(session: Session, info: DomainInfo, function: str) -> Counters:
    found = await _statistics(session, function).counters([info.uuid])
    return found.get(info.uuid, Counters())


# ---- disks ---------------------------------------------------------------------------------------


def _disk(counters: Counters, path: str, wrong: str) -> DiskCounters:
    """By target or by source."""
    for disk in counters.disks:
        if path and path in (disk.target, disk.path):
            return disk
    raise error(Code.INVALID_ARG, wrong)


def _known(value: int | None) -> int:
    return -1 if value is None else value


async def _block_stats(session: Session, ref: Ref, path: str) -> tuple[int, ...]:
    disk = await _running_disk(session, ref, path, "virDomainBlockStats")
    values = (disk.read_requests, disk.read_bytes, disk.write_requests, disk.write_bytes, disk.errors)
    return tuple(map(_known, values))


async def _running_disk(session: Session, ref: Ref, path: str, function: str) -> DiskCounters:
    counters = await _counters(session, running_domain(session, ref), function)
    if path:
        return _disk(counters, path, f"invalid path: {path}")
    if not counters.disks or not _statistics(session, function).detailed:
        raise error(Code.OPERATION_UNSUPPORTED, "summary statistics are not supported yet")
    summed: dict[str, Any] = {name: _sum(counters.disks, name) for _, name in _BLOCK_FLAGS_PARAMS}
    return DiskCounters("", **summed)


def _sum(disks: Sequence[DiskCounters], name: str) -> int | None:
    """Of all disks; not known when it is not known of one."""
    values = [getattr(disk, name) for disk in disks]
    return None if None in values else sum(values)


#: virDomainBlockStatsFlags' names → ours, in QEMU's order.
_BLOCK_FLAGS_PARAMS = (
    ("wr_bytes", "write_bytes"),
    ("wr_operations", "write_requests"),
    ("rd_bytes", "read_bytes"),
    ("rd_operations", "read_requests"),
    ("flush_operations", "flush_requests"),
    ("wr_total_times", "write_ns"),
    ("rd_total_times", "read_ns"),
    ("flush_total_times", "flush_ns"),
    ("errs", "errors"),
)


async def _block_stats_flags(
    session: Session, ref: Ref, path: str, count: int, flags: int
) -> tuple[list[Param], int]:
    known_flags(flags, _STRING_PARAMS, "virDomainBlockStatsFlags")
    if not _statistics(session, "virDomainBlockStatsFlags").detailed:
        raise error(Code.NO_SUPPORT, "virDomainBlockStatsFlags", origin=Origin.DOMAIN)
    disk = await _running_disk(session, ref, path, "virDomainBlockStatsFlags")
    params: list[Param] = [
        (name, Tag.LLONG, value)
        for name, ours in _BLOCK_FLAGS_PARAMS
        if (value := getattr(disk, ours)) is not None
    ]
    return counted(params, count)


def counted(params: list[Param], count: int) -> tuple[list[Param], int]:
    """libvirt's two-step way of typed parameters: asked for none, it is told how many there are."""
    return ([], len(params)) if count == 0 else (params[: max(count, 0)], min(len(params), max(count, 0)))


async def _block_info(session: Session, ref: Ref, path: str, flags: int) -> tuple[int, int, int]:
    info = find_domain(session, ref)
    known_flags(flags, 0, "virDomainGetBlockInfo")
    counters = await _counters(session, info, "virDomainGetBlockInfo")
    disk = _disk(counters, path, f"invalid path {path} not assigned to domain")
    if disk.capacity is None or disk.allocation is None:
        raise error(Code.OPERATION_FAILED, f"the size of disk {disk.target} cannot be read")
    return disk.allocation, disk.capacity, disk.physical if disk.physical is not None else disk.allocation


async def _disk_errors(session: Session, ref: Ref, most: int, flags: int) -> tuple[list[Any], int]:
    info = running_domain(session, ref)
    known_flags(flags, 0, "virDomainGetDiskErrors")
    if most > DISK_ERRORS_MAX:
        raise rpc_error("maxerrors too large")
    disks = (await _counters(session, info, "virDomainGetDiskErrors")).disks
    if most == 0:
        return [], len(disks)
    failing = [(disk.target, disk.failing) for disk in disks if disk.failing][:most]
    return failing, len(failing)


# ---- interfaces, memory, processors --------------------------------------------------------------

_INTERFACE_FIELDS = (
    ("rx.bytes", "rx_bytes"),
    ("rx.pkts", "rx_packets"),
    ("rx.errs", "rx_errors"),
    ("rx.drop", "rx_drops"),
    ("tx.bytes", "tx_bytes"),
    ("tx.pkts", "tx_packets"),
    ("tx.errs", "tx_errors"),
    ("tx.drop", "tx_drops"),
)


async def _interface_stats(session: Session, ref: Ref, device: str) -> tuple[int, ...]:
    counters = await _counters(session, running_domain(session, ref), "virDomainInterfaceStats")
    for each in counters.interfaces:
        if device and device.lower() in (each.name.lower(), each.mac, each.device.lower()):
            return tuple(_known(getattr(each, ours)) for _, ours in _INTERFACE_FIELDS)
    raise error(Code.INVALID_ARG, f"'{device}' is not a known interface")


async def _memory_stats(session: Session, ref: Ref, most: int, flags: int) -> list[tuple[int, int]]:
    info = running_domain(session, ref)
    known_flags(flags, 0, "virDomainMemoryStats")
    if most > MEMORY_STATS_MAX:
        raise rpc_error("maxStats > REMOTE_DOMAIN_MEMORY_STATS_MAX")
    memory = (await _counters(session, info, "virDomainMemoryStats")).memory
    return [(int(tag), value) for tag, value in memory.items()][:most]


def _total(time: CpuTime) -> list[Param]:
    named = (("cpu_time", time.total), ("user_time", time.user), ("system_time", time.system))
    return [(name, Tag.ULLONG, value) for name, value in named if value is not None]


def _of_one(time: CpuTime) -> list[Param]:
    named = (("cpu_time", time.total), ("vcpu_time", time.guest))
    return [(name, Tag.ULLONG, value) for name, value in named if value is not None]


async def _cpu_stats(
    session: Session, ref: Ref, count: int, start: int, cpus: int, flags: int
) -> tuple[list[Param], int]:
    """Start -1: of all processors together. Otherwise `count` figures of each of `cpus` from `start` on."""
    info = running_domain(session, ref)
    known_flags(flags, _STRING_PARAMS, "virDomainGetCPUStats")
    if count > 16 or cpus > 128 or count * cpus > CPU_STATS_MAX:
        raise rpc_error("nparams or ncpus too large")
    counters = await _counters(session, info, "virDomainGetCPUStats")
    if counters.cpu is None:
        raise error(Code.OPERATION_UNSUPPORTED, "the processor time of this domain is not known")
    if start == -1:
        return counted(_total(counters.cpu), count)
    if count == 0:
        of_one = _of_one(counters.per_cpu[0]) if counters.per_cpu else []
        return [], (len(counters.per_cpu) if cpus == 0 else len(of_one))
    if start >= len(counters.per_cpu):
        raise error(Code.INVALID_ARG, f"start_cpu {start} larger than maximum of {len(counters.per_cpu) - 1}")
    shown = [_of_one(each)[:count] for each in counters.per_cpu[start : start + cpus]]
    return [param for each in shown for param in each], max(map(len, shown), default=0)


# ---- of many in one call -------------------------------------------------------------------------

_ALWAYS = Groups.STATE | Groups.CPU | Groups.BALLOON | Groups.VCPU  # what every driver's DomainInfo tells
_ENFORCE, _BACKING, _NOWAIT = 1 << 31, 1 << 30, 1 << 29


def _state_params(info: DomainInfo, _: Counters) -> Iterator[Param]:
    yield "state.state", Tag.INT, int(info.state)
    yield "state.reason", Tag.INT, info.reason


def _cpu_params(info: DomainInfo, counters: Counters) -> Iterator[Param]:
    if not info.active:
        return
    if counters.cpu is None:
        if info.cpu_time_ns is not None:
            yield "cpu.time", Tag.ULLONG, info.cpu_time_ns
        return
    time = counters.cpu
    for name, value in (("time", time.total), ("user", time.user), ("system", time.system)):
        if value is not None:
            yield f"cpu.{name}", Tag.ULLONG, value


#: In QEMU's order and names; `actual` has gone before as balloon.current.
_BALLOON = ("swap_in", "swap_out", "major_fault", "minor_fault", "unused", "available", "", "rss", "usable",
            "last-update", "disk_caches", "hugetlb_pgalloc", "hugetlb_pgfail")  # fmt: skip


def _balloon_params(info: DomainInfo, counters: Counters) -> Iterator[Param]:
    yield "balloon.current", Tag.ULLONG, info.mem_kib
    yield "balloon.maximum", Tag.ULLONG, info.max_mem_kib
    for tag, value in counters.memory.items():
        if _BALLOON[tag]:
            yield f"balloon.{_BALLOON[tag]}", Tag.ULLONG, value


def _vcpu_params(info: DomainInfo, counters: Counters) -> Iterator[Param]:
    yield "vcpu.current", Tag.UINT, info.vcpus
    yield "vcpu.maximum", Tag.UINT, info.max_vcpus
    for vcpu in counters.vcpus:
        yield f"vcpu.{vcpu.number}.state", Tag.INT, int(vcpu.state)
        if vcpu.time_ns is not None:
            yield f"vcpu.{vcpu.number}.time", Tag.ULLONG, vcpu.time_ns


def _interface_params(info: DomainInfo, counters: Counters) -> Iterator[Param]:
    if not info.active:
        return
    yield "net.count", Tag.UINT, len(counters.interfaces)
    for number, each in enumerate(counters.interfaces):
        yield f"net.{number}.name", Tag.STRING, each.name
        yield from _present(f"net.{number}", each, _INTERFACE_FIELDS)


_BLOCK_FIELDS = (
    ("rd.reqs", "read_requests"),
    ("rd.bytes", "read_bytes"),
    ("rd.times", "read_ns"),
    ("wr.reqs", "write_requests"),
    ("wr.bytes", "write_bytes"),
    ("wr.times", "write_ns"),
    ("fl.reqs", "flush_requests"),
    ("fl.times", "flush_ns"),
    ("errors", "errors"),
    ("allocation", "allocation"),
    ("capacity", "capacity"),
    ("physical", "physical"),
)


def _block_params(info: DomainInfo, counters: Counters) -> Iterator[Param]:
    yield "block.count", Tag.UINT, len(counters.disks)
    for number, disk in enumerate(counters.disks):
        yield f"block.{number}.name", Tag.STRING, disk.target
        if disk.path:
            yield f"block.{number}.path", Tag.STRING, disk.path
        yield from _present(f"block.{number}", disk, _BLOCK_FIELDS)


def _present(
    prefix: str, counters: DiskCounters | InterfaceCounters, fields: tuple[tuple[str, str], ...]
) -> Iterator[Param]:
    for name, ours in fields:
        value = getattr(counters, ours)
        if value is not None:
            yield f"{prefix}.{name}", Tag.ULLONG, value


_GROUPS: tuple[tuple[int, Callable[[DomainInfo, Counters], Iterator[Param]]], ...] = (
    (int(Groups.STATE), _state_params),
    (int(Groups.CPU), _cpu_params),
    (int(Groups.BALLOON), _balloon_params),
    (int(Groups.VCPU), _vcpu_params),
    (int(Groups.INTERFACE), _interface_params),
    (int(Groups.BLOCK), _block_params),
)
_NOTHING = Counters()


_RECORD = Ready(Record(NONNULL_DOMAIN, Array(TYPED_PARAM)))


def _params(info: DomainInfo, counters: Counters, wanted: int) -> list[Param]:
    return [param for group, tell in _GROUPS if wanted & group for param in tell(info, counters)]


class _Records:
    """The records of domains that are off, as they were written last: the same until something about them
    changes. One belongs to each set of tables; it holds as many as one list can."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, int], tuple[DomainInfo, Counters, bytes]] = {}

    def of(self, infos: Iterable[DomainInfo], known: Mapping[bytes, Counters], wanted: int) -> list[Any]:
        """What `_RECORD` writes of each."""
        found: list[Any] = []
        for info in infos:
            counters = known.get(info.uuid, _NOTHING)
            kept = self._kept.get((info.uuid, wanted))
            if kept is not None and kept[0] is info and kept[1] is counters:
                found.append(kept[2])
            elif info.active:
                found.append((domain_value(info), _params(info, counters, wanted)))
            elif kept is not None and kept[:2] == (info, counters):
                found.append(kept[2])
            else:
                found.append(self._written(info, counters, wanted))
        return found

    def _written(self, info: DomainInfo, counters: Counters, wanted: int) -> bytes:
        if len(self._kept) >= LIST_MAX:
            self._kept.clear()
        written = _RECORD.written((domain_value(info), _params(info, counters, wanted)))
        self._kept[info.uuid, wanted] = info, counters, written
        return written


async def _all_stats(
    records: _Records, session: Session, refs: list[Ref], stats: int, flags: int
) -> list[Any]:
    bits = flags & 0xFFFFFFFF
    known_flags(bits, LIST_FLAGS | _ENFORCE | _BACKING | _NOWAIT, "virConnectGetAllDomainStats")
    driver = session.driver
    groups = _ALWAYS if driver.statistics is None else driver.statistics.groups
    if bits & _ENFORCE and stats & ~groups:
        raise error(
            Code.ARGUMENT_UNSUPPORTED,
            f"Stats types bits 0x{stats & ~groups:x} are not supported by this daemon",
        )
    wanted = int(stats or groups)
    if refs:
        infos = [info for ref in refs if (info := driver.domain(ref[0])) is not None]
    else:
        infos = selected(driver.domains(), bits & LIST_FLAGS, driver.snapshots)
    known: Mapping[bytes, Counters] = {}
    if driver.statistics is not None and wanted != Groups.STATE:
        uuids = [info.uuid for info in infos]
        known = await driver.statistics.counters(uuids, wait=not bits & _NOWAIT)
    return records.of(infos, known, wanted)


# ---- control and jobs ----------------------------------------------------------------------------


def _control_info(session: Session, ref: Ref, flags: int) -> tuple[int, int, int]:
    """Whether calls on the domain can be carried out now: nothing here is ever held up by another call."""
    running_domain(session, ref)
    known_flags(flags, 0, "virDomainGetControlInfo")
    return 0, 0, 0


_JOB_FIELDS = ("time_elapsed", "time_remaining", "data_total", "data_processed", "data_remaining",
               "memory_total", "memory_processed", "memory_remaining", "disk_total", "disk_processed",
               "disk_remaining")  # fmt: skip


def _job_info(session: Session, ref: Ref) -> tuple[int, ...]:
    info = find_domain(session, ref)
    job = _statistics(session, "virDomainGetJobInfo").job(info.uuid)
    return job.get("type", 0), *(job.get(name, 0) for name in _JOB_FIELDS)


_JOB_COMPLETED, _JOB_KEEP = 1, 2


def _job_stats(session: Session, ref: Ref, flags: int) -> tuple[int, list[Param]]:
    info = find_domain(session, ref)
    known_flags(flags, _JOB_COMPLETED | _JOB_KEEP, "virDomainGetJobStats")
    statistics = _statistics(session, "virDomainGetJobStats")
    if flags & _JOB_COMPLETED:
        return 0, []
    job = statistics.job(info.uuid)
    params: list[Param] = [(name, Tag.ULLONG, job[name]) for name in _JOB_FIELDS if name in job]
    return job.get("type", 0), params


async def _abort_job(session: Session, ref: Ref, flags: int = 0) -> None:
    info = find_domain(session, ref)
    known_flags(flags, 1, "virDomainAbortJobFlags")
    if flags:
        raise LibvirtError(
            Code.OPERATION_INVALID,
            "Requested operation is not valid: current job is not outgoing migration in post-copy mode",
            origin=Origin.QEMU,
        )
    statistics = _statistics(session, "virDomainAbortJob")
    if not info.active:
        running_domain(session, ref)
    await statistics.abort_job(session.caller, info.uuid)


_ACT = Kind.ACT
_PARAMS = Record(Array(TYPED_PARAM), INT)
ROWS = [
    Procedure(64, "virDomainBlockStats", _block_stats, Record(DOMAIN, TEXT), Record(*[HYPER] * 5), True,
              _ACT),
    Procedure(243, "virDomainBlockStatsFlags", _block_stats_flags, Record(DOMAIN, TEXT, INT, UINT), _PARAMS,
              True, _ACT),
    Procedure(194, "virDomainGetBlockInfo", _block_info, Record(DOMAIN, TEXT, UINT), Record(*[UHYPER] * 3),
              True, _ACT),
    Procedure(263, "virDomainGetDiskErrors", _disk_errors, Record(DOMAIN, UINT, UINT),
              Record(Array(Record(TEXT, INT)), INT), True, _ACT),
    Procedure(65, "virDomainInterfaceStats", _interface_stats, Record(DOMAIN, TEXT), Record(*[HYPER] * 8),
              True, _ACT),
    Procedure(159, "virDomainMemoryStats", _memory_stats, Record(DOMAIN, UINT, UINT),
              Array(Record(INT, UHYPER)), True, _ACT),
    Procedure(262, "virDomainGetCPUStats", _cpu_stats, Record(DOMAIN, UINT, INT, UINT, UINT), _PARAMS, True,
              _ACT),
    Procedure(229, "virDomainGetControlInfo", _control_info, Record(DOMAIN, UINT), Record(UINT, UINT, UHYPER),
              True),
    Procedure(163, "virDomainGetJobInfo", _job_info, Record(DOMAIN), Record(INT, *[UHYPER] * 11), True),
    Procedure(298, "virDomainGetJobStats", _job_stats, Record(DOMAIN, UINT), Record(INT, Array(TYPED_PARAM)),
              True),
    Procedure(164, "virDomainAbortJob", _abort_job, Record(DOMAIN), kind=_ACT),
    Procedure(442, "virDomainAbortJobFlags", _abort_job, Record(DOMAIN, UINT), kind=_ACT),
]  # fmt: skip


def rows() -> list[Procedure]:
    """Those of ROWS, and the one that remembers."""
    args = Record(Array(DOMAIN), UINT, INT)
    all_stats = partial(_all_stats, _Records())
    return [
        *ROWS,
        Procedure(344, "virConnectGetAllDomainStats", all_stats, args, Array(_RECORD), True, _ACT),
    ]
