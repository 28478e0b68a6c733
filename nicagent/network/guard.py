"""The guard at every port: who a host may say it is, and what it may reach. One nftables table of our own.

(Who may speak to the agent's end of the tunnels is another table's matter, `underlay`'s.)

`table bridge nicagent` is a constant set of rules over six sets; opening or closing a port changes only the
sets' elements, in one transaction, so the counters of other ports' drops survive. What the rules say:

- From a port pass only frames with its MAC: ARP whose sender is its MAC and its IPv4 address (or the
  address probe of RFC 5227 §1.1, whose sender address is 0.0.0.0), and IPv4 from that address. Nothing else:
  no IPv6 (a port has no IPv6 address, and without one there is no router advertisement either), no VLAN tags,
  no unknown EtherTypes, nothing that a DHCP server sends.
- DHCP never crosses a bridge. A client's request goes to the agent and to nobody else; what the agent
  answers goes to a port and never into a tunnel. The responder's address is the same on every agent, so
  ARP and IPv4 that name it stay on this side of every tunnel as well.
- The agent's own stack hears from a segment only DHCP and ARP for the responder, and says nothing else.

Requests lose their addresses (0.0.0.0 → 255.255.255.255) on the way to the agent's stack: a host that
renews its lease sends from an address to which the agent has no route, and reverse-path filtering, where the
machine's policy asks for it, would drop that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nicagent.config import Overlay
from nicagent.filters_builtin import NO_IP_MULTICAST, NO_MAC_BROADCAST
from nicagent.network import portfilter, underlay
from nicagent.network.contract import RESPONDER
from nicagent.nft import ACCEPT, DROP, Json, Nft, field, match, meta

TABLE = "nicagent"
COUNTERS = (
    "drop-mac",
    "drop-arp",
    "drop-dhcp",
    "drop-ipv4",
    "drop-ipv6",
    "drop-other",
    "drop-filter",  # what the port's own filter asks to be dropped beside
    "drop-tunnel",
)

_T = {"family": "bridge", "table": TABLE}
_HINT = "this kernel needs nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE)"
_ANYONE, _EVERYONE = "0.0.0.0", "255.255.255.255"  # noqa: S104 (addresses in frames, not a bind)
_SETS: Mapping[str, str | list[str]] = {
    "ports": "ifname",
    "tunnels": "ifname",
    "stations": ["ifname", "ether_addr"],
    "senders": ["ifname", "ether_addr", "ipv4_addr"],
    "no-multicast": "ifname",
    "no-broadcast": "ifname",
}


@dataclass(frozen=True)
class Guard:
    """What the port on `device` may send as, and the filter that it names if that asks for more."""

    device: str
    mac: str
    ipv4: str
    filter: str | None = None


# ── the rules, as data ──────────────────────────────────────────────────────────────────────────────────


def _put(key: Json, value: str) -> Json:
    return {"mangle": {"key": key, "value": value}}


_IN, _OUT = meta("iifname"), meta("oifname")
_FROM_PORT, _FROM_TUNNEL = match(_IN, "@ports"), match(_IN, "@tunnels")
_TO_PORT, _TO_TUNNEL = match(_OUT, "@ports"), match(_OUT, "@tunnels")
_MAC, _TYPE = field("ether", "saddr"), field("ether", "type")
_ARP, _IPV4, _IPV6 = match(_TYPE, "arp"), match(_TYPE, "ip"), match(_TYPE, "ip6")
_TO_MAC, _ALL_MACS = field("ether", "daddr"), "ff:ff:ff:ff:ff:ff"
_MULTICAST = {"prefix": {"addr": "224.0.0.0", "len": 4}}
_SRC, _DST = field("ip", "saddr"), field("ip", "daddr")
_SENDER, _TARGET = field("arp", "saddr ip"), field("arp", "daddr ip")
_SENDER_MAC = field("arp", "saddr ether")
# Addresses lie at these places in an ARP packet only if hardware is Ethernet and protocol IPv4 (RFC 826).
_ETHERNET_ARP = [
    _ARP,
    match(field("arp", "htype"), 1),
    match(field("arp", "ptype"), "ip"),
    match(field("arp", "hlen"), 6),
    match(field("arp", "plen"), 4),
]
_ASKS_DHCP = [_IPV4, match(field("udp", "sport"), 68), match(field("udp", "dport"), 67)]
_ANSWERS_DHCP = [_IPV4, match(field("udp", "sport"), 67)]
_ANY_DHCP = [_IPV4, match(field("udp", "dport"), {"set": [67, 68]})]


def _to(chain: str) -> Json:
    return {"jump": {"target": chain}}


def _counted(counter: str) -> list[Json]:
    return [{"counter": counter}, DROP]


def _concat(*parts: Json) -> Json:
    return {"concat": [_IN, *parts]}


_HOOKED = {"prerouting": "prerouting", "forward": "forward", "input": "input", "output": "output"}

# Chains that are jumped to stand before those that jump.
_CHAINS: Mapping[str, list[list[Json]]] = {
    "from-port": [
        [match(_concat(_MAC), "@stations", "!="), *_counted("drop-mac")],
        [*_ETHERNET_ARP, match(_concat(_SENDER_MAC, _SENDER), "@senders"), ACCEPT],
        [*_ETHERNET_ARP, match(_concat(_SENDER_MAC), "@stations"), match(_SENDER, _ANYONE), ACCEPT],
        [_ARP, *_counted("drop-arp")],
        [*_ASKS_DHCP, match(_SRC, _ANYONE), ACCEPT],
        [*_ANSWERS_DHCP, *_counted("drop-dhcp")],
        [_IPV4, match(field("udp", "dport"), 68), *_counted("drop-dhcp")],
        [_IPV4, match(_IN, "@no-multicast"), match(_DST, _MULTICAST), *_counted("drop-filter")],
        [_IPV4, match(_IN, "@no-broadcast"), match(_TO_MAC, _ALL_MACS), *_counted("drop-filter")],
        [_IPV4, match(_concat(_MAC, _SRC), "@senders"), ACCEPT],
        [_IPV4, *_counted("drop-ipv4")],
        [_IPV6, *_counted("drop-ipv6")],
        _counted("drop-other"),
    ],
    "from-tunnel": [
        [*_ANY_DHCP, *_counted("drop-tunnel")],
        [_IPV4, match(_SRC, RESPONDER), *_counted("drop-tunnel")],
        [_IPV4, match(_DST, RESPONDER), *_counted("drop-tunnel")],
        [_IPV4, ACCEPT],
        [_ARP, match(_SENDER, RESPONDER), *_counted("drop-tunnel")],
        [_ARP, match(_TARGET, RESPONDER), *_counted("drop-tunnel")],
        [_ARP, ACCEPT],
        _counted("drop-tunnel"),
    ],
    "leaving": [  # a port, towards another port or a tunnel
        [*_ANY_DHCP, DROP],
        [_IPV4, match(_DST, RESPONDER), DROP],
        [_ARP, match(_TARGET, RESPONDER), DROP],
        [_TO_PORT, ACCEPT],
        [_TO_TUNNEL, ACCEPT],
        [DROP],
    ],
    "to-agent": [
        [
            _FROM_PORT,
            *_ASKS_DHCP,
            {"limit": {"rate": 100, "burst": 50, "per": "second"}},
            _put(_SRC, _ANYONE),
            _put(_DST, _EVERYONE),
            ACCEPT,
        ],
        [_FROM_PORT, _ARP, match(_TARGET, RESPONDER), ACCEPT],
        [DROP],
    ],
    "from-agent": [
        [_TO_PORT, *_ANSWERS_DHCP, match(_SRC, RESPONDER), ACCEPT],
        [_TO_PORT, _ARP, match(_SENDER, RESPONDER), ACCEPT],
        [DROP],
    ],
    "prerouting": [[_FROM_PORT, _to("from-port")], [_FROM_TUNNEL, _to("from-tunnel")]],
    "forward": [
        [_FROM_PORT, _to("leaving")],
        [_FROM_TUNNEL, _TO_PORT, ACCEPT],
        # A device that somebody else put on our bridge has no guard, so it reaches nobody.
        [_TO_PORT, DROP],
        [_TO_TUNNEL, DROP],
        [_FROM_TUNNEL, DROP],
    ],
    "input": [[_FROM_PORT, _to("to-agent")], [_FROM_TUNNEL, _to("to-agent")]],
    "output": [[_TO_PORT, _to("from-agent")], [_TO_TUNNEL, _to("from-agent")]],
}


def _rules() -> list[Json]:
    """The commands that make the table with its sets empty."""
    made: list[Json] = [{"add": {"table": {"family": "bridge", "name": TABLE}}}]
    made += [{"add": {"set": {**_T, "name": name, "type": kind}}} for name, kind in _SETS.items()]
    made += [{"add": {"counter": {**_T, "name": name}}} for name in COUNTERS]
    for chain in _CHAINS:
        hook = {"type": "filter", "hook": chain, "prio": -300, "policy": "accept"} if chain in _HOOKED else {}
        made.append({"add": {"chain": {**_T, "name": chain, **hook}}})
    for chain, rules in _CHAINS.items():
        made += [{"add": {"rule": {**_T, "chain": chain, "expr": rule}}} for rule in rules]
    return made


def _edition() -> str:
    """A chain without rules whose name tells one edition of the rules from another."""
    return "rules-" + hashlib.sha256(json.dumps(_rules()).encode()).hexdigest()[:16]


def elements(guards: Iterable[Guard], tunnels: Iterable[str]) -> dict[str, set[tuple[str, ...]]]:
    """What the sets must hold for these guards: set → tuples of its fields."""
    held = list(guards)
    return {
        "ports": {(g.device,) for g in held},
        "tunnels": {(name,) for name in tunnels},
        "stations": {(g.device, g.mac) for g in held},
        "senders": {(g.device, g.mac, g.ipv4) for g in held},
        "no-multicast": {(g.device,) for g in held if g.filter == NO_IP_MULTICAST},
        "no-broadcast": {(g.device,) for g in held if g.filter == NO_MAC_BROADCAST},
    }


def _change(verb: str, name: str, items: set[tuple[str, ...]]) -> list[Json]:
    if not items:
        return []
    elem = [item[0] if len(item) == 1 else {"concat": list(item)} for item in sorted(items)]
    return [{verb: {"element": {**_T, "name": name, "elem": elem}}}]


# ── the table in the kernel ─────────────────────────────────────────────────────────────────────────────


class Guards:
    """The table in the kernel's hands. Calls must not overlap: the owner holds a lock."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._nft = Nft()

    async def apply(
        self, guards: Iterable[Guard], tunnels: Iterable[str], filters: Mapping[str, portfilter.Compiled]
    ) -> None:
        """Make these the guards, and beside them the ports' own filters by device, in one transaction, and
        none at all if nothing changes.

        Without guards and tunnels the tables go away.
        """
        wanted = elements(guards, tunnels)
        commands = _commands(await self._table("bridge", TABLE), wanted)
        have = await self._table("inet", underlay.TABLE)
        commands += underlay.commands(have, self._overlay, wanted=bool(wanted["tunnels"]))
        commands += portfilter.commands(await self._chains(portfilter.TABLE), filters)
        if commands:
            await self._run(commands, "change the guards of the ports")

    async def counters(self) -> dict[str, int]:
        """Frames dropped since the table is there, by counter; empty when it is not there."""
        counted: dict[str, int] = {}
        listed = await self._run(
            [{"list": {"counters": {"family": "bridge"}}}], "read the guards of the ports"
        )
        for item in listed:
            found = item.get("counter", {})
            if found.get("table") in (TABLE, portfilter.TABLE):
                counted[found["name"]] = counted.get(found["name"], 0) + int(found["packets"])
        return counted

    async def _chains(self, table: str) -> list[str]:
        """The names of a table's chains. (Its sets may be long, and are not asked for.)"""
        listed = await self._run([{"list": {"chains": {"family": "bridge"}}}], "read the guards of the ports")
        chains = (item.get("chain", {}) for item in listed)
        return [chain["name"] for chain in chains if chain.get("table") == table]

    async def _table(self, family: str, name: str) -> list[Json]:
        """What the kernel has of a table, as libnftables lists it; empty when it is not there."""
        tables = await self._run([{"list": {"tables": {"family": family}}}], "read the guards of the ports")
        if not any(item.get("table", {}).get("name") == name for item in tables):
            return []
        return await self._run(
            [{"list": {"table": {"family": family, "name": name}}}], "read the guards of the ports"
        )

    async def _run(self, commands: list[Json], doing: str) -> list[Json]:
        return await self._nft.run(commands, doing, _HINT)


def _commands(have: list[Json], wanted: Mapping[str, set[tuple[str, ...]]]) -> list[Json]:
    """The transaction that leads from what the kernel has to what is wanted. Pure."""
    remove: list[Json] = [{"delete": {"table": {"family": "bridge", "name": TABLE}}}] if have else []
    if not any(wanted.values()):
        return remove
    if not any(item.get("chain", {}).get("name") == _edition() for item in have):
        made = [*remove, *_rules(), {"add": {"chain": {**_T, "name": _edition()}}}]
        return made + [c for name, items in wanted.items() for c in _change("add", name, items)]
    held = _held(have)
    commands: list[Json] = []
    for name, items in wanted.items():
        commands += _change("delete", name, held.get(name, set()) - items)
        commands += _change("add", name, items - held.get(name, set()))
    return commands


def _held(have: list[Json]) -> dict[str, set[tuple[str, ...]]]:
    """The sets' elements in a listing: an element is a bare value or {"concat": [values]}."""
    return {
        item["set"]["name"]: {
            tuple(elem["concat"]) if isinstance(elem, dict) else (elem,)
            for elem in item["set"].get("elem", [])
        }
        for item in have
        if "set" in item
    }
