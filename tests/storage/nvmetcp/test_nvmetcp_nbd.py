"""A qcow2 disk behind qemu-storage-daemon: the same promises, also while that daemon dies and comes back."""

from __future__ import annotations

import random
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from initiator import FLUSH, READ, WRITE, Connection, Host, Options, span
from target_process import HOST, NQN, TargetProcess, namespace, until

KIB, MIB = 1 << 10, 1 << 20
SIZE = 16 * MIB
BOTH = Options(header_digest=True, data_digest=True)


@dataclass
class StorageDaemon:
    """qemu-storage-daemon with one qcow2 image as an NBD export."""

    home: Path
    read_only: bool = False
    process: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        return self.home / "nbd.sock"

    @property
    def image(self) -> Path:
        return self.home / "disk.qcow2"

    def start(self) -> StorageDaemon:
        if not self.image.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.image, str(SIZE)], check=True)
        self.path.unlink(missing_ok=True)
        argv = [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=file,filename={self.image},discard=unmap"),
            *("--blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap"),
            *("--nbd-server", f"addr.type=unix,addr.path={self.path},max-connections=8"),
            "--export",
            f"type=nbd,id=disk,node-name=disk,name=disk,writable={'off' if self.read_only else 'on'}",
        ]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        until("qemu-storage-daemon listens", self.path.exists)
        return self

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def content(self) -> bytes:
        """What the image holds, read by other means."""
        raw = self.home / "content.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", self.image, raw], check=True)
        return raw.read_bytes()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StorageDaemon]:
    running = StorageDaemon(tmp_path).start()
    yield running
    running.kill()


def _target(home: Path, daemon: StorageDaemon, **more: object) -> TargetProcess:
    backend = {"type": "nbd", "path": str(daemon.path), "export": "disk", **more}
    return TargetProcess(home, [namespace(1, backend)])


@pytest.fixture
def target(tmp_path: Path, daemon: StorageDaemon) -> Iterator[TargetProcess]:
    running = _target(tmp_path, daemon).start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    log = running.log.read_text()
    assert "internal error" not in log and "Traceback" not in log, log


