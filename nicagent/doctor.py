"""What is wired, what answers, what is missing, and how to mend it.

Looks and asks, and changes nothing: no line is claimed, no BMC is logged in to, no port stays bound. Works
beside a running agent as well as before the first start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from pyroute2 import IPRoute

from nicagent import client, proc
from nicagent.config import Config, GpioPower, Host, IpmiPower
from nicagent.errors import Kind, NicagentError
from nicagent.model import Transport
from nicagent.provision.contract import HTTP_PORT
from nicagent.provision.dhcp import CHAINLOADER

BMC_SECONDS = 2.0  # for an answer that takes milliseconds
AGENT_SECONDS = 5.0
STATE_LOW, POOL_LOW = 64 << 20, 1 << 30  # bytes free below which we warn

IFF_UP = 0x1  # netdevice(7)

# capabilities(7): their numbers, and what we need them for.
CAPABILITIES: Mapping[str, int] = {"CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}

# IPMI 2.0 §13.1.3 RMCP header, §13.6 session-less packet, §22.13 Get Channel Authentication Capabilities: the
# one question that every BMC answers before a login.
BMC_QUESTION = bytes.fromhex("0600ff07 00 00000000 00000000 09 20 18 c8 81 00 38 8e 04 b5")
RMCP_VERSION = b"\x06\x00"

Verdict = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Check:
    """One finding. `mend` is empty where nothing has to be done."""

    verdict: Verdict
    subject: str
    finding: str
    mend: str = ""


def examine(config: Config, host: str | None, socket: Path) -> list[Check]:
    """Every check that this config gives reason for; only one host's and the agent's own with `host`.

    Takes about BMC_SECONDS where a BMC is silent, whatever the number of hosts. Raises NOT_FOUND for a host
    that is not in the config.
    """
    if host is not None and host not in config.hosts:
        known = ", ".join(config.hosts)
        raise NicagentError(Kind.NOT_FOUND, f"no host is called {host!r}", f"known hosts: {known}")
    hosts = {name: each for name, each in config.hosts.items() if host in (None, name)}
    agent = _ask_agent(socket)
    running = isinstance(agent, list)
    groups: list[Callable[[], Iterator[Check]]] = [
        lambda: _tools(config),
        lambda: _privileges(config),
        lambda: _places(config),
        lambda: _pools(config),
        lambda: _overlay(config, running),
        lambda: _libvirt(config, running),
        *(_of_host(name, each, config, running) for name, each in hosts.items()),
    ]
    with ThreadPoolExecutor(max_workers=16) as threads:
        found = [check for group in threads.map(lambda group: list(group()), groups) for check in group]
    return [*found, *_agent_says(agent, hosts, socket)]


def _of_host(name: str, host: Host, config: Config, running: bool) -> Callable[[], Iterator[Check]]:
    def checks() -> Iterator[Check]:
        if isinstance(host.power, GpioPower):
            yield _gpio(f"{name} power", host.power.pins)
        else:
            yield _password(f"{name} BMC password", Path(host.power.password_file))
            yield _bmc(f"{name} BMC", host.power)
        if host.storage.transport is Transport.VIRTIO:
            yield _place(f"{name} slot", Path(host.storage.slot), f"hosts.{name}.storage.slot")
        for nic in host.nics:
            yield _netdev(f"{name} NIC", nic.device)
        if host.provision is not None:
            yield _netdev(f"{name} provision link", host.provision.device)
            yield from _link_ports(name, host, config, running)
        for what, path in _wires(host):
            yield _wire(f"{name} {what}", Path(path))

    return checks


def _wires(host: Host) -> Iterator[tuple[str, str]]:
    """What else is plugged into the host: a name for it, and its tty or socket."""
    if host.console is not None:
        yield "console", host.console.path
    if host.guest_agent is not None:
        yield "guest agent", host.guest_agent.path
    if host.screen is not None:
        yield "screen", host.screen.path
        if host.screen.rfb:
            yield "screen, live", host.screen.rfb
    if host.keyboard is not None:
        yield "keyboard", host.keyboard.path


# ---- the machine


def _tools(config: Config) -> Iterator[Check]:
    wanted = ["qemu-storage-daemon", "qemu-img", "setpriv"]
    if config.segments or _provisions(config):
        wanted.append("dnsmasq")
    for name in wanted:
        try:
            yield Check("ok", name, proc.find_tool(name))
        except NicagentError as e:
            yield Check("broken", name, e.message, e.hint)
    if config.segments or _provisions(config):
        yield _libnftables()
    if _provisions(config):
        if CHAINLOADER.is_file():
            yield Check("ok", "network boot", str(CHAINLOADER))
        else:
            finding = f"{CHAINLOADER} is missing: only NICs with an iPXE of their own will boot"
            yield Check("warning", "network boot", finding, "apt-get install ipxe")
        for name in ("vmlinuz", "stage1.img"):
            yield _file("network boot", Path(config.agent.artefacts) / name, "build it: make stage1")


def _provisions(config: Config) -> bool:
    return any(host.provision is not None for host in config.hosts.values())


def _libnftables() -> Check:
    try:
        import nftables

        nftables.Nftables()
    except Exception as e:  # whatever a library that cannot be loaded raises
        return Check("broken", "libnftables", f"cannot be loaded: {e}", "apt-get install libnftables1")
    return Check("ok", "libnftables", "loaded")


def _file(subject: str, path: Path, mend: str) -> Check:
    if not path.is_file():
        return Check("broken", subject, f"{path} is missing", mend)
    if not os.access(path, os.R_OK):
        return Check("broken", subject, f"{path} may not be read by this user", "run it as the agent's user")
    return Check("ok", subject, f"{path}, {path.stat().st_size >> 10} KiB")


def _privileges(config: Config) -> Iterator[Check]:
    if not (config.segments or _provisions(config)):
        return
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapEff:")[2].split()[0], 16)
    missing = [name for name, number in CAPABILITIES.items() if not held >> number & 1]
    if missing:
        yield Check(
            "broken",
            "privileges",
            f"this user lacks {', '.join(missing)}, which ports and provision links need",
            "run the agent (and the doctor) as root, or give its unit these as AmbientCapabilities",
        )
    else:
        yield Check("ok", "privileges", ", ".join(CAPABILITIES))


def _places(config: Config) -> Iterator[Check]:
    yield _place("state", Path(config.agent.state_dir), "agent.state_dir", low=STATE_LOW)
    yield _place("sockets", Path(config.agent.run_dir), "agent.run_dir")


def _place(subject: str, path: Path, key: str, low: int = 0) -> Check:
    """A directory that is ours to write, or that we can make."""
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        return Check("broken", subject, f"{there} is not a directory", f"set {key} to one")
    if not os.access(there, os.W_OK | os.X_OK):
        why = "is on a read-only file system" if _read_only(there) else "may not be written by this user"
        return Check("broken", subject, f"{there} {why}", f"mend that, or set {key} to another directory")
    free = _free(there)
    if free < low:
        return Check("warning", subject, f"{path}: only {free >> 20} MiB are free", "make room on that disk")
    made = "" if there == path else ", will be made"
    return Check("ok", subject, f"{path}{made}, {free >> 20} MiB free")


def _read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _pools(config: Config) -> Iterator[Check]:
    for name, pool in config.pools.items():
        path = Path(pool.path)
        if not path.exists():
            yield Check(
                "broken", f"pool {name}", f"{path} does not exist", f"make it, or mend pools.{name}.path"
            )
        else:
            yield _place(f"pool {name}", path, f"pools.{name}.path", low=POOL_LOW)


# ---- the network


@dataclass(frozen=True)
class _Link:
    """A netdev of this network namespace."""

    up: bool  # administratively
    carrier: bool
    kind: str | None  # vxlan, bridge, veth …; None for a real NIC


def _links() -> dict[str, _Link]:
    """Every netdev by name. From the kernel and not from /sys, which may be another namespace's."""
    with IPRoute() as kernel:
        return {
            link.get("ifname"): _Link(
                bool(link["flags"] & IFF_UP),
                bool(link.get("carrier")),
                (link.get("linkinfo") or {}).get("kind"),
            )
            for link in kernel.get_links()
        }


