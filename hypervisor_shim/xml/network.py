"""Network documents: text in, `NetworkDef` out, and back, as libvirtd would."""

from __future__ import annotations

import ipaddress
import re
import secrets
from copy import deepcopy
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.driver.facts import Metadata, MetadataKind
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml import metadata
from hypervisor_shim.xml.domain_check import parse_uuid
from hypervisor_shim.xml.domain_fill import tidy_metadata
from hypervisor_shim.xml.domain_shape import ANY, TEXT, Shape, keep_known
from hypervisor_shim.xml.network_def import DhcpHost, Ip, NetworkDef
from hypervisor_shim.xml.read import declarations, namespace_of, read_document
from hypervisor_shim.xml.write import write_element

_MAC = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")
#: Modes in which libvirt makes the bridge itself, and so says how.
_OWN_BRIDGE = (None, "nat", "route", "open")
_MODES = ("none", "nat", "route", "open", "bridge", "private", "vepa", "passthrough", "hostdev")

#: What libvirt reads of a network, in the order in which it writes it.
NETWORK = Shape(
    ("ipv6", "trustGuestRxFilters"),
    {
        "name": TEXT,
        "uuid": TEXT,
        "title": TEXT,
        "description": TEXT,
        "metadata": ANY,
        "forward": Shape(
            ("dev", "mode", "managed"),
            {"driver": Shape(("name",)), "pf": Shape(("dev",)), "interface": Shape(("dev",)), "nat": ANY,
             "address": Shape(("type", "domain", "bus", "slot", "function"))},
        ),
        "bridge": Shape(("name", "zone", "stp", "delay", "macTableManager")),
        "mtu": Shape(("size",)),
        "mac": Shape(("address",)),
        "domain": Shape(("name", "localOnly", "register")),
        "dns": ANY,
        "vlan": ANY,
        "bandwidth": ANY,
        "port": Shape(("isolated",)),
        "ip": Shape(
            ("family", "address", "netmask", "prefix", "localPtr"),
            {
                "tftp": Shape(("root",)),
                "dhcp": Shape(
                    (),
                    {"range": Shape(("start", "end"), {"lease": ANY}),
                     "host": Shape(("id", "mac", "name", "ip"), {"lease": ANY}),
                     "bootp": Shape(("file", "server"))},
                ),
            },
        ),
        "route": Shape(("family", "address", "netmask", "prefix", "gateway", "metric")),
        "virtualport": ANY,
        "portgroup": ANY,
    },
)  # fmt: skip


def xml_error(detail: str) -> LibvirtError:
    return error(Code.XML_ERROR, detail, origin=Origin.NETWORK)


def parse_network(xml: str) -> NetworkDef:
    """Check and normalise a `<network>` document of at most 4 MiB. A missing UUID is made up.

    Raises LibvirtError: XML_DETAIL (35) not well-formed, XML_ERROR (27) and others for content that libvirtd
    refuses.
    """
    sent = read_document(xml, "network_definition", Origin.NETWORK)
    if sent.tag != "network":
        raise xml_error(f"expecting root element of 'network', not '{sent.tag}'")
    root = keep_known(sent, NETWORK)
    _identity(root)
    tidy_metadata(root, declarations(sent))
    _forward(root)
    _link(root)
    for ip in root.iterfind("ip"):
        _check_ip(ip, root.findtext("name") or "")
    return describe(root)


def format_network(definition: NetworkDef) -> str:
    """The document as a client reads it."""
    root = deepcopy(definition.tree)
    for tag in ("ip", "portgroup"):
        for element in root.iterfind(tag):
            if not len(element):
                element.text = "\n  "  # libvirt closes these two in a line of its own
    return write_element(root)


def format_port(uuid: bytes, *, owner: tuple[str, str], mac: str, bridge: str) -> str:
    """A `<networkport>` document. `owner`: name and UUID of the domain."""
    root = Element("networkport")
    SubElement(root, "uuid").text = uuid_text(uuid)
    who = SubElement(root, "owner")
    SubElement(who, "name").text, SubElement(who, "uuid").text = owner
    SubElement(root, "mac", address=mac)
    SubElement(root, "plug", type="bridge", bridge=bridge)
    return write_element(root)


