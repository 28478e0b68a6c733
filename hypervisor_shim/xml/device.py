"""One device of a domain as clients attach, detach and update it: by the rules of the domain's own document.

A device is found again by what libvirt matches: a disk by its target, an interface by its MAC address, any by
its alias. All functions give a new definition; the old one stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml import graphics
from hypervisor_shim.xml.domain import parse_domain
from hypervisor_shim.xml.domain_def import REMOVABLE, Device, Disk, DomainDef
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.write import write_element

#: The kinds that can come and go here, those that can change in place, too, and the kinds libvirt knows
#: (`domain_shape` has their insides).
CHANGEABLE = ("disk", "interface")
UPDATABLE = (*CHANGEABLE, "graphics")
_KINDS = frozenset(
    ("disk", "lease", "filesystem", "interface", "input", "sound", "video", "hostdev", "controller",
     "graphics", "hub", "redirdev", "rng", "smartcard", "memballoon", "nvram", "tpm", "panic", "shmem",
     "memory", "iommu", "vsock", "watchdog", "serial", "parallel", "console", "channel", "audio", "crypto")
)  # fmt: skip


def parse_device(xml: str) -> Device:
    """Check a device document as `parse_domain` checks the same device in a domain. Raises what it raises."""
    element = read_document(xml)
    if element.tag not in _KINDS:
        raise error(Code.XML_ERROR, f"unknown device type '{element.tag}'", origin=Origin.DOMAIN)
    if element.tag not in UPDATABLE:
        return Device(element.tag, element)
    # Not in a document of the client's own: an order to boot by may clash with another device's only there.
    definition = parse_domain(_frame(element))
    found = definition.tree.find(f"devices/{element.tag}")
    assert found is not None
    return Device(
        element.tag,
        found,
        next(iter(definition.disks), None),
        next(iter(definition.interfaces), None),
        bool(definition.made_up_macs),
    )


def _frame(device: Element) -> str:
    root = Element("domain", type="kvm")
    SubElement(root, "name").text = "device"
    SubElement(root, "memory").text = "1"
    os_type = SubElement(SubElement(root, "os"), "type")
    os_type.text = "hvm"
    SubElement(root, "devices").append(device)
    return write_element(root)


# ---- finding -------------------------------------------------------------------------------------


def refuse_kind(device: Device, verb: str, *, live: bool) -> None:
    """Raise for a kind that cannot come and go, as libvirt's QEMU driver words it."""
    if device.kind not in (UPDATABLE if verb == "update" else CHANGEABLE):
        how = "live" if live else "persistent"
        detail = f"{how} {verb} of device '{device.kind}' is not supported"
        raise error(Code.OPERATION_UNSUPPORTED, detail)


def _matching(definition: DomainDef, device: Device) -> list[Element]:
    devices = definition.tree.iterfind(f"devices/{device.kind}")
    if device.disk is not None:
        return [each for each in devices if _attribute(each, "target", "dev") == device.disk.target]
    assert device.interface is not None
    return [each for each in devices if _attribute(each, "mac", "address") == device.interface.mac]


def _attribute(element: Element, child: str, name: str) -> str | None:
    found = element.find(child)
    return None if found is None else found.get(name)


def _missing(device: Device, *, live: bool) -> LibvirtError:
    if device.interface is not None:
        detail = f"no device matching MAC address {device.name} found"
    else:
        detail = f"disk {device.name} not found" if live else f"no target device {device.name}"
    return error(Code.DEVICE_MISSING, detail)


def _the_one(definition: DomainDef, device: Device, *, live: bool) -> Element:
    found = _matching(definition, device)
    if device.mac_made_up:
        # A document without a MAC means "the only one there is", as libvirt takes it.
        found = definition.tree.findall("devices/interface")
        if len(found) > 1:
            raise error(Code.OPERATION_FAILED, "multiple devices matching given interface found")
        if not found:
            raise error(Code.DEVICE_MISSING, "no matching network device was found")
    if not found:
        raise _missing(device, live=live)
    if len(found) > 1:
        detail = f"multiple devices matching MAC address {device.name} found"
        raise error(Code.OPERATION_FAILED, detail)
    return found[0]


def aliases(definition: DomainDef) -> Iterator[tuple[str, Element]]:
    """The names that a running domain's document gives its disks and interfaces."""
    for disk in definition.tree.iterfind("devices/disk"):
        given = _attribute(disk, "alias", "name")
        yield given or f"{_attribute(disk, 'target', 'bus')}-{_attribute(disk, 'target', 'dev')}", disk
    for i, interface in enumerate(definition.tree.iterfind("devices/interface")):
        yield _attribute(interface, "alias", "name") or f"net{i}", interface


def alias_of(definition: DomainDef, device: Device) -> str:
    """The alias of a device that is in the definition. Raises DEVICE_MISSING."""
    element = _the_one(definition, device, live=True)
    return next(alias for alias, each in aliases(definition) if each is element)


def device_by_alias(definition: DomainDef, alias: str) -> Device:
    """The disk or interface of that alias. Raises DEVICE_MISSING."""
    for name, element in aliases(definition):
        if name == alias:
            return parse_device(write_element(element))
    raise error(Code.DEVICE_MISSING, f"no device found with alias {alias}")


# ---- changing ------------------------------------------------------------------------------------


