"""libvirt calls a second: `domain.info()` through libvirt-python, beside libvirtd's `test:///default`.

Each client is a process of its own on a unix socket; the two servers take turns of well under a
second, so that whatever else the machine does hits both. The medians are over all turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hypervisor_shim.driver import Identity
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.server import Server
from tests.hypervisor_shim import libvirtd as peer

SLICE = 0.4  # seconds of calls to one server before it is the other's turn
SLICES = 5  # per run and server
CLIENTS = (1, 8)
_LIKE_TEST = Identity(hypervisor="TEST", schemes=frozenset({"test"}), paths=frozenset({"/default"}))
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


async def serve(path: Path) -> None:
    """Our server, in a process of its own as libvirtd is, until standard input ends."""
    server = Server(MemoryDriver(identity=_LIKE_TEST, uri="test:///default"))
    await server.listen_unix(path)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.close()


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
    ):
        path = Path(ours) / "sock"
        server = _start("serve", str(path))
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n", "our server did not start"
        try:
            uris = {"ours": f"test+unix:///default?socket={path}"}
            if peer.missing() is None:
                with peer.libvirtd(Path(theirs)) as daemon:
                    _measure(uris | {"peer": daemon.uri}, runs, rates)
            else:
                _measure(uris, runs, rates)
        finally:
            server.communicate()
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
    commands.add_parser("serve").add_argument("path", type=Path)
    caller = commands.add_parser("client")
    caller.add_argument("uri")
    caller.add_argument("seconds", type=float)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        asyncio.run(serve(arguments.path))
    elif arguments.command == "client":
        client(arguments.uri, arguments.seconds)
    else:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        print(json.dumps(rows(arguments.runs), indent=1))


if __name__ == "__main__":
    main()
