"""`<device>` documents of node devices, as libvirtd writes them; and the one that asks for a virtual port.

A capability is one dataclass a type. What is None or empty is not known, and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.write import write_element

#: Types of capabilities, in the order of the bits of virConnectListAllNodeDevices.
KINDS = (
    "system", "pci", "usb_device", "usb", "net", "scsi_host", "scsi_target", "scsi", "storage", "fc_host",
    "vports", "scsi_generic", "drm", "mdev_types", "mdev", "ccw", "css", "vdpa", "ap_card", "ap_queue",
    "ap_matrix", "vpd",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PciAddress:
    """Domain, bus, slot (0 to 31) and function (0 to 7)."""

    domain: int
    bus: int
    slot: int
    function: int

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """From `0000:3b:00.0`. ValueError for anything else."""
        domain, bus, rest = text.split(":")
        slot, function = rest.split(".")
        return cls(int(domain, 16), int(bus, 16), int(slot, 16), int(function, 16))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"


@dataclass(frozen=True, slots=True)
class Identified:
    """A vendor or product: its number and, if known, its name."""

    id: int
    name: str | None = None


@dataclass(frozen=True, slots=True)
class System:
    """A whole machine."""

    product: str | None = None
    vendor: str | None = None
    version: str | None = None
    serial: str | None = None
    uuid: str | None = None
    firmware_vendor: str | None = None
    firmware_version: str | None = None
    firmware_date: str | None = None


@dataclass(frozen=True, slots=True)
class MdevType:
    """A kind of mediated device that a parent can make."""

    id: str
    api: str
    available: int
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Pci:
    """`class_code` has 24 bits. `max_functions` is what SR-IOV could make, `functions` what it made;
    `physical` is the function that this one came from."""

    address: PciAddress
    product: Identified
    vendor: Identified
    class_code: int | None = None
    max_functions: int | None = None
    functions: tuple[PciAddress, ...] = ()
    physical: PciAddress | None = None
    mdev_types: tuple[MdevType, ...] = ()
    numa_node: int | None = None


@dataclass(frozen=True, slots=True)
class Net:
    """`speed` in Mbit/s."""

    interface: str
    mac: str
    speed: int | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """`size` in bytes."""

    block: str
    bus: str | None = None
    model: str | None = None
    vendor: str | None = None
    serial: str | None = None
    size: int | None = None
    block_size: int | None = None


@dataclass(frozen=True, slots=True)
class FibreChannel:
    wwnn: str
    wwpn: str
    fabric_wwn: str | None = None


@dataclass(frozen=True, slots=True)
class ScsiHost:
    """`max_vports` is None of an adapter that makes no virtual ports."""

    host: int
    unique_id: int | None = None
    fibre_channel: FibreChannel | None = None
    max_vports: int | None = None
    vports: int = 0


Capability = System | Pci | Net | Storage | ScsiHost


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    parent: str | None
    capability: Capability
    driver: str | None = field(default=None, kw_only=True)


def kinds(capability: Capability) -> tuple[str, ...]:
    """The capability's type, then those of what is nested in it and found by itself."""
    match capability:
        case System():
            return ("system",)
        case Pci(mdev_types=types):
            return ("pci", "mdev_types") if types else ("pci",)
        case Net():
            return ("net",)
        case Storage():
            return ("storage",)
        case ScsiHost(fibre_channel=port, max_vports=most):
            nested = (("fc_host", port), ("vports", most))
            return ("scsi_host", *(name for name, there in nested if there is not None))


def format_device(device: Device) -> str:
    """The document that libvirtd would show."""
    root = Element("device")
    _text(root, "name", device.name)
    _text(root, "parent", device.parent)
    if device.driver is not None:
        _text(SubElement(root, "driver"), "name", device.driver)
    inner = SubElement(root, "capability", {"type": kinds(device.capability)[0]})
    match device.capability:
        case System() as system:
            _system(inner, system)
        case Pci() as pci:
            _pci(inner, pci)
        case Net() as net:
            _net(inner, net)
        case Storage() as storage:
            _storage(inner, storage)
        case ScsiHost() as host:
            _scsi_host(inner, host)
    return write_element(root)


def _text(parent: Element, tag: str, value: object | None) -> None:
    """A child with text, where there is something to say."""
    if value is not None:
        SubElement(parent, tag).text = str(value)


def _texts(parent: Element, *pairs: tuple[str, object | None]) -> None:
    for tag, value in pairs:
        _text(parent, tag, value)


