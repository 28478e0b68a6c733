"""Linux' own NVMe/TCP initiator, in a guest with Debian's kernel, against the target as it is shipped."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import HERE, STEP_TIMEOUT, Guest
from target_process import HOST, NQN, UUID, TargetProcess, file_backend, namespace, until

from images.guest_kernel import guest_kernel

MIB = 1 << 20
PATTERN = 16  # MiB


@pytest.fixture
def guest(tmp_path: Path, target: TargetProcess) -> Iterator[Guest]:
    helper = tmp_path / "discover"
    subprocess.run(["cc", "-O1", "-static", "-o", helper, HERE / "discover.c"], check=True)
    words = f"t_port={target.port} t_nqn={NQN} t_host={HOST} t_mib={PATTERN}"
    running = Guest(tmp_path, guest_kernel(), "guest_init.sh", words, {"bin/discover": helper})
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
