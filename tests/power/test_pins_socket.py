"""gpiozero devices over the line socket: they behave as on a chip, and nothing moves unasked."""

from __future__ import annotations

import asyncio
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gpiozero import Button, DigitalInputDevice, DigitalOutputDevice
from gpiozero.exc import GPIOPinInUse, PinSetInput

from nicagent.emulator.lines import LineBank, LineServer, LineSpec, OnHolderDeath
from nicagent.errors import Kind, NicagentError
from nicagent.power.linewire import Level, Recorded
from nicagent.power.pins_socket import SocketFactory

BUTTON, LED = 23, 24
SPECS = (LineSpec(BUTTON, "power_button", 0, False), LineSpec(LED, "power_led", 0, True))


class Chassis:
    """A line server on a thread of its own: the factory's calls are synchronous."""

    def __init__(self, path: Path, policy: OnHolderDeath = "keep") -> None:
        self.path = path
        self.bank = LineBank(SPECS, policy)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = LineServer(self.bank, path)
        self.start()

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.__aenter__(), self._loop).result(5)

    def vanish(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.__aexit__(), self._loop).result(5)
        self.path.unlink(missing_ok=True)

    def led(self, level: Level) -> None:
        self._loop.call_soon_threadsafe(self.bank.drive, LED, level, "power-good")

    def edges(self, line: int = BUTTON) -> list[Recorded]:
        return self.bank.waveform(line)

    def close(self) -> None:
        self.vanish()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture(params=["keep", "input"])
def any_chassis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chassis]:
    chassis = Chassis(tmp_path / "lines", request.param)
    yield chassis
    chassis.close()


@pytest.fixture
def chassis(tmp_path: Path) -> Iterator[Chassis]:
    chassis = Chassis(tmp_path / "lines")
    yield chassis
    chassis.close()


@pytest.fixture
def factory(chassis: Chassis) -> Iterator[SocketFactory]:
    with SocketFactory(chassis.path, consumer="test") as factory:
        yield factory


def until(condition: Callable[[], bool], what: str, limit: float = 5.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.005)


def test_an_output_presses_and_releases_the_line(chassis: Chassis, factory: SocketFactory) -> None:
    button = DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=factory)
    assert button.value == 0
    button.on()
    assert button.value == 1
    button.off()
    assert [(e.level, e.cause, e.who) for e in chassis.edges()] == [
        (1, "holder", "test"),
        (0, "holder", "test"),
    ]


def test_an_active_low_output_drives_the_electrical_level(chassis: Chassis, factory: SocketFactory) -> None:
    button = DigitalOutputDevice(BUTTON, active_high=False, initial_value=True, pin_factory=factory)
    assert chassis.bank.level(BUTTON) == 0 and button.value == 1
    button.off()
    assert chassis.bank.level(BUTTON) == 1, "released on an active-low line is high"


def test_claiming_closing_and_reopening_cause_no_edge(any_chassis: Chassis) -> None:
    for _ in range(3):
        with SocketFactory(any_chassis.path) as factory:
            DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=factory)
            DigitalInputDevice(LED, pull_up=None, active_state=True, pin_factory=factory)
            factory.pin(BUTTON)
    assert any_chassis.bank.waveform() == [], "an agent that comes and goes moved a line"


def test_as_is_claim_keeps_a_level_left_by_another(chassis: Chassis) -> None:
    with SocketFactory(chassis.path) as first:
        DigitalOutputDevice(BUTTON, initial_value=True, pin_factory=first)
    with SocketFactory(chassis.path) as second:
        button = DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=second)
        assert button.value == 1, "keep: the level outlives its holder, and the next one sees it"
    assert len(chassis.edges()) == 1, "only the press itself is an edge"


def test_input_device_hears_edges_with_their_time(chassis: Chassis, factory: SocketFactory) -> None:
    heard: queue.Queue[str] = queue.Queue()
    led = DigitalInputDevice(LED, pull_up=None, active_state=True, pin_factory=factory)
    led.when_activated = lambda: heard.put("on")
    led.when_deactivated = lambda: heard.put("off")
    chassis.led(1)
    assert heard.get(timeout=5) == "on"
    assert led.value == 1
    chassis.led(0)
    assert heard.get(timeout=5) == "off"
    until(lambda: led.active_time is None, "the input is inactive")


def test_a_callback_may_use_pins_itself(chassis: Chassis, factory: SocketFactory) -> None:
    seen: queue.Queue[int] = queue.Queue()
    led = DigitalInputDevice(LED, pull_up=None, active_state=True, pin_factory=factory)
    led.when_activated = lambda: seen.put(led.value)
    chassis.led(1)
    assert seen.get(timeout=5) == 1, "a read inside when_activated must not deadlock"


def test_button_device_works_on_an_input(chassis: Chassis, factory: SocketFactory) -> None:
    button = Button(LED, pull_up=None, active_state=True, pin_factory=factory)
    chassis.led(1)
    assert button.wait_for_press(5)
    chassis.led(0)
    assert button.wait_for_release(5)


