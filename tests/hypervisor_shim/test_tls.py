"""TLS with stock clients, both ways: who is let in, who is not, and what the server says of it."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from hypervisor_shim.access import Policy, Right, Rule
from hypervisor_shim.connection import Limits
from hypervisor_shim.frame import HEADER, HEADER_SIZE, packet
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.sasl import Scram, UserFile
from hypervisor_shim.tls import Tls, TlsFiles

from .pki import DAY, NOW, Authority, Issued, client_directory, server_files
from .serving import Served, optional, serving, text

NOVA = (("C", "GB"), ("O", "Cloud, Inc"), ("CN", "nova"))
NOVA_NAME = r"C=GB,O=Cloud\, Inc,CN=nova"


@dataclass
class Secured:
    served: Served
    ca: Authority
    files: TlsFiles
    directory: Path
    port: int

    def pkipath(self, issued: Issued | None) -> Path:
        name = f"client-{issued.certificate.serial_number if issued else 'none'}"
        return client_directory(self.directory / name, self.ca, issued)

    def uri(self, issued: Issued | None, *, host: str = "127.0.0.1", port: int = 0) -> str:
        return f"nic+tls://{host}:{port or self.port}/system?pkipath={self.pkipath(issued)}"

    def client(self, *name: tuple[str, str], **how: Any) -> Issued:
        return self.ca.issue(*(name or NOVA), client=True, **how)


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


@pytest.fixture
def secured(directory: Path, ca: Authority) -> Iterator[Secured]:
    with securing(directory, ca) as secured:
        yield secured


class securing:
    def __init__(
        self, directory: Path, ca: Authority, limits: Limits | None = None,
        allowed: tuple[str, ...] | None = None, crl: bytes | None = None, **how: Any,
    ) -> None:  # fmt: skip
        self._serving = serving(MemoryDriver(), directory, limits, **how)
        self._directory, self._ca, self._allowed, self._crl = directory, ca, allowed, crl

    def __enter__(self) -> Secured:
        issued = self._ca.issue(("CN", "127.0.0.1"), client=False)
        crl = None
        if self._crl is not None:
            crl = self._directory / "crl.pem"
            crl.write_bytes(self._crl)
        files = TlsFiles(*server_files(self._directory, self._ca, issued), crl)
        served = self._serving.__enter__()
        port = served.run(served.server.listen_tls("127.0.0.1", 0, Tls(files, self._allowed)))
        return Secured(served, self._ca, files, self._directory, port)

    def __exit__(self, *raised: Any) -> None:
        self._serving.__exit__(*raised)


def virsh(uri: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["virsh", "-q", "-c", uri, *(command or ("list", "--name"))],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


def raw(secured: Secured, issued: Issued | None, ca: Authority | None = None) -> ssl.SSLSocket:
    """A client that does not look at its own certificate first, as libvirt's do. The handshake is done."""
    context = ssl.create_default_context(cadata=(ca or secured.ca).pem().decode())
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # the default from Python 3.13 on
    context.check_hostname = False
    if issued is not None:
        path = secured.pkipath(issued)
        context.load_cert_chain(path / "clientcert.pem", path / "clientkey.pem")
    sock = socket.create_connection(("127.0.0.1", secured.port), timeout=10)
    return context.wrap_socket(sock)


def confirmation(sock: ssl.SSLSocket) -> bytes:
    """What the server says to this client's certificate: one byte, or nothing."""
    with sock:
        try:
            return sock.recv(16)
        except OSError:
            return b""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"this did not come: {what}"
        time.sleep(0.01)


# ---- who is let in -------------------------------------------------------------------------------


def test_virsh_connects_with_a_certificate_and_the_connection_is_secure(secured: Secured) -> None:
    done = virsh(secured.uri(secured.client()))
    assert done.stdout.split() == ["test"], done.stderr
    conn = libvirt.open(secured.uri(secured.client()))
    assert conn.isSecure() == 1
    assert conn.isEncrypted() == 1
    conn.close()


def test_many_calls_and_large_answers_go_through(secured: Secured) -> None:
    conn = libvirt.open(secured.uri(secured.client()))
    domain = conn.lookupByName("test")
    for _ in range(200):
        domain.info()
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, "x" * 1_000_000, None, None, 0)
    assert len(domain.XMLDesc()) > 1_000_000
    conn.close()


