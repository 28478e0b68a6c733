"""The rules of one port's filter as nftables expressions. Pure.

libvirt splits a filter in two, and so is this. Rules for *frames* (of every protocol from `mac` to `ipv6`,
and of none) stand in chains: the root chain jumps to those of the filters by EtherType and priority. Rules
for *packets* (`tcp` and its like) stand in one list by priority. A frame has to come through both, and each
lets pass what no rule decides about. Written for one direction, a rule for packets is about the answers too;
for both directions, what is written is what comes in.

A connection is known without the kernel's connection tracking, which bridges do not have everywhere:

- TCP answers are what carries ACK or RST: without a bare SYN nobody begins a connection.
- Of protocols with ports, packets accepted in the rule's direction open a flow (protocol, addresses and
  ports) for FLOW_SECONDS, and answers are what belongs to one.
- Of ICMP, queries open the pair of addresses for TALK_SECONDS, and answers are replies between these.
- Of other protocols, so does every packet.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nicagent.filter_rules import ETHERTYPES, PACKETS, Packet, Value, chain_kind
from nicagent.filter_tree import Placed
from nicagent.nft import ACCEPT, DROP, Json, match, meta
from nicagent.nft import field as header

COUNTER = "drop-filter"
FLOW_SECONDS = 120  # RFC 4787 §4.3: no less than two minutes
TALK_SECONDS = 60  # RFC 5508 §3.2: no less than a minute

Expressions = list[Json]

#: The kind of a set → the types of its elements: what is known of a connection, from the host's side.
SETS: Mapping[str, list[str]] = {
    f"{kind}-{begun}{version}": ["inet_proto", address, *port, address, *port]
    for version, address in ((4, "ipv4_addr"), (6, "ipv6_addr"))
    for kind, port in (("flows", ["inet_service"]), ("talks", []))
    for begun in ("out", "in")
}


@dataclass
class Program:
    """A port's rules. `chains`: by name, those that are jumped to before those that jump; `out` and `in` hold
    the rules for frames, `out-packets` and `in-packets` those for packets, each only if there are any."""

    chains: dict[str, list[Expressions]] = field(default_factory=dict)
    sets: set[str] = field(default_factory=set)

    @property
    def digest(self) -> str:
        """Tells one program from another."""
        text = json.dumps([self.chains, sorted(self.sets)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


ENTRIES = ("out", "out-packets", "in-packets", "in")
#: What holds a port whose filter cannot be made into rules: nothing passes.
CLOSED = Program({"out": [[{"counter": COUNTER}, DROP]], "in": [[{"counter": COUNTER}, DROP]]})


def program(rules: Iterable[Placed]) -> Program:
    """The program of a port with these rules. References to chains and sets are by their names in it: `jump`
    targets and "@set" become the port's own when it is loaded."""
    made = Program()
    ordered = sorted(rules, key=lambda each: each.rule.priority)  # stable: equals stay in their order
    for direction in ("out", "in"):
        _frames(made, [each for each in ordered if each.rule.protocol not in PACKETS], direction)
    for each in ordered:
        if each.rule.protocol in PACKETS:
            _packet(made, each)
    return made


# ── frames ──────────────────────────────────────────────────────────────────────────────────────────────

_VERDICTS: Mapping[str, Expressions] = {
    "accept": [ACCEPT],
    "drop": [{"counter": COUNTER}, DROP],
    "reject": [{"counter": COUNTER}, DROP],  # of a frame, libvirt rejects so too
    "return": [{"return": None}],
    "continue": [{"continue": None}],
}
_TYPE = header("ether", "type")


def _frames(made: Program, rules: list[Placed], direction: str) -> None:
    """The chains of rules for frames in one direction. The root chain's rules and its jumps are in the order
    of their priorities; of equal ones the jump comes first.
    """
    mine = [each for each in rules if each.rule.direction in (direction, "inout")]
    if not mine:
        return
    chains: dict[str, list[Expressions]] = {}
    priorities: dict[str, int] = {}
    for each in mine:
        swapped = direction == "out" and each.rule.direction == "inout"
        expressions = [*_conditions(each, swapped), *_VERDICTS[each.rule.action]]
        chains.setdefault(each.chain, []).append(expressions)
        priorities[each.chain] = each.chain_priority
    root = [(each.rule.priority, 1) for each in mine if each.chain == "root"]
    steps: list[tuple[tuple[int, int], Expressions]] = list(zip(root, chains.pop("root", []), strict=True))
    below = sorted(chains.items(), key=lambda item: priorities[item[0]])
    for number, (name, rules_of) in enumerate(below):
        kind = chain_kind(name)
        target = f"{direction}-{number}-{kind}"
        made.chains[target] = rules_of
        only = [match(_TYPE, ETHERTYPES[kind])] if kind in ETHERTYPES else []
        steps.append(((priorities[name], 0), [*only, {"jump": {"target": target}}]))
    made.chains[direction] = [step for _, step in sorted(steps, key=lambda step: step[0])]