# ---- checks and defaults -------------------------------------------------------------------------------


def _identity(root: Element) -> None:
    name = root.findtext("name")
    if not name:
        raise LibvirtError(Code.NO_NAME, "missing name information", origin=Origin.NETWORK)
    if "/" in name:
        raise LibvirtError(Code.XML_DETAIL, "invalid char in name: /", origin=Origin.XML)
    first = root.find("name")
    root[:] = [child for child in root if child.tag != "name" or child is first]
    raw, given = secrets.token_bytes(16), root.find("uuid")
    if given is not None:
        known = parse_uuid(given.text or "")
        if known is None:
            raise error(Code.INTERNAL_ERROR, "malformed uuid element", origin=Origin.NETWORK)
        raw = known
    else:
        raw = raw[:6] + bytes([raw[6] & 0x0F | 0x40, raw[7], raw[8] & 0x3F | 0x80]) + raw[9:]
        given = place(root, "uuid")
    given.text = uuid_text(raw)
    for tag in ("title", "description"):
        element = root.find(tag)
        if element is not None and not element.text:
            root.remove(element)


def _forward(root: Element) -> None:
    forward = root.find("forward")
    if forward is None:
        return
    mode = forward.get("mode", "nat")
    if mode not in _MODES:
        raise error(Code.CONFIG_UNSUPPORTED, f"unknown forwarding type '{mode}'", origin=Origin.NETWORK)
    if mode == "none":
        root.remove(forward)
        return
    if mode in ("nat", "route", "open") and root.find("ip") is None:
        raise xml_error(
            f"{mode} forwarding requested, but no IP address provided for network '{root.findtext('name')}'"
        )
    forward.attrib = {
        name: value
        for name, value in (("dev", forward.get("dev")), ("mode", mode), ("managed", forward.get("managed")))
        if value is not None
    }
    if forward.get("dev") and forward.find("interface") is None:
        SubElement(forward, "interface", dev=forward.attrib["dev"])


def _link(root: Element) -> None:
    name, forward, bridge = root.findtext("name"), root.find("forward"), root.find("bridge")
    mode = None if forward is None else forward.get("mode")
    if mode in _OWN_BRIDGE:
        if bridge is None:
            bridge = place(root, "bridge")
        bridge.set("stp", "off" if bridge.get("stp") == "off" else "on")
        bridge.set("delay", bridge.get("delay", "0"))
        if not bridge.attrib["delay"].isdecimal():
            raise xml_error(f"Invalid bridge delay '{bridge.get('delay')}' in network '{name}'")
    mac = root.find("mac")
    if mac is not None and not _MAC.fullmatch(mac.get("address", "")):
        raise xml_error(f"Invalid bridge mac address '{mac.get('address', '')}' in network '{name}'")
    mtu = root.find("mtu")
    if mtu is not None and not mtu.get("size", "").isdecimal():
        raise xml_error(f"Invalid mtu size '{mtu.get('size', '')}' in network '{name}'")


def _check_ip(ip: Element, network: str) -> None:
    address = ip.get("address")
    if address is None:
        raise xml_error(f"Missing required address attribute in network '{network}'")
    family = ip.get("family", "ipv4")
    if family not in ("ipv4", "ipv6"):
        raise xml_error(f"Invalid address family '{family}' in network '{network}'")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise xml_error(f"Invalid address '{address}' in network '{network}'") from None
    if parsed.version != (4 if family == "ipv4" else 6):
        raise xml_error(f"family '{family}' specified for address '{address}' in network '{network}'")
    try:
        within = _network_of(ip)
    except ValueError:
        what = f"netmask '{ip.get('netmask')}'" if ip.get("netmask") else f"prefix '{ip.get('prefix')}'"
        raise xml_error(f"Invalid {what} in network '{network}'") from None
    dhcp = ip.find("dhcp")
    if dhcp is None:
        return
    if not len(dhcp):
        ip.remove(dhcp)
    for span in dhcp.iterfind("range"):
        check_range(span, within, ip)
    for host in dhcp.iterfind("host"):
        check_host(host, network, family)


