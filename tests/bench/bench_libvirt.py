"""libvirt calls a second: `domain.info()` through libvirt-python, beside libvirtd's `test:///default`.

Each client is a process of its own on a unix socket; the two servers are measured in turn, run by run, so
that whatever else the machine does hits both.
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

SECONDS = 2.0  # of calls, per run
CLIENTS = (1, 8)
_LIKE_TEST = Identity(hypervisor="TEST", schemes=frozenset({"test"}), paths=frozenset({"/default"}))
_ME = "tests.bench.bench_libvirt"


def client(uri: str, seconds: float) -> None:
    """Say ready, wait for the word, call for as long as told, print the calls and seconds it took."""
    import libvirt

    conn = libvirt.open(uri)
    info = conn.lookupByName("test").info
    print("ready", flush=True)
    sys.stdin.readline()
    calls, began = 0, time.perf_counter()
    end = began + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            info()
        calls += 20
    print(calls, time.perf_counter() - began, flush=True)
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


def calls_a_second(uri: str, clients: int) -> float:
    """Of all clients together; they start calling at the same moment."""
    running = [_start("client", uri, str(SECONDS)) for _ in range(clients)]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"a client could not connect to {uri}"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        rate = 0.0
        for process in running:
            assert process.stdout is not None
            calls, seconds = process.stdout.readline().split()
            rate += int(calls) / float(seconds)
        return rate
    finally:
        for process in running:
            process.kill()
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
    for _ in range(runs):
        for clients in CLIENTS:
            for who, uri in uris.items():
                rates.setdefault((who, clients), []).append(calls_a_second(uri, clients))


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
