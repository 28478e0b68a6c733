"""What libvirtd adds to a domain document on its own: defaults, addresses, the devices that others imply.

Works on the pruned copy of the client's document; every function changes one part of it in place.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from itertools import count
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import uuid_text
from hypervisor_shim.xml import graphics
from hypervisor_shim.xml.domain_check import disk_index, memory_kib, parse_uuid
from hypervisor_shim.xml.domain_defaults import (
    drop_aliases,
    drop_snapshot_of_readonly,
    drop_what_says_nothing,
    fill_clock,
    fill_cpu,
    fill_videos,
    numa_memory_kib,
    number_controllers,
    one_devices,
    put_in_order,
    switch_features,
    tidy_characters,
    write_out_addresses,
)
from hypervisor_shim.xml.domain_shape import DOMAIN, keep_known
from hypervisor_shim.xml.read import declarations, namespace_of

#: Which bus a disk's name implies, and how a bus numbers its drives: (units a bus, buses a controller).
_BUS_OF_NAME = {
    "hd": "ide", "sd": "scsi", "vd": "virtio", "xvd": "xen", "fd": "fdc", "ubd": "uml", "nvme": "nvme",
}  # fmt: skip
_DRIVES = {"ide": (2, 2), "scsi": (7, 1), "sata": (6, 1), "fdc": (2, 1)}
_IMPLIED_ORDER = ("scsi", "fdc", "ide", "sata")
_BEHIND_READONLY = frozenset(
    ("shareable", "transient", "serial", "wwn", "vendor", "product", "encryption", "boot", "alias", "address")
)
#: Names libvirt gives to taps itself: in a definition they mean nothing.
_GENERATED_TAP = re.compile(r"(vnet|macvtap|macvlan)[0-9]+")
_MAC_PREFIX = (0x52, 0x54, 0x00)


def fill(sent: Element, arch: str) -> Element:
    """The normalised document for the checked one a client sent. `arch`: of guests that name none."""
    root = keep_known(sent, DOMAIN)
    devices = one_devices(root)
    if root.find("devices") is None:
        _insert(root, devices)
    drop_what_says_nothing(root)
    _identity(root)
    tidy_metadata(root, declarations(sent))
    _sizes(root)
    _os(root, arch)
    fill_cpu(root)
    switch_features(root)
    _clock(root)
    _actions(root)
    put_in_order(root)
    drop_aliases(devices)
    tidy_characters(devices)
    number_controllers(devices)
    write_out_addresses(devices)
    fill_videos(devices)
    _disks(devices)
    drop_snapshot_of_readonly(devices)
    for interface in devices.iterfind("interface"):
        _interface(interface)
    _characters(devices, root.findtext("os/type") == "hvm")
    _controllers(devices)
    for screen in devices.iterfind("graphics"):
        graphics.normalise(screen)
    _order(devices)
    return root


def _insert(root: Element, child: Element) -> None:
    """Put a new child where the table wants it."""
    order = list(DOMAIN.children)
    place = order.index(child.tag)
    for i, other in enumerate(root):
        if order.index(other.tag) > place:
            root.insert(i, child)
            return
    root.append(child)


def _ensure(root: Element, tag: str, text: str) -> Element:
    element = root.find(tag)
    if element is None:
        element = Element(tag)
        _insert(root, element)
    if not element.text:
        element.text = text
    return element


def _set(root: Element, tag: str, text: str) -> Element:
    element = _ensure(root, tag, text)
    element.text = text
    return element


def _identity(root: Element) -> None:
    uuid = parse_uuid(root.findtext("uuid") or "")
    if uuid is None:
        raw = bytearray(secrets.token_bytes(16))
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        uuid = bytes(raw)
    _set(root, "uuid", uuid_text(uuid))
    for tag in ("title", "description"):
        element = root.find(tag)
        if element is not None and not element.text:
            root.remove(element)


def tidy_metadata(root: Element, outer: Mapping[str, str]) -> None:
    """Only elements with a namespace are kept, one for each namespace: the first. `outer`: the prefixes that
    the document's root declares."""
    metadata = root.find("metadata")
    if metadata is None:
        return
    scope = {**outer, **declarations(metadata)}
    seen: set[str] = set()
    for element in list(metadata):
        element.tail = None
        uri = namespace_of(element, scope)
        if not uri or uri in seen:
            metadata.remove(element)
            continue
        seen.add(uri)
        used = {name.rpartition(":")[0] for inner in element.iter() for name in (inner.tag, *inner.attrib)}
        for prefix, declared in scope.items():  # what was declared further out goes with the element
            name = f"xmlns:{prefix}" if prefix else "xmlns"
            if name not in element.attrib and prefix in used:
                element.set(name, declared)
    metadata.attrib.clear()
    metadata.text = None


