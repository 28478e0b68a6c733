"""Calls that ask the operating system inside a domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypervisor_shim.access import Right, denied
from hypervisor_shim.calls.checks import DOMAIN, Ref, known_flags, running_domain
from hypervisor_shim.driver import served
from hypervisor_shim.driver.guest import AddressSource, Guest, InfoTypes, KeysFlags, Param
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error
from hypervisor_shim.frame import Program
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import (
    HYPER,
    INT,
    OPTIONAL_TEXT,
    TEXT,
    TYPED_PARAM,
    UHYPER,
    UINT,
    Array,
    Optional,
    Record,
)

FS_MAX, INTERFACES_MAX, KEYS_MAX, COMMAND_MAX = 256, 2048, 2048, 1 << 20
_LONGEST = 3600  # seconds that a client may have an agent waited for


def _asked(session: Session, ref: Ref, flags: int, allowed: int, function: str) -> tuple[Guest, bytes]:
    """The family and the domain of a call that needs the guest's answer."""
    guest = served(session.driver.guest, function)
    info = running_domain(session, ref)
    known_flags(flags, allowed, function)
    return guest, info.uuid


async def _hostname(session: Session, ref: Ref, flags: int) -> str:
    guest, uuid = _asked(session, ref, flags, 3, "virDomainGetHostname")
    name = await guest.hostname(uuid, AddressSource.AGENT if flags & 2 or not flags else AddressSource.LEASE)
    if not name:
        raise error(Code.NO_HOSTNAME, "no hostname found for domain", origin=Origin.DOMAIN)
    return name


async def _time(session: Session, ref: Ref, flags: int) -> tuple[int, int]:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainGetTime")
    return await guest.time(uuid)


_TIME_SYNC = 1


async def _set_time(session: Session, ref: Ref, seconds: int, nanoseconds: int, flags: int) -> None:
    guest, uuid = _asked(session, ref, flags, _TIME_SYNC, "virDomainSetTime")
    await guest.set_time(session.caller, uuid, None if flags & _TIME_SYNC else (seconds, nanoseconds))


async def _file_systems(session: Session, ref: Ref, flags: int) -> tuple[list[Any], int]:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainGetFSInfo")
    found = (await guest.file_systems(uuid))[:FS_MAX]
    return [(each.mountpoint, each.name, each.type, list(each.devices)) for each in found], len(found)


def _mountpoints(mountpoints: Sequence[str], function: str) -> list[str]:
    if len(mountpoints) > FS_MAX:
        raise rpc_error(f"too many mountpoints in {function}")
    return list(mountpoints)


async def _freeze(session: Session, ref: Ref, mountpoints: list[str], flags: int) -> int:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainFSFreeze")
    return await guest.freeze(session.caller, uuid, _mountpoints(mountpoints, "virDomainFSFreeze"))


async def _thaw(session: Session, ref: Ref, mountpoints: list[str], flags: int) -> int:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainFSThaw")
    return await guest.thaw(session.caller, uuid, _mountpoints(mountpoints, "virDomainFSThaw"))


async def _trim(session: Session, ref: Ref, mountpoint: str | None, minimum: int, flags: int) -> None:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainFSTrim")
    await guest.trim(session.caller, uuid, mountpoint, minimum)


def _may_ask_the_guest(session: Session, ref: Ref, function: str) -> None:
    """Of a call that readers may make as long as it leaves the guest alone."""
    if session.caller.read_only:
        raise error(Code.OPERATION_DENIED, f"read only access prevents {function}", origin=Origin.DOMAIN)
    if not Right.OPERATE & session.access.on(running_domain(session, ref)):
        raise denied(session, Right.OPERATE, function)


async def _addresses(session: Session, ref: Ref, source: int, flags: int) -> list[Any]:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainInterfaceAddresses")
    try:
        known = AddressSource(source)
    except ValueError:
        raise error(
            Code.ARGUMENT_UNSUPPORTED, f"Unknown IP address data source {source}", origin=Origin.DOMAIN
        ) from None
    if known is AddressSource.AGENT:
        _may_ask_the_guest(session, ref, "virDomainInterfaceAddresses")
    return [
        (each.name, each.mac, [(a.type, a.address, a.prefix) for a in each.addresses[:INTERFACES_MAX]])
        for each in (await guest.addresses(uuid, known))[:INTERFACES_MAX]
    ]


async def _info(session: Session, ref: Ref, types: int, flags: int) -> list[Param]:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainGetGuestInfo")
    if types & ~0x7F:
        raise error(Code.INVALID_ARG, f"unsupported guest information types '0x{types & ~0x7F:x}'")
    return list(await guest.info(uuid, InfoTypes(types)))


async def _set_password(
    session: Session, ref: Ref, user: str | None, password: str | None, flags: int
) -> None:
    guest, uuid = _asked(session, ref, flags, 1, "virDomainSetUserPassword")
    for name, value in (("user", user), ("password", password)):
        if value is None or (name == "user" and not value):
            raise LibvirtError(
                Code.INVALID_ARG,
                f"string {name} in virDomainSetUserPassword must not be empty",
                origin=Origin.DOMAIN,
            )
    await guest.set_password(session.caller, uuid, user or "", password or "", bool(flags & 1))


async def _vcpus(session: Session, ref: Ref, flags: int) -> list[Param]:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainGetGuestVcpus")
    return list(await guest.vcpus(uuid))


