"""A host's life as a table: pure data and pure functions, no I/O.

`TABLE[(state, event)]` says where the host goes, what is to be done there, which domain event tells of it,
and how the run ends. A pair that is not in the table is an error (`illegal`), never ignored: facts that
change nothing in a state have a row that says so.

Every state but those of rest (free, running, fault) has a deadline; when it is spent, DEADLINE leads out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from nicagent.errors import Kind, NicagentError
from nicagent.model import DomainEvent, HostState


class Event(StrEnum):
    """What can happen to a host: intents from above, facts from below, and the end of our own actions."""

    START = "start"
    STOP = "stop"  # hard: destroy
    SHUTDOWN = "shutdown"  # graceful: ask the OS
    REBOOT = "reboot"  # graceful: ask the OS to go down, then switch on again
    RESET = "reset"
    CYCLE = "cycle"  # off and on again, disks and ports stay
    CHANGE = "change"  # another document, and with it other disks or ports; power stays
    PRESS = "press"
    SWITCH_ON = "switch on"  # a technician, a host without a domain
    SWITCH_OFF = "switch off"  # likewise

    POWER_ON_SEEN = "power-on-seen"
    POWER_OFF_SEEN = "power-off-seen"
    POWER_UNKNOWN_SEEN = "power-unknown-seen"

    DONE = "done"  # the state's actions have ended well
    FAILED = "failed"  # one of them failed
    DEADLINE = "deadline"  # the state's time is spent
    RESTARTED = "restarted"  # the agent came back and finds the host in this state


INTENTS = frozenset(
    {
        Event.START,
        Event.STOP,
        Event.SHUTDOWN,
        Event.REBOOT,
        Event.RESET,
        Event.CYCLE,
        Event.CHANGE,
        Event.PRESS,
        Event.SWITCH_ON,
        Event.SWITCH_OFF,
    }
)


#: Moves that take power away, or follow from one that does: they are made durable on a full disk, too.
ENDS = frozenset(
    {
        Event.STOP,
        Event.SHUTDOWN,
        Event.SWITCH_OFF,
        Event.POWER_OFF_SEEN,
        Event.DONE,
        Event.FAILED,
        Event.DEADLINE,
    }
)


class Action(StrEnum):
    """What the controller has a driver do. Each is idempotent, so that a restart may repeat it."""

    EXPORTS_UP = "exports up"
    PORTS_UP = "ports up"
    SCREEN_UP = "screen shown"
    BOOT_SET = "boot choice set"
    SETTLE = "wait whether power-good comes by itself"  # a press before our death may still take effect
    POWER_ON = "power on"
    AWAIT_PGOOD = "wait for power-good"
    POWER_SHUTDOWN = "ask the OS to shut down"
    POWER_RESET = "reset"
    POWER_PRESS = "press the power button"
    POWER_OFF = "power off"
    AWAIT_OFF = "wait for power-good to go"
    BOOT_CLEAR = "boot choice cleared"
    SCREEN_DOWN = "screen hidden"
    PORTS_DOWN = "ports down"
    EXPORTS_DOWN = "exports down"
    CHECK_POWER = "compare with the power LED"


@dataclass(frozen=True)
class Row:
    """One legal move."""

    next: HostState
    actions: tuple[Action, ...] = ()
    reason: str = ""  # for people; the cause and the failure are added
    tells: DomainEvent | None = None  # published on the move
    done: DomainEvent | None = None  # published once the actions have ended well
    ending: DomainEvent | None = None  # published once the host is free again
    recovers: bool = False  # what UP does is done again beside the actions

    @property
    def quiet(self) -> bool:
        """Nothing happens at all: nothing to make durable, to do, or to tell but the fact itself."""
        return not (self.actions or self.reason or self.tells)


UP = (Action.EXPORTS_UP, Action.PORTS_UP, Action.SCREEN_UP, Action.BOOT_SET)
_ON = (Action.POWER_ON, Action.AWAIT_PGOOD)
_OFF = (Action.POWER_OFF, Action.AWAIT_OFF)
_DOWN = (Action.BOOT_CLEAR, Action.SCREEN_DOWN, Action.PORTS_DOWN, Action.EXPORTS_DOWN)

_S, _E, _D = HostState, Event, DomainEvent

_MOVES: Mapping[tuple[HostState, Event], Row] = {
    (_S.FREE, _E.START): Row(_S.PREPARING, UP, "start asked"),
    (_S.FREE, _E.PRESS): Row(_S.FREE, (Action.POWER_PRESS,), "button pressed"),
    (_S.FREE, _E.SWITCH_ON): Row(_S.FREE, (Action.POWER_ON,), "switched on without a domain"),
    (_S.FREE, _E.SWITCH_OFF): Row(_S.FREE, (Action.POWER_OFF,), "switched off"),
    (_S.FREE, _E.RESET): Row(_S.FREE, (Action.POWER_RESET,), "reset asked"),
    (_S.FREE, _E.SHUTDOWN): Row(_S.FREE, (Action.POWER_SHUTDOWN,), "shutdown asked"),
    (_S.FREE, _E.FAILED): Row(_S.FREE, (), "power request failed"),
    #
    (_S.PREPARING, _E.DONE): Row(_S.POWERING_ON, _ON, "disks and ports are up"),
    (_S.PREPARING, _E.FAILED): Row(_S.CLEANING, _DOWN, "start failed", ending=_D.FAILED),
    (_S.PREPARING, _E.DEADLINE): Row(_S.CLEANING, _DOWN, "start took too long", ending=_D.FAILED),
    (_S.PREPARING, _E.STOP): Row(_S.CLEANING, _DOWN, "stop asked while starting", ending=_D.DESTROYED),
    (_S.PREPARING, _E.RESTARTED): Row(_S.PREPARING, UP, "start goes on after an agent restart"),
    #
    # Power that went between power-good and this move was a fact of a state that ignores it: look again.
    (_S.POWERING_ON, _E.DONE): Row(_S.RUNNING, (Action.CHECK_POWER,), "power-good", tells=_D.STARTED),
    (_S.POWERING_ON, _E.FAILED): Row(_S.STOPPING, _OFF, "power-on failed", ending=_D.FAILED),
    (_S.POWERING_ON, _E.DEADLINE): Row(_S.STOPPING, _OFF, "power-on took too long", ending=_D.FAILED),
    # The press may not have taken effect yet: "already off" would be true now and wrong in a second.
    (_S.POWERING_ON, _E.STOP): Row(
        _S.STOPPING, (Action.SETTLE, *_OFF), "stop asked while starting", ending=_D.DESTROYED
    ),
    (_S.POWERING_ON, _E.RESTARTED): Row(
        _S.POWERING_ON, (*UP, Action.SETTLE, *_ON), "power-on goes on after an agent restart"
    ),
    #
    (_S.RUNNING, _E.STOP): Row(_S.STOPPING, _OFF, "stop asked", ending=_D.DESTROYED),
    (_S.RUNNING, _E.SHUTDOWN): Row(_S.RUNNING, (Action.POWER_SHUTDOWN,), "shutdown asked"),
    (_S.RUNNING, _E.REBOOT): Row(_S.REBOOTING, (Action.POWER_SHUTDOWN,), "reboot asked"),
    (_S.RUNNING, _E.RESET): Row(_S.RUNNING, (Action.POWER_RESET,), "reset asked", done=_D.REBOOT),
    (_S.RUNNING, _E.CYCLE): Row(_S.POWERING_ON, (*_OFF, *_ON), "power cycle asked", tells=_D.REBOOT),
    (_S.RUNNING, _E.PRESS): Row(_S.RUNNING, (Action.POWER_PRESS,), "button pressed"),
    (_S.RUNNING, _E.CHANGE): Row(_S.RUNNING, (), "its definition was changed while it runs"),
    (_S.RUNNING, _E.FAILED): Row(_S.RUNNING, (), "power request failed"),
    (_S.RUNNING, _E.DEADLINE): Row(_S.RUNNING, (), "the OS has not gone down in the time that it had"),
    (_S.RUNNING, _E.POWER_OFF_SEEN): Row(
        _S.CLEANING, _DOWN, "the OS switched the host off", tells=_D.SHUTDOWN, ending=_D.STOPPED
    ),
    (_S.RUNNING, _E.POWER_UNKNOWN_SEEN): Row(_S.UNKNOWN, (), "power state cannot be read"),
    (_S.RUNNING, _E.RESTARTED): Row(_S.RUNNING, (Action.CHECK_POWER,), recovers=True),
    #
    (_S.REBOOTING, _E.POWER_OFF_SEEN): Row(
        _S.POWERING_ON, _ON, "the OS went down for a reboot", tells=_D.REBOOT
    ),
    (_S.REBOOTING, _E.SHUTDOWN): Row(_S.RUNNING, (Action.POWER_SHUTDOWN,), "shutdown asked"),
    (_S.REBOOTING, _E.RESET): Row(_S.RUNNING, (Action.POWER_RESET,), "reset asked", done=_D.REBOOT),
    (_S.REBOOTING, _E.STOP): Row(_S.STOPPING, _OFF, "stop asked", ending=_D.DESTROYED),
    (_S.REBOOTING, _E.FAILED): Row(_S.RUNNING, (), "reboot failed"),
    (_S.REBOOTING, _E.DEADLINE): Row(_S.RUNNING, (), "the OS has not gone down for a reboot"),
    (_S.REBOOTING, _E.RESTARTED): Row(_S.REBOOTING, (Action.CHECK_POWER,), recovers=True),
    #
    (_S.UNKNOWN, _E.POWER_ON_SEEN): Row(_S.RUNNING, (), "power state is read again"),
    (_S.UNKNOWN, _E.POWER_OFF_SEEN): Row(
        _S.CLEANING, _DOWN, "power was lost", tells=_D.SHUTDOWN, ending=_D.STOPPED
    ),
    (_S.UNKNOWN, _E.STOP): Row(_S.STOPPING, _OFF, "stop asked", ending=_D.DESTROYED),
    # No fault of the host: it may well run on behind a silent BMC. Said again every time.
    (_S.UNKNOWN, _E.DEADLINE): Row(_S.UNKNOWN, (), "power state could not be read for long"),
    (_S.UNKNOWN, _E.FAILED): Row(_S.UNKNOWN, (), "power request failed"),
    (_S.UNKNOWN, _E.RESTARTED): Row(_S.UNKNOWN, (Action.CHECK_POWER,), recovers=True),
    #
    (_S.STOPPING, _E.DONE): Row(_S.CLEANING, _DOWN, "power is off"),
    (_S.STOPPING, _E.FAILED): Row(_S.FAULT, (), "power-off failed"),
    (_S.STOPPING, _E.DEADLINE): Row(_S.FAULT, (), "power-off took too long"),
    (_S.STOPPING, _E.RESTARTED): Row(
        _S.STOPPING, (Action.SETTLE, *_OFF), "power-off goes on after an agent restart"
    ),
    #
    (_S.CLEANING, _E.DONE): Row(_S.FREE, (), "clean"),
    (_S.CLEANING, _E.FAILED): Row(_S.FAULT, (), "cleaning failed"),
    (_S.CLEANING, _E.DEADLINE): Row(_S.FAULT, (), "cleaning took too long"),
    (_S.CLEANING, _E.RESTARTED): Row(_S.CLEANING, _DOWN, "cleaning goes on after an agent restart"),
    #
    # Whatever went wrong: a host that reads off runs nothing, so its disks and ports can be taken away.
    (_S.FAULT, _E.POWER_OFF_SEEN): Row(_S.CLEANING, _DOWN, "the fault is over: power reads off"),
    (_S.FAULT, _E.STOP): Row(_S.STOPPING, _OFF, "stop asked", ending=_D.DESTROYED),
}

# What changes nothing: while we work the power ourselves the actions look at it, a free host may be switched
# on and off by whoever stands in front of it, and a stop that is under way needs no second one.
_QUIET: Mapping[HostState, tuple[Event, ...]] = {
    _S.FREE: (_E.POWER_ON_SEEN, _E.POWER_OFF_SEEN, _E.POWER_UNKNOWN_SEEN, _E.DONE, _E.RESTARTED),
    _S.PREPARING: (_E.POWER_ON_SEEN, _E.POWER_OFF_SEEN, _E.POWER_UNKNOWN_SEEN),
    _S.POWERING_ON: (_E.POWER_ON_SEEN, _E.POWER_OFF_SEEN, _E.POWER_UNKNOWN_SEEN),
    _S.RUNNING: (_E.POWER_ON_SEEN, _E.DONE),
    _S.REBOOTING: (_E.POWER_ON_SEEN, _E.POWER_UNKNOWN_SEEN, _E.DONE, _E.REBOOT),
    _S.UNKNOWN: (_E.POWER_UNKNOWN_SEEN, _E.DONE),
    _S.STOPPING: (_E.POWER_ON_SEEN, _E.POWER_OFF_SEEN, _E.POWER_UNKNOWN_SEEN, _E.STOP),
    _S.CLEANING: (_E.POWER_ON_SEEN, _E.POWER_OFF_SEEN, _E.POWER_UNKNOWN_SEEN, _E.STOP),
    _S.FAULT: (_E.POWER_ON_SEEN, _E.POWER_UNKNOWN_SEEN, _E.RESTARTED),
}

TABLE: Mapping[tuple[HostState, Event], Row] = {
    **_MOVES,
    **{(state, fact): Row(state) for state, facts in _QUIET.items() for fact in facts},
}

# Seconds a host may stay in a state; None where it rests. Long enough for the slowest honest step inside:
# a BMC that is being replaced takes minutes to answer, a button is held for seconds.
DEADLINES: Mapping[HostState, float | None] = {
    _S.FREE: None,
    _S.PREPARING: 60.0,
    _S.POWERING_ON: 90.0,
    _S.RUNNING: None,
    _S.REBOOTING: 300.0,  # the host's own shutdown_seconds, where that is shorter or longer
    _S.STOPPING: 90.0,
    _S.CLEANING: 60.0,
    _S.UNKNOWN: 600.0,
    _S.FAULT: None,  # rests until somebody asks for STOP or power reads off; the reason is kept
}


def step(state: HostState, event: Event) -> Row:
    """The row of a legal pair. Raises WRONG_STATE for an illegal one."""
    row = TABLE.get((state, event))
    if row is None:
        raise illegal(state, event)
    return row


def illegal(state: HostState, event: Event) -> NicagentError:
    """The error of a pair that the table does not hold."""
    hints = {
        HostState.FAULT: "stop it first: that powers the host off and clears the fault",
        HostState.UNKNOWN: "its power state cannot be read; wait, or stop it",
    }
    return NicagentError(
        Kind.WRONG_STATE,
        f"cannot {event.value} a host in state {state.value}",
        hints.get(state, "wait until it has finished, then ask again"),
    )
