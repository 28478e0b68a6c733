"""What is done to a domain beside starting and stopping: suspended, saved, renamed, typed at, looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.driver.stream import ByteStream
from hypervisor_shim.errors import Code, LibvirtError, error


@dataclass(frozen=True, slots=True)
class Screenshot:
    """A picture of a screen, whole, and its MIME type."""

    mime: str
    picture: ByteStream


class Control:
    """May: all of it (default: code 3). What metal cannot do is better refused with a sentence."""

    async def suspend(self, caller: Caller, uuid: bytes) -> None:
        """Stop its processors; memory stays."""
        raise _unsupported("virDomainSuspend")

    async def resume(self, caller: Caller, uuid: bytes) -> None:
        raise _unsupported("virDomainResume")

    async def save(self, caller: Caller, uuid: bytes, function: str) -> None:
        """Write its memory away and stop it; `function` is the call: there are several."""
        raise _unsupported(function)

    async def restore(self, caller: Caller, function: str) -> None:
        raise _unsupported(function)

    async def dump_core(self, caller: Caller, uuid: bytes) -> None:
        raise _unsupported("virDomainCoreDump")

    async def sleep(self, caller: Caller, uuid: bytes, target: int) -> None:
        """By the OS itself. `target`: 0 to memory, 1 to disk, 2 both."""
        raise _unsupported("virDomainPMSuspendForDuration")

    async def wake(self, caller: Caller, uuid: bytes) -> None:
        raise _unsupported("virDomainPMWakeup")

    async def rename(self, caller: Caller, uuid: bytes, name: str) -> None:
        """Of a domain that does not run; the caller has checked that the name is free."""
        raise _unsupported("virDomainRename")

    async def send_keys(
        self, caller: Caller, uuid: bytes, codeset: int, hold_ms: int, keys: Sequence[int]
    ) -> None:
        """Press these together, hold them, let them go. `codeset`: 0 Linux, 1 XT, 2 AT set 1 … 9 qnum."""
        raise _unsupported("virDomainSendKey")

    async def send_signal(self, caller: Caller, uuid: bytes, pid: int, signal: int) -> None:
        raise _unsupported("virDomainSendProcessSignal")

    async def screenshot(self, caller: Caller, uuid: bytes, screen: int) -> Screenshot:
        raise _unsupported("virDomainScreenshot")

    async def open_channel(self, caller: Caller, uuid: bytes, name: str | None, force: bool) -> ByteStream:
        raise _unsupported("virDomainOpenChannel")

    async def set_lifecycle_action(self, caller: Caller, uuid: bytes, event: int, action: int) -> None:
        raise _unsupported("virDomainSetLifecycleAction")


def _unsupported(function: str) -> LibvirtError:
    return error(Code.NO_SUPPORT, function)
