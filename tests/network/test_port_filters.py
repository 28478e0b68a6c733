"""Filters of a client's own, held against the kernel: what they accept passes, what they drop does not.

A bridge, a port with the filter and one without, and frames sent and heard on the far ends of their cables.
What ought to become of a frame is told by a model of libvirt's documentation that shares nothing with the
compiler but the documents' form.
"""

from __future__ import annotations

import ipaddress
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec
import nftables
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nicagent.filter_rules import Filter, Reference, Rule, check
from nicagent.filters_builtin import BUILT_IN
from nicagent.model import Port, PortBinding
from nicagent.network import portfilter
from nicagent.network.portfilter import Programs
from tests.network import netlab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not netlab.can_make_namespaces(), reason="may not make network namespaces"),
]

T = TypeVar("T")

MAC, IP = "02:00:00:00:00:01", "10.0.0.1"  # the host's own
MACS = (MAC, "02:00:00:00:00:02", "02:00:00:00:01:03")
IPS = (IP, "10.0.0.2", "10.0.1.3")
IPV6 = ("fd00::1", "fd00::2", "fd00:1::3")
PORTS = (1, 2, 3, 4)
LIST = "$LIST[@1]"
TCP, UDP, ICMP, ICMPV6, ESP = 6, 17, 1, 58, 50
IPV4_TYPE, ARP_TYPE, IPV6_TYPE = 0x0800, 0x0806, 0x86DD
SYN, ACK, RST = 2, 16, 4


# ── frames ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Frame:
    """A frame that the host sends ("out") or is sent ("in")."""

    direction: str
    kind: int = IPV4_TYPE
    macs: tuple[str, str] = (MACS[0], MACS[1])
    ips: tuple[str, str] = (IPS[0], IPS[1])
    protocol: int = UDP
    ports: tuple[int, int] = (1, 2)
    flags: int = SYN  # of TCP
    icmp: int = 8  # type
    opcode: int = 1  # of ARP

    def packed(self, mark: bytes) -> bytes:
        head = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in reversed(self.macs))
        return head + struct.pack("!H", self.kind) + self._payload(mark)

    def _payload(self, mark: bytes) -> bytes:
        if self.kind == ARP_TYPE:
            parts = [struct.pack("!HHBBH", 1, IPV4_TYPE, 6, 4, self.opcode)]
            for mac, ip in zip(self.macs, self.ips, strict=True):
                parts += [bytes.fromhex(mac.replace(":", "")), socket.inet_aton(ip)]
            return b"".join(parts) + mark
        if self.kind == IPV4_TYPE:
            inner = self._inner(mark)
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inner), 0, 0, 64, self.protocol, 0)
            head += b"".join(socket.inet_aton(ip) for ip in self.ips)
            total = sum(struct.unpack("!10H", head)) % 0xFFFF  # a bridge may look at the checksum
            return head[:10] + struct.pack("!H", 0xFFFF - total) + head[12:] + inner
        if self.kind == IPV6_TYPE:
            inner = self._inner(mark)
            head = struct.pack("!IHBB", 6 << 28, len(inner), self.protocol, 64)
            return head + b"".join(ipaddress.IPv6Address(ip).packed for ip in self.ips) + inner
        return mark

    def _inner(self, mark: bytes) -> bytes:
        if self.protocol == TCP:
            return struct.pack("!HHIIBBHHH", *self.ports, 0, 0, 5 << 4, self.flags, 0, 0, 0) + mark
        if self.protocol == UDP:
            return struct.pack("!HHHH", *self.ports, 8 + len(mark), 0) + mark
        if self.protocol in (ICMP, ICMPV6):
            return struct.pack("!BBHHH", self.icmp, 0, 0, 0, 0) + mark
        return bytes(8) + mark

    def swapped(self) -> Frame:
        """The same, the other way."""
        return replace(
            self,
            direction="in" if self.direction == "out" else "out",
            macs=self.macs[::-1],
            ips=self.ips[::-1],
            ports=self.ports[::-1],
        )


