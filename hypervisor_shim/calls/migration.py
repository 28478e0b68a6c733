"""Moving domains, as a client drives it (libvirt's migration protocol 3 with typed parameters), cold only.

Begin tells the document at the source; Prepare checks it at the destination; nothing is performed between the
two; Finish defines it there, durably; only then Confirm undefines it at the source, if that was asked for. A
client that dies half-way leaves the domain defined at both places, running at neither.
"""

from __future__ import annotations

import asyncio

from hypervisor_shim.access import Right, permit
from hypervisor_shim.calls.checks import DOMAIN, Ref, find_domain
from hypervisor_shim.driver import served
from hypervisor_shim.driver.facts import UndefineFlags
from hypervisor_shim.driver.statistics import Param
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.events import domain_value
from hypervisor_shim.frame import NONNULL_DOMAIN
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, OPTIONAL_TEXT, TEXT, TYPED_PARAM, UINT, Array, Opaque, Record
from hypervisor_shim.xml.domain import parse_domain
from hypervisor_shim.xml.domain_change import with_name
from hypervisor_shim.xml.domain_def import DomainDef

PARAMS_MAX, COOKIE_MAX = 64, 4 * 1024 * 1024
_PEER2PEER, _PERSIST, _UNDEFINE_SOURCE = 2, 8, 16
_COPY_DISKS, _UNSAFE, _OFFLINE = 64 | 128, 512, 1024
_MEANINGLESS = 1 | 256 | _UNSAFE | 4096  # live, protection, unsafe, abort on error: nothing runs

#: Where the memory would go to; a client insists on being told, and never looks at it when nothing runs.
_NOWHERE = "offline:"


def _checked(session: Session, flags: int, function: str) -> None:
    """Only definitions are moved, and the client says that it knows."""
    served(session.driver.migration, function)
    if not flags & _OFFLINE:
        raise error(
            Code.OPERATION_UNSUPPORTED,
            "a running domain is not moved: shut it down and migrate it --offline --persistent",
        )
    if flags & _COPY_DISKS:
        raise error(Code.OPERATION_INVALID, "offline migration cannot handle non-shared storage")
    if not flags & _PERSIST:
        raise error(
            Code.OPERATION_INVALID, "offline migration must be specified with the persistent flag set"
        )
    if flags & ~(_OFFLINE | _PERSIST | _UNDEFINE_SOURCE | _MEANINGLESS):
        raise error(
            Code.ARGUMENT_UNSUPPORTED,
            f"flags 0x{flags:x} mean nothing where only a definition moves",
        )


def _text(params: list[Param], name: str) -> str | None:
    return next((str(value) for key, _, value in params if key == name), None)


async def _begin(session: Session, ref: Ref, params: list[Param], flags: int) -> tuple[bytes, str]:
    info = find_domain(session, ref)
    _checked(session, flags, "virDomainMigrateBegin3Params")
    if info.active:
        raise error(Code.OPERATION_INVALID, "domain is running: shut it down before it is moved")
    return b"", _text(params, "destination_xml") or session.driver.domain_xml(
        info.uuid, inactive=True, secure=True
    )


async def _definition(session: Session, params: list[Param]) -> DomainDef:
    xml = _text(params, "persistent_xml") or _text(params, "destination_xml")
    if xml is None:
        raise LibvirtError(Code.INTERNAL_ERROR, "no domain XML passed", origin=Origin.DOMAIN)
    definition = await asyncio.to_thread(parse_domain, xml, arch=session.driver.identity.arch)
    name = _text(params, "destination_name")
    return definition if name in (None, definition.name) else with_name(definition, str(name))


async def _prepare(
    session: Session, params: list[Param], cookie: bytes, flags: int
) -> tuple[bytes, str | None]:
    _checked(session, flags, "virDomainMigratePrepare3Params")
    definition = await _definition(session, params)
    permit(session, definition, Right.CONFIGURE, "virDomainMigratePrepare3Params")
    known = session.driver.domain(definition.uuid)
    if known is not None and known.active:
        raise error(Code.OPERATION_INVALID, f"domain is already active as '{known.name}'")
    migration = served(session.driver.migration, "virDomainMigratePrepare3Params")
    await migration.prepare(session.caller, definition)
    return b"", _NOWHERE


async def _perform(
    session: Session, ref: Ref, destination: str | None, params: list[Param], cookie: bytes, flags: int
) -> bytes:
    """By itself the source goes nowhere: its network is the tenants' and the storage's."""
    find_domain(session, ref)
    if flags & _PEER2PEER:
        raise error(
            Code.OPERATION_UNSUPPORTED,
            "one agent does not call another: leave --p2p out, the client can",
        )
    _checked(session, flags, "virDomainMigratePerform3Params")
    return b""


async def _finish(
    session: Session, params: list[Param], cookie: bytes, flags: int, cancelled: int
) -> tuple[tuple[str, bytes, int], bytes]:
    _checked(session, flags, "virDomainMigrateFinish3Params")
    if cancelled:
        raise error(Code.OPERATION_ABORTED, "the client gave the move up")
    definition = await _definition(session, params)
    return domain_value(await session.driver.define(session.caller, definition)), b""


async def _confirm(
    session: Session, ref: Ref, params: list[Param], cookie: bytes, flags: int, cancelled: int
) -> None:
    info = find_domain(session, ref)
    _checked(session, flags, "virDomainMigrateConfirm3Params")
    if not cancelled and flags & _UNDEFINE_SOURCE:
        await session.driver.undefine(session.caller, info.uuid, UndefineFlags.NONE)


_ACT = Kind.ACT
_PARAMS, _COOKIE = Array(TYPED_PARAM, PARAMS_MAX), Opaque(COOKIE_MAX)
ROWS: list[Procedure] = [
    Procedure(302, "virDomainMigrateBegin3Params", _begin, Record(DOMAIN, _PARAMS, UINT),
              Record(_COOKIE, TEXT), kind=_ACT),
    Procedure(303, "virDomainMigratePrepare3Params", _prepare, Record(_PARAMS, _COOKIE, UINT),
              Record(_COOKIE, OPTIONAL_TEXT), kind=_ACT),
    Procedure(305, "virDomainMigratePerform3Params", _perform,
              Record(DOMAIN, OPTIONAL_TEXT, _PARAMS, _COOKIE, UINT), _COOKIE, kind=_ACT),
    Procedure(306, "virDomainMigrateFinish3Params", _finish, Record(_PARAMS, _COOKIE, UINT, INT),
              Record(NONNULL_DOMAIN, _COOKIE), kind=_ACT),
    Procedure(307, "virDomainMigrateConfirm3Params", _confirm,
              Record(DOMAIN, _PARAMS, _COOKIE, UINT, INT), kind=_ACT),
]  # fmt: skip
