"""Attach, detach and update devices."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hypervisor_shim.calls.checks import (
    DOMAIN,
    TEXT_OKAY,
    Param,
    Ref,
    find_domain,
    known_flags,
    resolved,
    typed,
)
from hypervisor_shim.calls.documents import parsed
from hypervisor_shim.driver import Caller, Impact, served
from hypervisor_shim.driver.devices import Devices
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, TEXT, TYPED_PARAM, UINT, Array, Record, Tag
from hypervisor_shim.xml.device import parse_device
from hypervisor_shim.xml.domain_def import Device, Rate

_UINT_MAX = 0xFFFFFFFF
_LIVE, _FORCE = 1, 4  # bit 2 of update: also what the guest has locked

Change = Callable[[Caller, bytes, Device, Impact], Awaitable[None]]
Choose = Callable[[Devices], Change]


async def _change(session: Session, ref: Ref, xml: str, flags: int, function: str, choose: Choose) -> None:
    devices = served(session.driver.devices, function)
    info = find_domain(session, ref)
    impact = resolved(info, flags, function)
    await choose(devices)(session.caller, info.uuid, await parsed(parse_device, xml), impact)


async def _attach(session: Session, ref: Ref, xml: str, flags: int = _LIVE) -> None:
    await _change(session, ref, xml, flags, "virDomainAttachDeviceFlags", lambda devices: devices.attach)


async def _detach(session: Session, ref: Ref, xml: str, flags: int = _LIVE) -> None:
    await _change(session, ref, xml, flags, "virDomainDetachDeviceFlags", lambda devices: devices.detach)


async def _update(session: Session, ref: Ref, xml: str, flags: int) -> None:
    function = "virDomainUpdateDeviceFlags"
    known_flags(flags, 3 | _FORCE, function)
    await _change(session, ref, xml, flags & ~_FORCE, function, lambda devices: devices.update)


async def _detach_alias(session: Session, ref: Ref, alias: str, flags: int) -> None:
    function = "virDomainDetachDeviceAlias"
    devices = served(session.driver.devices, function)
    info = find_domain(session, ref)
    await devices.detach_alias(session.caller, info.uuid, alias, resolved(info, flags, function))


# ---- how fast an interface may go ----------------------------------------------------------------

_RATES = ("inbound.average", "inbound.peak", "inbound.burst", "inbound.floor",
          "outbound.average", "outbound.peak", "outbound.burst")  # fmt: skip
_PARAMS_MAX = 16  # libvirt: REMOTE_DOMAIN_INTERFACE_PARAMETERS_MAX


def _get_bandwidth(
    session: Session, ref: Ref, interface: str, count: int, flags: int
) -> tuple[list[Param], int]:
    function = "virDomainGetInterfaceParameters"
    devices = served(session.driver.devices, function)
    info = find_domain(session, ref)
    impact = resolved(info, flags & ~TEXT_OKAY, function)
    if impact is Impact.LIVE | Impact.CONFIG:
        message = "Flags 'VIR_DOMAIN_AFFECT_LIVE' and 'VIR_DOMAIN_AFFECT_CONFIG' are mutually exclusive"
        raise LibvirtError(Code.INVALID_ARG, message, origin=Origin.DOMAIN)
    if count == 0:
        return [], len(_RATES)
    found = devices.bandwidth(info.uuid, interface, impact)
    shown: list[Param] = []
    for name in _RATES:
        way, _, value = name.partition(".")
        rate: Rate | None = getattr(found, way)
        shown.append((name, Tag.UINT, 0 if rate is None else min(getattr(rate, value), _UINT_MAX)))
    return shown[: max(count, 0)], len(shown)


async def _set_bandwidth(session: Session, ref: Ref, interface: str, params: list[Param], flags: int) -> None:
    function = "virDomainSetInterfaceParameters"
    devices = served(session.driver.devices, function)
    info = find_domain(session, ref)
    impact = resolved(info, flags, function)
    given: dict[str, int] = {}
    for name, value in typed(params, dict.fromkeys(_RATES, Tag.UINT)):
        if name in given:
            raise error(Code.INVALID_ARG, f"parameter '{name}' occurs multiple times", origin=Origin.NONE)
        given[name] = int(value)
    await devices.set_bandwidth(session.caller, info.uuid, interface, given, impact)


_ONE = Record(DOMAIN, TEXT)
_WITH_FLAGS = Record(DOMAIN, TEXT, UINT)
ROWS = [
    Procedure(8, "virDomainAttachDevice", _attach, _ONE, kind=Kind.ACT),
    Procedure(13, "virDomainDetachDevice", _detach, _ONE, kind=Kind.ACT),
    Procedure(160, "virDomainAttachDeviceFlags", _attach, _WITH_FLAGS, kind=Kind.ACT),
    Procedure(161, "virDomainDetachDeviceFlags", _detach, _WITH_FLAGS, kind=Kind.ACT),
    Procedure(174, "virDomainUpdateDeviceFlags", _update, _WITH_FLAGS, kind=Kind.ACT),
    Procedure(392, "virDomainDetachDeviceAlias", _detach_alias, _WITH_FLAGS, kind=Kind.ACT),
    Procedure(
        256,
        "virDomainSetInterfaceParameters",
        _set_bandwidth,
        Record(DOMAIN, TEXT, Array(TYPED_PARAM, _PARAMS_MAX), UINT),
        kind=Kind.ACT,
    ),
    Procedure(
        257,
        "virDomainGetInterfaceParameters",
        _get_bandwidth,
        Record(DOMAIN, TEXT, INT, UINT),
        Record(Array(TYPED_PARAM), INT),
        True,
    ),
]
