"""Calls on networks, their ports and leases."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypervisor_shim.calls.checks import known_flags, passes, shown
from hypervisor_shim.calls.documents import parsed
from hypervisor_shim.calls.domain import metadata_kind
from hypervisor_shim.driver import Impact, Metadata
from hypervisor_shim.driver.base import served
from hypervisor_shim.driver.network import NetworkInfo, Networks, invalid_network
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error, uuid_text
from hypervisor_shim.frame import NONNULL_NETWORK
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import (
    HYPER,
    INT,
    LIST_MAX,
    OPTIONAL_TEXT,
    TEXT,
    TYPED_PARAM,
    UINT,
    UUID,
    Array,
    Record,
)
from hypervisor_shim.xml.network import parse_network
from hypervisor_shim.xml.network_update import parse_update

Ref = tuple[str, bytes]  # name and UUID, as the client sent them
PortRef = tuple[Ref, bytes]

NETWORK = NONNULL_NETWORK
PORT = Record(NONNULL_NETWORK, UUID)
_LEASE = Record(TEXT, HYPER, INT, OPTIONAL_TEXT, OPTIONAL_TEXT, TEXT, UINT, OPTIONAL_TEXT, OPTIONAL_TEXT)
_VALIDATE = 1
_XML_INACTIVE = 1


def _networks(session: Session, function: str) -> Networks:
    return served(session.driver.networks, function)


def no_network(uuid: bytes, name: str | None = None) -> LibvirtError:
    """The answer to any call on a network that is not there."""
    named = f" ({name})" if name is not None else ""
    return error(
        Code.NO_NETWORK, f"no network with matching uuid '{uuid_text(uuid)}'{named}", origin=Origin.NETWORK
    )


def _find(session: Session, ref: Ref, function: str) -> tuple[Networks, NetworkInfo]:
    networks = _networks(session, function)
    info = networks.network(ref[1])
    if info is None:
        raise no_network(ref[1], ref[0])
    return networks, info


_flags = partial(known_flags, origin=Origin.NETWORK)


def network_value(info: NetworkInfo) -> Ref:
    """A network as replies carry it."""
    return info.name, info.uuid


# ---- listing and looking up ----------------------------------------------------------------------------


def _names(session: Session, count: int, *, active: bool, function: str) -> list[str]:
    if count < 0 or count > LIST_MAX:
        raise rpc_error(
            "maxnames must be non-negative" if count < 0 else "maxnames > REMOTE_NETWORK_LIST_MAX"
        )
    return [info.name for info in _networks(session, function).networks() if info.active is active][:count]


def _count(session: Session, *, active: bool, function: str) -> int:
    return sum(info.active is active for info in _networks(session, function).networks())


#: Filters of virConnectListAllNetworks, in pairs: a pair with neither or both bits set filters nothing.
_INACTIVE, _ACTIVE, _PERSISTENT, _TRANSIENT, _AUTOSTART, _NO_AUTOSTART = 1, 2, 4, 8, 16, 32


def _matches(info: NetworkInfo, flags: int) -> bool:
    facts = _ACTIVE if info.active else _INACTIVE
    facts |= _PERSISTENT if info.persistent else _TRANSIENT
    facts |= _AUTOSTART if info.autostart else _NO_AUTOSTART
    return passes(facts, flags, (_ACTIVE | _INACTIVE, _PERSISTENT | _TRANSIENT, _AUTOSTART | _NO_AUTOSTART))


def _list_all(session: Session, need_results: int, flags: int) -> tuple[list[Any], int]:
    networks = _networks(session, "virConnectListAllNetworks")
    _flags(flags, 63, "virConnectListAllNetworks")
    found = [info for info in networks.networks() if _matches(info, flags)]
    if len(found) > LIST_MAX:
        raise rpc_error(f"Too many networks '{len(found)}' for limit '{LIST_MAX}'")
    return ([network_value(info) for info in found] if need_results else []), len(found)


def _lookup_by_name(session: Session, name: str) -> Ref:
    info = _networks(session, "virNetworkLookupByName").network_by_name(name)
    if info is None:
        raise error(Code.NO_NETWORK, f"no network with matching name '{name}'", origin=Origin.NETWORK)
    return network_value(info)


def _lookup_by_uuid(session: Session, uuid: bytes) -> Ref:
    info = _networks(session, "virNetworkLookupByUUID").network(uuid)
    if info is None:
        raise no_network(uuid)
    return network_value(info)


# ---- one network: reading ------------------------------------------------------------------------------


def _xml(session: Session, ref: Ref, flags: int) -> str:
    networks, info = _find(session, ref, "virNetworkGetXMLDesc")
    _flags(flags, _XML_INACTIVE, "virNetworkGetXMLDesc")
    return networks.network_xml(info.uuid, inactive=bool(flags & _XML_INACTIVE))


def _bridge_name(session: Session, ref: Ref) -> str:
    _, info = _find(session, ref, "virNetworkGetBridgeName")
    if info.bridge is None:
        raise error(
            Code.INTERNAL_ERROR,
            f"network '{info.name}' does not have a bridge name.",
            origin=Origin.NETWORK,
        )
    return info.bridge


def _get_autostart(session: Session, ref: Ref) -> int:
    return _find(session, ref, "virNetworkGetAutostart")[1].autostart


def _is_active(session: Session, ref: Ref) -> int:
    return _find(session, ref, "virNetworkIsActive")[1].active


def _is_persistent(session: Session, ref: Ref) -> int:
    return _find(session, ref, "virNetworkIsPersistent")[1].persistent


def _leases(
    session: Session, ref: Ref, mac: str | None, need_results: int, flags: int
) -> tuple[list[Any], int]:
    networks, info = _find(session, ref, "virNetworkGetDHCPLeases")
    _flags(flags, 0, "virNetworkGetDHCPLeases")
    found = [
        (
            lease.interface,
            lease.expires,
            0 if lease.version == 4 else 1,
            lease.mac,
            lease.iaid,
            lease.address,
            lease.prefix,
            lease.hostname,
            lease.client_id,
        )
        for lease in networks.leases(info.uuid, mac)
        if shown(session, lease.owner)
    ]
    return (found[:LIST_MAX] if need_results else []), len(found)


def _impact(info: NetworkInfo, flags: int, function: str) -> Impact:
    """What LIVE and CONFIG may mean for this network now."""
    impact = Impact(_flags(flags, 3, function))
    if impact & Impact.LIVE and not info.active:
        raise invalid_network("network is not running")
    if impact & Impact.CONFIG and not info.persistent:
        raise invalid_network("transient networks do not have any persistent config")
    return impact


def _get_metadata(session: Session, ref: Ref, kind: int, uri: str | None, flags: int) -> str:
    known = metadata_kind(kind, uri, "virNetworkGetMetadata")
    networks, info = _find(session, ref, "virNetworkGetMetadata")
    impact = _impact(info, flags, "virNetworkGetMetadata")
    if impact & 3 == 3:
        raise LibvirtError(
            Code.INVALID_ARG,
            "flags 'affect live' and 'affect config' are mutually exclusive",
            origin=Origin.NETWORK,
        )
    return networks.network_metadata(info.uuid, known, uri, impact)


# ---- one network: acting -------------------------------------------------------------------------------


async def _define(session: Session, xml: str) -> Ref:
    return await _define_flags(session, xml, 0)


async def _define_flags(session: Session, xml: str, flags: int) -> Ref:
    networks = _networks(session, "virNetworkDefineXML")
    _flags(flags, _VALIDATE, "virNetworkDefineXMLFlags")
    return network_value(await networks.define_network(session.caller, await parsed(parse_network, xml)))


async def _create_xml(session: Session, xml: str) -> Ref:
    return await _create_xml_flags(session, xml, 0)


async def _create_xml_flags(session: Session, xml: str, flags: int) -> Ref:
    networks = _networks(session, "virNetworkCreateXML")
    _flags(flags, _VALIDATE, "virNetworkCreateXMLFlags")
    return network_value(await networks.create_network_xml(session.caller, await parsed(parse_network, xml)))


async def _create(session: Session, ref: Ref) -> None:
    networks, info = _find(session, ref, "virNetworkCreate")
    await networks.create_network(session.caller, info.uuid)


async def _destroy(session: Session, ref: Ref) -> None:
    networks, info = _find(session, ref, "virNetworkDestroy")
    await networks.destroy_network(session.caller, info.uuid)


async def _undefine(session: Session, ref: Ref) -> None:
    networks, info = _find(session, ref, "virNetworkUndefine")
    await networks.undefine_network(session.caller, info.uuid)


async def _set_autostart(session: Session, ref: Ref, autostart: int) -> None:
    networks, info = _find(session, ref, "virNetworkSetAutostart")
    await networks.set_network_autostart(session.caller, info.uuid, bool(autostart))


async def _update(
    session: Session, ref: Ref, command: int, section: int, index: int, xml: str, flags: int
) -> None:
    # libvirt's client swaps command and section unless the server has feature 16, as this one has.
    networks, info = _find(session, ref, "virNetworkUpdate")
    impact = _impact(info, flags, "virNetworkUpdate")
    update = await parsed(parse_update, xml, command=command, section=section, index=index, name=info.name)
    await networks.update_network(session.caller, info.uuid, update, impact)


async def _set_metadata(
    session: Session, ref: Ref, kind: int, text: str | None, key: str | None, uri: str | None, flags: int
) -> None:
    known = metadata_kind(kind, uri, "virNetworkSetMetadata")
    networks, info = _find(session, ref, "virNetworkSetMetadata")
    impact = _impact(info, flags, "virNetworkSetMetadata")
    await networks.set_network_metadata(session.caller, info.uuid, Metadata(known, text, key, uri), impact)


# ---- ports ---------------------------------------------------------------------------------------------


def _find_port(session: Session, ref: PortRef, function: str) -> tuple[Networks, NetworkInfo]:
    networks, info = _find(session, ref[0], function)
    if ref[1] not in set(_ports_of(session, networks, info)):
        raise error(
            Code.NO_NETWORK_PORT,
            f"Network port with UUID {uuid_text(ref[1])} does not exist",
            origin=Origin.NETWORK,
        )
    return networks, info


def _ports_of(session: Session, networks: Networks, info: NetworkInfo) -> list[bytes]:
    if not info.active:
        raise invalid_network(f"network '{info.name}' is not active")
    owners = networks.port_owners(info.uuid)
    return [port for port in networks.ports(info.uuid) if shown(session, owners.get(port))]


def _list_ports(session: Session, ref: Ref, need_results: int, flags: int) -> tuple[list[Any], int]:
    networks, info = _find(session, ref, "virNetworkListAllPorts")
    _flags(flags, 0, "virNetworkListAllPorts")
    found = [(network_value(info), port) for port in _ports_of(session, networks, info)]
    return (found if need_results else []), len(found)


def _port_lookup(session: Session, ref: Ref, port: bytes) -> PortRef:
    _, info = _find_port(session, (ref, port), "virNetworkPortLookupByUUID")
    return network_value(info), port


def _port_xml(session: Session, ref: PortRef, flags: int) -> str:
    networks, info = _find_port(session, ref, "virNetworkPortGetXMLDesc")
    _flags(flags, 0, "virNetworkPortGetXMLDesc")
    return networks.port_xml(info.uuid, ref[1])


def _port_parameters(session: Session, ref: PortRef, room: int, flags: int) -> tuple[list[Any], int]:
    """`room` is what the client's memory happens to hold: libvirt 9.0 leaves it unset."""
    networks, info = _find_port(session, ref, "virNetworkPortGetParameters")
    _flags(flags, 1 << 2, "virNetworkPortGetParameters")
    params = list(networks.port_parameters(info.uuid, ref[1]))
    return params, len(params)


