"""The example of docs/shim.md, run as printed and driven by stock virsh."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def uri() -> Iterator[str]:
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/shim.md").read_text(), re.DOTALL)
    with tempfile.TemporaryDirectory(prefix="sockets-") as name:
        path = Path(name, "sockets.py")
        path.write_text(program)
        socket = Path(name, "sock")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        # Who runs the tests in the background may have a shell that has SIGINT ignored.
        argv = ["env", "--default-signal=INT", sys.executable, str(path), str(socket)]
        with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                assert server.stdout.readline() == f"listening at {socket}\n", "the example did not start"
                yield f"nic+unix:///system?socket={socket}"
            finally:
                server.send_signal(signal.SIGINT)
        assert not socket.exists(), "an interrupted server leaves its socket behind"


def _virsh(uri: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["virsh", "-q", "-c", uri, *words],
        capture_output=True,
        text=True,
        timeout=20,
        stdin=subprocess.DEVNULL,
    )


def test_the_example_is_driven_by_virsh(uri: str) -> None:
    names = _virsh(uri, "list", "--all", "--name").stdout.split()
    assert names == [f"socket-{number}" for number in range(1, 9)], "virsh does not list the sockets"
    assert _virsh(uri, "start", "socket-3").returncode == 0, "a socket cannot be switched on"
    assert _virsh(uri, "domstate", "socket-3").stdout.strip() == "running"
    again = _virsh(uri, "start", "socket-3")
    assert "Domain is already active" in again.stderr or "already running" in again.stderr, again.stderr
    assert _virsh(uri, "destroy", "socket-3").returncode == 0, "a socket cannot be switched off"
    refused = _virsh(uri, "shutdown", "socket-1")
    assert refused.returncode == 1, "a socket that is off cannot be shut down"


def test_what_the_example_does_not_do_is_refused_in_words(uri: str) -> None:
    _virsh(uri, "start", "socket-1")
    assert "nobody to ask" in _virsh(uri, "shutdown", "socket-1").stderr
    assert "not supported" in _virsh(uri, "net-list").stderr, "a family that is not there is refused"
