"""libvirt's language of network filters as data, and what of it a port can be held to.

Words and meaning are those of libvirt's nwfilter (its documentation "Network Filters"). What is not taken
here is refused by name when a filter is defined: nothing of a filter is left out in silence.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from nicagent.errors import Kind, NicagentError

RULES_MAX = 1024  # of one filter, references among them

Names = tuple[
    tuple[str, tuple[str, ...]], ...
]  # parameters in the order of their names, each with its values


class Rule(msgspec.Struct, frozen=True, tag="rule"):
    """What becomes of a frame. `direction`: "out" from the host, "in" to it. `match`: attributes of
    `protocol`, as written; empty with an empty protocol means every frame. `negated`: each of them must not
    be so. `stateful`: accepted in one direction, the answers are accepted as well."""

    action: str
    direction: str
    protocol: str = ""
    match: tuple[tuple[str, str], ...] = ()
    priority: int = 500
    negated: bool = False
    stateful: bool = True


class Reference(msgspec.Struct, frozen=True, tag="filterref"):
    """All of another filter in this place. `parameters` give values to its variables that have none yet."""

    filter: str
    parameters: Names = ()


class Filter(msgspec.Struct, frozen=True):
    """A filter. `priority`: where its chain stands among those that the root chain jumps to. `xml`: the
    document of a client's own, as it reads it."""

    name: str
    uuid: str
    chain: str = "root"
    priority: int = 0
    entries: tuple[Rule | Reference, ...] = ()
    xml: str = ""

    @property
    def refers(self) -> tuple[str, ...]:
        """The names of the filters that it refers to."""
        return tuple(each.filter for each in self.entries if isinstance(each, Reference))


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────

Value = int | str
Reader = Callable[[str], Value]  # raises ValueError for what is no value of its kind

_MAC = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")


def _mac(text: str) -> str:
    if not _MAC.fullmatch(text):
        raise ValueError(text)
    return ":".join(f"{int(octet, 16):02x}" for octet in text.split(":"))


def _ipv4(text: str) -> str:
    return str(ipaddress.IPv4Address(text))


def _ipv6(text: str) -> str:
    return str(ipaddress.IPv6Address(text))


def _bits(address: type[ipaddress.IPv4Address | ipaddress.IPv6Address], width: int) -> Reader:
    """Reads a prefix length, given as one or as a netmask."""

    def read(text: str) -> int:
        if text.isdecimal():
            bits = int(text)
            if bits > width:
                raise ValueError(text)
            return bits
        mask = int(address(text))
        bits = mask.bit_count()
        if mask != (2**bits - 1) << (width - bits):
            raise ValueError(text)
        return bits

    return read


_bits4, _bits6 = _bits(ipaddress.IPv4Address, 32), _bits(ipaddress.IPv6Address, 128)


def _number(last: int, names: Mapping[str, int] | None = None, first: int = 0) -> Reader:
    """A number, decimal or hexadecimal, or one of the names that some have."""

    def read(text: str) -> int:
        value = (names or {}).get(text.lower())
        if value is None:
            if not _NUMBER.fullmatch(text):
                raise ValueError(text)
            value = int(text, 16 if text[:2].lower() == "0x" else 10)
        if not first <= value <= last:
            raise ValueError(text)
        return value

    return read


_BYTE, _PORT = _number(255), _number(65535)
_DSCP = _number(63)
ETHERTYPES = {"ipv4": 0x0800, "arp": 0x0806, "rarp": 0x8035, "vlan": 0x8100, "ipv6": 0x86DD}
PROTOCOL_NUMBERS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "esp": 50, "ah": 51, "icmpv6": 58, "sctp": 132, "udplite": 136,
}  # fmt: skip
_OPCODES = (
    "request", "reply", "request_reverse", "reply_reverse", "drarp_request", "drarp_reply", "drarp_error",
    "inarp_request", "arp_nak",
)  # fmt: skip
_TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32}


def _tcp_flags(text: str) -> str:
    """`mask/set`, each a list of flags, ALL or NONE; read as two numbers."""
    mask, slash, value = text.partition("/")
    if not slash:
        raise ValueError(text)
    return f"{_flag_bits(mask)}/{_flag_bits(value)}"


def _flag_bits(text: str) -> int:
    bits = 0
    for word in text.strip().lower().split(","):
        if word not in (*_TCP_FLAGS, "all", "none"):
            raise ValueError(text)
        bits |= _TCP_FLAGS.get(word, 63 if word == "all" else 0)
    return bits


# ── protocols ───────────────────────────────────────────────────────────────────────────────────────────

_MACS = {"srcmacaddr": _mac, "srcmacmask": _mac, "dstmacaddr": _mac, "dstmacmask": _mac}
_PORTS = dict.fromkeys(("srcportstart", "srcportend", "dstportstart", "dstportend"), _PORT)
_TYPES = {"type": _BYTE, "code": _BYTE}


def _addresses(address: Reader, bits: Reader) -> dict[str, Reader]:
    return {"srcipaddr": address, "srcipmask": bits, "dstipaddr": address, "dstipmask": bits}


