"""What a server's body does: a table, no I/O.

The facts come from ATX boards and the ACPI specification (4.8.3.1.1): the power button wakes a board that
is off; on a running one it raises the button event for the OS, and after four seconds of holding it cuts
the power whatever the OS thinks. The reset line holds the board in reset while it is asserted. A BMC asks
for the same things by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

DEBOUNCE = 0.016  # seconds a button must be asserted before the board believes it
OVERRIDE = 4.0  # seconds of holding that cut the power (ACPI 4.8.3.1.1.1, power button override)
CYCLE_GAP = 1.0  # seconds a BMC's power cycle leaves the board without power


class Power(StrEnum):
    """Where the board stands. CYCLING is the dark second of a BMC's power cycle."""

    NO_AC = "no-ac"
    OFF = "off"
    CYCLING = "cycling"
    ON = "on"


class Event(StrEnum):
    """What happens to the board, from outside and from inside."""

    BUTTON_DOWN = "button-down"  # asserted for longer than DEBOUNCE
    BUTTON_HELD = "button-held"  # still asserted OVERRIDE seconds after that
    BUTTON_UP = "button-up"
    RESET_DOWN = "reset-down"
    RESET_UP = "reset-up"
    OS_OFF = "os-off"  # the OS wrote S5 to the power management register
    DIED = "died"  # the virtual board itself broke: QEMU ended by itself or did not start
    CYCLE_DUE = "cycle-due"
    ORDER_ON = "order-on"  # orders come from the BMC
    ORDER_OFF = "order-off"
    ORDER_CYCLE = "order-cycle"
    ORDER_RESET = "order-reset"
    ORDER_INTERRUPT = "order-interrupt"
    ORDER_SOFT = "order-soft"
    AC_LOST = "ac-lost"
    AC_BACK_STAY_OFF = "ac-back-stay-off"
    AC_BACK_START = "ac-back-start"


class Action(StrEnum):
    """What the chassis then does, in this order."""

    SPAWN = "spawn"  # power on: a new QEMU, empty memory
    CUT = "cut"  # power off: QEMU and its memory are gone
    ACPI_BUTTON = "acpi-button"
    ENTER_RESET = "enter-reset"
    LEAVE_RESET = "leave-reset"
    PULSE_RESET = "pulse-reset"
    INTERRUPT = "interrupt"  # a diagnostic interrupt: an NMI on every processor
    LED_ON = "led-on"  # power good: the LED follows it
    LED_OFF = "led-off"
    WATCH_HOLD = "watch-hold"
    FORGET_HOLD = "forget-hold"
    WAIT_CYCLE = "wait-cycle"


class Verdict(StrEnum):
    """How an event ended: `done`, nothing to do, or not possible in this state."""

    DONE = "done"
    NOTHING = "nothing"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True)
class Step:
    """One row's right side: the next state and what to do on the way."""

    state: Power
    actions: tuple[Action, ...] = ()
    verdict: Verdict = Verdict.DONE


_ON = (Action.SPAWN, Action.LED_ON)
_DOWN = (Action.CUT, Action.LED_OFF)


def _nothing(state: Power) -> Step:
    return Step(state, (), Verdict.NOTHING)


def _impossible(state: Power) -> Step:
    return Step(state, (), Verdict.IMPOSSIBLE)


P, E, A = Power, Event, Action