def _netdev(subject: str, device: str) -> Check:
    links = _links()
    link = links.get(device)
    if link is None:
        known = ", ".join(sorted(links.keys() - {"lo"})) or "none"
        return Check(
            "broken", subject, f"there is no netdev {device}", f"known: {known}; mend its device key"
        )
    if not link.up:
        return Check("warning", subject, f"{device} is down", "the agent brings it up when it is used")
    if not link.carrier:
        return Check(
            "warning", subject, f"{device} has no carrier", "look at the cable; or the host has no power"
        )
    return Check("ok", subject, f"{device} has carrier")


def _overlay(config: Config, running: bool) -> Iterator[Check]:
    overlay = config.overlay
    if overlay is None:
        return
    trouble = _cannot_bind(socket.SOCK_DGRAM, overlay.local, 0)
    if trouble == errno.EADDRNOTAVAIL:
        mend = f"ip address add {overlay.local}/… to the underlay netdev, or mend overlay.local"
        yield Check("broken", "overlay", f"{overlay.local} is no address of this machine", mend)
        return
    yield Check("ok", "overlay", f"{overlay.local} is here")
    if overlay.device:
        yield _netdev("underlay", overlay.device)
    if not running and all(
        link.kind != "vxlan" for link in _links().values()
    ):  # otherwise the port is held by VXLAN itself
        yield _port("VXLAN", socket.SOCK_DGRAM, "0.0.0.0", overlay.port, "overlay.port")  # noqa: S104


