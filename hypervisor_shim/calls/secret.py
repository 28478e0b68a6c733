"""Secrets."""

from __future__ import annotations

from hypervisor_shim.calls.checks import known_flags, passes
from hypervisor_shim.calls.documents import parsed
from hypervisor_shim.driver import served
from hypervisor_shim.driver.secret import Secrets, no_secret
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error, uuid_text
from hypervisor_shim.frame import NONNULL_SECRET
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, LIST_MAX, TEXT, UINT, UUID, Array, Opaque, Record
from hypervisor_shim.xml.secret import SecretDef, format_secret, parse_secret

Ref = tuple[bytes, int, str]  # UUID, usage type and id, as the client sent them
VALUE_MAX = 65_536  # bytes of a value
_VALIDATE = 1


def _secrets(session: Session, function: str) -> Secrets:
    return served(session.driver.secrets, function)


def _value(secret: SecretDef) -> Ref:
    return secret.uuid, secret.usage_type, secret.usage_id


def _find(session: Session, ref: Ref, function: str) -> SecretDef:
    found = _secrets(session, function).secret(ref[0])
    if found is None:
        raise no_secret(ref[0])
    return found


# ---- finding -------------------------------------------------------------------------------------


def _count(session: Session) -> int:
    return len(list(_secrets(session, "virConnectNumOfSecrets").secrets()))


def _uuids(session: Session, count: int) -> list[str]:
    if not 0 <= count <= LIST_MAX:
        raise rpc_error(f"maxuuids {'must be non-negative' if count < 0 else '> REMOTE_SECRET_LIST_MAX'}")
    found = _secrets(session, "virConnectListSecrets").secrets()
    return [uuid_text(each.uuid) for each in found][:count]


_EPHEMERAL, _NO_EPHEMERAL, _PRIVATE, _NO_PRIVATE = 1, 2, 4, 8


def _matches(secret: SecretDef, flags: int) -> bool:
    facts = _EPHEMERAL if secret.ephemeral else _NO_EPHEMERAL
    facts |= _PRIVATE if secret.private else _NO_PRIVATE
    return passes(facts, flags, (_EPHEMERAL | _NO_EPHEMERAL, _PRIVATE | _NO_PRIVATE))


def _list_all(session: Session, need_results: int, flags: int) -> tuple[list[Ref], int]:
    secrets = _secrets(session, "virConnectListAllSecrets")
    known_flags(flags, 15, "secretConnectListAllSecrets", Origin.SECRET)
    found = [_value(each) for each in secrets.secrets() if _matches(each, flags)]
    return (found if need_results else []), len(found)


def _lookup_by_uuid(session: Session, uuid: bytes) -> Ref:
    return _value(_find(session, (uuid, 0, ""), "virSecretLookupByUUID"))


def _lookup_by_usage(session: Session, usage_type: int, usage_id: str) -> Ref:
    found = _secrets(session, "virSecretLookupByUsage").secret_by_usage(usage_type, usage_id)
    if found is None:
        detail = f"no secret with matching usage '{usage_id}'"
        raise error(Code.NO_SECRET, detail, origin=Origin.SECRET)
    return _value(found)


def _xml(session: Session, ref: Ref, flags: int) -> str:
    known_flags(flags, 0, "secretGetXMLDesc", Origin.SECRET)
    return format_secret(_find(session, ref, "virSecretGetXMLDesc"))


# ---- changing, and the values --------------------------------------------------------------------


async def _define(session: Session, document: str, flags: int) -> Ref:
    secrets = _secrets(session, "virSecretDefineXML")
    known_flags(flags, _VALIDATE, "secretDefineXML", Origin.SECRET)
    return _value(await secrets.define(session.caller, await parsed(parse_secret, document)))


async def _undefine(session: Session, ref: Ref) -> None:
    _find(session, ref, "virSecretUndefine")
    await _secrets(session, "virSecretUndefine").undefine(session.caller, ref[0])


async def _set_value(session: Session, ref: Ref, value: bytes, flags: int) -> None:
    known_flags(flags, 0, "secretSetValue", Origin.SECRET)
    if not value:
        message = "value in virSecretSetValue must not be NULL"
        raise LibvirtError(Code.INVALID_ARG, message, origin=Origin.SECRET)
    _find(session, ref, "virSecretSetValue")
    await _secrets(session, "virSecretSetValue").set_value(session.caller, ref[0], value)


async def _get_value(session: Session, ref: Ref, flags: int) -> bytes:
    known_flags(flags, 0, "secretGetValue", Origin.SECRET)
    if _find(session, ref, "virSecretGetValue").private:
        raise error(Code.INVALID_SECRET, "secret is private", origin=Origin.SECRET)
    return await _secrets(session, "virSecretGetValue").value(session.caller, ref[0])


_VALUE = Opaque(VALUE_MAX)
_ACT = Kind.ACT
ROWS = [
    Procedure(139, "virConnectNumOfSecrets", _count, reply=INT, read_only=True),
    Procedure(140, "virConnectListSecrets", _uuids, Record(INT), Array(TEXT), True),
    Procedure(287, "virConnectListAllSecrets", _list_all, Record(INT, UINT),
              Record(Array(NONNULL_SECRET), UINT), True),
    Procedure(141, "virSecretLookupByUUID", _lookup_by_uuid, Record(UUID), NONNULL_SECRET, True),
    Procedure(147, "virSecretLookupByUsage", _lookup_by_usage, Record(INT, TEXT), NONNULL_SECRET, True),
    Procedure(143, "virSecretGetXMLDesc", _xml, Record(NONNULL_SECRET, UINT), TEXT, True),
    Procedure(142, "virSecretDefineXML", _define, Record(TEXT, UINT), NONNULL_SECRET, kind=_ACT),
    Procedure(144, "virSecretSetValue", _set_value, Record(NONNULL_SECRET, _VALUE, UINT), kind=_ACT),
    Procedure(145, "virSecretGetValue", _get_value, Record(NONNULL_SECRET, UINT), _VALUE, kind=_ACT),
    Procedure(146, "virSecretUndefine", _undefine, Record(NONNULL_SECRET), kind=_ACT),
]  # fmt: skip
