"""Bad PDUs get the termination the specification names (NVMe/TCP 1.0, figures 31 and 32); nothing crashes."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from initiator import (
    C2H_DATA,
    C2H_TERM,
    CAPSULE,
    DDGST,
    FLUSH,
    H2C_DATA,
    H2C_TERM,
    HDGST,
    ICREQ,
    ICRESP,
    LAST,
    R2T,
    READ,
    RESPONSE,
    WRITE,
    Closed,
    Connection,
    Host,
    Options,
    crc,
    span,
    sqe,
)
from target_process import HOST, NQN, TargetProcess, file_backend, namespace

HEADER, SEQUENCE, HEADER_DIGEST, RANGE, LIMIT, UNSUPPORTED = 1, 2, 3, 4, 5, 6
TYPE, FLAGS, HLEN, PDO, PLEN = 0, 1, 2, 3, 4
ANY = None  # FEI is not defined for this error


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TargetProcess]:
    """One target for all: whatever a test sends, the next one finds it alive."""
    home = tmp_path_factory.mktemp("pdus")
    disk = home / "disk.raw"
    disk.write_bytes(random.Random(2).randbytes(4 << 20))
    running = TargetProcess(home, [namespace(1, file_backend(disk))]).start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    log = running.log.read_text()
    assert "internal error" not in log and "Traceback" not in log, log


def icreq(
    *, hlen: int = 128, pdo: int = 0, plen: int = 128, pfv: int = 0, hpda: int = 0, dgst: int = 0
) -> bytes:
    return struct.pack("<BBBBIHBBI112x", ICREQ, 0, hlen, pdo, plen, pfv, hpda, dgst, 0)


def head(kind: int, hlen: int, plen: int, *, flags: int = 0, pdo: int = 0) -> bytes:
    return struct.pack("<BBBBI", kind, flags, hlen, pdo, plen)


FIRST = {
    "no ICReq before a command": (head(CAPSULE, 72, 72) + sqe(FLUSH, 1), SEQUENCE, ANY),
    "no ICReq before data": (head(H2C_DATA, 24, 24) + bytes(16), SEQUENCE, ANY),
    "a controller's PDU: ICResp": (head(ICRESP, 128, 128) + bytes(120), HEADER, TYPE),
    "a controller's PDU: C2HTermReq": (head(C2H_TERM, 24, 24) + bytes(16), HEADER, TYPE),
    "an unknown type": (head(0x42, 8, 8), HEADER, TYPE),
    "HLEN of ICReq": (icreq(hlen=127), HEADER, HLEN),
    "PLEN of ICReq, short": (icreq(plen=127), HEADER, PLEN),
    "PLEN of ICReq, long": (icreq(plen=0xFFFFFFFF), HEADER, PLEN),
    "PDO of ICReq": (icreq(pdo=4), HEADER, PDO),
    "format version": (icreq(pfv=1), UNSUPPORTED, 8),
    "HPDA over 31": (icreq(hpda=32), HEADER, 10),
    "unknown digest": (icreq(dgst=4), HEADER, 11),
}


@pytest.mark.parametrize("name", FIRST)
def test_first_pdu(shared: TargetProcess, name: str) -> None:
    raw, fes, fei = FIRST[name]
    with Connection(shared.port) as connection:
        connection.send(raw)
        found = connection.termination()
    assert found[0] == fes and fei in (ANY, found[1]), f"FES {found[0]}, FEI {found[1]}"
    assert raw.startswith(found[2][:8]), "the termination request quotes the header it is about"


def capsule(cid: int = 9, *, data: bytes = b"", pdo: int | None = None, flags: int = 0) -> bytes:
    plen = 72 + len(data)
    place = (72 if data else 0) if pdo is None else pdo
    entry = sqe(WRITE, cid, nsid=1, length=len(data), sgl=0x01) if data else sqe(FLUSH, cid, nsid=1)
    return head(CAPSULE, 72, plen, flags=flags, pdo=place) + entry + data


LIVE = {
    "ICReq twice": (icreq(), SEQUENCE, ANY),
    "a controller's PDU: CapsuleResp": (head(RESPONSE, 24, 24) + bytes(16), HEADER, TYPE),
    "a controller's PDU: C2HData": (head(C2H_DATA, 24, 24) + bytes(16), HEADER, TYPE),
    "a controller's PDU: R2T": (head(R2T, 24, 24) + bytes(16), HEADER, TYPE),
    "HLEN of a capsule": (head(CAPSULE, 64, 72) + bytes(64), HEADER, HLEN),
    "PLEN of a capsule, short": (head(CAPSULE, 72, 71) + bytes(64), HEADER, PLEN),
    "PLEN of a capsule, long": (head(CAPSULE, 72, 1 << 20) + bytes(64), HEADER, PLEN),
    "PLEN of a capsule, 4 GiB": (head(CAPSULE, 72, 0xFFFFFFFF) + bytes(64), HEADER, PLEN),
    "PDO into the header": (capsule(data=bytes(512), pdo=68), HEADER, PDO),
    "PDO beyond the PDU": (capsule(data=bytes(8), pdo=200), HEADER, PDO),
    "PDO not aligned": (capsule(data=bytes(512), pdo=73), HEADER, PDO),
    "header digest nobody agreed to": (capsule(flags=HDGST), HEADER, FLAGS),
    "data digest nobody agreed to": (capsule(data=bytes(512), flags=DDGST), HEADER, FLAGS),
    "HLEN of H2CData": (head(H2C_DATA, 28, 32) + bytes(24), HEADER, HLEN),
    "data nobody asked for": (
        head(H2C_DATA, 24, 536, pdo=24, flags=LAST) + struct.pack("<HHII4x", 1, 77, 0, 512) + bytes(512),
        HEADER,
        10,
    ),
    "H2CData over MAXH2CDATA": (
        head(H2C_DATA, 24, 0xFFFFFFF0, pdo=24) + struct.pack("<HHII4x", 1, 0, 0, 0xFFFFFF00),
        LIMIT,
        ANY,
    ),
    "H2CTermReq too long": (head(H2C_TERM, 24, 153) + bytes(145), HEADER, PLEN),
}


@pytest.mark.parametrize("name", LIVE)
def test_pdu_on_a_live_queue(shared: TargetProcess, name: str) -> None:
    raw, fes, fei = LIVE[name]
    with Host(shared.port, NQN, HOST, queues=2) as host:
        host.io[0].send(raw)
        found = host.io[0].termination()
        assert found[0] == fes and fei in (ANY, found[1]), f"FES {found[0]}, FEI {found[1]}"
        assert host.read(0, 512, queue=1).status == 0, "the association's other queues go on"


@dataclass(frozen=True)
class Data:
    """An H2CData PDU that answers an R2T for 16 KiB, with one thing wrong."""

    cccid: int = 0  # added to the right value
    ttag: int = 0  # added to the right value
    offset: int = 0
    length: int = 16384
    flags: int = LAST
    pdo: int = 24
    plen: int | None = None


WRONG_DATA = {
    "CCCID of another command": (Data(cccid=1), HEADER, 8),
    "TTAG of another transfer": (Data(ttag=1), HEADER, 10),
    "a gap": (Data(offset=4096, length=12288), RANGE, ANY),
    "more than the R2T": (Data(length=16388), RANGE, ANY),
    "LAST_PDU too early": (Data(length=4096), HEADER, FLAGS),
    "LAST_PDU missing": (Data(flags=0), HEADER, FLAGS),
    "no data": (Data(length=0, plen=24), HEADER, ANY),
    "PLEN and DATAL disagree": (Data(plen=24 + 8192), HEADER, PLEN),
    "PDO into the header": (Data(pdo=20), HEADER, PDO),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_data_that_no_r2t_asked_for(shared: TargetProcess, name: str) -> None:
    wrong, fes, fei = WRONG_DATA[name]
    with Host(shared.port, NQN, HOST) as host:
        queue = host.io[0]
        before = host.read(0, 16384).data
        queue.send(queue.pdu(CAPSULE, sqe(WRITE, 5, nsid=1, length=16384, cdw=span(0, 16384))))
        request = queue.receive()
        assert request.kind == R2T
        cid, ttag, offset, length = struct.unpack_from("<HHII", request.header, 8)
        assert (cid, offset, length) == (5, 0, 16384), "one R2T for the whole transfer"
        plen = wrong.pdo + wrong.length if wrong.plen is None else wrong.plen
        fields = struct.pack("<HHII4x", cid + wrong.cccid, ttag + wrong.ttag, wrong.offset, wrong.length)
        queue.send(head(H2C_DATA, 24, plen, flags=wrong.flags, pdo=wrong.pdo) + fields + bytes(wrong.length))
        found = queue.termination()
        assert found[0] == fes and fei in (ANY, found[1]), f"FES {found[0]}, FEI {found[1]}"
    with Host(shared.port, NQN, HOST) as host:
        assert host.read(0, 16384).data == before, "nothing of a broken transfer is written"


def test_a_wrong_header_digest_ends_the_connection(shared: TargetProcess) -> None:
    with Host(shared.port, NQN, HOST, Options(header_digest=True)) as host:
        raw = bytearray(host.io[0].pdu(CAPSULE, sqe(FLUSH, 9, nsid=1)))
        raw[-1] ^= 1
        host.io[0].send(raw)
        fes, fei, quoted = host.io[0].termination()
        assert (fes, fei) == (HEADER_DIGEST, int.from_bytes(raw[-4:], "little")), "FEI is the digest received"
        assert quoted[:72] == raw[:72]


def test_a_missing_digest_is_a_wrong_header(shared: TargetProcess) -> None:
    with Host(shared.port, NQN, HOST, Options(header_digest=True)) as host:
        entry = sqe(FLUSH, 9, nsid=1)
        host.io[0].send(head(CAPSULE, 72, 76) + entry + crc(head(CAPSULE, 72, 76) + entry))
        assert host.io[0].termination()[:2] == (HEADER, FLAGS)


@pytest.mark.parametrize("in_capsule", [True, False])
def test_a_wrong_data_digest_fails_the_command_only(shared: TargetProcess, in_capsule: bool) -> None:
    with Host(shared.port, NQN, HOST, Options(data_digest=True)) as host:
        queue, before = host.io[0], host.read(0, 4096).data
        if in_capsule:
            entry = sqe(WRITE, 9, nsid=1, length=4096, sgl=0x01, cdw=span(0, 4096))
            raw = bytearray(queue.pdu(CAPSULE, entry, bytes(4096)))
        else:
            queue.send(queue.pdu(CAPSULE, sqe(WRITE, 9, nsid=1, length=4096, cdw=span(0, 4096))))
            cid, ttag, _, _ = struct.unpack_from("<HHII", queue.receive().header, 8)
            fields = struct.pack("<HHII4x", cid, ttag, 0, 4096)
            raw = bytearray(queue.pdu(H2C_DATA, fields, bytes(4096), flags=LAST))
        raw[-1] ^= 0xFF
        queue.send(raw)
        assert queue.complete(9).status == 0x22, "Transient Transport Error, and the host may retry"
        assert host.read(0, 4096).data == before


def test_a_termination_request_from_the_host_ends_the_connection(shared: TargetProcess) -> None:
    with Host(shared.port, NQN, HOST) as host:
        host.io[0].send(struct.pack("<BBBBIHI10x", H2C_TERM, 0, 24, 0, 24 + 8, 1, 0) + bytes(8))
        with pytest.raises(Closed):
            host.io[0].receive()
        assert host.property(0x1C) == 1, "the admin queue goes on"


def test_more_commands_than_the_queue_holds(shared: TargetProcess) -> None:
    with Host(shared.port, NQN, HOST, queues=0) as host:
        queue = host.open_queue(1, entries=4)
        for cid in range(8):  # writes that wait for their R2T's data
            queue.send(queue.pdu(CAPSULE, sqe(WRITE, 100 + cid, nsid=1, length=4096, cdw=span(0, 4096))))
        assert queue.termination()[0] == SEQUENCE


def test_bytes_may_come_one_by_one(shared: TargetProcess) -> None:
    with Host(shared.port, NQN, HOST, Options(header_digest=True, data_digest=True)) as host:
        queue = host.io[0]
        entry = sqe(WRITE, 9, nsid=1, length=512, sgl=0x01, cdw=span(4096, 512))
        for byte in queue.pdu(CAPSULE, entry, b"1" * 512):
            queue.send(bytes([byte]))
        assert queue.complete(9).status == 0
        assert host.read(4096, 512).data == b"1" * 512


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _provoke(connection: Connection, raw: bytes) -> None:
    """Sends bytes and drains what comes; the only promise is an orderly end."""
    connection.socket.settimeout(5)
    try:
        connection.send(raw)
        connection.socket.shutdown(1)
        while connection.socket.recv(65536):
            pass
    except ConnectionError:
        pass


@FUZZ
@given(raw=st.binary(max_size=400))
def test_any_first_bytes(shared: TargetProcess, raw: bytes) -> None:
    with Connection(shared.port) as connection:
        _provoke(connection, raw)


@FUZZ
@given(
    kind=st.sampled_from([CAPSULE, H2C_DATA, H2C_TERM]),
    flags=st.integers(0, 15),
    pdo=st.sampled_from([0, 24, 72, 76, 255]),
    plen=st.sampled_from([0, 24, 72, 72 + 512, 72 + 8192, 0xFFFFFFFF]),
    body=st.binary(max_size=700),
)
def test_any_pdu_on_a_live_queue(
    shared: TargetProcess, kind: int, flags: int, pdo: int, plen: int, body: bytes
) -> None:
    hlen = {CAPSULE: 72, H2C_DATA: 24, H2C_TERM: 24}[kind]
    with Host(shared.port, NQN, HOST) as host:
        _provoke(host.io[0], head(kind, hlen, plen, flags=flags, pdo=pdo) + body)


@FUZZ
@given(entry=st.binary(min_size=64, max_size=64), admin=st.booleans(), digests=st.booleans())
def test_any_submission_entry(shared: TargetProcess, entry: bytes, admin: bool, digests: bool) -> None:
    options = Options(header_digest=digests, data_digest=digests)
    with Host(shared.port, NQN, HOST, options) as host:
        queue = host.admin if admin else host.io[0]
        _provoke(queue, queue.pdu(CAPSULE, entry))


def test_the_target_is_as_before(shared: TargetProcess) -> None:
    """After everything above: it serves, and nobody's remains are kept."""
    with Host(shared.port, NQN, HOST) as host:
        assert host.io[0].command(READ, nsid=1, cdw=span(0, 512), want=512).status == 0
    assert shared.process is not None
    resident = int(Path(f"/proc/{shared.process.pid}/statm").read_text().split()[1]) * 4096
    assert resident < 120 << 20, f"{resident >> 20} MiB resident"
