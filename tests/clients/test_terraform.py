"""terraform's libvirt provider speaks the protocol by itself (go-libvirt): its packets, in its order.

It opens with 66 and 1 only, asks for no keepalive and no features, and streams volumes in packets of its own
size. Numbers: procedures of program 0x20008086.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from hypervisor_shim.frame import Program, Status, Type, packet
from tests.clients.documents import CLOUDS
from tests.hypervisor_shim.serving import Answer, RawClient, Served, number, text

UPLOAD_PACKET = 4 * 1024 * 1024 // 64  # go-libvirt's own
VOLUME = """<volume><name>terraform-metal.raw</name><capacity unit="bytes">131072</capacity>
<target><format type="raw"/></target></volume>"""


class Go(RawClient):
    """RawClient with go-libvirt's way to open, to stream and to leave."""

    def do(self, procedure: int, body: bytes = b"") -> bytes:
        answer = self.call(procedure, body)
        assert answer.status == Status.OK, f"procedure {procedure}: {answer.code} {answer.message}"
        return answer.body

    def connect(self) -> None:
        kinds = self.do(66)
        assert kinds == number(1) + number(0), "one way to log in: none"
        there = b"\1\0\0\0"  # its own way to say that a name follows
        self.do(1, there + text("qemu:///system") + number(0))

    def stream(self, procedure: int, data: bytes) -> Answer:
        serial = self.serial
        for start in range(0, len(data), UPLOAD_PACKET):
            part = data[start : start + UPLOAD_PACKET]
            self.sock.sendall(
                packet(Program.REMOTE, 1, procedure, Type.STREAM, serial, Status.CONTINUE, part)
            )
        self.sock.sendall(packet(Program.REMOTE, 1, procedure, Type.STREAM, serial, Status.OK, b""))
        return self.receive()


@pytest.fixture
def go(agent: Served) -> Iterator[Go]:
    with Go(agent.path) as client:
        client.connect()
        yield client


def _string(body: bytes) -> str:
    (size,) = struct.unpack_from(">I", body)
    return body[4 : 4 + size].decode()


def _skip(body: bytes) -> bytes:
    """What is behind a string."""
    (size,) = struct.unpack_from(">I", body)
    return body[4 + size + -size % 4 :]


def test_a_domain_is_applied_read_changed_and_destroyed(go: Go) -> None:
    (version,) = struct.unpack(">Q", go.do(157))
    assert version >= 10_000_000
    xml = CLOUDS["terraform"].xml
    domain = go.do(11, text(xml))
    assert _string(domain) == "terraform-metal"
    same = go.do(24, _skip(domain)[:16])
    assert same == domain, "found again by the UUID in terraform's state"
    go.do(29, domain + number(1))
    assert go.do(15, domain) == number(1)
    running = go.do(196, domain + number(0))
    assert struct.unpack(">i", running[-4:])[0] > 0, "it has an id now"
    assert go.do(212, domain + number(0)) == number(1) + number(1)
    assert "<wwn>05abcd0123456789</wwn>" in _string(go.do(14, domain + number(0)))

    go.do(234, domain + number(0))
    assert go.do(212, domain + number(0))[:4] == number(5)
    changed = xml.replace('<memory unit="MiB">2048</memory>', '<memory unit="MiB">1024</memory>')
    assert _skip(go.do(11, text(changed)))[:16] == _skip(domain)[:16]
    go.do(231, domain + number(4))
    gone = go.call(24, _skip(domain)[:16])
    assert gone.code == 42, "terraform takes NO_DOMAIN for: destroyed meanwhile"
    go.do(2)


def test_a_volume_is_made_filled_and_deleted(go: Go) -> None:
    pool = go.do(84, text("default-pool"))
    volume = go.do(93, pool + text(VOLUME) + number(0))
    assert "terraform-metal.raw" in _string(go.do(99, volume + number(0)))
    opened = go.call(208, volume + struct.pack(">QQ", 0, 131072) + number(0))
    if opened.code in (3, 84):
        pytest.skip("the in-memory pool keeps no contents")
    assert opened.code == 0, opened.message
    ended = go.stream(208, bytes(range(256)) * 512)
    assert (ended.type, ended.status) == (Type.STREAM, Status.OK), ended.message
    go.do(83, pool + number(0))
    key = _string(_skip(_skip(volume)))
    assert go.do(96, text(key)) == volume
    go.do(94, volume + number(0))
    assert go.call(96, text(key)).code == 50, "NO_STORAGE_VOL"


def test_a_network_is_made_and_deleted(go: Go) -> None:
    name = text("terraform-net")
    network = go.do(41, text("<network><name>terraform-net</name></network>"))
    assert network.startswith(name)
    assert go.do(152, network) == number(0)
    go.do(39, network)
    go.do(48, network + number(1))
    assert go.do(44, network) == number(1) and go.do(152, network) == number(1)
    assert "terraform-net" in _string(go.do(43, network + number(0)))
    go.do(42, network)
    go.do(49, network)
    assert go.call(46, name).code == 43, "NO_NETWORK"
