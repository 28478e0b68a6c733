"""What a domain document may contain, as a table: libvirt reads what it knows and drops the rest in silence.

An element's shape is its attributes and its children, both in the order they are written back. A child whose
shape is ANY is kept whole: libvirt knows its inside, this library passes it on.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element


@dataclass(frozen=True, slots=True)
class Shape:
    attributes: tuple[str, ...] | None = ()  # None: all of them
    children: dict[str, Shape | None] = field(default_factory=dict)  # None: ANY
    text: bool = False


ANY = None
TEXT = Shape(text=True)


def _shape(attributes: str = "", /, **children: Shape | None) -> Shape:
    return Shape(tuple(attributes.split()), {name.rstrip("_"): inner for name, inner in children.items()})


def _any(names: str) -> dict[str, Shape | None]:
    return dict.fromkeys(names.split())


_ALIAS = _shape("name")
_DISK = Shape(
    ("type", "device", "model", "rawio", "sgio", "snapshot"),
    {
        **_any("driver auth source backingStore mirror geometry blockio"),
        "target": _shape("dev bus tray removable rotation_rate"),
        **_any("iotune"),
        "readonly": Shape(),
        "shareable": Shape(),
        "transient": _shape("shareBacking"),
        **dict.fromkeys(("serial", "wwn", "vendor", "product"), TEXT),
        **_any("encryption"),
        "boot": _shape("order loadparm"),
        "alias": _ALIAS,
        "address": ANY,
    },
)
_INTERFACE = Shape(
    ("type", "managed", "trustGuestRxFilters"),
    {
        "mac": _shape("address type check"),
        **_any("source virtualport vlan bandwidth port ip route script"),
        "target": _shape("dev managed"),
        "guest": _shape("dev actual"),
        "model": _shape("type"),
        **_any("driver backend filterref tune teaming"),
        "link": _shape("state"),
        "mtu": _shape("size"),
        **_any("coalesce acpi"),
        "boot": _shape("order"),
        "alias": _ALIAS,
        **_any("address rom"),
    },
)
_CHAR = Shape(
    ("type", "tty"),
    {**_any("source protocol log target"), "alias": _ALIAS, "address": ANY},
)
_GRAPHICS = Shape(
    ("type", "port", "tlsPort", "autoport", "websocket", "listen", "socket", "keymap", "defaultMode",
     "sharePolicy", "powerControl", "passwd", "passwdValidTo", "connected", "display", "xauth",
     "fullscreen", "replaceUser", "multiUser", "p2p"),
    _any("listen channel image jpeg zlib playback streaming clipboard mouse filetransfer gl audio"),
)  # fmt: skip

_DEVICES = Shape(
    (),
    {
        "emulator": TEXT,
        "disk": _DISK,
        **_any("controller lease filesystem"),
        "interface": _INTERFACE,
        "smartcard": ANY,
        "serial": _CHAR,
        "parallel": _CHAR,
        "console": _CHAR,
        "channel": _CHAR,
        **_any("input tpm"),
        "graphics": _GRAPHICS,
        **_any(
            "audio sound video hostdev redirdev redirfilter hub watchdog memballoon rng nvram panic shmem"
        ),
        **_any("memory iommu vsock crypto"),
    },
)

DOMAIN = Shape(
    ("type",),
    {
        "name": TEXT,
        "uuid": TEXT,
        "genid": TEXT,
        "title": TEXT,
        "description": TEXT,
        "metadata": ANY,
        "maxMemory": ANY,
        "memory": Shape(("unit", "dumpCore"), text=True),
        "currentMemory": Shape(("unit",), text=True),
        **_any("blkiotune memtune memoryBacking"),
        "vcpu": Shape(("placement", "cpuset", "current"), text=True),
        "vcpus": ANY,
        "iothreads": TEXT,
        **_any("iothreadids cputune numatune resource sysinfo"),
        "bootloader": TEXT,
        "bootloader_args": TEXT,
        "os": Shape(
            ("firmware",),
            {
                "type": Shape(("arch", "machine"), text=True),
                **_any("init initarg initenv initdir inituser initgroup firmware loader nvram"),
                "kernel": TEXT,
                "initrd": TEXT,
                "cmdline": TEXT,
                **_any("dtb acpi"),
                "boot": _shape("dev"),
                "bootmenu": _shape("enable timeout"),
                "bios": _shape("useserial rebootTimeout"),
                "smbios": _shape("mode"),
            },
        ),
        **_any("idmap features cpu clock"),
        "on_poweroff": TEXT,
        "on_reboot": TEXT,
        "on_crash": TEXT,
        "on_lockfailure": TEXT,
        **_any("pm perf"),
        "devices": _DEVICES,
        **_any("seclabel keywrap launchSecurity"),
    },
)


def keep_known(element: Element, shape: Shape) -> Element:
    """A copy with what `shape` knows, in its order; the order among equals stays."""
    kept = Element(element.tag)
    names = element.attrib if shape.attributes is None else shape.attributes
    for name in names:
        if name in element.attrib:
            kept.set(name, element.attrib[name])
    if shape.text:
        kept.text = element.text or ""
    found: dict[str, list[Element]] = {}
    for child in element:
        found.setdefault(child.tag, []).append(child)
    for tag, inner in shape.children.items():
        for child in found.get(tag, ()):
            kept.append(deepcopy(child) if inner is ANY else keep_known(child, inner))
    return kept
