"""The front-panel lines of one host as gpiozero devices: the blocking side of the GPIO driver.

All functions block and are called from the driver's one thread, in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gpiozero import DigitalInputDevice, DigitalOutputDevice
from gpiozero.exc import GPIOZeroError

from nicagent.config import GpioPower, Line
from nicagent.errors import Kind, NicagentError
from nicagent.power.pins import Factory, FactoryMaker, claims_as_is


@dataclass(frozen=True)
class Button:
    """A line that we drive: the power button or reset."""

    name: str
    wiring: Line
    device: Any

    def level(self, asserted: bool) -> int:
        """The electrical level, 0 or 1, that this is."""
        return int(asserted == self.wiring.active_high)

    def is_held(self) -> bool:
        with _complaints(self.name):
            return bool(self.device.value)

    def put(self, asserted: bool) -> None:
        with _complaints(self.name):
            self.device.value = asserted


@dataclass(frozen=True)
class Panel:
    """The claimed lines."""

    factory: Factory
    power: Button
    reset: Button
    led: Any

    @property
    def buttons(self) -> tuple[Button, Button]:
        return self.power, self.reset

    def led_is_lit(self) -> bool:
        with _complaints("power_led"):
            return bool(self.led.value)

    def close(self) -> None:
        """Let go of everything. No edge for a line at its idle level; `pins_gpiod` says why."""
        for device in (self.led, self.power.device, self.reset.device):
            with contextlib.suppress(GPIOZeroError, NicagentError, OSError):
                device.close()
        self.factory.close()


def claim(
    host: str,
    config: GpioPower,
    maker: FactoryMaker,
    lost: Callable[[], None],
    heard: Callable[[bool], None],
) -> Panel:
    """Claim the lines as they are. `heard(lit)` is then called, from a thread, for every edge of the LED.

    Raises UNAVAILABLE, or UNSUPPORTED when this factory cannot claim an active-low line without an edge.
    """
    for name, line in (("power_button", config.power_button), ("reset", config.reset)):
        if not line.active_high and not claims_as_is(config.pins):
            raise NicagentError(
                Kind.UNSUPPORTED,
                f"host {host}: pins = {config.pins!r} would assert the active-low {name} on claiming it",
                'set pins = "auto", which claims a line as it is',
            )
    with _complaints("GPIO"):
        factory = maker(config.pins, f"nicagent {host}", lost)
        try:
            led = DigitalInputDevice(
                config.power_led.offset,
                pull_up=None,  # the boot firmware has set it
                active_state=config.power_led.active_high,
                pin_factory=factory,
            )
            led.when_activated = lambda: heard(True)
            led.when_deactivated = lambda: heard(False)
            return Panel(
                factory,
                Button("power_button", config.power_button, _output(config.power_button, factory)),
                Button("reset", config.reset, _output(config.reset, factory)),
                led,
            )
        except BaseException:
            factory.close()
            raise


def _output(line: Line, factory: Factory) -> Any:
    # initial_value None is gpiozero's "as is": the level found is kept.
    return DigitalOutputDevice(
        line.offset, active_high=line.active_high, initial_value=None, pin_factory=factory
    )


@contextlib.contextmanager
def _complaints(what: str) -> Iterator[None]:
    """Errors of the library and the kernel as UNAVAILABLE, which is all that the contract allows."""
    try:
        yield
    except (GPIOZeroError, OSError) as error:
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"{what}: the line cannot be used: {error}",
            "see who holds it (gpioinfo), and check the offsets of this host's power table",
        ) from None
    except NicagentError as error:
        if error.kind is Kind.DENIED:  # a chassis that refuses: another agent holds the line
            raise NicagentError(Kind.UNAVAILABLE, error.message, error.hint) from None
        raise
