"""What each action of a host's life is to its drivers. None keeps state here; all may be repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from nicagent.config import Host
from nicagent.console.contract import Displays
from nicagent.errors import Kind, NicagentError
from nicagent.lifecycle import Action
from nicagent.model import Cause, Export, Initiator, Power, PowerAction
from nicagent.network.contract import NetworkDriver
from nicagent.power.contract import PowerDriver
from nicagent.powerwatch import PowerWatch
from nicagent.storage.contract import HostStorage
from nicagent.store import Run

BootSetter = Callable[[str, Export | None], Awaitable[None]]

POWER_OF: Mapping[Action, PowerAction] = {
    Action.POWER_ON: PowerAction.ON,
    Action.POWER_OFF: PowerAction.OFF,
    Action.POWER_SHUTDOWN: PowerAction.SHUTDOWN,
    Action.POWER_RESET: PowerAction.RESET,
    Action.POWER_PRESS: PowerAction.PRESS,
}


@dataclass(frozen=True)
class Parts:
    """One host's drivers and wiring, built by `agent` from the config."""

    name: str
    config: Host
    power: PowerDriver
    storage: HostStorage
    initiator: Initiator
    network: NetworkDriver | None
    set_boot: BootSetter | None
    displays: Displays | None = None


async def do(action: Action, parts: Parts, watch: PowerWatch, run: Run | None, cause: Cause) -> None:
    """Have the drivers of a host do one action, for `run` where the host has one.

    What the host is not wired for is nothing to do. Raises what its driver raises, and UNAVAILABLE where
    power does not follow.
    """
    power = POWER_OF.get(action)
    if power is not None:
        await parts.power.apply(power, cause)
        return
    match action:
        case Action.EXPORTS_UP if run is not None:
            await parts.storage.present(run.exports, parts.initiator)
        case Action.PORTS_UP if run is not None and parts.network is not None:
            await parts.network.present(parts.name, [b for b in run.bindings if b.port.link])
        case Action.SCREEN_UP if run is not None and parts.displays is not None:
            await parts.displays.present(parts.name, run.display)
        case Action.BOOT_SET if run is not None and parts.set_boot is not None:
            await parts.set_boot(parts.name, boot_export(run))
        case Action.BOOT_CLEAR if parts.set_boot is not None:
            await parts.set_boot(parts.name, None)
        case Action.SCREEN_DOWN if parts.displays is not None:
            await parts.displays.withdraw(parts.name)
        case Action.PORTS_DOWN if parts.network is not None:
            await parts.network.withdraw(parts.name)
        case Action.EXPORTS_DOWN:
            await parts.storage.withdraw()
        case Action.SETTLE:
            await watch.until(Power.ON, watch.pgood_seconds)
        case Action.AWAIT_PGOOD:
            await _require(Power.ON, "power-good did not come", parts, watch)
        case Action.AWAIT_OFF:
            await _require(Power.OFF, "power-good did not go", parts, watch)
        case Action.CHECK_POWER:
            await watch.compare()


async def _require(wanted: Power, otherwise: str, parts: Parts, watch: PowerWatch) -> None:
    seconds = watch.pgood_seconds
    if not await watch.until(wanted, seconds):
        raise NicagentError(
            Kind.UNAVAILABLE, f"{otherwise} on host {parts.name} within {seconds:g} s", watch.wiring
        )


def between(before: Run, after: Run) -> Iterator[Action]:
    """The actions that bring about what differs between two stages of one run."""
    if after.exports != before.exports:
        yield Action.EXPORTS_UP
        yield Action.BOOT_SET
    if after.bindings != before.bindings:
        yield Action.PORTS_UP
    if after.display != before.display:
        yield Action.SCREEN_UP


def boot_export(run: Run) -> Export | None:
    """The disk that the host boots: the lowest boot order, else the first disk that can be written."""
    ordered = [e for e in run.exports if e.disk.boot_order is not None]
    if ordered:
        return min(ordered, key=lambda e: e.disk.boot_order or 0)
    return next((e for e in run.exports if not e.disk.readonly), None)
