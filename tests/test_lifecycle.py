"""The table as a specification: what must hold of every state, event and path, found by walking all of it."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicagent.errors import Kind, NicagentError
from nicagent.lifecycle import DEADLINES, INTENTS, TABLE, Action, Event, Row, step
from nicagent.model import DomainEvent, HostState

FACTS = (Event.POWER_ON_SEEN, Event.POWER_OFF_SEEN, Event.POWER_UNKNOWN_SEEN)
REST = frozenset({HostState.FREE, HostState.RUNNING, HostState.FAULT})
STATES, EVENTS = list(HostState), list(Event)

states = pytest.mark.parametrize("state", STATES, ids=lambda state: state.value)


def rows_of(state: HostState) -> dict[Event, Row]:
    return {event: row for (of, event), row in TABLE.items() if of is state}


def reachable(start: HostState) -> set[HostState]:
    seen, queue = {start}, deque([start])
    while queue:
        for row in rows_of(queue.popleft()).values():
            if row.next not in seen:
                seen.add(row.next)
                queue.append(row.next)
    return seen


@states
def test_every_state_has_a_way_out_and_a_way_in(state: HostState) -> None:
    assert {row.next for row in rows_of(state).values()} - {state}, f"{state} is a trap"
    assert state in reachable(HostState.FREE), f"{state} is never entered"


@states
def test_from_every_state_a_host_can_become_free(state: HostState) -> None:
    assert HostState.FREE in reachable(state)


@states
def test_stop_leads_out_of_everything_that_is_occupied(state: HostState) -> None:
    """Whatever has gone wrong, a technician has one verb: STOP, and then only our own DONE."""
    if state is HostState.FREE:
        return
    here: HostState = state
    event = Event.STOP
    for _ in range(4):
        here, event = step(here, event).next, Event.DONE
        if here is HostState.FREE:
            return
    pytest.fail(f"STOP in {state} has led to {here}")


@states
def test_every_state_of_work_has_a_deadline_that_leads_out(state: HostState) -> None:
    assert state in DEADLINES, f"{state} has no word about a deadline"
    if state in REST:
        assert DEADLINES[state] is None, f"{state} is rest: it may last"
        return
    seconds = DEADLINES[state]
    assert seconds is not None, f"a host can stay {state} for ever"
    assert 0 < seconds <= 3600
    row = step(state, Event.DEADLINE)
    if state is HostState.UNKNOWN:
        assert row.next is state, "a host behind a silent BMC is not at fault"
        assert row.reason, "but it is said"
    else:
        assert row.next is not state, f"the deadline of {state} changes nothing"


def test_a_shutdown_has_a_clock_and_it_does_not_stop_a_host_that_runs() -> None:
    assert step(HostState.RUNNING, Event.DEADLINE).next is HostState.RUNNING


@states
@pytest.mark.parametrize("event", [*FACTS, Event.RESTARTED], ids=lambda event: event.value)
def test_facts_and_restarts_are_legal_everywhere(state: HostState, event: Event) -> None:
    """A fact cannot be refused: it is so."""
    step(state, event)


@states
def test_work_that_was_given_may_end_well_or_badly(state: HostState) -> None:
    entering = [row for row in TABLE.values() if row.next is state and row.actions]
    if entering:
        for event in (Event.DONE, Event.FAILED):
            step(state, event)


@given(st.sampled_from(STATES), st.sampled_from(EVENTS))
def test_a_pair_that_is_not_in_the_table_is_an_error_that_helps(state: HostState, event: Event) -> None:
    if (state, event) in TABLE:
        assert step(state, event) is TABLE[state, event]
        return
    with pytest.raises(NicagentError) as caught:
        step(state, event)
    assert caught.value.kind is Kind.WRONG_STATE
    assert state.value in caught.value.message
    assert event.value in caught.value.message
    assert caught.value.hint


def test_only_intents_start_and_nothing_starts_by_itself() -> None:
    """No fact, deadline or restart brings a free host to life."""
    for event, row in rows_of(HostState.FREE).items():
        if event is not Event.START:
            assert row.next is HostState.FREE, f"{event} moves a free host"
            assert not row.actions or event in INTENTS, f"{event} acts on a free host"


def test_every_move_has_a_reason() -> None:
    for (state, event), row in TABLE.items():
        if row.next is not state:
            assert row.reason, f"{state} → {row.next} on {event} says not why"


def test_every_path_of_a_run_back_to_free_carries_how_it_ended() -> None:
    """The walk keeps the last ending of the path, as the walker does."""
    start: tuple[HostState, DomainEvent | None] = (HostState.PREPARING, None)
    seen = {start}
    queue = deque([start])
    while queue:
        state, ending = queue.popleft()
        for event, row in rows_of(state).items():
            after = (row.next, row.ending or ending)
            if row.next is HostState.FREE:
                assert after[1] is not None, f"a run ends unexplained: {state} on {event}"
            elif after not in seen:
                seen.add(after)
                queue.append(after)


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_no_sequence_of_events_cleans_a_host_that_may_be_on(events: list[Event]) -> None:
    """Disks and ports go down only once the power was seen off, or before it was ever switched on."""
    state, may_be_on = HostState.FREE, False
    for event in events:
        row = TABLE.get((state, event))
        if row is None:
            continue
        if event is Event.POWER_OFF_SEEN or (state is HostState.STOPPING and event is Event.DONE):
            may_be_on = False
        if Action.EXPORTS_DOWN in row.actions:
            assert not may_be_on, f"{event} in {state} takes the disks of a host that may be on: {events}"
        if Action.POWER_ON in row.actions:
            may_be_on = True
        state = row.next
        if state is HostState.FREE:
            may_be_on = False


def test_exports_are_up_before_power_and_power_is_off_before_exports_go() -> None:
    for row in TABLE.values():
        names = list(row.actions)
        if Action.POWER_ON in names and Action.EXPORTS_UP in names:
            assert names.index(Action.EXPORTS_UP) < names.index(Action.POWER_ON)
        assert not {Action.EXPORTS_UP, Action.EXPORTS_DOWN} <= set(names)


def test_after_a_restart_a_state_of_work_does_all_of_its_work_again() -> None:
    """A crash may have come before the first act: what RESTARTED does includes what entering it does."""
    for state in set(STATES) - REST - {HostState.UNKNOWN}:
        again = set(step(state, Event.RESTARTED).actions)
        assert step(state, Event.RESTARTED).next is state
        for (of, event), row in TABLE.items():
            # A cycle's off is not repeated: the host that a crash left on is left on.
            if row.next is state and of is not HostState.RUNNING:
                assert set(row.actions) <= again, f"{of} → {state} on {event} is not done again"


def test_intents_never_stand_in_for_facts() -> None:
    assert INTENTS.isdisjoint({*FACTS, Event.DONE, Event.FAILED, Event.DEADLINE, Event.RESTARTED})
    assert {*INTENTS, *FACTS, Event.DONE, Event.FAILED, Event.DEADLINE, Event.RESTARTED} == set(EVENTS)