# ── the model ───────────────────────────────────────────────────────────────────────────────────────────

CHAIN_TYPES = {"ipv4": IPV4_TYPE, "arp": ARP_TYPE, "ipv6": IPV6_TYPE}
NUMBERS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6, "esp": ESP}
OVER_IP = {
    "tcp": 4,
    "udp": 4,
    "icmp": 4,
    "esp": 4,
    "all": 4,
    "tcp-ipv6": 6,
    "udp-ipv6": 6,
    "icmpv6": 6,
    "all-ipv6": 6,
}
ASKS, ANSWERS = {8: 0, 13: 14, 128: 129}, {0, 14, 129}


@dataclass
class Model:
    """What libvirt's documentation makes of a filter."""

    known: dict[str, Filter]
    variables: dict[str, list[str]]
    begun: set[tuple[object, ...]] = field(default_factory=set)

    def passes(self, name: str, frame: Frame) -> bool:
        rules = list(self._rules(self.known[name]))
        return self._frames(rules, frame) and self._packets(rules, frame)

    def _rules(self, filter: Filter) -> Iterator[tuple[Filter, Rule]]:
        for entry in filter.entries:
            if isinstance(entry, Reference):
                yield from self._rules(self.known[entry.filter])
                continue
            walks = any(text == LIST for _, text in entry.match)
            for number in range(len(self.variables["LIST"]) if walks else 1):
                match = tuple((name, self._value(text, number)) for name, text in entry.match)
                yield filter, msgspec.structs.replace(entry, match=match)

    def _value(self, text: str, number: int) -> str:
        if not text.startswith("$"):
            return text
        return self.variables["LIST"][number] if text == LIST else self.variables[text[1:]][0]

    def _frames(self, rules: Sequence[tuple[Filter, Rule]], frame: Frame) -> bool:
        mine = sorted(
            (each for each in rules if each[1].protocol not in OVER_IP), key=lambda each: each[1].priority
        )
        mine = [each for each in mine if each[1].direction in (frame.direction, "inout")]
        root: list[tuple[int, int, object]] = [
            (rule.priority, 1, rule) for filter, rule in mine if filter.chain == "root"
        ]
        root += [
            (priority, 0, chain)
            for chain, priority in {f.chain: f.priority for f, _ in mine if f.chain != "root"}.items()
        ]
        for _, _, what in sorted(root, key=lambda step: step[:2]):
            if isinstance(what, Rule):
                said = what.action if self._matches(what, frame) else "continue"
            elif frame.kind == CHAIN_TYPES.get(str(what).split("-")[0], frame.kind):
                said = self._chain([rule for filter, rule in mine if filter.chain == what], frame)
            else:
                continue
            if said != "continue":
                return said in ("accept", "return")
        return True

    def _chain(self, rules: list[Rule], frame: Frame) -> str:
        said = next(
            (rule.action for rule in rules if rule.action != "continue" and self._matches(rule, frame)),
            "return",
        )
        return "continue" if said == "return" else said

    def _packets(self, rules: Sequence[tuple[Filter, Rule]], frame: Frame) -> bool:
        for rule in sorted(
            (rule for _, rule in rules if rule.protocol in OVER_IP), key=lambda rule: rule.priority
        ):
            if self._decides(rule, frame):
                return rule.action in ("accept", "return")
        return True

    def _decides(self, rule: Rule, frame: Frame) -> bool:
        onward = frame.direction == rule.direction
        typed = any(name == "type" for name, _ in rule.match)
        if typed and not onward:
            return False
        if not self._matches(
            rule, frame if rule.direction == "inout" or onward else frame.swapped(), packet=True
        ):
            return False
        if typed or rule.action != "accept" or rule.direction == "inout" or not rule.stateful:
            return True
        return self._holds(rule.direction, frame, onward)

    def _holds(self, begun: str, frame: Frame, onward: bool) -> bool:
        """Whether the frame begins or belongs to what was begun in this direction."""
        if frame.protocol == TCP:
            return onward or frame.flags & (SYN | ACK) != SYN
        from_host = frame if frame.direction == "out" else frame.swapped()
        key = (begun, frame.protocol, *from_host.ips, *(from_host.ports if frame.protocol == UDP else ()))
        if frame.protocol in (ICMP, ICMPV6) and frame.icmp not in (ASKS if onward else ANSWERS):
            return False
        if onward:
            self.begun.add(key)
        return key in self.begun

    def _matches(self, rule: Rule, frame: Frame, packet: bool = False) -> bool:
        """Both directions: what is written is what comes in."""
        if rule.direction == "inout" and frame.direction == "out":
            frame = frame.swapped()
        if packet:
            plain = rule.protocol.removesuffix("-ipv6")
            if frame.kind != (IPV4_TYPE if OVER_IP[rule.protocol] == 4 else IPV6_TYPE):
                return False
            if plain != "all" and frame.protocol != NUMBERS[plain]:
                return False
        elif (
            rule.protocol in ("arp", "ip", "ipv6")
            and frame.kind
            != CHAIN_TYPES[rule.protocol.replace("ip", "ipv4", 1) if rule.protocol == "ip" else rule.protocol]
        ):
            return False
        values = dict(rule.match)
        facts: list[bool] = []
        for side, prefix in enumerate(("src", "dst")):
            for kind, own in (("mac", frame.macs), ("arp", frame.macs)):
                name = f"{prefix}macaddr" if kind == "mac" else f"arp{prefix}macaddr"
                if name in values:
                    facts.append(_mac_is(own[side], values[name], values.get(name.replace("addr", "mask"))))
            for name in (f"{prefix}ipaddr", f"arp{prefix}ipaddr"):
                if name in values:
                    facts.append(
                        _ip_is(frame.ips[side], values[name], values.get(name.replace("addr", "mask")))
                    )
            if f"{prefix}ipfrom" in values:
                low, high = (ipaddress.ip_address(values[f"{prefix}ip{end}"]) for end in ("from", "to"))
                facts.append(low <= ipaddress.ip_address(frame.ips[side]) <= high)  # type: ignore[operator]
            if f"{prefix}portstart" in values:
                start = int(values[f"{prefix}portstart"])
                facts.append(start <= frame.ports[side] <= int(values.get(f"{prefix}portend", start)))
        for name, fact in (
            ("protocolid", frame.kind),
            ("opcode", frame.opcode),
            ("protocol", frame.protocol),
            ("type", frame.icmp),
        ):
            if name in values:
                facts.append(fact == int(values[name]))
        return not any(facts) if rule.negated else all(facts)


