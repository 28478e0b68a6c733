"""Calls on domains. The readers answer from the driver's memory; the actors check, then hand on."""

from __future__ import annotations

from typing import Any

from hypervisor_shim.calls.checks import (
    DOMAIN,
    LIST_FLAGS,
    Ref,
    find_domain,
    impact_of,
    known_flags,
    selected,
)
from hypervisor_shim.calls.documents import parsed
from hypervisor_shim.driver import (
    ByteStream,
    ConsoleFlags,
    CreateFlags,
    DestroyFlags,
    Metadata,
    MetadataKind,
    ShutdownFlags,
    UndefineFlags,
)
from hypervisor_shim.errors import (
    Code,
    LibvirtError,
    Origin,
    error,
    no_domain,
    no_domain_id,
    no_domain_named,
    rpc_error,
)
from hypervisor_shim.events import domain_value
from hypervisor_shim.frame import NONNULL_DOMAIN
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import (
    INT,
    LIST_MAX,
    OPTIONAL_TEXT,
    TEXT,
    UHYPER,
    UINT,
    UUID,
    Array,
    Record,
    WideChars,
)
from hypervisor_shim.xml.domain import parse_domain
from hypervisor_shim.xml.domain_def import DomainDef

# ---- listing and looking up ----------------------------------------------------------------------


def _lookup_by_id(session: Session, id: int) -> tuple[str, bytes, int]:
    if id < 0:
        raise LibvirtError(
            Code.INVALID_ARG, "id in virDomainLookupByID must be zero or greater", origin=Origin.DOMAIN
        )
    info = session.driver.domain_by_id(id)
    if info is None:
        raise no_domain_id(id)
    return domain_value(info)


def _lookup_by_uuid(session: Session, uuid: bytes) -> tuple[str, bytes, int]:
    info = session.driver.domain(uuid)
    if info is None:
        raise no_domain(uuid)
    return domain_value(info)


def _lookup_by_name(session: Session, name: str) -> tuple[str, bytes, int]:
    info = session.driver.domain_by_name(name)
    if info is None:
        raise no_domain_named(name)
    return domain_value(info)


def _limit(count: int, what: str, name: str) -> int:
    if count < 0:
        raise rpc_error(f"{what} must be non-negative")
    if count > LIST_MAX:
        raise rpc_error(f"{what} > {name}")
    return count


def _list_ids(session: Session, count: int) -> list[int]:
    _limit(count, "maxids", "REMOTE_DOMAIN_LIST_MAX")
    return [info.id for info in session.driver.domains() if info.active][:count]


def _list_defined(session: Session, count: int) -> list[str]:
    _limit(count, "maxnames", "REMOTE_DOMAIN_LIST_MAX")
    return [info.name for info in session.driver.domains() if not info.active][:count]


def _count_active(session: Session) -> int:
    return sum(info.active for info in session.driver.domains())


def _count_defined(session: Session) -> int:
    return sum(not info.active for info in session.driver.domains())


def _list_all(session: Session, need_results: int, flags: int) -> tuple[list[Any], int]:
    known_flags(flags, LIST_FLAGS, "virConnectListAllDomains")
    found = selected(session.driver.domains(), flags, session.driver.snapshots)
    if len(found) > LIST_MAX:
        raise rpc_error(f"Too many domains '{len(found)}' for limit '{LIST_MAX}'")
    return ([domain_value(info) for info in found] if need_results else []), len(found)


# ---- one domain: reading -------------------------------------------------------------------------


def _info(session: Session, ref: Ref) -> tuple[int, int, int, int, int]:
    info = session.driver.domain(ref[0])
    if info is None:
        info = find_domain(session, ref)
    return info.state, info.max_mem_kib, info.mem_kib, info.vcpus, info.cpu_time_ns or 0


def _state(session: Session, ref: Ref, flags: int) -> tuple[int, int]:
    info = find_domain(session, ref)
    known_flags(flags, 0, "virDomainGetState")
    return info.state, info.reason


_XML_SECURE, _XML_INACTIVE, _XML_UPDATE_CPU, _XML_MIGRATABLE = 1, 2, 4, 8


