"""What `virsh net-update` does: one element of a network added, changed or taken away."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from copy import deepcopy
from xml.etree.ElementTree import Element

from hypervisor_shim.driver.network import Command, Update, invalid_network
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.network import check_host, check_range, describe, place
from hypervisor_shim.xml.network_def import NetworkDef
from hypervisor_shim.xml.read import read_document

#: libvirt's numbers of sections, and how it names them.
_NAMES = (
    "none", "bridge", "domain", "ip", "ip-dhcp-host", "ip-dhcp-range", "forward", "forward interface",
    "forward pf", "portgroup", "dns host", "dns txt", "dns srv",
)  # fmt: skip
DHCP_HOST, DHCP_RANGE = 4, 5
_FORWARD_INTERFACE, _PORTGROUP = 7, 9
_DNS = {10: "host", 11: "txt", 12: "srv"}
#: The element that an update of a section sends.
_ELEMENTS = {
    DHCP_HOST: "host",
    DHCP_RANGE: "range",
    _FORWARD_INTERFACE: "interface",
    _PORTGROUP: "portgroup",
    **_DNS,
}

Same = Callable[[Element, Element], bool]


def parse_update(xml: str, *, command: int, section: int, index: int, name: str) -> Update:
    """What a client asks of the network of that name. Raises OPERATION_UNSUPPORTED (84) for sections that
    never change and commands that there are not, XML_DETAIL (35) and XML_ERROR (27) for the document."""
    if section not in range(1, len(_NAMES)):
        raise _unsupported("can't update unrecognized section of network")
    if section in (1, 2, 3, 6, 8):
        raise _unsupported(f"can't update '{_NAMES[section]}' section of network '{name}'")
    if command not in set(Command):
        raise _unsupported(f"unrecognized network update command code {command}")
    sent = read_document(xml, "network_update_xml", Origin.NETWORK)
    return Update(Command(command), section, index, _expect(sent, _ELEMENTS[section]))


def updated(definition: NetworkDef, update: Update) -> NetworkDef:
    """The definition after the update. Raises as libvirtd does: OPERATION_INVALID (55) where an element is
    not there or is there already."""
    root, name = deepcopy(definition.tree), definition.name
    command, section, sent = update.command, update.section, deepcopy(update.element)
    if section == DHCP_HOST:
        _dhcp_host(root, definition, command, update.index, sent)
    elif section == DHCP_RANGE:
        _dhcp_range(root, definition, command, update.index, sent)
    elif section == _PORTGROUP:
        _change(root, command, sent, _by("name"), "portgroup", name)
    elif section == _FORWARD_INTERFACE:
        forward = root.find("forward")
        if forward is None:
            raise invalid_network(f"network '{name}' has no forward element")
        _change(forward, command, sent, _by("dev"), "forward interface", name)
    else:
        dns = root.find("dns")
        if dns is None:
            dns = place(root, "dns")
        key = "ip" if _DNS[section] == "host" else "name" if _DNS[section] == "txt" else "service"
        _change(dns, command, sent, _by(key), f"DNS {_DNS[section].upper()}", name)
        if not len(dns):
            root.remove(dns)
    return describe(root)


def _dhcp_host(root: Element, definition: NetworkDef, command: Command, index: int, host: Element) -> None:
    name = definition.name
    ip = _ip_for(root, name, index, host.get("ip"), "dhcp host")
    if command is not Command.DELETE:
        check_host(host, name, ip.get("family", "ipv4"))
    dhcp = _dhcp(ip)
    if command is Command.DELETE:
        found = next((each for each in dhcp.iterfind("host") if _agrees(each, host)), None)
        if found is None:
            raise invalid_network(f"couldn't locate a matching dhcp host entry in network '{name}'")
        dhcp.remove(found)
    else:
        same = next((each for each in dhcp.iterfind("host") if _clashes(each, host)), None)
        if command is Command.MODIFY:
            if same is None:
                raise invalid_network(
                    f"couldn't locate an existing dhcp host entry with \"mac='{host.get('mac')}'\" "
                    f"\"name='{host.get('name', '(null)')}'\" \"ip='{host.get('ip')}'\" in network '{name}'"
                )
            dhcp[list(dhcp).index(same)] = host
        else:
            if same is not None:
                words = " ".join(f"{key}='{host.get(key, '(null)')}'" for key in ("mac", "name", "ip"))
                raise _there(f"<host {words}/>", "dhcp host", name)
            _add(dhcp, host, command, behind=("range", "host"))
    if not len(dhcp):
        ip.remove(dhcp)


def _dhcp_range(root: Element, definition: NetworkDef, command: Command, index: int, span: Element) -> None:
    name = definition.name
    if command is Command.MODIFY:
        raise _unsupported("dhcp ranges cannot be modified, only added or deleted")
    ip = _ip_for(root, name, index, span.get("start"), "dhcp range")
    length = ip.get("netmask") or ip.get("prefix") or "0"
    check_range(span, ipaddress.ip_network(f"{ip.get('address')}/{length}", strict=False), ip)
    dhcp = _dhcp(ip)
    same = next((each for each in dhcp.iterfind("range") if each.attrib == span.attrib), None)
    if command is Command.DELETE:
        if same is None:
            raise invalid_network(f"couldn't locate a matching dhcp range entry in network '{name}'")
        dhcp.remove(same)
    else:
        if same is not None:
            words = f"<range start='{span.get('start')}' end='{span.get('end')}'/>"
            raise _there(words, "dhcp range", name)
        _add(dhcp, span, command, behind=("range",))
    if not len(dhcp):
        ip.remove(dhcp)


def _ip_for(root: Element, network: str, index: int, address: str | None, what: str) -> Element:
    """The `<ip>` that an update is about: the one of that index, else the one the address lies in."""
    found = root.findall("ip")
    if index >= 0:
        if index >= len(found):
            raise invalid_network(
                f"couldn't update {what} entry - no <ip> element found at index {index}"
                f" in network '{network}'"
            )
        return found[index]
    for ip in found:
        length = ip.get("netmask") or ip.get("prefix")
        try:
            if address and ipaddress.ip_address(address) in ipaddress.ip_network(
                f"{ip.get('address')}/{length}", strict=False
            ):
                return ip
        except ValueError:
            continue
    with_dhcp = [ip for ip in found if ip.find("dhcp") is not None] or found
    if not with_dhcp:
        raise invalid_network(
            f"couldn't update {what} entry - no <ip> element found at index 0 in network '{network}'"
        )
    return with_dhcp[0]


def _dhcp(ip: Element) -> Element:
    dhcp = ip.find("dhcp")
    if dhcp is None:
        dhcp = Element("dhcp")
        ip.append(dhcp)
    return dhcp


def _clashes(one: Element, other: Element) -> bool:
    """Two hosts that share a MAC, a name or an address cannot both be."""
    return any(
        one.get(key) and (one.get(key) or "").lower() == (other.get(key) or "").lower()
        for key in ("mac", "name", "ip")
    )


def _agrees(one: Element, other: Element) -> bool:
    return all(
        not other.get(key) or (one.get(key) or "").lower() == (other.get(key) or "").lower()
        for key in ("mac", "name", "ip")
    )


def _add(parent: Element, element: Element, command: Command, behind: tuple[str, ...]) -> None:
    tags = [child.tag for child in parent]
    if command is Command.ADD_FIRST:
        place_at = sum(tag in behind and tag != element.tag for tag in tags)
    else:
        place_at = sum(tag in behind for tag in tags)
    parent.insert(place_at, element)


def _by(key: str) -> Same:
    return lambda one, other: one.get(key) == other.get(key)


def _change(
    parent: Element,
    command: Command,
    element: Element,
    same: Same,
    what: str,
    network: str,
) -> None:
    found = next((each for each in parent.iterfind(element.tag) if same(each, element)), None)
    if command in (Command.MODIFY, Command.DELETE):
        if found is None:
            raise invalid_network(f"couldn't find a matching {what} entry in network '{network}'")
        if command is Command.DELETE:
            parent.remove(found)
        else:
            parent[list(parent).index(found)] = element
    elif found is not None:
        raise invalid_network(f"there is already a matching {what} entry in network '{network}'")
    else:
        parent.append(element)


def _there(words: str, what: str, network: str) -> LibvirtError:
    return invalid_network(
        f"there is an existing {what} entry in network '{network}' that matches \"{words}\""
    )


def _expect(sent: Element, tag: str) -> Element:
    if sent.tag != tag:
        raise error(
            Code.XML_ERROR, f"expecting root element of '{tag}', not '{sent.tag}'", origin=Origin.NETWORK
        )
    return sent


def _unsupported(detail: str) -> LibvirtError:
    return error(Code.OPERATION_UNSUPPORTED, detail, origin=Origin.NETWORK)