def _mac_is(mac: str, wanted: str, mask: str | None) -> bool:
    cover = int((mask or "ff:ff:ff:ff:ff:ff").replace(":", ""), 16)
    return (int(mac.replace(":", ""), 16) ^ int(wanted.replace(":", ""), 16)) & cover == 0


def _ip_is(ip: str, wanted: str, bits: str | None) -> bool:
    if bits is None:
        return ip == wanted
    return ipaddress.ip_address(ip) in ipaddress.ip_network(f"{wanted}/{bits}", strict=False)


# ── the kernel ──────────────────────────────────────────────────────────────────────────────────────────


class Bridge:
    """A bridge with two ports; the filter is that of the first, whose far end is the host."""

    def __init__(self) -> None:
        self.agent, hosts = netlab.Netns(), netlab.Netns()
        self._spaces = (self.agent, hosts)
        for space in self._spaces:
            space.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        self.agent.run("ip", "link", "add", "na-br1", "type", "bridge", "mcast_snooping", "0")
        for number in (0, 1):
            self.agent.cable(f"nic{number}", hosts, f"eth{number}")
            hosts.run("ip", "link", "set", f"eth{number}", "up", "arp", "off")
            self.agent.run("ip", "link", "set", f"nic{number}", "master", "na-br1", "up")
            self.agent.run("bridge", "link", "set", "dev", f"nic{number}", "learning", "off")
        self.agent.run("ip", "link", "set", "na-br1", "up")
        self._ends = hosts.call(lambda: [_end("eth0"), _end("eth1")])
        self._nft = self.agent.call(nftables.Nftables)
        self._nft.set_json_output(True)
        self._sent = 0

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for space in self._spaces:
            space.close()

    def run(self, commands: list[dict[str, object]]) -> list[dict[str, dict[str, object]]]:
        status, output, error = self._nft.json_cmd({"nftables": commands})
        assert status == 0, f"the kernel refuses {commands}: {error}"
        return list(output.get("nftables", [])) if isinstance(output, dict) else []

    def chains(self) -> list[str]:
        listed = self.run([{"list": {"chains": {"family": "bridge"}}}])
        return [str(item["chain"]["name"]) for item in listed if "chain" in item]

    def hold(
        self, *filters: Filter, parameters: dict[str, list[str]] | None = None, anew: bool = False
    ) -> Model:
        """Hold the port to the last of these; `anew`: forget what was there before."""
        known = {**BUILT_IN, **{each.name: each for each in filters}}
        for each in filters:
            check(each)
        given_ = tuple((name, tuple(values)) for name, values in (parameters or {}).items())
        port = Port("port0", "blue", MAC, IP, filter=filters[-1].name, parameters=given_)
        programs = Programs(known).of_all([PortBinding(port, "nic0", MAC, IP, "host")])
        chains = self.chains()
        commands = portfilter.commands(chains, {}) if anew else []
        commands += portfilter.commands(() if anew else chains, programs)
        if commands:
            self.run(commands)
        return Model(known, {"MAC": [MAC], "IP": [IP], **(parameters or {})})

    def dropped(self) -> int:
        listed = self.run([{"list": {"counters": {"family": "bridge"}}}])
        return sum(int(str(item["counter"]["packets"])) for item in listed if "counter" in item)

    def passed(self, *frames: Frame) -> list[bool]:
        """Which of these frames, sent in this order, arrive. Each is accounted for: heard, or counted."""
        before = self.dropped()
        marks = [f"<{self._sent + number}>".encode() for number in range(len(frames))]
        self._sent += len(frames)
        for frame, mark in zip(frames, marks, strict=True):
            self._ends[0 if frame.direction == "out" else 1].send(frame.packed(mark))
        heard: set[bytes] = set()
        deadline = time.monotonic() + 5
        while len(heard) + (lost := self.dropped() - before) < len(frames):
            assert time.monotonic() < deadline, (
                f"{len(frames)} frames sent, {len(heard)} heard, {lost} counted"
            )
            while ready := select.select(self._ends, [], [], 0)[0]:
                for end in ready:
                    data, address = end.recvfrom(65535)
                    if address[2] != socket.PACKET_OUTGOING:
                        heard |= {mark for mark in marks if mark in data}
        assert len(heard) + self.dropped() - before == len(frames), "a frame was heard and counted as dropped"
        return [mark in heard for mark in marks]


