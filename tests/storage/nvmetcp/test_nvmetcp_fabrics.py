"""Who may connect, what a controller says of itself, and how an association ends."""

from __future__ import annotations

import socket
import struct
import time
import uuid
from pathlib import Path

import pytest
from initiator import (
    ABORT,
    AER,
    CAPSULE,
    DISCOVERY,
    DNR,
    FABRICS,
    IDENTIFY,
    KEEP_ALIVE,
    READ,
    Closed,
    Connection,
    Host,
    Options,
    span,
    sqe,
)
from target_process import HOST, NQN, UUID, TargetProcess, file_backend, free_port, namespace, until

CAP, VS, CC, CSTS = 0x00, 0x08, 0x14, 0x1C
INVALID_FIELD, SEQUENCE = 0x02 | DNR, 0x0C | DNR
IN_DATA = 1 << 16


def text(field: bytes) -> str:
    return field.rstrip(b"\0 ").decode()


# Connect ---------------------------------------------------------------------------------------------------


def test_only_the_named_host_connects(standing: TargetProcess) -> None:
    with Connection(standing.port, Options()) as connection:
        stranger = connection.connect(NQN, "nqn.2024-01.org.nicagent:stranger")
        assert stranger.status == 0x184 | DNR, "Connect Invalid Host; asking again cannot help"
        assert connection.connect(NQN, HOST).status == 0, "the connection may still be used rightly"


WRONG_CONNECTS = {
    "unknown subsystem": ({"subnqn": NQN + "x"}, 0x182, 256 | IN_DATA),
    "an admin queue with a controller id": ({"cntlid": 7}, 0x182 | DNR, 16 | IN_DATA),
    "unknown record format": ({"record_format": 1}, 0x180 | DNR, 0),
    "a queue of one entry": ({"entries": 1}, 0x182 | DNR, 44),
    "a queue deeper than MQES": ({"entries": 129}, 0x182 | DNR, 44),
    "an I/O queue of no controller": ({"qid": 1, "cntlid": 0x123}, 0x182, 16 | IN_DATA),
    "no subsystem NQN": ({"subnqn": ""}, 0x182 | DNR, 256 | IN_DATA),
    "no host NQN": ({"hostnqn": ""}, 0x182 | DNR, 512 | IN_DATA),
    "an NQN without end": ({"hostnqn": "x" * 256}, 0x182 | DNR, 512 | IN_DATA),
}


@pytest.mark.parametrize("name", WRONG_CONNECTS)
def test_a_wrong_connect_names_its_parameter(standing: TargetProcess, name: str) -> None:
    change, status, parameter = WRONG_CONNECTS[name]
    with Connection(standing.port, Options()) as connection:
        done = connection.connect(**{"subnqn": NQN, "hostnqn": HOST, **change})  # type: ignore[arg-type]
    assert (done.status, done.result) == (status, parameter), f"{done.status:#x} {done.result:#x}"


def test_an_io_queue_belongs_to_its_own_host(target: TargetProcess) -> None:
    target.hosts.append(HOST + "0")
    target.reload()
    with Host(target.port, NQN, HOST, queues=1) as host, Connection(target.port, Options()) as other:
        stolen = other.connect(NQN, HOST + "0", qid=2, cntlid=host.cntlid)
        assert stolen.status == 0x182, "another host's controller"
        wrong_id = other.connect(NQN, HOST, qid=2, cntlid=host.cntlid, hostid=b"x" * 16)
        assert wrong_id.status == 0x182, "another host identifier"
        twice = other.connect(NQN, HOST, qid=1, cntlid=host.cntlid)
        assert (twice.status, twice.result) == (0x182 | DNR, 42), "queue 1 is connected already"
        assert other.connect(NQN, HOST, qid=17, cntlid=host.cntlid).status == 0x182 | DNR, "over the limit"
        assert other.connect(NQN, HOST, qid=2, cntlid=host.cntlid).status == 0


