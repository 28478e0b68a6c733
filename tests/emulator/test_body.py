"""The body as a table: it is total, and no sequence of events makes it do what a board cannot."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicagent.emulator.body import TABLE, Action, Event, Power, Verdict, step

RUNNING = {Power.ON}


def test_every_pair_has_a_row() -> None:
    missing = set(itertools.product(Power, Event)) - set(TABLE)
    assert not missing, f"no row for {sorted(missing)}"


@pytest.mark.parametrize(
    ("state", "event", "after", "first_action"),
    [
        (Power.OFF, Event.BUTTON_DOWN, Power.ON, Action.SPAWN),
        (Power.ON, Event.BUTTON_DOWN, Power.ON, Action.ACPI_BUTTON),
        (Power.ON, Event.BUTTON_HELD, Power.OFF, Action.CUT),
        (Power.ON, Event.OS_OFF, Power.OFF, Action.CUT),
        (Power.ON, Event.RESET_DOWN, Power.ON, Action.ENTER_RESET),
        (Power.ON, Event.RESET_UP, Power.ON, Action.LEAVE_RESET),
        (Power.ON, Event.ORDER_CYCLE, Power.CYCLING, Action.CUT),
        (Power.CYCLING, Event.CYCLE_DUE, Power.ON, Action.SPAWN),
        (Power.ON, Event.AC_LOST, Power.NO_AC, Action.CUT),
        (Power.NO_AC, Event.AC_BACK_START, Power.ON, Action.SPAWN),
    ],
)
def test_the_rows_that_matter(state: Power, event: Event, after: Power, first_action: Action) -> None:
    row = step(state, event)
    assert (row.state, row.actions[0], row.verdict) == (after, first_action, Verdict.DONE)


@pytest.mark.parametrize(
    "event", [e for e in Event if e not in (Event.AC_BACK_START, Event.AC_BACK_STAY_OFF)]
)
def test_nothing_wakes_a_board_without_mains(event: Event) -> None:
    assert step(Power.NO_AC, event).state is Power.NO_AC


def test_a_bmc_hears_what_cannot_be_done() -> None:
    refused = {e for e in Event if step(Power.OFF, e).verdict is Verdict.IMPOSSIBLE}
    assert refused == {Event.ORDER_CYCLE, Event.ORDER_RESET, Event.ORDER_INTERRUPT, Event.ORDER_SOFT}


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_boards_and_led_follow_the_state(events: list[Event]) -> None:
    """One board at a time, spawned when ON begins and cut when it ends; the LED is lit exactly then."""
    state, board, led = Power.OFF, False, False
    for event in events:
        row = step(state, event)
        for action in row.actions:
            match action:
                case Action.SPAWN:
                    assert not board, f"{event} in {state} starts a second board"
                    board = True
                case Action.CUT:
                    assert board, f"{event} in {state} cuts a board that is not there"
                    board = False
                case Action.LED_ON | Action.LED_OFF:
                    led = action is Action.LED_ON
                case Action.ACPI_BUTTON | Action.ENTER_RESET | Action.LEAVE_RESET | Action.PULSE_RESET:
                    assert board, f"{event} in {state} acts on a board that is not there"
        if row.verdict is not Verdict.DONE:
            assert (row.state, row.actions) == (state, ()), "what is not done changes nothing"
        state = row.state
        assert board == led == (state in RUNNING)
