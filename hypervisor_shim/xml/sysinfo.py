"""`<sysinfo>`: what a machine's firmware says of it, in SMBIOS' own sections and entries."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.xml.write import write_element

#: The sections, in libvirt's order.
SECTIONS = ("bios", "system", "baseBoard", "chassis", "processor")


def format_sysinfo(sections: Mapping[str, Mapping[str, str]]) -> str:
    """The document; `sections` are some of SECTIONS, each with its entries in the order to be shown."""
    root = Element("sysinfo", {"type": "smbios"})
    for name in SECTIONS:
        entries = sections.get(name)
        if entries:
            section = SubElement(root, name)
            for key, value in entries.items():
                SubElement(section, "entry", {"name": key}).text = value
    return write_element(root)
