"""A server, its disks and its ports in memory, behind the three driver contracts.

For tests whose subject is the controller: its order of acts, rollback, cancellation, recovery. The drivers
themselves have conformance suites. A `Body` outlives the drivers and the controller, as metal outlives an
agent; `Body.fail` and `Body.hold` are the faults and the moments at which a test wants to step in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from nicagent.console.contract import Displays, Watcher
from nicagent.errors import Kind, NicagentError
from nicagent.model import (
    Cause,
    Display,
    DisplayBinding,
    Export,
    ExportStatus,
    Initiator,
    PortBinding,
    PortStatus,
    Power,
    PowerAction,
    Transport,
)
from nicagent.network.contract import NetworkDriver
from nicagent.power.contract import PowerDriver, PowerWatcher
from nicagent.storage.contract import HostStorage


class Body:
    """What a host is and what an agent has done to it. `acts` is the journal of every driver call."""

    def __init__(self, power: Power = Power.OFF) -> None:
        self.power = power
        self.exports: tuple[Export, ...] = ()
        self.bindings: tuple[PortBinding, ...] = ()
        self.display: DisplayBinding | None = None
        self.boot: Export | None = None
        self.acts: list[str] = []
        self.fail: dict[str, int] = {}  # act → how many more times it fails
        self.hold: set[str] = set()  # acts that do not return while they are in here
        self.held = asyncio.Event()  # set whenever an act is held
        self.screen = True  # it has one that can be shown
        self.dead_button = False  # power on does nothing
        self.stuck_on = False  # power off does nothing
        self.ignores_shutdown = False
        self.watcher: PowerWatcher | None = None

    def set_power(self, power: Power) -> None:
        """The fact changes, whoever did it."""
        if power is not self.power:
            self.power = power
            if self.watcher is not None:
                self.watcher(power)

    async def act(self, name: str) -> None:
        """One call of a driver: noted, perhaps failing, perhaps held."""
        self.acts.append(name)
        while name in self.hold:
            self.held.set()
            await asyncio.sleep(0.005)
        await asyncio.sleep(0)  # a driver always gives way at least once
        if self.fail.get(name, 0) > 0:
            self.fail[name] -= 1
            raise NicagentError(Kind.UNAVAILABLE, f"{name} does not work today", "mend it")

    @property
    def untouched(self) -> bool:
        """Nothing of a tenant is left and the power is off."""
        left = self.exports or self.bindings or self.display or self.boot
        return not left and self.power is Power.OFF

    async def set_boot(self, host: str, export: Export | None) -> None:
        await self.act("boot choice set" if export else "boot choice cleared")
        self.boot = export


class BodyPower(PowerDriver):
    def __init__(self, body: Body) -> None:
        self.body = body

    async def start(self) -> None:
        if self.body.fail.get("start", 0) > 0:
            self.body.fail["start"] -= 1
            raise NicagentError(Kind.UNAVAILABLE, "the chip is not there", "plug it in")

    async def close(self) -> None:
        self.body.watcher = None

    async def read(self) -> Power:
        return self.body.power

    async def apply(self, action: PowerAction, cause: Cause) -> None:
        body = self.body
        match action:
            case PowerAction.ON:
                await body.act("power on")
                if not body.dead_button:
                    body.set_power(Power.ON)
            case PowerAction.OFF:
                await body.act("power off")
                if not body.stuck_on:
                    body.set_power(Power.OFF)
            case PowerAction.SHUTDOWN:
                await body.act("ask the OS to shut down")
                if not body.ignores_shutdown:
                    asyncio.get_running_loop().call_later(0.01, body.set_power, Power.OFF)
            case PowerAction.RESET:
                await body.act("reset")
            case PowerAction.PRESS:
                await body.act("press the power button")

    def deadline(self, action: PowerAction) -> float:
        return 1.0

    def watch(self, watcher: PowerWatcher) -> None:
        self.body.watcher = watcher
        asyncio.get_running_loop().call_soon(watcher, self.body.power)


class BodyStorage(HostStorage):
    transport = Transport.VIRTIO

    def __init__(self, body: Body) -> None:
        self.body = body

    async def present(self, exports: Sequence[Export], initiator: Initiator) -> None:
        # The half that a failure leaves behind is the worst case for a rollback: visible, then failing.
        self.body.exports = tuple(exports)
        await self.body.act("exports up")

    async def withdraw(self) -> None:
        await self.body.act("exports down")
        self.body.exports = ()

    async def check_pluggable(self, *, more: int = 0, gone: Collection[str] = ()) -> None:
        """Any number, at any time."""

    async def status(self) -> tuple[ExportStatus, ...]:
        return tuple(ExportStatus(each.disk.target, self.transport) for each in self.body.exports)

    async def watch_over(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


class BodyNetwork(NetworkDriver):
    def __init__(self, bodies: dict[str, Body]) -> None:
        self.bodies = bodies

    async def start(self) -> None:
        pass

    async def present(self, host: str, bindings: Sequence[PortBinding]) -> None:
        self.bodies[host].bindings = tuple(bindings)
        await self.bodies[host].act("ports up")

    async def withdraw(self, host: str) -> None:
        await self.bodies[host].act("ports down")
        self.bodies[host].bindings = ()

    async def status(self, host: str) -> tuple[PortStatus, ...]:
        return tuple(PortStatus(b.port.name, b.device, True) for b in self.bodies[host].bindings)

    async def refilter(self) -> None:
        pass

    async def close(self) -> None:
        pass


class BodyDisplays(Displays):
    def __init__(self, bodies: dict[str, Body]) -> None:
        self.bodies = bodies

    def shows(self, host: str) -> bool:
        return self.bodies[host].screen

    async def bind(self, host: str, display: Display, taken: Collection[int]) -> DisplayBinding:
        port = display.port or min({5900, 5901, 5902} - set(taken))
        return DisplayBinding(display, display.address or "127.0.0.1", port)

    async def present(self, host: str, binding: DisplayBinding | None) -> None:
        self.bodies[host].display = binding
        await self.bodies[host].act("screen shown")

    async def withdraw(self, host: str) -> None:
        await self.bodies[host].act("screen hidden")
        self.bodies[host].display = None

    def watch(self, watcher: Watcher) -> None:
        pass

    async def close(self) -> None:
        pass
