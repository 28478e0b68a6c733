"""A domain as a client described it: plain data, and the normalised document behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

REMOVABLE = ("cdrom", "floppy")  # kinds of disks whose medium comes and goes while the drive stays


@dataclass(frozen=True, slots=True)
class Disk:
    """`type` says which of the sources counts: file/block → `path`, volume → `pool` + `volume`,
    network → `protocol` + `path` (the name on the far side) + `hosts` (host, port)."""

    target: str  # vda, sdb, nvme0n1 …
    bus: str  # virtio, scsi, sata, nvme …: a wish, the wiring decides
    type: str = "file"
    device: str = "disk"  # disk, cdrom, floppy, lun
    path: str | None = None
    pool: str | None = None
    volume: str | None = None
    protocol: str | None = None
    hosts: tuple[tuple[str, int], ...] = ()
    driver_name: str | None = None
    format: str | None = None  # raw, qcow2
    cache: str | None = None
    io: str | None = None
    discard: str | None = None
    readonly: bool = False
    shareable: bool = False
    serial: str | None = None
    wwn: str | None = None
    boot_order: int | None = None
    iotune: dict[str, int | str] = field(default_factory=dict)  # limits by libvirt's names, and group_name

    @property
    def empty(self) -> bool:
        """A drive for media that has none in it."""
        return self.device in REMOVABLE and not (self.path or self.volume)


@dataclass(frozen=True, slots=True)
class FilterRef:
    """A network filter by name; each parameter may have several values, in document order."""

    name: str
    parameters: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rate:
    """One direction of an interface: `average`, `peak` and `floor` in kilobytes (1,000 bytes) a second,
    `burst` in KiB; 0: not said."""

    average: int = 0
    peak: int = 0
    burst: int = 0
    floor: int = 0


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Inbound is what the domain receives. None: as fast as it goes."""

    inbound: Rate | None = None
    outbound: Rate | None = None


@dataclass(frozen=True, slots=True)
class Interface:
    """`type` says what `source` names: network → a network, bridge → a bridge, and so on."""

    mac: str  # lower case, colons
    type: str = "network"
    source: str | None = None
    portgroup: str | None = None
    model: str | None = None
    target: str | None = None
    boot_order: int | None = None
    filter: FilterRef | None = None
    link: str | None = None  # up, down
    mtu: int | None = None
    virtualport: str | None = None  # openvswitch, …
    virtualport_parameters: dict[str, str] = field(default_factory=dict)
    port_id: str | None = None
    bandwidth: Bandwidth = Bandwidth()


@dataclass(frozen=True, slots=True)
class Device:
    """A checked, normalised device; `disk` or `interface` is there, or neither for a kind that cannot
    change here."""

    kind: str
    element: Element  # treat as read-only
    disk: Disk | None = None
    interface: Interface | None = None
    mac_made_up: bool = False

    @property
    def name(self) -> str:
        """What it is found again by."""
        if self.disk is not None:
            return self.disk.target
        if self.interface is not None:
            return self.interface.mac
        return self.element.get("type", self.kind) if self.kind == "graphics" else self.kind


@dataclass(frozen=True, slots=True)
class CharDevice:
    """A serial port or console. `alias` is what DOMAIN_OPEN_CONSOLE names: serial0, console0."""

    kind: str  # serial, console
    type: str  # pty, unix, tcp …
    port: int
    target_type: str | None
    alias: str


@dataclass(frozen=True, slots=True)
class Graphics:
    """A screen. `listen` says where it is to be shown: address, network, socket or none (nowhere outside)."""

    type: str  # vnc, spice, sdl …
    listen: str
    address: str | None = None
    port: int | None = None
    autoport: bool = False
    password: str | None = field(default=None, repr=False)
    valid_to: float | None = None  # Unix seconds until which the password is good
    share_policy: str | None = None
    websocket: str | None = None
    power_control: bool = False


@dataclass(frozen=True, slots=True)
class Boot:
    """What the firmware tries: `devices` of `<os>` (hd, network, cdrom), or a device's boot_order if set."""

    devices: tuple[str, ...]
    firmware: str | None = None  # efi, bios, None = as the machine is
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None


@dataclass(frozen=True, slots=True)
class DomainDef:
    """A checked, normalised definition. Made by `domain_xml.parse_domain`; never changed, only replaced."""

    name: str
    uuid: bytes
    virt_type: str
    title: str | None
    description: str | None
    max_mem_kib: int
    mem_kib: int
    vcpus: int
    max_vcpus: int
    os_type: str
    arch: str
    machine: str | None
    boot: Boot
    disks: tuple[Disk, ...]
    interfaces: tuple[Interface, ...]
    serials: tuple[CharDevice, ...]
    consoles: tuple[CharDevice, ...]
    graphics: tuple[Graphics, ...]
    metadata: dict[str, Element]  # namespace URI → the element, verbatim
    on_poweroff: str
    on_reboot: str
    on_crash: str
    made_up_macs: frozenset[str]  # those of `interfaces` that the client left open
    tree: Element = field(repr=False, compare=False)  # the whole document, normalised; treat as read-only
