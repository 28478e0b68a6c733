"""A server's body behind its line socket, without the virtual machine: for tests of power alone.

The lines, their socket, their waveform and the table of what a board does are the emulator's own. Only the
clock is quicker, and nothing boots: "the OS" is an attribute.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from nicagent.config import GpioPower, Line
from nicagent.emulator.body import Action, Event, Power, step
from nicagent.emulator.lines import LineBank, LineServer, LineSpec
from nicagent.power.linewire import Level, Recorded

BUTTON, RESET, LED = 23, 27, 24
BELIEVED = 0.01  # seconds of pressing that the board takes for a press
OVERRIDE = 0.25  # seconds of holding that cut its power; 4 s on a real board


def quick(path: Path, *, active_high: bool = True) -> GpioPower:
    """The driver's settings with all times shortened alike."""

    def line(offset: int) -> Line:
        return Line(offset=offset, active_high=active_high, boot_level_safe=True)

    return GpioPower(
        pins=f"socket:{path}",
        power_button=line(BUTTON),
        reset=line(RESET),
        power_led=line(LED),
        press_seconds=0.05,
        hold_seconds=0.5,
        reset_seconds=0.05,
        debounce_seconds=0.03,
        holdoff_seconds=0.1,
        off_on_gap_seconds=0.15,
    )


@dataclass
class ServerBody:
    """`async with` it: the lines are served on `path`."""

    path: Path
    active_high: bool = True
    on_holder_death: Literal["keep", "input"] = "keep"
    led_delay: float = 0.02  # from power to light
    os_obeys: bool = False  # whether an ACPI button event makes the OS switch off
    button_dead: bool = False
    led_stuck: bool | None = None
    state: Power = Power.OFF
    happened: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        idle: Level = 0 if self.active_high else 1
        self.bank = LineBank(
            [
                LineSpec(BUTTON, "power_button", idle, False),
                LineSpec(RESET, "reset", idle, False),
                LineSpec(LED, "power_led", idle, True),
            ],
            self.on_holder_death,
        )
        self.bank.listeners.append(self._edge)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._server: LineServer | None = None
        self._down = False

    async def __aenter__(self) -> ServerBody:
        self._server = LineServer(self.bank, self.path)
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for timer in self._timers.values():
            timer.cancel()
        assert self._server is not None
        await self._server.__aexit__(kind, error, trace)

    # ---- what a test does to it

    def is_on(self) -> bool:
        return self.state is Power.ON

    def happen(self, event: Event) -> None:
        """Something happens to the board that did not come over a line."""
        row = step(self.state, event)
        self.state = row.state
        for action in row.actions:
            self.happened.append(action)
            match action:
                case Action.LED_ON | Action.LED_OFF:
                    self._later("led", self.led_delay, self.show)
                case Action.WATCH_HOLD:
                    self._later("hold", OVERRIDE, lambda: self._down and self.happen(Event.BUTTON_HELD))
                case Action.ACPI_BUTTON if self.os_obeys:
                    self._later("os", 0.05, lambda: self.happen(Event.OS_OFF))
                case _:
                    pass

    def show(self) -> None:
        """Make the LED say what is so, unless it is stuck."""
        self.light(self.is_on() if self.led_stuck is None else self.led_stuck)

    def light(self, lit: bool) -> None:
        self.bank.drive(LED, 1 if lit == self.active_high else 0, "board")

    def edges(self, *offsets: int) -> list[Recorded]:
        """Recorded edges of these lines, or of both buttons."""
        wanted = offsets or (BUTTON, RESET)
        return [edge for edge in self.bank.waveform() if edge.line in wanted]

    def pressed(self) -> set[int]:
        """Which buttons are pressed at this moment."""
        return {line for line in (BUTTON, RESET) if self.bank.level(line) == int(self.active_high)}

    def lengths(self, offset: int) -> list[float]:
        """Seconds of each finished press of this line."""
        edges = [edge.t_ns / 1e9 for edge in self.edges(offset)]
        return [up - down for down, up in zip(edges[::2], edges[1::2], strict=False)]

    # ---- its own life

    def _edge(self, edge: Recorded) -> None:
        asserted = edge.level == int(self.active_high)
        if edge.line == BUTTON and not self.button_dead:
            if asserted:
                self._down = True
                self._later("button", BELIEVED, lambda: self.happen(Event.BUTTON_DOWN))
            else:
                self._down = False
                if "hold" in self._timers:
                    self._timers.pop("hold").cancel()
                self.happen(Event.BUTTON_UP)
        elif edge.line == RESET:
            self.happen(Event.RESET_DOWN if asserted else Event.RESET_UP)

    def _later(self, name: str, seconds: float, what: object) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, what)  # type: ignore[arg-type]
