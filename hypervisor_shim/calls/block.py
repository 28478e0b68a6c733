"""Block jobs, sizes and limits of a domain's disks."""

from __future__ import annotations

from hypervisor_shim.calls.checks import (
    DOMAIN,
    TEXT_OKAY,
    Param,
    Ref,
    find_domain,
    known_flags,
    resolved,
    running_domain,
    typed,
)
from hypervisor_shim.driver import Impact, served
from hypervisor_shim.driver.block import IO_TUNE_NAMES, Copy
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, OPTIONAL_TEXT, TEXT, TYPED_PARAM, UHYPER, UINT, Array, Record, Tag
from hypervisor_shim.xml.device import copy_destination

_MIB = 1 << 20
_KIB = 1 << 10
_SIZE_MAX = (1 << 63) - 1


def _bandwidth(value: int, bytes_flag: bool) -> int:
    """Bytes a second of what a client sent, in MiB a second unless it says otherwise."""
    speed = value if bytes_flag else value * _MIB
    if speed > _SIZE_MAX:
        raise error(
            Code.OVERFLOW, f"bandwidth must be less than {_SIZE_MAX // _MIB + 1}", origin=Origin.DOMAIN
        )
    return speed


_RESIZE_BYTES, _RESIZE_CAPACITY = 1, 2


async def _resize(session: Session, ref: Ref, disk: str, size: int, flags: int) -> None:
    function = "virDomainBlockResize"
    block = served(session.driver.block, function)
    info = running_domain(session, ref)
    known_flags(flags, _RESIZE_BYTES, function)
    if not flags & _RESIZE_BYTES:
        size *= _KIB
    if size > _SIZE_MAX:
        raise error(Code.OVERFLOW, f"size must be less than {_SIZE_MAX // _KIB}", origin=Origin.DOMAIN)
    await block.resize(session.caller, info.uuid, disk, size)


# ---- limits --------------------------------------------------------------------------------------

_IO_TUNE = {name: Tag.STRING if name == "group_name" else Tag.ULLONG for name in IO_TUNE_NAMES}


def _io_tune(session: Session, ref: Ref, disk: str | None, count: int, flags: int) -> tuple[list[Param], int]:
    function = "virDomainGetBlockIoTune"
    block = served(session.driver.block, function)
    info = find_domain(session, ref)
    impact = resolved(info, flags & ~TEXT_OKAY, function)
    if impact is Impact.LIVE | Impact.CONFIG:
        message = "flags 'affect live' and 'affect config' are mutually exclusive"
        raise LibvirtError(Code.INVALID_ARG, message, origin=Origin.DOMAIN)
    if count == 0:
        return [], len(IO_TUNE_NAMES)
    found = block.io_tune(info.uuid, disk, impact)
    shown: list[Param] = [
        (name, tag, str(found.get(name) or "") if tag is Tag.STRING else int(found.get(name) or 0))
        for name, tag in _IO_TUNE.items()
    ]
    return shown[:count], len(shown)


async def _set_io_tune(session: Session, ref: Ref, disk: str, params: list[Param], flags: int) -> None:
    function = "virDomainSetBlockIoTune"
    block = served(session.driver.block, function)
    info = find_domain(session, ref)
    impact = resolved(info, flags, function)
    given: dict[str, int | str] = {}
    for name, value in typed(params, _IO_TUNE):
        if isinstance(value, int) and value > _SIZE_MAX:
            raise error(
                Code.ARGUMENT_UNSUPPORTED, f"block I/O throttle limit value must be no more than {_SIZE_MAX}"
            )
        given[name] = value
    await block.set_io_tune(session.caller, info.uuid, disk, given, impact)


# ---- jobs ----------------------------------------------------------------------------------------

_COPY_SHALLOW, _COPY_REUSE, _COPY_TRANSIENT = 1, 2, 4


async def _copy(
    session: Session, ref: Ref, disk: str, destination: str, params: list[Param], flags: int
) -> None:
    function = "virDomainBlockCopy"
    block = served(session.driver.block, function)
    info = running_domain(session, ref)
    known_flags(flags, 7, function)
    bandwidth = 0
    for name, tag, value in params:
        if name == "bandwidth":
            if tag != Tag.ULLONG:
                said = f"invalid type '{Tag(tag).name.lower()}' for parameter '{name}', expected 'ullong'"
                raise error(Code.INVALID_ARG, said, origin=Origin.NONE)
            bandwidth = value
        elif name not in ("granularity", "buf-size"):  # how the engine goes about it is its own affair
            raise error(Code.INVALID_ARG, f"parameter '{name}' not supported", origin=Origin.NONE)
    path, format = copy_destination(destination)
    copy = Copy(
        path,
        format,
        shallow=bool(flags & _COPY_SHALLOW),
        reuse=bool(flags & _COPY_REUSE),
        bandwidth=bandwidth,
    )
    await block.copy(session.caller, info.uuid, disk, copy)


_REBASE_SHALLOW, _REBASE_REUSE, _REBASE_RAW, _REBASE_COPY = 1, 2, 4, 8
_REBASE_RELATIVE, _REBASE_DEVICE, _REBASE_BYTES = 16, 32, 64