def _sizes(root: Element) -> None:
    maximum = numa_memory_kib(root) or memory_kib(root, "memory")
    limit = root.find("maxMemory")
    if limit is not None:
        limit.text = str(memory_kib(root, "maxMemory"))
        slots = {"slots": limit.attrib["slots"]} if "slots" in limit.attrib else {}
        limit.attrib = slots | {"unit": "KiB"}
    current = min(memory_kib(root, "currentMemory") or maximum, maximum)
    for tag, size in (("memory", maximum), ("currentMemory", current)):
        element = _set(root, tag, str(size))
        element.attrib = {"unit": "KiB", **{k: v for k, v in element.attrib.items() if k != "unit"}}
    vcpu = _ensure(root, "vcpu", "1")
    count = str(int(vcpu.text or "1"))
    vcpu.text = count
    attributes = {"placement": vcpu.get("placement", "static")}
    if vcpu.get("cpuset"):
        attributes["cpuset"] = vcpu.attrib["cpuset"]
    if int(vcpu.get("current", count)) != int(count):
        attributes["current"] = str(int(vcpu.attrib["current"]))
    vcpu.attrib = attributes


def _os(root: Element, arch: str) -> None:
    os_ = root.find("os")
    if os_ is None:
        return
    type_ = os_.find("type")
    if type_ is None:
        return
    machine = type_.get("machine")
    type_.attrib = {"arch": type_.get("arch", arch)} | ({"machine": machine} if machine else {})
    ordered = any(root.find(f"devices/{tag}/boot") is not None for tag in ("disk", "interface", "hostdev"))
    if type_.text == "hvm" and os_.find("boot") is None and not ordered:
        later = [i for i, child in enumerate(os_) if child.tag in ("bootmenu", "bios", "smbios")]
        os_.insert(later[0] if later else len(os_), Element("boot", dev="hd"))


def _clock(root: Element) -> None:
    clock = root.find("clock")
    if clock is None:
        clock = Element("clock")
        _insert(root, clock)
    fill_clock(clock)


def _actions(root: Element) -> None:
    for tag, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _ensure(root, tag, action)


# ---- devices -------------------------------------------------------------------------------------


def _disks(devices: Element) -> None:
    """Defaults, drive addresses, and libvirt's order: those of one bus stand together, by name."""
    ordered: list[tuple[str | None, int, Element]] = []
    for disk in devices.findall("disk"):
        target = disk.find("target")
        assert target is not None
        devices.remove(disk)
        bus, index = target.get("bus"), disk_index(target.attrib["dev"]) or 0
        at = len(ordered)
        matching = [i for i, (other, _, _) in enumerate(ordered) if other == bus]
        if matching:
            behind = [i for i in matching if ordered[i][1] > index]
            at = behind[0] if behind else matching[-1] + 1
        ordered.insert(at, (bus, index, disk))
        _disk(disk, target, index)
    for i, (_, _, disk) in enumerate(ordered):
        devices.insert(i, disk)


