"""`<cpu>` documents: compared, and brought to what several have in common, by what they say of themselves.

There is no table of CPU models here: of two models with different names nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.write import write_element

_WANTED = ("require", "force")  # policies by which a feature has to be there
_POLICIES = (*_WANTED, "optional", "disable", "forbid")
_HOSTS_OWN = ("host-passthrough", "host-model", "maximum")  # modes of a guest's CPU that name no model
_NOT_MIGRATABLE = frozenset(("invtsc",))


class Comparison(IntEnum):
    """How a host's CPU stands to the one that is asked for (libvirt: virCPUCompareResult)."""

    INCOMPATIBLE = 0
    IDENTICAL = 1
    SUPERSET = 2


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU as a document or a configuration names it. `model` None: whatever the host has."""

    arch: str | None = None
    model: str | None = None
    vendor: str | None = None
    features: frozenset[str] = frozenset()  # beyond the model's own
    forbidden: frozenset[str] = frozenset()  # features that must not be there


def parse_cpu(text: str) -> Cpu:
    """A host's or a guest's CPU. LibvirtError as libvirtd has it."""
    root = read_document(text, "CPU_definition", Origin.CPU)
    if root.tag != "cpu":
        raise _xml_error("XML does not contain expected 'cpu' element")
    wanted: set[str] = set()
    forbidden: set[str] = set()
    seen: set[str] = set()
    for feature in root.findall("feature"):
        name, policy = feature.get("name"), feature.get("policy", "require")
        if not name:
            raise _xml_error("Invalid CPU feature name")
        if name in seen:
            raise _xml_error(f"CPU feature '{name}' specified more than once")
        if policy not in _POLICIES:
            raise error(Code.INTERNAL_ERROR, "Invalid CPU feature policy", origin=Origin.CPU)
        seen.add(name)
        if policy in _WANTED:
            wanted.add(name)
        elif policy == "forbid":
            forbidden.add(name)
    model = (
        None if root.get("mode") in ("host-passthrough", "host-model", "maximum") else _text(root, "model")
    )
    return Cpu(_text(root, "arch"), model, _text(root, "vendor"), frozenset(wanted), frozenset(forbidden))


def parse_host_cpu(text: str) -> Cpu:
    """A CPU as a host's capabilities describe it: with its architecture and model."""
    cpu = parse_cpu(text)
    if cpu.arch is None:
        raise _xml_error("Missing CPU architecture")
    if cpu.model is None:
        raise _xml_error("Missing CPU model name")
    return cpu


def compare(host: Cpu, wanted: Cpu) -> Comparison:
    """Whether `host` is what is wanted: the same, more than that, or not. A model of another name is not."""
    for mine, theirs in ((host.arch, wanted.arch), (host.model, wanted.model), (host.vendor, wanted.vendor)):
        if theirs is not None and mine != theirs:
            return Comparison.INCOMPATIBLE
    if not wanted.features <= host.features or wanted.forbidden & host.features:
        return Comparison.INCOMPATIBLE
    return Comparison.IDENTICAL if wanted.features == host.features else Comparison.SUPERSET


def baseline(cpus: Sequence[Cpu], *, migratable: bool = False) -> Cpu:
    """What all of them have. Raises OPERATION_UNSUPPORTED for models of different names."""
    first = cpus[0]
    other = next((cpu.model for cpu in cpus if cpu.model != first.model), None)
    if other is not None:
        raise error(
            Code.OPERATION_UNSUPPORTED,
            f"what the CPU models {first.model} and {other} have in common is not known here",
            origin=Origin.CPU,
        )
    features = frozenset.intersection(*(cpu.features for cpu in cpus))
    if migratable:
        features -= _NOT_MIGRATABLE
    vendors = {cpu.vendor for cpu in cpus}
    return Cpu(None, first.model, vendors.pop() if len(vendors) == 1 else None, features)


def format_guest_cpu(cpu: Cpu) -> str:
    """The `<cpu>` that a guest would be given."""
    root = Element("cpu", {"mode": "custom", "match": "exact"})
    SubElement(root, "model", {"fallback": "forbid"}).text = cpu.model
    if cpu.vendor is not None:
        SubElement(root, "vendor").text = cpu.vendor
    for feature in sorted(cpu.features):
        SubElement(root, "feature", {"policy": "require", "name": feature})
    return write_element(root)


def _text(root: Element, tag: str) -> str | None:
    return (root.findtext(tag) or "").strip() or None


def _xml_error(detail: str) -> LibvirtError:
    return error(Code.XML_ERROR, detail, origin=Origin.CPU)
