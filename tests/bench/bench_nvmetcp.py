"""The user-space NVMe/TCP target beside tgtd: reads over loopback from the same file, in the same run.

Each round measures ours and tgtd one after the other; the figures are medians over the rounds. tgtd is driven
by libiscsi's iscsi-perf, ours by nvmetcp_perf.c, both single-threaded C. The last rows put an NBD export of
qemu-storage-daemon (qcow2) behind our target, against tgtd on the raw file.

python -m tests.bench.bench_nvmetcp     prints the rows
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.figures import Row, row

SIZE = 256 << 20  # bytes of the disk: fits the page cache
SECONDS = 2  # of one measurement
NQN, HOST = "nqn.2024-01.org.nicagent:bench", "nqn.2024-01.org.nicagent:bench-host"
LUN = "iscsi://127.0.0.1:{port}/iqn.2024-01.org.nicagent:bench/1"
START_TIMEOUT = 20.0
NOTE = "client: nvmetcp_perf.c compiled with cc for ours, iscsi-perf for tgtd; page-cached file, loopback"

# name, queue depth, bytes of a read, order
CASES = (
    ("nvmetcp 4 KiB random read QD1", 1, 4096, "random"),
    ("nvmetcp 4 KiB random read QD32", 32, 4096, "random"),
    ("nvmetcp 128 KiB sequential read QD8", 8, 131072, "sequential"),
)


def free_port() -> int:
    """A TCP port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], bool], what: str) -> None:
    """Polls with a deadline."""
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} is not ready after {START_TIMEOUT:g} s")
        time.sleep(0.05)


