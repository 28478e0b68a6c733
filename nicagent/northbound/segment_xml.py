"""Between libvirt's `<network>` and our segment: pure functions.

A segment's VNI stands in the network's metadata, under a namespace of ours:

    <metadata>
      <nic:segment xmlns:nic="urn:nicagent:segment:1"><nic:vni>100</nic:vni></nic:segment>
    </metadata>

`<ip address=…>` names the network; the agent has no address in it, and gives the one that is written there to
no port, so that a router of the tenant's own may have it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.driver import Metadata, MetadataKind
from hypervisor_shim.xml.network import (
    describe,
    format_network,
    parse_network,
    place,
    set_metadata,
)
from hypervisor_shim.xml.network_def import Ip, NetworkDef
from nicagent.errors import Kind, NicagentError
from nicagent.network.contract import bridge_name
from nicagent.segments import Definition, Record, lies_in

NAMESPACE = "urn:nicagent:segment:1"
NAME_MAX = 255
DOCUMENT_MAX = 256 * 1024  # characters: thousands of them are kept in the store
MTU_DEFAULT, MTU_MIN, MTU_MAX = 1450, 576, 9000

#: What a segment does not do, and why: element → reason.
REFUSED: Mapping[str, str] = {
    "mac": "the bridge of a segment has the MAC that follows from its VNI",
    "domain": "the agent serves no DNS",
    "dns": "the agent serves no DNS",
    "vlan": "a segment is a VXLAN: its number is the VNI in the metadata",
    "bandwidth": "rates are limited at ports, not at segments",
    "port": "ports of a segment reach one another",
    "route": "the agent routes nothing: a segment has no router unless the tenant brings one",
    "virtualport": "the agent's bridge is the kernel's own",
    "portgroup": "all ports of a segment are alike",
}


def to_definition(network: NetworkDef) -> Definition:
    """What the owner of segments needs of a network. Raises UNSUPPORTED naming the element, INVALID."""
    name, tree = network.name, network.tree
    if not name.isprintable() or len(name) > NAME_MAX:
        raise NicagentError(
            Kind.INVALID, "the name of a network has a sign that cannot be shown, or is too long", "mend it"
        )
    if network.forward is not None:
        raise _cannot(
            name,
            f"forward mode '{network.forward}' cannot be true of a segment, which is an isolated network",
            "leave <forward> out",
        )
    for tag, reason in REFUSED.items():
        if tree.find(tag) is not None:
            raise _cannot(name, f"<{tag}>: {reason}", f"leave <{tag}> out")
    for attribute in ("ipv6", "trustGuestRxFilters"):
        if tree.get(attribute, "no") != "no":
            raise _cannot(name, f"{attribute}: ports are guarded, and have no IPv6 address", "leave it out")
    ip = _only_ip(network)
    cidr = str(ipaddress.IPv4Network(f"{ip.address}/{ip.prefix}", strict=False))
    vni = _vni(network)
    if network.bridge is not None and (vni is None or network.bridge != bridge_name(vni)):
        raise _cannot(
            name,
            f"bridge '{network.bridge}': the agent names the bridge of a segment after its VNI",
            "leave the bridge's name out",
        )
    xml = format_network(network)
    if len(xml) > DOCUMENT_MAX:
        raise _cannot(name, f"a document of {len(xml)} characters", f"keep it below {DOCUMENT_MAX}")
    mtu = network.mtu or MTU_DEFAULT
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise _cannot(name, f"an MTU of {mtu} bytes", f"take one from {MTU_MIN} to {MTU_MAX}")
    return Definition(
        name=name,
        cidr=cidr,
        range=_range(name, ip, cidr),
        vni=vni,
        mtu=mtu,
        reserved=(ip.address,),
        fixed=_fixed(name, ip, cidr),
        xml=xml,
    )


def _cannot(name: str, what: str, hint: str) -> NicagentError:
    return NicagentError(Kind.UNSUPPORTED, f"network '{name}': {what}", hint)


def _only_ip(network: NetworkDef) -> Ip:
    if len(network.ips) != 1 or network.ips[0].family != "ipv4" or network.ips[0].prefix is None:
        raise _cannot(
            network.name,
            "a port is guarded by its IPv4 address, so a segment has exactly one IPv4 network",
            "write one <ip address='10.1.0.1' netmask='255.255.255.0'/>",
        )
    ip = network.ips[0]
    if ip.prefix is not None and not 8 <= ip.prefix <= 30:
        raise _cannot(network.name, f"a network of prefix length {ip.prefix}", "take one from 8 to 30")
    for path, what in (("tftp", "tftp"), ("dhcp/bootp", "bootp"), ("dhcp//lease", "a lease time of its own")):
        if network.tree.find(f"ip/{path}") is not None:
            raise _cannot(network.name, f"the agent's DHCP has no {what}", "leave it out")
    return ip


def _vni(network: NetworkDef) -> int | None:
    element = network.metadata.get(NAMESPACE)
    if element is None:
        return None
    # The prefix is the client's own choice.
    found = next((each for each in element.iter() if each.tag.rpartition(":")[2] == "vni"), None)
    text = (found.text or "").strip() if found is not None else ""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 1 << 24:
        raise NicagentError(
            Kind.INVALID,
            f"network '{network.name}': its metadata of {NAMESPACE} names no VNI from 1 to 16777215",
            "write <nic:segment><nic:vni>100</nic:vni></nic:segment>",
        )
    return int(text)


def _range(name: str, ip: Ip, cidr: str) -> tuple[str, str]:
    """What DHCP may give: the range as written, else all of the network but its ends."""
    if len(ip.ranges) > 1:
        raise _cannot(name, f"{len(ip.ranges)} DHCP ranges", "write one")
    if ip.ranges:
        return ip.ranges[0]
    network = ipaddress.IPv4Network(cidr)
    return str(network[1]), str(network[-2])


def _fixed(name: str, ip: Ip, cidr: str) -> dict[str, str]:
    fixed: dict[str, str] = {}
    for host in ip.hosts:
        if host.mac is None or host.ip is None or not lies_in(host.ip, cidr):
            raise _cannot(name, "a DHCP host without a MAC and an address of the network", "write both")
        if host.name is not None:
            raise _cannot(name, "the name that DHCP gives a host is its domain's", "leave the name out")
        fixed[host.mac] = host.ip
    return fixed


# ---- back ----------------------------------------------------------------------------------------------


def to_network(record: Record, definition: Definition) -> NetworkDef:
    """The network as it is true of the agent: as it was written, with what the agent decides filled in."""
    root = deepcopy(parse_network(definition.xml or _document(record, definition)).tree)
    uuid = root.find("uuid")
    assert uuid is not None
    uuid.text = record.uuid
    assert definition.vni is not None
    bridge = _child(root, "bridge")
    bridge.attrib = {"name": bridge_name(definition.vni), "stp": "off", "delay": "0"}
    _child(root, "mtu").attrib = {"size": str(definition.mtu)}
    _addresses(root, definition)
    vni = f"<segment><vni>{definition.vni}</vni></segment>"
    return set_metadata(describe(root), Metadata(MetadataKind.ELEMENT, vni, "nic", NAMESPACE))


def _document(record: Record, definition: Definition) -> str:
    """A segment of the config in libvirt's words: its network's own address stands for none."""
    network = ipaddress.IPv4Network(definition.cidr)
    root = Element("network")
    SubElement(root, "name").text = definition.name
    SubElement(root, "uuid").text = record.uuid
    SubElement(root, "ip", address=str(network.network_address), netmask=str(network.netmask))
    return format_network(replace(describe(root), tree=root))


def _addresses(root: Element, definition: Definition) -> None:
    ip = root.find("ip")
    assert ip is not None
    dhcp = ip.find("dhcp")
    if dhcp is not None:
        ip.remove(dhcp)
    dhcp = SubElement(ip, "dhcp")
    SubElement(dhcp, "range", start=definition.range[0], end=definition.range[1])
    for mac, address in sorted(definition.fixed.items()):
        SubElement(dhcp, "host", mac=mac, ip=address)


def _child(root: Element, tag: str) -> Element:
    found = root.find(tag)
    return place(root, tag) if found is None else found