TABLE: Mapping[tuple[Power, Event], Step] = {
    # The button.
    (P.OFF, E.BUTTON_DOWN): Step(P.ON, (*_ON, A.WATCH_HOLD)),
    (P.CYCLING, E.BUTTON_DOWN): Step(P.ON, (*_ON, A.WATCH_HOLD)),
    (P.ON, E.BUTTON_DOWN): Step(P.ON, (A.ACPI_BUTTON, A.WATCH_HOLD)),
    (P.NO_AC, E.BUTTON_DOWN): _nothing(P.NO_AC),
    (P.OFF, E.BUTTON_HELD): _nothing(P.OFF),
    (P.CYCLING, E.BUTTON_HELD): _nothing(P.CYCLING),
    (P.ON, E.BUTTON_HELD): Step(P.OFF, _DOWN),
    (P.NO_AC, E.BUTTON_HELD): _nothing(P.NO_AC),
    (P.OFF, E.BUTTON_UP): Step(P.OFF, (A.FORGET_HOLD,)),
    (P.CYCLING, E.BUTTON_UP): Step(P.CYCLING, (A.FORGET_HOLD,)),
    (P.ON, E.BUTTON_UP): Step(P.ON, (A.FORGET_HOLD,)),
    (P.NO_AC, E.BUTTON_UP): _nothing(P.NO_AC),
    # The reset line. A board that is off has nothing to reset; one that is switched on meanwhile starts in
    # reset.
    (P.OFF, E.RESET_DOWN): _nothing(P.OFF),
    (P.CYCLING, E.RESET_DOWN): _nothing(P.CYCLING),
    (P.ON, E.RESET_DOWN): Step(P.ON, (A.ENTER_RESET,)),
    (P.NO_AC, E.RESET_DOWN): _nothing(P.NO_AC),
    (P.OFF, E.RESET_UP): _nothing(P.OFF),
    (P.CYCLING, E.RESET_UP): _nothing(P.CYCLING),
    (P.ON, E.RESET_UP): Step(P.ON, (A.LEAVE_RESET,)),
    (P.NO_AC, E.RESET_UP): _nothing(P.NO_AC),
    # The OS, and the virtual board itself.
    (P.OFF, E.OS_OFF): _nothing(P.OFF),
    (P.CYCLING, E.OS_OFF): _nothing(P.CYCLING),
    (P.ON, E.OS_OFF): Step(P.OFF, _DOWN),
    (P.NO_AC, E.OS_OFF): _nothing(P.NO_AC),
    (P.OFF, E.DIED): _nothing(P.OFF),
    (P.CYCLING, E.DIED): _nothing(P.CYCLING),
    (P.ON, E.DIED): Step(P.OFF, _DOWN),
    (P.NO_AC, E.DIED): _nothing(P.NO_AC),
    # The BMC.
    (P.OFF, E.ORDER_ON): Step(P.ON, _ON),
    (P.CYCLING, E.ORDER_ON): Step(P.ON, _ON),
    (P.ON, E.ORDER_ON): _nothing(P.ON),
    (P.NO_AC, E.ORDER_ON): _impossible(P.NO_AC),
    (P.OFF, E.ORDER_OFF): _nothing(P.OFF),
    (P.CYCLING, E.ORDER_OFF): Step(P.OFF),
    (P.ON, E.ORDER_OFF): Step(P.OFF, _DOWN),
    (P.NO_AC, E.ORDER_OFF): _impossible(P.NO_AC),
    (P.OFF, E.ORDER_CYCLE): _impossible(P.OFF),
    (P.CYCLING, E.ORDER_CYCLE): _nothing(P.CYCLING),
    (P.ON, E.ORDER_CYCLE): Step(P.CYCLING, (*_DOWN, A.WAIT_CYCLE)),
    (P.NO_AC, E.ORDER_CYCLE): _impossible(P.NO_AC),
    (P.OFF, E.CYCLE_DUE): _nothing(P.OFF),
    (P.CYCLING, E.CYCLE_DUE): Step(P.ON, _ON),
    (P.ON, E.CYCLE_DUE): _nothing(P.ON),
    (P.NO_AC, E.CYCLE_DUE): _nothing(P.NO_AC),
    (P.OFF, E.ORDER_RESET): _impossible(P.OFF),
    (P.CYCLING, E.ORDER_RESET): _impossible(P.CYCLING),
    (P.ON, E.ORDER_RESET): Step(P.ON, (A.PULSE_RESET,)),
    (P.NO_AC, E.ORDER_RESET): _impossible(P.NO_AC),
    (P.OFF, E.ORDER_INTERRUPT): _impossible(P.OFF),
    (P.CYCLING, E.ORDER_INTERRUPT): _impossible(P.CYCLING),
    (P.ON, E.ORDER_INTERRUPT): Step(P.ON, (A.INTERRUPT,)),
    (P.NO_AC, E.ORDER_INTERRUPT): _impossible(P.NO_AC),
    (P.OFF, E.ORDER_SOFT): _impossible(P.OFF),
    (P.CYCLING, E.ORDER_SOFT): _impossible(P.CYCLING),
    (P.ON, E.ORDER_SOFT): Step(P.ON, (A.ACPI_BUTTON,)),
    (P.NO_AC, E.ORDER_SOFT): _impossible(P.NO_AC),
    # The wall socket.
    (P.OFF, E.AC_LOST): Step(P.NO_AC),
    (P.CYCLING, E.AC_LOST): Step(P.NO_AC),
    (P.ON, E.AC_LOST): Step(P.NO_AC, (*_DOWN, A.FORGET_HOLD)),
    (P.NO_AC, E.AC_LOST): _nothing(P.NO_AC),
    (P.OFF, E.AC_BACK_STAY_OFF): _nothing(P.OFF),
    (P.CYCLING, E.AC_BACK_STAY_OFF): _nothing(P.CYCLING),
    (P.ON, E.AC_BACK_STAY_OFF): _nothing(P.ON),
    (P.NO_AC, E.AC_BACK_STAY_OFF): Step(P.OFF),
    (P.OFF, E.AC_BACK_START): _nothing(P.OFF),
    (P.CYCLING, E.AC_BACK_START): _nothing(P.CYCLING),
    (P.ON, E.AC_BACK_START): _nothing(P.ON),
    (P.NO_AC, E.AC_BACK_START): Step(P.ON, _ON),
}


def step(state: Power, event: Event) -> Step:
    """What `event` does in `state`. Total: every pair has a row."""
    return TABLE[state, event]
