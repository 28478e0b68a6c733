"""What can be done to metal beside switching it: renamed, typed at, looked at. The rest is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hypervisor_shim.driver import Caller, DomainInfo, GraphicsEvent
from hypervisor_shim.driver.control import Control, Screenshot
from hypervisor_shim.driver.stream import Whole
from hypervisor_shim.errors import Code, LibvirtError, error
from hypervisor_shim.xml.domain_change import with_name
from nicagent.console.contract import Displays, Keyboard, Phase, Screen, Viewing
from nicagent.model import Domain
from nicagent.northbound.libvirt_ground import Ground
from nicagent.northbound.libvirt_words import translated

HOLD_SECONDS = 60.0  # the longest that keys are held down
LINUX, XT, ATSET1, USB, QNUM = 0, 1, 2, 7, 9  # codesets (libvirt: virKeycodeSet)
SAME_AS_LINUX = 0x53  # up to here Linux's codes are those of XT keyboards


@dataclass(frozen=True)
class Front:
    """What stands in front of each host: screens, keyboards, and how to make a usage of a Linux key code."""

    screens: Mapping[str, Screen] = field(default_factory=dict)
    displays: Displays | None = None
    keyboards: Mapping[str, Keyboard] = field(default_factory=dict)
    usages: Mapping[int, int] = field(default_factory=dict)


class MetalControl(Control):
    """`rename` is the controller's."""

    def __init__(
        self, ground: Ground, front: Front, rename: Callable[[Domain, Caller], Awaitable[None]]
    ) -> None:
        self._ground = ground
        self._front = front
        self._rename = rename

    async def rename(self, caller: Caller, uuid: bytes, name: str) -> None:
        renamed = with_name(self._ground.persistent(uuid), name)
        with translated():
            await self._rename(self._ground.to_domain(renamed), caller)

    async def send_keys(
        self, caller: Caller, uuid: bytes, codeset: int, hold_ms: int, keys: Sequence[int]
    ) -> None:
        host = self._ground.running(uuid).host or ""
        keyboard = self._front.keyboards.get(host)
        if keyboard is None:
            raise error(Code.OPERATION_UNSUPPORTED, f"host {host} has no keyboard wired to the agent")
        usages = [self._usage(codeset, key) for key in keys]
        with translated():
            await keyboard.press(usages, min(hold_ms / 1000 or 0.05, HOLD_SECONDS))

    def _usage(self, codeset: int, key: int) -> int:
        if codeset == USB:
            return key
        if codeset not in (LINUX, XT, ATSET1, QNUM):
            raise error(Code.ARGUMENT_UNSUPPORTED, "name keys by codeset linux, usb, xt, atset1 or qnum")
        usage = self._front.usages.get(key)
        if usage is None or (codeset != LINUX and key > SAME_AS_LINUX):
            raise error(Code.INVALID_ARG, f"no key of a USB keyboard has code {key} in this codeset")
        return usage

    async def screenshot(self, caller: Caller, uuid: bytes, screen: int) -> Screenshot:
        host = self._ground.running(uuid).host or ""
        source = self._front.screens.get(host)
        if source is None:
            raise error(Code.OPERATION_UNSUPPORTED, f"host {host} has no capture source for its screen")
        if screen:
            raise error(Code.INVALID_ARG, f"host {host} has one screen, number 0")
        with translated():
            picture = await source.picture()
        return Screenshot(picture.mime, Whole(picture.data))

    # ---- what metal cannot do

    async def suspend(self, caller: Caller, uuid: bytes) -> None:
        self._ground.running(uuid)
        raise _refused("the processors of a physical server cannot be stopped from outside and go on later")

    async def resume(self, caller: Caller, uuid: bytes) -> None:
        self._ground.running(uuid)
        raise error(Code.OPERATION_INVALID, "domain is not paused")

    async def save(self, caller: Caller, uuid: bytes, function: str) -> None:
        raise _refused("the memory of a physical server cannot be written away; shut it down instead")

    async def restore(self, caller: Caller, function: str) -> None:
        raise _refused("no memory of a physical server was ever saved, so none can be put back")

    async def dump_core(self, caller: Caller, uuid: bytes) -> None:
        raise _refused("the memory of a physical server cannot be read; its OS may dump on inject-nmi")

    async def sleep(self, caller: Caller, uuid: bytes, target: int) -> None:
        raise _refused("a physical server that sleeps looks switched off to the agent; shut it down instead")

    async def wake(self, caller: Caller, uuid: bytes) -> None:
        raise error(Code.OPERATION_INVALID, "Unable to wake up domain from state running")

    async def send_signal(self, caller: Caller, uuid: bytes, pid: int, signal: int) -> None:
        raise _refused("processes of a physical server are its own OS's")

    async def set_lifecycle_action(self, caller: Caller, uuid: bytes, event: int, action: int) -> None:
        raise _refused("what follows a power-off or a crash of a physical server is set in its firmware")


def viewed(info: DomainInfo, phase: Phase, who: Viewing) -> GraphicsEvent:
    """A viewer of a domain's screen in libvirt's words."""
    local, remote = ((int(":" in node), node, str(port)) for node, port in (who.local, who.remote))
    return GraphicsEvent(info, phase, local, remote, who.scheme)


def _refused(why: str) -> LibvirtError:
    return error(Code.OPERATION_UNSUPPORTED, why)
