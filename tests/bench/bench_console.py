"""A console's stream, and what a server keeps when its reader stops, beside libvirtd's QEMU driver.

libvirtd opens consoles of QEMU only, and of QEMU's own pty only: its test driver has none. A guest cannot
write to that pty as fast as either server reads (QEMU gives it away byte by byte), so the guest never runs,
and in libvirtd's mount namespace a pty of this bench lies over the one that QEMU made. Ours is the agent's
own way, from `SerialConsole` with its log to the stream, behind a domain in memory, because a host that is on
would need a machine that boots. Both read a pty that the same process floods, with the same client
(libvirt-python), in turns.

A console is a live thing: where a reader is slow, libvirtd lets the line wait, ours drops the oldest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypervisor_shim.driver import ByteStream, Caller, ConsoleFlags
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.server import Server
from nicagent.console.serial import SerialConsole
from tests.bench.figures import Row, row
from tests.bench.processes import Process, resident
from tests.hypervisor_shim import libvirtd as peer

SLICE = 0.6  # seconds that one server's console is read before it is the other's turn
TURNS = 4  # per run and server
STOPPED = 2.0  # seconds that a line is flooded while nobody reads
LOG_BYTES = 1 << 20  # the default of nicagent.toml
_CHUNK = 262_120
_ME = "tests.bench.bench_console"
_QEMU_CONFIG = """
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""
_DOMAIN = """<domain type='{kind}'><name>test</name><memory unit='MiB'>16</memory><os>
<type arch='x86_64' machine='pc'>hvm</type></os><devices><serial type='pty'/></devices></domain>"""


# ---- processes of their own -----------------------------------------------------------------------


def flood(lines: int) -> None:
    """Make ptys and tell their names; at an order, write to one of them without pause for so long."""
    pairs = [os.openpty() for _ in range(lines)]
    for _, slave in pairs:
        tty.setraw(slave)
    print(json.dumps([os.ttyname(slave) for _, slave in pairs]), flush=True)
    text = bytes(range(32, 127)) * 100
    for line in sys.stdin:
        order = json.loads(line)
        master = pairs[order["line"]][0]
        os.set_blocking(master, False)
        end = time.monotonic() + order["seconds"]
        while time.monotonic() < end:
            if select.select([], [master], [], 0.05)[1]:
                os.write(master, text)
        print("true", flush=True)


