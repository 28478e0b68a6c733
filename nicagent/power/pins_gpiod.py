"""A gpiozero pin factory over libgpiod 2: the lines of a real GPIO chip, claimed as they are.

gpiozero's own factories make a line an input before they make it an output, and an output low. On a power
button that is an edge nobody asked for. libgpiod can do better (uAPI v2, linux/gpio.h): request a line with
no direction, which touches nothing, read its level, and make it an output *at that level*.

Letting go: the kernel frees the line when its request is closed. What the level does then is the chip
driver's choice (pinctrl-bcm2835 either keeps the output or makes it an input). Both are without an edge for a
line at its idle level whose pull resistor holds that level, as firmware/raspberrypi sets it up from ROM on.

Bias is left as it is: the boot firmware's settings are the one place where pulls are decided.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from pathlib import Path
from typing import Any

from gpiozero.exc import PinInvalidFunction, PinInvalidPull, PinInvalidState, PinSetInput
from gpiozero.pins import PinInfo
from gpiozero.pins.pi import PiFactory, PiPin

from nicagent.errors import Kind, NicagentError

# Labels of the chips that own the 40-pin header, so that "auto" finds it whatever its number is: on a Pi 5 it
# has been gpiochip4 and gpiochip0, by kernel version.
HEADER_CHIPS = ("pinctrl-rp1", "pinctrl-bcm2711", "pinctrl-bcm2835")


def open_chip(path: str | None, consumer: str, *, dev: Path = Path("/dev")) -> GpiodFactory:
    """The factory for the chip at `path`, or for this board's own when None. Raises UNAVAILABLE."""
    chips = sorted(str(each) for each in dev.glob("gpiochip*"))
    if path is None and not chips:
        raise NicagentError(
            Kind.UNAVAILABLE,
            'pins = "auto" finds no GPIO chip: there is no /dev/gpiochip* on this machine',
            'run on a board that has one, or set pins to "socket:/path" of an emulated chassis\' lines',
        )
    try:
        import gpiod
    except ImportError:
        raise NicagentError(
            Kind.UNAVAILABLE,
            "the Python package gpiod is missing, which GPIO lines need",
            "install it: pip install gpiod",
        ) from None
    try:
        return GpiodFactory(gpiod, path or _header_chip(gpiod, chips), consumer)
    except OSError as error:
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"cannot open the GPIO chip {path or ' or '.join(chips)}: {error.strerror or error}",
            "check that it exists and that the agent's user may use it (group gpio)",
        ) from None


def _header_chip(gpiod: Any, chips: list[str]) -> str:
    labels = {}
    for path in chips:
        with gpiod.Chip(path) as chip:
            labels[path] = chip.get_info().label
    for wanted in HEADER_CHIPS:
        for path, label in labels.items():
            if label == wanted:
                return path
    if len(chips) == 1:
        return chips[0]
    seen = ", ".join(f"{path} ({label})" for path, label in labels.items())
    raise NicagentError(
        Kind.UNAVAILABLE,
        f"which GPIO chip carries the lines is not clear: {seen}",
        'set pins = "/dev/gpiochipN" to the right one',
    )


