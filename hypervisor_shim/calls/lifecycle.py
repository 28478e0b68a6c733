"""The rest of a domain's life cycle: suspended, saved, asleep, renamed; its keyboard and its screen."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from hypervisor_shim.access import Right, denied
from hypervisor_shim.calls.checks import DOMAIN, Ref, find_domain, known_flags, running_domain
from hypervisor_shim.driver import ByteStream, Opened, served
from hypervisor_shim.driver.control import Control
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error
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
    Record,
)

KEYS_MAX, CODESETS = 16, 10
NAME_MAX = 255  # bytes of a new name
_SIGNALS = 65


def _control(session: Session, function: str) -> Control:
    return served(session.driver.control, function)


async def _suspend(session: Session, ref: Ref) -> None:
    uuid = find_domain(session, ref).uuid
    await _control(session, "virDomainSuspend").suspend(session.caller, uuid)


async def _resume(session: Session, ref: Ref) -> None:
    uuid = find_domain(session, ref).uuid
    await _control(session, "virDomainResume").resume(session.caller, uuid)


# ---- memory written away -------------------------------------------------------------------------

Handler = Callable[..., Coroutine[Any, Any, None]]


def _saver(function: str) -> Handler:
    """The calls that save a domain, whatever they add: to a place, with a document, with parameters."""

    async def save(session: Session, ref: Ref, *_: Any) -> None:
        info = find_domain(session, ref)
        control = _control(session, function)
        if not info.active:
            running_domain(session, ref)
        await control.save(session.caller, info.uuid, function)

    return save


def _restorer(function: str) -> Handler:
    async def restore(session: Session, *_: Any) -> None:
        await _control(session, function).restore(session.caller, function)

    return restore


async def _managed_save_remove(session: Session, ref: Ref, flags: int) -> None:
    """There is none to remove: libvirt takes that as done."""
    find_domain(session, ref)
    known_flags(flags, 0, "virDomainManagedSaveRemove")


def _no_managed_save(session: Session, ref: Ref, *_: Any) -> Any:
    find_domain(session, ref)
    raise error(Code.OPERATION_INVALID, "domain does not have managed save image")


async def _core_dump(session: Session, ref: Ref, *_: Any) -> None:
    info = find_domain(session, ref)
    control = _control(session, "virDomainCoreDump")
    if not info.active:
        running_domain(session, ref)
    await control.dump_core(session.caller, info.uuid)


async def _sleep(session: Session, ref: Ref, target: int, duration: int, flags: int) -> None:
    control = _control(session, "virDomainPMSuspendForDuration")
    info = running_domain(session, ref)
    known_flags(flags, 0, "virDomainPMSuspendForDuration")
    if duration:
        raise error(Code.ARGUMENT_UNSUPPORTED, "Duration not supported. Use 0 for now")
    if not 0 <= target <= 2:
        raise error(Code.INVALID_ARG, f"Unknown suspend target: {target}", origin=Origin.DOMAIN)
    await control.sleep(session.caller, info.uuid, target)


async def _wake(session: Session, ref: Ref, flags: int) -> None:
    control = _control(session, "virDomainPMWakeup")
    info = running_domain(session, ref)
    known_flags(flags, 0, "virDomainPMWakeup")
    await control.wake(session.caller, info.uuid)


# ---- the name ------------------------------------------------------------------------------------


async def _rename(session: Session, ref: Ref, name: str | None, flags: int) -> int:
    info = find_domain(session, ref)
    control = _control(session, "virDomainRename")
    known_flags(flags, 0, "virDomainRename")
    if not name:
        raise LibvirtError(
            Code.INVALID_ARG, "string new_name in virDomainRename must not be empty", origin=Origin.DOMAIN
        )
    if not name.strip():
        raise error(Code.XML_ERROR, "name must not be of blanks only", origin=Origin.DOMAIN)
    if "/" in name or "\n" in name or len(name.encode("utf-8", "surrogateescape")) > NAME_MAX:
        raise error(Code.XML_ERROR, f"name {name[:64]} cannot contain '/'", origin=Origin.DOMAIN)
    if info.active:
        raise error(Code.OPERATION_INVALID, "cannot rename active domain")
    if not info.persistent:
        raise error(Code.OPERATION_INVALID, "cannot rename a transient domain")
    if not Right.CONFIGURE & session.access.on(replace(info, name=name)):  # rights go by the name
        raise denied(session, Right.CONFIGURE, "virDomainRename")
    if info.name == name:
        raise error(Code.OPERATION_INVALID, "Can't rename domain to itself")
    if session.driver.domain_by_name(name) is not None:
        raise error(Code.OPERATION_INVALID, f"domain with name '{name}' already exists")
    await control.rename(session.caller, info.uuid, name)
    return 0


# ---- keyboard, screen, channels ------------------------------------------------------------------


async def _send_keys(
    session: Session, ref: Ref, codeset: int, hold: int, keys: list[int], flags: int
) -> None:
    control = _control(session, "virDomainSendKey")
    info = find_domain(session, ref)
    known_flags(flags, 0, "virDomainSendKey")
    if not 0 < len(keys) <= KEYS_MAX:
        raise rpc_error(f"nkeycodes must be 1 to {KEYS_MAX}")
    if codeset >= CODESETS:
        raise error(Code.INVALID_ARG, f"unsupported codeset: {codeset}", origin=Origin.DOMAIN)
    if not info.active:
        running_domain(session, ref)
    await control.send_keys(session.caller, info.uuid, codeset, hold, keys)


async def _send_signal(session: Session, ref: Ref, pid: int, signal: int, flags: int) -> None:
    control = _control(session, "virDomainSendProcessSignal")
    info = find_domain(session, ref)
    known_flags(flags, 0, "virDomainSendProcessSignal")
    if signal >= _SIGNALS:
        raise error(Code.INVALID_ARG, f"signum value {signal} is out of range", origin=Origin.DOMAIN)
    if not info.active:
        running_domain(session, ref)
    await control.send_signal(session.caller, info.uuid, pid, signal)


async def _screenshot(session: Session, ref: Ref, screen: int, flags: int) -> Opened:
    control = _control(session, "virDomainScreenshot")
    info = find_domain(session, ref)
    known_flags(flags, 0, "virDomainScreenshot")
    shot = await control.screenshot(session.caller, info.uuid, screen)
    return Opened(shot.picture, shot.mime)


async def _open_channel(session: Session, ref: Ref, name: str | None, flags: int) -> ByteStream:
    control = _control(session, "virDomainOpenChannel")
    info = running_domain(session, ref)
    known_flags(flags, 1, "virDomainOpenChannel")
    return await control.open_channel(session.caller, info.uuid, name, bool(flags & 1))


async def _open_graphics(session: Session, ref: Ref, index: int, flags: int) -> None:
    running_domain(session, ref)
    raise error(Code.OPERATION_UNSUPPORTED, "no graphics device here speaks to a client's own descriptor")


async def _set_lifecycle_action(session: Session, ref: Ref, event: int, action: int, flags: int) -> None:
    control = _control(session, "virDomainSetLifecycleAction")
    info = find_domain(session, ref)
    known_flags(flags, 3, "virDomainSetLifecycleAction")
    if not 0 <= event <= 2 or not 0 <= action <= 5:
        raise error(Code.INVALID_ARG, "unknown lifecycle event or action", origin=Origin.DOMAIN)
    await control.set_lifecycle_action(session.caller, info.uuid, event, action)


# ---- other hypervisors' documents ----------------------------------------------------------------


async def _from_native(session: Session, format: str, config: str, flags: int) -> str:
    raise error(Code.NO_SUPPORT, "virConnectDomainXMLFromNative")


async def _to_native(session: Session, format: str, xml: str, flags: int) -> str:
    raise error(Code.NO_SUPPORT, "virConnectDomainXMLToNative")


_ACT = Kind.ACT
_PARAMS = Array(TYPED_PARAM)
_PLACE = Record(DOMAIN, TEXT)
ROWS = [
    Procedure(34, "virDomainSuspend", _suspend, Record(DOMAIN), kind=_ACT),
    Procedure(28, "virDomainResume", _resume, Record(DOMAIN), kind=_ACT),
    Procedure(55, "virDomainSave", _saver("virDomainSave"), _PLACE, kind=_ACT),
    Procedure(232, "virDomainSaveFlags", _saver("virDomainSaveFlags"),
              Record(DOMAIN, TEXT, OPTIONAL_TEXT, UINT), kind=_ACT),
    Procedure(440, "virDomainSaveParams", _saver("virDomainSaveParams"), Record(DOMAIN, _PARAMS, UINT),
              kind=_ACT),
    Procedure(182, "virDomainManagedSave", _saver("virDomainManagedSave"), Record(DOMAIN, UINT), kind=_ACT),
    Procedure(184, "virDomainManagedSaveRemove", _managed_save_remove, Record(DOMAIN, UINT), kind=_ACT),
    Procedure(388, "virDomainManagedSaveGetXMLDesc", _no_managed_save, Record(DOMAIN, UINT), TEXT, True),
    Procedure(389, "virDomainManagedSaveDefineXML", _no_managed_save, Record(DOMAIN, OPTIONAL_TEXT, UINT)),
    Procedure(54, "virDomainRestore", _restorer("virDomainRestore"), Record(TEXT), kind=_ACT),
    Procedure(233, "virDomainRestoreFlags", _restorer("virDomainRestoreFlags"),
              Record(TEXT, OPTIONAL_TEXT, UINT), kind=_ACT),
    Procedure(441, "virDomainRestoreParams", _restorer("virDomainRestoreParams"), Record(_PARAMS, UINT),
              kind=_ACT),
    Procedure(235, "virDomainSaveImageGetXMLDesc", _restorer("virDomainSaveImageGetXMLDesc"),
              Record(TEXT, UINT), TEXT, kind=_ACT),
    Procedure(236, "virDomainSaveImageDefineXML", _restorer("virDomainSaveImageDefineXML"),
              Record(TEXT, TEXT, UINT), kind=_ACT),
    Procedure(53, "virDomainCoreDump", _core_dump, Record(DOMAIN, TEXT, UINT), kind=_ACT),
    Procedure(334, "virDomainCoreDumpWithFormat", _core_dump, Record(DOMAIN, TEXT, UINT, UINT), kind=_ACT),
    Procedure(261, "virDomainPMSuspendForDuration", _sleep, Record(DOMAIN, UINT, UHYPER, UINT), kind=_ACT),
    Procedure(267, "virDomainPMWakeup", _wake, Record(DOMAIN, UINT), kind=_ACT),
    Procedure(358, "virDomainRename", _rename, Record(DOMAIN, OPTIONAL_TEXT, UINT), INT, kind=_ACT),
    Procedure(226, "virDomainSendKey", _send_keys, Record(DOMAIN, UINT, UINT, Array(UINT, KEYS_MAX), UINT),
              kind=_ACT),
    Procedure(295, "virDomainSendProcessSignal", _send_signal, Record(DOMAIN, HYPER, UINT, UINT), kind=_ACT),
    Procedure(211, "virDomainScreenshot", _screenshot, Record(DOMAIN, UINT, UINT), OPTIONAL_TEXT,
              kind=Kind.STREAM),
    Procedure(296, "virDomainOpenChannel", _open_channel, Record(DOMAIN, OPTIONAL_TEXT, UINT),
              kind=Kind.STREAM),
    Procedure(249, "virDomainOpenGraphics", _open_graphics, Record(DOMAIN, UINT, UINT), kind=_ACT),
    Procedure(390, "virDomainSetLifecycleAction", _set_lifecycle_action, Record(DOMAIN, UINT, UINT, UINT),
              kind=_ACT),
    Procedure(135, "virConnectDomainXMLFromNative", _from_native, Record(TEXT, TEXT, UINT), TEXT, True, _ACT),
    Procedure(136, "virConnectDomainXMLToNative", _to_native, Record(TEXT, TEXT, UINT), TEXT, True, _ACT),
]  # fmt: skip
