"""Node devices."""

from __future__ import annotations

from collections.abc import Iterator

from hypervisor_shim.calls.checks import known_flags
from hypervisor_shim.driver import served
from hypervisor_shim.driver.nodedev import NodeDevice, NodeDevices, no_device
from hypervisor_shim.errors import Origin, rpc_error
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, LIST_MAX, OPTIONAL_TEXT, TEXT, UINT, Array, Record
from hypervisor_shim.xml.nodedev import KINDS

_NAMES_MAX = 65_536  # capabilities that a client may ask for
_VALIDATE = 1

_KIND_FLAGS = (1 << len(KINDS)) - 1
_INACTIVE, _ACTIVE = 1 << 30, 1 << 31


def _devices(session: Session, function: str) -> NodeDevices:
    return served(session.driver.node_devices, function)


def _find(session: Session, name: str, function: str) -> NodeDevice:
    found = _devices(session, function).device(name)
    if found is None:
        raise no_device(name)
    return found


# ---- finding -------------------------------------------------------------------------------------


def _of_kind(session: Session, kind: str | None, function: str) -> Iterator[NodeDevice]:
    return (each for each in _devices(session, function).devices() if kind is None or kind in each.kinds)


def _count(session: Session, kind: str | None, flags: int) -> int:
    known_flags(flags, 0, "virNodeNumOfDevices", Origin.NODEDEV)
    return sum(1 for _ in _of_kind(session, kind, "virNodeNumOfDevices"))


def _names(session: Session, kind: str | None, count: int, flags: int) -> list[str]:
    known_flags(flags, 0, "virNodeListDevices", Origin.NODEDEV)
    return [each.name for each in _of_kind(session, kind, "virNodeListDevices")][: _limit(count, LIST_MAX)]


def _limit(count: int, most: int) -> int:
    if not 0 <= count <= most:
        raise rpc_error(f"maxnames {'must be non-negative' if count < 0 else f'> {most}'}")
    return count


def _matches(device: NodeDevice, flags: int) -> bool:
    state = flags & (_ACTIVE | _INACTIVE)
    if state and not state & (_ACTIVE if device.active else _INACTIVE):
        return False
    kinds = flags & _KIND_FLAGS
    return not kinds or any(kinds >> bit & 1 and kind in device.kinds for bit, kind in enumerate(KINDS))


def _list_all(session: Session, need_results: int, flags: int) -> tuple[list[str], int]:
    devices = _devices(session, "virConnectListAllNodeDevices")
    known_flags(flags, _KIND_FLAGS | _ACTIVE | _INACTIVE, "virConnectListAllNodeDevices", Origin.NODEDEV)
    found = [each.name for each in devices.devices() if _matches(each, flags)]
    if len(found) > LIST_MAX:
        raise rpc_error(f"Too many node_devices '{len(found)}' for limit '{LIST_MAX}'")
    return (found if need_results else []), len(found)


def _lookup(session: Session, name: str) -> str:
    return _find(session, name, "virNodeDeviceLookupByName").name


def _lookup_by_wwn(session: Session, wwnn: str, wwpn: str, flags: int) -> str:
    devices = _devices(session, "virNodeDeviceLookupSCSIHostByWWN")
    known_flags(flags, 0, "virNodeDeviceLookupSCSIHostByWWN", Origin.NODEDEV)
    found = devices.by_wwn(wwnn, wwpn)
    if found is None:
        raise no_device(f"wwnn {wwnn}, wwpn {wwpn}")
    return found.name


# ---- one device ----------------------------------------------------------------------------------


def _xml(session: Session, name: str, flags: int) -> str:
    known_flags(flags, 0, "virNodeDeviceGetXMLDesc", Origin.NODEDEV)
    _find(session, name, "virNodeDeviceGetXMLDesc")
    return _devices(session, "virNodeDeviceGetXMLDesc").xml(name)


def _parent(session: Session, name: str) -> str | None:
    return _find(session, name, "virNodeDeviceGetParent").parent


def _count_caps(session: Session, name: str) -> int:
    return len(_find(session, name, "virNodeDeviceNumOfCaps").caps)


def _caps(session: Session, name: str, count: int) -> list[str]:
    return list(_find(session, name, "virNodeDeviceListCaps").caps[: _limit(count, _NAMES_MAX)])


def _is_active(session: Session, name: str) -> int:
    return _find(session, name, "virNodeDeviceIsActive").active


def _is_persistent(session: Session, name: str) -> int:
    return _find(session, name, "virNodeDeviceIsPersistent").persistent


def _get_autostart(session: Session, name: str) -> int:
    return _find(session, name, "virNodeDeviceGetAutostart").autostart


# ---- changing ------------------------------------------------------------------------------------
# A name that is not there is the driver's to refuse, if it does such a thing at all.


