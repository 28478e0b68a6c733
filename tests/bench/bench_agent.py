"""The agent itself: seconds from exec to ready, and memory with sixteen idle hosts, beside libvirtd's."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.bench.figures import Row, row
from tests.bench.processes import agent, resident
from tests.hypervisor_shim import libvirtd as peer

HOSTS = 16
SETTLE_SECONDS = 3.0  # after ready, until the memory is read: workers are up, start-up garbage is gone


def rows(runs: int) -> list[Row]:
    """Rows of the bench: ready (seconds) and resident memory (MB)."""
    ours = [_agent() for _ in range(runs)]
    theirs = [_libvirtd() for _ in range(runs)]
    return [
        row(
            f"agent: {name}, {HOSTS} hosts",
            [each[column] for each in ours],
            [each[column] for each in theirs],
            unit,
            peer_name="libvirtd, no hosts, test driver",
            more=False,
        )
        for column, (name, unit) in enumerate((("exec to ready", "s"), ("RSS idle", "MB")))
    ]


def _agent() -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="nicagent-bench-") as directory:
        home = Path(directory)
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
        began = time.monotonic()
        with agent(home, text) as pid:
            return time.monotonic() - began, _at_rest(pid)


def _libvirtd() -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="nb-") as directory:
        began = time.monotonic()
        with peer.libvirtd(Path(directory)):
            return time.monotonic() - began, _at_rest(int((Path(directory) / "pid").read_text()))


def _at_rest(pid: int) -> float:
    """Megabytes of a process once it has come to rest."""
    time.sleep(SETTLE_SECONDS)
    return resident(pid) * 1024 / 1e6
