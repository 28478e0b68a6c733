"""Domain documents: text in, `DomainDef` out, and back, as libvirtd would."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from xml.etree.ElementTree import Element

from hypervisor_shim.driver import Metadata, MetadataKind
from hypervisor_shim.errors import Code, Origin, error
from hypervisor_shim.xml import graphics as graphics_xml
from hypervisor_shim.xml import metadata
from hypervisor_shim.xml.domain_check import check_domain, memory_kib, parse_uuid
from hypervisor_shim.xml.domain_def import (
    Bandwidth,
    Boot,
    CharDevice,
    Disk,
    DomainDef,
    FilterRef,
    Interface,
    Rate,
)
from hypervisor_shim.xml.domain_fill import fill
from hypervisor_shim.xml.domain_live import Live, add_live
from hypervisor_shim.xml.domain_shape import DOMAIN
from hypervisor_shim.xml.read import namespace_of, read_document
from hypervisor_shim.xml.write import write_element

DEFAULT_ARCH = "x86_64"


def parse_domain(xml: str, *, arch: str = DEFAULT_ARCH) -> DomainDef:
    """Check and normalise a `<domain>` document of at most 4 MiB. `arch`: of a guest that names none.

    Raises LibvirtError: XML_DETAIL (35) not well-formed, or with a document type declaration; XML_ERROR (27),
    CONFIG_UNSUPPORTED (67) and others for content libvirtd refuses. A missing UUID and missing MAC addresses
    are made up, so parsing the same text twice may give two different domains.
    """
    sent = read_document(xml)
    check_domain(sent)
    open_macs = [_get(each.find("mac"), "address") is None for each in sent.iterfind("devices/interface")]
    definition = describe(fill(sent, arch))
    made_up = {each.mac for each, was_open in zip(definition.interfaces, open_macs, strict=True) if was_open}
    return replace(definition, made_up_macs=frozenset(made_up))


def with_macs(definition: DomainDef, macs: Mapping[str, str]) -> DomainDef:
    """The definition with MAC addresses replaced (old → new): for hardware that has its own."""
    root = deepcopy(definition.tree)
    for mac in root.iterfind("devices/interface/mac"):
        mac.set("address", macs.get(mac.get("address", ""), mac.get("address", "")))
    return describe(root)


def format_domain(definition: DomainDef, live: Live | None = None, *, secure: bool = False) -> str:
    """The document as a client reads it; with `live`, that of the running domain. Without `secure` the
    passwords of graphics devices are left out."""
    root = definition.tree
    secrets = not secure and graphics_xml.has_passwords(root)
    if live is not None or secrets:
        root = deepcopy(root)
    if secrets:
        graphics_xml.hide_passwords(root)
    if live is not None:
        root.set("id", str(live.id))
        add_live(root, live)
    text = write_element(root)
    return text.replace("<devices/>", "<devices>\n  </devices>", 1)


# ---- metadata --------------------------------------------------------------------------------------


def get_metadata(definition: DomainDef, kind: MetadataKind, uri: str | None) -> str:
    """Title, description, or element text; NO_DOMAIN_METADATA (80) if it is not there."""
    found = metadata.find(definition, kind, uri)
    if found is None:
        raise error(
            Code.NO_DOMAIN_METADATA, "Requested metadata element is not present", origin=Origin.DOMAIN
        )
    return found


def set_metadata(definition: DomainDef, change: Metadata) -> DomainDef:
    """The definition with that piece of metadata replaced or removed."""
    order = DOMAIN.children
    return describe(metadata.replaced(definition.tree, change, order=order, read=read_document))


# ---- the typed view ----------------------------------------------------------------------------------


def describe(root: Element) -> DomainDef:
    """The typed view of a normalised document, which it keeps."""
    vcpu, os_type = root.find("vcpu"), root.find("os/type")
    count = int(root.findtext("vcpu") or "1")
    uuid = parse_uuid(root.findtext("uuid") or "")
    assert uuid is not None and vcpu is not None
    metadata = root.find("metadata")
    return DomainDef(
        name=root.findtext("name") or "",
        uuid=uuid,
        virt_type=root.attrib["type"],
        title=root.findtext("title"),
        description=root.findtext("description"),
        max_mem_kib=memory_kib(root, "memory"),
        mem_kib=memory_kib(root, "currentMemory"),
        vcpus=int(vcpu.get("current", str(count))),
        max_vcpus=count,
        os_type=root.findtext("os/type") or "hvm",
        arch=DEFAULT_ARCH if os_type is None else os_type.get("arch", DEFAULT_ARCH),
        machine=None if os_type is None else os_type.get("machine"),
        boot=Boot(
            devices=tuple(boot.get("dev", "") for boot in root.iterfind("os/boot")),
            firmware=_get(root.find("os"), "firmware"),
            kernel=root.findtext("os/kernel"),
            initrd=root.findtext("os/initrd"),
            cmdline=root.findtext("os/cmdline"),
        ),
        disks=tuple(_disk(disk) for disk in root.iterfind("devices/disk")),
        interfaces=tuple(_interface(interface) for interface in root.iterfind("devices/interface")),
        serials=_char_devices(root, "serial"),
        consoles=_char_devices(root, "console"),
        graphics=tuple(graphics_xml.describe(root)),
        metadata={}
        if metadata is None
        else {uri: element for element in metadata if (uri := namespace_of(element, {})) is not None},
        on_poweroff=root.findtext("on_poweroff") or "",
        on_reboot=root.findtext("on_reboot") or "",
        on_crash=root.findtext("on_crash") or "",
        made_up_macs=frozenset(),
        tree=root,
    )


def _get(element: Element | None, name: str) -> str | None:
    return None if element is None else element.get(name)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _disk(disk: Element) -> Disk:
    source, driver, target = disk.find("source"), disk.find("driver"), disk.find("target")
    hosts = [] if source is None else source.findall("host")
    return Disk(
        target=_get(target, "dev") or "",
        bus=_get(target, "bus") or "",
        type=disk.attrib["type"],
        device=disk.attrib["device"],
        path=_get(source, "file") or _get(source, "dev") or _get(source, "name"),
        pool=_get(source, "pool"),
        volume=_get(source, "volume"),
        protocol=_get(source, "protocol"),
        hosts=tuple((host.get("name", ""), _number(host.get("port")) or 0) for host in hosts),
        driver_name=_get(driver, "name"),
        format=_get(driver, "type"),
        cache=_get(driver, "cache"),
        io=_get(driver, "io"),
        discard=_get(driver, "discard"),
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        serial=disk.findtext("serial"),
        wwn=disk.findtext("wwn"),
        boot_order=_number(_get(disk.find("boot"), "order")),
        iotune={
            each.tag: each.text or "" if each.tag == "group_name" else _number(each.text) or 0
            for each in disk.iterfind("iotune/*")
        },
    )


def _interface(interface: Element) -> Interface:
    source, port = interface.find("source"), interface.find("virtualport")
    kind = interface.attrib["type"]
    parameters = None if port is None else port.find("parameters")
    reference = interface.find("filterref")
    guard = None
    if reference is not None:
        values: dict[str, list[str]] = {}
        for parameter in reference.iterfind("parameter"):
            values.setdefault(parameter.get("name", ""), []).append(parameter.get("value", ""))
        guard = FilterRef(reference.get("filter", ""), values)
    return Interface(
        mac=_get(interface.find("mac"), "address") or "",
        type=kind,
        source=_get(source, {"network": "network", "bridge": "bridge", "internal": "name"}.get(kind, "dev")),
        portgroup=_get(source, "portgroup"),
        model=_get(interface.find("model"), "type"),
        target=_get(interface.find("target"), "dev"),
        boot_order=_number(_get(interface.find("boot"), "order")),
        filter=guard,
        link=_get(interface.find("link"), "state"),
        mtu=_number(_get(interface.find("mtu"), "size")),
        virtualport=_get(port, "type"),
        virtualport_parameters={} if parameters is None else dict(parameters.attrib),
        port_id=_get(parameters, "interfaceid"),
        bandwidth=_bandwidth(interface.find("bandwidth")),
    )


def _bandwidth(element: Element | None) -> Bandwidth:
    if element is None:
        return Bandwidth()
    for way in ("inbound", "outbound"):
        if len(element.findall(way)) > 1:
            raise error(Code.XML_DETAIL, f"Only one child <{way}> element allowed", origin=Origin.NONE)
    return Bandwidth(_rate(element.find("inbound")), _rate(element.find("outbound")))


def _rate(element: Element | None) -> Rate | None:
    """A direction without a rate is none."""
    if element is None:
        return None
    if element.get("average") is None and element.get("floor") is None:
        raise error(Code.XML_DETAIL, "Missing mandatory average or floor attributes", origin=Origin.NONE)
    if element.get("floor") is not None and element.tag != "inbound":
        said = "'floor' attribute allowed only in <inbound> element"
        raise error(Code.CONFIG_UNSUPPORTED, said, origin=Origin.NONE)
    values = {}
    for name in ("average", "peak", "burst", "floor"):
        text = element.get(name, "0").strip()
        if not (text.isascii() and text.isdigit() and int(text) < 1 << 64):
            said = f"could not convert bandwidth {name} value '{element.get(name)}'"
            raise error(Code.CONFIG_UNSUPPORTED, said, origin=Origin.NONE)
        values[name] = int(text)
    return Rate(**values) if values["average"] or values["floor"] else None


def _char_devices(root: Element, kind: str) -> tuple[CharDevice, ...]:
    found = []
    for i, device in enumerate(root.iterfind(f"devices/{kind}")):
        target = device.find("target")
        alias = "serial0" if kind == "console" and i == 0 else f"{kind}{i}"
        given = _get(device.find("alias"), "name")
        port = _number(_get(target, "port")) or 0
        found.append(CharDevice(kind, device.get("type", "pty"), port, _get(target, "type"), given or alias))
    return tuple(found)
