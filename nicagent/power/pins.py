"""Which pin factory a `pins` setting means.

| pins             | means                                                                              |
|------------------|------------------------------------------------------------------------------------|
| `auto`           | the board's own GPIO chip through libgpiod: Pi 4, Pi 5, SmartNICs                  |
| `/dev/gpiochipN` | that chip, through libgpiod                                                        |
| `socket:/path`   | the lines of an emulated chassis                                                   |
| another name     | gpiozero's factory of that name (`lgpio`), see gpiozero's documentation            |

Only the first three claim a line as it is. gpiozero's own factories make an output low, and pass through
input on the way: right for an active-high line that idles low, an unasked press of an active-low one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from nicagent.errors import Kind, NicagentError

Factory = Any  # gpiozero.pins.Factory: the library has no types
Lost = Callable[[], None]
FactoryMaker = Callable[[str, str, Lost], Factory]


def claims_as_is(spec: str) -> bool:
    """Whether the factory that `spec` means can claim an output without touching its level."""
    return spec == "auto" or spec.startswith(("/dev/", "socket:"))


def make_factory(spec: str, consumer: str, lost: Lost) -> Factory:
    """The gpiozero pin factory for a `pins` setting. Blocks; run it in a thread.

    `consumer` names us to others who want our lines. `lost` is called from a thread when the chip goes away
    (only an emulated one can). Raises UNAVAILABLE when there is no such chip, library or factory.
    """
    if spec.startswith("socket:"):
        from nicagent.power.pins_socket import SocketFactory

        return SocketFactory(spec.removeprefix("socket:"), consumer=consumer, on_disconnect=lost)
    if spec == "auto" or spec.startswith("/dev/"):
        from nicagent.power import pins_gpiod

        return pins_gpiod.open_chip(None if spec == "auto" else spec, consumer)
    return _gpiozero_factory(spec)


def _gpiozero_factory(name: str) -> Factory:
    found = entry_points(group="gpiozero_pin_factories", name=name)
    if not found:
        known = ", ".join(sorted({each.name for each in entry_points(group="gpiozero_pin_factories")}))
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"there is no pin factory {name!r}",
            f'set pins = "auto", "/dev/gpiochipN", "socket:/path", or one of gpiozero\'s: {known}',
        )
    try:
        return next(iter(found)).load()()
    except Exception as error:  # a factory's constructor may raise anything its library raises
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"gpiozero's pin factory {name!r} does not work here: {error}",
            'set pins = "auto" to use the board\'s GPIO chip through libgpiod',
        ) from None
