"""A definition with one thing changed, as calls other than DEFINE change it."""

from __future__ import annotations

from copy import deepcopy
from xml.etree.ElementTree import Element

from hypervisor_shim.xml.domain import describe
from hypervisor_shim.xml.domain_def import DomainDef


def with_vcpus(definition: DomainDef, count: int, *, maximum: bool = False) -> DomainDef:
    """`count` processors at the next start; with `maximum`, that is the most it may have."""
    root = deepcopy(definition.tree)
    vcpu = _element(root, "vcpu")
    most = count if maximum else definition.max_vcpus
    current = min(definition.vcpus, count) if maximum else count
    vcpu.text = str(most)
    vcpu.attrib.pop("current", None)
    if current != most:
        vcpu.set("current", str(current))
    return describe(root)


def with_memory(definition: DomainDef, kib: int, *, maximum: bool = False) -> DomainDef:
    """`kib` of memory at the next start; with `maximum`, that is the most it may have."""
    root = deepcopy(definition.tree)
    changes = (
        {"memory": kib, "currentMemory": min(kib, definition.mem_kib)} if maximum else {"currentMemory": kib}
    )
    for tag, value in changes.items():
        element = _element(root, tag)
        element.text = str(value)
        element.set("unit", "KiB")
    return describe(root)


def with_name(definition: DomainDef, name: str) -> DomainDef:
    """The same domain under another name."""
    root = deepcopy(definition.tree)
    _element(root, "name").text = name
    return describe(root)


def _element(root: Element, tag: str) -> Element:
    found = root.find(tag)
    assert found is not None, f"a normalised definition has <{tag}>"
    return found
