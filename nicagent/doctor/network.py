"""The network about the agent: netdevs, and ports that it is to be found at."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from nicagent import proc
from nicagent.config import Config, Host
from nicagent.doctor.check import Check
from nicagent.model import Transport
from nicagent.provision.contract import HTTP_PORT

IFF_UP = 0x1  # netdevice(7)


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


def netdev(subject: str, device: str) -> Check:
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


def overlay(config: Config, running: bool) -> Iterator[Check]:
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
        yield netdev("underlay", overlay.device)
    if not running and all(
        link.kind != "vxlan" for link in _links().values()
    ):  # otherwise the port is held by VXLAN itself
        yield _port("VXLAN", socket.SOCK_DGRAM, "0.0.0.0", overlay.port, "overlay.port")  # noqa: S104


def link_ports(name: str, host: Host, config: Config, running: bool) -> Iterator[Check]:
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


def libvirt(config: Config, running: bool) -> Iterator[Check]:
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