async def _create(session: Session, document: str, flags: int) -> str:
    devices = _devices(session, "virNodeDeviceCreateXML")
    known_flags(flags, _VALIDATE, "virNodeDeviceCreateXML", Origin.NODEDEV)
    return (await devices.create(session.caller, document)).name


async def _destroy(session: Session, name: str) -> None:
    await _devices(session, "virNodeDeviceDestroy").destroy(session.caller, name)


async def _define(session: Session, document: str, flags: int) -> str:
    devices = _devices(session, "virNodeDeviceDefineXML")
    known_flags(flags, _VALIDATE, "virNodeDeviceDefineXML", Origin.NODEDEV)
    return (await devices.define(session.caller, document)).name


async def _undefine(session: Session, name: str, flags: int) -> None:
    known_flags(flags, 0, "virNodeDeviceUndefine", Origin.NODEDEV)
    await _devices(session, "virNodeDeviceUndefine").undefine(session.caller, name)


async def _start(session: Session, name: str, flags: int) -> None:
    known_flags(flags, 0, "virNodeDeviceCreate", Origin.NODEDEV)
    await _devices(session, "virNodeDeviceCreate").start(session.caller, name)


async def _set_autostart(session: Session, name: str, autostart: int) -> None:
    await _devices(session, "virNodeDeviceSetAutostart").set_autostart(session.caller, name, bool(autostart))


async def _detach(session: Session, name: str) -> None:
    await _devices(session, "virNodeDeviceDettach").detach(session.caller, name, None, "virNodeDeviceDettach")


async def _detach_flags(session: Session, name: str, driver: str | None, flags: int) -> None:
    function = "virNodeDeviceDetachFlags"
    known_flags(flags, 0, function, Origin.NODEDEV)
    await _devices(session, function).detach(session.caller, name, driver, function)


async def _reattach(session: Session, name: str) -> None:
    await _devices(session, "virNodeDeviceReAttach").reattach(session.caller, name)


async def _reset(session: Session, name: str) -> None:
    await _devices(session, "virNodeDeviceReset").reset(session.caller, name)


_NAME = Record(TEXT)  # a device is its name
_ACT = Kind.ACT
ROWS = [
    Procedure(111, "virNodeNumOfDevices", _count, Record(OPTIONAL_TEXT, UINT), INT, True),
    Procedure(112, "virNodeListDevices", _names, Record(OPTIONAL_TEXT, INT, UINT), Array(TEXT), True),
    Procedure(285, "virConnectListAllNodeDevices", _list_all, Record(INT, UINT), Record(Array(TEXT), UINT),
              True),
    Procedure(113, "virNodeDeviceLookupByName", _lookup, _NAME, TEXT, True),
    Procedure(297, "virNodeDeviceLookupSCSIHostByWWN", _lookup_by_wwn, Record(TEXT, TEXT, UINT), TEXT, True),
    Procedure(114, "virNodeDeviceGetXMLDesc", _xml, Record(TEXT, UINT), TEXT, True),
    Procedure(115, "virNodeDeviceGetParent", _parent, _NAME, OPTIONAL_TEXT, True),
    Procedure(116, "virNodeDeviceNumOfCaps", _count_caps, _NAME, INT, True),
    Procedure(117, "virNodeDeviceListCaps", _caps, Record(TEXT, INT), Array(TEXT, _NAMES_MAX), True),
    Procedure(435, "virNodeDeviceIsPersistent", _is_persistent, _NAME, INT, True),
    Procedure(436, "virNodeDeviceIsActive", _is_active, _NAME, INT, True),
    Procedure(433, "virNodeDeviceGetAutostart", _get_autostart, _NAME, INT),
    Procedure(434, "virNodeDeviceSetAutostart", _set_autostart, Record(TEXT, INT), kind=_ACT),
    Procedure(123, "virNodeDeviceCreateXML", _create, Record(TEXT, UINT), TEXT, kind=_ACT),
    Procedure(124, "virNodeDeviceDestroy", _destroy, _NAME, kind=_ACT),
    Procedure(428, "virNodeDeviceDefineXML", _define, Record(TEXT, UINT), TEXT, kind=_ACT),
    Procedure(429, "virNodeDeviceUndefine", _undefine, Record(TEXT, UINT), kind=_ACT),
    Procedure(430, "virNodeDeviceCreate", _start, Record(TEXT, UINT), kind=_ACT),
    Procedure(118, "virNodeDeviceDettach", _detach, _NAME, kind=_ACT),
    Procedure(301, "virNodeDeviceDetachFlags", _detach_flags, Record(TEXT, OPTIONAL_TEXT, UINT), kind=_ACT),
    Procedure(119, "virNodeDeviceReAttach", _reattach, _NAME, kind=_ACT),
    Procedure(120, "virNodeDeviceReset", _reset, _NAME, kind=_ACT),
]  # fmt: skip