def _xml(session: Session, ref: Ref, flags: int) -> str:
    if session.caller.read_only and flags & (_XML_SECURE | _XML_MIGRATABLE):
        flag = "secure" if flags & _XML_SECURE else "migratable"
        raise error(Code.OPERATION_DENIED, f"virDomainGetXMLDesc with {flag} flag", origin=Origin.DOMAIN)
    info = find_domain(session, ref)
    known_flags(flags, 15, "virDomainGetXMLDesc")
    return session.driver.domain_xml(
        info.uuid, inactive=bool(flags & _XML_INACTIVE), secure=bool(flags & _XML_SECURE)
    )


def _os_type(session: Session, ref: Ref) -> str:
    return find_domain(session, ref).os_type


def _max_memory(session: Session, ref: Ref) -> int:
    return find_domain(session, ref).max_mem_kib


def _max_vcpus(session: Session, ref: Ref) -> int:
    return find_domain(session, ref).max_vcpus


def _get_autostart(session: Session, ref: Ref) -> int:
    return find_domain(session, ref).autostart


def _get_autostart_once(session: Session, ref: Ref) -> int:
    marked = find_domain(session, ref).autostart_once
    if marked is None:
        raise error(Code.NO_SUPPORT, "virDomainGetAutostartOnce", origin=Origin.DOMAIN)
    return marked


def _is_active(session: Session, ref: Ref) -> int:
    return find_domain(session, ref).active


def _is_persistent(session: Session, ref: Ref) -> int:
    return find_domain(session, ref).persistent


def _is_updated(session: Session, ref: Ref) -> int:
    return find_domain(session, ref).updated


def _has_none(session: Session, ref: Ref, flags: int) -> int:
    """Managed-save images, snapshots, checkpoints: metal has none, and says so."""
    find_domain(session, ref)
    return 0


def _security_label(session: Session, ref: Ref) -> tuple[str, int]:
    find_domain(session, ref)
    return "", 0


_MESSAGE_DEPRECATION, _MESSAGE_TAINTING, _MESSAGE_IOERRORS = 1, 2, 4


def _messages(session: Session, ref: Ref, flags: int) -> list[str]:
    info = find_domain(session, ref)
    known_flags(flags, 7, "virDomainGetMessages")
    return session.driver.messages(info.uuid)


def metadata_kind(kind: int, uri: str | None, function: str) -> MetadataKind:
    try:
        known = MetadataKind(kind)
    except ValueError:
        raise error(Code.INVALID_ARG, f"unknown metadata type '{kind}'", origin=Origin.DOMAIN) from None
    if known is MetadataKind.ELEMENT and uri is None:
        raise LibvirtError(Code.INVALID_ARG, f"uri in {function} must not be NULL", origin=Origin.DOMAIN)
    if known is not MetadataKind.ELEMENT and uri is not None:
        raise LibvirtError(Code.INVALID_ARG, f"uri in {function} must be NULL", origin=Origin.DOMAIN)
    return known


def _get_metadata(session: Session, ref: Ref, kind: int, uri: str | None, flags: int) -> str:
    known = metadata_kind(kind, uri, "virDomainGetMetadata")
    if flags & 3 == 3:
        message = "flags 'affect live' and 'affect config' are mutually exclusive"
        raise LibvirtError(Code.INVALID_ARG, message, origin=Origin.DOMAIN)
    info = find_domain(session, ref)
    return session.driver.metadata(info.uuid, known, uri, impact_of(info, flags, "virDomainGetMetadata"))


# ---- one domain: acting --------------------------------------------------------------------------


async def _parse(session: Session, xml: str) -> DomainDef:
    return await parsed(parse_domain, xml, arch=session.driver.identity.arch)


_DEFINE_VALIDATE = 1


async def _define(session: Session, xml: str, flags: int = 0) -> tuple[str, bytes, int]:
    known_flags(flags, _DEFINE_VALIDATE, "virDomainDefineXMLFlags")
    return domain_value(await session.driver.define(session.caller, await _parse(session, xml)))


async def _create_xml(session: Session, xml: str, flags: int) -> tuple[str, bytes, int]:
    known = CreateFlags(known_flags(flags, 63, "virDomainCreateXML"))
    return domain_value(await session.driver.create_xml(session.caller, await _parse(session, xml), known))


async def _create(session: Session, ref: Ref) -> None:
    await session.driver.create(session.caller, find_domain(session, ref).uuid, CreateFlags.NONE)