def _end(device: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    made.bind((device, 0))
    return made


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})  # one CPU keeps the order of frames on different devices
    made = Bridge()
    try:
        yield made
    finally:
        made.close()
        os.sched_setaffinity(0, cpus)


# ── what a filter is for ────────────────────────────────────────────────────────────────────────────────


def own(name: str, *entries: Rule | str, chain: str = "root", priority: int = 0) -> Filter:
    made = tuple(Reference(each) if isinstance(each, str) else each for each in entries)
    return Filter(name, f"id-of-{name}", chain, priority, made)


def rule(action: str, direction: str, protocol: str = "", priority: int = 500, /, **match: str) -> Rule:
    return Rule(action, direction, protocol, tuple(match.items()), priority)


DROP_REST = rule("drop", "inout", "all", 1000)
SERVER = own("server", rule("accept", "in", "tcp", dstportstart="2"), DROP_REST)
TO_SERVER = Frame("in", protocol=TCP, macs=MACS[1::-1], ips=IPS[1::-1], ports=(4, 2))


def test_a_server_is_reached_at_its_port_and_answers_and_nothing_else(bridge: Bridge) -> None:
    bridge.hold(SERVER, anew=True)
    sent = {
        "a connection to its port": TO_SERVER,
        "its answer": replace(TO_SERVER.swapped(), flags=SYN | ACK),
        "ARP, which is no packet": Frame("out", ARP_TYPE),
        "a connection to another port": replace(TO_SERVER, ports=(4, 3)),
        "a connection that it begins from that port": TO_SERVER.swapped(),
        "UDP to that port": replace(TO_SERVER, protocol=UDP),
    }
    passed = dict(zip(sent, bridge.passed(*sent.values()), strict=True))
    assert passed == {what: number < 3 for number, what in enumerate(sent)}