def test_nothing_before_connect_and_no_io_before_enable(standing: TargetProcess) -> None:
    with Connection(standing.port, Options()) as connection:
        assert connection.command(IDENTIFY, cdw=(1,), want=4096).status == SEQUENCE
        assert connection.fabrics(4, (0, CSTS)).status == SEQUENCE
        done = connection.connect(NQN, HOST)
        assert done.status == 0 and done.result >> 16 == 0, "no authentication is asked for"
        assert connection.command(IDENTIFY, cdw=(1,), want=4096).status == SEQUENCE, "CC.EN is 0"
        with Connection(standing.port, Options()) as io:
            assert io.connect(NQN, HOST, qid=1, cntlid=done.result).status == SEQUENCE
        assert connection.connect(NQN, HOST).status == SEQUENCE, "a queue connects once"


def test_a_silent_connection_is_dropped(standing: TargetProcess) -> None:
    with Connection(standing.port, Options()) as idle, Connection(standing.port) as mute:
        began = time.monotonic()
        for connection in (idle, mute):
            with pytest.raises(Closed):
                connection.receive()
        assert 8 < time.monotonic() - began < 15
    assert until("forgotten", lambda: standing.status()["connections"] == 0)


def test_unconnected_connections_are_limited(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST) as host:
        crowd = [socket.create_connection(("127.0.0.1", standing.port)) for _ in range(80)]
        until("limited", lambda: standing.status()["connections"] <= 66)
        assert host.read(0, 512).status == 0, "who is connected goes on"
        for one in crowd:
            one.close()
    until("forgotten", lambda: standing.status()["connections"] == 0)
    with Host(standing.port, NQN, HOST) as host:
        assert host.read(0, 512).status == 0


# Properties ------------------------------------------------------------------------------------------------


def test_properties(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST, queues=1) as host:
        cap = host.property(CAP, wide=True)
        assert cap & 0xFFFF == 127 and cap >> 16 & 1 and cap >> 37 & 1, (
            "128 entries, contiguous, NVM commands"
        )
        assert host.property(VS) == 0x10400
        assert host.property(CC) == 0x460001
        for words in ((0, CAP), (1, VS), (0, 0x20), (0, 0x1000)):
            assert host.admin.fabrics(4, words).status == INVALID_FIELD, f"Property Get {words}"
        assert host.set_property(CSTS, 0).status == INVALID_FIELD
        assert host.admin.fabrics(0x55).status == INVALID_FIELD, "unknown fabrics command"
        assert host.io[0].fabrics(4, (0, CSTS)).status == INVALID_FIELD, "properties are for the admin queue"
        assert host.set_property(CC, 0x464001).status == 0, "normal shutdown"
        assert host.property(CSTS) & 0xC == 0x8, "shutdown processing complete"
        assert host.set_property(CC, 0x460000).status == 0
        assert host.property(CSTS) & 1 == 0, "not ready after a reset"
        with pytest.raises(Closed):
            host.io[0].receive()
        host.enable()
        assert host.open_queue(1).command(READ, nsid=1, cdw=span(0, 512), want=512).status == 0


def test_a_page_size_we_have_not_is_fatal(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST, queues=0) as host:
        host.set_property(CC, 0x460000)
        host.set_property(CC, 0x460001 | 1 << 7)
        assert host.property(CSTS) == 2, "CSTS.CFS"


def test_disconnect_ends_one_queue(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST, queues=2) as host:
        assert host.admin.fabrics(8).status == 0x185 | DNR, "Invalid Queue Type"
        assert host.io[0].fabrics(8).status == 0
        with pytest.raises(Closed):
            host.io[0].receive()
        assert host.read(0, 512, queue=1).status == 0
        host.io[0] = host.open_queue(1)
        assert host.read(0, 512).status == 0


def test_the_admin_queue_takes_its_controller_along(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST, queues=2) as host:
        host.admin.close()
        for queue in host.io:
            with pytest.raises(Closed):
                queue.receive()
    assert until("ended", lambda: not standing.status()["controllers"])


# Keep alive ------------------------------------------------------------------------------------------------


def test_a_host_that_falls_silent_is_dropped(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST, Options(kato=500)) as host:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            assert host.admin.command(KEEP_ALIVE).status == 0
            time.sleep(0.2)
        began = time.monotonic()
        with pytest.raises(Closed):
            host.io[0].receive()
        assert 0.5 < time.monotonic() - began < 5
        with pytest.raises(Closed):
            host.admin.receive()
    assert standing.status()["controllers"] == []