def _disk(disk: Element, target: Element, index: int) -> None:
    name = target.attrib["dev"]
    device = disk.get("device", "disk")
    rest = {k: v for k, v in disk.attrib.items() if k not in ("type", "device")}
    disk.attrib = {"type": disk.get("type", "file"), "device": device, **rest}
    if "bus" not in target.attrib:
        prefix = next((p for p in ("xvd", "nvme", "ubd", "hd", "sd", "vd", "fd") if name.startswith(p)), "")
        bus = "fdc" if device == "floppy" else _BUS_OF_NAME.get(prefix, "ide")
        others = {k: v for k, v in target.attrib.items() if k != "dev"}
        target.attrib = {"dev": name, "bus": bus, **others}
    for mirror in disk.findall("mirror"):
        disk.remove(mirror)  # of the running domain that the text was taken from
    if device == "cdrom" and disk.find("readonly") is None:
        at = next((i for i, child in enumerate(disk) if child.tag in _BEHIND_READONLY), len(disk))
        disk.insert(at, Element("readonly"))
    bus = target.attrib["bus"]
    if bus in _DRIVES and disk.find("address") is None:
        units, buses = _DRIVES[bus]
        controller, within = divmod(index, units * buses)
        SubElement(
            disk, "address", type="drive", controller=str(controller), bus=str(within // units), target="0",
            unit=str(within % units),
        )  # fmt: skip


def _interface(interface: Element) -> None:
    interface.attrib = {"type": interface.get("type", "user")} | interface.attrib
    mac = interface.find("mac")
    if mac is None:
        mac = Element("mac")
        interface.insert(0, mac)
    address = mac.get("address")
    octets = (
        [int(part, 16) for part in address.split(":")] if address else [*_MAC_PREFIX, *secrets.token_bytes(3)]
    )
    mac.set("address", ":".join(f"{octet:02x}" for octet in octets))
    target = interface.find("target")
    if target is not None and _GENERATED_TAP.fullmatch(target.get("dev", "")):
        interface.remove(target)
    reference = interface.find("filterref")
    if reference is not None:
        # libvirt keeps parameters by name; the values of one name stay in the order they came
        reference[:] = sorted(reference, key=lambda parameter: parameter.get("name", ""))
        for parameter in reference:
            parameter.attrib = {k: parameter.get(k, "") for k in ("name", "value")}
    for ip in interface.iterfind("ip"):
        family = ip.get("family", "ipv6" if ":" in ip.get("address", "") else "ipv4")
        prefix = {"prefix": ip.attrib["prefix"]} if "prefix" in ip.attrib else {}
        ip.attrib = {"address": ip.get("address", ""), "family": family, **prefix}


def _characters(devices: Element, hvm: bool) -> None:
    """Ports are numbered; the first console of an hvm guest is its first serial port, seen twice."""
    serials, consoles = devices.findall("serial"), devices.findall("console")
    for i, console in enumerate(consoles):
        _target(console).set("port", str(i))  # whatever was written there
    _number_ports(serials)
    first = consoles[0] if consoles else None
    if hvm:
        plain = first is not None and _target_type(first) in (None, "none", "serial")
        if serials and not plain:
            console = Element("console")
            devices.append(console)
            _mirror(serials[0], console)
            consoles.insert(0, console)
            for i, other in enumerate(consoles[1:], 1):
                _target(other).set("port", str(i))
        elif first is not None and plain:
            if not serials:
                serial = Element("serial")
                devices.append(serial)
                serial.attrib = {"type": first.get("type", "pty")}
                serial.extend(child for child in first if child.tag != "target")
                SubElement(serial, "target", port="0")
                serials.append(serial)
            _mirror(serials[0], first)
    for console in consoles:
        target = _target(console)
        kind = target.get("type", "serial" if hvm else "xen")
        target.attrib = {"type": kind, "port": target.get("port", "0")}
    for device in consoles:
        devices.remove(device)
    devices.extend(consoles)
    for device in (*serials, *consoles, *devices.iterfind("channel")):
        device.attrib.setdefault("type", "pty")


def _target(device: Element) -> Element:
    target = device.find("target")
    if target is None:
        target = Element("target")
        at = next((i for i, child in enumerate(device) if child.tag in ("alias", "address")), len(device))
        device.insert(at, target)
    return target


def _target_type(device: Element) -> str | None:
    target = device.find("target")
    return None if target is None else target.get("type")


def _number_ports(serials: Iterable[Element]) -> None:
    targets = [_target(serial) for serial in serials]
    given = [int(port) for target in targets if (port := target.get("port", "")).isdecimal()]
    free = count(max(given, default=-1) + 1)
    for target in targets:
        if not target.get("port", "").isdecimal():
            target.set("port", str(next(free)))


def _mirror(serial: Element, console: Element) -> None:
    """Make `console` say the same as `serial`."""
    port = _target(serial).get("port", "0")
    console.attrib = {"type": serial.get("type", "pty")}
    console[:] = [child for child in serial if child.tag in ("source", "protocol", "log")]
    SubElement(console, "target", type="serial", port=port)


def _controllers(devices: Element) -> None:
    """Add the controllers that drive addresses and virtio ports speak of."""
    there = {(c.get("type"), c.get("index")) for c in devices.iterfind("controller")}
    wanted: list[tuple[str, int]] = []
    for bus in _IMPLIED_ORDER:
        highest = -1
        for disk in devices.iterfind("disk"):
            target, address = disk.find("target"), disk.find("address")
            if target is None or address is None:
                continue
            if target.get("bus") != bus or address.get("type") != "drive":
                continue
            number = address.get("controller", "0")
            highest = max(highest, min(int(number), 255) if number.isdigit() else 0)
        wanted += [(bus, index) for index in range(highest + 1)]
    ports = [*devices.iterfind("channel"), *devices.iterfind("console")]
    if any(_target_type(port) == "virtio" for port in ports):
        wanted.append(("virtio-serial", 0))
    for kind, index in wanted:
        if (kind, str(index)) not in there:
            SubElement(devices, "controller", type=kind, index=str(index))


def _order(devices: Element) -> None:
    shape = DOMAIN.children["devices"]
    assert shape is not None
    place = {tag: i for i, tag in enumerate(shape.children)}
    devices[:] = sorted(devices, key=lambda device: place[device.tag])