@pytest.mark.parametrize("options", [Options(), BOTH, Options(in_capsule=0, piece=8 * KIB)])
def test_what_is_written_is_read_and_is_in_the_image(
    target: TargetProcess, daemon: StorageDaemon, options: Options
) -> None:
    model = bytearray(SIZE)
    choice = random.Random(5)
    with Host(target.port, NQN, HOST, options, queues=2) as host:
        assert struct.unpack_from("<Q", host.identify(0, 1).data)[0] == SIZE // 512
        for length in (512, 4 * KIB, 15 * KIB, 17 * KIB, 64 * KIB, 256 * KIB, MIB):
            offset = choice.randrange(0, SIZE - length, 512)
            data = choice.randbytes(length)
            assert host.write(offset, data, fua=length == 4 * KIB).status == 0
            model[offset : offset + length] = data
            assert host.read(offset, length, queue=1).data == data, f"{length} bytes"
        waiting = {}
        for slot in choice.sample(range(SIZE // (64 * KIB)), 100):
            length = choice.choice((512, 4 * KIB, 64 * KIB))
            cid = host.io[1].submit(READ, nsid=1, cdw=span(slot * 64 * KIB, length), want=length)
            waiting[cid] = bytes(model[slot * 64 * KIB : slot * 64 * KIB + length])
        for cid, expected in waiting.items():
            assert host.io[1].complete(cid).data == expected
        assert host.write_zeroes(0, MIB).status == 0
        assert host.write_zeroes(2 * MIB, MIB, unmap=True).status == 0
        model[:MIB] = model[2 * MIB : 3 * MIB] = bytes(MIB)
        assert host.deallocate((8 * MIB, MIB)).status == 0
        model[8 * MIB : 9 * MIB] = host.read(8 * MIB, MIB).data  # whatever it is, it must stay so
        assert host.read(0, MIB).data == model[:MIB]
        assert host.flush().status == 0
    assert target.stop() == 0
    daemon.kill()
    assert daemon.content() == model


def test_requests_wait_for_a_daemon_that_restarts(target: TargetProcess, daemon: StorageDaemon) -> None:
    model = bytearray(SIZE)
    choice = random.Random(6)
    with Host(target.port, NQN, HOST, Options(in_capsule=4 * KIB)) as host:
        queue = host.io[0]
        for how in (signal.SIGKILL, signal.SIGTERM):
            daemon.signal(signal.SIGSTOP)  # what is sent now dies with the daemon, unanswered
            first = _writes(host, model, choice)
            time.sleep(0.1)
            daemon.signal(how)
            daemon.signal(signal.SIGCONT)
            assert daemon.process is not None
            daemon.process.wait()
            second = _writes(host, model, choice)  # what is sent now waits
            daemon.start()
            for cid in first + second:
                assert queue.complete(cid).status == 0
            assert queue.command(FLUSH, nsid=1).status == 0
            for at in range(0, SIZE, MIB):
                assert host.read(at, MIB).data == model[at : at + MIB]
    daemon.kill()
    assert daemon.content() == model


def _writes(host: Host, model: bytearray, choice: random.Random) -> list[int]:
    cids = []
    for slot in choice.sample(range(SIZE // (64 * KIB)), 30):
        data = choice.randbytes(choice.choice((4 * KIB, 16 * KIB)))
        offset = slot * 64 * KIB
        # No two in flight may overlap, or their order would be anybody's.
        if any(model[offset : offset + 1]):
            continue
        queue = host.io[0]
        cid = queue.submit(WRITE, nsid=1, cdw=span(offset, len(data)), data=data)
        if len(data) > 4 * KIB:
            while queue.step().kind != 9:  # answer the R2T
                pass
        cids.append(cid)
        model[offset : offset + len(data)] = data
    return cids


def test_the_wait_is_bounded(tmp_path: Path, daemon: StorageDaemon) -> None:
    running = _target(tmp_path, daemon, hold=1.0).start()
    with Host(running.port, NQN, HOST) as host:
        daemon.kill()
        began = time.monotonic()
        assert host.write(0, b"x" * 4096).status == 0x82, "Namespace Not Ready, and the host may retry"
        assert 0.9 < time.monotonic() - began < 5
        daemon.start()
        until("it works again", lambda: host.write(0, b"y" * 4096).status == 0)
    assert running.stop() == 0


def test_a_disk_that_is_taken_away_answers_what_it_held(target: TargetProcess, daemon: StorageDaemon) -> None:
    with Host(target.port, NQN, HOST) as host:
        daemon.kill()
        cids = [
            host.io[0].submit(WRITE, nsid=1, cdw=span(0, 4096), data=b"x" * 4096),
            host.io[0].submit(FLUSH, nsid=1),
        ]
        until("the writes are held", lambda: "went away" in target.log.read_text())
        target.namespaces.clear()
        assert target.reload()["ok"]
        assert {host.io[0].complete(cid).status for cid in cids} == {0x82}, "Namespace Not Ready"
        assert host.read(0, 512).status & 0xFFF == 0x0B


def test_what_a_lost_connection_left_behind_never_lands_on_newer_data(
    target: TargetProcess, daemon: StorageDaemon
) -> None:
    """A host that reconnects writes again, and goes on: its old, unanswered write must not come later."""
    with Host(target.port, NQN, HOST) as host:
        assert host.write(0, b"0" * 4096).status == 0
        daemon.signal(signal.SIGSTOP)
        host.io[0].submit(WRITE, nsid=1, cdw=span(0, 4096), data=b"1" * 4096)
        time.sleep(0.2)
    with Connection(target.port, Options()) as again:
        cid_known = threading.Event()
        found: list[int] = []

        def connect() -> None:
            cid_known.set()
            found.append(again.connect(NQN, HOST).status)

        waiting = threading.Thread(target=connect)
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive(), "Connect waits while an old write may still land"
        daemon.signal(signal.SIGCONT)
        waiting.join(10.0)
        assert found == [0]
    with Host(target.port, NQN, HOST) as host:
        assert host.write(0, b"2" * 4096).status == 0
        assert host.read(0, 4096).data == b"2" * 4096


def test_sigkill_of_the_target_loses_nothing_that_was_flushed(
    target: TargetProcess, daemon: StorageDaemon
) -> None:
    choice = random.Random(8)
    model = bytearray(SIZE)
    identity = set()
    for _ in range(2):
        with Host(target.port, NQN, HOST) as host:
            identity.add(host.identify(3, 1).data + host.identify(0, 1).data)
            for _ in range(20):
                offset, data = choice.randrange(SIZE // (64 * KIB)) * 64 * KIB, choice.randbytes(64 * KIB)
                assert host.write(offset, data).status == 0
                model[offset : offset + 64 * KIB] = data
            assert host.flush().status == 0
            target.kill()
        target.start()
    with Host(target.port, NQN, HOST) as host:
        identity.add(host.identify(3, 1).data + host.identify(0, 1).data)
        for at in range(0, SIZE, MIB):
            assert host.read(at, MIB).data == model[at : at + MIB]
    assert len(identity) == 1


def test_an_export_that_cannot_be_used_is_told_at_once(tmp_path: Path, daemon: StorageDaemon) -> None:
    running = _target(tmp_path, daemon, export="other")
    running.write()
    assert running.spawn().wait(20) == 2
    assert "refuses export 'other'" in running.log.read_text()
    daemon.kill()
    daemon.read_only = True
    daemon.start()
    running = _target(tmp_path, daemon)
    running.write()
    assert running.spawn().wait(20) == 2
    assert "is read-only" in running.log.read_text()


def test_a_server_that_talks_nonsense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            client.sendall(b"SSH-2.0-nonsense\r\n".ljust(64))
            client.recv(1)
            client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        running = TargetProcess(
            tmp_path, [namespace(1, {"type": "nbd", "path": str(path), "export": "disk"})]
        )
        running.write()
        assert running.spawn().wait(20) == 2
        thread.join(5)
    assert "does not speak fixed newstyle NBD" in running.log.read_text()
