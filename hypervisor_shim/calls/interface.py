"""Calls on network interfaces of the machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypervisor_shim.calls.checks import known_flags
from hypervisor_shim.calls.documents import parsed
from hypervisor_shim.driver.base import served
from hypervisor_shim.driver.interface import InterfaceInfo, Interfaces
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, LIST_MAX, TEXT, UINT, Array, Record
from hypervisor_shim.xml.interface import parse_interface

Ref = tuple[str, str]  # name and MAC, as the client sent them
INTERFACE = Record(TEXT, TEXT)
_INACTIVE, _ACTIVE = 1, 2


def _interfaces(session: Session, function: str) -> Interfaces:
    return served(session.driver.interfaces, function)


def _value(info: InterfaceInfo) -> Ref:
    return info.name, info.mac


def _missing(what: str, key: str) -> LibvirtError:
    return error(Code.NO_INTERFACE, f"no interface with matching {what} '{key}'", origin=Origin.INTERFACE)


_flags = partial(known_flags, origin=Origin.INTERFACE)


async def _named(session: Session, ref: Ref, function: str) -> tuple[Interfaces, InterfaceInfo]:
    interfaces = _interfaces(session, function)
    found = next((info for info in await interfaces.interfaces() if info.name == ref[0]), None)
    if found is None:
        raise _missing("name", ref[0])
    return interfaces, found


def _counting(active: bool, function: str) -> Callable[[Session], Any]:
    async def count(session: Session) -> int:
        return sum(info.active is active for info in await _interfaces(session, function).interfaces())

    return count


def _naming(active: bool, function: str) -> Callable[[Session, int], Any]:
    async def names(session: Session, room: int) -> list[str]:
        if room < 0 or room > LIST_MAX:
            raise rpc_error(
                "maxnames must be non-negative" if room < 0 else "maxnames > REMOTE_INTERFACE_LIST_MAX"
            )
        found = await _interfaces(session, function).interfaces()
        return [info.name for info in found if info.active is active][:room]

    return names


async def _list_all(session: Session, need_results: int, flags: int) -> tuple[list[Any], int]:
    interfaces = _interfaces(session, "virConnectListAllInterfaces")
    wanted = _flags(flags, 3, "virConnectListAllInterfaces") or 3
    found = [
        _value(info)
        for info in await interfaces.interfaces()
        if wanted & (_ACTIVE if info.active else _INACTIVE)
    ][:LIST_MAX]
    return (found if need_results else []), len(found)


async def _lookup_by_name(session: Session, name: str) -> Ref:
    return _value((await _named(session, (name, ""), "virInterfaceLookupByName"))[1])


async def _lookup_by_mac(session: Session, mac: str) -> Ref:
    interfaces = _interfaces(session, "virInterfaceLookupByMACString")
    found = [info for info in await interfaces.interfaces() if info.mac.lower() == mac.lower()]
    if not found:
        raise _missing("mac", mac)
    if len(found) > 1:
        raise error(
            Code.MULTIPLE_INTERFACES, "multiple interfaces with matching MAC address",
            origin=Origin.INTERFACE,
        )  # fmt: skip
    return _value(found[0])


async def _xml(session: Session, ref: Ref, flags: int) -> str:
    interfaces, info = await _named(session, ref, "virInterfaceGetXMLDesc")
    _flags(flags, 1, "virInterfaceGetXMLDesc")
    return await interfaces.interface_xml(info.name, inactive=bool(flags))


async def _is_active(session: Session, ref: Ref) -> int:
    return (await _named(session, ref, "virInterfaceIsActive"))[1].active


async def _define(session: Session, xml: str, flags: int) -> Ref:
    interfaces = _interfaces(session, "virInterfaceDefineXML")
    _flags(flags, 1, "virInterfaceDefineXML")
    return _value(await interfaces.define_interface(session.caller, await parsed(parse_interface, xml)))


async def _undefine(session: Session, ref: Ref) -> None:
    interfaces, info = await _named(session, ref, "virInterfaceUndefine")
    await interfaces.undefine_interface(session.caller, info.name)


async def _create(session: Session, ref: Ref, flags: int) -> None:
    interfaces, info = await _named(session, ref, "virInterfaceCreate")
    _flags(flags, 0, "virInterfaceCreate")
    await interfaces.create_interface(session.caller, info.name)


async def _destroy(session: Session, ref: Ref, flags: int) -> None:
    interfaces, info = await _named(session, ref, "virInterfaceDestroy")
    _flags(flags, 0, "virInterfaceDestroy")
    await interfaces.destroy_interface(session.caller, info.name)


async def _begin(session: Session, flags: int) -> None:
    interfaces = _interfaces(session, "virInterfaceChangeBegin")
    _flags(flags, 0, "virInterfaceChangeBegin")
    await interfaces.begin_changes(session.caller)


async def _commit(session: Session, flags: int) -> None:
    interfaces = _interfaces(session, "virInterfaceChangeCommit")
    _flags(flags, 0, "virInterfaceChangeCommit")
    await interfaces.commit_changes(session.caller)


async def _roll_back(session: Session, flags: int) -> None:
    interfaces = _interfaces(session, "virInterfaceChangeRollback")
    _flags(flags, 0, "virInterfaceChangeRollback")
    await interfaces.roll_back_changes(session.caller)


def _row(number: int, api: str, handler: Callable[..., Any], args: Record | None = None,
         reply: Any = None, *, read_only: bool = False) -> Procedure:  # fmt: skip
    """All of this family may ask the kernel, so all are acting calls."""
    return Procedure(number, api, handler, args=args, reply=reply, read_only=read_only, kind=Kind.ACT)


ROWS: list[Procedure] = [
    _row(126, "virConnectNumOfInterfaces", _counting(True, "virConnectNumOfInterfaces"), reply=INT,
         read_only=True),
    _row(127, "virConnectListInterfaces", _naming(True, "virConnectListInterfaces"), Record(INT),
         Array(TEXT), read_only=True),
    _row(128, "virInterfaceLookupByName", _lookup_by_name, Record(TEXT), INTERFACE, read_only=True),
    _row(129, "virInterfaceLookupByMACString", _lookup_by_mac, Record(TEXT), INTERFACE, read_only=True),
    _row(130, "virInterfaceGetXMLDesc", _xml, Record(INTERFACE, UINT), TEXT, read_only=True),
    _row(131, "virInterfaceDefineXML", _define, Record(TEXT, UINT), INTERFACE),
    _row(132, "virInterfaceUndefine", _undefine, Record(INTERFACE)),
    _row(133, "virInterfaceCreate", _create, Record(INTERFACE, UINT)),
    _row(134, "virInterfaceDestroy", _destroy, Record(INTERFACE, UINT)),
    _row(137, "virConnectNumOfDefinedInterfaces", _counting(False, "virConnectNumOfDefinedInterfaces"),
         reply=INT, read_only=True),
    _row(138, "virConnectListDefinedInterfaces", _naming(False, "virConnectListDefinedInterfaces"),
         Record(INT), Array(TEXT), read_only=True),
    _row(156, "virInterfaceIsActive", _is_active, Record(INTERFACE), INT, read_only=True),
    _row(220, "virInterfaceChangeBegin", _begin, Record(UINT)),
    _row(221, "virInterfaceChangeCommit", _commit, Record(UINT)),
    _row(222, "virInterfaceChangeRollback", _roll_back, Record(UINT)),
    _row(284, "virConnectListAllInterfaces", _list_all, Record(INT, UINT), Record(Array(INTERFACE), UINT),
         read_only=True),
]  # fmt: skip
