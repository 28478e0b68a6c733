"""libvirt's well-known network filters, and what the guard of a port does of each.

A port is guarded whether a filter is named or not (`network.guard`), so most filters say what is so anyway;
two ask for more, and the guard does that for the ports that name them. A filter that would open what the
guard keeps closed is refused when a domain is defined. Filters of a client's own are not taken yet.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from nicagent.errors import Kind, NicagentError, Thing

EVERY_PORT = "clean-traffic"  # what is true of every port, whether it was asked for or not
NO_IP_MULTICAST = "no-ip-multicast"
NO_MAC_BROADCAST = "no-mac-broadcast"

_IDS = uuid.UUID("0b3a1c52-2f0b-4d53-9a0d-6e6963666c74")


@dataclass(frozen=True)
class Rule:
    """One rule in nwfilter's words: what passes ("return" to the filter that refers to this one, "accept")
    or is dropped. `direction`: "out" from the host, "in" to it. `match`: attributes of `protocol`."""

    action: str
    direction: str
    protocol: str = ""  # empty: every frame
    match: tuple[tuple[str, str], ...] = ()
    priority: int = 500


@dataclass(frozen=True)
class Filter:
    """A filter that the guard does. `refers` are the names of the filters that it is made of."""

    name: str
    chain: str = "root"
    rules: tuple[Rule, ...] = ()
    refers: tuple[str, ...] = ()

    @property
    def uuid(self) -> str:
        """The same on every agent."""
        return str(uuid.uuid5(_IDS, self.name))


def _out(action: str, protocol: str = "", priority: int = 500, /, **match: str) -> Rule:
    return Rule(action, "out", protocol, tuple(match.items()), priority)


_DROP_OUT = _out("drop", "", 1000)

BUILT_IN: Mapping[str, Filter] = {
    each.name: each
    for each in (
        Filter("allow-arp", "arp", (Rule("accept", "inout"),)),
        Filter(
            "allow-dhcp",
            "ipv4",
            (
                _out("accept", "ip", srcipaddr="0.0.0.0", dstipaddr="255.255.255.255", protocol="udp",  # noqa: S104
                     srcportstart="68", dstportstart="67"),
                Rule("accept", "in", "ip",
                     (("protocol", "udp"), ("srcportstart", "67"), ("dstportstart", "68"))),
            ),
        ),
        Filter("allow-incoming-ipv4", "ipv4", (Rule("accept", "in"),)),
        Filter("allow-ipv4", "ipv4", (Rule("accept", "inout"),)),
        Filter(
            "no-arp-ip-spoofing",
            "arp",
            (
                _out("return", "arp", 400, arpsrcipaddr="$IP"),
                _out("return", "arp", 410, arpsrcipaddr="0.0.0.0"),  # noqa: S104
                _DROP_OUT,
            ),
        ),
        Filter("no-arp-mac-spoofing", "arp", (_out("return", "arp", 350, arpsrcmacaddr="$MAC"), _DROP_OUT)),
        Filter("no-arp-spoofing", "root", refers=("no-arp-mac-spoofing", "no-arp-ip-spoofing")),
        Filter("no-ip-spoofing", "ipv4", (
            _out("return", "ip", 100, srcipaddr="0.0.0.0", protocol="udp"),  # noqa: S104
            _out("return", "ip", srcipaddr="$IP"),
            _DROP_OUT,
        )),
        Filter("no-ipv6-spoofing", "ipv6", (_DROP_OUT,)),  # a port has no IPv6 address yet
        Filter("no-mac-spoofing", "mac", (_out("return", "mac", srcmacaddr="$MAC"), _DROP_OUT)),
        Filter("no-other-l2-traffic", "root", (
            _out("accept", "mac", 100, protocolid="ipv4"),
            _out("accept", "mac", 110, protocolid="arp"),
            _DROP_OUT,
        )),
        Filter("no-other-rarp-traffic", "rarp", (_DROP_OUT,)),
        Filter(EVERY_PORT, "root", refers=(
            "no-mac-spoofing", "no-ip-spoofing", "no-arp-spoofing", "allow-incoming-ipv4",
            "no-other-l2-traffic", "no-other-rarp-traffic",
        )),
        Filter("vdsm-no-mac-spoofing", "root", refers=("no-mac-spoofing", "no-arp-mac-spoofing")),
        Filter(NO_IP_MULTICAST, "ipv4", (
            _out("drop", "ip", dstipaddr="224.0.0.0", dstipmask="240.0.0.0"),
        )),
        Filter(NO_MAC_BROADCAST, "ipv4", (
            _out("drop", "mac", dstmacaddr="ff:ff:ff:ff:ff:ff"),
        )),
    )
}  # fmt: skip

_NO_IPV6 = "a port has no IPv6 address yet, so the guard drops IPv6"
_AGENT_SERVES = "DHCP on a segment is the agent's, and the guard drops what anybody else answers"

#: Known to libvirt's users, and beyond the guard: name → why.
REFUSED: Mapping[str, str] = {
    "allow-dhcp-server": _AGENT_SERVES,
    "allow-dhcpv6-server": _AGENT_SERVES,
    "allow-dhcpv6": _NO_IPV6,
    "allow-ipv6": _NO_IPV6,
    "allow-incoming-ipv6": _NO_IPV6,
    "no-ipv6-multicast": _NO_IPV6,
    "clean-traffic-gateway": "a port is not confined to one gateway: it reaches all of its segment",
    "qemu-announce-self": "no QEMU stands at the port of a server, so none announces itself",
    "qemu-announce-self-rarp": "no QEMU stands at the port of a server, so none announces itself",
}


def check(name: str, where: str) -> None:
    """A port may name this filter. Raises UNSUPPORTED with the reason, NOT_FOUND for an unknown one."""
    if name in BUILT_IN:
        return
    if name in REFUSED:
        raise NicagentError(
            Kind.UNSUPPORTED, f"{where}: filter '{name}': {REFUSED[name]}", "leave the filter out"
        )
    raise NicagentError(
        Kind.NOT_FOUND,
        f"{where}: no nwfilter with matching name '{name}'",
        "see virsh nwfilter-list",
        of=Thing.FILTER,
    )
