"""SASL with stock clients (Cyrus SASL at their end), and against those who guess."""

from __future__ import annotations

import base64
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from scramp import ScramClient, ScramException

from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.sasl import ITERATIONS, AuthFailed, Scram, UserFile, Verifier

from .serving import Answer, Closed, RawClient, Served, number, serving, text

LIST, INIT, START, STEP, OPEN = 66, 67, 68, 69, 1


@pytest.fixture
def users(directory: Path) -> UserFile:
    users = UserFile(directory / "users")
    users.put("alice", "open sesame")
    return users


@pytest.fixture
def asking(directory: Path, users: UserFile) -> Iterator[Served]:
    """A server whose socket `sasl` wants a login."""
    with serving(MemoryDriver(), directory) as served:
        served.run(served.server.listen_unix(directory / "sasl", authenticator=Scram(users, penalty=0.1)))
        yield served


def login(directory: Path, user: str, password: str) -> Any:
    """A connection of libvirt-python whose callback gives this user and password."""

    def give(wanted: list[list[Any]], _: None) -> int:
        for each in wanted:
            each[4] = user if each[0] == libvirt.VIR_CRED_AUTHNAME else password
        return 0

    kinds = [libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_PASSPHRASE]
    return libvirt.openAuth(f"nic+unix:///system?socket={directory / 'sasl'}", [kinds, give, None], 0)


def chars(data: bytes) -> bytes:
    return number(len(data)) + b"".join(number(byte) for byte in data)


def of_answer(answer: Answer) -> tuple[int, bytes]:
    """Whether it is complete, and what it says."""
    assert answer.code == 0, answer.message
    return int.from_bytes(answer.body[:4], "big"), answer.body[12:][3::4]


def test_libvirt_python_logs_in_by_its_callback(asking: Served, directory: Path) -> None:
    conn = login(directory, "alice", "open sesame")
    assert [domain.name() for domain in conn.listAllDomains()] == ["test"]
    conn.close()


