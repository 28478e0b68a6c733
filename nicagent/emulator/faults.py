"""Faults that real machines have, as data; the chassis and its BMC act them out.

| fault       | value                       | what it imitates                                             |
|-------------|-----------------------------|--------------------------------------------------------------|
| led-stuck   | 0 or 1 (electrical level)   | a broken or shorted LED wire                                 |
| led-bounce  | milliseconds, 1 to 1000     | a glitch of that length on every change and twice a second   |
| button-dead | true                        | a power button wire that came off                            |
| bmc-silent  | true                        | a BMC that hangs: packets are swallowed                      |
| bmc-slow    | seconds, up to 60           | a BMC that thinks that long before each answer               |
| bmc-lies    | true                        | a BMC that says "completed" and does nothing                 |
"""

from __future__ import annotations

from enum import StrEnum

from nicagent.errors import Kind, NicagentError

BOUNCE_PERIOD = 0.5  # seconds between two glitches of a bouncing LED


class Fault(StrEnum):
    LED_STUCK = "led-stuck"
    LED_BOUNCE = "led-bounce"
    BUTTON_DEAD = "button-dead"
    BMC_SILENT = "bmc-silent"
    BMC_SLOW = "bmc-slow"
    BMC_LIES = "bmc-lies"


# What a value may be: lowest, highest. The others are on or off, and their value is 1.
RANGES = {Fault.LED_STUCK: (0, 1), Fault.LED_BOUNCE: (1, 1000), Fault.BMC_SLOW: (0, 60)}


def parse(name: str, value: float | None) -> tuple[Fault, float]:
    """A fault and its value as given by a person. Raises NicagentError INVALID naming what is allowed."""
    try:
        fault = Fault(name)
    except ValueError:
        raise NicagentError(
            Kind.INVALID, f"there is no fault {name!r}", "choose one of " + ", ".join(Fault)
        ) from None
    if fault not in RANGES:
        return fault, 1.0
    low, high = RANGES[fault]
    if value is None or not low <= value <= high:
        raise NicagentError(
            Kind.INVALID,
            f"the fault {fault} needs a value",
            f"give one between {low} and {high} (see docs/emulator.md)",
        )
    return fault, float(value)
