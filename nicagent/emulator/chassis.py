"""A chassis: the emulated body of a host. It holds what outlives a power cycle and acts out the table in
`body`.

Everything that happens to the body (a line that moves, an order by the BMC, the OS switching off) becomes
an event in one queue; one task takes them in turn, so no two power transitions ever overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from nicagent.emulator.body import CYCLE_GAP, DEBOUNCE, OVERRIDE, Action, Event, Power, Verdict, step
from nicagent.emulator.card import Card
from nicagent.emulator.faults import BOUNCE_PERIOD, Fault
from nicagent.emulator.front import CaptureServer, KeyEvent, serve_keyboard
from nicagent.emulator.lines import LineBank, LineLog, LineServer, LineSpec
from nicagent.emulator.netns import Tap
from nicagent.emulator.qemu import Board, Wires
from nicagent.emulator.serialport import SerialPort
from nicagent.emulator.settings import Chassis as Settings
from nicagent.emulator.settings import FrontPanel
from nicagent.emulator.slot import slot_disks
from nicagent.errors import Kind, NicagentError
from nicagent.power.linewire import Level, Recorded

HISTORY_KEPT = 200  # power events kept for questions; the log has them all

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Happened:
    """One event in the life of the body: when (CLOCK_MONOTONIC ns), what, who asked, what came of it."""

    t_ns: int
    event: Event
    who: str
    before: Power
    after: Power
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True)
class BootFlags:
    """The BMC's boot flags: the five bytes of boot option parameter 5 (IPMI 2.0, table 28-14), kept as
    given.
    """

    raw: bytes = bytes(5)

    @property
    def persistent(self) -> bool:
        return bool(self.raw[0] & 0x40)

    @property
    def network_first(self) -> bool:
        """Valid, and the device selector says PXE. The other devices come first anyway."""
        return bool(self.raw[0] & 0x80) and self.raw[1] >> 2 & 0x0F == 1


@dataclass
class _Asked:
    event: Event
    who: str
    note: str = ""
    board: Board | None = None  # whose end it tells of; void once another board is in its place
    answer: asyncio.Future[Verdict] | None = field(default=None)


def line_specs(panel: FrontPanel) -> tuple[LineSpec, ...]:
    """The four wires of the front-panel header. Idle is "not pressed" and "not lit"."""

    def idle(active_high: bool) -> Level:
        return 0 if active_high else 1

    return (
        LineSpec(panel.power_button, "power_button", idle(panel.button_active_high), False),
        LineSpec(panel.reset, "reset", idle(panel.reset_active_high), False),
        LineSpec(panel.power_led, "power_led", idle(panel.led_active_high), True),
        LineSpec(panel.hdd_led, "hdd_led", idle(panel.led_active_high), True),
    )


class Chassis:
    """`async with Chassis(settings, directory)`; leaving takes the power away and removes the taps.

    In `directory`: lines.sock, console.sock, vnc.sock, slot/ (unless set otherwise), vars.fd, and the logs
    lines.log, console.log, qemu.log, chassis.log.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.slot = Path(settings.pcie_slot) if settings.pcie_slot else directory / "slot"
        self.slot.mkdir(parents=True, exist_ok=True)
        self.card = Card(self.slot, settings.hotplug_ports) if settings.hotplug_ports else None
        panel = settings.front_panel
        self.bank = LineBank(line_specs(panel), panel.on_holder_death)
        self.serial = SerialPort(directory / "console.sock", directory / "console.log")
        self.guest = SerialPort(directory / "guest.sock", None) if settings.guest_agent else None
        self.power = Power.OFF
        self.boot = BootFlags()
        self.faults: dict[Fault, float] = {}
        self.on_faults: list[Callable[[], None]] = []  # called after every change of `faults`
        self.mains_on, self.mains_off = asyncio.Event(), asyncio.Event()
        self.mains_on.set()
        self.history: deque[Happened] = deque(maxlen=HISTORY_KEPT)
        self._queue: asyncio.Queue[_Asked] = asyncio.Queue(1000)
        self._stack = contextlib.AsyncExitStack()
        self._taps: list[Tap] = []
        self._board: Board | None = None
        self._was_on = False  # for after_ac = "last"
        self._pgood = False
        self._pressed_at: float | None = None  # loop time at which the button line became active
        self._timers: dict[Event, asyncio.TimerHandle] = {}
        self._bouncing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Chassis:
        async with contextlib.AsyncExitStack() as stack:
            line_log = LineLog(self.directory / "lines.log")
            stack.callback(line_log.close)
            journal = (self.directory / "chassis.log").open("a", buffering=1)
            self._journal = stack.enter_context(journal)
            self.bank.listeners += [line_log, self._line_moved]
            for nic in self.settings.nics:
                tap = Tap(nic.tap, nic.netns, nic.mtu)
                stack.callback(tap.close)
                self._taps.append(tap)
            await stack.enter_async_context(self.serial)
            if self.guest is not None:
                await stack.enter_async_context(self.guest)
            if self.card is not None:
                await stack.enter_async_context(self.card)
            if self.settings.vnc:
                await stack.enter_async_context(CaptureServer(self.directory / "capture.sock", self._look))
                await stack.enter_async_context(serve_keyboard(self.directory / "keyboard.sock", self._type))
            worker = asyncio.create_task(self._live(), name=f"chassis {self.settings.name}")
            stack.push_async_callback(self._end, worker)
            await stack.enter_async_context(LineServer(self.bank, self.directory / "lines.sock"))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _end(self, worker: asyncio.Task[None]) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in (worker, self._bouncing):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        if self._board is not None:
            await self._board.cut()
            self._board = None

    async def order(self, event: Event, who: str) -> Verdict:
        """An order by name (BMC, mains): queued behind what is under way; returns what came of it."""
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._post(_Asked(event, who, answer=answer))
        return await answer

    async def mains(self, on: bool, who: str) -> Verdict:
        """Pull or plug the power cord. With mains back the board does what `after_ac` says."""
        if not on:
            return await self.order(Event.AC_LOST, who)
        start = self.settings.after_ac == "on" or (self.settings.after_ac == "last" and self._was_on)
        return await self.order(Event.AC_BACK_START if start else Event.AC_BACK_STAY_OFF, who)

    def set_fault(self, fault: Fault, value: float) -> None:
        self.faults[fault] = value
        self._faults_changed()

    def clear_fault(self, fault: Fault | None) -> None:
        """Mend one fault, or all."""
        if fault is None:
            self.faults.clear()
        else:
            self.faults.pop(fault, None)
        self._faults_changed()

    def status(self) -> Mapping[str, object]:
        """Everything a test or a person may want to know, ready for JSON."""
        here = self.directory
        last = self.history[-1] if self.history else None
        return {
            "name": self.settings.name,
            "power": str(self.power),
            "power_good": self._pgood,
            "lines": self.bank.levels(),
            "qemu_pid": self._board.pid if self._board is not None else None,
            "faults": {str(fault): value for fault, value in self.faults.items()},
            "boot_flags": self.boot.raw.hex(),
            "slot": None if self.card is None else msgspec.to_builtins(self.card.state()),
            "last_event": None if last is None else asdict(last),
            "paths": {
                "lines": str(here / "lines.sock"),
                "console": str(here / "console.sock"),
                "console_log": str(here / "console.log"),
                "lines_log": str(here / "lines.log"),
                "slot": str(self.slot),
                "vnc": str(here / "vnc.sock") if self.settings.vnc else None,
                "capture": str(here / "capture.sock") if self.settings.vnc else None,
                "keyboard": str(here / "keyboard.sock") if self.settings.vnc else None,
                "guest": str(here / "guest.sock") if self.guest is not None else None,
            },
        }

    async def disks(self) -> list[dict[str, object]]:
        """Counters of the host's own view of its disks; empty while it is off."""
        return [] if self._board is None else await self._board.disk_counters()

    async def _look(self) -> bytes | None:
        """A PNG of the screen; None while it is dark."""
        return None if self._board is None else await self._board.screendump()

    async def _type(self, events: Sequence[KeyEvent]) -> None:
        if self._board is not None:
            await self._board.type(events)

    # Lines → events.

    def _line_moved(self, edge: Recorded) -> None:
        panel = self.settings.front_panel
        who = f"line {edge.line}, {edge.cause} {edge.who} (pid {edge.pid})"
        if edge.line == panel.power_button:
            self._button(edge.level == int(panel.button_active_high), who)
        elif edge.line == panel.reset:
            asserted = edge.level == int(panel.reset_active_high)
            self._post(_Asked(Event.RESET_DOWN if asserted else Event.RESET_UP, who))

    def _button(self, pressed: bool, who: str) -> None:
        if Fault.BUTTON_DEAD in self.faults:
            return
        loop = asyncio.get_running_loop()
        if pressed:
            self._pressed_at = loop.time()
            self._timer(Event.BUTTON_DOWN, loop.time() + DEBOUNCE, who)
        elif self._pressed_at is not None:
            self._pressed_at = None
            if not self._cancel(Event.BUTTON_DOWN):  # else it was a glitch, and the board never believed it
                self._post(_Asked(Event.BUTTON_UP, who))

    def _timer(self, event: Event, at: float, who: str) -> None:
        def fire() -> None:
            self._timers.pop(event, None)
            self._post(_Asked(event, who))

        self._cancel(event)
        self._timers[event] = asyncio.get_running_loop().call_at(at, fire)

    def _cancel(self, event: Event) -> bool:
        timer = self._timers.pop(event, None)
        if timer is not None:
            timer.cancel()
        return timer is not None

    def _post(self, asked: _Asked) -> None:
        try:
            self._queue.put_nowait(asked)
        except asyncio.QueueFull:
            log.error("%s: too many events, %s is lost", self.settings.name, asked.event)
            if asked.answer is not None:
                asked.answer.set_result(Verdict.IMPOSSIBLE)

    # Events → actions.

    async def _live(self) -> None:
        while True:
            asked = await self._queue.get()
            if asked.board is not None and asked.board is not self._board:
                continue
            verdict = await self._handle(asked)
            if asked.answer is not None and not asked.answer.done():
                asked.answer.set_result(verdict)

    async def _handle(self, asked: _Asked) -> Verdict:
        before, row = self.power, step(self.power, asked.event)
        if asked.event is Event.AC_LOST:
            self._was_on = before is Power.ON
        self.power = row.state
        if row.state is Power.NO_AC:
            self.mains_on.clear()
            self.mains_off.set()
        else:
            self.mains_off.clear()
            self.mains_on.set()
        self._record(asked, before, row.verdict)
        try:
            for action in row.actions:
                await self._act(action, asked.who)
        except NicagentError as error:
            log.error("%s: %s", self.settings.name, error)
            self._post(_Asked(Event.DIED, "chassis", note=str(error)))
            return Verdict.IMPOSSIBLE
        return row.verdict

    async def _act(self, action: Action, who: str) -> None:
        board = self._board
        match action:
            case Action.SPAWN:
                await self._spawn()
            case Action.CUT:
                self._board = None
                if self.card is not None:
                    self.card.powered_off()
                if board is not None:
                    await board.cut()
                self.serial.unplug()
                if self.guest is not None:
                    self.guest.unplug()
                self._carrier(False)
            case Action.LED_ON | Action.LED_OFF:
                self._pgood = action is Action.LED_ON
                self._show()
            case Action.WATCH_HOLD:
                if self._pressed_at is not None:
                    self._timer(Event.BUTTON_HELD, self._pressed_at + OVERRIDE, who)
            case Action.FORGET_HOLD:
                self._cancel(Event.BUTTON_HELD)
            case Action.WAIT_CYCLE:
                self._timer(Event.CYCLE_DUE, asyncio.get_running_loop().time() + CYCLE_GAP, who)
            case Action.ACPI_BUTTON if board is not None:
                await board.acpi_button()
            case Action.PULSE_RESET if board is not None:
                await board.reset()
            case Action.INTERRUPT if board is not None:
                await board.interrupt()
            case Action.ENTER_RESET if board is not None:
                await board.enter_reset()
            case Action.LEAVE_RESET if board is not None:
                await board.leave_reset()

    async def _spawn(self) -> None:
        panel = self.settings.front_panel
        network_first = self.boot.network_first
        if not self.boot.persistent:
            self.boot = BootFlags()
        disks = slot_disks(self.slot)
        wires = Wires(self.directory, disks, tuple(self._taps))
        self._board = await Board.power_on(
            self.settings,
            wires,
            await self.serial.plug(),
            guest=None if self.guest is None else await self.guest.plug(),
            in_reset=self.bank.level(panel.reset) == int(panel.reset_active_high),
            network_first=network_first,
            on_off=self._went_off,
        )
        if self.card is not None:
            self.card.powered_on(self._board, disks)
        self._carrier(True)

    def _went_off(self, board: Board, by_os: bool, reason: str) -> None:
        event, who = (Event.OS_OFF, "the OS") if by_os else (Event.DIED, "chassis")
        self._post(_Asked(event, who, note=reason, board=board))

    def _carrier(self, on: bool) -> None:
        for tap in self._taps:
            tap.carrier(on)

    def _record(self, asked: _Asked, before: Power, verdict: Verdict) -> None:
        entry = Happened(time.monotonic_ns(), asked.event, asked.who, before, self.power, verdict, asked.note)
        self.history.append(entry)
        self._journal.write(json.dumps(entry.__dict__) + "\n")

    # Power good → LED, through the faults.

    def _show(self, glitch: bool = False) -> None:
        panel = self.settings.front_panel
        lit = self._pgood != glitch
        level: Level = 1 if lit == panel.led_active_high else 0
        if Fault.LED_STUCK in self.faults:
            level = 1 if self.faults[Fault.LED_STUCK] else 0
        self.bank.drive(panel.power_led, level, "glitch" if glitch else "power good")

    def _faults_changed(self) -> None:
        if Fault.LED_BOUNCE in self.faults and self._bouncing is None:
            self._bouncing = asyncio.create_task(self._bounce(), name=f"bounce {self.settings.name}")
        if Fault.LED_BOUNCE not in self.faults and self._bouncing is not None:
            self._bouncing.cancel()
            self._bouncing = None
        self._show()
        for listener in self.on_faults:
            listener()

    async def _bounce(self) -> None:
        """Two glitches a second for as long as the fault lasts; a bouncing change is caught by them too."""
        try:
            while True:
                self._show(glitch=True)
                await asyncio.sleep(self.faults[Fault.LED_BOUNCE] / 1000)
                self._show()
                await asyncio.sleep(BOUNCE_PERIOD)
        finally:
            self._show()


def chassis_directory(run_dir: Path, name: str) -> Path:
    """Where a chassis of a lab keeps its sockets and logs. Raises NicagentError when the path is too long."""
    directory = run_dir / name
    if len(str(directory / "console.sock").encode()) > 107:
        raise NicagentError(
            Kind.INVALID,
            f"the directory {directory} is too long for unix sockets (107 bytes with the socket's name)",
            "choose a shorter run_dir",
        )
    return directory