def test_virsh_logs_in_with_an_auth_file(asking: Served, directory: Path) -> None:
    file = directory / "auth.conf"
    file.write_text(
        "[credentials-a]\nauthname=alice\npassword=open sesame\n[auth-libvirt-default]\ncredentials=a\n"
    )
    uri = f"nic+unix:///system?socket={directory / 'sasl'}&authfile={file}"
    done = subprocess.run(
        ["virsh", "-c", uri, "list", "--name"], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stdout.split() == ["test"], done.stderr


@pytest.mark.parametrize("user, password", [("alice", "guess"), ("nobody", "open sesame")])
def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(
    asking: Served, directory: Path, user: str, password: str
) -> None:
    began = time.monotonic()
    with pytest.raises(libvirt.libvirtError) as caught:
        login(directory, user, password)
    assert caught.value.get_error_code() == 45
    assert caught.value.get_error_message() == "authentication failed: authentication failed"
    assert time.monotonic() - began >= 0.1, "a guess must cost a while"
    assert Scram(UserFile(directory / "users")).penalty >= 1, "by default a long one"


def test_nothing_is_answered_before_the_login(asking: Served, directory: Path) -> None:
    with RawClient(directory / "sasl") as client:
        assert client.call(LIST).body == number(1) + number(1), "the one way in is SASL"
        for procedure in (OPEN, 273, 60, 2, 9):
            answer = client.call(procedure, number(0) * 2)
            assert (answer.code, answer.message) == (39, "authentication required"), procedure
        assert client.call(INIT).body == text("SCRAM-SHA-256")


def test_a_connection_has_three_attempts_however_they_are_sent(asking: Served, directory: Path) -> None:
    with RawClient(directory / "sasl") as client:
        for _ in range(5):
            client.send(START, text("PLAIN") + number(0) + chars(b"\0alice\0guess"))
        answers = []
        with pytest.raises(Closed):
            while True:
                answers.append(client.receive().code)
        assert answers and set(answers) == {45}


def test_no_step_can_be_left_out_or_repeated(asking: Served, directory: Path) -> None:
    scram = ScramClient(["SCRAM-SHA-256"], "alice", "open sesame")
    with RawClient(directory / "sasl") as client:
        assert client.call(STEP, number(0) + chars(b"c=biws")).code == 45, "a step of no login"
        first = text("SCRAM-SHA-256") + number(0) + chars(scram.get_client_first().encode())
        complete, said = of_answer(client.call(START, first))
        assert not complete
        assert client.call(START, first).code == 45, "one login at a time"
        scram.set_server_first(said.decode())
        complete, said = of_answer(client.call(STEP, number(0) + chars(scram.get_client_final().encode())))
        assert complete, "the password is right"
        scram.set_server_final(said.decode())
        assert client.call(STEP, number(0) + chars(b"")).code == 45, "it is over"
        client.open()


def test_an_unknown_user_keeps_its_salt(users: UserFile) -> None:
    """Otherwise two attempts would tell that there is no such user."""
    asked = [first_answer(UserFile(users.path), "mallory") for _ in range(2)]
    known = first_answer(users, "alice")
    assert asked[0]["s"] == asked[1]["s"]
    assert {key: len(value) for key, value in asked[0].items()} == {
        key: len(value) for key, value in known.items()
    }, "the form of the answer tells nothing either"


def first_answer(users: UserFile, name: str) -> dict[str, str]:
    answer, _ = Scram(users).begin("SCRAM-SHA-256").step(f"n,,n={name},r=abcdef".encode())
    return dict(part.split("=", 1) for part in answer.decode().split(","))


@pytest.mark.parametrize(
    "said", [b"", b"n,,", b"\xff", b"n,a=root,n=alice,r=x", b"p=tls-unique,,n=alice,r=x"]
)
def test_a_malformed_first_message_is_a_failed_attempt(users: UserFile, said: bytes) -> None:
    with pytest.raises(AuthFailed):
        Scram(users).begin("SCRAM-SHA-256").step(said)


def test_the_file_holds_no_password_and_is_private(users: UserFile) -> None:
    assert users.path.stat().st_mode & 0o777 == 0o600
    content = users.path.read_text()
    assert "sesame" not in content
    assert base64.b64encode(b"open sesame").decode() not in content
    assert Verifier.parse(content.split("alice:")[1].strip()).iterations == ITERATIONS


def test_a_changed_file_holds_from_the_next_login_on(users: UserFile) -> None:
    serving_ones = UserFile(users.path)
    before = serving_ones.verifier("alice")
    users.put("alice", "another")
    assert serving_ones.verifier("alice") != before
    users.drop("alice")
    assert serving_ones.users() == []
    with pytest.raises(KeyError):
        users.drop("alice")


def test_a_file_that_others_may_read_is_not_used(users: UserFile, asking: Served, directory: Path) -> None:
    users.path.chmod(0o644)
    with pytest.raises(ValueError, match="make it 0600"):
        UserFile(users.path).users()
    with RawClient(directory / "sasl") as client:
        first = b"n,,n=alice,r=abc"
        assert client.call(START, text("SCRAM-SHA-256") + number(0) + chars(first)).code == 45


@pytest.mark.parametrize("name, password", [("a:b", "x"), ("", "x"), ("-a", "x"), ("a\nb", "x"), ("a", "")])
def test_a_name_or_password_that_cannot_work_is_refused(users: UserFile, name: str, password: str) -> None:
    with pytest.raises(ValueError):
        users.put(name, password)


def test_plain_tcp_is_no_place_to_log_in(users: UserFile, directory: Path) -> None:
    """A stock client refuses SCRAM where nothing is encrypted; so the server does not offer it there."""
    with serving(MemoryDriver(), directory) as served:
        listening = socket.create_server(("127.0.0.1", 0))

        async def adopt() -> None:
            served.server.adopt(listening, authenticator=Scram(users))

        with pytest.raises(ValueError, match="TLS or a unix socket"):
            served.run(adopt())
        listening.close()


def test_the_exchange_is_one_a_second_implementation_accepts(users: UserFile) -> None:
    """The client half checks the server's signature: the server, too, has to know the verifier."""
    client = ScramClient(["SCRAM-SHA-256"], "alice", "open sesame")
    exchange = Scram(users).begin("SCRAM-SHA-256")
    answer, user = exchange.step(client.get_client_first().encode())
    assert user is None
    client.set_server_first(answer.decode())
    answer, user = exchange.step(client.get_client_final().encode())
    assert user == "alice"
    client.set_server_final(answer.decode())
    with pytest.raises(ScramException):
        client.set_server_final("v=AAAA")