def test_a_client_without_a_certificate_is_refused_and_the_log_says_so(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    done = virsh(secured.uri(None))
    assert done.returncode == 1
    until(lambda: "did not return a certificate" in caplog.text, "a line in the log")
    assert "client tls:127.0.0.1:" in caplog.text


def test_a_certificate_of_another_authority_is_refused(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = Authority("another CA").issue(*NOVA, client=True)
    assert confirmation(raw(secured, foreign)) == b""
    until(lambda: "certificate verify failed" in caplog.text, "a line in the log")


def test_an_expired_certificate_is_refused(secured: Secured, caplog: pytest.LogCaptureFixture) -> None:
    late = secured.client(until=NOW - DAY)
    assert confirmation(raw(secured, late)) == b""
    until(lambda: "certificate has expired" in caplog.text, "a line in the log")
    assert "expired" in virsh(secured.uri(late)).stderr, "libvirt's own client does not even try"


def test_a_revoked_certificate_is_refused(
    directory: Path, ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = ca.issue(*NOVA, client=True), ca.issue(*NOVA, client=True)
    with securing(directory, ca, crl=ca.revoke(bad)) as secured:
        assert confirmation(raw(secured, bad)) == b""
        until(lambda: "certificate revoked" in caplog.text, "a line in the log")
        assert confirmation(raw(secured, good)) == b"\1"


def test_the_client_refuses_a_server_of_another_name_or_authority(secured: Secured) -> None:
    wrong_name = virsh(secured.uri(secured.client(), host="localhost"))
    assert "owner does not match the hostname localhost" in wrong_name.stderr
    other = Authority("another CA")
    path = client_directory(secured.directory / "other", other, other.issue(*NOVA, client=True))
    wrong_ca = virsh(f"nic+tls://127.0.0.1:{secured.port}/system?pkipath={path}")
    assert wrong_ca.returncode != 0, "it may even die of SIGPIPE, but it does not connect"
    assert wrong_ca.stdout == ""


def test_plain_libvirt_at_the_tls_port_is_refused(secured: Secured) -> None:
    with socket.create_connection(("127.0.0.1", secured.port), timeout=10) as sock:
        sock.sendall(packet(0x20008086, 1, 66, 0, 1, 0))
        answered = b""
        while data := sock.recv(4096):
            answered += data
    assert len(answered) < HEADER_SIZE, "an alert at most"


# ---- who it is -----------------------------------------------------------------------------------


def test_only_names_of_the_allow_list_come_in(
    directory: Path, ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with securing(directory, ca, allowed=("C=GB,*,CN=nova",)) as secured:
        assert virsh(secured.uri(secured.client())).stdout.split() == ["test"]
        refused = virsh(secured.uri(secured.client(("CN", "mallory"))))
        assert "Unable to read TLS confirmation" in refused.stderr
        until(lambda: "CN=mallory, which may not connect" in caplog.text, "a line in the log")
        forger = secured.client(("CN", "mallory"), ("O", "x,CN=nova"))
        assert confirmation(raw(secured, forger)) == b"", "a comma inside a name ends nothing"


@pytest.mark.skipif(shutil.which("virt-pki-query-dn") is None, reason="libvirt's tool is not installed")
@pytest.mark.parametrize(
    "name",
    [NOVA, (("CN", 'a+b "c" <d>;e\\f'),), (("O", "Łódź"), ("CN", " x "))],
    ids=["plain", "odd", "more"],
)
def test_the_name_is_what_libvirts_own_tool_calls_it(
    directory: Path, ca: Authority, caplog: pytest.LogCaptureFixture, name: tuple[tuple[str, str], ...]
) -> None:
    with securing(directory, ca, allowed=()) as secured:
        issued = secured.client(*name)
        asked = subprocess.run(
            ["virt-pki-query-dn", secured.pkipath(issued) / "clientcert.pem"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        confirmation(raw(secured, issued))
        expected = f"has a certificate for {asked.stdout.rstrip(chr(10))}, which may not connect"
        until(lambda: "may not connect" in caplog.text, "a line in the log")
        assert expected in caplog.text


def test_rules_may_name_a_certificate(directory: Path, ca: Authority) -> None:
    policy = Policy([Rule((f"x509:{NOVA_NAME.replace(chr(92), '[' + chr(92) + ']')}",), Right.READ)])
    with securing(directory, ca, policy=policy) as secured:
        assert virsh(secured.uri(secured.client())).stdout.split() == ["test"]
        assert "may not operate" in virsh(secured.uri(secured.client()), "inject-nmi", "test").stderr
        other = virsh(secured.uri(secured.client(("CN", "other"))))
        assert "no rule lets x509:CN=other in" in other.stderr


def test_a_login_on_top_of_the_certificate(directory: Path, ca: Authority) -> None:
    users = UserFile(directory / "users")
    users.put("alice", "open sesame")
    with securing(directory, ca) as secured:
        port = secured.served.run(
            secured.served.server.listen_tls("127.0.0.1", 0, Tls(secured.files), authenticator=Scram(users))
        )
        file = directory / "auth.conf"
        file.write_text(
            "[credentials-a]\nauthname=alice\npassword=open sesame\n[auth-libvirt-127.0.0.1]\ncredentials=a\n"
        )
        done = virsh(f"{secured.uri(secured.client(), port=port)}&authfile={file}")
        assert done.stdout.split() == ["test"], done.stderr


# ---- the server's own certificate ----------------------------------------------------------------


def test_a_new_certificate_holds_without_a_restart(secured: Secured) -> None:
    def shown() -> bytes | None:
        with raw(secured, secured.client()) as sock:
            return sock.getpeercert(binary_form=True)

    before = shown()
    server_files(secured.directory, secured.ca, secured.ca.issue(("CN", "127.0.0.1"), client=False))
    assert shown() != before


def test_a_certificate_that_does_not_fit_leaves_the_old_one(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    secured.files.key.write_bytes(b"no key")
    assert virsh(secured.uri(secured.client())).stdout.split() == ["test"]
    assert "the old ones go on" in caplog.text


def test_files_that_are_not_there_are_an_error_at_once(directory: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tls(TlsFiles(directory / "ca", directory / "cert", directory / "key"))


# ---- limits --------------------------------------------------------------------------------------


def test_a_handshake_that_never_ends_is_ended(
    directory: Path, ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with securing(directory, ca, Limits(opening_time=0.5)) as secured:
        with socket.create_connection(("127.0.0.1", secured.port), timeout=10) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00")  # the beginning of a ClientHello
            assert sock.recv(16) == b"", "the server hangs up"
        until(lambda: secured.served.server.clients == 0, "it is forgotten")
    assert "got no TLS connection" in caplog.text


def test_handshakes_under_way_count_as_clients_that_were_not_let_in(directory: Path, ca: Authority) -> None:
    with securing(directory, ca, Limits(unopened=2, opening_time=1.0)) as secured:
        idle = [socket.create_connection(("127.0.0.1", secured.port), timeout=10) for _ in range(4)]
        until(lambda: secured.served.server.clients == 2, "two are taken")
        began = time.monotonic()
        assert virsh(secured.uri(secured.client())).stdout.split() == ["test"], "it gets its turn"
        assert time.monotonic() - began > 0.5
        for sock in idle:
            sock.close()


def test_the_confirmation_comes_first_and_is_one_byte(secured: Secured) -> None:
    with raw(secured, secured.client()) as sock:
        sock.sendall(packet(0x20008086, 1, 1, 0, 1, 0, optional(text("nic:///system")) + bytes(4)))
        received = b""
        while len(received) < 1 + HEADER_SIZE:
            received += sock.recv(4096)
        assert received[:1] == b"\1"
        assert HEADER.unpack_from(received, 1)[6] == 0, "and the call is answered after it"


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    libvirt.registerErrorHandler(lambda *_: None, None)


def test_a_handshake_under_way_does_not_hold_up_the_servers_end(directory: Path, ca: Authority) -> None:
    with securing(directory, ca) as secured:
        sock = socket.create_connection(("127.0.0.1", secured.port), timeout=10)
        until(lambda: secured.served.server.clients == 1, "it is taken")
        began = time.monotonic()
    assert time.monotonic() - began < 5, "the server waited for a client that says nothing"
    sock.close()