# ── packets ─────────────────────────────────────────────────────────────────────────────────────────────

_SYN, _SYN_ACK = 2, 2 | 16
_PROTOCOL = meta("l4proto")
_PORTED = [17, 33, 132, 136]  # UDP, DCCP, SCTP, UDP-Lite: TCP's answers are known by their flags
_PING = {4: ("icmp", [8, 13, 15, 17], [0, 14, 16, 18]), 6: ("icmpv6", [128, 139], [129, 140])}
_ICMP = {4: 1, 6: 58}


@dataclass(frozen=True)
class _Answered:
    """What is held of a connection: what its packets are, what more those are that begin it, and what more
    the answers."""

    are: Expressions
    begin: Expressions
    answer: Expressions


def _packet(made: Program, placed: Placed) -> None:
    rule, packet = placed.rule, PACKETS[placed.rule.protocol]
    written, mirrored = _conditions(placed, False), _conditions(placed, True)
    of = {"out": (written, mirrored), "in": (mirrored, written), "inout": (mirrored, written)}
    outward, inward = of[rule.direction]
    verdict = _VERDICTS[rule.action]

    def add(direction: str, *expressions: Expressions) -> None:
        made.chains.setdefault(f"{direction}-packets", []).append(
            [part for each in expressions for part in each]
        )

    if "type" in placed.values:
        add(rule.direction, written, verdict)  # a type belongs to one direction, so there is no answer
    elif rule.action != "accept" or rule.direction == "inout" or not rule.stateful:
        add("out", outward, verdict)
        add("in", inward, verdict)
    else:
        for held in _connections(made, packet, rule.direction):
            begins = rule.direction == "out"
            add("out", outward, held.are, held.begin if begins else held.answer, verdict)
            add("in", inward, held.are, held.answer if begins else held.begin, verdict)


def _connections(made: Program, packet: Packet, begun: str) -> Iterable[_Answered]:
    """How the connections of a rule's protocol are known; of a rule for all protocols, one after another."""
    number, version = packet.number, packet.version
    if number in (None, 6):
        flags = match({"&": [header("tcp", "flags"), _SYN_ACK]}, _SYN, "!=")
        yield _Answered([match(_PROTOCOL, 6)], [], [flags])
    if number is None or number in _PORTED:
        which = [match(_PROTOCOL, {"set": _PORTED} if number is None else number)]
        yield _held(made, which, f"flows-{begun}{version}", begun, FLOW_SECONDS)
    if number in (None, _ICMP[version]):
        name, asks, answers = _PING[version]
        held = _held(made, [], f"talks-{begun}{version}", begun, TALK_SECONDS)
        kind = header(name, "type")
        yield _Answered(
            [match(_PROTOCOL, _ICMP[version])],
            [match(kind, {"set": asks}), *held.begin],
            [match(kind, {"set": answers}), *held.answer],
        )
    if number is None or number not in (6, _ICMP[version], *_PORTED):
        others = match(_PROTOCOL, {"set": sorted([6, _ICMP[version], *_PORTED])}, "!=")
        which = [others if number is None else match(_PROTOCOL, number)]
        yield _held(made, which, f"talks-{begun}{version}", begun, TALK_SECONDS)


def _held(made: Program, are: Expressions, name: str, begun: str, seconds: int) -> _Answered:
    """A connection that is kept in a set, for as long as it speaks. A packet that would open one more than
    the set holds is not accepted by the rule."""
    made.sets.add(name)
    from_host, to_host = _key(name, "saddr", "daddr"), _key(name, "daddr", "saddr")
    opens, answers = (from_host, to_host) if begun == "out" else (to_host, from_host)

    def keep(key: Json) -> Json:
        return {
            "set": {"op": "update", "elem": {"elem": {"val": key, "timeout": seconds}}, "set": f"@{name}"}
        }

    return _Answered(are, [keep(opens)], [match(answers, f"@{name}"), keep(answers)])


def _key(name: str, host: str, peer: str) -> Json:
    ip = "ip" if name.endswith("4") else "ip6"
    ports = {"saddr": "sport", "daddr": "dport"}
    parts: list[Json] = [_PROTOCOL]
    for side in (host, peer):
        parts.append(header(ip, side))
        if name.startswith("flows"):
            parts.append(header("th", ports[side]))
    return {"concat": parts}


# ── conditions ──────────────────────────────────────────────────────────────────────────────────────────