async def _set_port_parameters(session: Session, ref: PortRef, params: list[Any], flags: int) -> None:
    networks, info = _find_port(session, ref, "virNetworkPortSetParameters")
    _flags(flags, 1 << 2, "virNetworkPortSetParameters")
    await networks.set_port_parameters(session.caller, info.uuid, ref[1], params)


async def _create_port(session: Session, ref: Ref, xml: str, flags: int) -> PortRef:
    networks, info = _find(session, ref, "virNetworkPortCreateXML")
    _flags(flags, 3, "virNetworkPortCreateXML")
    if not info.active:
        raise invalid_network(f"network '{info.name}' is not active")
    return network_value(info), await networks.create_port(session.caller, info.uuid, xml)


async def _delete_port(session: Session, ref: PortRef, flags: int) -> None:
    networks, info = _find_port(session, ref, "virNetworkPortDelete")
    _flags(flags, 0, "virNetworkPortDelete")
    await networks.delete_port(session.caller, info.uuid, ref[1])


def _counting(active: bool, function: str) -> Any:
    return lambda session: _count(session, active=active, function=function)


def _naming(active: bool, function: str) -> Any:
    return lambda session, count: _names(session, count, active=active, function=function)


_N = Record(NETWORK)

ROWS: list[Procedure] = [
    Procedure(36, "virConnectListDefinedNetworks", _naming(False, "virConnectListDefinedNetworks"),
              args=Record(INT), reply=Array(TEXT), read_only=True),
    Procedure(38, "virConnectListNetworks", _naming(True, "virConnectListNetworks"),
              args=Record(INT), reply=Array(TEXT), read_only=True),
    Procedure(39, "virNetworkCreate", _create, args=_N, kind=Kind.ACT),
    Procedure(40, "virNetworkCreateXML", _create_xml, args=Record(TEXT), reply=NETWORK, kind=Kind.ACT),
    Procedure(41, "virNetworkDefineXML", _define, args=Record(TEXT), reply=NETWORK, kind=Kind.ACT),
    Procedure(42, "virNetworkDestroy", _destroy, args=_N, kind=Kind.ACT),
    Procedure(43, "virNetworkGetXMLDesc", _xml, args=Record(NETWORK, UINT), reply=TEXT, read_only=True),
    Procedure(44, "virNetworkGetAutostart", _get_autostart, args=_N, reply=INT, read_only=True),
    Procedure(45, "virNetworkGetBridgeName", _bridge_name, args=_N, reply=TEXT, read_only=True),
    Procedure(46, "virNetworkLookupByName", _lookup_by_name, args=Record(TEXT), reply=NETWORK,
              read_only=True),
    Procedure(47, "virNetworkLookupByUUID", _lookup_by_uuid, args=Record(UUID), reply=NETWORK,
              read_only=True),
    Procedure(48, "virNetworkSetAutostart", _set_autostart, args=Record(NETWORK, INT), kind=Kind.ACT),
    Procedure(49, "virNetworkUndefine", _undefine, args=_N, kind=Kind.ACT),
    Procedure(50, "virConnectNumOfDefinedNetworks", _counting(False, "virConnectNumOfDefinedNetworks"),
              reply=INT, read_only=True),
    Procedure(52, "virConnectNumOfNetworks", _counting(True, "virConnectNumOfNetworks"), reply=INT,
              read_only=True),
    Procedure(152, "virNetworkIsActive", _is_active, args=_N, reply=INT, read_only=True),
    Procedure(153, "virNetworkIsPersistent", _is_persistent, args=_N, reply=INT, read_only=True),
    Procedure(283, "virConnectListAllNetworks", _list_all, args=Record(INT, UINT),
              reply=Record(Array(NETWORK), UINT), read_only=True),
    Procedure(291, "virNetworkUpdate", _update, args=Record(NETWORK, UINT, UINT, INT, TEXT, UINT),
              kind=Kind.ACT),
    Procedure(341, "virNetworkGetDHCPLeases", _leases, args=Record(NETWORK, OPTIONAL_TEXT, INT, UINT),
              reply=Record(Array(_LEASE), UINT), read_only=True),
    Procedure(404, "virNetworkListAllPorts", _list_ports, args=Record(NETWORK, INT, UINT),
              reply=Record(Array(PORT), UINT), read_only=True),
    Procedure(405, "virNetworkPortLookupByUUID", _port_lookup, args=Record(NETWORK, UUID), reply=PORT,
              read_only=True),
    Procedure(406, "virNetworkPortCreateXML", _create_port, args=Record(NETWORK, TEXT, UINT), reply=PORT,
              kind=Kind.ACT),
    Procedure(407, "virNetworkPortGetParameters", _port_parameters, args=Record(PORT, INT, UINT),
              reply=Record(Array(TYPED_PARAM), INT), read_only=True),
    Procedure(408, "virNetworkPortSetParameters", _set_port_parameters,
              args=Record(PORT, Array(TYPED_PARAM), UINT), kind=Kind.ACT),
    Procedure(409, "virNetworkPortGetXMLDesc", _port_xml, args=Record(PORT, UINT), reply=TEXT,
              read_only=True),
    Procedure(410, "virNetworkPortDelete", _delete_port, args=Record(PORT, UINT), kind=Kind.ACT),
    Procedure(432, "virNetworkDefineXMLFlags", _define_flags, args=Record(TEXT, UINT), reply=NETWORK,
              kind=Kind.ACT),
    Procedure(437, "virNetworkCreateXMLFlags", _create_xml_flags, args=Record(TEXT, UINT), reply=NETWORK,
              kind=Kind.ACT),
    Procedure(444, "virNetworkSetMetadata", _set_metadata,
              args=Record(NETWORK, INT, OPTIONAL_TEXT, OPTIONAL_TEXT, OPTIONAL_TEXT, UINT), kind=Kind.ACT),
    Procedure(445, "virNetworkGetMetadata", _get_metadata, args=Record(NETWORK, INT, OPTIONAL_TEXT, UINT),
              reply=TEXT, read_only=True),
]  # fmt: skip