def _ranges(address: Reader) -> dict[str, Reader]:
    return dict.fromkeys(("srcipfrom", "srcipto", "dstipfrom", "dstipto"), address)


_IP_PROTOCOL = {"protocol": _number(255, PROTOCOL_NUMBERS)}
_FRAME: Mapping[str, Mapping[str, Reader]] = {
    "": {},
    "mac": {**_MACS, "protocolid": _number(65535, ETHERTYPES, 0x600)},
    "arp": {
        **_MACS,
        "hwtype": _PORT,
        "protocoltype": _PORT,
        "opcode": _number(65535, {name: number for number, name in enumerate(_OPCODES, start=1)}),
        "arpsrcmacaddr": _mac,
        "arpdstmacaddr": _mac,
        **{f"arp{name}": reader for name, reader in _addresses(_ipv4, _bits4).items()},
    },
    "ip": {**_MACS, **_addresses(_ipv4, _bits4), **_IP_PROTOCOL, **_PORTS, "dscp": _DSCP},
    "ipv6": {
        **_MACS, **_addresses(_ipv6, _bits6), **_IP_PROTOCOL, **_PORTS, **_TYPES,
        "typeend": _BYTE, "codeend": _BYTE, "dscp": _DSCP,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Packet:
    """A protocol over IP: `number` is None for every one. `version`: 4 or 6."""

    version: int
    number: int | None


_OVER_BOTH = ("tcp", "udp", "udplite", "sctp", "esp", "ah", "all")
PACKETS: Mapping[str, Packet] = {
    **{name: Packet(4, PROTOCOL_NUMBERS.get(name)) for name in (*_OVER_BOTH, "icmp", "igmp")},
    **{f"{name}-ipv6": Packet(6, PROTOCOL_NUMBERS.get(name)) for name in _OVER_BOTH},
    "icmpv6": Packet(6, PROTOCOL_NUMBERS["icmpv6"]),
}
_DCCP = 33
_WITH_PORTS = ("tcp", "udp", "udplite", "sctp")


def _readers(protocol: str) -> Mapping[str, Reader]:
    if protocol in _FRAME:
        return _FRAME[protocol]
    packet, plain = PACKETS[protocol], protocol.removesuffix("-ipv6")
    address, bits = (_ipv4, _bits4) if packet.version == 4 else (_ipv6, _bits6)
    found: dict[str, Reader] = {"srcmacaddr": _mac, **_addresses(address, bits), **_ranges(address)}
    found["dscp"] = _DSCP
    if plain in _WITH_PORTS:
        found |= _PORTS
    if plain == "tcp":
        found["flags"] = _tcp_flags
    if plain in ("icmp", "icmpv6"):
        found |= _TYPES
    return found


READERS: Mapping[str, Mapping[str, Reader]] = {name: _readers(name) for name in (*_FRAME, *PACKETS)}

_CHAINS = ("root", "mac", "vlan", "stp", "arp", "rarp", "ipv4", "ipv6")
#: Attributes, and values of such, that say nothing about traffic.
_SILENT = ("comment",)
_IDLE = (("state", ""), ("state", "NONE"), ("gratuitous", "false"))
#: An attribute that is nothing without another one.
_NEEDS = {
    "srcmacmask": "srcmacaddr", "dstmacmask": "dstmacaddr",
    "srcipmask": "srcipaddr", "dstipmask": "dstipaddr",
    "arpsrcipmask": "arpsrcipaddr", "arpdstipmask": "arpdstipaddr", "srcportend": "srcportstart",
    "dstportend": "dstportstart", "srcipfrom": "srcipto", "srcipto": "srcipfrom", "dstipfrom": "dstipto",
    "dstipto": "dstipfrom", "typeend": "type", "codeend": "code", "code": "type",
}  # fmt: skip
_WHY = {
    "state": "a rule names no states of a connection: accepting in one direction accepts the answers too",
    "connlimit-above": "connections are not counted",
    "ipset": "the agent keeps no address sets; give a variable a list of values",
    "ipsetflags": "the agent keeps no address sets; give a variable a list of values",
    "option": "TCP options are not looked at",
    "gratuitous": "the two addresses of an ARP packet are not compared with each other",
    "vlan": "no tagged frame passes a port",
    "stp": "no spanning tree passes a port",
    "rarp": "no RARP passes a port; <rule><mac protocolid='rarp'/></rule> matches it",
}

_VARIABLE = re.compile(r"\$([A-Za-z0-9_]+)(?:\[(@?)([0-9]{1,9})\])?")


def variable(text: str) -> tuple[str, int | None, int] | None:
    """A value that names a variable: its name, the index of the one value meant (None: each of them), and
    the iterator that walks through them (`$A` is `$A[@0]`). None for a plain value.
    """
    found = _VARIABLE.fullmatch(text)
    if found is None:
        return None
    name, iterates, number = found.groups()
    if number is None:
        return name, None, 0
    return (name, None, int(number)) if iterates else (name, int(number), 0)


def says(name: str, text: str) -> bool:
    """Whether an attribute of that value says anything about traffic."""
    return name not in _SILENT and (name, text) not in _IDLE


def chain_kind(chain: str) -> str:
    """The protocol by which frames come to a chain: what its name begins with."""
    return next((kind for kind in _CHAINS if chain.startswith(kind)), "root")


def read(rule: Rule, name: str, text: str, where: str) -> Value:
    """The value of an attribute. Raises INVALID naming it."""
    try:
        return READERS[rule.protocol][name](text)
    except ValueError:
        raise NicagentError(Kind.INVALID, f"{where}: {name} has illegal value {text}") from None


_SPANS = (
    ("srcportstart", "srcportend"), ("dstportstart", "dstportend"), ("type", "typeend"), ("code", "codeend"),
    ("srcipfrom", "srcipto"), ("dstipfrom", "dstipto"),
)  # fmt: skip


def coherent(values: Mapping[str, Value], where: str) -> None:
    """Spans among a rule's values, as far as they are there, end after they begin. Raises INVALID."""
    for first, last in _SPANS:
        if first in values and last in values and _order(values[first]) > _order(values[last]):
            raise NicagentError(
                Kind.INVALID, f"{where}: {first} {values[first]} lies beyond {last} {values[last]}"
            )


def _order(value: Value) -> int:
    return value if isinstance(value, int) else int(ipaddress.ip_address(value))


def check(filter: Filter) -> None:
    """A port can be held to all of this filter. Raises UNSUPPORTED or INVALID, naming the element."""
    where = f"filter '{filter.name}'"
    if len(filter.entries) > RULES_MAX:
        raise NicagentError(
            Kind.UNSUPPORTED,
            f"{where} has more than {RULES_MAX} rules",
            "split it: a filter may refer to others",
        )
    kind = chain_kind(filter.chain)
    if kind in ("vlan", "stp"):
        raise _unsupported(where, f"chain '{filter.chain}'", _WHY[kind])
    for number, rule in enumerate(filter.entries, start=1):
        if isinstance(rule, Rule):
            _check_rule(rule, f"{where}, rule {number}")


def _check_rule(rule: Rule, where: str) -> None:
    if rule.protocol not in READERS:
        raise _unsupported(where, f"<{rule.protocol}>", _WHY[rule.protocol])
    names = {name for name, text in rule.match if says(name, text)}
    for name, text in rule.match:
        if not says(name, text):
            continue
        if name not in READERS[rule.protocol]:
            raise _unsupported(where, f"{name} of <{rule.protocol}>", _WHY.get(name, "it is not looked at"))
        if name in _NEEDS and _NEEDS[name] not in names:
            raise _unsupported(where, f"{name} of <{rule.protocol}>", f"it needs {_NEEDS[name]} beside it")
        if text.startswith("$"):
            if variable(text) is None:
                raise NicagentError(Kind.INVALID, f"{where}: {name} has illegal value {text}")
        else:
            read(rule, name, text, where)
    _check_whole(rule, names, where)


def _check_whole(rule: Rule, names: set[str], where: str) -> None:
    """What single attributes do not show."""
    over_ip = rule.protocol in PACKETS
    if over_ip and rule.action in ("reject", "continue"):
        why = {
            "reject": "the agent answers nobody in a host's name; write drop",
            "continue": "only rules for frames have it, as in libvirt",
        }
        raise _unsupported(where, f"action '{rule.action}' of <{rule.protocol}>", why[rule.action])
    if rule.protocol in ("icmp", "icmpv6") and "type" in names and rule.direction == "inout":
        raise _unsupported(
            where,
            f"a type of <{rule.protocol}> in both directions",
            "libvirt makes nothing of it; write two rules",
        )
    if rule.negated and "code" in names:
        raise _unsupported(where, "match='no' of type and code", "write it as two rules")
    protocol = next((text for name, text in rule.match if name == "protocol"), None)
    ports = {name for name in names if "port" in name}
    if rule.protocol in ("ip", "ipv6") and ports:
        needs = {_DCCP, *(PROTOCOL_NUMBERS[name] for name in _WITH_PORTS)}
        if rule.negated or protocol is None or read(rule, "protocol", protocol, where) not in needs:
            raise _unsupported(
                where, f"{min(ports)} of <{rule.protocol}>", "it needs a protocol that has ports beside it"
            )
    is_icmp = protocol is not None and read(rule, "protocol", protocol, where) == PROTOCOL_NUMBERS["icmpv6"]
    if rule.protocol == "ipv6" and "type" in names and (rule.negated or not is_icmp):
        raise _unsupported(where, "type of <ipv6>", "it needs protocol='icmpv6' beside it")
    plain = {name: text for name, text in rule.match if name in names and not text.startswith("$")}
    coherent({name: read(rule, name, text, where) for name, text in plain.items()}, where)


def _unsupported(where: str, what: str, why: str) -> NicagentError:
    return NicagentError(Kind.UNSUPPORTED, f"{where}: {what} cannot be true of a port here: {why}")
