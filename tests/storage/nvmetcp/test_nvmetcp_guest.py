"""Linux' own NVMe/TCP initiator, in a guest with Debian's kernel, against the target as it is shipped."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest
from target_process import HOST, NQN, UUID, TargetProcess, file_backend, namespace, until

from boot.initramfs import build
from images.guest_kernel import guest_kernel

HERE = Path(__file__).parent
MIB = 1 << 20
PATTERN = 16  # MiB
STEP_TIMEOUT = 60.0  # seconds for any line of the guest


class Guest:
    """QEMU under TCG with slirp: the machine's loopback is 10.0.2.2 inside."""

    def __init__(self, home: Path, port: int) -> None:
        kernel = guest_kernel()
        helper, image = home / "discover", home / "initramfs"
        subprocess.run(["cc", "-O1", "-static", "-o", helper, HERE / "discover.c"], check=True)
        modules = ["virtio_pci", "virtio_net", "nvme_tcp"]
        build(
            image,
            kernel.root,
            HERE / "guest_init.sh",
            modules,
            files={"bin/discover": helper},
            optional_modules=["crc32c_intel"],
        )
        words = f"t_port={port} t_nqn={NQN} t_host={HOST} t_mib={PATTERN}"
        argv = ["qemu-system-x86_64", "-accel", "tcg", "-smp", "2", "-m", "384", "-nodefaults", "-no-reboot"]
        argv += [
            "-display",
            "none",
            "-serial",
            "stdio",
            "-kernel",
            str(kernel.vmlinuz),
            "-initrd",
            str(image),
        ]
        argv += ["-append", f"console=ttyS0 quiet panic=-1 {words}"]
        argv += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.transcript: list[str] = []
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").strip()
            self.transcript.append(line)
            if "GUEST " in line:
                self._lines.put(line.partition("GUEST ")[2])

    def line(self, prefix: str) -> str:
        """The rest of the next line, which must start with `prefix`."""
        try:
            line = self._lines.get(timeout=STEP_TIMEOUT)
        except Empty:
            raise AssertionError(f"the guest says nothing; so far: {self.transcript[-30:]}") from None
        assert line.startswith(prefix), f"expected {prefix!r}: {line!r}; {self.transcript[-30:]}"
        return line[len(prefix) :].strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)


@pytest.fixture
def guest(tmp_path: Path, target: TargetProcess) -> Iterator[Guest]:
    running = Guest(tmp_path, target.port)
    yield running
    running.close()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return path


@pytest.mark.guest
def test_linux_uses_the_disk_across_a_sigkill_of_the_target(
    guest: Guest, target: TargetProcess, disk: Path, tmp_path: Path
) -> None:
    assert guest.line("DISCOVERED") == f"{NQN} 127.0.0.1 {target.port}"
    guest.line("stranger refused")
    guest.line("unknown refused")
    assert guest.line("queues") == "3", "an admin queue and two I/O queues"
    identity = guest.line("identity")
    nguid = "00000000-0000-0000-0000-000000000001"
    eui = "00 00 00 00 00 00 00 01"
    assert identity == f"uuid.{UUID.format(1)}|{UUID.format(1)}|{nguid}|{eui}|{64 * MIB // 512}|"
    pattern = guest.line("pattern")
    guest.line("writing")
    until("the guest writes", lambda: _written(target) > MIB)
    target.kill()  # in the middle of it
    target.start()
    guest.line("half")
    (controller,) = target.status()["controllers"]
    assert controller["header_digest"] and controller["data_digest"]
    target.kill()  # while it rests
    guest.go_on()
    time.sleep(2.5)  # longer than its keep alive time-out
    target.start()
    assert guest.line("digested") == pattern
    assert guest.line("again") == identity, "the same disk after two restarts"
    assert hashlib.md5(disk.read_bytes()[: PATTERN * MIB]).hexdigest() == pattern
    assert guest.line("plain") == pattern
    assert guest.line("discarded") == hashlib.md5(bytes(MIB)).hexdigest()
    guest.line("attach")
    second = tmp_path / "second.raw"
    second.write_bytes(os.urandom(MIB))
    target.namespaces.append(namespace(2, file_backend(second)))
    assert target.reload()["ok"]
    assert guest.line("attached") == UUID.format(2), "the guest heard of its new disk"
    guest.line("done")
    assert guest.process.wait(STEP_TIMEOUT) == 0


def _written(target: TargetProcess) -> int:
    return int(target.status()["subsystems"][0]["namespaces"][0]["write_bytes"])
