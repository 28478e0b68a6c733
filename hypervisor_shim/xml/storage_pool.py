"""Storage pool documents: text in, `PoolDef` out, and back, as libvirtd would."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.domain_check import parse_uuid
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.write import write_element


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a pool type asks for: source elements it cannot do without (name → how the error calls it), the
    source format it has by default, whether it has a target path, and which one by default."""

    needs: tuple[tuple[str, str], ...] = ()
    format: str | None = None
    target: bool = True
    path: str | None = None


_DEVICE = ("device", "missing storage pool source device name")
_HOST = ("host", "missing storage pool source host name")
_DIR = ("dir", "missing storage pool source path")
_NAME = ("name", "missing storage pool source name")
_TYPES: dict[str, _Kind] = {
    "dir": _Kind(),
    "fs": _Kind((_DEVICE,), "auto"),
    "netfs": _Kind((_HOST, _DIR), "auto"),
    "logical": _Kind((), "lvm2", path="/dev/{name}"),
    "disk": _Kind((_DEVICE,), "unknown", path="/dev"),
    "iscsi": _Kind((_HOST, _DEVICE), path="/dev/disk/by-path"),
    "iscsi-direct": _Kind((_HOST, _DEVICE), target=False),
    "scsi": _Kind((("adapter", "missing storage pool source adapter"),), path="/dev/disk/by-path"),
    "mpath": _Kind(path="/dev/mapper"),
    "rbd": _Kind((_HOST, _NAME), target=False),
    "sheepdog": _Kind((_HOST, _NAME), target=False),
    "gluster": _Kind((_HOST, _NAME), target=False),
    "zfs": _Kind((_NAME,), path="/dev/zvol/{name}"),
    "vstorage": _Kind((_NAME,)),
}
_SOURCE_ORDER = (
    "host", "device", "dir", "adapter", "name", "initiator", "protocol", "auth", "format", "vendor",
    "product",
)  # fmt: skip
_ID_MAX = (1 << 32) - 2


@dataclass(frozen=True, slots=True)
class Permissions:
    """Rights of a directory or file; None where the document is silent."""

    mode: int | None = None
    owner: int | None = None
    group: int | None = None


UNSAID = Permissions()


@dataclass(frozen=True, slots=True)
class PoolDef:
    """A pool as a client defined it."""

    name: str
    uuid: bytes
    type: str
    path: str | None = None
    permissions: Permissions = UNSAID
    source: Element = field(default_factory=lambda: Element("source"), compare=False)


def _xml_error(detail: str, origin: Origin = Origin.STORAGE) -> LibvirtError:
    return error(Code.XML_ERROR, detail, origin=origin)


def expect_root(root: Element, name: str) -> None:
    """XML_ERROR (27) unless the root element is called so."""
    if root.tag != name:
        raise _xml_error(f"expecting root element of '{name}', not '{root.tag}'", Origin.XML)


def parse_pool(xml: str) -> PoolDef:
    """Check a `<pool>` document. LibvirtError XML_DETAIL (35), XML_ERROR (27). A missing UUID is made up."""
    root = read_document(xml, "storage_pool_definition", Origin.STORAGE)
    expect_root(root, "pool")
    kind_name = root.get("type")
    if kind_name is None:
        raise _xml_error("Missing required attribute 'type' in element 'pool'", Origin.XML)
    kind = _TYPES.get(kind_name)
    if kind is None:
        detail = f"Invalid value for attribute 'type' in element 'pool': '{kind_name}'."
        raise _xml_error(detail, Origin.XML)
    source = root.find("source")
    source_name = source.findtext("name") if source is not None else None
    name = root.findtext("name") or (source_name if kind_name == "logical" else None)
    if not name:
        raise _xml_error("missing pool source name element")
    if "/" in name:
        raise _xml_error(f"name {name} cannot contain '/'")
    given = root.findtext("uuid")
    uuid = parse_uuid(given) if given else secrets.token_bytes(16)
    if uuid is None:
        raise _xml_error("malformed uuid element")
    if not given:
        uuid = uuid[:6] + bytes((uuid[6] & 0x0F | 0x40, uuid[7], uuid[8] & 0x3F | 0x80)) + uuid[9:]
    described = _source(source, kind_name, kind, name)
    path = None
    if kind.target:
        path = root.findtext("target/path") or None
        if kind.path is not None and (path is None or kind_name in ("logical", "mpath", "zfs")):
            path = kind.path.format(name=described.findtext("name") or name)
        if path is None:
            raise _xml_error("missing storage pool target path")
        path = sanitised(path)
    permissions = parse_permissions(root.find("target/permissions"))
    return PoolDef(name, uuid, kind_name, path, permissions, described)


