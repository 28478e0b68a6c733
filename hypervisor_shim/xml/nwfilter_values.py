"""The values of a filter rule's attributes: how each is read, and how it is written back.

Measured with libvirtd's own driver (tests/differential/test_nwfilter.py): numbers stay decimal or hexadecimal
as they came, what has a name gets it, addresses and masks are written in their usual form.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence

Writer = Callable[[str], str]  # raises ValueError for what is no value of its kind

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,8}|\s*\+?[0-9]{1,10}")
_MAC = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")
_IPV4 = re.compile(r"[0-9a-fA-FxX]+(\.[0-9a-fA-FxX]+){0,3}")
#: A variable: each of its values, the one of an index, or those of an iterator (`$A[@1]`).
_VARIABLE = re.compile(r"(\$[A-Za-z0-9_]*)(?:\[(@?)([0-9]{1,10})\])?\s*")


def _number(last: int, names: Mapping[int, str] | None = None, first: int = 0) -> Writer:
    known = names or {}

    def write(text: str) -> str:
        for number, name in known.items():
            if name.lower() in (text.lower(), known.get(_value(text), "").lower()):
                return known[number]
        value = _value(text)
        if not first <= value <= last:
            raise ValueError(text)
        return hex(value) if text[:2].lower() == "0x" else str(value)

    return write


def _value(text: str) -> int:
    """A number as it is written, -1 for what is none."""
    if _NUMBER.fullmatch(text) is None:
        return -1
    return int(text, 16 if text[:2].lower() == "0x" else 10)


def _mac(text: str) -> str:
    if _MAC.fullmatch(text) is None:
        raise ValueError(text)
    return ":".join(f"{int(octet, 16):02x}" for octet in text.split(":"))


def _contiguous(mask: int, width: int) -> int:
    """The length of the prefix that a mask stands for."""
    bits = mask.bit_count()
    if mask != (2**bits - 1) << (width - bits):
        raise ValueError(mask)
    return bits


def _mac_mask(text: str) -> str:
    written = _mac(text)
    _contiguous(int(written.replace(":", ""), 16), 48)
    return written


def _ipv4(text: str) -> str:
    if _IPV4.fullmatch(text) is None:
        raise ValueError(text)
    return socket.inet_ntoa(
        _packed(socket.inet_aton, text)
    )  # short and octal forms, as getaddrinfo takes them


def _ipv6(text: str) -> str:
    return socket.inet_ntop(
        socket.AF_INET6, _packed(lambda each: socket.inet_pton(socket.AF_INET6, each), text)
    )


def _packed(read: Callable[[str], bytes], text: str) -> bytes:
    try:
        return read(text)
    except OSError:
        raise ValueError(text) from None


def _bits(width: int, read: Callable[[str], bytes]) -> Writer:
    """A prefix length, given as one or as a netmask."""

    def write(text: str) -> str:
        if re.fullmatch(r"[0-9]{1,3}", text):
            if int(text) > width:
                raise ValueError(text)
            return str(int(text))
        return str(_contiguous(int.from_bytes(_packed(read, text), "big"), width))

    return write


_bits4 = _bits(32, lambda text: socket.inet_pton(socket.AF_INET, text))
_bits6 = _bits(128, lambda text: socket.inet_pton(socket.AF_INET6, text))


def _words(known: Sequence[str], last: int) -> Writer:
    """A list of words, in any case and order; written in theirs."""

    def write(text: str) -> str:
        said = [word.strip().upper() for word in text.split(",")]
        if not set(said) <= set(known) or len(said) > last:
            raise ValueError(text)
        return ",".join(word for word in known if word in said)

    return write


_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
_flag_words = _words(("", "NONE", *_FLAGS, "ALL"), 8)


def _flags(text: str) -> str:
    mask, slash, value = text.partition("/")
    if not slash:
        raise ValueError(text)
    return f"{_flag_list(mask)}/{_flag_list(value)}"


def _flag_list(text: str) -> str:
    said = set(_flag_words(text).split(","))
    if "ALL" in said or said >= set(_FLAGS):
        return "ALL"
    return ",".join(flag for flag in _FLAGS if flag in said) or "NONE"


def _boolean(text: str) -> str:
    return "true" if text in ("true", "yes", "1") else "false"


_state_words = _words(("NEW", "ESTABLISHED", "RELATED", "INVALID", "NONE"), 5)


def _states(text: str) -> str:
    said = _state_words(text) if text else ""
    return "NONE" if said.endswith("NONE") else said


def _text(text: str) -> str:
    return text[:256]


_ETHERTYPES = {0x0800: "ipv4", 0x0806: "arp", 0x8035: "rarp", 0x86DD: "ipv6", 0x8100: "vlan"}
_PROTOCOLS = {
    1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 50: "esp", 51: "ah", 58: "icmpv6", 132: "sctp", 136: "udplite",
}  # fmt: skip
_OPCODES = {
    1: "Request", 2: "Reply", 3: "Request_Reverse", 4: "Reply_Reverse", 5: "DRARP_Request", 6: "DRARP_Reply",
    7: "DRARP_Error", 8: "InARP_Request", 9: "ARP_NAK",
}  # fmt: skip
_BYTE, _WORD, _LONG = _number(0xFF), _number(0xFFFF), _number(0xFFFFFFFF)
_ETHERTYPE = _number(0xFFFF, _ETHERTYPES, 0x600)

#: Attributes whose values are of one kind wherever they stand.
_WRITERS: Mapping[str, Writer] = {
    **dict.fromkeys(("srcmacaddr", "dstmacaddr", "arpsrcmacaddr", "arpdstmacaddr"), _mac),
    **dict.fromkeys(("root-address", "sender-address"), _mac),
    **dict.fromkeys(("srcmacmask", "dstmacmask", "root-address-mask", "sender-address-mask"), _mac_mask),
    **dict.fromkeys(("arpsrcipaddr", "arpdstipaddr"), _ipv4),
    **dict.fromkeys(("arpsrcipmask", "arpdstipmask"), _bits4),
    **dict.fromkeys(
        ("srcportstart", "srcportend", "dstportstart", "dstportend", "hwtype", "protocoltype"), _WORD
    ),
    **dict.fromkeys(("type", "typeend", "code", "codeend", "option"), _BYTE),
    **dict.fromkeys(("root-cost", "root-cost-hi"), _LONG),
    "protocolid": _ETHERTYPE,
    "encap-protocol": _ETHERTYPE,
    "protocol": _number(0xFF, _PROTOCOLS),
    "opcode": _number(0xFFFF, _OPCODES),
    "dscp": _number(63),
    "vlanid": _number(4095),
    "connlimit-above": _WORD,
    "gratuitous": _boolean,
    "state": _states,
    "comment": _text,
    "ipset": _text,
    "ipsetflags": _text,
}
_ADDRESSES = ("srcipaddr", "dstipaddr", "srcipfrom", "srcipto", "dstipfrom", "dstipto")
_MASKS = ("srcipmask", "dstipmask")


def written(protocol: str, name: str, text: str) -> str:
    """An attribute's value as libvirtd writes it. Raises ValueError for one that it refuses."""
    if text.startswith("$"):
        variable = _VARIABLE.fullmatch(text)
        if variable is None or int(variable[3] or 0) > 0xFFFFFFFF:
            raise ValueError(text)
        name, iterates, number = variable.groups()
        return name if number is None else f"{name}[{iterates}{int(number)}]"
    over_ipv6 = "ipv6" in protocol or protocol == "icmpv6"
    if name in _ADDRESSES:
        return (_ipv6 if over_ipv6 else _ipv4)(text)
    if name in _MASKS:
        return (_bits6 if over_ipv6 else _bits4)(text)
    if name == "flags":
        return (_BYTE if protocol == "stp" else _flags)(text)
    return _WRITERS.get(name, _WORD)(text)