def with_device(definition: DomainDef, device: Device, *, live: bool) -> DomainDef:
    """The definition with the device attached."""
    refuse_kind(device, "attach", live=live)
    if _matching(definition, device):
        if device.disk is not None:
            code = Code.OPERATION_FAILED if live else Code.INVALID_ARG
            raise error(code, f"target {device.name} already exists")
        raise error(Code.OPERATION_FAILED, f"an interface with MAC address {device.name} already exists")
    root = deepcopy(definition.tree)
    devices = root.find("devices")
    assert devices is not None
    devices.append(deepcopy(device.element))
    return _again(root, definition)


def without_device(definition: DomainDef, device: Device, *, live: bool) -> DomainDef:
    """The definition with the device detached."""
    refuse_kind(device, "detach", live=live)
    return _replaced(definition, _the_one(definition, device, live=live), None)


def with_update(definition: DomainDef, device: Device, *, live: bool) -> DomainDef:
    """The definition with the device in its new shape."""
    refuse_kind(device, "update", live=live)
    if device.kind == "graphics":
        return _with_graphics(definition, device, live=live)
    if device.disk is not None and not live and not _matching(definition, device):
        raise error(Code.INVALID_ARG, f"target {device.name} doesn't exist.")
    old = _the_one(definition, device, live=live)
    new = deepcopy(device.element)
    if live and device.disk is not None and device.disk.device in REMOVABLE:
        new = _with_medium(old, new)
    mac, known = new.find("mac"), old.find("mac")
    if device.mac_made_up and mac is not None and known is not None:
        mac.attrib = dict(known.attrib)
    return _replaced(definition, old, new)


def _with_medium(drive: Element, wanted: Element) -> Element:
    """A drive with what the other one holds; of a running domain's nothing else changes."""
    drive = deepcopy(drive)
    for tag in ("source", "driver"):
        held, given = drive.find(tag), wanted.find(tag)
        if held is not None and (tag == "source" or given is not None):
            drive.remove(held)
        if given is not None:
            drive.insert(0, deepcopy(given))
    drive.set("type", wanted.get("type", "file"))
    return drive


def _with_graphics(definition: DomainDef, device: Device, *, live: bool) -> DomainDef:
    """A screen is found again by its type. Of a running one only the password changes, and who may share."""
    screens = definition.tree.iterfind("devices/graphics")
    old = next((each for each in screens if each.get("type") == device.name), None)
    if old is None and live:
        detail = f"cannot find existing graphics device to modify of type '{device.name}'"
        raise error(Code.DEVICE_MISSING, detail)
    if old is None:
        detail = f"cannot find existing graphics type '{device.name}' device to modify"
        raise error(Code.INVALID_ARG, detail)
    new = graphics.updated(old, device.element) if live else deepcopy(device.element)
    return _replaced(definition, old, new)


def with_source(definition: DomainDef, target: str, path: str, format: str) -> DomainDef:
    """The definition with a disk on another file."""

    def edit(disk: Element) -> None:
        disk.set("type", "file")
        for child in [each for each in disk if each.tag in ("source", "backingStore", "mirror")]:
            disk.remove(child)
        driver = disk.find("driver")
        if driver is None:
            driver = Element("driver", name="qemu")
            disk.insert(0, driver)
        driver.set("type", format)
        disk.insert(list(disk).index(driver) + 1, Element("source", file=path))

    return _edited(definition, target, edit)


def with_limits(definition: DomainDef, target: str, limits: Mapping[str, int | str]) -> DomainDef:
    """The definition with these limits on a disk; those that are 0 or empty are not written."""

    def edit(disk: Element) -> None:
        for old in disk.findall("iotune"):
            disk.remove(old)
        tune = Element("iotune")
        for name, value in limits.items():
            if value:
                SubElement(tune, name).text = str(value)
        if len(tune):
            disk.append(tune)

    return _edited(definition, target, edit)


def _edited(definition: DomainDef, target: str, edit: Callable[[Element], None]) -> DomainDef:
    root = deepcopy(definition.tree)
    for disk in root.iterfind("devices/disk"):
        if _attribute(disk, "target", "dev") == target:
            edit(disk)
    return _again(root, definition)


def disk_named(definition: DomainDef, name: str) -> Disk:
    """A disk by its target or its file. Raises INVALID_ARG."""
    for disk in definition.disks:
        if name in (disk.target, disk.path):
            return disk
    raise error(Code.INVALID_ARG, f"disk '{name}' not found in domain")


def copy_destination(xml: str) -> tuple[str, str | None]:
    """Path and format of the `<disk>` that a copy goes to: it needs neither a target nor a format."""
    disk = read_document(xml)
    if disk.tag != "disk":
        raise error(Code.XML_ERROR, f"expecting root element of 'disk', not '{disk.tag}'", origin=Origin.XML)
    path = _attribute(disk, "source", "file") or _attribute(disk, "source", "dev")
    if disk.get("type", "file") not in ("file", "block") or not path:
        raise error(Code.CONFIG_UNSUPPORTED, "a copy goes to a file or a block device, named in <source>")
    return path, _attribute(disk, "driver", "type")


def _replaced(definition: DomainDef, old: Element, new: Element | None) -> DomainDef:
    root = Element(definition.tree.tag, definition.tree.attrib)
    for part in definition.tree:
        if part.tag != "devices":
            root.append(deepcopy(part))
            continue
        devices = SubElement(root, "devices")
        for each in part:
            if each is not old:
                devices.append(deepcopy(each))
            elif new is not None:
                devices.append(new)
    return _again(root, definition)


def _again(root: Element, definition: DomainDef) -> DomainDef:
    """What was normalised before stays as it is; what is new is checked beside it."""
    return parse_domain(write_element(root), arch=definition.arch)
