"""Documents of networks, filters and interfaces: what is read and written once stays as it is; what is
nonsense is refused with a LibvirtError and nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor_shim.errors import LibvirtError
from hypervisor_shim.xml.interface import format_interface, parse_interface
from hypervisor_shim.xml.network import format_network, parse_network
from hypervisor_shim.xml.network_update import parse_update, updated
from hypervisor_shim.xml.nwfilter import PROTOCOLS, format_filter, parse_filter

#: Enough to meet every branch many times over; the fuzzer goes deeper.
few = settings(max_examples=40, deadline=None)

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)
macs = st.integers(0, 255).map(lambda last: f"52:54:00:00:00:{last:02x}")
numbers = st.integers(0, 255)


_PARTS = (
    "<mtu size='1400'/>",
    "<domain name='x'/>",
    "<bridge stp='off'/>",
    "<unknown><deep/></unknown>",
    "<title>t</title>",
    "<metadata><k:a xmlns:k='urn:k'/></metadata>",
    "<port isolated='yes'/>",
)


@st.composite
def networks(draw: st.DrawFn) -> str:
    third, prefix = draw(numbers), draw(st.integers(8, 30))
    network = ipaddress.IPv4Network(f"10.1.{third}.0/{prefix}", strict=False)
    hosts = "".join(
        f"<host mac='{mac}' ip='{network[1]}'/>" for mac in draw(st.lists(macs, max_size=3, unique=True))
    )
    span = f"<range start='{network[1]}' end='{network[-2]}'/>" if draw(st.booleans()) else ""
    inner = f"<dhcp>{hosts}{span}</dhcp>" if draw(st.booleans()) else ""
    parts = draw(
        st.lists(
            st.sampled_from(_PARTS),
            unique=True,
        )
    )  # fmt: skip
    parts.append(f"<ip address='{network[1]}' prefix='{prefix}'>{inner}</ip>")
    return f"<network><name>n</name>{''.join(draw(st.permutations(parts)))}</network>"


@few
@given(networks())
def test_a_network_that_was_read_once_stays_as_it_is(xml: str) -> None:
    once = format_network(parse_network(xml))
    assert format_network(parse_network(once)) == once


@few
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["accept", "drop", "reject", "return", "continue"]),
            st.sampled_from(["in", "out", "inout"]),
            st.sampled_from(sorted(PROTOCOLS)),
            st.fixed_dictionaries(
                {},
                optional={
                    "comment": texts.filter(lambda text: not text.startswith("$")),  # a variable
                    "state": st.sampled_from(("new", "NONE", "ESTABLISHED,NEW", "")),
                    "protocolid": st.sampled_from(("0x800", "34525", "0X88B5", "ARP")),
                    "srcmacaddr": st.sampled_from(("1:2:3:4:5:A", "$MAC[@01] ")),
                    "opcode": st.sampled_from(("request", "9", "0x1", "11")),
                    "dscp": st.sampled_from(("007", "0X10")),
                },
            ),
        ),
        max_size=4,
    )
)
def test_a_filter_that_was_read_once_stays_as_it_is(
    rules: list[tuple[str, str, str, dict[str, str]]],
) -> None:
    body = "".join(
        f"<rule action='{action}' direction='{direction}'><{protocol} "
        + " ".join(f"{name}={quoteattr(value)}" for name, value in match.items())
        + "/></rule>"
        for action, direction, protocol, match in rules
    )
    once = format_filter(parse_filter(f"<filter name='f'>{body}</filter>"), bytes(16))
    assert format_filter(parse_filter(once), bytes(16)) == once


PARSERS: list[Callable[[str], object]] = [
    lambda xml: format_network(parse_network(xml)),
    lambda xml: format_filter(parse_filter(xml), bytes(16)),
    lambda xml: format_interface(parse_interface(xml)),
]
_TAGS = st.sampled_from(
    ("network", "filter", "interface", "name", "uuid", "ip", "dhcp", "range", "host", "rule", "filterref",
     "tcp", "mac", "mtu", "forward", "bridge")
)  # fmt: skip
_NAMES = st.sampled_from(
    ("name", "type", "address", "prefix", "netmask", "start", "end", "mac", "ip", "mode", "size", "stp",
     "delay", "action", "chain")
)  # fmt: skip
_VALUES = st.sampled_from(("10.0.0.1", "24", "-1", "ethernet", "::1", "0x1", "drop", "nat"))
_ATTRIBUTES = st.dictionaries(_NAMES, st.one_of(texts, _VALUES), max_size=4)


def _written(tag: str, attributes: dict[str, str], children: list[str]) -> str:
    pairs = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items())
    return f"<{tag} {pairs}>{''.join(children)}</{tag}>"


def _element(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(_written, _TAGS, _ATTRIBUTES, st.lists(inner, max_size=4))


documents = st.recursive(_element(st.just("")), _element, max_leaves=12)


@pytest.mark.parametrize("parse", PARSERS, ids=["network", "filter", "interface"])
@few
@given(xml=documents)
def test_nonsense_is_refused_and_nothing_else(parse: Callable[[str], object], xml: str) -> None:
    for root in ("network", "filter", "interface"):
        try:
            parse(f"<{root} name='n' type='ethernet'><name>n</name>{xml}</{root}>")
        except LibvirtError:
            continue


@few
@given(
    command=st.integers(-1, 5),
    section=st.integers(-1, 14),
    index=st.integers(-2, 3),
    xml=st.one_of(documents, texts),
)
def test_an_update_changes_or_is_refused(command: int, section: int, index: int, xml: str) -> None:
    network = parse_network(
        "<network><name>n</name><ip address='10.0.0.1' prefix='24'><dhcp>"
        "<host mac='52:54:00:00:00:01' ip='10.0.0.9'/></dhcp></ip></network>"
    )
    try:
        update = parse_update(xml, command=command, section=section, index=index, name="n")
        changed = updated(network, update)
    except LibvirtError:
        return
    assert format_network(parse_network(format_network(changed))) == format_network(changed)
