"""Sockets that systemd opened: a server in a process of its own gets them as systemd hands them over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hypervisor_shim.activation import handed_over

SERVER = """
import asyncio, os
from hypervisor_shim.activation import handed_over
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.server import Server

async def main():
    server = Server(MemoryDriver())
    for name, found in handed_over(os.environ, os.getpid()).items():
        for sock in found:
            server.adopt(sock, read_only=name.endswith("-ro"))
    await asyncio.Event().wait()

asyncio.run(main())
"""
#: What systemd does between fork and exec: the sockets become 3 and 4, LISTEN_PID the process's own.
START = 'exec 3<&"$1" 4<&"$2"; export LISTEN_PID=$$; shift 2; exec "$@"'


def test_sockets_by_name_serve_stock_clients(directory: Path) -> None:
    sockets = []
    for name in ("rw", "ro"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(directory / name))
        sock.listen(8)
        sockets.append(sock)
    numbers = [sock.fileno() for sock in sockets]
    server = subprocess.Popen(
        ["bash", "-c", START, "bash", *map(str, numbers), sys.executable, "-c", SERVER],
        pass_fds=numbers,
        env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "libvirt:libvirt-ro"},
    )
    try:

        def virsh(name: str, *command: str) -> subprocess.CompletedProcess[str]:
            uri = f"nic+unix:///system?socket={directory / name}"
            return subprocess.run(
                ["virsh", "-q", "-c", uri, *command], capture_output=True, text=True, timeout=20, check=False
            )

        listed = virsh("rw", "list", "--name")  # it waits in the socket's queue until the server is there
        assert listed.stdout.split() == ["test"], listed.stderr
        assert "read only access" in virsh("ro", "destroy", "test").stderr
        assert virsh("rw", "destroy", "test").returncode == 0
    finally:
        server.kill()
        server.wait()
        for sock in sockets:
            sock.close()
    assert (directory / "rw").exists(), "the sockets are systemd's"


@pytest.mark.parametrize("environment", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "2"}, {"LISTEN_FDS": "2"}])
def test_what_is_meant_for_another_process_is_left_alone(environment: dict[str, str]) -> None:
    assert handed_over(environment, 4711) == {}


@pytest.mark.parametrize("count, names", [("-1", ""), ("x", ""), ("2", "one"), ("1", "one:two")])
def test_an_environment_that_contradicts_itself_is_refused(count: str, names: str) -> None:
    with pytest.raises(ValueError):
        handed_over({"LISTEN_PID": "7", "LISTEN_FDS": count, "LISTEN_FDNAMES": names}, 7)
