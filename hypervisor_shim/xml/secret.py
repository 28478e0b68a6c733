"""`<secret>` documents: what a key is for, never the key."""

from __future__ import annotations

import uuid as uuids
from dataclasses import dataclass
from enum import IntEnum
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.domain_check import parse_uuid
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.write import write_element


class Usage(IntEnum):
    """What a secret is for (libvirt: virSecretUsageType)."""

    NONE = 0
    VOLUME = 1
    CEPH = 2
    ISCSI = 3
    TLS = 4
    VTPM = 5


@dataclass(frozen=True, slots=True)
class _Shape:
    """The element that holds a usage's id, and libvirt's sentence when it is missing."""

    element: str
    missing: str


_SHAPES = {
    Usage.VOLUME: _Shape("volume", "volume usage specified, but volume path is missing"),
    Usage.CEPH: _Shape("name", "Ceph usage specified, but name is missing"),
    Usage.ISCSI: _Shape("target", "iSCSI usage specified, but target is missing"),
    Usage.TLS: _Shape("name", "TLS usage specified, but name is missing"),
    Usage.VTPM: _Shape("name", "vTPM usage specified, but name is missing"),
}


@dataclass(frozen=True, slots=True)
class SecretDef:
    """A checked definition. `ephemeral`: kept in memory only. `private`: its value is given to nobody."""

    uuid: bytes
    ephemeral: bool = False
    private: bool = False
    description: str | None = None
    usage_type: Usage = Usage.NONE
    usage_id: str = ""


def parse_secret(text: str) -> SecretDef:
    """Text to a checked definition; one without a UUID gets a random one. LibvirtError as libvirtd has it."""
    root = read_document(text, "definition_of_secret", Origin.SECRET)
    if root.tag != "secret":
        detail = f"expecting root element of 'secret', not '{root.tag}'"
        raise error(Code.XML_ERROR, detail, origin=Origin.XML)
    ephemeral, private = _flag(root, "ephemeral"), _flag(root, "private")
    usage_type, usage_id = _usage(root.find("usage"))
    return SecretDef(
        _uuid(root.findtext("uuid")),
        ephemeral,
        private,
        root.findtext("description"),
        usage_type,
        usage_id,
    )


def format_secret(secret: SecretDef) -> str:
    """The document that libvirtd would show."""
    flags = {"ephemeral": secret.ephemeral, "private": secret.private}
    root = Element("secret", {name: "yes" if flag else "no" for name, flag in flags.items()})
    SubElement(root, "uuid").text = uuid_text(secret.uuid)
    if secret.description is not None:
        SubElement(root, "description").text = secret.description
    if secret.usage_type is not Usage.NONE:
        usage = SubElement(root, "usage", {"type": secret.usage_type.name.lower()})
        SubElement(usage, _SHAPES[secret.usage_type].element).text = secret.usage_id
    return write_element(root)


def _flag(root: Element, name: str) -> bool:
    match root.get(name):
        case None | "no":
            return False
        case "yes":
            return True
    raise _wrong(Code.XML_ERROR, f"invalid value of '{name}'")


def _uuid(text: str | None) -> bytes:
    if text is None:
        return uuids.uuid4().bytes
    raw = parse_uuid(text)
    if raw is None:
        raise _wrong(Code.INTERNAL_ERROR, "malformed uuid element")
    return raw


def _usage(element: Element | None) -> tuple[Usage, str]:
    if element is None:
        return Usage.NONE, ""
    name = element.get("type")
    if name is None:
        raise _wrong(Code.XML_ERROR, "unknown secret usage type")
    try:
        usage = Usage[name.upper()] if name.islower() else None
    except KeyError:
        usage = None
    if usage is None:
        raise _wrong(Code.CONFIG_UNSUPPORTED, f"unknown secret usage type {name}")
    if usage is Usage.NONE:
        return usage, ""
    shape = _SHAPES[usage]
    id = element.findtext(shape.element)
    if not id:
        raise _wrong(Code.INTERNAL_ERROR, shape.missing)
    return usage, id


def _wrong(code: Code, detail: str) -> LibvirtError:
    return error(code, detail, origin=Origin.SECRET)
