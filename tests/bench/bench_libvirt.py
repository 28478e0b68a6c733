"""libvirt calls a second: `domain.info()` through libvirt-python, beside libvirtd's `test:///default`.

Each client is a process of its own on a unix socket; the two servers take turns of well under a
second, so that whatever else the machine does hits both. The medians are over all turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.harness import answers
from tests.hypervisor_shim import libvirtd as peer

SLICE = 1.0  # seconds of calls to one server before it is the other's turn
SLICES = 5  # per run and server
CLIENTS = (1, 8)
_CONFIG = """
[agent]
state_dir = "{directory}/state"
run_dir = "{directory}/run"
[hosts.h0]
memory_mib = 8192
cpus = 2
[hosts.h0.power]
driver = "gpio"
pins = "socket:{directory}/none"
[hosts.h0.storage]
transport = "virtio"
slot = "{directory}/slot"
"""
_DOMAIN = """
<domain type='kvm'><name>test</name><memory unit='GiB'>8</memory><vcpu>2</vcpu>
<os><type>hvm</type></os></domain>
"""
_ME = "tests.bench.bench_libvirt"


def client(uri: str, seconds: float) -> None:
    """Say ready; at every line of standard input call for so long, and print the calls a second."""
    import libvirt

    conn = libvirt.open(uri)
    info = conn.lookupByName("test").info
    print("ready", flush=True)
    for _ in sys.stdin:
        calls, began = 0, time.perf_counter()
        end = began + seconds
        while time.perf_counter() < end:
            for _ in range(10):
                info()
            calls += 10
        print(calls / (time.perf_counter() - began), flush=True)
    conn.close()


@contextlib.contextmanager
def agent(directory: Path) -> Iterator[str]:
    """A real agent with one host that is not there and one domain, `test`; its URI."""
    config = directory / "nicagent.toml"
    config.write_text(_CONFIG.format(directory=directory))
    argv = [sys.executable, "-m", "nicagent.cli", "serve", "-c", str(config)]
    uri = f"nic+unix:///system?socket={directory}/run/libvirt-sock"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        for _ in range(1000):
            if answers(directory / "run/libvirt-sock"):
                break
            assert process.poll() is None, (directory / "log").read_text()
            time.sleep(0.02)
        define = ["virsh", "-q", "-c", uri, "define", "/dev/stdin"]
        subprocess.run(define, input=_DOMAIN, text=True, check=True, capture_output=True)
        yield uri
    finally:
        process.terminate()
        process.wait(30)


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", _ME, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


class Clients:
    """So many clients of one server, connected and waiting for the word."""

    def __init__(self, uri: str, count: int) -> None:
        self._processes = [_start("client", uri, str(SLICE)) for _ in range(count)]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"a client could not connect to {uri}"

    def calls_a_second(self) -> float:
        """Of all clients together, over one slice that they begin at the same moment."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return sum(float(process.stdout.readline()) for process in self._processes if process.stdout)

    def end(self) -> None:
        for process in self._processes:
            process.communicate()


def rows(runs: int) -> list[dict[str, object]]:
    """A row per number of clients. Without a libvirtd that can run here, the peer's columns are None."""
    rates: dict[tuple[str, int], list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bn-") as ours,
        tempfile.TemporaryDirectory(prefix="bl-") as theirs,
        agent(Path(ours)) as uri,
    ):
        if peer.missing() is None:
            with peer.libvirtd(Path(theirs)) as daemon:
                _measure({"ours": uri, "peer": daemon.uri}, runs, rates)
        else:
            _measure({"ours": uri}, runs, rates)
    return [_row(clients, rates) for clients in CLIENTS]


def _measure(uris: dict[str, str], runs: int, rates: dict[tuple[str, int], list[float]]) -> None:
    for count in CLIENTS:
        groups = {who: Clients(uri, count) for who, uri in uris.items()}
        try:
            for _ in range(runs * SLICES):
                for who, clients in groups.items():
                    rates.setdefault((who, count), []).append(clients.calls_a_second())
        finally:
            for clients in groups.values():
                clients.end()


def _row(clients: int, rates: dict[tuple[str, int], list[float]]) -> dict[str, object]:
    ours = round(statistics.median(rates["ours", clients]))
    measured = rates.get(("peer", clients))
    theirs = round(statistics.median(measured)) if measured else None
    return {
        "name": f"libvirt calls, {clients} client{'s' if clients > 1 else ''}",
        "ours": ours,
        "peer": theirs,
        "peer_name": "libvirtd test:///default",
        "ratio": round(ours / theirs, 2) if theirs else None,
        "unit": "calls/s",
        "higher_is_better": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_ME}", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    caller = commands.add_parser("client")
    caller.add_argument("uri")
    caller.add_argument("seconds", type=float)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.command == "client":
        client(arguments.uri, arguments.seconds)
    else:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        print(json.dumps(rows(arguments.runs), indent=1))


if __name__ == "__main__":
    main()