def _network_of(ip: Element) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The network that an `<ip>` is in, None without netmask and prefix. ValueError for a wrong one."""
    length = ip.get("netmask") or ip.get("prefix")
    if length is None:
        return None
    return ipaddress.ip_network(f"{ip.get('address')}/{length}", strict=False)


def check_range(
    span: Element, within: ipaddress.IPv4Network | ipaddress.IPv6Network | None, ip: Element
) -> None:
    """A DHCP range lies in its network, its ends in order."""
    try:
        first, last = (ipaddress.ip_address(span.get(end, "")) for end in ("start", "end"))
    except ValueError:
        raise xml_error("Missing or invalid 'start' or 'end' attribute in DHCP range") from None
    words = f"range {first} - {last}"
    if within is not None and (first not in within or last not in within):
        what = f"is not entirely within network {ip.get('address')}/{within.prefixlen}"
        raise error(Code.INTERNAL_ERROR, f"{words} {what}", origin=Origin.NONE)
    if int(first) > int(last):
        raise error(Code.INTERNAL_ERROR, f"{words} is reversed ", origin=Origin.NONE)


def check_host(host: Element, network: str, family: str) -> None:
    """A DHCP host names a client and an address."""
    kind = "IPv4" if family == "ipv4" else "IPv6"
    if family == "ipv4" and not (host.get("mac") or host.get("name")):
        raise xml_error(
            f"Static host definition in {kind} network '{network}' must have mac or name attribute"
        )
    if host.get("mac") and not _MAC.fullmatch(host.get("mac", "")):
        raise xml_error(f"Cannot parse MAC address '{host.get('mac')}' in network '{network}'")
    if host.get("ip") is None:
        raise xml_error(f"Missing IP address in static host definition for network '{network}'")
    try:
        ipaddress.ip_address(host.get("ip", ""))
    except ValueError:
        raise xml_error(f"Invalid IP address in static host definition for network '{network}'") from None


# ---- metadata ------------------------------------------------------------------------------------------


def get_metadata(definition: NetworkDef, kind: MetadataKind, uri: str | None) -> str:
    """Title, description, or element text; NO_NETWORK_METADATA (111) if it is not there."""
    found = metadata.find(definition, kind, uri)
    if found is None:
        raise error(
            Code.NO_NETWORK_METADATA, "Requested metadata element is not present", origin=Origin.NETWORK
        )
    return found


def set_metadata(definition: NetworkDef, change: Metadata) -> NetworkDef:
    """The definition with that piece of metadata replaced or removed."""

    def read(text: str) -> Element:
        return read_document(text, "(metadata_xml)", Origin.XML)

    order = NETWORK.children
    return describe(metadata.replaced(definition.tree, change, order=order, read=read))


# ---- the typed view ------------------------------------------------------------------------------------


def place(root: Element, tag: str) -> Element:
    """A new child where libvirt writes it."""
    return metadata.place(root, tag, NETWORK.children)


def describe(root: Element) -> NetworkDef:
    """The typed view of a normalised document."""
    uuid = parse_uuid(root.findtext("uuid") or "")
    assert uuid is not None
    metadata, mtu = root.find("metadata"), _get(root, "mtu", "size")
    return NetworkDef(
        name=root.findtext("name") or "",
        uuid=uuid,
        title=root.findtext("title"),
        description=root.findtext("description"),
        metadata={}
        if metadata is None
        else {uri: each for each in metadata if (uri := namespace_of(each, {})) is not None},
        forward=_get(root, "forward", "mode"),
        bridge=_get(root, "bridge", "name"),
        mac=_get(root, "mac", "address"),
        mtu=int(mtu) if mtu else None,
        domain=_get(root, "domain", "name"),
        ips=tuple(_ip(each) for each in root.iterfind("ip")),
        tree=root,
    )


def _get(root: Element, tag: str, attribute: str) -> str | None:
    element = root.find(tag)
    return None if element is None else element.get(attribute)


def _ip(ip: Element) -> Ip:
    within = _network_of(ip)
    return Ip(
        ip.get("family", "ipv4"),
        ip.attrib["address"],
        None if within is None else within.prefixlen,
        tuple((span.get("start", ""), span.get("end", "")) for span in ip.iterfind("dhcp/range")),
        tuple(
            DhcpHost(host.get("ip"), (host.get("mac") or "").lower() or None, host.get("name"))
            for host in ip.iterfind("dhcp/host")
        ),
    )
