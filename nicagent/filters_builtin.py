"""libvirt's well-known network filters, and what the guard of a port does of each.

A port is guarded whether a filter is named or not (`network.guard`), so most of these say what is so anyway;
two ask for more, and the guard does that for the ports that name them. One that would open what the guard
keeps closed is refused when a domain names it. Where a client's own filter refers to one of these, it stands
for the rules that are written here.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from nicagent.filter_rules import Filter, Reference, Rule

EVERY_PORT = "clean-traffic"  # what is true of every port, whether it was asked for or not
NO_IP_MULTICAST = "no-ip-multicast"
NO_MAC_BROADCAST = "no-mac-broadcast"

_IDS = uuid.UUID("0b3a1c52-2f0b-4d53-9a0d-6e6963666c74")
#: Where chains stand among each other, of libvirt's own filters.
_PRIORITIES = {
    "root": 0, "mac": -800, "ipv4": -700, "ipv4-ip": -710, "ipv6": -600, "ipv6-ip": -610, "arp": -500,
    "arp-mac": -520, "arp-ip": -510, "rarp": -400,
}  # fmt: skip


def _filter(name: str, chain: str, *entries: Rule | str) -> tuple[str, Filter]:
    """A filter of rules, and of other filters by their names. Its UUID is the same on every agent."""
    made = tuple(Reference(each) if isinstance(each, str) else each for each in entries)
    return name, Filter(name, str(uuid.uuid5(_IDS, name)), chain, _PRIORITIES[chain], made)


def _out(action: str, protocol: str = "", priority: int = 500, /, **match: str) -> Rule:
    return Rule(action, "out", protocol, tuple(match.items()), priority)


def _in(action: str, protocol: str = "", priority: int = 500, /, **match: str) -> Rule:
    return Rule(action, "in", protocol, tuple(match.items()), priority)


_NOBODY, _EVERYBODY = "0.0.0.0", "255.255.255.255"  # noqa: S104 (addresses in frames, not a bind)
_ASKS = _out(
    "accept", "ip", 100,
    srcipaddr=_NOBODY, dstipaddr=_EVERYBODY, protocol="udp", srcportstart="68", dstportstart="67",
)  # fmt: skip
_DROP_OUT = _out("drop", "", 1000)
_DROP_ALL = Rule("drop", "inout", priority=1000)

BUILT_IN: Mapping[str, Filter] = dict(
    (
        _filter("allow-arp", "arp", Rule("accept", "inout")),
        _filter(
            "allow-dhcp", "ipv4", _ASKS,
            _in("accept", "ip", 100, protocol="udp", srcportstart="67", dstportstart="68"),
        ),
        _filter(  # the one DHCP server that a port hears is the agent, so $DHCPSERVER is its address
            "allow-dhcp-server", "ipv4", _ASKS,
            _in(
                "accept", "ip", 100,
                srcipaddr="$DHCPSERVER", protocol="udp", srcportstart="67", dstportstart="68",
            ),
        ),
        _filter("allow-incoming-ipv4", "ipv4", _in("accept")),
        _filter("allow-ipv4", "ipv4", Rule("accept", "inout")),
        _filter(
            "no-arp-ip-spoofing", "arp-ip",
            _out("return", "arp", 400, arpsrcipaddr="$IP"),
            _out("return", "arp", 410, arpsrcipaddr=_NOBODY),  # the address probe of RFC 5227
            _DROP_OUT,
        ),
        _filter(
            "no-arp-mac-spoofing", "arp-mac", _out("return", "arp", 350, arpsrcmacaddr="$MAC"), _DROP_OUT
        ),
        _filter("no-arp-spoofing", "root", "no-arp-mac-spoofing", "no-arp-ip-spoofing"),
        _filter(
            "no-ip-spoofing", "ipv4-ip",
            _out("return", "ip", 100, srcipaddr=_NOBODY, protocol="udp"),
            _out("return", "ip", srcipaddr="$IP"),
            _DROP_OUT,
        ),
        _filter("no-ipv6-spoofing", "ipv6-ip", _DROP_OUT),  # a port has no IPv6 address yet
        _filter("no-mac-spoofing", "mac", _out("return", "mac", srcmacaddr="$MAC"), _out("drop", "mac")),
        _filter("no-other-l2-traffic", "root", _DROP_ALL),
        _filter("no-other-rarp-traffic", "rarp", _DROP_ALL),
        _filter(
            EVERY_PORT, "root",
            "no-mac-spoofing",
            "no-ip-spoofing",
            _out("accept", "mac", -650, protocolid="ipv4"),
            "allow-incoming-ipv4",
            "no-arp-spoofing",
            Rule("accept", "inout", "mac", (("protocolid", "arp"),), -500),
            "no-other-l2-traffic",
            "no-other-rarp-traffic",
        ),
        _filter(NO_IP_MULTICAST, "ipv4", _out("drop", "ip", dstipaddr="224.0.0.0", dstipmask="4")),
        _filter(NO_MAC_BROADCAST, "ipv4", _out("drop", "mac", dstmacaddr="ff:ff:ff:ff:ff:ff")),
    )
)  # fmt: skip

_NO_IPV6 = "a port has no IPv6 address yet, so the guard drops IPv6"

#: Known to libvirt's users, and beyond the guard: name → why.
REFUSED: Mapping[str, str] = {
    "allow-dhcpv6-server": _NO_IPV6,
    "allow-dhcpv6": _NO_IPV6,
    "allow-ipv6": _NO_IPV6,
    "allow-incoming-ipv6": _NO_IPV6,
    "no-ipv6-multicast": _NO_IPV6,
    "clean-traffic-gateway": "a port is not confined to one gateway: it reaches all of its segment",
    "qemu-announce-self": "no QEMU stands at the port of a server, so none announces itself",
    "qemu-announce-self-rarp": "no QEMU stands at the port of a server, so none announces itself",
}