async def serve(directory: Path, line: Path) -> None:
    """Our server, whose domain `test` has its console on `line`."""
    console = SerialConsole("h0", line, 115200, directory / "console.log", LOG_BYTES)

    class Driver(MemoryDriver):
        async def open_console(
            self, caller: Caller, uuid: bytes, device: str | None, flags: ConsoleFlags
        ) -> ByteStream:
            return console.attach(force=bool(flags & ConsoleFlags.FORCE))

    server = Server(Driver([_DOMAIN.format(kind="test")]))
    await server.listen_unix(directory / "sock")
    holding = asyncio.create_task(console.run())
    print('"ready"', flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    holding.cancel()
    await server.close()


def read(uri: str) -> None:
    """A client. Ordered to read: the console's bytes per second. Ordered to stop: opens it and reads nothing
    until the next order."""
    import libvirt

    conn = libvirt.open(uri)
    domain = conn.lookupByName("test")
    print('"ready"', flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        stream = conn.newStream(0)
        domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
        if order["stop"]:
            print("true", flush=True)
            sys.stdin.readline()
            stream.abort()
            print("true", flush=True)
            continue
        stream.recv(_CHUNK)
        got, began = 0, time.perf_counter()
        while (now := time.perf_counter()) < began + order["seconds"]:
            got += len(stream.recv(_CHUNK))
        stream.abort()
        print(got / (now - began), flush=True)
    conn.close()


# ---- the two sides ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    pid: int
    client: Process
    line: int  # of the flooder's


@contextlib.contextmanager
def _ours(directory: Path, lines: list[str]) -> Iterator[Side]:
    server = Process(_ME, "serve", str(directory), lines[0])
    assert server.answer() == "ready", "the server did not start"
    client = Process(_ME, "read", f"nic+unix:///system?socket={directory}/sock")
    assert client.answer() == "ready", "the client could not connect"
    try:
        yield Side(server.pid, client, 0)
    finally:
        client.end()
        server.end()


@contextlib.contextmanager
def _libvirtd(directory: Path, lines: list[str]) -> Iterator[Side]:
    import libvirt

    (directory / "qemu.conf").write_text(_QEMU_CONFIG)
    with peer.libvirtd(directory, ["qemu"]) as daemon:
        pid = int((directory / "pid").read_text())
        uri = f"qemu+unix:///system?socket={daemon.path}"
        conn = libvirt.open(uri)
        domain = conn.createXML(_DOMAIN.format(kind="qemu"), libvirt.VIR_DOMAIN_START_PAUSED)
        try:
            found = re.search(r"<source path='([^']*)'", domain.XMLDesc())
            assert found is not None, "libvirt tells the pty that QEMU made"
            argv = ["nsenter", "-t", str(pid), "-m", "mount", "--bind", lines[1], found[1]]
            subprocess.run(argv, check=True)
            client = Process(_ME, "read", uri)
            assert client.answer() == "ready", "the client could not connect"
            try:
                yield Side(pid, client, 1)
            finally:
                client.end()
        finally:
            domain.destroy()
            conn.close()


def rows(runs: int) -> list[Row]:
    """Throughput, and memory while the reader stands still. Without a libvirtd that can run QEMU here, the
    peer's columns are None."""
    with contextlib.ExitStack() as stack:
        ours, theirs = (Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bc-"))) for _ in "ab")
        flooder = Process(_ME, "flood", "2")
        stack.callback(flooder.end)
        lines = flooder.answer()
        sides = {"ours": stack.enter_context(_ours(ours, lines))}
        if peer.missing() is None:
            sides["peer"] = stack.enter_context(_libvirtd(theirs, lines))
        rates: dict[str, list[float]] = {who: [] for who in sides}
        grown: dict[str, list[float]] = {who: [] for who in sides}
        for turn in range(1 + runs * TURNS):
            for who, side in sides.items():
                flooder.order({"line": side.line, "seconds": SLICE + 0.1})
                side.client.order({"stop": False, "seconds": SLICE})
                rate = side.client.answer() / 1e6
                flooder.answer()
                if turn:  # the first is to warm up
                    rates[who].append(rate)
        for _ in range(runs):
            for who, side in sides.items():
                before = resident(side.pid)
                side.client.order({"stop": True})
                side.client.answer()
                flooder.order({"line": side.line, "seconds": STOPPED})
                flooder.answer()
                grown[who].append((resident(side.pid) - before) / 1024)
                side.client.order({})
                side.client.answer()
    return [
        _row("console stream", rates, "MB/s", more=True),
        _row(f"console: memory kept for a reader that stops for {STOPPED:g} s", grown, "MiB", more=False),
    ]


def _row(name: str, figures: dict[str, list[float]], unit: str, *, more: bool) -> Row:
    peer_name = "libvirtd, QEMU driver"
    return row(name, figures["ours"], figures.get("peer"), unit, peer_name=peer_name, more=more)


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_ME}", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("flood").add_argument("lines", type=int)
    serving = commands.add_parser("serve")
    serving.add_argument("directory", type=Path)
    serving.add_argument("line", type=Path)
    commands.add_parser("read").add_argument("uri")
    arguments: Any = parser.parse_args()
    if arguments.command == "flood":
        flood(arguments.lines)
    elif arguments.command == "serve":
        asyncio.run(serve(arguments.directory, arguments.line))
    else:
        read(arguments.uri)


if __name__ == "__main__":
    main()