def test_answers_over_udp_and_icmp_pass_only_once_asked_for(bridge: Bridge) -> None:
    bridge.hold(own("client", rule("accept", "out", "all"), DROP_REST), anew=True)
    ask, ping = Frame("out"), Frame("out", protocol=ICMP)
    pong = replace(ping.swapped(), icmp=0)
    early = bridge.passed(ask.swapped(), pong)
    assert early == [False, False], "what nobody asked for came in"
    other = replace(ask.swapped(), ports=(2, 3))
    assert bridge.passed(ask, ask.swapped(), other, ping, pong, ping.swapped()) == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]


def test_a_changed_filter_holds_at_once_and_connections_stay_known(bridge: Bridge) -> None:
    ask = Frame("out")
    bridge.hold(own("mine", rule("accept", "out", "udp"), DROP_REST), anew=True)
    assert bridge.passed(ask, ask.swapped()) == [True, True]
    bridge.hold(own("mine", rule("accept", "out", "udp", srcportstart="1"), DROP_REST))
    assert bridge.passed(ask.swapped(), replace(ask, ports=(3, 2))) == [True, False]
    bridge.hold(own("mine", DROP_REST))
    assert bridge.passed(ask, ask.swapped(), Frame("out", ARP_TYPE)) == [False, False, True]
    before = bridge.chains()
    bridge.hold(own("mine", DROP_REST))
    assert bridge.chains() == before, "what was so already was made again"


def test_a_filter_of_filters_is_all_of_them(bridge: Bridge) -> None:
    bridge.hold(
        own("base", "no-mac-spoofing", "no-ip-spoofing", "no-arp-spoofing", "allow-dhcp-server"), anew=True
    )
    good = [Frame("out"), Frame("out", ARP_TYPE), Frame("in", macs=MACS[1:], ips=IPS[1:])]
    assert bridge.passed(*good) == [True] * 3
    forged = [replace(frame, macs=MACS[1:]) for frame in good[:2]] + [
        replace(frame, ips=IPS[1:]) for frame in good[:2]
    ]
    assert bridge.passed(*forged) == [False] * 4


def test_a_rule_turned_round_wants_neither(bridge: Bridge) -> None:
    """libnftables makes one comparison of fields that lie side by side."""
    for frame, protocol, one, other in (
        (Frame("out"), "udp", ("srcportstart", "1"), ("dstportstart", "2")),
        (Frame("out"), "ip", ("srcipaddr", IPS[0]), ("dstipaddr", IPS[1])),
        (Frame("out"), "mac", ("dstmacaddr", MACS[1]), ("srcmacaddr", MACS[0])),
        (Frame("out", ARP_TYPE), "arp", ("opcode", "1"), ("arpsrcmacaddr", MACS[0])),
        (Frame("out", IPV6_TYPE, ips=IPV6[:2]), "ipv6", ("srcipaddr", IPV6[0]), ("dstipaddr", IPV6[1])),
    ):
        for right in (one, other):
            match = tuple(each if each == right else (each[0], _another(each[1])) for each in (one, other))
            bridge.hold(own("f", Rule("drop", "out", protocol, match, negated=True)), anew=True)
            assert bridge.passed(frame) == [True], f"<{protocol} match='no' {match}> is not about {frame}"


