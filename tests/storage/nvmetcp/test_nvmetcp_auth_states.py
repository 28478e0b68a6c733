"""Whatever a host without the key says, in whatever order: it never gets in, and nothing breaks."""

from __future__ import annotations

import struct

import pytest
from chap import NULL, SHA256, Challenge, Prover, negotiate, secret
from hypothesis import given, settings
from hypothesis import strategies as st
from target_process import HOST, NQN

from nicagent.storage.nvmetcp.auth import Authentication, Requirement, State
from nicagent.storage.nvmetcp.dhchap import Group, Key, key_text, parse_key

KEY = secret(1)
OFFER = negotiate((SHA256,), (NULL,))
SUCCESS2 = struct.pack("<BBxxH10x", 1, 4, 7)
FAILURE2 = struct.pack("<BBxxHBB", 0, 0xF0, 7, 1, 1)


def exchange() -> Authentication:
    requirement = Requirement(parse_key(KEY), parse_key(secret(2)), groups=(Group.NULL,))
    return Authentication(lambda: requirement, HOST, NQN)


def mutated(message: bytes, at: int, bits: int, cut: int) -> bytes:
    flipped = message[: at % len(message)] + bytes([message[at % len(message)] ^ bits])
    return (flipped + message[len(flipped) :])[: len(message) - cut % 4]


whole = st.sampled_from([OFFER, SUCCESS2, FAILURE2, b"reply", b"forged"])
message = st.one_of(
    whole,
    st.builds(
        mutated,
        st.sampled_from([OFFER, SUCCESS2]),
        st.integers(0, 80),
        st.integers(0, 255),
        st.integers(0, 8),
    ),
    st.binary(max_size=200),
)
step = st.one_of(message, st.integers(1, 4096))  # what it says, or how much it listens for


@settings(deadline=None, max_examples=300)
@given(st.lists(step, max_size=12))
def test_nobody_gets_in_without_the_key(steps: list[bytes | int]) -> None:
    ours, heard = exchange(), b""
    for each in steps:
        if ours.over:
            break
        if isinstance(each, int):
            heard = ours.receive(each)
            assert len(heard) <= each, "more than there is room for"
        else:
            if each in (b"reply", b"forged") and heard[:2] == b"\1\1" and len(heard) == 48:
                forger = Prover(secret(9), hostnqn=HOST if each == b"reply" else NQN)
                each = forger.reply(Challenge.of(heard))
            ours.send(each)
        assert not ours.authenticated, f"in by {steps}"


@settings(deadline=None, max_examples=100)
@given(st.booleans(), st.lists(st.integers(0, 3), max_size=4))
def test_who_has_the_key_gets_in_whatever_came_between_exchanges(mutual: bool, again: list[int]) -> None:
    ours = exchange()
    prover = Prover(KEY, secret(2) if mutual else "")
    for _ in [0, *again]:
        ours.send(OFFER)
        ours.send(prover.reply(Challenge.of(ours.receive(4096))))
        told = ours.receive(4096)
        assert told[:2] == b"\1\3" and told[16:] == prover.expected
        if mutual:
            assert ours.under_way
            ours.send(SUCCESS2)
        assert ours.authenticated and ours.state is State.IDLE


@given(st.text(max_size=140))
def test_a_wrong_secret_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="DH-HMAC-CHAP"):
        parse_key(text)


@given(st.sampled_from([32, 48, 64]), st.data())
def test_a_secret_survives_its_representation(size: int, data: st.DataObject) -> None:
    key = Key(data.draw(st.binary(min_size=size, max_size=size)), None)
    assert parse_key(key_text(key)) == key
    text = key_text(key)
    at = data.draw(st.integers(10, len(text) - 10))
    other = "A" if text[at] != "A" else "B"
    with pytest.raises(ValueError):
        parse_key(text[:at] + other + text[at + 1 :])