def test_bounce_time_swallows_glitches(chassis: Chassis, factory: SocketFactory) -> None:
    heard: list[int] = []
    led = DigitalInputDevice(LED, pull_up=None, active_state=True, bounce_time=10.0, pin_factory=factory)
    led.when_activated = lambda: heard.append(1)
    last = threading.Event()
    led.when_deactivated = last.set
    for _ in range(5):
        chassis.led(1)
        chassis.led(0)
    until(lambda: len(chassis.edges(LED)) == 10, "ten edges on the line")
    assert not last.wait(0.2), "an edge within the bounce time was reported"
    assert heard == [1]


def test_one_device_a_pin_in_one_process(factory: SocketFactory) -> None:
    with (
        DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=factory),
        pytest.raises(GPIOPinInUse),
    ):
        DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=factory)


def test_one_holder_a_line_among_processes(chassis: Chassis, factory: SocketFactory) -> None:
    held = DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=factory)
    with SocketFactory(chassis.path, consumer="intruder") as other:
        with pytest.raises(NicagentError, match=r"busy, held by test \(pid \d+\)") as refused:
            DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=other)
        assert refused.value.kind is Kind.DENIED
    assert held.value == 0


def test_a_line_is_free_after_close(chassis: Chassis, factory: SocketFactory) -> None:
    DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=factory).close()
    with SocketFactory(chassis.path, consumer="next") as other:
        DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=other).on()
    assert chassis.edges()[-1].who == "next"


def test_an_input_cannot_be_set(factory: SocketFactory) -> None:
    pin = factory.pin(LED)
    pin.function = "input"
    with pytest.raises(PinSetInput):
        pin.state = 1


def test_an_led_cannot_be_driven_by_the_agent(factory: SocketFactory) -> None:
    with pytest.raises(NicagentError, match="driven by the chassis"):
        DigitalOutputDevice(LED, initial_value=True, pin_factory=factory)


def test_a_missing_chassis_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NicagentError, match=r"does not answer on .*lines") as gone:
        SocketFactory(tmp_path / "lines")
    assert gone.value.kind is Kind.UNAVAILABLE and gone.value.hint


def test_a_vanished_chassis_raises_and_then_reconnects(chassis: Chassis) -> None:
    lost = threading.Event()
    heard: queue.Queue[str] = queue.Queue()
    with SocketFactory(chassis.path, on_disconnect=lost.set) as factory:
        button = DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=factory)
        led = DigitalInputDevice(LED, pull_up=None, active_state=True, pin_factory=factory)
        led.when_activated = lambda: heard.put("on")
        chassis.vanish()
        assert lost.wait(5), "on_disconnect tells of the loss"
        with pytest.raises(NicagentError, match="does not answer"):
            _ = led.value
        with pytest.raises(NicagentError, match="does not answer"):
            button.on()
        chassis.led(1)
        until(lambda: chassis.bank.level(LED) == 1, "the LED is lit")
        chassis.start()
        factory.reconnect()
        assert factory.connected
        assert heard.get(timeout=5) == "on", "an edge in the dark is reported after reconnecting"
        assert chassis.edges() == [], "reconnecting claims as is"
        button.on()
        assert chassis.bank.level(BUTTON) == 1, "the claim came back by itself"


def test_closing_after_the_chassis_vanished_is_quiet(chassis: Chassis) -> None:
    factory = SocketFactory(chassis.path)
    button = DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=factory)
    chassis.vanish()
    button.close()
    factory.close()
    chassis.start()


@pytest.mark.parametrize(("policy", "after"), [("keep", 1), ("input", 0)])
def test_a_holder_killed_in_mid_press(tmp_path: Path, policy: OnHolderDeath, after: int) -> None:
    """The line does what the kernel would; the next agent finds it and can release it."""
    chassis = Chassis(tmp_path / "lines", policy)
    program = (
        "import sys, time; from gpiozero import DigitalOutputDevice\n"
        "from nicagent.power.pins_socket import SocketFactory\n"
        f"b = DigitalOutputDevice({BUTTON}, initial_value=None,"
        " pin_factory=SocketFactory(sys.argv[1], consumer='victim'))\n"
        "b.on(); print('pressed', flush=True); time.sleep(60)\n"
    )
    victim = subprocess.Popen([sys.executable, "-c", program, str(chassis.path)], stdout=subprocess.PIPE)
    try:
        assert victim.stdout is not None and victim.stdout.readline() == b"pressed\n"
        assert chassis.bank.level(BUTTON) == 1
        victim.send_signal(signal.SIGKILL)
        victim.wait(5)
        until(lambda: chassis.bank.holder(BUTTON) is None, "the dead holder lost its line")
        assert chassis.bank.level(BUTTON) == after
        if policy == "input":
            assert (chassis.edges()[-1].cause, chassis.edges()[-1].pid) == ("holder-death", victim.pid)
        else:
            assert len(chassis.edges()) == 1
        with SocketFactory(chassis.path, consumer="next agent") as factory:
            button = DigitalOutputDevice(BUTTON, initial_value=None, pin_factory=factory)
            assert button.value == after, "as is"
            button.off()
            assert chassis.bank.level(BUTTON) == 0
    finally:
        victim.kill()
        assert victim.stdout is not None
        victim.stdout.close()
        victim.wait(5)
        chassis.close()