_OTHER = {"s": "d", "d": "s"}
# Addresses lie at these places in an ARP packet only if hardware is Ethernet and protocol IPv4 (RFC 826).
_ARP_FORM: Mapping[str, Expressions] = {
    "mac": [match(header("arp", "htype"), 1), match(header("arp", "hlen"), 6)],
    "ip": [match(header("arp", "ptype"), 0x0800), match(header("arp", "plen"), 4)],
}


def _conditions(placed: Placed, swapped: bool) -> Expressions:
    """What a rule asks of a frame; `swapped`: with source and destination exchanged."""
    protocol, values = placed.rule.protocol, placed.values
    op = "!=" if placed.rule.negated else "=="
    made: Expressions = []
    if protocol in PACKETS:
        packet = PACKETS[protocol]
        ip = "ip" if packet.version == 4 else "ip6"
        made.append(match(_TYPE, ETHERTYPES["ipv4" if packet.version == 4 else "ipv6"]))
        if packet.number is not None:
            made.append(match(_PROTOCOL, packet.number))
    else:
        ip = "ip6" if protocol == "ipv6" else "ip"
        if protocol in ("arp", "ip", "ipv6"):
            made.append(match(_TYPE, ETHERTYPES["ipv4" if protocol == "ip" else protocol]))
    if "protocol" in values:
        made.append(match(_PROTOCOL, values["protocol"], op))
    for side in ("s", "d"):
        end, to = {"s": "src", "d": "dst"}[side], _OTHER[side] if swapped else side
        made += _mac(header("ether", f"{to}addr"), values, f"{end}mac", op)
        made += _address(header(ip, f"{to}addr"), values, f"{end}ip", op)
        made += _span(header("th", f"{to}port"), values, f"{end}portstart", f"{end}portend", op)
        if f"arp{end}macaddr" in values:
            made += _ARP_FORM["mac"]
            made += _mac(header("arp", f"{to}addr ether"), values, f"arp{end}mac", op)
        if f"arp{end}ipaddr" in values:
            made += _ARP_FORM["ip"]
            made += _address(header("arp", f"{to}addr ip"), values, f"arp{end}ip", op)
    for name, where in (
        ("protocolid", _TYPE),
        ("hwtype", header("arp", "htype")),
        ("protocoltype", header("arp", "ptype")),
        ("opcode", header("arp", "operation")),
        ("dscp", header(ip, "dscp")),
    ):
        if name in values:
            made.append(_is(where, values[name], op))
    icmp = "icmpv6" if protocol in ("icmpv6", "ipv6") else "icmp"
    made += _span(header(icmp, "type"), values, "type", "typeend", op)
    made += _span(header(icmp, "code"), values, "code", "codeend", op)
    if "flags" in values:
        mask, _, bits = str(values["flags"]).partition("/")
        made.append(match({"&": [header("tcp", "flags"), int(mask)]}, int(bits), op))
    return made


def _mac(where: Json, values: Mapping[str, Value], name: str, op: str) -> Expressions:
    address, mask = values.get(f"{name}addr"), values.get(f"{name}mask")
    if address is None:
        return []
    if mask is None:
        return [_is(where, address, op)]
    bits = [int(part, 16) & int(cover, 16) for part, cover in zip(*_octets(address, mask), strict=True)]
    return [match({"&": [where, mask]}, ":".join(f"{octet:02x}" for octet in bits), op)]


def _octets(*addresses: Value) -> tuple[list[str], ...]:
    return tuple(str(address).split(":") for address in addresses)


def _address(where: Json, values: Mapping[str, Value], name: str, op: str) -> Expressions:
    made: Expressions = []
    address, bits = values.get(f"{name}addr"), values.get(f"{name}mask")
    if address is not None and bits is not None:
        network = ipaddress.ip_network(f"{address}/{bits}", strict=False)
        prefix = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
        made.append(match(where, prefix, op))
    elif address is not None:
        made.append(_is(where, address, op))
    made += _span(where, values, f"{name}from", f"{name}to", op)
    return made


def _span(where: Json, values: Mapping[str, Value], first: str, last: str, op: str) -> Expressions:
    """One value, or all from `first` to `last`."""
    if first not in values:
        return []
    start, end = values[first], values.get(last, values[first])
    return [_is(where, start, op) if start == end else match(where, {"range": [start, end]}, op)]


def _is(where: Json, value: Value, op: str) -> Json:
    """A field has one value, or has not. libnftables (1.0.6) makes one comparison of two fields that lie side
    by side, and so "neither is" becomes "not both are": it leaves ranges alone.
    """
    return match(where, value if op == "==" else {"range": [value, value]}, op)
