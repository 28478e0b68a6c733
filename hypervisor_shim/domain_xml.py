"""Domain documents: text in, `DomainDef` out, and back, as libvirtd would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypervisor_shim.domain_def import DomainDef
from hypervisor_shim.driver import MetadataKind


@dataclass(frozen=True, slots=True)
class Live:
    """What only a running domain's document has. Keys of `targets` are interface MACs, values their device
    names; `metadata` are extra elements (text of one XML element each) put into `<metadata>`."""

    id: int
    targets: Mapping[str, str] = field(default_factory=dict)
    ptys: Mapping[str, str] = field(default_factory=dict)  # alias (serial0) → path
    metadata: tuple[str, ...] = ()


def parse_domain(xml: str) -> DomainDef:
    """Check and normalise a `<domain>` document of at most 4 MiB.

    Raises LibvirtError: XML_DETAIL (35) not well-formed, or with a DTD or entity declaration; XML_ERROR (27),
    OS_TYPE (16) or CONFIG_UNSUPPORTED (67) for content libvirtd refuses. A missing UUID and missing MAC
    addresses are generated, so parsing the same text twice may give two different domains.
    """
    raise NotImplementedError


def format_domain(definition: DomainDef, live: Live | None = None, *, secure: bool = False) -> str:
    """The document as a client reads it; `live` given: that of the running domain. Without `secure` the
    passwords of graphics devices are left out."""
    raise NotImplementedError


def get_metadata(definition: DomainDef, kind: MetadataKind, uri: str | None) -> str:
    """Title, description, or element text; NO_DOMAIN_METADATA (80) if it is not there."""
    raise NotImplementedError


def set_metadata(
    definition: DomainDef, kind: MetadataKind, text: str | None, key: str | None, uri: str | None
) -> DomainDef:
    """The definition with that piece of metadata replaced, or removed when `text` is None."""
    raise NotImplementedError
