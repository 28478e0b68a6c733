"""`<bandwidth>` of an interface: how fast its domain may receive (inbound) and send (outbound)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import Code, error
from hypervisor_shim.xml.domain import parse_domain
from hypervisor_shim.xml.domain_def import Bandwidth, DomainDef, Interface, Rate
from hypervisor_shim.xml.write import write_element

#: Children of `<interface>` that libvirt writes before this one.
_BEFORE = frozenset(("mac", "source", "virtualport", "vlan"))


def interface_named(definition: DomainDef, name: str, targets: Mapping[str, str]) -> Interface:
    """By its MAC address, or by the device that it has; `targets`: devices of a running domain, by MAC.
    Raises INVALID_ARG."""
    for each in definition.interfaces:
        if name.lower() == each.mac or name in (each.target, targets.get(each.mac)):
            return each
    raise error(Code.INVALID_ARG, f"'{name}' is not a known interface")


def merged(known: Bandwidth, given: Mapping[str, int]) -> Bandwidth:
    """What a client's parameters make of what there is, as libvirt takes them: a direction of which they name
    the average or the floor is replaced, or taken away where these are 0; another stays."""
    ways: dict[str, Rate | None] = {"inbound": known.inbound, "outbound": known.outbound}
    for way in ways:
        named = {key.removeprefix(f"{way}."): value for key, value in given.items() if key.startswith(way)}
        if "average" in named or "floor" in named:
            ways[way] = Rate(**named) if named.get("average") or named.get("floor") else None
    return Bandwidth(**ways)


def with_bandwidth(definition: DomainDef, mac: str, wanted: Bandwidth) -> DomainDef:
    """The definition with these rates at the interface of that address."""
    root = deepcopy(definition.tree)
    for interface in root.iterfind("devices/interface"):
        address = interface.find("mac")
        if address is None or address.get("address") != mac:
            continue
        for old in interface.findall("bandwidth"):
            interface.remove(old)
        if wanted != Bandwidth():
            place = sum(child.tag in _BEFORE for child in interface)
            interface.insert(place, _element(wanted))
    return parse_domain(write_element(root), arch=definition.arch)


def _element(wanted: Bandwidth) -> Element:
    element = Element("bandwidth")
    for way, rate in (("inbound", wanted.inbound), ("outbound", wanted.outbound)):
        if rate is not None:
            values = {name: getattr(rate, name) for name in ("average", "peak", "floor", "burst")}
            SubElement(element, way, {name: str(value) for name, value in values.items() if value})
    return element