def _system(inner: Element, system: System) -> None:
    _text(inner, "product", system.product)
    _texts(
        SubElement(inner, "hardware"),
        ("vendor", system.vendor),
        ("version", system.version),
        ("serial", system.serial),
        ("uuid", system.uuid),
    )
    _texts(
        SubElement(inner, "firmware"),
        ("vendor", system.firmware_vendor),
        ("version", system.firmware_version),
        ("release_date", system.firmware_date),
    )


def _pci(inner: Element, pci: Pci) -> None:
    if pci.class_code is not None:
        _text(inner, "class", f"0x{pci.class_code:06x}")
    for part in ("domain", "bus", "slot", "function"):
        _text(inner, part, getattr(pci.address, part))
    for tag, of in (("product", pci.product), ("vendor", pci.vendor)):
        SubElement(inner, tag, {"id": f"0x{of.id:04x}"}).text = of.name
    if pci.physical is not None:
        _addresses(inner, {"type": "phys_function"}, [pci.physical])
    if pci.max_functions is not None:
        _addresses(inner, {"type": "virt_functions", "maxCount": str(pci.max_functions)}, pci.functions)
    if pci.mdev_types:
        types = SubElement(inner, "capability", {"type": "mdev_types"})
        for each in pci.mdev_types:
            made = SubElement(types, "type", {"id": each.id})
            _texts(made, ("name", each.name), ("deviceAPI", each.api), ("availableInstances", each.available))
    if pci.numa_node is not None:
        SubElement(inner, "numa", {"node": str(pci.numa_node)})


def _addresses(inner: Element, attributes: dict[str, str], addresses: Sequence[PciAddress]) -> None:
    made = SubElement(inner, "capability", attributes)
    for each in addresses:
        parts = {"domain": f"0x{each.domain:04x}", "bus": f"0x{each.bus:02x}", "slot": f"0x{each.slot:02x}"}
        SubElement(made, "address", {**parts, "function": f"0x{each.function:x}"})


def _net(inner: Element, net: Net) -> None:
    _texts(inner, ("interface", net.interface), ("address", net.mac))
    if net.speed is not None:
        SubElement(inner, "link", {"speed": str(net.speed)})
    SubElement(inner, "capability", {"type": "80203"})


def _storage(inner: Element, storage: Storage) -> None:
    _texts(
        inner,
        ("block", storage.block),
        ("bus", storage.bus),
        ("drive_type", "disk"),
        ("model", storage.model),
        ("vendor", storage.vendor),
        ("serial", storage.serial),
        ("size", storage.size),
    )
    if storage.size is not None and storage.block_size is not None:
        _text(inner, "logical_block_size", storage.block_size)
        _text(inner, "num_blocks", storage.size // storage.block_size)


def _scsi_host(inner: Element, host: ScsiHost) -> None:
    _texts(inner, ("host", host.host), ("unique_id", host.unique_id))
    port = host.fibre_channel
    if port is not None:
        made = SubElement(inner, "capability", {"type": "fc_host"})
        _texts(made, ("wwnn", port.wwnn), ("wwpn", port.wwpn), ("fabric_wwn", port.fabric_wwn))
    if host.max_vports is not None:
        made = SubElement(inner, "capability", {"type": "vport_ops"})
        _texts(made, ("max_vports", host.max_vports), ("vports", host.vports))


# ---- a virtual port that is asked for ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortWish:
    """A virtual port that a client wants; `parent` None leaves the adapter to the server."""

    parent: str | None
    wwnn: str
    wwpn: str


def parse_port_wish(text: str) -> PortWish:
    """From the document of virNodeDeviceCreateXML. LibvirtError as libvirtd has it."""
    root = read_document(text, "node_device_definition", Origin.NODEDEV)
    if root.tag != "device":
        detail = f"expecting root element of 'device', not '{root.tag}'"
        raise error(Code.XML_ERROR, detail, origin=Origin.XML)
    inner = root.find("capability")
    if inner is None:
        raise _internal("no device capabilities for 'new device'")
    kind = inner.get("type")
    if kind not in KINDS:
        detail = f"Invalid value for attribute 'type' in element 'capability': '{kind}'."
        raise error(Code.XML_ERROR, detail, origin=Origin.XML)
    port = next((each for each in inner.findall("capability") if each.get("type") == "fc_host"), None)
    if kind != "scsi_host" or port is None:
        raise _internal("Device is not a fibre channel HBA")
    names = [port.findtext(tag) for tag in ("wwnn", "wwpn")]
    for tag, value in zip(("WWNN", "WWPN"), names, strict=True):
        if not value:
            raise _internal(f"no {tag} supplied for 'new device', and auto-generation failed")
    return PortWish(root.findtext("parent"), names[0] or "", names[1] or "")


def _internal(detail: str) -> LibvirtError:
    return error(Code.INTERNAL_ERROR, detail, origin=Origin.NODEDEV)