@contextlib.contextmanager
def process(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone at the end."""
    with log.open("wb") as sink:
        child = subprocess.Popen(argv, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(3)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def our_target(home: Path, backend: dict[str, Any]) -> Iterator[int]:
    """Our target over `backend`; yields its port."""
    port, control = free_port(), home / "ctl.sock"
    namespace = {"nsid": 1, "uuid": "5b2f0b4e-7d5c-4a57-9f63-3c1b0f6d8e11", "backend": backend}
    config = {
        "listen": [{"host": "127.0.0.1", "port": port}],
        "control": str(control),
        "subsystems": [{"nqn": NQN, "serial": "BENCH", "hosts": [HOST], "namespaces": [namespace]}],
    }
    file = home / "target.json"
    file.write_text(json.dumps(config))
    with process(
        [sys.executable, "-m", "nicagent.storage.nvmetcp", "--config", str(file)], home / "target.log"
    ):
        wait_until(control.exists, "our target")
        yield port


@contextlib.contextmanager
def tgtd(home: Path, disk: Path) -> Iterator[int]:
    """tgtd over a raw file; yields its port. It ignores SIGTERM: targets are deleted, then it is killed."""
    port, number = free_port(), str(20000 + os.getpid() % 10000)
    lock = Path("/run/tgtd") / f"socket.{number}"

    def admin(*words: str) -> bool:
        done = subprocess.run(
            ["tgtadm", "-C", number, "--lld", "iscsi", *words], capture_output=True, check=False
        )
        return done.returncode == 0

    argv = ["tgtd", "-f", "-C", number, "--iscsi", f"portal=127.0.0.1:{port}"]
    with (home / "tgtd.log").open("wb") as sink:
        child = subprocess.Popen(argv, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: admin("--op", "show", "--mode", "target"), "tgtd")
        target = ("--mode", "target", "--tid", "1")
        unit = ("--mode", "logicalunit", "--tid", "1", "--lun", "1")
        assert admin("--op", "new", *target, "-T", "iqn.2024-01.org.nicagent:bench"), "tgtadm: new target"
        assert admin("--op", "new", *unit, "-b", str(disk)), "tgtadm: new logical unit"
        assert admin("--op", "bind", *target, "-I", "ALL"), "tgtadm: bind"
        yield port
    finally:
        admin("--op", "delete", "--force", "--mode", "target", "--tid", "1")
        child.send_signal(signal.SIGKILL)
        child.wait()
        for left in (lock, lock.with_name(lock.name + ".lock")):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_daemon(home: Path, disk: Path) -> Iterator[dict[str, Any]]:
    """qemu-storage-daemon with a qcow2 copy of `disk` as an NBD export; yields the `backend` for it."""
    image, path = home / "disk.qcow2", home / "nbd.sock"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, image], check=True)
    argv = [
        "qemu-storage-daemon",
        *("--blockdev", f"driver=file,node-name=file,filename={image}"),
        *("--blockdev", "driver=qcow2,node-name=disk,file=file"),
        *("--nbd-server", f"addr.type=unix,addr.path={path}"),
        *("--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on"),
    ]
    with process(argv, home / "qsd.log"):
        wait_until(path.exists, "qemu-storage-daemon")
        yield {"type": "nbd", "path": str(path), "export": "disk"}


def measure_ours(perf: Path, port: int, depth: int, size: int, order: str) -> tuple[float, float]:
    """Operations and 10^6 bytes a second."""
    argv = [perf, "127.0.0.1", port, NQN, HOST, depth, size, SECONDS, order]
    out = subprocess.run([str(word) for word in argv], capture_output=True, check=True, text=True).stdout
    operations, megabytes = out.split()
    return float(operations), float(megabytes)


def measure_tgtd(port: int, depth: int, size: int, order: str) -> tuple[float, float]:
    """The average iscsi-perf prints at its end."""
    argv = ["iscsi-perf", "-m", str(depth), "-b", str(size // 512), "-t", str(SECONDS)]
    argv += ["-r"] if order == "random" else []
    out = subprocess.run([*argv, LUN.format(port=port)], capture_output=True, check=True, text=True).stdout
    found = re.findall(r"iops average (\d+) \((\d+) MB/s\)", out)
    if not found:
        raise RuntimeError(f"iscsi-perf printed no average: {out[-200:]!r}")
    operations = float(found[-1][0])
    return operations, operations * size / 1e6


# One request at a time is bound by how long the kernel takes to wake either side, which wanders by a factor
# of two within a minute: the two take turns more often, so that both medians are of the same minutes.
LONE_TURNS = 4


def rows(runs: int) -> list[Row]:
    """The table's rows; `runs` rounds each."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-nvmetcp-")))
        perf, disk = home / "nvmetcp_perf", home / "disk.raw"
        source = Path(__file__).with_name("nvmetcp_perf.c")
        subprocess.run([shutil.which("cc") or "cc", "-O2", "-o", perf, source], check=True)
        with disk.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
        (home / "file").mkdir()
        (home / "nbd").mkdir()
        ours = stack.enter_context(our_target(home / "file", {"type": "file", "path": str(disk)}))
        peer = stack.enter_context(tgtd(home, disk))
        engine = stack.enter_context(storage_daemon(home, disk))
        through = stack.enter_context(our_target(home / "nbd", engine))
        found: dict[str, tuple[list[float], list[float], str]] = {}
        for name, depth, size, order in CASES:
            for _ in range(runs * (LONE_TURNS if depth == 1 else 1)):
                unit, column = ("IOPS", 0) if order == "random" else ("MB/s", 1)
                theirs = measure_tgtd(peer, depth, size, order)[column]
                for label, port in (("", ours), (" (qcow2 through qemu-storage-daemon)", through)):
                    mine, his, _ = found.setdefault(name + label, ([], [], unit))
                    mine.append(measure_ours(perf, port, depth, size, order)[column])
                    his.append(theirs)
    return [
        Row(**row(name, mine, theirs, unit, peer_name="tgtd", more=True), note=NOTE)
        for name, (mine, theirs, unit) in sorted(found.items(), key=lambda item: "(" in item[0])
    ]


if __name__ == "__main__":
    for each in rows(3):
        print(f"{each['name']:70} {each['ours']:10.0f} {each['peer']:10.0f} {each['unit']} {each['ratio']}×")
