"""What calls on domains check first: the domain, its flags, and what they may mean for it now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hypervisor_shim.driver import DomainInfo, Impact, State
from hypervisor_shim.driver.snapshot import Snapshots
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, no_domain, not_running
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import DomainRef, Tag

Ref = tuple[bytes, bytes]  # UUID and name, as the client sent them
DOMAIN = DomainRef()
Param = tuple[str, int, Any]  # a typed parameter: name, tag, value
TEXT_OKAY = 4  # flag of calls that tell typed parameters: the client takes text, as all do


def find_domain(session: Session, ref: Ref) -> DomainInfo:
    """The domain that a call names, as it is now. Raises NO_DOMAIN."""
    info = session.driver.domain(ref[0])
    if info is None:
        raise no_domain(ref[0], ref[1].decode("utf-8", "surrogateescape"))
    return info


def shown(session: Session, owner: bytes | None) -> bool:
    """Whether this client may be told of something that is `owner`'s, the domain of that UUID (None: it is
    nobody's, or nobody knows whose)."""
    return owner is None or session.driver.domain(owner) is not None


def running_domain(session: Session, ref: Ref) -> DomainInfo:
    """The same, and it runs. Raises NO_DOMAIN, OPERATION_INVALID."""
    info = find_domain(session, ref)
    if not info.active:
        raise not_running()
    return info


def known_flags(flags: int, allowed: int, function: str, origin: Origin = Origin.QEMU) -> int:
    """The flags, if the call knows them all (libvirt refuses the rest with INVALID_ARG)."""
    unknown = flags & ~allowed
    if unknown:
        message = f"unsupported flags (0x{unknown:x}) in function {function}"
        raise LibvirtError(Code.INVALID_ARG, message, origin=origin)
    return flags


def passes(facts: int, flags: int, groups: Iterable[int]) -> bool:
    """Whether a listing with these flags shows what has these facts: it has one of each group of filters in
    which a flag is set."""
    return all(not flags & group or flags & group & facts for group in groups)


def impact_of(info: DomainInfo, flags: int, function: str) -> Impact:
    """What LIVE and CONFIG may mean for this domain now."""
    impact = Impact(known_flags(flags, 3, function))
    if impact & Impact.LIVE and not info.active:
        raise error(Code.OPERATION_INVALID, "domain is not running")
    if impact & Impact.CONFIG and not info.persistent:
        raise error(Code.OPERATION_INVALID, "transient domains do not have any persistent config")
    return impact


def resolved(info: DomainInfo, flags: int, function: str) -> Impact:
    """LIVE, CONFIG or both: no flag means whatever the domain is now."""
    return info.meant(impact_of(info, flags, function))


def typed(params: Iterable[Param], wanted: Mapping[str, Tag]) -> Iterator[tuple[str, Any]]:
    """Parameters that a call takes, by name. Raises INVALID_ARG for others, and for another type of value."""
    for name, tag, value in params:
        if name not in wanted:
            raise error(Code.INVALID_ARG, f"parameter '{name}' not supported", origin=Origin.NONE)
        if tag != wanted[name]:
            told = f"invalid type '{Tag(tag).name.lower()}' for parameter '{name}'"
            said = f"{told}, expected '{wanted[name].name.lower()}'"
            raise error(Code.INVALID_ARG, said, origin=Origin.NONE)
        yield name, value


#: Filters of virConnectListAllDomains: groups of bits; one with none or all of its bits set filters nothing.
_ACTIVE, _INACTIVE, _PERSISTENT, _TRANSIENT = 1, 2, 4, 8
_RUNNING, _PAUSED, _SHUTOFF, _OTHER = 16, 32, 64, 128
_MANAGED_SAVE, _NO_MANAGED_SAVE, _AUTOSTART, _NO_AUTOSTART = 256, 512, 1024, 2048
_SNAPSHOT, _NO_SNAPSHOT, _CHECKPOINT, _NO_CHECKPOINT = 4096, 8192, 16384, 32768
LIST_FLAGS = 0xFFFF


def selected(infos: Iterable[DomainInfo], flags: int, snapshots: Snapshots | None = None) -> list[DomainInfo]:
    """Those that a listing with these flags shows."""
    groups = [flags & group for group in _GROUPS if 0 < flags & group < group]
    if not groups:
        return list(infos)
    return [info for info in infos if _matches(info, groups, snapshots)]


def _matches(info: DomainInfo, groups: list[int], snapshots: Snapshots | None) -> bool:
    facts = _ACTIVE if info.active else _INACTIVE
    facts |= _PERSISTENT if info.persistent else _TRANSIENT
    facts |= _AUTOSTART if info.autostart else _NO_AUTOSTART
    facts |= _NO_MANAGED_SAVE | _NO_CHECKPOINT
    facts |= _SNAPSHOT if snapshots is not None and snapshots.snapshots(info.uuid) else _NO_SNAPSHOT
    state = info.state
    if state is State.RUNNING:
        facts |= _RUNNING
    elif state is State.PAUSED:
        facts |= _PAUSED
    elif state is State.SHUTOFF:
        facts |= _SHUTOFF
    else:
        facts |= _OTHER
    return all(wanted & facts for wanted in groups)


_GROUPS = (
    _ACTIVE | _INACTIVE,
    _PERSISTENT | _TRANSIENT,
    _RUNNING | _PAUSED | _SHUTOFF | _OTHER,
    _MANAGED_SAVE | _NO_MANAGED_SAVE,
    _AUTOSTART | _NO_AUTOSTART,
    _SNAPSHOT | _NO_SNAPSHOT,
    _CHECKPOINT | _NO_CHECKPOINT,
)
