"""Documents to begin with, and what becomes of them: edits of the tree, and of the text."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from tests.hypervisor_shim.documents import GOOD

from .source import Source

SEEDS = Path(__file__).parent / "seeds"
EDITS_MAX = 4
#: Values and texts that have been somebody's undoing.
WORDS = (
    "", "0", "1", "-1", "yes", "no", "default", "test", "2147483648", "18446744073709551615", "1e9", "0x10",
    "99999999999999999999999999", " 1 ", "1\n", "\u0661\u0662", "\u00b2", "KiB", "EiB", "parsecs", "virtio",
    "file", "network", "pci", "52:54:00:00:00:01", "ff:ff:ff:ff:ff:ff", "52:54:00", "a" * 300, "%s%n",
    "6695eb01-f6a4-8304-79aa-97f2502e193f", "00000000-0000-0000-0000-000000000000", "../../etc/passwd",
    "/dev/null", "\udcff", "\u202e", "vda", "sdzzzzzzz", "10.0.0.1", "::1", "10.0.0.1/99", "0-4294967295",
    "1,^1", "'\"<>&", "\t", "\r",
)  # fmt: skip
_ATTACKS = (
    "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/hostname'>]>",
    "<!DOCTYPE d [<!ENTITY a 'b'><!ENTITY c '&a;&a;&a;&a;'>]>",
    "<?xml version='1.0' encoding='utf-16'?>",
    "<?xml version='1.0' encoding='utf-7'?>",
    "<!-- -- -->",
    "<![CDATA[",
    "\ufeff",
    "&a;",
    "\x00",
    "\udcff",
)
#: Root of a document → words of the functions that take such.
_ABOUT = {
    "domain": ("DomainDefine", "DomainCreate", "SaveImage", "Restore", "Migrate", "XMLTo", "parse_domain"),
    "pool": ("StoragePool", "parse_pool"),
    "volume": ("StorageVol", "parse_volume"),
    "network": ("NetworkDefine", "NetworkCreate", "NetworkUpdate", "parse_network"),
    "networkport": ("NetworkPort",),
    "filter": ("NWFilterDefine", "parse_nwfilter", "parse_filter"),
    "filterbinding": ("NWFilterBinding", "parse_binding"),
    "secret": ("Secret", "parse_secret"),
    "interface": ("Interface", "Device", "parse_device"),
    "disk": ("Device", "BlockCopy", "parse_device"),
    "hostdev": ("Device", "parse_device"),
    "device": ("NodeDevice", "parse_port_wish"),
    "domainsnapshot": ("Snapshot", "parse_snapshot"),
    "domaincheckpoint": ("Checkpoint", "Backup", "parse_checkpoint"),
    "domainbackup": ("Backup", "parse_backup"),
    "cpu": ("CPU", "cpu"),
}


@cache
def seeds() -> tuple[Element, ...]:
    """Each kind of document once or more, those of this folder before those of the tests."""
    texts = [path.read_text() for path in sorted(SEEDS.glob("*.xml"))]
    return tuple(ElementTree.fromstring(text) for text in [*texts, *GOOD.values()])


def document(source: Source, about: str = "") -> str:
    """A document, edited. `about`: the function that it is for, whose name tells what kind is likely."""
    likely = [seed for seed in seeds() if any(word in about for word in _ABOUT.get(seed.tag, ()))]
    root = deepcopy(source.pick(likely if likely and not source.one_in(8) else seeds()))
    for _ in range(source.below(EDITS_MAX)):
        _edit(root, source)
    text = ElementTree.tostring(root, encoding="unicode")
    if source.one_in(8):
        at = source.below(max(len(text), 1))
        text = text[:at] + source.pick(_ATTACKS) + text[at + source.below(8) :]
    return text


def _edit(root: Element, source: Source) -> None:
    everything = list(root.iter())
    element, other = source.pick(everything), source.pick(everything)
    kind = source.below(9)
    if kind == 0 and element.attrib:
        element.set(source.pick(sorted(element.attrib)), source.pick(WORDS))
    elif kind == 1 and element.attrib:
        del element.attrib[source.pick(sorted(element.attrib))]
    elif kind == 2:
        element.text = source.pick(WORDS)
    elif kind == 3 and len(element):
        element.remove(source.pick(list(element)))
    elif kind == 4:
        element.append(deepcopy(other))
    elif kind == 5 and len(element):
        element.append(deepcopy(source.pick(list(element))))
    elif kind == 6:
        element.tag = other.tag
    elif kind == 7 and other.attrib:
        name = source.pick(sorted(other.attrib))
        element.set(name, other.attrib[name])
    else:
        element.insert(0, Element(source.pick(seeds()).tag))