def _source(sent: Element | None, kind_name: str, kind: _Kind, name: str) -> Element:
    """The source in canonical order, with what is left to defaults filled in."""
    source = Element("source")
    for tag in _SOURCE_ORDER:
        source.extend(sent.findall(tag) if sent is not None else ())
    if kind_name == "logical" and not source.findtext("name"):
        SubElement(source, "name").text = name
    for tag, complaint in kind.needs:
        there = source.find(tag)
        if there is None or not (there.text or there.attrib):
            raise _xml_error(complaint)
    if kind.format is not None and source.find("format") is None:
        SubElement(source, "format", type=kind.format)
    return source


def sanitised(path: str) -> str:
    """Without repeated slashes and without one at the end, as libvirt keeps paths."""
    start = (
        "//" if path.startswith("//") and not path.startswith("///") else path[:1] if path[0] == "/" else ""
    )
    return start + "/".join(part for part in path.split("/") if part)


def parse_permissions(element: Element | None) -> Permissions:
    """Mode in octal, owner and group by number (-1: whatever it is)."""
    if element is None:
        return UNSAID
    mode = element.findtext("mode")
    if mode is not None:
        try:
            bits = int(mode, 8)
        except ValueError:
            bits = -1
        if not 0 <= bits <= 0o7777:
            raise _xml_error("malformed octal mode")
        mode_bits: int | None = bits
    else:
        mode_bits = None
    return Permissions(mode_bits, _id(element, "owner"), _id(element, "group"))


def _id(element: Element, tag: str) -> int | None:
    text = element.findtext(tag)
    if text is None or text.strip() == "-1":
        return None
    if not (text.isascii() and text.isdigit()) or int(text[:11]) > _ID_MAX:
        raise _xml_error(f"malformed {tag} element")
    return int(text)


def format_pool(
    definition: PoolDef,
    capacity: int,
    allocation: int,
    available: int,
    permissions: Permissions | None = None,
) -> str:
    """The document as a client reads it. Sizes in bytes; `permissions`: those that are, where known."""
    root = Element("pool", type=definition.type)
    SubElement(root, "name").text = definition.name
    SubElement(root, "uuid").text = uuid_text(definition.uuid)
    for tag, size in (("capacity", capacity), ("allocation", allocation), ("available", available)):
        SubElement(root, tag, unit="bytes").text = str(size)
    root.append(definition.source)
    if definition.path is not None:
        target = SubElement(root, "target")
        SubElement(target, "path").text = definition.path
        add_permissions(target, permissions or definition.permissions)
    # libvirtd writes an empty source on two lines
    return write_element(root).replace("  <source/>\n", "  <source>\n  </source>\n", 1)


def add_permissions(parent: Element, permissions: Permissions) -> None:
    """The `<permissions>` element, where anything is known."""
    if permissions == UNSAID:
        return
    element = SubElement(parent, "permissions")
    if permissions.mode is not None:
        SubElement(element, "mode").text = f"0{permissions.mode:o}"
    if permissions.owner is not None:
        SubElement(element, "owner").text = str(permissions.owner)
    if permissions.group is not None:
        SubElement(element, "group").text = str(permissions.group)
