"""The guards' transaction as a function of what is there and what is wanted, without a kernel."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nicagent.network import guard
from nicagent.network.guard import Guard

Elements = dict[str, set[tuple[str, ...]]]

guards = st.builds(
    Guard,
    device=st.integers(0, 5).map(lambda n: f"nic{n}"),
    mac=st.integers(1, 5).map(lambda n: f"02:00:00:00:00:{n:02x}"),
    ipv4=st.integers(1, 5).map(lambda n: f"10.0.0.{n}"),
)
wishes = st.builds(
    guard.elements,
    st.lists(guards, max_size=6, unique_by=lambda g: g.device),
    st.sets(st.integers(1, 4).map(lambda n: f"na-vx{n}"), max_size=4),
)


def _listing(elements: Elements) -> list[dict[str, Any]]:
    """The table as libnftables would list it."""
    listed: list[dict[str, Any]] = [{"chain": {"name": guard._edition()}}]
    for name, items in elements.items():
        elem = [item[0] if len(item) == 1 else {"concat": list(item)} for item in items]
        listed.append({"set": {"name": name, **({"elem": elem} if elem else {})}})
    return listed


def _carried_out(commands: list[dict[str, Any]], elements: Elements) -> Elements:
    """What the sets hold after the transaction."""
    result = {name: set(items) for name, items in elements.items()}
    for command in commands:
        ((verb, what),) = command.items()
        if "element" in what:
            items = {tuple(e["concat"]) if isinstance(e, dict) else (e,) for e in what["element"]["elem"]}
            held = result[what["element"]["name"]]
            assert held.isdisjoint(items) if verb == "add" else held >= items, "the kernel would refuse this"
            result[what["element"]["name"]] = held | items if verb == "add" else held - items
    return result


@given(wishes, wishes)
def test_the_transaction_leads_to_what_is_wanted(have: Elements, wanted: Elements) -> None:
    commands = guard._commands(_listing(have), wanted)
    if not any(wanted.values()):
        assert commands == [{"delete": {"table": {"family": "bridge", "name": guard.TABLE}}}]
    else:
        assert _carried_out(commands, have) == wanted
        assert all("rule" not in what for command in commands for what in command.values()), (
            "rules are constant"
        )


@given(wishes)
def test_nothing_is_done_when_all_is_well(wanted: Elements) -> None:
    if any(wanted.values()):
        assert guard._commands(_listing(wanted), wanted) == []
    assert guard._commands([], guard.elements([], [])) == []


@given(wishes, wishes)
def test_rules_of_another_edition_are_replaced_whole(have: Elements, wanted: Elements) -> None:
    listing = [item for item in _listing(have) if "chain" not in item]
    commands = guard._commands(listing, wanted)
    assert commands[0] == {"delete": {"table": {"family": "bridge", "name": guard.TABLE}}}
    if any(wanted.values()):
        empty: Elements = {name: set() for name in wanted}
        assert _carried_out(commands, empty) == wanted
