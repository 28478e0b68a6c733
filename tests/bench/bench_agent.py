"""The agent itself: seconds from exec to ready, and memory with sixteen idle hosts, beside libvirtd's."""

from __future__ import annotations

import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.harness import answers
from tests.hypervisor_shim import libvirtd as peer

HOSTS = 16
SETTLE_SECONDS = 3.0  # after ready, until the memory is read: workers are up, start-up garbage is gone


def rows(runs: int) -> list[dict[str, object]]:
    """Rows of the bench: ready (seconds) and resident memory (MB)."""
    ready, memory = [], []
    for _ in range(runs):
        seconds, megabytes = _agent()
        ready.append(seconds)
        memory.append(megabytes)
    peer_ready, peer_memory = [], []
    for _ in range(runs):
        seconds, megabytes = _libvirtd()
        peer_ready.append(seconds)
        peer_memory.append(megabytes)
    return [
        _row("agent: exec to ready, 16 hosts", ready, peer_ready, "s"),
        _row("agent: RSS idle, 16 hosts", memory, peer_memory, "MB"),
    ]


def _row(name: str, ours: list[float], peer: list[float], unit: str) -> dict[str, object]:
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return {
        "name": name,
        "ours": round(mine, 3),
        "peer": round(theirs, 3),
        "peer_name": "libvirtd, no hosts, test driver",
        "ratio": round(mine / theirs, 2),
        "unit": unit,
        "higher_is_better": False,
    }


def _agent() -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="nicagent-bench-") as directory:
        home = Path(directory)
        config = home / "nicagent.toml"
        text = f'[agent]\nstate_dir = "{home}/state"\nrun_dir = "{home}/run"\n'
        for number in range(HOSTS):
            # No chassis behind them: the drivers keep looking for their lines, as they do beside dead boards.
            text += f"""
[hosts.h{number}.power]
driver = "gpio"
pins = "socket:{home}/h{number}.lines"
[hosts.h{number}.storage]
transport = "virtio"
slot = "{home}/slot{number}"
[hosts.h{number}.console]
path = "{home}/h{number}.console"
"""
        config.write_text(text)
        sock = home / "run/libvirt-sock"
        began = time.monotonic()
        with (home / "log").open("ab") as log:
            argv = [sys.executable, "-m", "nicagent.cli", "serve", "-c", str(config)]
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while not answers(sock):
                if process.poll() is not None or time.monotonic() - began > 30:
                    raise RuntimeError(f"the agent did not come up: {(home / 'log').read_text()[-500:]}")
                time.sleep(0.002)
            return time.monotonic() - began, _resident(sock)
        finally:
            process.terminate()
            process.wait(20)


def _libvirtd() -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="nb-") as directory:
        began = time.monotonic()
        with peer.libvirtd(Path(directory)) as daemon:
            return time.monotonic() - began, _resident(daemon.path)


def _resident(sock: Path) -> float:
    """Megabytes of the process that serves a unix socket, once it has come to rest."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(sock))
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    time.sleep(SETTLE_SECONDS)
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return kilobytes * 1024 / 1e6
