"""A lab for network tests: namespaces held by descriptors, agents as processes, hosts that send raw frames.

A namespace lives as long as its descriptor, so a test that dies leaves nothing behind, and none needs a
name. All of it works as root and inside a user namespace alike.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from pyroute2 import IPRoute

from nicagent.config import Overlay, Segment
from nicagent.filter_rules import Filter
from nicagent.model import Port, PortBinding

ROOT = Path(__file__).resolve().parents[2]
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own, whose namespace it may change; gives back its result or error."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as e:
            outcome.append((None, e))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Netns:
    """A network namespace held open by a descriptor."""

    def __init__(self) -> None:
        def make() -> int:
            _checked(_libc.unshare(_CLONE_NEWNET))
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

        self.fd = _in_thread(make)
        self.run("ip", "link", "set", "lo", "up")

    def close(self) -> None:
        os.close(self.fd)

    def call(self, work: Callable[[], T]) -> T:
        """Run a function inside; a socket or process it makes stays inside."""

        def enter() -> T:
            _checked(_libc.setns(self.fd, _CLONE_NEWNET))
            return work()

        return _in_thread(enter)

    def run(self, *argv: str, check: bool = True, timeout: float = 30) -> str:
        """Run a command inside and give back its output."""
        done = self.call(
            lambda: subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
        )
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start a process inside."""
        return self.call(lambda: subprocess.Popen(argv, text=True, cwd=ROOT, **options))

    def json(self, *argv: str) -> Any:
        """Output of `ip -j …`, `bridge -j …` or `nft -j …`."""
        return json.loads(self.run(*argv) or "[]")

    def cable(self, device: str, other: Netns, far: str, mac: str | None = None) -> None:
        """A cable (veth): `device` here, `far` in the other namespace, both down."""

        def plug() -> None:
            peer = {"ifname": far, "net_ns_fd": other.fd} | ({"address": mac} if mac else {})
            with IPRoute() as ip:
                ip.link("add", ifname=device, kind="veth", peer=peer)

        self.call(plug)


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces at all."""
    try:
        Netns().close()
    except OSError as e:
        if e.errno in (errno.EPERM, errno.ENOSYS):
            return False
        raise
    return True


class AgentError(Exception):
    """The driver's NicagentError, as it came over the pipe."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(f"{kind}: {message}; {hint}")
        self.kind, self.message, self.hint = kind, message, hint