async def _set_vcpus(session: Session, ref: Ref, map: str, state: int, flags: int) -> None:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainSetGuestVcpus")
    if state not in (0, 1):
        raise error(Code.INVALID_ARG, "unsupported state value", origin=Origin.DOMAIN)
    await guest.set_vcpus(session.caller, uuid, _numbers(map), bool(state))


def _numbers(text: str) -> frozenset[int]:
    """`0-3,^2,7` as libvirt writes sets of processors."""
    found: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.strip().removeprefix("^").partition("-")
            numbers = range(int(first), int(last or first) + 1)
            if not 0 <= numbers.start <= numbers.stop <= 16_384:
                raise ValueError
            found = found - set(numbers) if part.strip().startswith("^") else found | set(numbers)
    except ValueError:
        raise error(Code.INVALID_ARG, f"Failed to parse bitmap '{text[:64]}'") from None
    return frozenset(found)


async def _ssh_keys(session: Session, ref: Ref, user: str, flags: int) -> list[str]:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainAuthorizedSSHKeysGet")
    return list(await guest.ssh_keys(uuid, user))[:KEYS_MAX]


async def _set_ssh_keys(session: Session, ref: Ref, user: str, keys: list[str], flags: int) -> None:
    guest, uuid = _asked(session, ref, flags, 3, "virDomainAuthorizedSSHKeysSet")
    if flags == 3:
        raise LibvirtError(
            Code.INVALID_ARG,
            "flags 'append' and 'remove' are mutually exclusive",
            origin=Origin.DOMAIN,
        )
    await guest.set_ssh_keys(session.caller, uuid, user, keys, KeysFlags(flags))


def _seconds(timeout: int) -> int:
    if not -2 <= timeout <= _LONGEST:
        raise error(
            Code.INVALID_ARG,
            f"guest agent timeout '{timeout}' is less than the minimum '-2' or more than {_LONGEST}",
        )
    return timeout


async def _set_response_timeout(session: Session, ref: Ref, timeout: int, flags: int) -> int:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainAgentSetResponseTimeout")
    await guest.set_response_timeout(session.caller, uuid, _seconds(timeout))
    return 0


async def _command(session: Session, ref: Ref, text: str, timeout: int, flags: int) -> str:
    guest, uuid = _asked(session, ref, flags, 0, "virDomainQemuAgentCommand")
    if len(text) > COMMAND_MAX:
        raise rpc_error("the command is too long")
    return await guest.command(session.caller, uuid, text, _seconds(timeout))


_ACT = Kind.ACT
_MOUNTPOINTS = Record(DOMAIN, Array(TEXT, FS_MAX), UINT)
_INTERFACE = Record(TEXT, OPTIONAL_TEXT, Array(Record(INT, TEXT, UINT), INTERFACES_MAX))
ROWS = [
    Procedure(277, "virDomainGetHostname", _hostname, Record(DOMAIN, UINT), TEXT, kind=_ACT),
    Procedure(337, "virDomainGetTime", _time, Record(DOMAIN, UINT), Record(HYPER, UINT), kind=_ACT),
    Procedure(338, "virDomainSetTime", _set_time, Record(DOMAIN, HYPER, UINT, UINT), kind=_ACT),
    Procedure(349, "virDomainGetFSInfo", _file_systems, Record(DOMAIN, UINT),
              Record(Array(Record(TEXT, TEXT, TEXT, Array(TEXT, FS_MAX)), FS_MAX), UINT), kind=_ACT),
    Procedure(335, "virDomainFSFreeze", _freeze, _MOUNTPOINTS, INT, kind=_ACT),
    Procedure(336, "virDomainFSThaw", _thaw, _MOUNTPOINTS, INT, kind=_ACT),
    Procedure(294, "virDomainFSTrim", _trim, Record(DOMAIN, OPTIONAL_TEXT, UHYPER, UINT), kind=_ACT),
    Procedure(353, "virDomainInterfaceAddresses", _addresses, Record(DOMAIN, UINT, UINT),
              Array(_INTERFACE, INTERFACES_MAX), True, _ACT),
    Procedure(418, "virDomainGetGuestInfo", _info, Record(DOMAIN, UINT, UINT), Array(TYPED_PARAM), kind=_ACT),
    Procedure(357, "virDomainSetUserPassword", _set_password,
              Record(DOMAIN, OPTIONAL_TEXT, OPTIONAL_TEXT, UINT), kind=_ACT),
    Procedure(371, "virDomainGetGuestVcpus", _vcpus, Record(DOMAIN, UINT), Array(TYPED_PARAM), kind=_ACT),
    Procedure(372, "virDomainSetGuestVcpus", _set_vcpus, Record(DOMAIN, TEXT, INT, UINT), kind=_ACT),
    Procedure(424, "virDomainAuthorizedSSHKeysGet", _ssh_keys, Record(DOMAIN, TEXT, UINT), Array(TEXT),
              kind=_ACT),
    Procedure(425, "virDomainAuthorizedSSHKeysSet", _set_ssh_keys,
              Record(DOMAIN, TEXT, Array(TEXT, KEYS_MAX), UINT), kind=_ACT),
    Procedure(420, "virDomainAgentSetResponseTimeout", _set_response_timeout, Record(DOMAIN, INT, UINT), INT,
              kind=_ACT),
    Procedure(3, "virDomainQemuAgentCommand", _command, Record(DOMAIN, TEXT, INT, UINT), Optional(TEXT),
              kind=_ACT, program=Program.QEMU),
]  # fmt: skip
