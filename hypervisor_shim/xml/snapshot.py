"""Snapshot documents: what a client asks for, and what is kept, in libvirt's words."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.driver.snapshot import Snapshot, SnapshotDisk, SnapshotRequest
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.graphics import hide_passwords
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.write import write_element

_HOW = ("no", "internal", "external", "manual")


def parse_snapshot(xml: str) -> SnapshotRequest:
    """Raises XML_DETAIL for what is not well-formed, XML_ERROR and others for what libvirtd refuses."""
    root = read_document(xml)
    if root.tag != "domainsnapshot":
        detail = f"expecting root element of 'domainsnapshot', not '{root.tag}'"
        raise error(Code.XML_ERROR, detail, origin=Origin.XML)
    name = root.findtext("name") or None
    if name is not None and "/" in name:
        raise error(Code.XML_ERROR, f"name {name} cannot contain '/'", origin=Origin.DOMAIN_SNAPSHOT)
    memory = root.find("memory")
    how = None if memory is None else _how(memory)
    file = None if memory is None else memory.get("file")
    if file is not None and how is None:
        how = "external"
    if how == "external" and file is None:
        raise _bad("external memory snapshots require a filename")
    if file is not None and how != "external":
        raise _bad(f"memory filename '{file}' requires external snapshot")
    return SnapshotRequest(
        name,
        root.findtext("description") or None,
        how,
        file,
        tuple(_disk(each) for each in root.iterfind("disks/disk")),
    )


def _how(element: Element) -> str | None:
    how = element.get("snapshot")
    if how is not None and how not in _HOW:
        detail = f"Invalid value for attribute 'snapshot' in element '{element.tag}': '{how}'."
        raise error(Code.XML_ERROR, detail, origin=Origin.XML)
    return how


def _bad(detail: str) -> LibvirtError:
    return error(Code.XML_ERROR, detail, origin=Origin.DOMAIN_SNAPSHOT)


def _disk(disk: Element) -> SnapshotDisk:
    name = disk.get("name")
    if name is None:
        raise _bad("missing name from disk snapshot element")
    source, driver = disk.find("source"), disk.find("driver")
    path = None if source is None else source.get("file") or source.get("dev")
    format = None if driver is None else driver.get("type")
    how = _how(disk)
    if how is None and (path is not None or format is not None):
        how = "external"
    if how != "external" and path is not None:
        raise _bad(f"file '{path}' for disk '{name}' requires use of external snapshot mode")
    return SnapshotDisk(name, how or "", path, format)


def format_snapshot(snapshot: Snapshot, *, secure: bool = False) -> str:
    """The document as a client reads it; without `secure` the passwords of screens are left out."""
    root = Element("domainsnapshot")
    SubElement(root, "name").text = snapshot.name
    if snapshot.description:
        SubElement(root, "description").text = snapshot.description
    SubElement(root, "state").text = snapshot.state
    if snapshot.parent is not None:
        SubElement(SubElement(root, "parent"), "name").text = snapshot.parent
    SubElement(root, "creationTime").text = str(snapshot.created)
    SubElement(root, "memory", snapshot=snapshot.memory)
    if snapshot.disks:
        disks = SubElement(root, "disks")
        for disk in snapshot.disks:
            shown = SubElement(disks, "disk", name=disk.target, snapshot=disk.how)
            if disk.how == "external":
                shown.set("type", "file")
                SubElement(shown, "driver", type=disk.format or "qcow2")
                SubElement(shown, "source", file=disk.path or "")
    domain = read_document(snapshot.domain)
    if not secure:
        hide_passwords(domain)
    root.append(domain)
    return write_element(root)