class GpiodFactory(PiFactory):  # type: ignore[misc]
    """gpiozero pins on one GPIO chip. A pin's name is its offset on the chip; any offset will do."""

    def __init__(self, gpiod: Any, path: str, consumer: str) -> None:
        super().__init__()
        self.gpiod = gpiod
        self.path = path
        self.consumer = consumer
        self.pin_class = GpiodPin
        with gpiod.Chip(path):  # fail here and now if it cannot be opened
            pass
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._lock = threading.Lock()  # guards the set of watched pins
        self._watched: dict[int, GpiodPin] = {}
        self._listener: threading.Thread | None = None

    @staticmethod
    def ticks() -> float:
        return time.monotonic()

    @staticmethod
    def ticks_diff(later: float, earlier: float) -> float:
        return later - earlier

    def pin(self, name: int | str) -> GpiodPin:
        info = self._describe(name)
        if info not in self.pins:
            self.pins[info] = GpiodPin(self, info)
        found: GpiodPin = self.pins[info]
        return found

    # A chip's offset needs no board description, and the kernel itself refuses a second holder of a line.
    def reserve_pins(self, requester: Any, *names: int | str) -> None: ...

    def release_pins(self, reserver: Any, *names: int | str) -> None: ...

    def close(self) -> None:
        """Let go of every line; the listening thread ends."""
        super().close()
        if self._listener is not None:
            os.write(self._wake_write, b"q")
            self._listener.join()
            self._listener = None
        if self._wake_read >= 0:
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1

    def watch(self, fd: int, pin: GpiodPin) -> None:
        """Call `pin.take_events` from the listening thread whenever `fd` has some."""
        with self._lock:
            self._watched[fd] = pin
            self._selector.register(fd, selectors.EVENT_READ)
            if self._listener is None:
                self._listener = threading.Thread(target=self._listen, name="gpio edges", daemon=True)
                self._listener.start()
        os.write(self._wake_write, b"w")

    def unwatch(self, fd: int) -> None:
        with self._lock:
            if self._watched.pop(fd, None) is not None:
                self._selector.unregister(fd)

    @staticmethod
    def _describe(name: int | str) -> PinInfo:
        offset = int(str(name).upper().removeprefix("GPIO"))
        return PinInfo(offset, f"GPIO{offset}", frozenset({f"GPIO{offset}"}), "", 0, 0, frozenset({"gpio"}))

    def _listen(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._wake_read:
                    if b"q" in os.read(self._wake_read, 64):
                        return
                    continue
                with self._lock:
                    pin = self._watched.get(key.fd)
                if pin is not None:
                    pin.take_events()


class GpiodPin(PiPin):  # type: ignore[misc]
    """One line of the chip; untouched and unclaimed until something asks for a function or a level."""

    _when_changed: Any  # a weak reference to gpiozero's callback, kept by PiPin

    def __init__(self, factory: GpiodFactory, info: PinInfo) -> None:
        super().__init__(factory, info)
        self._request: Any = None
        self._claimed = "input"
        self._edges = "both"

    def close(self) -> None:
        """Let go of the line."""
        self.when_changed = None
        if self._request is not None:
            request, self._request = self._request, None
            request.release()

    def take_events(self) -> None:
        """From the listening thread: report each edge that waits."""
        request = self._request
        if request is None:
            return
        rising = self._factory.gpiod.EdgeEvent.Type.RISING_EDGE
        with contextlib.suppress(OSError, self._factory.gpiod.RequestReleasedError):
            for event in request.read_edge_events():
                if self._when_changed is not None:
                    self._call_when_changed(event.timestamp_ns / 1e9, int(event.event_type == rising))

    def output_with_state(self, state: bool) -> None:
        self._configure("OUTPUT", output=bool(state))

    def input_with_pull(self, pull: str) -> None:
        self._set_function("input")
        self._set_pull(pull)

    def _get_function(self) -> str:
        return self._claimed

    def _set_function(self, value: str) -> None:
        if value == "input":
            self._configure("INPUT")
        elif value == "output":
            self._configure("OUTPUT", output=bool(self._get_state()))
        else:
            raise PinInvalidFunction(f"invalid function {value!r} for line {self!r}")

    def _get_state(self) -> int:
        active = self._factory.gpiod.line.Value.ACTIVE
        return int(self._claim().get_value(self._number) == active)

    def _set_state(self, value: float) -> None:
        if self._claimed != "output":
            raise PinSetInput(f"cannot set the level of {self!r}: it is an input")
        if value not in (0, 1):
            raise PinInvalidState(f"invalid level {value!r} for {self!r}: a line is 0 or 1")
        self._claim().set_value(self._number, self._value(bool(value)))

    def _get_pull(self) -> str:
        return "floating"

    def _set_pull(self, value: str) -> None:
        if value != "floating":
            raise PinInvalidPull(f"pulls are the boot firmware's business; {self!r} keeps what it has")

    def _get_bounce(self) -> None:
        return None

    def _set_bounce(self, value: float | None) -> None:
        if value is not None:
            raise ValueError("debouncing is the power driver's business")

    def _get_edges(self) -> str:
        return self._edges

    def _set_edges(self, value: str) -> None:
        self._edges = value

    def _enable_event_detect(self) -> None:
        self._configure("INPUT", edges=True)
        self._factory.watch(self._claim().fd, self)

    def _disable_event_detect(self) -> None:
        if self._request is not None:
            self._factory.unwatch(self._request.fd)
            self._configure("INPUT")

    def _claim(self) -> Any:
        """The request that holds this line; made as is, with neither direction nor bias."""
        if self._request is None:
            gpiod = self._factory.gpiod
            self._request = gpiod.request_lines(
                self._factory.path,
                config={self._number: gpiod.LineSettings(direction=gpiod.line.Direction.AS_IS)},
                consumer=self._factory.consumer,
            )
        return self._request

    def _configure(self, direction: str, *, output: bool = False, edges: bool = False) -> None:
        gpiod = self._factory.gpiod
        settings = gpiod.LineSettings(
            direction=gpiod.line.Direction[direction],
            edge_detection=gpiod.line.Edge.BOTH if edges else gpiod.line.Edge.NONE,
            output_value=self._value(output),
        )
        self._claim().reconfigure_lines({self._number: settings})
        self._claimed = direction.lower()

    def _value(self, high: bool) -> Any:
        values = self._factory.gpiod.line.Value
        return values.ACTIVE if high else values.INACTIVE
