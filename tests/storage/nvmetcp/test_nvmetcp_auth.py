"""Who may use a subsystem with a key: DH-HMAC-CHAP, as the wire shows it."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chap
import msgspec
import pytest
from chap import (
    ATR,
    AUTH_REQUIRED,
    FFDHE2048,
    NULL,
    SHA256,
    SHA384,
    SHA512,
    Challenge,
    Prover,
    failure,
    negotiate,
    receive,
    secret,
    send,
)
from initiator import DISCOVERY, DNR, IDENTIFY, READ, Closed, Connection, Host, Options, span
from target_process import HOST, NQN, TargetProcess, file_backend, namespace

from nicagent.storage.nvmetcp import queue
from nicagent.storage.nvmetcp.config import TargetConfig
from nicagent.storage.nvmetcp.target import Target

KEY, CONTROLLER_KEY = secret(1), secret(2)
AUTH = {"key": KEY, "controller_key": CONTROLLER_KEY}
FAILED, NOT_USABLE, CONCATENATION, HASH, GROUP, PAYLOAD, MESSAGE = range(1, 8)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TargetProcess]:
    home = tmp_path_factory.mktemp("guarded")
    disk = home / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    running = TargetProcess(home, [namespace(1, file_backend(disk))], auth=dict(AUTH)).start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    log = running.log.read_text()
    assert "internal error" not in log and "Traceback" not in log, log
    for text in (KEY, CONTROLLER_KEY):
        assert text[10:40] not in log, "a secret is in no log"


@pytest.fixture
def guarded(process: TargetProcess) -> Iterator[TargetProcess]:
    """A target whose one subsystem asks for a key."""
    yield process
    if process.auth != AUTH:
        process.auth = dict(AUTH)
        assert process.reload()["ok"]


def admin(target: TargetProcess) -> Connection:
    """An admin queue that has yet to prove itself."""
    connection = Connection(target.port, Options())
    done = connection.connect(NQN, HOST, entries=32)
    assert done.status == 0 and done.result & ATR, "Connect says that authentication is required"
    return connection


def told(connection: Connection) -> int:
    """Why the exchange failed. The connection ends behind it."""
    _, reason, why = failure(receive(connection).data)
    assert reason == 1
    with pytest.raises(Closed):
        connection.receive()
    return why


# The exchange --------------------------------------------------------------------------------------------


def test_every_queue_proves_itself(guarded: TargetProcess) -> None:
    prover = Prover(KEY)
    with admin(guarded) as connection:
        assert connection.fabrics(4, (1, 0)).status == AUTH_REQUIRED, "not even a property before that"
        assert connection.command(IDENTIFY, cdw=(1,), want=4096).status == AUTH_REQUIRED
        asked = prover.login(connection)
        assert (asked.hash, asked.group) == (SHA256, FFDHE2048), "the target's own order of preference"
        cntlid = guarded.status()["controllers"][0]["cntlid"]
        assert connection.fabrics(0, (0, 0x14, 0x460001)).status == 0
        with Connection(guarded.port, Options()) as io:
            done = io.connect(NQN, HOST, qid=1, cntlid=cntlid)
            assert done.status == 0 and done.result == cntlid | ATR
            read = {"nsid": 1, "cdw": span(0, 512), "want": 512}
            assert io.command(READ, **read).status == AUTH_REQUIRED, "each proves itself"
            assert not guarded.status()["controllers"][0]["authenticated"]
            prover.login(io)
            assert io.command(READ, **read).status == 0
            assert guarded.status()["controllers"][0]["authenticated"]


def test_discovery_needs_no_key(guarded: TargetProcess) -> None:
    with Host(guarded.port, DISCOVERY, HOST, queues=0) as host:
        assert host.log(0x70, 1024).status == 0


@pytest.mark.parametrize("group", [NULL, FFDHE2048])
@pytest.mark.parametrize("hash_", [SHA256, SHA384, SHA512])
def test_hashes_and_groups(guarded: TargetProcess, hash_: int, group: int) -> None:
    with admin(guarded) as connection:
        asked = Prover(KEY, CONTROLLER_KEY).login(connection, negotiate((hash_,), (group,)))
        assert (asked.hash, asked.group) == (hash_, group)
        assert connection.fabrics(4, (1, 0)).status == 0


@pytest.mark.parametrize(("transform", "size"), [(0, 32), (0, 48), (0, 64), (1, 32), (2, 48), (3, 64)])
def test_secrets_of_every_kind(guarded: TargetProcess, transform: int, size: int) -> None:
    key, other = secret(3, size, transform), secret(4, size, transform)
    guarded.auth = {"key": key, "controller_key": other}
    assert guarded.reload()["ok"]
    with admin(guarded) as connection:
        Prover(key, other).login(connection)


def test_a_host_may_prove_itself_again_while_it_works(guarded: TargetProcess) -> None:
    with admin(guarded) as connection:
        Prover(KEY).login(connection)
        assert send(connection, negotiate(tid=8)).status == 0
        assert connection.fabrics(4, (1, 0)).status == 0, "in the middle of it"
        asked = Challenge.of(receive(connection).data)
        assert asked.tid == 8
        send(connection, Prover(secret(9)).reply(asked))
        assert told(connection) == FAILED, "and loses its queue if it cannot"


def test_a_new_key_is_for_new_logins(guarded: TargetProcess) -> None:
    fresh = secret(5)
    with admin(guarded) as before:
        Prover(KEY).login(before)
        guarded.auth = {"key": fresh}
        assert guarded.reload()["ok"]
        assert before.fabrics(4, (1, 0)).status == 0, "who is there stays"
        with admin(guarded) as after:
            Prover(fresh).login(after)
        with admin(guarded) as late:
            send(late, negotiate())
            send(late, Prover(KEY).reply(Challenge.of(receive(late).data)))
            assert told(late) == FAILED, "the old key is none any more"


# What fails ----------------------------------------------------------------------------------------------


def _replied(change: Callable[[bytes], bytes], **how: Any) -> Callable[[Connection], None]:
    def play(connection: Connection) -> None:
        send(connection, negotiate())
        asked = Challenge.of(receive(connection).data)
        send(connection, change(Prover(**{"key": KEY, **how}).reply(asked)))

    return play


def _put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda message: message[:at] + value + message[at + len(value) :]


def _same(message: bytes) -> bytes:
    return message


def _said(*messages: bytes) -> Callable[[Connection], None]:
    def play(connection: Connection) -> None:
        for message in messages:
            assert send(connection, message).status == 0, "a wrong message is answered by the next AUTH_RECV"

    return play


def _replayed(connection: Connection) -> None:
    prover = Prover(KEY)
    send(connection, negotiate())
    message = prover.reply(Challenge.of(receive(connection).data))
    send(connection, message)
    receive(connection)
    send(connection, message)


def _replied_to_an_older_challenge(connection: Connection) -> None:
    prover = Prover(KEY)
    send(connection, negotiate())
    message = prover.reply(Challenge.of(receive(connection).data))
    send(connection, message)
    receive(connection)
    send(connection, negotiate())
    receive(connection)
    send(connection, message)


def _listening_twice(connection: Connection) -> None:
    send(connection, negotiate())
    Challenge.of(receive(connection).data)


SUCCESS2 = struct.pack("<BBxxH10x", 1, 4, 7)
FAILURES: dict[str, tuple[Callable[[Connection], None], int]] = {
    "another key": (_replied(_same, key=secret(9)), FAILED),
    "another host's name in the proof": (_replied(_same, hostnqn=HOST + "0"), FAILED),
    "another subsystem's name in the proof": (_replied(_same, subnqn=NQN + "0"), FAILED),
    "one bit of the response": (_replied(lambda m: m[:16] + bytes([m[16] ^ 1]) + m[17:]), FAILED),
    "a replayed reply": (_replayed, MESSAGE),
    "a reply to an older challenge": (_replied_to_an_older_challenge, FAILED),
    "another transaction": (_replied(_put(4, b"\x08\0")), PAYLOAD),
    "a reply with another hash length": (_replied(_put(6, b"\x30")), PAYLOAD),
    "a reply with another public length": (_replied(_put(10, b"\0\0")), PAYLOAD),
    "a short reply": (_replied(lambda message: message[:-4]), PAYLOAD),
    "a long reply": (_replied(lambda message: message + bytes(4)), PAYLOAD),
    "a public value of 0": (_replied(_put(80, bytes(256))), PAYLOAD),
    "a public value of 1": (_replied(_put(80, bytes(255) + b"\1")), PAYLOAD),
    "a public value of p - 1": (_replied(_put(80, (chap.P2048 - 1).to_bytes(256, "big"))), PAYLOAD),
    "a public value over p": (_replied(_put(80, b"\xff" * 256)), PAYLOAD),
    "a reply before a challenge": (_said(struct.pack("<BBxxH10x", 1, 2, 7)), MESSAGE),
    "success before anything": (_said(SUCCESS2), MESSAGE),
    "success instead of a reply": (_said(negotiate(), SUCCESS2), MESSAGE),
    "negotiating twice": (_said(negotiate(), negotiate()), MESSAGE),
    "our own message": (_said(struct.pack("<BBxxH10x", 1, 3, 7)), MESSAGE),
    "an unknown message": (_said(b"\1\x77" + bytes(14)), MESSAGE),
    "half a header": (_said(b"\0\0\0\0"), PAYLOAD),
    "no descriptor": (_said(struct.pack("<BBHHBB", 0, 0, 0, 7, 0, 0)), PAYLOAD),
    "fewer descriptors than it says": (_said(_put(7, b"\2")(negotiate())), PAYLOAD),
    "no hash listed": (_said(negotiate(())), PAYLOAD),
    "more hashes than fit": (_said(_put(10, b"\x1f")(negotiate())), PAYLOAD),
    "a hash nobody knows": (_said(negotiate((9,))), HASH),
    "a group we do not offer": (_said(negotiate((1,), (4, 5))), GROUP),
    "another protocol": (_said(negotiate(protocol=2)), NOT_USABLE),
    "a secure channel": (_said(negotiate(concatenation=1)), CONCATENATION),
    "listening before anything": (_said(), MESSAGE),
    "listening twice": (_listening_twice, MESSAGE),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(guarded: TargetProcess, name: str) -> None:
    play, why = FAILURES[name]
    with admin(guarded) as connection:
        play(connection)
        assert told(connection) == why


def test_a_controller_without_a_key_does_not_pretend(guarded: TargetProcess) -> None:
    guarded.auth = {"key": KEY}
    guarded.reload()
    with admin(guarded) as connection:
        send(connection, negotiate())
        send(connection, Prover(KEY, CONTROLLER_KEY).reply(Challenge.of(receive(connection).data)))
        assert told(connection) == FAILED


def test_half_a_success_makes_no_host_a_known_one(guarded: TargetProcess) -> None:
    with admin(guarded) as connection:
        send(connection, negotiate())
        send(connection, Prover(KEY).reply(Challenge.of(receive(connection).data)))
        assert failure(receive(connection, 8).data)[2] == PAYLOAD
        with pytest.raises(Closed):
            connection.receive()


def test_a_host_that_does_not_believe_us_ends_it(guarded: TargetProcess) -> None:
    with admin(guarded) as connection:
        send(connection, negotiate())
        send(connection, Prover(KEY, secret(9)).reply(Challenge.of(receive(connection).data)))
        assert receive(connection).data[:2] == b"\1\3"
        assert connection.fabrics(4, (1, 0)).status == AUTH_REQUIRED, "until it has said that it does"
        assert send(connection, struct.pack("<BBxxHBB", 0, 0xF0, 7, 1, 1)).status == 0
        with pytest.raises(Closed):
            connection.receive()


def test_wrong_commands_are_refused_as_commands(guarded: TargetProcess) -> None:
    with admin(guarded) as connection:
        message = negotiate()
        assert send(connection, message, security=0xE9010200).status == 0x02 | DNR, "another SPSP0"
        assert send(connection, message, security=0xEA010100).status == 0x02 | DNR, "another SECP"
        assert send(connection, message, length=68).status == 0x0F | DNR, "TL is not the data's length"
        assert send(connection, message, length=0).status == 0x02 | DNR
        Prover(KEY).login(connection)


def test_a_queue_that_needs_no_key_takes_no_exchange(standing: TargetProcess) -> None:
    with Connection(standing.port, Options()) as connection:
        assert connection.connect(NQN, HOST).result & ATR == 0
        assert send(connection, negotiate()).status == 0x02 | DNR


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        ({"key": "swordfish"}, "is no DH-HMAC-CHAP secret"),
        ({"key": KEY[:-2] + "=:"}, "is no DH-HMAC-CHAP secret"),
        ({"key": KEY.replace("DHHC-1:00", "DHHC-1:04")}, "is no DH-HMAC-CHAP secret"),
        ({"key": secret(1, 40)}, "32, 48 or 64 bytes"),
        ({"key": secret(1, 32, 3)}, "SHA512 takes 64"),
        ({"key": KEY[:12] + chr(ord(KEY[12]) ^ 1) + KEY[13:]}, "wrong CRC-32"),
        ({"key": KEY, "controller_key": KEY}, "each needs its own"),
    ],
)
def test_a_wrong_secret_is_told_without_repeating_it(
    guarded: TargetProcess, auth: dict[str, str], words: str
) -> None:
    guarded.auth = auth
    answer = guarded.reload()
    assert not answer["ok"] and words in answer["error"], answer
    assert auth["key"] not in answer["error"]
    with admin(guarded) as connection:
        Prover(KEY).login(connection)


# Its time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
async def test_an_exchange_has_its_time(
    begun: bool, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "AUTHENTICATION_DEADLINE", 0.3)  # 30 s
    template = TargetProcess(tmp_path, [namespace(1, file_backend(disk))], auth=dict(AUTH))
    ours = Target()
    await ours.apply(msgspec.convert(template.config(), TargetConfig))

    def dawdle() -> None:
        with admin(template) as connection:
            if begun:  # a host that is known, and begins again
                Prover(KEY).login(connection)
                time.sleep(0.6)
                assert connection.fabrics(4, (1, 0)).status == 0, "a finished exchange has no deadline"
                send(connection, negotiate())
            began = time.monotonic()
            with pytest.raises(Closed):
                connection.receive()
            assert 0.1 < time.monotonic() - began < 10

    try:
        await asyncio.to_thread(dawdle)
    finally:
        await ours.close()
