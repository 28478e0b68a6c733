"""The machine behind the connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypervisor_shim.calls.checks import known_flags
from hypervisor_shim.calls.documents import parsed, parsed_all
from hypervisor_shim.driver import served
from hypervisor_shim.driver.node import Node, Params
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import (
    INT,
    OPTIONAL_TEXT,
    TEXT,
    TYPED_PARAM,
    UHYPER,
    UINT,
    Array,
    Opaque,
    Record,
)
from hypervisor_shim.xml.cpu import Comparison, parse_cpu, parse_host_cpu

_CELLS_MAX = 1024
_STATS_MAX = 16  # numbers that nodes tell of CPUs or memory
_PARAMS_MAX = 64
_MODELS_MAX = 8192
_CPUS_MAX = 256  # documents in one call
_MAP_MAX = 2048  # bytes of a map of CPUs
_TYPED_STRINGS = 4  # the client understands typed parameters that are strings
_FAIL_INCOMPATIBLE, _VALIDATE = 1, 2
_EXPAND, _MIGRATABLE = 1, 2


def _node(session: Session, function: str) -> Node:
    return served(session.driver.node, function)


def _max_vcpus(session: Session, type: str | None) -> int:
    return _node(session, "virConnectGetMaxVcpus").max_vcpus(type)


# ---- memory --------------------------------------------------------------------------------------


def _free_memory(session: Session) -> int:
    return _node(session, "virNodeGetFreeMemory").free_memory()


def _cells_free_memory(session: Session, first: int, count: int) -> Sequence[int]:
    if count > _CELLS_MAX:
        raise rpc_error("maxCells > REMOTE_NODE_MAX_CELLS")
    cells = _node(session, "virNodeGetCellsFreeMemory").cells_free_memory()
    if not 0 <= first < len(cells) or count <= 0:
        raise error(Code.INVALID_ARG, "Range exceeds available cells")
    return cells[first : first + count]


def _memory_stats(session: Session, room: int, cell: int, flags: int) -> tuple[list[tuple[str, int]], int]:
    node = _node(session, "virNodeGetMemoryStats")
    known_flags(flags, 0, "virNodeGetMemoryStats")
    return _stats(node.memory_stats(_which(cell, "cellNum", "virNodeGetMemoryStats")), room)


def _free_pages(session: Session, sizes: Sequence[int], first: int, cells: int, flags: int) -> Sequence[int]:
    node = _node(session, "virNodeGetFreePages")
    known_flags(flags, 0, "virNodeGetFreePages")
    if len(sizes) * cells > _CELLS_MAX:
        raise rpc_error("the result won't fit into REMOTE_NODE_MAX_CELLS")
    return node.free_pages(sizes, first, cells)


def _memory_parameters(session: Session, room: int, flags: int) -> tuple[Params, int]:
    node = _node(session, "virNodeGetMemoryParameters")
    known_flags(flags, _TYPED_STRINGS, "virNodeGetMemoryParameters")
    return _params(node.memory_parameters(), room)


def _sev_info(session: Session, room: int, flags: int) -> tuple[Params, int]:
    node = _node(session, "virNodeGetSEVInfo")
    known_flags(flags, _TYPED_STRINGS, "virNodeGetSEVInfo")
    # What a client sends as room is not set by it: libvirt's own sends whatever lies on its stack.
    return _params(node.sev_info(), _PARAMS_MAX)


async def _set_memory_parameters(session: Session, params: Params, flags: int) -> None:
    function = "virNodeSetMemoryParameters"
    known_flags(flags, 0, function)
    if not params:
        message = f"params in {function} must not be NULL"
        raise LibvirtError(Code.INVALID_ARG, message, origin=Origin.DOMAIN)
    await _node(session, function).set_memory_parameters(session.caller, params)


async def _alloc_pages(
    session: Session, sizes: Sequence[int], counts: Sequence[int], first: int, cells: int, flags: int
) -> int:
    node = _node(session, "virNodeAllocPages")
    known_flags(flags, 1, "virNodeAllocPages")
    if len(sizes) != len(counts):
        raise rpc_error("page sizes and page counts differ in length")
    return await node.alloc_pages(session.caller, dict(zip(sizes, counts, strict=True)))


def _which(number: int, name: str, function: str) -> int | None:
    """A CPU or cell; -1 means all."""
    if number < -1:
        message = f"{name} in {function} only accepts -1 as a negative value"
        raise LibvirtError(Code.INVALID_ARG, message, origin=Origin.DOMAIN)
    return None if number == -1 else number


def _room(room: int, most: int) -> int:
    if not 0 <= room <= most:
        raise rpc_error("nparams must be non-negative" if room < 0 else "nparams too large")
    return room


def _stats(found: Mapping[str, int], room: int) -> tuple[list[tuple[str, int]], int]:
    """The numbers that the client has room for; without any, how many there are."""
    listed = list(found.items())[: _room(room, _STATS_MAX)]
    return listed, len(listed) if room else len(found)


def _params(found: Params, room: int) -> tuple[Params, int]:
    listed = found[: _room(room, _PARAMS_MAX)]
    return listed, len(listed) if room else len(found)


# ---- CPUs ----------------------------------------------------------------------------------------


def _cpu_stats(session: Session, cpu: int, room: int, flags: int) -> tuple[list[tuple[str, int]], int]:
    node = _node(session, "virNodeGetCPUStats")
    known_flags(flags, 0, "virNodeGetCPUStats")
    return _stats(node.cpu_stats(_which(cpu, "cpuNum", "virNodeGetCPUStats")), room)


def _cpu_map(session: Session, need_map: int, need_online: int, flags: int) -> tuple[bytes, int, int]:
    node = _node(session, "virNodeGetCPUMap")
    known_flags(flags, 0, "virNodeGetCPUMap")
    usable = node.cpu_map()
    bits = sum(1 << number for number, each in enumerate(usable) if each)
    packed = bits.to_bytes((len(usable) + 7) // 8, "little") if need_map else b""
    return packed, sum(usable) if need_online else 0, len(usable)


def _cpu_models(session: Session, arch: str, need_results: int, flags: int) -> tuple[Sequence[str], int]:
    node = _node(session, "virConnectGetCPUModelNames")
    known_flags(flags, 0, "virConnectGetCPUModelNames")
    models = node.cpu_models(arch)
    return (models if need_results else []), len(models)


async def _compare(session: Session, function: str, document: str, flags: int) -> int:
    node = _node(session, function)
    known_flags(flags, _FAIL_INCOMPATIBLE | _VALIDATE, function)
    result = node.compare_cpu(await parsed(parse_cpu, document), function)
    if result is Comparison.INCOMPATIBLE and flags & _FAIL_INCOMPATIBLE:
        detail = "its model, vendor or features are not the host's"
        raise error(Code.CPU_INCOMPATIBLE, detail, origin=Origin.CPU)
    return result


async def _compare_cpu(session: Session, document: str, flags: int) -> int:
    return await _compare(session, "virConnectCompareCPU", document, flags)


async def _compare_hypervisor_cpu(
    session: Session,
    emulator: str | None,
    arch: str | None,
    machine: str | None,
    virt_type: str | None,
    document: str,
    flags: int,
) -> int:
    return await _compare(session, "virConnectCompareHypervisorCPU", document, flags)


async def _baseline(session: Session, function: str, documents: Sequence[str], flags: int) -> str:
    node = _node(session, function)
    if not documents:
        message = f"xmlCPUs in {function} must not be NULL"
        raise LibvirtError(Code.INVALID_ARG, message, origin=Origin.DOMAIN)
    known_flags(flags, _EXPAND | _MIGRATABLE, function)
    cpus = await parsed_all(parse_host_cpu, documents)
    return node.baseline_cpu(
        cpus, function, expand=bool(flags & _EXPAND), migratable=bool(flags & _MIGRATABLE)
    )


async def _baseline_cpu(session: Session, documents: Sequence[str], flags: int) -> str:
    return await _baseline(session, "virConnectBaselineCPU", documents, flags)


async def _baseline_hypervisor_cpu(
    session: Session,
    emulator: str | None,
    arch: str | None,
    machine: str | None,
    virt_type: str | None,
    documents: Sequence[str],
    flags: int,
) -> str:
    return await _baseline(session, "virConnectBaselineHypervisorCPU", documents, flags)


# ---- the rest ------------------------------------------------------------------------------------


def _sysinfo(session: Session, flags: int) -> str:
    node = _node(session, "virConnectGetSysinfo")
    known_flags(flags, 0, "virConnectGetSysinfo")
    return node.sysinfo()


async def _suspend(session: Session, target: int, seconds: int, flags: int) -> None:
    node = _node(session, "virNodeSuspendForDuration")
    known_flags(flags, 0, "virNodeSuspendForDuration")
    await node.suspend(session.caller, target, seconds)


_STATS = Record(Array(Record(TEXT, UHYPER), _STATS_MAX), INT)
_PARAMS = Record(Array(TYPED_PARAM, _PARAMS_MAX), INT)
_CPUS = Array(TEXT, _CPUS_MAX)
_EMULATOR = (OPTIONAL_TEXT,) * 4  # path, architecture, machine, virtualisation type
_ACT = Kind.ACT
ROWS = [
    Procedure(5, "virConnectGetMaxVcpus", _max_vcpus, Record(OPTIONAL_TEXT), INT, True),
    Procedure(102, "virNodeGetFreeMemory", _free_memory, None, UHYPER, True),
    Procedure(101, "virNodeGetCellsFreeMemory", _cells_free_memory, Record(INT, INT),
              Array(UHYPER, _CELLS_MAX), True),
    Procedure(228, "virNodeGetMemoryStats", _memory_stats, Record(INT, INT, UINT), _STATS, True),
    Procedure(340, "virNodeGetFreePages", _free_pages, Record(Array(UINT, _CELLS_MAX), INT, UINT, UINT),
              Array(UHYPER, _CELLS_MAX), True),
    Procedure(347, "virNodeAllocPages", _alloc_pages, kind=_ACT, reply=INT,
              args=Record(Array(UINT, _CELLS_MAX), Array(UHYPER, _CELLS_MAX), INT, UINT, UINT)),
    Procedure(289, "virNodeGetMemoryParameters", _memory_parameters, Record(INT, UINT), _PARAMS, True),
    Procedure(288, "virNodeSetMemoryParameters", _set_memory_parameters, kind=_ACT,
              args=Record(Array(TYPED_PARAM, _PARAMS_MAX), UINT)),
    Procedure(227, "virNodeGetCPUStats", _cpu_stats, Record(INT, INT, UINT), _STATS, True),
    Procedure(293, "virNodeGetCPUMap", _cpu_map, Record(INT, INT, UINT),
              Record(Opaque(_MAP_MAX), UINT, INT), True),
    Procedure(312, "virConnectGetCPUModelNames", _cpu_models, Record(TEXT, INT, UINT),
              Record(Array(TEXT, _MODELS_MAX), INT), True),
    Procedure(158, "virConnectCompareCPU", _compare_cpu, Record(TEXT, UINT), INT, True, _ACT),
    Procedure(162, "virConnectBaselineCPU", _baseline_cpu, Record(_CPUS, UINT), TEXT, True, _ACT),
    Procedure(393, "virConnectCompareHypervisorCPU", _compare_hypervisor_cpu,
              Record(*_EMULATOR, TEXT, UINT), INT, kind=_ACT),
    Procedure(394, "virConnectBaselineHypervisorCPU", _baseline_hypervisor_cpu,
              Record(*_EMULATOR, _CPUS, UINT), TEXT, kind=_ACT),
    Procedure(203, "virConnectGetSysinfo", _sysinfo, Record(UINT), TEXT, True),
    Procedure(395, "virNodeGetSEVInfo", _sev_info, Record(INT, UINT), _PARAMS),
    Procedure(250, "virNodeSuspendForDuration", _suspend, Record(UINT, UHYPER, UINT), kind=_ACT),
]  # fmt: skip
