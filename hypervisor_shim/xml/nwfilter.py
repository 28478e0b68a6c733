"""Filter documents: text in, `FilterDef` out, and back, as libvirtd would."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.domain_check import parse_uuid
from hypervisor_shim.xml.nwfilter_def import FilterDef
from hypervisor_shim.xml.nwfilter_values import written
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
_CHAIN_LETTERS = re.compile(r"[a-zA-Z0-9_.:-]*")
_CHAIN_MAX = 12
_PARAMETER_NAME = re.compile(r"[a-zA-Z0-9_]+")
_PARAMETER_VALUE = re.compile(r"[a-zA-Z0-9_.:]+")
_PORTED = ("tcp", "udp", "33", "0x21", "sctp")

_MACS = "srcmacaddr srcmacmask dstmacaddr dstmacmask"
_ADDRESSES = "srcipaddr srcipmask dstipaddr dstipmask"
_PORTS = "srcportstart srcportend dstportstart dstportend"
_LAYER4 = f"srcmacaddr {_ADDRESSES} srcipfrom srcipto dstipfrom dstipto dscp connlimit-above state"
_IP = f"{_MACS} {_ADDRESSES} protocol {_PORTS} dscp comment"
_IPV6 = f"{_MACS} {_ADDRESSES} protocol {_PORTS} type typeend code codeend dscp comment"
_ARP = (
    f"{_MACS} hwtype protocoltype opcode arpsrcmacaddr arpdstmacaddr arpsrcipaddr arpsrcipmask arpdstipaddr"
    " arpdstipmask gratuitous comment"
)
_STP = (
    "root-priority root-priority-hi root-address root-address-mask root-cost root-cost-hi sender-priority"
    " sender-priority-hi sender-address sender-address-mask port port-hi age age-hi max-age max-age-hi"
    " hello-time hello-time-hi forward-delay forward-delay-hi"
)
_ATTRIBUTES = {
    "mac": f"{_MACS} protocolid comment",
    "vlan": f"{_MACS} vlanid encap-protocol comment",
    "stp": f"{_MACS} type flags {_STP} comment",
    "arp": _ARP,
    "rarp": _ARP,
    "ip": _IP,
    "ipv6": _IPV6,
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
    if text:
        uuid = parse_uuid(text)
        if uuid is None:
            raise error(Code.XML_ERROR, "malformed uuid element", origin=Origin.NWFILTER)
    for child in sent:
        if child.tag == "rule":
            root.append(_rule(child))
        elif child.tag == "filterref":
            root.append(_reference(child))
    references = tuple(each.get("filter", "") for each in root.iterfind("filterref"))
    priority = int(root.get("priority", _PRIORITIES[chain_kind(chain) or "root"]))
    return FilterDef(name, uuid, chain, priority, references, root)


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


def chain_kind(chain: str) -> str | None:
    """The protocol by which frames come to a chain: what its name begins with. None for a name of none."""
    if chain == "root":
        return "root"
    return next((kind for kind in _CHAINS[1:] if chain.startswith(kind)), None)


def _chain(detail: str) -> LibvirtError:
    return error(Code.INVALID_ARG, detail, origin=Origin.NWFILTER)


def _head(sent: Element, name: str) -> tuple[Element, str]:
    root = Element("filter", name=name)
    chain = sent.get("chain") or "root"
    if len(chain) > _CHAIN_MAX:
        raise _chain(f"Name of chain is longer than {_CHAIN_MAX} characters")
    if not _CHAIN_LETTERS.fullmatch(chain):
        raise _chain("Chain name contains invalid characters")
    kind = chain_kind(chain)
    if kind is None:
        raise _chain(
            f"Invalid chain name '{chain}'. Please use a chain name called 'root' or any of the following"
            f" prefixes: {', '.join(_CHAINS[1:])}"
        )
    root.set("chain", chain)
    priority = sent.get("priority")
    if priority is not None:
        value = _decimal(priority)
        if value is None:
            raise _chain(f"Could not parse chain priority '{priority}'")
        if not -1000 <= value <= 1000:
            raise _chain(f"Priority '{value}' is outside valid range of [-1000,1000]")
        root.set("priority", str(value))
    elif kind not in ("root", "stp"):  # libvirtd does not show stp's
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
    priority = _decimal(sent.get("priority", ""))
    known = priority is not None and -1000 <= priority <= 1000
    rule.set("priority", str(priority if known else _RULE_PRIORITY))
    if sent.get("statematch", "").lower() in ("0", "false"):
        rule.set("statematch", "false")
    abouts = [child for child in sent if child.tag in PROTOCOLS]
    if abouts:  # a rule is about one protocol, the first; what is said of it twice counts together
        rule.append(_protocol([each for each in abouts if each.tag == abouts[0].tag]))
    return rule


def _decimal(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,9}", text) else None


def _protocol(sent: Sequence[Element]) -> Element:
    made = Element(sent[0].tag)
    said: dict[str, str] = {}
    for each in sent:
        said |= each.attrib
    if said.get("match") == "no":
        made.set("match", "no")
    for name in PROTOCOLS[made.tag]:
        if name in said:
            try:
                made.set(name, written(made.tag, name, said[name]))
            except ValueError:
                raise _internal(f"{name} has illegal value {said[name]}") from None
    ports = any(name in made.attrib for name in _PORTS.split())
    if made.tag in ("ip", "ipv6") and ports and made.get("protocol") not in _PORTED:
        version = "IP" if made.tag == "ip" else "IPv6"
        raise _internal(
            f"{version} rule with port specification requires protocol specification"
            " with protocol to be either one of tcp(6), udp(17), dccp(33), or sctp(132)"
        )
    return made


def _reference(sent: Element) -> Element:
    name = sent.get("filter")
    if not name:
        raise _internal("filterref node requires filter attribute")
    made = Element("filterref", filter=name)
    # Kept by name; the values of one name stay in the order they came. What is no name or value is left out.
    for parameter in sorted(sent.iterfind("parameter"), key=lambda each: each.get("name", "")):
        key, value = parameter.get("name", ""), parameter.get("value", "")
        if _PARAMETER_NAME.fullmatch(key) and _PARAMETER_VALUE.fullmatch(value):
            made.append(Element("parameter", name=key, value=value))
    return made


def _unsupported(detail: str) -> LibvirtError:
    return error(Code.CONFIG_UNSUPPORTED, detail, origin=Origin.NWFILTER)