def test_io_keeps_alive_too_and_zero_is_for_ever(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST, Options(kato=500)) as host:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            assert host.read(0, 512).status == 0
            time.sleep(0.2)
        assert host.feature(0x0F).result == 500
        assert host.feature(0x0F, 0).status == 0
        time.sleep(1.7)
        assert host.read(0, 512).status == 0, "KATO 0 switches the timer off"
        assert host.admin.command(KEEP_ALIVE).status == INVALID_FIELD, "which Keep Alive then contradicts"


# Admin -----------------------------------------------------------------------------------------------------


def test_identify(standing: TargetProcess, standing_disk: Path) -> None:
    with Host(standing.port, NQN, HOST) as host:
        page = host.identify(1).data
        assert (text(page[4:24]), text(page[24:64]), text(page[768:1024])) == ("NA0001", "nicagent", NQN)
        assert struct.unpack_from("<H", page, 78)[0] == host.cntlid
        assert page[77] == 8 and page[111] == 1 and page[512:514] == b"\x66\x44"
        assert struct.unpack_from("<II", page, 1792) == (4096 + 4, 1), "IOCCSZ, IORCSZ in units of 16 bytes"
        blocks, capacity, used = struct.unpack_from("<QQQ", host.identify(0, 1).data)
        assert blocks == capacity == used == standing_disk.stat().st_size // 512
        assert host.identify(0, 1).data[104:128].hex() == f"{1:032x}{1:016x}", (
            "NGUID and EUI-64 as configured"
        )
        assert host.identify(0, 2).data == bytes(4096), "an inactive namespace is all zeroes"
        assert host.identify(0, 0).status == host.identify(0, 0xFFFFFFFF).status == 0x0B | DNR
        assert host.identify(2, 0).data == struct.pack("<I", 1).ljust(4096, b"\0")
        assert host.identify(2, 1).data == bytes(4096)
        listed = host.identify(3, 1).data
        assert listed[:4] == b"\x01\x08\0\0" and listed[12:16] == b"\x02\x10\0\0"
        assert listed[32:36] == b"\x03\x10\0\0" and listed[36:52] == uuid.UUID(UUID.format(1)).bytes
        assert host.identify(3, 2).status == 0x0B | DNR
        assert host.identify(6).data == bytes(4096) and host.identify(5, 1).data == bytes(4096)
        for cns, csi in ((8, 0), (5, 2), (6, 1), (0x10, 0), (0x1C, 0), (0xFF, 0)):
            assert host.identify(cns, 1, csi=csi).status == INVALID_FIELD, f"CNS {cns:#x}"
        assert host.admin.command(IDENTIFY, cdw=(1,), want=512).status == 0x0F | DNR


def test_log_pages(target: TargetProcess) -> None:
    with Host(target.port, NQN, HOST) as host:
        assert host.log(1, 64).data == bytes(64), "no errors"
        host.read(0, 1 << 20)
        smart = host.log(2, 512).data
        assert struct.unpack_from("<Q", smart, 32)[0] == 3, "1 MiB in thousands of 512 bytes, rounded up"
        assert host.log(3, 512).data[0] == 1
        commands = host.log(5, 4096).data
        assert commands[1024 + 4] and commands[1024 + 8] and not commands[1024 + 20], (
            "Write, Read, no Compare"
        )
        assert host.log(2, 256, offset=256).data == smart[256:]
        assert host.log(2, 512, offset=1024).status == INVALID_FIELD
        for page in (0x0C, 0x70, 0xC0):
            assert host.log(page, 512).status == 0x109 | DNR, f"log page {page:#x}"


def test_features(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST, queues=0) as host:
        assert host.feature(0x07, 3 << 16 | 7).result == 3 << 16 | 3, "the smaller of what was asked"
        assert host.feature(0x07, 0xFFFEFFFE).result == 15 << 16 | 15, "never more than we have"
        assert host.feature(0x07).result == 15 << 16 | 15
        assert host.feature(0x07, 0xFFFFFFFF).status == INVALID_FIELD
        assert host.feature(0x06).result == 1, "a volatile write cache, on"
        assert host.feature(0x06, 0).status == 0x10E | DNR
        assert host.feature(0x0B, 1 << 8).status == 0 and host.feature(0x0B).result == 1 << 8
        assert host.feature(0x0B, 1 << 11).status == INVALID_FIELD, "an event we never send"
        assert host.feature(0x55).status == host.feature(0x55, 1).status == INVALID_FIELD
        assert host.admin.command(0x0A, cdw=(0x81, 1), want=16).data == b"H" * 16
        assert host.feature(0x81, 1).status == SEQUENCE
        with host.open_queue(1):
            assert host.feature(0x07, 0).status == SEQUENCE, "too late once an I/O queue is there"


