"""RMCP+ packets: whatever arrives is a packet or garbage, and a session's protection holds."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicagent.emulator import rmcp
from nicagent.emulator.rmcp import SUITES, Garbage, Session, Suite

PASSWORDS = {b"admin": b"secret"}
GUID = bytes(range(16))


def login(suite: Suite, user: bytes = b"admin", password: bytes = b"secret") -> tuple[Session, bytes]:
    """The client's side of RAKP (13.20 to 13.23), in the words of the specification; the last answer comes
    along.
    """
    client_id, rm, role = b"\x01\x02\x03\x04", bytes(16), 0x14
    session = Session(suite, client_id, 0x55, GUID, None)
    name = bytes([role, len(user)]) + user
    rakp2 = session.rakp1(
        b"\x00" * 4 + session.own_id + rm + bytes([role, 0, 0, len(user)]) + user, PASSWORDS
    )
    answer = rmcp.parse_packet(rakp2).payload
    if answer[1] != rmcp.OK:
        return session, answer
    rc = answer[8:24]
    assert answer[40:] == suite.mac(b"secret", client_id + session.own_id + rm + rc + GUID + name), (
        "the BMC proves that it knows the password"
    )
    rakp3 = b"\x00" * 4 + session.own_id + suite.mac(password, rc + client_id + name)
    return session, rmcp.parse_packet(session.rakp3(rakp3)).payload


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: f"suite {s.number}")
def test_login(suite: Suite) -> None:
    session, answer = login(suite)
    assert session.active and answer[1] == rmcp.OK


def test_a_wrong_password_gets_no_session() -> None:
    session, answer = login(SUITES[0], password=b"guess")
    assert not session.active and answer[1] == rmcp.BAD_INTEGRITY


def test_an_unknown_user_gets_no_session() -> None:
    session, answer = login(SUITES[0], user=b"root")
    assert not session.active and answer[1] == rmcp.BAD_NAME


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: f"suite {s.number}")
@given(payload=st.binary(min_size=1, max_size=200))
def test_what_is_sealed_can_be_unsealed(suite: Suite, payload: bytes) -> None:
    session, _ = login(suite)
    assert session.unseal(rmcp.parse_packet(session.seal(payload))) == payload


@given(st.integers(0, 100), st.integers(1, 255))
def test_a_changed_bit_is_noticed(place: int, change: int) -> None:
    session, _ = login(SUITES[0])
    packet = bytearray(session.seal(b"chassis control"))
    packet[4 + place % (len(packet) - 4)] ^= change
    with pytest.raises(Garbage):
        session.unseal(rmcp.parse_packet(bytes(packet)))


@given(st.binary(max_size=100))
def test_any_datagram_is_a_packet_or_garbage(data: bytes) -> None:
    for start in (b"", rmcp.RMCP_IPMI, rmcp.RMCP_IPMI + b"\x06", rmcp.RMCP_IPMI + bytes(10)):
        try:
            packet = rmcp.parse_packet(start + data)
            rmcp.parse_message(packet.payload)
        except Garbage:
            pass
        rmcp.pong(start + data)


@given(st.binary(max_size=80))
def test_any_handshake_message_is_answered_or_garbage(data: bytes) -> None:
    session = Session(SUITES[0], bytes(4), 1, GUID, None)
    for step in (lambda d: session.rakp1(d, PASSWORDS), session.rakp3, rmcp.offered_suite):
        with contextlib.suppress(Garbage):
            step(data)


def test_messages_carry_both_checksums() -> None:
    request = rmcp.parse_message(bytes([0x20, 0x18, 0xC8, 0x81, 0x04, 0x01, 0x7A]))
    assert (request.netfn, request.command, request.seq) == (0x06, 0x01, 1)
    response = request.response(0x00, b"\x20")
    assert response[:3] == bytes([0x81, 0x1C, rmcp.checksum(b"\x81\x1c")])
    assert sum(response[3:]) & 0xFF == 0
