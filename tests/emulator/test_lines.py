"""Lines: one holder each, edges only with a cause, and both answers to a dead holder."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicagent.emulator.lines import Holder, LineBank, LineLog, LineServer, LineSpec, OnHolderDeath, Refused
from nicagent.power.linewire import (
    Edge,
    Recorded,
    Reply,
    Request,
    WireError,
    decode_answer,
    decode_request,
    encode,
)

BUTTON, RESET, LED = 23, 27, 24
SPECS = (
    LineSpec(BUTTON, "power_button", 0, False),
    LineSpec(RESET, "reset", 1, False),
    LineSpec(LED, "power_led", 0, True),
)
ALICE, BOB = Holder("alice", "alice", 1), Holder("bob", "bob", 2)


def bank(policy: OnHolderDeath = "keep") -> LineBank:
    return LineBank(SPECS, policy, clock=itertools.count(1).__next__)


def test_lines_start_idle_and_without_edges() -> None:
    lines = bank()
    assert (lines.level(BUTTON), lines.level(RESET), lines.waveform()) == (0, 1, [])


def test_every_edge_says_when_and_who() -> None:
    lines = bank()
    lines.claim(BUTTON, ALICE, "out", None)
    lines.set(BUTTON, ALICE, 1)
    lines.set(BUTTON, ALICE, 1)
    lines.drive(LED, 1, "power good")
    assert lines.waveform() == [
        Recorded(1, 1, BUTTON, 1, "holder", "alice", 1),
        Recorded(2, 2, LED, 1, "chassis", "power good", 0),
    ], "setting a level it has is no edge"


def test_waveform_can_be_asked_for_in_parts() -> None:
    lines = bank()
    for level in (1, 0, 1, 0):
        lines.drive(LED, level, "x")
    assert [e.seq for e in lines.waveform(since=1, limit=2)] == [2, 3]
    assert lines.waveform(BUTTON) == []


def test_a_second_holder_is_refused_by_name() -> None:
    lines = bank()
    lines.claim(BUTTON, ALICE, "out", None)
    with pytest.raises(Refused, match=r"busy, held by alice \(pid 1\)"):
        lines.claim(BUTTON, BOB, "in", None)
    with pytest.raises(Refused, match="held by alice"):
        lines.set(BUTTON, BOB, 1)
    lines.release(BUTTON, BOB)
    assert lines.holder(BUTTON) == ALICE, "only the holder can let go"


def test_claim_with_level_is_one_edge_at_most() -> None:
    lines = bank()
    lines.claim(RESET, ALICE, "out", 1)
    assert lines.waveform() == [], "a claim with the level it has is no edge"
    lines.claim(RESET, ALICE, "out", 0)
    assert len(lines.waveform()) == 1


def test_refusals_name_the_problem() -> None:
    lines = bank()
    with pytest.raises(Refused, match="no line 5; this chassis has 23, 24, 27"):
        lines.claim(5, ALICE, "in", None)
    with pytest.raises(Refused, match="driven by the chassis"):
        lines.claim(LED, ALICE, "out", None)
    with pytest.raises(Refused, match="takes no level"):
        lines.claim(BUTTON, ALICE, "in", 1)
    lines.claim(BUTTON, ALICE, "in", None)
    with pytest.raises(Refused, match="claimed as input"):
        lines.set(BUTTON, ALICE, 1)


@pytest.mark.parametrize(("policy", "after", "edges"), [("keep", 1, 1), ("input", 0, 2)])
@pytest.mark.parametrize("how", ["death", "release"])
def test_a_press_that_its_holder_leaves(policy: OnHolderDeath, after: int, edges: int, how: str) -> None:
    lines = bank(policy)
    lines.claim(BUTTON, ALICE, "out", 1)
    if how == "death":
        lines.holder_gone(ALICE.token)
    else:
        lines.release(BUTTON, ALICE)
    assert (lines.level(BUTTON), lines.holder(BUTTON)) == (after, None)
    assert len(lines.waveform()) == edges
    if policy == "input":
        assert lines.waveform()[-1].cause == ("holder-death" if how == "death" else "release")
    lines.claim(BUTTON, BOB, "out", None)
    assert lines.level(BUTTON) == after, "the next holder claims it as it is"


@pytest.mark.parametrize("policy", ["keep", "input"])
def test_an_idle_output_that_loses_its_holder_does_not_move(policy: OnHolderDeath) -> None:
    lines = bank(policy)
    lines.claim(RESET, ALICE, "out", None)
    lines.holder_gone(ALICE.token)
    assert lines.waveform() == []


OPERATIONS = st.tuples(
    st.sampled_from(["claim-out", "claim-in", "set", "release", "gone", "drive"]),
    st.sampled_from([BUTTON, RESET, LED]),
    st.sampled_from([ALICE, BOB]),
    st.sampled_from([0, 1, None]),
)


@given(st.sampled_from(["keep", "input"]), st.lists(OPERATIONS, max_size=50))
def test_whatever_happens_edges_alternate_and_claims_as_is_are_silent(
    policy: OnHolderDeath, operations: list[tuple[str, int, Holder, int | None]]
) -> None:
    lines = bank(policy)
    for operation, offset, who, level in operations:
        before = len(lines.waveform())
        try:
            match operation:
                case "claim-out":
                    lines.claim(offset, who, "out", level)  # type: ignore[arg-type]
                    assert level is not None or len(lines.waveform()) == before, "an as-is claim moved a line"
                case "claim-in":
                    lines.claim(offset, who, "in", None)
                case "set":
                    lines.set(offset, who, level or 0)  # type: ignore[arg-type]
                case "release":
                    lines.release(offset, who)
                case "gone":
                    lines.holder_gone(who.token)
                case "drive":
                    lines.drive(offset, level or 0, "x")  # type: ignore[arg-type]
        except Refused:
            assert len(lines.waveform()) == before, "a refusal moved a line"
    for spec in SPECS:
        levels = [spec.idle, *(edge.level for edge in lines.waveform(spec.offset))]
        assert all(a != b for a, b in itertools.pairwise(levels)), "two edges to the same level"
        assert levels[-1] == lines.level(spec.offset)
    assert [e.seq for e in lines.waveform()] == list(range(1, len(lines.waveform()) + 1))


def test_the_log_has_every_edge(tmp_path: Path) -> None:
    lines, log = bank(), LineLog(tmp_path / "lines.log")
    lines.listeners.append(log)
    lines.claim(BUTTON, ALICE, "out", 1)
    lines.drive(LED, 1, "power good")
    log.close()
    kept = [
        msgspec.json.decode(line, type=Recorded)
        for line in (tmp_path / "lines.log").read_bytes().splitlines()
    ]
    assert kept == lines.waveform()


async def test_the_wire(tmp_path: Path) -> None:
    """Replies carry the id, edges come to those who watch, a waveform can be asked for."""
    lines = bank()
    async with LineServer(lines, tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))

        async def ask(request: Request) -> Reply | Edge:
            writer.write(encode(request))
            return decode_answer(await reader.readline())

        assert await ask(Request(7, "claim", line=BUTTON, direction="out", consumer="me")) == Reply(
            7, True, level=0
        )
        assert await ask(Request(8, "watch", line=LED)) == Reply(8, True, level=0)
        lines.drive(LED, 1, "power good")
        edge = decode_answer(await reader.readline())
        assert isinstance(edge, Edge) and (edge.line, edge.level) == (LED, 1)
        refused = await ask(Request(9, "set", line=LED, level=0))
        assert isinstance(refused, Reply) and not refused.ok and "not claimed" in refused.error
        waveform = await ask(Request(10, "waveform"))
        assert isinstance(waveform, Reply) and waveform.edges == tuple(lines.waveform())
        writer.write(b"nonsense\n")
        answer = decode_answer(await reader.readline())
        assert isinstance(answer, Reply) and not answer.ok and "not a request" in answer.error
        assert await reader.read() == b"", "a client that talks nonsense is cut off"
        writer.close()
    assert lines.holder(BUTTON) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        try:
            decode(data)
        except WireError as error:
            assert str(error)


@given(
    st.builds(
        Request,
        st.integers(0, 1 << 40),
        st.sampled_from(["claim", "set", "get"]),
        st.one_of(st.none(), st.integers(0, 500)),
        st.sampled_from([None, "in", "out"]),
        st.sampled_from([None, 0, 1]),
        st.text(max_size=20),
    )
)
def test_requests_round_trip(request: Request) -> None:
    assert decode_request(encode(request)) == request