def _another(value: str) -> str:
    """A value of the same kind that the frame does not have."""
    return next((known[2] for known in (MACS, IPS, IPV6) if value in known), "4")


def test_a_filter_that_cannot_be_made_into_rules_closes_its_port(bridge: Bridge) -> None:
    bridge.run(portfilter.commands(bridge.chains(), {}))
    port = Port("port0", "blue", MAC, IP, filter="gone")
    bridge.run(
        portfilter.commands((), Programs(BUILT_IN).of_all([PortBinding(port, "nic0", MAC, IP, "host")]))
    )
    assert bridge.passed(Frame("out"), Frame("in"), Frame("in", ARP_TYPE)) == [False] * 3


# ── whatever a filter says ──────────────────────────────────────────────────────────────────────────────

actions = st.sampled_from(("accept", "drop", "return", "continue", "reject"))
directions = st.sampled_from(("in", "out", "inout"))


Match = dict[str, str]


def either(name: str, *values: str) -> list[Match]:
    return [{name: value} for value in values]


MAC_MATCHES = [
    *either("srcmacaddr", *MACS, "$MAC"),
    *either("dstmacaddr", *MACS),
    {"srcmacaddr": MACS[1], "srcmacmask": "ff:ff:ff:ff:00:00"},
]
PORT_MATCHES = [
    *either("srcportstart", "1", "2"),
    *either("dstportstart", "1", "2"),
    {"srcportstart": "2", "srcportend": "3"},
    {"dstportstart": "2", "dstportend": "4"},
]


def ip_matches(
    ips: Sequence[str], bits: str, source: str = "srcipaddr", to: str = "dstipaddr"
) -> list[Match]:
    near = {source: ips[1], source.replace("addr", "mask"): bits}
    return [*either(source, *ips), *either(to, *ips), near, {to: ips[2], to.replace("addr", "mask"): "0"}]


def range_matches(ips: Sequence[str]) -> list[Match]:
    return [{"dstipfrom": ips[0], "dstipto": ips[1]}, {"srcipfrom": ips[1], "srcipto": ips[2]}]


A_LIST = either("srcipaddr", LIST)
FOUR = [*ip_matches(IPS, "24"), *range_matches(IPS), *A_LIST]
SIX = [*ip_matches(IPV6, "32"), *range_matches(IPV6)]
OVER = {4: FOUR, 6: SIX}
MATCHES: dict[str, list[Match]] = {
    "": [{}],
    "mac": [*MAC_MATCHES, *either("protocolid", str(IPV4_TYPE), str(ARP_TYPE), str(0x88B5))],
    "arp": [
        *MAC_MATCHES, *either("opcode", "1", "2"), *either("arpsrcmacaddr", *MACS),
        *ip_matches(IPS, "24", "arpsrcipaddr", "arpdstipaddr"),
    ],
    "ip": [*MAC_MATCHES, *ip_matches(IPS, "24"), *A_LIST, *either("protocol", str(UDP), str(TCP))],
    "ipv6": [*MAC_MATCHES, *ip_matches(IPV6, "32"), *either("protocol", str(UDP), str(ICMPV6))],
    **{name: [*OVER[OVER_IP[name]], *PORT_MATCHES] for name in ("tcp", "udp", "tcp-ipv6", "udp-ipv6")},
    **{name: OVER[OVER_IP[name]] for name in ("all", "esp", "all-ipv6")},
    "icmp": [*FOUR, *either("type", "8", "0")],
    "icmpv6": either("type", "128", "129"),
}  # fmt: skip