async def _create_with_flags(session: Session, ref: Ref, flags: int) -> tuple[str, bytes, int]:
    info = find_domain(session, ref)
    known = CreateFlags(known_flags(flags, 63, "virDomainCreateWithFlags"))
    return domain_value(await session.driver.create(session.caller, info.uuid, known))


async def _destroy(session: Session, ref: Ref, flags: int = 0) -> None:
    info = find_domain(session, ref)
    known = DestroyFlags(known_flags(flags, 3, "virDomainDestroyFlags"))
    await session.driver.destroy(session.caller, info.uuid, known)


async def _shutdown(session: Session, ref: Ref, flags: int = 0) -> None:
    info = find_domain(session, ref)
    known = ShutdownFlags(known_flags(flags, 31, "virDomainShutdownFlags"))
    await session.driver.shutdown(session.caller, info.uuid, known)


async def _reboot(session: Session, ref: Ref, flags: int) -> None:
    info = find_domain(session, ref)
    known = ShutdownFlags(known_flags(flags, 31, "virDomainReboot"))
    await session.driver.reboot(session.caller, info.uuid, known)


async def _reset(session: Session, ref: Ref, flags: int) -> None:
    info = find_domain(session, ref)
    known_flags(flags, 0, "virDomainReset")
    await session.driver.reset(session.caller, info.uuid)


async def _inject_nmi(session: Session, ref: Ref, flags: int) -> None:
    info = find_domain(session, ref)
    known_flags(flags, 0, "virDomainInjectNMI")
    await session.driver.inject_nmi(session.caller, info.uuid)


async def _undefine(session: Session, ref: Ref, flags: int = 0) -> None:
    info = find_domain(session, ref)
    known = UndefineFlags(known_flags(flags, 127, "virDomainUndefineFlags"))
    await session.driver.undefine(session.caller, info.uuid, known)


async def _set_autostart(session: Session, ref: Ref, autostart: int) -> None:
    await session.driver.set_autostart(session.caller, find_domain(session, ref).uuid, bool(autostart))


async def _set_autostart_once(session: Session, ref: Ref, once: int) -> None:
    await session.driver.set_autostart_once(session.caller, find_domain(session, ref).uuid, bool(once))


async def _set_metadata(
    session: Session, ref: Ref, kind: int, text: str | None, key: str | None, uri: str | None, flags: int
) -> None:
    known = metadata_kind(kind, uri, "virDomainSetMetadata")
    if known is MetadataKind.TITLE and text is not None and "\n" in text:
        raise LibvirtError(
            Code.INVALID_ARG,
            "invalid argument: metadata title in virDomainSetMetadata can't contain newlines",
            origin=Origin.DOMAIN,
        )
    if known is MetadataKind.ELEMENT and text is not None and key is None:
        message = "key in virDomainSetMetadata must not be NULL"
        raise LibvirtError(Code.INVALID_ARG, message, origin=Origin.DOMAIN)
    info = find_domain(session, ref)
    impact = impact_of(info, flags, "virDomainSetMetadata")
    await session.driver.set_metadata(session.caller, info.uuid, Metadata(known, text, key, uri), impact)


async def _open_console(session: Session, ref: Ref, device: str | None, flags: int) -> ByteStream:
    info = find_domain(session, ref)
    known = ConsoleFlags(known_flags(flags, 3, "virDomainOpenConsole"))
    if not info.active:
        raise error(Code.OPERATION_INVALID, "domain is not running")
    return await session.driver.open_console(session.caller, info.uuid, device, known)


