"""The libvirt face beside libvirtd's test driver: calls, listings, statistics, TLS, events, memory.

Both servers have the same thousand domains, one of them called `test`, none of them running. Real clients
(libvirt-python, virsh) give the first rows; the others are measured by raw packets (`libvirt_load`), where
the client costs little and is the same for both, so that the server is what is measured. The two servers take
turns of well under a second, so that whatever else the machine does hits both; medians over all turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nicagent import pki
from tests.bench.figures import Row, row
from tests.bench.libvirt_load import DEFINE, Server, text
from tests.bench.processes import Process, agent, cpu_seconds, resident
from tests.hypervisor_shim import libvirtd as peer

SLICE = 0.6  # seconds of calls to one server before it is the other's turn
SLICES = 4  # per run and server
DOMAINS = 1000
IDLE = 200  # clients whose memory is measured
SUBSCRIBERS = 100
EVENTS = 5  # per run
CLIENTS = (1, 8)  # of libvirt-python
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
[libvirt.tls]
listen = "127.0.0.1:{port}"
ca = "{pki}/cacert.pem"
certificate = "{pki}/servercert.pem"
key = "{pki}/serverkey.pem"
"""
_PEER_CONFIG = """
listen_tls = 1
listen_tcp = 0
listen_addr = "127.0.0.1"
tls_port = "{port}"
auth_tls = "none"
ca_file = "{pki}/cacert.pem"
cert_file = "{pki}/servercert.pem"
key_file = "{pki}/serverkey.pem"
"""
_DOMAIN = """<domain type='{kind}'><name>{name}</name><uuid>{uuid}</uuid><memory unit='GiB'>8</memory>
<vcpu>2</vcpu><os><type>hvm</type></os></domain>"""
_ME = "tests.bench.bench_libvirt"


def client(uri: str, seconds: float) -> None:
    """A libvirt-python client: say ready; at every line of standard input call for so long, and print the
    calls a second."""
    import libvirt

    conn = libvirt.open(uri)
    info = conn.lookupByName("test").info
    print('"ready"', flush=True)
    for _ in sys.stdin:
        calls, began = 0, time.perf_counter()
        end = began + seconds
        while time.perf_counter() < end:
            for _ in range(10):
                info()
            calls += 10
        print(calls / (time.perf_counter() - began), flush=True)
    conn.close()


# ---- the servers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """A server that runs: ours or the peer."""

    pid: int
    uri: str  # for stock clients
    unix: Server
    tls: Server
    kind: str  # of its domains


def document(kind: str, number: int) -> str:
    name = f"metal-{number}" if number else "test"
    uuid = f"6c1a2f00-0000-4000-8000-{number:012x}"
    return _DOMAIN.format(kind=kind, name=name, uuid=uuid)


@contextlib.contextmanager
def defined(server: Server, kind: str, first: int) -> Iterator[None]:
    """Define the domains. libvirtd's test driver forgets them with its last client, so this one stays."""
    definer = server.connect()
    for number in range(first, DOMAINS):
        definer.call(DEFINE, text(document(kind, number)))
    yield
    definer.sock.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def metal(directory: Path, certificates: Path) -> Iterator[Side]:
    """A real agent with one host that is not there, and the domains."""
    port = free_port()
    with agent(directory, _CONFIG.format(directory=directory, port=port, pki=certificates)) as pid:
        path = directory / "run/libvirt-sock"
        unix = Server("nic:///system", path=str(path))
        tls = Server("nic:///system", port=port, pki=str(certificates))
        with defined(unix, "kvm", 0):
            yield Side(pid, f"nic+unix:///system?socket={path}", unix, tls, "kvm")


@contextlib.contextmanager
def libvirtd(directory: Path, certificates: Path) -> Iterator[Side]:
    """libvirtd with a test driver of the same domains; `test` is there anyway."""
    port = free_port()
    more = _PEER_CONFIG.format(port=port, pki=certificates)
    with peer.libvirtd(directory, (), more, "--listen") as daemon:
        pid = int((directory / "pid").read_text())
        unix = Server("test:///default", path=str(daemon.path))
        tls = Server("test:///default", port=port, pki=str(certificates))
        with defined(unix, "test", 1):
            yield Side(pid, daemon.uri, unix, tls, "test")


# ---- clients -----------------------------------------------------------------------------------------


def started(*argv: str) -> Process:
    process = Process(*argv)
    assert process.answer() == "ready", "a client could not connect"
    return process


def load(server: Server, count: int) -> Process:
    order = {"server": asdict(server), "count": count, "domain": "test"}
    return started("tests.bench.libvirt_load", json.dumps(order))


Sides = dict[str, Side]  # ours, and the peer where there is one
Figures = dict[str, list[float]]  # of each side


@dataclass
class Costs:
    """Microseconds of processor time per call, of each turn: of the server, and of its client."""

    server: Figures
    client: Figures


def python_clients(sides: Sides, count: int, turns: int) -> tuple[Figures, Costs]:
    """Calls a second of so many libvirt-python clients together, and what a call cost."""
    groups = {
        who: [started(_ME, "client", side.uri, str(SLICE)) for _ in range(count)]
        for who, side in sides.items()
    }
    rates: Figures = {who: [] for who in sides}
    costs = Costs({who: [] for who in sides}, {who: [] for who in sides})
    for _ in range(turns):
        for who, group in groups.items():
            server, clients = cpu_seconds(sides[who].pid), sum(cpu_seconds(each.pid) for each in group)
            for each in group:
                each.order({})
            rates[who].append(sum(each.answer() for each in group))
            calls = rates[who][-1] * SLICE
            costs.server[who].append((cpu_seconds(sides[who].pid) - server) / calls * 1e6)
            costs.client[who].append((sum(cpu_seconds(each.pid) for each in group) - clients) / calls * 1e6)
    for group in groups.values():
        for each in group:
            each.end()
    return rates, costs


