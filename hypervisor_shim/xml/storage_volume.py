"""Storage volume documents: text in, `VolumeDef` out, and back, as libvirtd would."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.sizes import scaled
from hypervisor_shim.xml.storage_pool import (
    UNSAID,
    Permissions,
    add_permissions,
    expect_root,
    parse_permissions,
)
from hypervisor_shim.xml.write import write_element

#: Formats of volumes that are files, as libvirt names them.
FILE_FORMATS = (
    "none", "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop", "cow", "qcow",
    "qcow2", "qed", "vmdk",
)  # fmt: skip
_TYPES = ("file", "block", "dir", "network", "netdir", "ploop")


@dataclass(frozen=True, slots=True)
class Backing:
    """The file that a volume stands on. `format` None: the document does not say."""

    path: str
    format: str | None = None
    permissions: Permissions = UNSAID


@dataclass(frozen=True, slots=True)
class VolumeDef:
    """A volume as a client describes it. Sizes in bytes. `capacity` None: that of what it is made from;
    `allocation` None: the same as the capacity, of which a format that grows takes nothing at first."""

    name: str
    capacity: int | None
    allocation: int | None = None
    format: str = "raw"
    type: str = "file"
    backing: Backing | None = None
    permissions: Permissions = UNSAID
    compat: str | None = None
    cluster_size: int | None = None
    features: tuple[str, ...] = ()
    encrypted: bool = False
    nocow: bool = False


def _xml_error(detail: str) -> LibvirtError:
    return error(Code.XML_ERROR, detail, origin=Origin.STORAGE)


def parse_volume(xml: str, *, capacity_needed: bool = True) -> VolumeDef:
    """Check a `<volume>` document. LibvirtError XML_DETAIL (35), XML_ERROR (27), CONFIG_UNSUPPORTED (67) an
    unknown format. Without `capacity_needed`, or with a backing file, the capacity may be left out."""
    root = read_document(xml, "storage_volume_definition", Origin.STORAGE)
    expect_root(root, "volume")
    name = root.findtext("name")
    if not name:
        raise _xml_error("missing volume name element")
    backing = _backing(root.find("backingStore"))
    capacity = _size(root, "capacity")
    if capacity is None and capacity_needed and backing is None:
        raise _xml_error("missing capacity element")
    features = root.find("target/features")
    kind = root.get("type", "file")
    if kind not in _TYPES:
        raise _xml_error(f"unknown volume type '{kind}'")
    return VolumeDef(
        name=name,
        capacity=capacity,
        allocation=_size(root, "allocation"),
        format=_format(root.find("target/format")) or "raw",
        type=kind,
        backing=backing,
        permissions=parse_permissions(root.find("target/permissions")),
        compat=root.findtext("target/compat"),
        cluster_size=_size(root, "target/clusterSize"),
        features=tuple(each.tag for each in features) if features is not None else (),
        encrypted=root.find("target/encryption") is not None,
        nocow=root.find("target/nocow") is not None,
    )


def _size(root: Element, path: str) -> int | None:
    element = root.find(path)
    if element is None:
        return None
    size = scaled(element.text or "", element.get("unit", "bytes"))
    if size is None:
        raise _xml_error("malformed capacity element")  # libvirtd's word for any of them
    return size


def _format(element: Element | None) -> str | None:
    if element is None:
        return None
    name = element.get("type")
    if name is not None and name not in FILE_FORMATS:
        raise error(Code.CONFIG_UNSUPPORTED, f"unknown volume format type {name}", origin=Origin.STORAGE)
    return name


def _backing(element: Element | None) -> Backing | None:
    path = element.findtext("path") if element is not None else None
    if element is None or not path:
        return None
    permissions = parse_permissions(element.find("permissions"))
    return Backing(path, _format(element.find("format")), permissions)


@dataclass(frozen=True, slots=True)
class Timestamps:
    """Seconds since 1970 with nine decimals, as text; `btime` None where it is not known."""

    atime: str
    mtime: str
    ctime: str
    btime: str | None = None


def format_volume(
    definition: VolumeDef,
    path: str,
    *,
    allocation: int,
    physical: int | None = None,
    timestamps: Timestamps | None = None,
) -> str:
    """The document as a client reads it. `path` is its key too; sizes in bytes, `physical` 0 or None is
    left out, as libvirtd leaves it out."""
    root = Element("volume", type=definition.type)
    SubElement(root, "name").text = definition.name
    SubElement(root, "key").text = path
    SubElement(root, "capacity", unit="bytes").text = str(definition.capacity or 0)
    SubElement(root, "allocation", unit="bytes").text = str(allocation)
    if physical:
        SubElement(root, "physical", unit="bytes").text = str(physical)
    target = SubElement(root, "target")
    SubElement(target, "path").text = path
    SubElement(target, "format", type=definition.format)
    add_permissions(target, definition.permissions)
    if timestamps is not None:
        times = SubElement(target, "timestamps")
        for tag in ("atime", "mtime", "ctime", "btime"):
            text = getattr(timestamps, tag)
            if text is not None:
                SubElement(times, tag).text = text
    if definition.compat is not None:
        SubElement(target, "compat").text = definition.compat
    if definition.cluster_size is not None:
        SubElement(target, "clusterSize", unit="B").text = str(definition.cluster_size)
    if definition.features:
        features = SubElement(target, "features")
        for feature in definition.features:
            SubElement(features, feature)
    if definition.backing is not None:
        backing = SubElement(root, "backingStore")
        SubElement(backing, "path").text = definition.backing.path
        SubElement(backing, "format", type=definition.backing.format or "raw")
        add_permissions(backing, definition.backing.permissions)
    return write_element(root)
