"""Attach, detach and update devices."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hypervisor_shim.calls.checks import DOMAIN, Ref, find_domain, impact_of, known_flags
from hypervisor_shim.calls.documents import parsed
from hypervisor_shim.driver import Caller, DomainInfo, Impact, served
from hypervisor_shim.driver.devices import Devices
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import TEXT, UINT, Record
from hypervisor_shim.xml.device import parse_device
from hypervisor_shim.xml.domain_def import Device

_LIVE, _FORCE = 1, 4  # bit 2 of update: also what the guest has locked

Change = Callable[[Caller, bytes, Device, Impact], Awaitable[None]]
Choose = Callable[[Devices], Change]


def resolved(info: DomainInfo, flags: int, function: str) -> Impact:
    """LIVE, CONFIG or both: no flag means whatever the domain is now."""
    impact = impact_of(info, flags, function)
    return impact or (Impact.LIVE if info.active else Impact.CONFIG)


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


_ONE = Record(DOMAIN, TEXT)
_WITH_FLAGS = Record(DOMAIN, TEXT, UINT)
ROWS = [
    Procedure(8, "virDomainAttachDevice", _attach, _ONE, kind=Kind.ACT),
    Procedure(13, "virDomainDetachDevice", _detach, _ONE, kind=Kind.ACT),
    Procedure(160, "virDomainAttachDeviceFlags", _attach, _WITH_FLAGS, kind=Kind.ACT),
    Procedure(161, "virDomainDetachDeviceFlags", _detach, _WITH_FLAGS, kind=Kind.ACT),
    Procedure(174, "virDomainUpdateDeviceFlags", _update, _WITH_FLAGS, kind=Kind.ACT),
    Procedure(392, "virDomainDetachDeviceAlias", _detach_alias, _WITH_FLAGS, kind=Kind.ACT),
]
