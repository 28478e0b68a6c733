"""Calls on network filters and their bindings."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypervisor_shim.calls.checks import known_flags, shown
from hypervisor_shim.calls.documents import parsed
from hypervisor_shim.driver.base import served
from hypervisor_shim.driver.nwfilter import BindingInfo, FilterInfo, NwFilters
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error, uuid_text
from hypervisor_shim.frame import NONNULL_NETWORK
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, LIST_MAX, TEXT, UINT, UUID, Array, Record
from hypervisor_shim.xml.nwfilter import parse_filter

Ref = tuple[str, bytes]  # name and UUID, as the client sent them
BindingRef = tuple[str, str]  # the port's device and the filter's name

FILTER = NONNULL_NETWORK  # of the same shape
BINDING = Record(TEXT, TEXT)


def _filters(session: Session, function: str) -> NwFilters:
    return served(session.driver.nwfilters, function)


_flags = partial(known_flags, origin=Origin.NWFILTER)


def _missing(what: str, key: str) -> LibvirtError:
    return error(Code.NO_NWFILTER, f"no nwfilter with matching {what} '{key}'", origin=Origin.NWFILTER)


def _value(info: FilterInfo) -> Ref:
    return info.name, info.uuid


def _find(session: Session, ref: Ref, function: str) -> tuple[NwFilters, FilterInfo]:
    filters = _filters(session, function)
    found = next((info for info in filters.filters() if info.uuid == ref[1]), None)
    if found is None:
        raise _missing("uuid", uuid_text(ref[1]))
    return filters, found


def _count(session: Session) -> int:
    return len(_filters(session, "virConnectNumOfNWFilters").filters())


def _names(session: Session, room: int) -> list[str]:
    if room < 0 or room > LIST_MAX:
        words = "must be non-negative" if room < 0 else "> REMOTE_NWFILTER_LIST_MAX"
        raise rpc_error(f"maxnames {words}")
    return [info.name for info in _filters(session, "virConnectListNWFilters").filters()][:room]


def _list_all(session: Session, need_results: int, flags: int) -> tuple[list[Any], int]:
    filters = _filters(session, "virConnectListAllNWFilters")
    _flags(flags, 0, "virConnectListAllNWFilters")
    found = [_value(info) for info in filters.filters()][:LIST_MAX]
    return (found if need_results else []), len(found)


def _lookup_by_name(session: Session, name: str) -> Ref:
    filters = _filters(session, "virNWFilterLookupByName").filters()
    found = next((info for info in filters if info.name == name), None)
    if found is None:
        raise _missing("name", name)
    return _value(found)


def _lookup_by_uuid(session: Session, uuid: bytes) -> Ref:
    return _value(_find(session, ("", uuid), "virNWFilterLookupByUUID")[1])


def _xml(session: Session, ref: Ref, flags: int) -> str:
    filters, info = _find(session, ref, "virNWFilterGetXMLDesc")
    _flags(flags, 0, "virNWFilterGetXMLDesc")
    return filters.filter_xml(info.uuid)


async def _define(session: Session, xml: str) -> Ref:
    return await _define_flags(session, xml, 0)


async def _define_flags(session: Session, xml: str, flags: int) -> Ref:
    filters = _filters(session, "virNWFilterDefineXML")
    _flags(flags, 1, "virNWFilterDefineXMLFlags")
    return _value(await filters.define_filter(session.caller, await parsed(parse_filter, xml)))


async def _undefine(session: Session, ref: Ref) -> None:
    filters, info = _find(session, ref, "virNWFilterUndefine")
    await filters.undefine_filter(session.caller, info.uuid)


# ---- bindings ------------------------------------------------------------------------------------------


def _binding_value(info: BindingInfo) -> BindingRef:
    return info.port, info.filter


def _bindings(session: Session, filters: NwFilters) -> list[BindingInfo]:
    return [info for info in filters.bindings() if shown(session, info.owner)]


def _find_binding(session: Session, port: str, function: str) -> tuple[NwFilters, BindingInfo]:
    filters = _filters(session, function)
    found = next((info for info in _bindings(session, filters) if info.port == port), None)
    if found is None:
        raise error(
            Code.NO_NWFILTER_BINDING,
            f"no nwfilter binding for port dev '{port}'",
            origin=Origin.NWFILTER,
        )
    return filters, found


def _binding_lookup(session: Session, port: str) -> BindingRef:
    return _binding_value(_find_binding(session, port, "virNWFilterBindingLookupByPortDev")[1])


def _binding_xml(session: Session, ref: BindingRef, flags: int) -> str:
    filters, info = _find_binding(session, ref[0], "virNWFilterBindingGetXMLDesc")
    _flags(flags, 0, "virNWFilterBindingGetXMLDesc")
    return filters.binding_xml(info.port)


def _list_bindings(session: Session, need_results: int, flags: int) -> tuple[list[Any], int]:
    filters = _filters(session, "virConnectListAllNWFilterBindings")
    _flags(flags, 0, "virConnectListAllNWFilterBindings")
    found = [_binding_value(info) for info in _bindings(session, filters)][:LIST_MAX]
    return (found if need_results else []), len(found)


async def _create_binding(session: Session, xml: str, flags: int) -> BindingRef:
    filters = _filters(session, "virNWFilterBindingCreateXML")
    _flags(flags, 1, "virNWFilterBindingCreateXML")
    return _binding_value(await filters.create_binding(session.caller, xml))


async def _delete_binding(session: Session, ref: BindingRef) -> None:
    filters, info = _find_binding(session, ref[0], "virNWFilterBindingDelete")
    await filters.delete_binding(session.caller, info.port)


ROWS: list[Procedure] = [
    Procedure(175, "virNWFilterLookupByName", _lookup_by_name, args=Record(TEXT), reply=FILTER,
              read_only=True),
    Procedure(176, "virNWFilterLookupByUUID", _lookup_by_uuid, args=Record(UUID), reply=FILTER,
              read_only=True),
    Procedure(177, "virNWFilterGetXMLDesc", _xml, args=Record(FILTER, UINT), reply=TEXT, read_only=True),
    Procedure(178, "virConnectNumOfNWFilters", _count, reply=INT, read_only=True),
    Procedure(179, "virConnectListNWFilters", _names, args=Record(INT), reply=Array(TEXT), read_only=True),
    Procedure(180, "virNWFilterDefineXML", _define, args=Record(TEXT), reply=FILTER, kind=Kind.ACT),
    Procedure(181, "virNWFilterUndefine", _undefine, args=Record(FILTER), kind=Kind.ACT),
    Procedure(286, "virConnectListAllNWFilters", _list_all, args=Record(INT, UINT),
              reply=Record(Array(FILTER), UINT), read_only=True),
    Procedure(397, "virNWFilterBindingLookupByPortDev", _binding_lookup, args=Record(TEXT), reply=BINDING,
              read_only=True),
    Procedure(398, "virNWFilterBindingGetXMLDesc", _binding_xml, args=Record(BINDING, UINT), reply=TEXT,
              read_only=True),
    Procedure(399, "virNWFilterBindingCreateXML", _create_binding, args=Record(TEXT, UINT), reply=BINDING,
              kind=Kind.ACT),
    Procedure(400, "virNWFilterBindingDelete", _delete_binding, args=Record(BINDING), kind=Kind.ACT),
    Procedure(401, "virConnectListAllNWFilterBindings", _list_bindings, args=Record(INT, UINT),
              reply=Record(Array(BINDING), UINT), read_only=True),
    Procedure(431, "virNWFilterDefineXMLFlags", _define_flags, args=Record(TEXT, UINT), reply=FILTER,
              kind=Kind.ACT),
]  # fmt: skip