def test_abort_and_the_limit_of_event_requests(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST) as host:
        waiting = [host.admin.submit(AER) for _ in range(4)]
        assert host.admin.command(AER).status == 0x105 | DNR
        aborted = host.admin.command(ABORT, cdw=(waiting[0] << 16,))
        assert (aborted.status, aborted.result) == (0, 1), "not aborted"
        assert host.identify(1).status == 0
        assert host.admin.command(0x0D, cdw=(0,)).status == 0x01 | DNR, "Namespace Management is not ours"


# Discovery -------------------------------------------------------------------------------------------------


def _entries(log: bytes) -> list[tuple[int, int, int, str, str, str]]:
    _, count, _ = struct.unpack_from("<QQH", log)
    records = [log[1024 * number : 1024 * number + 1024] for number in range(1, count + 1)]
    return [(*one[:3], text(one[32:64]), text(one[256:512]), text(one[512:768])) for one in records]


def test_discovery_shows_a_host_its_own(standing: TargetProcess) -> None:
    with Host(standing.port, DISCOVERY, HOST, queues=0) as host:
        controller = host.identify(1).data
        assert controller[111] == 2 and text(controller[768:1024]) == DISCOVERY
        log = host.log(0x70, 4096).data
        assert _entries(log) == [(3, 1, 2, str(standing.port), NQN, "127.0.0.1")]
        assert log[:1024] == host.log(0x70, 1024).data, "the header alone"
        assert host.log(2, 512).status == 0x109 | DNR
        assert host.identify(0, 1).status == INVALID_FIELD
        with Connection(standing.port, Options()) as queue:
            assert queue.connect(DISCOVERY, HOST, qid=1, cntlid=host.cntlid).status & 0xFFF == 0x182
    with Host(standing.port, DISCOVERY, "nqn.2024-01.org.nicagent:stranger", queues=0) as host:
        assert _entries(host.log(0x70, 1024).data) == [], "a stranger sees nothing"


def test_a_discovery_listener_serves_discovery_only(tmp_path: Path, disk: Path) -> None:
    running = TargetProcess(tmp_path, [namespace(1, file_backend(disk))], discovery_port=free_port()).start()
    with Host(running.discovery_port, DISCOVERY, HOST, queues=0) as host:
        assert _entries(host.log(0x70, 2048).data) == [(3, 1, 2, str(running.port), NQN, "127.0.0.1")]
    with Connection(running.discovery_port, Options()) as connection:
        assert connection.connect(NQN, HOST).status == 0x182
    assert running.stop() == 0


def test_discovery_tells_of_a_changed_log(target: TargetProcess) -> None:
    with Host(target.port, DISCOVERY, HOST, queues=0) as host:
        before = struct.unpack_from("<Q", host.log(0x70, 1024).data)[0]
        assert host.feature(0x0B, 1 << 31).status == 0
        waiting = host.admin.submit(AER)
        target.hosts = [HOST, HOST + "0"]
        target.reload()
        assert host.admin.complete(waiting).result == 0x70F002
        assert struct.unpack_from("<Q", host.log(0x70, 1024).data)[0] == before + 1


def test_unknown_admin_commands_and_wrong_descriptors(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST) as host:
        for flags, sgl, status in (
            (0x00, 0x5A, INVALID_FIELD),
            (0x41, 0x5A, INVALID_FIELD),
            (0x40, 0x10, 0x11 | DNR),
        ):
            entry = sqe(IDENTIFY, 99, length=4096, sgl=sgl, cdw=(1,), flags=flags)
            host.admin.send(host.admin.pdu(CAPSULE, entry))
            assert host.admin.complete(99).status == status
        entry = sqe(FABRICS, 98, nsid=1, length=1024, sgl=0x01, address=64)
        host.admin.send(host.admin.pdu(CAPSULE, entry, bytes(1024)))
        assert host.admin.complete(98).status == 0x16 | DNR, "SGL offset invalid"