async def _rebase(
    session: Session, ref: Ref, disk: str, base: str | None, bandwidth: int, flags: int
) -> None:
    """A pull that leaves a layer below, or the older way to ask for a copy."""
    function = "virDomainBlockRebase"
    block = served(session.driver.block, function)
    info = running_domain(session, ref)
    known_flags(flags, 127, function)
    speed = _bandwidth(bandwidth, bool(flags & _REBASE_BYTES))
    if not flags & _REBASE_COPY:
        if flags & (_REBASE_SHALLOW | _REBASE_REUSE | _REBASE_RAW | _REBASE_DEVICE):
            raise LibvirtError(
                Code.INVALID_ARG, f"use of flags in {function} requires a copy job", origin=Origin.DOMAIN
            )
        _not_relative(flags & _REBASE_RELATIVE)
        await block.pull(session.caller, info.uuid, disk, base, speed)
        return
    if base is None:
        raise LibvirtError(Code.INVALID_ARG, f"base in {function} must not be NULL", origin=Origin.DOMAIN)
    copy = Copy(
        base,
        "raw" if flags & _REBASE_RAW else None,
        shallow=bool(flags & _REBASE_SHALLOW),
        reuse=bool(flags & _REBASE_REUSE),
        bandwidth=speed,
    )
    await block.copy(session.caller, info.uuid, disk, copy)


def _not_relative(flag: int) -> None:
    if flag:
        raise error(Code.ARGUMENT_UNSUPPORTED, "names of backing files are written as they are given")


_PULL_BYTES = 64


async def _pull(session: Session, ref: Ref, disk: str, bandwidth: int, flags: int) -> None:
    function = "virDomainBlockPull"
    block = served(session.driver.block, function)
    info = running_domain(session, ref)
    known_flags(flags, _PULL_BYTES, function)
    await block.pull(session.caller, info.uuid, disk, None, _bandwidth(bandwidth, bool(flags & _PULL_BYTES)))


_COMMIT_SHALLOW, _COMMIT_DELETE, _COMMIT_ACTIVE, _COMMIT_RELATIVE, _COMMIT_BYTES = 1, 2, 4, 8, 16


async def _commit(
    session: Session, ref: Ref, disk: str, base: str | None, top: str | None, bandwidth: int, flags: int
) -> None:
    function = "virDomainBlockCommit"
    block = served(session.driver.block, function)
    info = running_domain(session, ref)
    known_flags(flags, 31, function)
    _not_relative(flags & _COMMIT_RELATIVE)
    if flags & _COMMIT_DELETE:
        raise error(Code.ARGUMENT_UNSUPPORTED, "committed files are kept; delete them as volumes")
    await block.commit(
        session.caller,
        info.uuid,
        disk,
        base,
        top,
        _bandwidth(bandwidth, bool(flags & _COMMIT_BYTES)),
        shallow=bool(flags & _COMMIT_SHALLOW),
        active=bool(flags & _COMMIT_ACTIVE),
    )


_JOB_BYTES = 1


async def _job_info(session: Session, ref: Ref, disk: str, flags: int) -> tuple[int, int, int, int, int]:
    function = "virDomainGetBlockJobInfo"
    block = served(session.driver.block, function)
    info = running_domain(session, ref)
    known_flags(flags, _JOB_BYTES, function)
    job = await block.job_info(info.uuid, disk)
    if job is None:
        return 0, 0, 0, 0, 0
    bandwidth = job.bandwidth if flags & _JOB_BYTES else -(-job.bandwidth // _MIB)
    return 1, int(job.type), bandwidth, job.cur, job.end


async def _set_job_speed(session: Session, ref: Ref, disk: str, bandwidth: int, flags: int) -> None:
    function = "virDomainBlockJobSetSpeed"
    block = served(session.driver.block, function)
    info = running_domain(session, ref)
    known_flags(flags, _JOB_BYTES, function)
    speed = _bandwidth(bandwidth, bool(flags & _JOB_BYTES))
    await block.set_job_speed(session.caller, info.uuid, disk, speed)


_ABORT_ASYNC, _ABORT_PIVOT = 1, 2


async def _abort(session: Session, ref: Ref, disk: str, flags: int) -> None:
    function = "virDomainBlockJobAbort"
    block = served(session.driver.block, function)
    info = running_domain(session, ref)
    known_flags(flags, _ABORT_ASYNC | _ABORT_PIVOT, function)
    await block.abort(session.caller, info.uuid, disk, pivot=bool(flags & _ABORT_PIVOT))


_ACT = Kind.ACT
_PARAMS = Array(TYPED_PARAM)
ROWS = [
    Procedure(251, "virDomainBlockResize", _resize, Record(DOMAIN, TEXT, UHYPER, UINT), kind=_ACT),
    Procedure(252, "virDomainSetBlockIoTune", _set_io_tune, Record(DOMAIN, TEXT, _PARAMS, UINT), kind=_ACT),
    Procedure(253, "virDomainGetBlockIoTune", _io_tune, Record(DOMAIN, OPTIONAL_TEXT, INT, UINT),
              Record(_PARAMS, INT), True),
    Procedure(237, "virDomainBlockJobAbort", _abort, Record(DOMAIN, TEXT, UINT), kind=_ACT),
    Procedure(238, "virDomainGetBlockJobInfo", _job_info, Record(DOMAIN, TEXT, UINT),
              Record(INT, INT, UHYPER, UHYPER, UHYPER), True, _ACT),
    Procedure(239, "virDomainBlockJobSetSpeed", _set_job_speed, Record(DOMAIN, TEXT, UHYPER, UINT),
              kind=_ACT),
    Procedure(240, "virDomainBlockPull", _pull, Record(DOMAIN, TEXT, UHYPER, UINT), kind=_ACT),
    Procedure(266, "virDomainBlockRebase", _rebase, Record(DOMAIN, TEXT, OPTIONAL_TEXT, UHYPER, UINT),
              kind=_ACT),
    Procedure(290, "virDomainBlockCommit", _commit, kind=_ACT,
              args=Record(DOMAIN, TEXT, OPTIONAL_TEXT, OPTIONAL_TEXT, UHYPER, UINT)),
    Procedure(345, "virDomainBlockCopy", _copy, Record(DOMAIN, TEXT, TEXT, _PARAMS, UINT), kind=_ACT),
]  # fmt: skip
