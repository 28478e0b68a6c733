"""How much a domain has of processors and memory, where they run, and what else can be tuned."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from hypervisor_shim.calls.checks import (
    DOMAIN,
    Ref,
    find_domain,
    impact_of,
    known_flags,
    resolved,
    running_domain,
)
from hypervisor_shim.calls.statistics import counted
from hypervisor_shim.driver import DomainInfo, Impact, served
from hypervisor_shim.driver.statistics import Param, Statistics, Tuning, Vcpu
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, LIST_MAX, TEXT, TYPED_PARAM, UHYPER, UINT, Array, Opaque, Record, Tag
from hypervisor_shim.xml.domain import parse_domain
from hypervisor_shim.xml.domain_change import with_memory, with_vcpus
from hypervisor_shim.xml.domain_def import DomainDef

CPUMAP_MAX, CPUMAPS_MAX = 2048, 8_388_608  # bytes
_MAXIMUM, _GUEST, _HOTPLUGGABLE = 4, 8, 16  # of the flags of SetVcpus; SetMemory has MAXIMUM too
_STRING_PARAMS = 4


def _statistics(session: Session, function: str) -> Statistics:
    return served(session.driver.statistics, function)


def _config(session: Session, info: DomainInfo) -> DomainDef:
    """What the next start will use."""
    return parse_domain(session.driver.domain_xml(info.uuid, inactive=True, secure=True))


# ---- processors ----------------------------------------------------------------------------------


def _get_vcpus_flags(session: Session, ref: Ref, flags: int) -> int:
    info = find_domain(session, ref)
    known_flags(flags, 15, "virDomainGetVcpusFlags")
    if flags & _GUEST:
        raise error(
            Code.OPERATION_UNSUPPORTED, "what the guest has of its processors is told by `virsh guestvcpus`"
        )
    impact = resolved(info, flags & 3, "virDomainGetVcpusFlags")
    if impact & Impact.LIVE:
        return info.max_vcpus if flags & _MAXIMUM else info.vcpus
    config = _config(session, info)
    return config.max_vcpus if flags & _MAXIMUM else config.vcpus


async def _set_vcpus(session: Session, ref: Ref, count: int) -> None:
    await _change_vcpus(session, ref, count, int(Impact.LIVE))


async def _change_vcpus(session: Session, ref: Ref, count: int, flags: int) -> None:
    info = find_domain(session, ref)
    known_flags(flags, 31, "virDomainSetVcpusFlags")
    if not 1 <= count <= LIST_MAX:
        raise LibvirtError(
            Code.INVALID_ARG,
            f"invalid argument: number of virtual CPUs in virDomainSetVcpusFlags must be 1 to {LIST_MAX}",
            origin=Origin.DOMAIN,
        )
    impact = resolved(info, flags & 3, "virDomainSetVcpusFlags")
    if flags & (_GUEST | _HOTPLUGGABLE):
        raise error(Code.OPERATION_UNSUPPORTED, "processors are not taken away from a running OS here")
    if impact & Impact.LIVE and flags & _MAXIMUM:
        raise error(Code.INVALID_ARG, "cannot adjust maximum vcpus on running domain", origin=Origin.DOMAIN)
    most = info.max_vcpus if impact & Impact.LIVE else _config(session, info).max_vcpus
    if count > most and not flags & _MAXIMUM:
        raise error(
            Code.INVALID_ARG, f"requested cpu amount exceeds maximum ({count} > {most})", origin=Origin.DOMAIN
        )
    if impact & Impact.LIVE:
        await _statistics(session, "virDomainSetVcpusFlags").set_vcpus_live(session.caller, info.uuid, count)
    if impact & Impact.CONFIG:
        changed = with_vcpus(_config(session, info), count, maximum=bool(flags & _MAXIMUM))
        await session.driver.redefine(session.caller, changed)


def _map(cpus: frozenset[int], size: int) -> bytes:
    """A bit a processor, the lowest first."""
    whole = bytearray(size)
    for cpu in cpus:
        if cpu < size * 8:
            whole[cpu // 8] |= 1 << cpu % 8
    return bytes(whole)


def _cpus(map: bytes, function: str) -> frozenset[int]:
    cpus = frozenset(i * 8 + bit for i, byte in enumerate(map) for bit in range(8) if byte & 1 << bit)
    if not cpus:
        raise LibvirtError(
            Code.INVALID_ARG, "invalid argument: Empty cpu list for pinning", origin=Origin.DOMAIN
        )
    return cpus


async def _get_vcpus(session: Session, ref: Ref, most: int, size: int) -> tuple[list[Any], bytes]:
    info = running_domain(session, ref)
    if not 0 <= most <= LIST_MAX:
        raise rpc_error("maxinfo > REMOTE_VCPUINFO_MAX")
    if not 0 <= most * size <= CPUMAPS_MAX:
        raise rpc_error("maxinfo * maplen > REMOTE_CPUMAPS_MAX")
    statistics = _statistics(session, "virDomainGetVcpus")
    found = (await statistics.counters([info.uuid])).get(info.uuid)
    vcpus: Sequence[Vcpu] = () if found is None else found.vcpus[:most]
    maps = statistics.affinity(info.uuid, Impact.LIVE)
    told = [(each.number, each.state, each.time_ns or 0, each.cpu) for each in vcpus]
    return told, b"".join(_map(maps[each.number], size) for each in vcpus)


def _get_pins(session: Session, ref: Ref, count: int, size: int, flags: int) -> tuple[bytes, int]:
    info = find_domain(session, ref)
    impact = resolved(info, flags, "virDomainGetVcpuPinInfo")
    if not 0 <= count <= LIST_MAX or not 0 <= count * size <= CPUMAPS_MAX:
        raise rpc_error("ncpumaps * maplen > REMOTE_CPUMAPS_MAX")
    maps = _statistics(session, "virDomainGetVcpuPinInfo").affinity(info.uuid, impact)[:count]
    return b"".join(_map(each, size) for each in maps), len(maps)


def _get_emulator_pin(session: Session, ref: Ref, size: int, flags: int) -> tuple[bytes, int]:
    info = find_domain(session, ref)
    impact = resolved(info, flags, "virDomainGetEmulatorPinInfo")
    if not 0 <= size <= CPUMAPS_MAX:
        raise rpc_error("maplen > REMOTE_CPUMAPS_MAX")
    cpus = _statistics(session, "virDomainGetEmulatorPinInfo").emulator_affinity(info.uuid, impact)
    return _map(cpus, size), 1


async def _pin_vcpu(session: Session, ref: Ref, vcpu: int, map: bytes, flags: int = Impact.LIVE) -> None:
    info = find_domain(session, ref)
    impact = resolved(info, flags, "virDomainPinVcpuFlags")
    cpus = _cpus(map, "virDomainPinVcpuFlags")
    if vcpu >= info.max_vcpus:
        raise error(Code.INVALID_ARG, f"requested vcpu '{vcpu}' is not present in the domain")
    statistics = _statistics(session, "virDomainPinVcpuFlags")
    await statistics.pin(session.caller, info.uuid, vcpu, cpus, impact)


async def _pin_emulator(session: Session, ref: Ref, map: bytes, flags: int) -> None:
    info = find_domain(session, ref)
    impact = resolved(info, flags, "virDomainPinEmulator")
    cpus = _cpus(map, "virDomainPinEmulator")
    await _statistics(session, "virDomainPinEmulator").pin(session.caller, info.uuid, None, cpus, impact)


# ---- memory --------------------------------------------------------------------------------------


async def _set_memory(session: Session, ref: Ref, kib: int) -> None:
    await _change_memory(session, ref, kib, int(Impact.LIVE))


async def _set_max_memory(session: Session, ref: Ref, kib: int) -> None:
    await _change_memory(session, ref, kib, _MAXIMUM)


async def _change_memory(session: Session, ref: Ref, kib: int, flags: int) -> None:
    info = find_domain(session, ref)
    known_flags(flags, 7, "virDomainSetMemoryFlags")
    if not 0 < kib < 1 << 53:
        raise LibvirtError(
            Code.INVALID_ARG,
            "invalid argument: memory in virDomainSetMemoryFlags must not be zero",
            origin=Origin.DOMAIN,
        )
    impact = resolved(info, flags & 3, "virDomainSetMemoryFlags")
    if flags & _MAXIMUM and impact & Impact.LIVE:
        raise error(Code.OPERATION_INVALID, "cannot resize the maximum memory on an active domain")
    if not flags & _MAXIMUM:
        most = info.max_mem_kib if impact & Impact.LIVE else _config(session, info).max_mem_kib
        if kib > most:
            raise error(Code.INVALID_ARG, "cannot set memory higher than max memory")
    if impact & Impact.LIVE:
        await _statistics(session, "virDomainSetMemoryFlags").set_memory_live(session.caller, info.uuid, kib)
    if impact & Impact.CONFIG:
        changed = with_memory(_config(session, info), kib, maximum=bool(flags & _MAXIMUM))
        await session.driver.redefine(session.caller, changed)


async def _memory_period(session: Session, ref: Ref, period: int, flags: int) -> None:
    find_domain(session, ref)
    raise error(Code.OPERATION_UNSUPPORTED, "there is no balloon driver whose statistics could be collected")


# ---- tunables ------------------------------------------------------------------------------------


def _scheduler(session: Session, ref: Ref) -> tuple[str, int]:
    info = find_domain(session, ref)
    statistics = _statistics(session, "virDomainGetSchedulerType")
    name = statistics.scheduler(info.uuid)
    return name, len(statistics.parameters(info.uuid, Tuning.SCHEDULER, Impact.CURRENT))


def _parameters(session: Session, ref: Ref, tuning: Tuning, flags: int) -> list[Param]:
    function = f"virDomainGet{tuning.value}"
    info = find_domain(session, ref)
    impact = resolved(info, known_flags(flags, 7, function) & 3, function)
    return list(_statistics(session, function).parameters(info.uuid, tuning, impact))


def _getter(tuning: Tuning) -> Callable[[Session, Ref, int, int], tuple[list[Param], int]]:
    return lambda session, ref, count, flags: counted(_parameters(session, ref, tuning, flags), count)


def _setter(tuning: Tuning) -> Callable[[Session, Ref, list[Param], int], Coroutine[Any, Any, None]]:
    async def change(session: Session, ref: Ref, params: list[Param], flags: int) -> None:
        function = f"virDomainSet{tuning.value}"
        info = find_domain(session, ref)
        impact = resolved(info, flags, function)
        known = {name: tag for name, tag, _ in _parameters(session, ref, tuning, int(impact))}
        for name, tag, _ in params:
            if name not in known:
                raise error(Code.INVALID_ARG, f"parameter '{name}' not supported")
            if tag != known[name]:
                wanted = Tag(known[name]).name.lower()
                said = f"invalid type '{Tag(tag).name.lower()}' for parameter '{name}', expected '{wanted}'"
                raise error(Code.INVALID_ARG, said)
        statistics = _statistics(session, function)
        await statistics.set_parameters(session.caller, info.uuid, tuning, params, impact)

    return change


def _scheduler_parameters(session: Session, ref: Ref, count: int) -> list[Param]:
    return _parameters(session, ref, Tuning.SCHEDULER, 0)[: max(count, 0)]


def _scheduler_parameters_flags(session: Session, ref: Ref, count: int, flags: int) -> list[Param]:
    return _parameters(session, ref, Tuning.SCHEDULER, flags)[: max(count, 0)]


async def _set_scheduler_parameters(session: Session, ref: Ref, params: list[Param]) -> None:
    await _setter(Tuning.SCHEDULER)(session, ref, params, 0)


def _perf_events(session: Session, ref: Ref, flags: int) -> list[Param]:
    return _parameters(session, ref, Tuning.PERF, flags)


def _iothreads(session: Session, ref: Ref, flags: int) -> tuple[list[Any], int]:
    info = find_domain(session, ref)
    impact_of(info, flags, "virDomainGetIOThreadInfo")
    return [], 0


def _no_iothread(session: Session, ref: Ref, id: int, *_: Any) -> None:
    """There are none to pin, to add to, to take away."""
    find_domain(session, ref)
    raise error(Code.OPERATION_UNSUPPORTED, "there is no emulator here that could have I/O threads")


async def _set_vcpu(session: Session, ref: Ref, map: str, state: int, flags: int) -> None:
    find_domain(session, ref)
    raise error(Code.OPERATION_UNSUPPORTED, "a single processor cannot be plugged in or out here")


_ACT = Kind.ACT
_PARAMS = Record(Array(TYPED_PARAM), INT)
_MAP, _MAPS = Opaque(CPUMAP_MAX), Opaque(CPUMAPS_MAX)
_GET, _SET = Record(DOMAIN, INT, UINT), Record(DOMAIN, Array(TYPED_PARAM), UINT)
ROWS = [
    Procedure(20, "virDomainGetVcpus", _get_vcpus, Record(DOMAIN, INT, INT),
              Record(Array(Record(UINT, INT, UHYPER, INT)), _MAPS), True, _ACT),
    Procedure(200, "virDomainGetVcpusFlags", _get_vcpus_flags, Record(DOMAIN, UINT), INT, True),
    Procedure(32, "virDomainSetVcpus", _set_vcpus, Record(DOMAIN, UINT), kind=_ACT),
    Procedure(199, "virDomainSetVcpusFlags", _change_vcpus, Record(DOMAIN, UINT, UINT), kind=_ACT),
    Procedure(384, "virDomainSetVcpu", _set_vcpu, Record(DOMAIN, TEXT, INT, UINT), kind=_ACT),
    Procedure(230, "virDomainGetVcpuPinInfo", _get_pins, Record(DOMAIN, INT, INT, UINT), Record(_MAPS, INT),
              True),
    Procedure(280, "virDomainGetEmulatorPinInfo", _get_emulator_pin, Record(DOMAIN, INT, UINT),
              Record(_MAPS, INT), True),
    Procedure(26, "virDomainPinVcpu", _pin_vcpu, Record(DOMAIN, UINT, _MAP), kind=_ACT),
    Procedure(225, "virDomainPinVcpuFlags", _pin_vcpu, Record(DOMAIN, UINT, _MAP, UINT), kind=_ACT),
    Procedure(279, "virDomainPinEmulator", _pin_emulator, Record(DOMAIN, _MAP, UINT), kind=_ACT),
    Procedure(31, "virDomainSetMemory", _set_memory, Record(DOMAIN, UHYPER), kind=_ACT),
    Procedure(30, "virDomainSetMaxMemory", _set_max_memory, Record(DOMAIN, UHYPER), kind=_ACT),
    Procedure(204, "virDomainSetMemoryFlags", _change_memory, Record(DOMAIN, UHYPER, UINT), kind=_ACT),
    Procedure(308, "virDomainSetMemoryStatsPeriod", _memory_period, Record(DOMAIN, INT, UINT), kind=_ACT),
    Procedure(56, "virDomainGetSchedulerType", _scheduler, Record(DOMAIN), Record(TEXT, INT), True),
    Procedure(57, "virDomainGetSchedulerParameters", _scheduler_parameters, Record(DOMAIN, INT),
              Array(TYPED_PARAM), True),
    Procedure(223, "virDomainGetSchedulerParametersFlags", _scheduler_parameters_flags, _GET,
              Array(TYPED_PARAM), True),
    Procedure(58, "virDomainSetSchedulerParameters", _set_scheduler_parameters,
              Record(DOMAIN, Array(TYPED_PARAM)), kind=_ACT),
    Procedure(219, "virDomainSetSchedulerParametersFlags", _setter(Tuning.SCHEDULER), _SET, kind=_ACT),
    Procedure(198, "virDomainGetMemoryParameters", _getter(Tuning.MEMORY), _GET, _PARAMS, True),
    Procedure(197, "virDomainSetMemoryParameters", _setter(Tuning.MEMORY), _SET, kind=_ACT),
    Procedure(206, "virDomainGetBlkioParameters", _getter(Tuning.BLKIO), _GET, _PARAMS, True),
    Procedure(205, "virDomainSetBlkioParameters", _setter(Tuning.BLKIO), _SET, kind=_ACT),
    Procedure(255, "virDomainGetNumaParameters", _getter(Tuning.NUMA), _GET, _PARAMS, True),
    Procedure(254, "virDomainSetNumaParameters", _setter(Tuning.NUMA), _SET, kind=_ACT),
    Procedure(365, "virDomainGetPerfEvents", _perf_events, Record(DOMAIN, UINT), Array(TYPED_PARAM), True),
    Procedure(366, "virDomainSetPerfEvents", _setter(Tuning.PERF), _SET, kind=_ACT),
    Procedure(351, "virDomainGetIOThreadInfo", _iothreads, Record(DOMAIN, UINT),
              Record(Array(Record(UINT, _MAP)), UINT), True),
    Procedure(352, "virDomainPinIOThread", _no_iothread, Record(DOMAIN, UINT, _MAP, UINT)),
    Procedure(355, "virDomainAddIOThread", _no_iothread, Record(DOMAIN, UINT, UINT)),
    Procedure(356, "virDomainDelIOThread", _no_iothread, Record(DOMAIN, UINT, UINT)),
    Procedure(402, "virDomainSetIOThreadParams", _no_iothread,
              Record(DOMAIN, UINT, Array(TYPED_PARAM), UINT)),
]  # fmt: skip
