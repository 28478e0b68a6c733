"""A crowd of slow-loris clients in a process of its own: each sends a frame, a byte at a time.

`python -m tests.hypervisor_shim.crowd SOCKET COUNT SECONDS opened|unopened` says "ready" once all are
connected, then gives each a byte every SECONDS, until its standard input ends.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypervisor_shim.frame import Program, packet

from .serving import number, optional, text

_OPEN = packet(Program.REMOTE, 1, 1, 0, 1, 0, optional(text("nic:///system")) + number(0))
_FRAME = packet(Program.REMOTE, 1, 11, 0, 2, 0, text("x" * 100_000))  # longer than anybody waits
_REPLY_SIZE = 28


@contextmanager
def crowd(path: Path, count: int, *, opened: bool, every: float = 1.0) -> Iterator[None]:
    argv = [
        sys.executable,
        "-m",
        __name__,
        str(path),
        str(count),
        str(every),
        "opened" if opened else "unopened",
    ]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", "the crowd did not get together"
        yield
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def _connected(path: str, opened: bool) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    if opened:
        sock.connect(path)
        sock.sendall(_OPEN)
        sock.recv(_REPLY_SIZE)
        sock.sendall(_FRAME[:4])
    else:
        sock.setblocking(False)  # the server's queue may be full: then this one is not let in
        with suppress(BlockingIOError):
            sock.connect(path)
    return sock


def main() -> None:
    path, count, every, opened = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "opened"
    socks = [_connected(path, opened) for _ in range(count)]
    print("ready", flush=True)
    began, sent = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        due = int((time.monotonic() - began) / every * count)
        for turn in range(sent, min(due, sent + count)):
            at = (4 if opened else 0) + turn // count
            with suppress(OSError):
                socks[turn % count].send(_FRAME[at : at + 1])
        sent = due


if __name__ == "__main__":
    main()