def _match(parts: list[Match]) -> Match:
    """At most two conditions that do not stand in each other's way."""
    made: Match = {}
    for part in parts:
        if not {name[:5] for name in part} & {name[:5] for name in made}:
            made |= part
    return made


def _rules(protocol: str) -> st.SearchStrategy[Rule]:
    made = st.builds(
        lambda action, direction, match, priority, negated, stateful: Rule(
            action,
            direction,
            protocol,
            tuple(match.items()),
            priority,
            negated and bool(match),
            stateful,
        ),
        actions.filter(lambda each: protocol not in OVER_IP or each in ("accept", "drop", "return")),
        directions,
        st.lists(st.sampled_from(MATCHES[protocol]), max_size=2).map(_match),
        st.sampled_from((-1000, -600, -600, 0, 0, 500)),
        st.sampled_from((False, False, True)),
        st.sampled_from((True, True, False)),
    )
    return made.filter(
        lambda each: each.direction != "inout" or not any(name == "type" for name, _ in each.match)
    )


rules = st.sampled_from(sorted(MATCHES)).flatmap(_rules)
filters = st.builds(
    lambda chain, priority, rules: (chain, 0 if chain == "root" else priority, rules),
    st.sampled_from(("root", "root", "ipv4", "arp", "mac", "ipv6", "ipv4-x")),
    st.sampled_from((-700, -600, 0)),
    st.lists(rules, min_size=1, max_size=8),
)


def _sent() -> list[Frame]:
    """Frames of every kind, each with its answer at once or later: the same for every filter."""
    made: list[Frame] = []
    draw = random.Random(7)
    for _ in range(120):
        kind, ips = draw.choice(
            ((IPV4_TYPE, IPS), (IPV4_TYPE, IPS), (IPV6_TYPE, IPV6), (ARP_TYPE, IPS), (0x88B5, IPS))
        )
        protocols = (TCP, UDP, ICMP, ESP) if kind == IPV4_TYPE else (TCP, UDP, ICMPV6)
        frame = Frame(
            draw.choice(("in", "out")), kind, _two(draw, MACS), _two(draw, ips), draw.choice(protocols),
            _two(draw, PORTS), draw.choice((SYN, ACK, SYN | ACK, RST)),
            draw.choice((8, 0, 3) if kind == IPV4_TYPE else (128, 129, 134)), draw.choice((1, 2)),
        )  # fmt: skip
        answer = replace(frame.swapped(), icmp={8: 0, 128: 129}.get(frame.icmp, frame.icmp))
        made += [frame, answer] if draw.random() < 0.5 else [answer, frame]
    return made + draw.sample(made, 40)


def _two(draw: random.Random, among: Sequence[T]) -> tuple[T, T]:
    first, second = draw.sample(among, 2)
    return first, second


SENT = _sent()


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(filters, min_size=1, max_size=3),
    st.lists(st.sampled_from(("all", "all-ipv6", "mac")), max_size=2),
)
def test_the_kernel_does_what_the_documentation_says(
    bridge: Bridge, parts: list[tuple[str, int, list[Rule]]], left: list[str]
) -> None:
    made = [own(f"part{n}", *rules, chain=chain, priority=p) for n, (chain, p, rules) in enumerate(parts)]
    rest = [Rule("drop", "inout", protocol, priority=999) for protocol in left]
    whole = own("whole", *(each.name for each in made), *rest)
    model = bridge.hold(*made, whole, parameters={"LIST": [IPS[0], IPS[2]]}, anew=True)
    expected = [model.passes("whole", frame) for frame in SENT]
    passed = bridge.passed(*SENT)
    wrong = [(frame, says) for frame, says, does in zip(SENT, expected, passed, strict=True) if says != does]
    assert not wrong, f"the model says otherwise: {wrong}"