def ceiling(costs: Costs) -> Figures:
    """Calls a second at which the processors of this machine have no time left for more."""
    processors = len(os.sched_getaffinity(0))
    found: Figures = {}
    for who, servers in costs.server.items():
        both = zip(servers, costs.client[who], strict=True)
        found[who] = [processors * 1e6 / (server + client) for server, client in both]
    return found


def raw_clients(
    sides: Sides, count: int, turns: int, call: str = "info", server: Callable[[Side], Server] | None = None
) -> tuple[Figures, Figures]:
    """Calls a second of so many connections, and the 99th percentile of the calls' times in ms."""
    loads = {who: load(server(side) if server else side.unix, count) for who, side in sides.items()}
    rates: Figures = {who: [] for who in sides}
    late: Figures = {who: [] for who in sides}
    for _ in range(turns):
        for who, each in loads.items():
            each.order({"call": call, "seconds": SLICE})
            answer = each.answer()
            rates[who].append(answer["rate"])
            late[who].append(answer["p99"])
    for each in loads.values():
        each.end()
    return rates, late


def virsh_list(sides: Sides, runs: int) -> Figures:
    """Seconds that `virsh list --all` takes, start to end."""
    took: Figures = {who: [] for who in sides}
    for _ in range(runs):
        for who, side in sides.items():
            began = time.perf_counter()
            argv = ["virsh", "-q", "-c", side.uri, "list", "--all"]
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
            took[who].append(time.perf_counter() - began)
            assert len(done.stdout.splitlines()) == DOMAINS, "virsh lists all of them"
    return took


def events(sides: Sides, runs: int) -> Figures:
    """Milliseconds from a definition's call until every subscriber was told, the slowest of each run."""
    took: Figures = {who: [] for who in sides}
    for who, side in sides.items():
        loaded = load(side.unix, SUBSCRIBERS + 1)
        for _ in range(runs):
            loaded.order({"events": document(side.kind, 1), "times": EVENTS})
            took[who].append(max(loaded.answer()))
        loaded.end()
    return took


def idle_memory(sides: Sides) -> Figures:
    """KiB of the server's resident memory per client that is connected and does nothing."""
    found: Figures = {}
    for who, side in sides.items():
        warm = [side.unix.connect() for _ in range(IDLE // 4)]
        before = resident(side.pid)
        idle = [side.unix.connect() for _ in range(IDLE)]
        found[who] = [(resident(side.pid) - before) / IDLE]
        for each in warm + idle:
            each.sock.close()
    return found


# ---- rows --------------------------------------------------------------------------------------------


def rows(runs: int) -> list[Row]:
    """All rows. Without a libvirtd that can run here, the peer's columns are None."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bp-")))
        pki.make_authority(home)
        pki.issue_server(home, ["127.0.0.1"], home / "servercert.pem", home / "serverkey.pem")
        pki.issue_client(home, "bench", home)
        ours, theirs = (Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bn-"))) for _ in "ab")
        sides = {"ours": stack.enter_context(metal(ours, home))}
        if peer.missing() is None:
            sides["peer"] = stack.enter_context(libvirtd(theirs, home))
        return list(_rows(sides, runs))


def _rows(sides: Sides, runs: int) -> Iterator[Row]:
    turns = runs * SLICES
    yield _row(f"libvirt: memory of an idle client, of {IDLE}", idle_memory(sides), "KiB", more=False)
    for count in CLIENTS:
        name = f"libvirt calls, {count} client{'s' if count > 1 else ''}"
        rates, costs = python_clients(sides, count, turns)
        yield _row(name, rates, "calls/s")
    yield _row(f"{name}: the most that {os.cpu_count()} processors allow", ceiling(costs), "calls/s")
    yield _row(f"{name}: processor time of the server", costs.server, "µs/call", more=False)
    yield _row(f"{name}: processor time of a client", costs.client, "µs/call", more=False)
    for count in (1, 8, 64):
        rates, late = raw_clients(sides, count, turns)
        yield _row(f"libvirt calls, {count} raw connection{'s' if count > 1 else ''}", rates, "calls/s")
    yield _row("libvirt call time at 64 connections, p99", late, "ms", more=False)
    rates, _ = raw_clients(sides, 8, turns, server=lambda side: side.tls)
    yield _row("libvirt calls over TLS, 8 raw connections", rates, "calls/s")
    for call, name in (
        ("list", f"listAllDomains of {DOMAINS:,}"),
        ("state", f"state of all {DOMAINS:,} domains"),
        ("stats", f"all statistics of all {DOMAINS:,} domains (libvirtd has their state only)"),
    ):
        rates, _ = raw_clients(sides, 1, turns, call)
        yield _row(f"libvirt {name}", rates, "calls/s")
    name = f"virsh list --all of {DOMAINS:,}"
    yield _row(name, virsh_list(sides, runs), "s", more=False)
    name = f"libvirt event to {SUBSCRIBERS} subscribers, the last one"
    yield _row(name, events(sides, runs), "ms", more=False)


def _row(name: str, figures: Figures, unit: str, *, more: bool = True) -> Row:
    peer_name = "libvirtd, test driver"
    return row(name, figures["ours"], figures.get("peer"), unit, peer_name=peer_name, more=more)


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_ME}", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    caller = commands.add_parser("client")
    caller.add_argument("uri")
    caller.add_argument("seconds", type=float)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.command == "client":
        client(arguments.uri, arguments.seconds)
    else:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        print(json.dumps(rows(arguments.runs), indent=1))


if __name__ == "__main__":
    main()
