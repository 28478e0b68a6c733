"""Snapshots, and checkpoints, of which there are none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hypervisor_shim.access import Right, permit
from hypervisor_shim.calls.checks import DOMAIN, Ref, find_domain, known_flags, passes
from hypervisor_shim.calls.documents import parsed
from hypervisor_shim.driver import DomainInfo, served
from hypervisor_shim.driver.snapshot import (
    Snapshot,
    SnapshotCreateFlags,
    SnapshotDeleteFlags,
    SnapshotRevertFlags,
    Snapshots,
    no_snapshot,
)
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error
from hypervisor_shim.events import domain_value
from hypervisor_shim.frame import NONNULL_DOMAIN
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, LIST_MAX, TEXT, UINT, Array, Record
from hypervisor_shim.xml.domain import parse_domain
from hypervisor_shim.xml.domain_change import with_name
from hypervisor_shim.xml.snapshot import format_snapshot, parse_snapshot

SnapshotRef = tuple[str, Ref]
Value = tuple[str, tuple[str, bytes, int]]

#: Filters of the lists. The first bit says "roots" of a domain's and "descendants" of a snapshot's.
_FIRST, _METADATA, _LEAVES, _NO_LEAVES, _NO_METADATA = 1, 2, 4, 8, 16
_INACTIVE, _ACTIVE, _DISK_ONLY, _INTERNAL, _EXTERNAL, _TOPOLOGICAL = 32, 64, 128, 256, 512, 1024
_LIST_FLAGS = 2047
_GROUPS = (
    _METADATA | _NO_METADATA, _LEAVES | _NO_LEAVES, _INACTIVE | _ACTIVE | _DISK_ONLY, _INTERNAL | _EXTERNAL,
)  # fmt: skip


def _facts(snapshot: Snapshot, parents: set[str | None]) -> int:
    facts = _METADATA | (_NO_LEAVES if snapshot.name in parents else _LEAVES)
    facts |= {"disk-snapshot": _DISK_ONLY, "shutoff": _INACTIVE}.get(snapshot.state, _ACTIVE)
    return facts | (_EXTERNAL if snapshot.external else _INTERNAL)


def _filtered(everything: Sequence[Snapshot], some: Iterable[Snapshot], flags: int) -> list[Snapshot]:
    parents = {each.parent for each in everything}
    return [each for each in some if passes(_facts(each, parents), flags, _GROUPS)]


def _all(session: Session, ref: Ref, flags: int, function: str) -> tuple[DomainInfo, list[Snapshot]]:
    snapshots = served(session.driver.snapshots, function)
    info = find_domain(session, ref)
    known_flags(flags, _LIST_FLAGS, function)
    everything = snapshots.snapshots(info.uuid)
    some = [each for each in everything if each.parent is None] if flags & _FIRST else everything
    return info, _filtered(everything, some, flags)


def _children(
    session: Session, ref: SnapshotRef, flags: int, function: str
) -> tuple[DomainInfo, list[Snapshot]]:
    info, snapshots, own = _found(session, ref, function)
    known_flags(flags, _LIST_FLAGS, function)
    everything = snapshots.snapshots(info.uuid)
    known, some = {own.name}, []
    for each in everything:  # parents come before their children
        if each.parent in known:
            some.append(each)
            if flags & _FIRST:
                known.add(each.name)
    return info, _filtered(everything, some, flags)


def _found(session: Session, ref: SnapshotRef, function: str) -> tuple[DomainInfo, Snapshots, Snapshot]:
    snapshots = served(session.driver.snapshots, function)
    name, domain = ref
    info = find_domain(session, domain)
    return info, snapshots, find_snapshot(snapshots, info.uuid, name)


def find_snapshot(snapshots: Snapshots, uuid: bytes, name: str) -> Snapshot:
    """One by name. Raises NO_DOMAIN_SNAPSHOT."""
    for each in snapshots.snapshots(uuid):
        if each.name == name:
            return each
    raise no_snapshot(name)


def _value(info: DomainInfo, name: str) -> Value:
    return name, domain_value(info)


def _limit(count: int) -> int:
    if count < 0 or count > LIST_MAX:
        raise rpc_error("maxnames > REMOTE_DOMAIN_SNAPSHOT_LIST_MAX")
    return count


# ---- reading -------------------------------------------------------------------------------------


def _num(session: Session, ref: Ref, flags: int) -> int:
    return len(_all(session, ref, flags, "virDomainSnapshotNum")[1])


def _names(session: Session, ref: Ref, count: int, flags: int) -> list[str]:
    limit = _limit(count)
    return [each.name for each in _all(session, ref, flags, "virDomainSnapshotListNames")[1]][:limit]


def _list(session: Session, ref: Ref, need_results: int, flags: int) -> tuple[list[Value], int]:
    info, found = _all(session, ref, flags, "virDomainListAllSnapshots")
    return ([_value(info, each.name) for each in found] if need_results else []), len(found)


def _num_children(session: Session, ref: SnapshotRef, flags: int) -> int:
    return len(_children(session, ref, flags, "virDomainSnapshotNumChildren")[1])


def _names_children(session: Session, ref: SnapshotRef, count: int, flags: int) -> list[str]:
    limit = _limit(count)
    found = _children(session, ref, flags, "virDomainSnapshotListChildrenNames")[1]
    return [each.name for each in found][:limit]


def _list_children(
    session: Session, ref: SnapshotRef, need_results: int, flags: int
) -> tuple[list[Value], int]:
    info, found = _children(session, ref, flags, "virDomainSnapshotListAllChildren")
    return ([_value(info, each.name) for each in found] if need_results else []), len(found)


def _lookup(session: Session, ref: Ref, name: str, flags: int) -> Value:
    function = "virDomainSnapshotLookupByName"
    snapshots = served(session.driver.snapshots, function)
    info = find_domain(session, ref)
    known_flags(flags, 0, function)
    return _value(info, find_snapshot(snapshots, info.uuid, name).name)


def _current_name(session: Session, ref: Ref, flags: int, function: str) -> tuple[DomainInfo, str | None]:
    snapshots = served(session.driver.snapshots, function)
    info = find_domain(session, ref)
    known_flags(flags, 0, function)
    return info, snapshots.current(info.uuid)


def _has_current(session: Session, ref: Ref, flags: int) -> int:
    return _current_name(session, ref, flags, "virDomainHasCurrentSnapshot")[1] is not None


def _current(session: Session, ref: Ref, flags: int) -> Value:
    info, name = _current_name(session, ref, flags, "virDomainSnapshotCurrent")
    if name is None:
        detail = f"the domain '{info.name}' has no current snapshot"
        raise error(Code.NO_DOMAIN_SNAPSHOT, detail, origin=Origin.DOMAIN_SNAPSHOT)
    return _value(info, name)


def _xml(session: Session, ref: SnapshotRef, flags: int) -> str:
    if session.caller.read_only and flags & 1:
        raise error(
            Code.OPERATION_DENIED, "virDomainSnapshotGetXMLDesc with secure flag", origin=Origin.DOMAIN
        )
    known_flags(flags, 1, "virDomainSnapshotGetXMLDesc")
    found = _found(session, ref, "virDomainSnapshotGetXMLDesc")[2]
    return format_snapshot(found, secure=bool(flags & 1))


def _parent(session: Session, ref: SnapshotRef, flags: int) -> Value:
    info, _, own = _found(session, ref, "virDomainSnapshotGetParent")
    known_flags(flags, 0, "virDomainSnapshotGetParent")
    if own.parent is None:
        detail = f"snapshot '{own.name}' does not have a parent"
        raise error(Code.NO_DOMAIN_SNAPSHOT, detail, origin=Origin.DOMAIN_SNAPSHOT)
    return _value(info, own.parent)


def _is_current(session: Session, ref: SnapshotRef, flags: int) -> int:
    info, snapshots, own = _found(session, ref, "virDomainSnapshotIsCurrent")
    known_flags(flags, 0, "virDomainSnapshotIsCurrent")
    return snapshots.current(info.uuid) == own.name


def _has_metadata(session: Session, ref: SnapshotRef, flags: int) -> int:
    _found(session, ref, "virDomainSnapshotHasMetadata")
    known_flags(flags, 0, "virDomainSnapshotHasMetadata")
    return 1


# ---- acting --------------------------------------------------------------------------------------


async def _create(session: Session, ref: Ref, xml: str, flags: int) -> Value:
    function = "virDomainSnapshotCreateXML"
    snapshots = served(session.driver.snapshots, function)
    info = find_domain(session, ref)
    known = SnapshotCreateFlags(known_flags(flags, 1023, function))
    if known & SnapshotCreateFlags.CURRENT and not known & SnapshotCreateFlags.REDEFINE:
        known &= ~SnapshotCreateFlags.CURRENT  # a new one is current anyhow
    for one, other in (("REDEFINE", "NO_METADATA"), ("REDEFINE", "HALT")):
        if known & SnapshotCreateFlags[one] and known & SnapshotCreateFlags[other]:
            raise LibvirtError(
                Code.INVALID_ARG,
                f"Unsupported flags (0x{int(SnapshotCreateFlags[other]):x}) in function {function}",
                origin=Origin.DOMAIN,
            )
    name = await snapshots.create(session.caller, info.uuid, await parsed(parse_snapshot, xml), known)
    return _value(info, name)


async def _revert(session: Session, ref: SnapshotRef, flags: int) -> None:
    function = "virDomainRevertToSnapshot"
    info, snapshots, own = _found(session, ref, function)
    known = SnapshotRevertFlags(known_flags(flags, 15, function))
    if known & SnapshotRevertFlags.RUNNING and known & SnapshotRevertFlags.PAUSED:
        detail = "running and paused flags are mutually exclusive"
        raise LibvirtError(Code.INVALID_ARG, detail, origin=Origin.DOMAIN_SNAPSHOT)
    if not session.access.unlimited:  # the definition of then comes back, which may have been another's
        before = with_name(await parsed(parse_domain, own.domain), info.name)
        permit(session, before, Right.CONFIGURE, function)
    await snapshots.revert(session.caller, info.uuid, own.name, known)


async def _delete(session: Session, ref: SnapshotRef, flags: int) -> None:
    function = "virDomainSnapshotDelete"
    info, snapshots, own = _found(session, ref, function)
    known = SnapshotDeleteFlags(known_flags(flags, 7, function))
    if known & SnapshotDeleteFlags.CHILDREN and known & SnapshotDeleteFlags.CHILDREN_ONLY:
        detail = "children and children_only flags are mutually exclusive"
        raise LibvirtError(Code.INVALID_ARG, detail, origin=Origin.DOMAIN_SNAPSHOT)
    await snapshots.delete(session.caller, info.uuid, own.name, known)


# ---- checkpoints ---------------------------------------------------------------------------------


def _no_checkpoints(session: Session, ref: Ref, need_results: int, flags: int) -> tuple[list[Any], int]:
    find_domain(session, ref)
    return [], 0


def _no_checkpoint(session: Session, ref: Ref, name: str, flags: int) -> Value:
    find_domain(session, ref)
    raise error(
        Code.NO_DOMAIN_CHECKPOINT,
        f"no domain checkpoint with matching name '{name}'",
        origin=Origin.DOMAIN_CHECKPOINT,
    )


_ACT = Kind.ACT
_SNAPSHOT = Record(TEXT, DOMAIN)
_NAMED = Record(TEXT, NONNULL_DOMAIN)
_LIST_OF = Record(Array(_NAMED), INT)
ROWS = [
    Procedure(185, "virDomainSnapshotCreateXML", _create, Record(DOMAIN, TEXT, UINT), _NAMED, kind=_ACT),
    Procedure(186, "virDomainSnapshotGetXMLDesc", _xml, Record(_SNAPSHOT, UINT), TEXT, True),
    Procedure(187, "virDomainSnapshotNum", _num, Record(DOMAIN, UINT), INT, True),
    Procedure(188, "virDomainSnapshotListNames", _names, Record(DOMAIN, INT, UINT), Array(TEXT), True),
    Procedure(189, "virDomainSnapshotLookupByName", _lookup, Record(DOMAIN, TEXT, UINT), _NAMED, True),
    Procedure(190, "virDomainHasCurrentSnapshot", _has_current, Record(DOMAIN, UINT), INT, True),
    Procedure(191, "virDomainSnapshotCurrent", _current, Record(DOMAIN, UINT), _NAMED, True),
    Procedure(192, "virDomainRevertToSnapshot", _revert, Record(_SNAPSHOT, UINT), kind=_ACT),
    Procedure(193, "virDomainSnapshotDelete", _delete, Record(_SNAPSHOT, UINT), kind=_ACT),
    Procedure(244, "virDomainSnapshotGetParent", _parent, Record(_SNAPSHOT, UINT), _NAMED, True),
    Procedure(246, "virDomainSnapshotNumChildren", _num_children, Record(_SNAPSHOT, UINT), INT, True),
    Procedure(247, "virDomainSnapshotListChildrenNames", _names_children, Record(_SNAPSHOT, INT, UINT),
              Array(TEXT), True),
    Procedure(271, "virDomainSnapshotIsCurrent", _is_current, Record(_SNAPSHOT, UINT), INT, True),
    Procedure(272, "virDomainSnapshotHasMetadata", _has_metadata, Record(_SNAPSHOT, UINT), INT, True),
    Procedure(274, "virDomainListAllSnapshots", _list, Record(DOMAIN, INT, UINT), _LIST_OF, True),
    Procedure(275, "virDomainSnapshotListAllChildren", _list_children, Record(_SNAPSHOT, INT, UINT),
              _LIST_OF, True),
    Procedure(413, "virDomainListAllCheckpoints", _no_checkpoints, Record(DOMAIN, INT, UINT), _LIST_OF, True),
    Procedure(415, "virDomainCheckpointLookupByName", _no_checkpoint, Record(DOMAIN, TEXT, UINT), _NAMED,
              True),
]  # fmt: skip
