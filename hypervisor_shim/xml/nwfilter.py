"""Filter documents: text in, `FilterDef` out, and back, as libvirtd would."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.domain_check import parse_uuid
from hypervisor_shim.xml.nwfilter_def import FilterDef
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.write import write_element

_CHAINS = ("root", "mac", "vlan", "stp", "arp", "rarp", "ipv4", "ipv6")
#: Where chains stand that name no priority of their own (libvirt's documentation of nwfilter).
_PRIORITIES = {
    "root": 0, "stp": -810, "mac": -800, "vlan": -750, "ipv4": -700, "ipv6": -600, "arp": -500, "rarp": -400,
}  # fmt: skip
_ACTIONS = ("drop", "accept", "reject", "return", "continue")
_DIRECTIONS = ("in", "out", "inout")
_RULE_PRIORITY = 500

_MACS = "srcmacaddr srcmacmask dstmacaddr dstmacmask"
_ADDRESSES = "srcipaddr srcipmask dstipaddr dstipmask"
_PORTS = "srcportstart srcportend dstportstart dstportend"
_LAYER4 = f"srcmacaddr {_ADDRESSES} srcipfrom srcipto dstipfrom dstipto dscp connlimit-above state"
_IP = f"{_MACS} {_ADDRESSES} protocol {_PORTS} type typeend code codeend dscp comment"
_ARP = (
    f"{_MACS} hwtype protocoltype opcode arpsrcmacaddr arpdstmacaddr arpsrcipaddr arpsrcipmask arpdstipaddr"
    " arpdstipmask gratuitous comment"
)
_ATTRIBUTES = {
    "mac": f"{_MACS} protocolid comment",
    "vlan": f"{_MACS} vlanid encap-protocol comment",
    "stp": f"{_MACS} type flags comment",
    "arp": _ARP,
    "rarp": _ARP,
    "ip": _IP,
    "ipv6": _IP,
    "tcp": f"{_LAYER4} {_PORTS} option flags ipset ipsetflags comment",
    "udp": f"{_LAYER4} {_PORTS} ipset ipsetflags comment",
    "sctp": f"{_LAYER4} {_PORTS} ipset ipsetflags comment",
    "icmp": f"{_LAYER4} type code ipset ipsetflags comment",
    "icmpv6": f"{_LAYER4} type code ipset ipsetflags comment",
    **dict.fromkeys(("udplite", "esp", "ah", "all", "igmp"), f"{_LAYER4} ipset ipsetflags comment"),
}
_OVER_IPV6 = ("tcp", "udp", "sctp", "udplite", "esp", "ah", "all")
#: The attributes of a rule's protocols, in the order in which they are written.
PROTOCOLS: dict[str, tuple[str, ...]] = {
    **{name: tuple(names.split()) for name, names in _ATTRIBUTES.items()},
    **{f"{name}-ipv6": tuple(_ATTRIBUTES[name].split()) for name in _OVER_IPV6},
}


def _internal(detail: str) -> LibvirtError:
    return error(Code.INTERNAL_ERROR, detail, origin=Origin.NWFILTER)


def parse_filter(xml: str) -> FilterDef:
    """Check and normalise a `<filter>` document of at most 4 MiB.

    Raises LibvirtError: XML_DETAIL (35), XML_ERROR (27), and others for content that libvirtd refuses.
    """
    sent = read_document(xml, "nwfilter_definition", Origin.NWFILTER)
    if sent.tag != "filter":
        raise error(
            Code.XML_ERROR, f"expecting root element of 'filter', not '{sent.tag}'", origin=Origin.NWFILTER
        )
    name = sent.get("name")
    if not name:
        raise _internal("filter has no name")
    root, chain = _head(sent, name)
    uuid = None
    text = sent.findtext("uuid")
    if text is not None:
        uuid = parse_uuid(text)
        if uuid is None:
            raise error(Code.XML_ERROR, "malformed uuid element", origin=Origin.NWFILTER)
    for child in sent:
        if child.tag == "rule":
            root.append(_rule(child))
        elif child.tag == "filterref":
            root.append(_reference(child))
    references = tuple(each.get("filter", "") for each in root.iterfind("filterref"))
    return FilterDef(name, uuid, chain, int(root.get("priority", "0")), references, root)


def format_filter(definition: FilterDef, uuid: bytes) -> str:
    """The document as a client reads it."""
    root = deepcopy(definition.tree)
    element = Element("uuid")
    element.text = uuid_text(uuid)
    root.insert(0, element)
    return write_element(root)


def format_binding(
    *,
    owner: tuple[str, str],
    port: str,
    mac: str,
    filter: str,
    parameters: Mapping[str, Sequence[str]],
) -> str:
    """A `<filterbinding>` document. `owner`: name and UUID of the domain."""
    root = Element("filterbinding")
    who = SubElement(root, "owner")
    SubElement(who, "name").text, SubElement(who, "uuid").text = owner
    SubElement(root, "portdev", name=port)
    SubElement(root, "mac", address=mac)
    reference = SubElement(root, "filterref", filter=filter)
    for name, values in parameters.items():
        for value in values:
            SubElement(reference, "parameter", name=name, value=value)
    return write_element(root)


def _head(sent: Element, name: str) -> tuple[Element, str]:
    root = Element("filter", name=name)
    chain = sent.get("chain", "root")
    kind = next((known for known in _CHAINS if chain == known or chain.startswith(f"{known}-")), None)
    if kind is None or (kind == "root" and chain != "root"):
        raise error(
            Code.INVALID_ARG,
            f"Invalid chain name '{chain}'. Please use a chain name called 'root' or any of the following"
            f" prefixes: {', '.join(_CHAINS[1:])}",
            origin=Origin.NWFILTER,
        )
    root.set("chain", chain)
    priority = sent.get("priority")
    if priority is not None:
        try:
            value = int(priority, 0)
        except ValueError:
            raise error(
                Code.INVALID_ARG, f"Could not parse chain priority '{priority}'", origin=Origin.NWFILTER
            ) from None
        if not -1000 <= value <= 1000:
            raise error(
                Code.INVALID_ARG,
                f"Priority '{value}' is outside valid range of [-1000,1000]",
                origin=Origin.NWFILTER,
            )
        root.set("priority", str(value))
    elif chain != "root":
        root.set("priority", str(_PRIORITIES[kind]))
    return root, chain


def _rule(sent: Element) -> Element:
    action, direction = sent.get("action"), sent.get("direction")
    if action is None:
        raise _internal("rule node requires action attribute")
    if action not in _ACTIONS:
        raise _unsupported("unknown rule action attribute value")
    if direction is None:
        raise _internal("rule node requires direction attribute")
    if direction not in _DIRECTIONS:
        raise _unsupported("unknown rule direction attribute value")
    rule = Element("rule", action=action, direction=direction)
    priority = sent.get("priority", "")
    known = re.fullmatch(r"-?[0-9]+", priority) is not None and -1000 <= int(priority) <= 1000
    rule.set("priority", str(int(priority)) if known else str(_RULE_PRIORITY))
    if sent.get("statematch", "").lower() in ("0", "false"):
        rule.set("statematch", "false")
    for child in sent:
        if child.tag in PROTOCOLS:
            rule.append(_protocol(child))
            break  # a rule is about one protocol: the first
    return rule


def _protocol(sent: Element) -> Element:
    made = Element(sent.tag)
    if sent.get("match") == "no":
        made.set("match", "no")
    for name in PROTOCOLS[sent.tag]:
        value = sent.get(name)
        if value is None:
            continue
        if name.endswith(("ipaddr", "ipfrom", "ipto")) and not value.startswith("$") and not _address(value):
            raise _internal(f"{name} has illegal value {value}")
        made.set(name, value)
    return made


def _address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _reference(sent: Element) -> Element:
    name = sent.get("filter")
    if not name:
        raise _internal("filterref node requires filter attribute")
    made = Element("filterref", filter=name)
    for parameter in sent.iterfind("parameter"):
        made.append(Element("parameter", name=parameter.get("name", ""), value=parameter.get("value", "")))
    return made


def _unsupported(detail: str) -> LibvirtError:
    return error(Code.CONFIG_UNSUPPORTED, detail, origin=Origin.NWFILTER)
