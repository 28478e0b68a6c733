"""What a `<network>` document says, checked: the typed view of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element


@dataclass(frozen=True, slots=True)
class DhcpHost:
    """An address kept for one client."""

    ip: str | None
    mac: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Ip:
    """An `<ip>`: an address of the network's own, and its DHCP. `family`: "ipv4" or "ipv6"."""

    family: str
    address: str
    prefix: int | None
    ranges: tuple[tuple[str, str], ...] = ()
    hosts: tuple[DhcpHost, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkDef:
    """A parsed, checked and normalised `<network>`. `tree` is the whole document in libvirt's order;
    `metadata` maps a namespace to its element."""

    name: str
    uuid: bytes
    title: str | None
    description: str | None
    metadata: Mapping[str, Element]
    forward: str | None  # nat, route, bridge …; None: isolated
    bridge: str | None
    mac: str | None
    mtu: int | None
    domain: str | None
    ips: tuple[Ip, ...]
    tree: Element
