"""Interface documents: text in, checked element in libvirt's order out, and back."""

from __future__ import annotations

from copy import deepcopy
from xml.etree.ElementTree import Element

from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.domain_shape import ANY, Shape, keep_known
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.write import write_element

_TYPES = ("ethernet", "bridge", "bond", "vlan")
_MEMBER = Shape(("type", "name"), {"mac": Shape(("address",))})
INTERFACE = Shape(
    ("type", "name"),
    {
        "start": Shape(("mode",)),
        "mtu": Shape(("size",)),
        "link": Shape(("speed", "state")),
        "protocol": Shape(
            ("family",),
            {
                "autoconf": Shape(),
                "dhcp": Shape(("peerdns",)),
                "ip": Shape(("address", "prefix")),
                "route": Shape(("gateway",)),
            },
        ),
        "mac": Shape(("address",)),
        "bridge": Shape(("stp", "delay"), {"interface": _MEMBER}),
        "bond": Shape(("mode",), {"miimon": ANY, "arpmon": ANY, "interface": _MEMBER}),
        "vlan": Shape(("tag",), {"interface": Shape(("name",))}),
    },
)


def _xml_error(detail: str) -> LibvirtError:
    return error(Code.XML_ERROR, detail, origin=Origin.INTERFACE)


def parse_interface(xml: str) -> Element:
    """Check and normalise an `<interface>` document. LibvirtError XML_DETAIL (35), XML_ERROR (27)."""
    sent = read_document(xml, "interface_definition", Origin.INTERFACE)
    if sent.tag != "interface":
        raise _xml_error(f"expecting root element of 'interface', not '{sent.tag}'")
    kind = sent.get("type")
    if kind is None:
        raise _xml_error("Missing required attribute 'type' in element 'interface'")
    if kind not in _TYPES:
        raise _xml_error(f"Invalid value for attribute 'type' in element 'interface': '{kind}'.")
    if not sent.get("name"):
        raise _xml_error("interface has no name")
    return keep_known(sent, INTERFACE)


def format_interface(interface: Element) -> str:
    """The document as a client reads it."""
    root = deepcopy(interface)
    for holder in ("bridge", "bond"):
        for member in root.iterfind(f"{holder}/interface"):
            if not len(member):
                member.text = "\n    "  # libvirt closes a member in a line of its own
    return write_element(root)