def _link_ports(name: str, host: Host, config: Config, running: bool) -> Iterator[Check]:
    """Ports on the agent's end of a provision link. What a dead agent left serving there is ours."""
    if running or host.provision is None:
        return
    address = host.provision.agent_address.partition("/")[0]
    wanted = {"boot files": (HTTP_PORT, f"hosts.{name}.provision.agent_address")}
    target = proc.Daemon("target", Path(config.agent.run_dir) / "hosts" / name / "nvmetcp.pid")
    if host.storage.transport is Transport.NVME_TCP and target.pid() is None:
        wanted["NVMe/TCP"] = (host.storage.port, f"hosts.{name}.storage.port")
        wanted["NVMe/TCP discovery"] = (host.storage.discovery_port, f"hosts.{name}.storage.discovery_port")
    for what, (port, key) in wanted.items():
        yield _port(f"{name} {what}", socket.SOCK_STREAM, address, port, key)


def _libvirt(config: Config, running: bool) -> Iterator[Check]:
    if running:
        return
    path = config.libvirt.socket
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(1.0)
        if sock.connect_ex(path) == 0:
            yield Check(
                "broken", "libvirt", f"something else answers at {path}", "stop it, or set libvirt.socket"
            )
    if config.libvirt.tcp:
        address, _, port = config.libvirt.tcp.rpartition(":")
        yield _port("libvirt over TCP", socket.SOCK_STREAM, address.strip("[]"), int(port), "libvirt.tcp")


def _port(subject: str, kind: socket.SocketKind, address: str, port: int, key: str) -> Check:
    name = f"{'TCP' if kind is socket.SOCK_STREAM else 'UDP'} port {port} of {address}"
    trouble = _cannot_bind(kind, address, port)
    if trouble == errno.EADDRINUSE:
        flag = "t" if kind is socket.SOCK_STREAM else "u"
        return Check(
            "broken",
            subject,
            f"{name} is taken",
            f"ss -{flag}lnp 'sport = {port}' tells by whom; or set {key}",
        )
    if trouble == errno.EACCES:
        return Check("broken", subject, f"{name} may not be used by this user", f"run as root, or set {key}")
    if trouble not in (0, errno.EADDRNOTAVAIL):  # the agent itself puts the address there
        return Check("broken", subject, f"{name}: {os.strerror(trouble)}", f"mend {key}")
    return Check("ok", subject, f"{name} is free")