_ACT = Kind.ACT
_DOMAINS = Record(Array(NONNULL_DOMAIN), UINT)
ROWS = [
    Procedure(22, "virDomainLookupByID", _lookup_by_id, Record(INT), NONNULL_DOMAIN, True),
    Procedure(23, "virDomainLookupByName", _lookup_by_name, Record(TEXT), NONNULL_DOMAIN, True),
    Procedure(24, "virDomainLookupByUUID", _lookup_by_uuid, Record(UUID), NONNULL_DOMAIN, True),
    Procedure(37, "virConnectListDomains", _list_ids, Record(INT), Array(INT), True),
    Procedure(51, "virConnectNumOfDomains", _count_active, None, INT, True),
    Procedure(21, "virConnectListDefinedDomains", _list_defined, Record(INT), Array(TEXT), True),
    Procedure(25, "virConnectNumOfDefinedDomains", _count_defined, None, INT, True),
    Procedure(273, "virConnectListAllDomains", _list_all, Record(INT, UINT), _DOMAINS, True),
    Procedure(16, "virDomainGetInfo", _info, Record(DOMAIN), Record(INT, UHYPER, UHYPER, INT, UHYPER), True),
    Procedure(212, "virDomainGetState", _state, Record(DOMAIN, UINT), Record(INT, INT), True),
    Procedure(14, "virDomainGetXMLDesc", _xml, Record(DOMAIN, UINT), TEXT, True),
    Procedure(19, "virDomainGetOSType", _os_type, Record(DOMAIN), TEXT, True),
    Procedure(17, "virDomainGetMaxMemory", _max_memory, Record(DOMAIN), UHYPER, True),
    Procedure(18, "virDomainGetMaxVcpus", _max_vcpus, Record(DOMAIN), INT, True),
    Procedure(15, "virDomainGetAutostart", _get_autostart, Record(DOMAIN), INT, True),
    Procedure(150, "virDomainIsActive", _is_active, Record(DOMAIN), INT, True),
    Procedure(151, "virDomainIsPersistent", _is_persistent, Record(DOMAIN), INT, True),
    Procedure(202, "virDomainIsUpdated", _is_updated, Record(DOMAIN), INT, True),
    Procedure(183, "virDomainHasManagedSaveImage", _has_none, Record(DOMAIN, UINT), INT, True),
    Procedure(121, "virDomainGetSecurityLabel", _security_label, Record(DOMAIN),
              Record(WideChars(4097, counted=True), INT), True),
    Procedure(426, "virDomainGetMessages", _messages, Record(DOMAIN, UINT), Array(TEXT), True),
    Procedure(265, "virDomainGetMetadata", _get_metadata, Record(DOMAIN, INT, OPTIONAL_TEXT, UINT), TEXT,
              True),
    Procedure(11, "virDomainDefineXML", _define, Record(TEXT), NONNULL_DOMAIN, kind=_ACT),
    Procedure(350, "virDomainDefineXMLFlags", _define, Record(TEXT, UINT), NONNULL_DOMAIN, kind=_ACT),
    Procedure(10, "virDomainCreateXML", _create_xml, Record(TEXT, UINT), NONNULL_DOMAIN, kind=_ACT),
    Procedure(9, "virDomainCreate", _create, Record(DOMAIN), kind=_ACT),
    Procedure(196, "virDomainCreateWithFlags", _create_with_flags, Record(DOMAIN, UINT), NONNULL_DOMAIN,
              kind=_ACT),
    Procedure(12, "virDomainDestroy", _destroy, Record(DOMAIN), kind=_ACT),
    Procedure(234, "virDomainDestroyFlags", _destroy, Record(DOMAIN, UINT), kind=_ACT),
    Procedure(33, "virDomainShutdown", _shutdown, Record(DOMAIN), kind=_ACT),
    Procedure(258, "virDomainShutdownFlags", _shutdown, Record(DOMAIN, UINT), kind=_ACT),
    Procedure(27, "virDomainReboot", _reboot, Record(DOMAIN, UINT), kind=_ACT),
    Procedure(245, "virDomainReset", _reset, Record(DOMAIN, UINT), kind=_ACT),
    Procedure(210, "virDomainInjectNMI", _inject_nmi, Record(DOMAIN, UINT), kind=_ACT),
    Procedure(35, "virDomainUndefine", _undefine, Record(DOMAIN), kind=_ACT),
    Procedure(231, "virDomainUndefineFlags", _undefine, Record(DOMAIN, UINT), kind=_ACT),
    Procedure(29, "virDomainSetAutostart", _set_autostart, Record(DOMAIN, INT), kind=_ACT),
    Procedure(449, "virDomainGetAutostartOnce", _get_autostart_once, Record(DOMAIN), INT, True),
    Procedure(450, "virDomainSetAutostartOnce", _set_autostart_once, Record(DOMAIN, INT), kind=_ACT),
    Procedure(264, "virDomainSetMetadata", _set_metadata, kind=_ACT,
              args=Record(DOMAIN, INT, OPTIONAL_TEXT, OPTIONAL_TEXT, OPTIONAL_TEXT, UINT)),
    Procedure(201, "virDomainOpenConsole", _open_console, Record(DOMAIN, OPTIONAL_TEXT, UINT),
              kind=Kind.STREAM),
]  # fmt: skip
