"""What only a running domain's document has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.xml import graphics
from hypervisor_shim.xml.domain_shape import DOMAIN
from hypervisor_shim.xml.metadata import place
from hypervisor_shim.xml.read import read_document


class MirrorJob(StrEnum):
    """Jobs that keep two files of a disk the same once they are ready."""

    COPY = "copy"
    ACTIVE_COMMIT = "active-commit"


@dataclass(frozen=True, slots=True)
class Mirror:
    """The other side of a disk's block job. `shallow`: it stands on the same files below as the disk."""

    job: MirrorJob
    path: str
    format: str
    ready: bool
    shallow: bool = False


@dataclass(frozen=True, slots=True)
class Live:
    """What only a running domain's document has. Keys of `targets` are interface MACs, values their device
    names; keys of `ptys` are aliases (serial0). `metadata`: extra elements, the text of one each, put into
    `<metadata>`. `aliases`: devices carry the names that other calls know them by. `mirrors`: by a disk's
    target, the other side of its block job, for jobs that have one. `screen`: address and port at which its
    VNC server listens."""

    id: int
    targets: Mapping[str, str] = field(default_factory=dict)
    ptys: Mapping[str, str] = field(default_factory=dict)
    metadata: tuple[str, ...] = ()
    aliases: bool = True
    mirrors: Mapping[str, Mirror] = field(default_factory=dict)
    screen: tuple[str, int] | None = None


_BEFORE_TARGET = ("mac", "source", "virtualport", "vlan", "bandwidth", "port", "ip", "route", "script")


def add_live(root: Element, live: Live) -> None:
    """Put it into a document, which is changed."""
    for kind in ("serial", "console"):
        for i, device in enumerate(root.iterfind(f"devices/{kind}")):
            alias = f"{kind}{i}"
            path = live.ptys.get(alias) or (live.ptys.get("serial0") if alias == "console0" else None)
            if path is not None and device.get("type") == "pty":
                for source in device.findall("source"):
                    device.remove(source)
                device.insert(0, Element("source", path=path))
                if kind == "console":
                    device.set("tty", path)
            if live.aliases:
                # the first console is the first serial port and goes by its name
                _add_alias(device, "serial0" if alias == "console0" else alias)
    for i, interface in enumerate(root.iterfind("devices/interface")):
        mac = interface.find("mac")
        name = live.targets.get(mac.get("address", "") if mac is not None else "")
        if name is not None:
            target = interface.find("target")
            if target is None:
                at = sum(child.tag in _BEFORE_TARGET for child in interface)
                target = Element("target")
                interface.insert(at, target)
            target.set("dev", name)
        if live.aliases:
            _add_alias(interface, f"net{i}")
    if live.aliases:
        for disk in root.iterfind("devices/disk"):
            drive = disk.find("target")
            if drive is not None:
                _add_alias(disk, f"{drive.get('bus')}-{drive.get('dev')}")
    for disk in root.iterfind("devices/disk"):
        drive = disk.find("target")
        if drive is not None and (mirror := live.mirrors.get(drive.get("dev", ""))) is not None:
            disk.insert(list(disk).index(drive), _mirror(mirror))
    if live.screen is not None:
        graphics.show(root, *live.screen)
    if live.metadata:
        metadata = root.find("metadata")
        if metadata is None:
            metadata = place(root, "metadata", DOMAIN.children)
        for text in live.metadata:
            metadata.append(read_document(text))


def _mirror(mirror: Mirror) -> Element:
    element = Element("mirror", type="file")
    copied = mirror.job is MirrorJob.COPY
    if copied:  # said twice, as libvirtd does for clients of old
        element.set("file", mirror.path)
        element.set("format", mirror.format)
    element.set("job", mirror.job.value)
    if mirror.ready:
        element.set("ready", "yes")
    SubElement(element, "format", type=mirror.format)
    SubElement(element, "source", file=mirror.path)
    if copied and not mirror.shallow:
        SubElement(element, "backingStore")
    return element


def _add_alias(device: Element, name: str) -> None:
    if device.find("alias") is None:
        at = next((i for i, child in enumerate(device) if child.tag in ("address", "rom")), len(device))
        device.insert(at, Element("alias", name=name))