def _cannot_bind(kind: socket.SocketKind, address: str, port: int) -> int:
    """The errno of an attempt to bind, 0 when it works. Nothing is heard or answered meanwhile."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(socket.socket(family, kind)) as sock:
        if kind is socket.SOCK_STREAM:  # connections that have just ended are in nobody's way
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError as e:
            return e.errno or errno.EINVAL
    return 0


# ---- what is wired to a host


def _gpio(subject: str, pins: str) -> Check:
    """Whether the chip can be opened. Its lines are not looked at: reading one claims it."""
    mend = "see docs/config.md, hosts.NAME.power.pins"
    if pins.startswith("socket:"):
        path = pins.removeprefix("socket:")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(1.0)
            try:
                sock.connect(path)
            except OSError as e:
                return Check(
                    "broken", subject, f"no lines at {path}: {e.strerror or e}", "start the chassis; " + mend
                )
        return Check("ok", subject, f"the lines of {path} answer")
    if pins == "auto" or pins.startswith("/dev/"):
        chips = [Path(pins)] if pins != "auto" else sorted(Path("/dev").glob("gpiochip*"))
        if not any(chip.exists() for chip in chips):
            return Check(
                "broken", subject, f"there is no {'/dev/gpiochip*' if pins == 'auto' else pins}", mend
            )
        if not any(os.access(chip, os.R_OK | os.W_OK) for chip in chips):
            return Check(
                "broken", subject, f"{chips[0]} may not be used by this user", "add it to group gpio"
            )
        return Check("ok", subject, ", ".join(map(str, chips)))
    if not entry_points(group="gpiozero_pin_factories", name=pins):
        return Check("broken", subject, f"there is no pin factory {pins!r}", mend)
    return Check("ok", subject, f"gpiozero's pin factory {pins}")


def _password(subject: str, path: Path) -> Check:
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            empty = not file.readline(4096).strip()
    except OSError as e:
        return Check(
            "broken", subject, f"cannot read {path}: {e.strerror}", "write the password to its first line"
        )
    if empty:
        return Check("broken", subject, f"the first line of {path} is empty", "write the password to it")
    if mode & stat.S_IROTH:
        return Check("broken", subject, f"{path} can be read by everybody", f"chmod 600 {path}")
    return Check("ok", subject, str(path))


def _bmc(subject: str, power: IpmiPower) -> Check:
    """One packet that needs no session, asked again each half second."""
    where = f"{power.address} UDP port {power.port}"
    mend = "check its cable and address, and that IPMI over LAN is switched on in it"
    try:
        found = socket.getaddrinfo(power.address, power.port, type=socket.SOCK_DGRAM)[0]
    except OSError as e:
        return Check(
            "broken", subject, f"{power.address} is no address: {e.strerror}", "mend its address key"
        )
    end = time.monotonic() + BMC_SECONDS
    with contextlib.closing(socket.socket(found[0], socket.SOCK_DGRAM)) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect(found[4])
            while time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    began = time.monotonic()
                    sock.send(BMC_QUESTION)
                    if sock.recv(512)[:2] == RMCP_VERSION:
                        took = 1000 * (time.monotonic() - began)
                        return Check("ok", subject, f"{where} answers in {took:.0f} ms")
                    return Check(
                        "broken", subject, f"what answers at {where} is no BMC", "mend its address key"
                    )
        except OSError as e:
            return Check("broken", subject, f"no BMC at {where}: {e.strerror or e}", mend)
    return Check("broken", subject, f"{where} is silent for {BMC_SECONDS:g} s", mend)


def _wire(subject: str, path: Path) -> Check:
    mend = "start the chassis, plug the adapter in, or mend its path key"
    try:
        mode = path.stat().st_mode
    except OSError as e:
        return Check("broken", subject, f"{path}: {e.strerror}", mend)
    if not (stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)):
        return Check("broken", subject, f"{path} is neither a tty nor a socket", mend)
    if not os.access(path, os.R_OK | os.W_OK):
        return Check("broken", subject, f"{path} may not be used by this user", "add it to group dialout")
    return Check("ok", subject, str(path))


# ---- the agent


def _ask_agent(path: Path) -> list[dict[str, Any]] | NicagentError:
    try:
        answer = client.call(path, "GET", "/v1/hosts", seconds=AGENT_SECONDS)
    except NicagentError as e:
        return e
    return list(answer)


def _agent_says(
    agent: Sequence[Mapping[str, Any]] | NicagentError, hosts: Mapping[str, Host], path: Path
) -> Iterator[Check]:
    if isinstance(agent, NicagentError):
        yield Check("warning", "agent", agent.message, agent.hint)
        return
    yield Check("ok", "agent", f"answers at {path}")
    told = {status["name"]: status for status in agent}
    for name in hosts:
        status = told.get(name)
        if status is None:
            yield Check(
                "broken", name, "the running agent does not know it", "restart the agent with this config"
            )
        elif status["state"] == "fault":
            yield Check("broken", name, f"fault: {status['reason']}", f"nicagent power off {name} clears it")
        elif status["power"] == "unknown":
            why = f": {status['trouble']}" if status.get("trouble") else ""
            mend = "mend what is told of its power above" if not why else "mend that; the agent keeps trying"
            yield Check("broken", name, f"its power cannot be read{why}", mend)
        else:
            yield Check("ok", name, f"power {status['power']}, {status['state']}")