class Agent:
    """An agent's network driver in a process of its own (tests/network/runner.py), inside a namespace."""

    def __init__(self, backend: str, netns: Netns, overlay: Overlay, run_dir: Path) -> None:
        self.netns, self.overlay, self.segments, self.run_dir = netns, overlay, dict(SEGMENTS), run_dir
        self._backend = backend
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process and the driver in it."""
        self.launch()
        self.answer()

    def launch(self) -> None:
        """Start, without waiting for the driver's answer."""
        settings = {
            "backend": self._backend,
            "overlay": {f: getattr(self.overlay, f) for f in self.overlay.__struct_fields__},
            "segments": {
                name: {f: getattr(segment, f) for f in segment.__struct_fields__}
                for name, segment in self.segments.items()
            },
            "run_dir": str(self.run_dir),
        }
        self._process = self.netns.popen(
            sys.executable,
            "-m",
            "tests.network.runner",
            json.dumps(settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.send("start")

    def ask(self, call: str, *args: Any) -> Any:
        """Call the driver and await its answer."""
        self.send(call, *args)
        return self.answer()

    def send(self, call: str, *args: Any) -> None:
        """Call the driver without waiting."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps([call, *args]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The answer to the oldest call."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the agent's process ended without an answer"
        answer = json.loads(line)
        if "error" in answer:
            raise AgentError(*answer["error"])
        return answer["value"]

    def present(self, host: str, *bindings: PortBinding) -> None:
        self.ask("present", host, [asdict(b) for b in bindings])

    def withdraw(self, host: str) -> None:
        self.ask("withdraw", host)

    def status(self, host: str) -> list[dict[str, Any]]:
        return list(self.ask("status", host))

    def filter(self, filter: Filter) -> None:
        """Define a filter, or define it anew."""
        self.ask("filter", msgspec.to_builtins(filter))

    def drops(self) -> dict[str, int]:
        return dict(self.ask("drops"))

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def close(self) -> None:
        """Let the driver close, and the process end."""
        if self._process is not None:
            self.ask("close")
            self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait(timeout=10)
        self._process = None


@dataclass
class Host:
    """A server: a namespace with one NIC, which is cabled to its agent."""

    netns: Netns
    mac: str
    ipv4: str
    device: str  # the agent's end of the cable
    name: str
    segment: str = "blue"

    def binding(self, *, filter: str | None = None, **changes: str) -> PortBinding:
        """The port that belongs to this host."""
        values = {"device": self.device, "mac": self.mac, "ipv4": self.ipv4, "hostname": self.name} | changes
        segment = values.pop("segment", self.segment)
        return PortBinding(Port("port0", segment, values["mac"], values["ipv4"], filter=filter), **values)

    def dhcp(self, *options: str, tries: int = 4) -> dict[str, str]:
        """Get a lease by busybox's udhcpc and apply it; empty when nobody offers one."""
        script = Path(__file__).with_name("lease.sh")
        argv = ["busybox", "udhcpc", "-f", "-q", "-n", "-t", str(tries), "-T", "1", "-i", "eth0"]
        said = self.netns.run(*argv, "-s", str(script), *options, check=False)
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    def ping(self, address: str, count: int = 2, *options: str) -> bool:
        """Whether at least one echo comes back."""
        argv = ["ping", "-n", "-c", str(count), "-i", "0.1", "-W", "1", *options, address]
        return self.netns.call(lambda: subprocess.run(argv, capture_output=True, check=False)).returncode == 0

    def wire(self) -> Wire:
        """The host's NIC, for frames of the test's own making and for all frames that arrive."""
        return self.netns.call(lambda: Wire("eth0"))


class Wire:
    """A packet socket (packet(7)) on a device; sees what arrives, sends what it is given."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self._socket.bind((device, 0))

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self._socket.send(frame)

    def heard(self, seconds: float) -> Iterator[bytes]:
        """Frames that arrive, until the time is up. Own frames do not count."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                frame, address = self._socket.recvfrom(65535)
                if address[2] != socket.PACKET_OUTGOING:
                    yield frame

    def hears(self, part: bytes, seconds: float = 3.0) -> bool:
        """Whether a frame containing `part` arrives in time."""
        return any(part in frame for frame in self.heard(seconds))

    def hears_before(self, part: bytes, last: bytes, seconds: float = 3.0) -> bool:
        """Whether a frame with `part` arrives before one with `last`, which must arrive: order is kept."""
        for frame in self.heard(seconds):
            if part in frame:
                return True
            if last in frame:
                return False
        raise AssertionError(f"not even the frame with {last!r} arrived within {seconds:g} s")

    def close(self) -> None:
        self._socket.close()


@dataclass
class Lab:
    """Two agents on an underlay, a host behind each, and two segments, `blue` and `red`."""

    agents: list[Agent] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)

    def open_all(self) -> None:
        """Start the agents and present every host's port."""
        for agent in self.agents:
            agent.launch()
        for agent, host in zip(self.agents, self.hosts, strict=True):
            agent.answer()
            agent.present(host.name, host.binding())

    def address_all(self) -> None:
        """Give hosts their addresses by hand, for tests that are not about DHCP."""
        for host in self.hosts:
            host.netns.run("ip", "addr", "replace", f"{host.ipv4}/24", "dev", "eth0")


SEGMENTS = {
    "blue": Segment(vni=100, cidr="10.100.0.0/24", range=("10.100.0.10", "10.100.0.99")),
    "red": Segment(vni=200, cidr="10.100.0.0/24", range=("10.100.0.10", "10.100.0.99"), mtu=1400),
}


@contextlib.contextmanager
def neighbour(agent: Agent, segment: str = "blue", ipv4: str = "10.100.0.13") -> Iterator[Host]:
    """A third host, behind this agent too; its port is not presented yet."""
    space, mac = Netns(), "02:00:00:00:00:99"
    try:
        agent.netns.cable("nic1", space, "eth0", mac)
        space.run("ip", "link", "set", "eth0", "up")
        yield Host(space, mac, ipv4, "nic1", "metal-3", segment)
    finally:
        space.close()


@contextlib.contextmanager
def lab(tmp: Path, backend: str = "bridge") -> Iterator[Lab]:
    """Build a lab whose agents have this back end (see runner.py); at the end everything in it is gone."""
    made = Lab()
    with contextlib.ExitStack() as stack:

        def netns() -> Netns:
            space = Netns()
            stack.callback(space.close)
            return space

        spaces = [netns(), netns()]
        spaces[0].cable("under", spaces[1], "under")
        for number, space in enumerate(spaces, start=1):
            peers = tuple(f"192.0.2.{n}" for n in (1, 2) if n != number)
            space.run("ip", "addr", "add", f"192.0.2.{number}/24", "dev", "under")
            space.run("ip", "link", "set", "under", "up")
            overlay = Overlay(local=f"192.0.2.{number}", peers=peers)
            agent = Agent(backend, space, overlay, tmp / f"run{number}")
            stack.callback(_end_daemons, agent.run_dir)
            stack.callback(agent.kill)
            host = Host(
                netns(), f"02:00:00:00:00:{number:02x}", f"10.100.0.{10 + number}", "nic0", f"metal-{number}"
            )
            space.cable("nic0", host.netns, "eth0", host.mac)
            host.netns.run("ip", "link", "set", "eth0", "up")
            made.agents.append(agent)
            made.hosts.append(host)
        yield made


def _end_daemons(run_dir: Path) -> None:
    """A test may end with ports open; what outlives agents must not outlive tests."""
    for pidfile in run_dir.glob("network/*.pid"):
        pid = int(pidfile.read_text().split()[0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


# ── frames ──

MARK = b"nicagent-forged-frame"
HONEST = b"nicagent-honest-frame"
DHCP_COOKIE = bytes.fromhex("63825363")  # RFC 2131 §3


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ether(source: str, kind: int, payload: bytes, to: str = "ff:ff:ff:ff:ff:ff") -> bytes:
    return _bytes(to) + _bytes(source) + struct.pack("!H", kind) + payload


def vlan(frame: bytes, tag: int) -> bytes:
    """The frame with an 802.1Q tag."""
    return frame[:12] + struct.pack("!HH", 0x8100, tag) + frame[12:]


def arp(source: str, sender_mac: str, sender: str, target: str, operation: int = 1, htype: int = 1) -> bytes:
    """An ARP packet (RFC 826) in a broadcast frame, with a mark in the padding to be found by."""
    body = struct.pack("!HHBBH", htype, 0x0800, 6, 4, operation)
    body += _bytes(sender_mac) + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    return ether(source, 0x0806, body + MARK)


def udp(
    source: str,
    src: str,
    dst: str,
    ports: tuple[int, int],
    payload: bytes = MARK,
    to: str = "ff:ff:ff:ff:ff:ff",
) -> bytes:
    """A UDP datagram in a frame; `ports` are source and destination. No UDP checksum, which IPv4 allows."""
    length = 8 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0)
    head += socket.inet_aton(src) + socket.inet_aton(dst)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return ether(source, 0x0800, head + struct.pack("!HHHH", *ports, length, 0) + payload, to)


def dhcp_renewal(mac: str, address: str, xid: bytes) -> bytes:
    """A DHCPREQUEST of a client that renews or rebinds (RFC 2131 §4.3.2): its address in ciaddr."""
    head = struct.pack("!BBBB4sHH", 1, 1, 6, 0, xid, 0, 0) + socket.inet_aton(address) + bytes(12)
    return head + _bytes(mac).ljust(208, b"\0") + DHCP_COOKIE + b"\x35\x01\x03\xff"


def router_advertisement(source: str) -> bytes:
    """A router advertisement (RFC 4861 §4.2) to all nodes; its checksum is not what a guard looks at."""
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + MARK
    head = struct.pack("!IHBB", 6 << 28, len(body), 58, 255)
    addresses = socket.inet_pton(socket.AF_INET6, "fe80::ff:fe00:1") + socket.inet_pton(
        socket.AF_INET6, "ff02::1"
    )
    return ether(source, 0x86DD, head + addresses + body, "33:33:00:00:00:01")


def reachable(netns: Netns, addresses: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Which of these TCP (address, port) pairs accept a connection from inside."""

    def probe() -> list[tuple[str, int]]:
        reached = []
        for address in addresses:
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=0.5):
                reached.append(address)
        return reached

    return netns.call(probe)
