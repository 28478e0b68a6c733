"""The words of nicagent as plain data. Imports nothing of ours, does no I/O.

Everything here is frozen: a change is a new value, published by the controller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Power(StrEnum):
    """What the power LED (or the BMC) says. `UNKNOWN` is honest: nobody answered, or facts disagree."""

    OFF = "off"
    ON = "on"
    UNKNOWN = "unknown"


class PowerAction(StrEnum):
    """What a power driver can be asked for. All but `PRESS` are target states, so they are idempotent."""

    ON = "on"
    OFF = "off"  # hard: hold the button, or the BMC's power down
    SHUTDOWN = "shutdown"  # graceful: ask the OS by the ACPI button; returns once asked, not once done
    RESET = "reset"  # hard reset of a host that is on
    PRESS = "press"  # a technician's short press of the button, whatever it then does
    INTERRUPT = "interrupt"  # a diagnostic interrupt (NMI): what a stuck OS dumps its core by


class HostState(StrEnum):
    """The states of a host's life; the legal moves between them are the table in `lifecycle`."""

    FREE = "free"
    PREPARING = "preparing"
    POWERING_ON = "powering-on"
    RUNNING = "running"
    REBOOTING = "rebooting"  # the OS was asked to go down; then the host is switched on again
    STOPPING = "stopping"
    CLEANING = "cleaning"
    UNKNOWN = "unknown"
    FAULT = "fault"


class Transport(StrEnum):
    """How an exported volume reaches the host."""

    VIRTIO = "virtio"
    NVME_TCP = "nvme-tcp"


class VolumeFormat(StrEnum):
    """On-disk format of a volume."""

    RAW = "raw"
    QCOW2 = "qcow2"


class Preallocation(StrEnum):
    """How much of a new volume has its place already, in QEMU's words."""

    NONE = "off"
    METADATA = "metadata"  # qcow2: its tables, so that the first write of a block is no slower than others
    ALL = "falloc"


@dataclass(frozen=True)
class Cause:
    """Who asked, and why. Every transition and every edge on a line carries one."""

    who: str
    why: str

    def __str__(self) -> str:
        return f"{self.why} (asked by {self.who})"


@dataclass(frozen=True)
class Limits:
    """How fast a host may use a disk, in libvirt's words: bytes or operations a second, 0 for no limit.

    `*_max` is a burst and `*_max_length` its seconds; `size_iops_sec` the bytes that count as one operation.
    """

    total_bytes_sec: int = 0
    read_bytes_sec: int = 0
    write_bytes_sec: int = 0
    total_iops_sec: int = 0
    read_iops_sec: int = 0
    write_iops_sec: int = 0
    total_bytes_sec_max: int = 0
    read_bytes_sec_max: int = 0
    write_bytes_sec_max: int = 0
    total_iops_sec_max: int = 0
    read_iops_sec_max: int = 0
    write_iops_sec_max: int = 0
    size_iops_sec: int = 0
    total_bytes_sec_max_length: int = 0
    read_bytes_sec_max_length: int = 0
    write_bytes_sec_max_length: int = 0
    total_iops_sec_max_length: int = 0
    read_iops_sec_max_length: int = 0
    write_iops_sec_max_length: int = 0


@dataclass(frozen=True)
class Disk:
    """A disk of a domain as its client defined it."""

    target: str  # name in the domain, unique there: vda, sda, nvme0n1
    path: str  # absolute path of the volume
    format: VolumeFormat
    readonly: bool = False
    serial: str | None = None  # a host is shown the first 20 characters of it (virtio-blk's limit)
    boot_order: int | None = None
    wanted_bus: str = "virtio"  # the client's wish; the host's wiring decides
    limits: Limits | None = None  # None: as fast as it goes


@dataclass(frozen=True)
class Rate:
    """How fast a port may go in one direction: bytes a second in the long run, and at `peak` until `burst`
    bytes have passed; 0: no faster than in the long run, and as few as the kernel can."""

    average: int
    peak: int = 0
    burst: int = 0


@dataclass(frozen=True)
class Port:
    """A host's attachment to a segment."""

    name: str  # unique in the domain: port0, port1 in the order of the definition
    segment: str
    mac: str | None = None  # None: whatever the host's own NIC has
    ipv4: str | None = None  # the one address it may use; None: the agent allots one of the segment's
    boot_order: int | None = None
    link: bool = True  # False: it is there and dark
    filter: str | None = None  # by name; None: the guard of every port
    parameters: tuple[tuple[str, tuple[str, ...]], ...] = ()  # values of the filter's variables
    inbound: Rate | None = None  # what the host receives; None: as fast as it goes
    outbound: Rate | None = None  # what it sends


class Sharing(StrEnum):
    """Who else may look while a viewer looks; libvirt's sharePolicy."""

    EXCLUSIVE = "allow-exclusive"  # a viewer that asks to be alone ends the others
    SHARED = "force-shared"  # one that asks to be alone is turned away
    IGNORE = "ignore"  # all look, whatever they ask for


@dataclass(frozen=True)
class Display:
    """How a domain's screen is to be shown to viewers over TCP (RFB, also called VNC)."""

    address: str | None = None  # an IP address; None: the agent's own choice
    port: int | None = None  # None: a free one
    password: str | None = field(default=None, repr=False)  # None: whoever gets to the port may look
    valid_to: float | None = None  # Unix seconds until which the password is good; None: for ever
    sharing: Sharing = Sharing.EXCLUSIVE


@dataclass(frozen=True)
class DiskFile:
    """One file of a disk's chain. `size` is what a host sees, in bytes."""

    path: str  # absolute, links resolved
    format: VolumeFormat
    size: int


@dataclass(frozen=True)
class Domain:
    """What a libvirt client defined. `xml` is the normalised definition; the rest is read from it."""

    uuid: str
    name: str
    xml: str
    memory_kib: int
    vcpus: int
    disks: tuple[Disk, ...] = ()
    ports: tuple[Port, ...] = ()
    display: Display | None = None  # its screen; None: nobody is shown it
    host: str | None = None  # pinned to this host; None: any free one
    tenant: str | None = None  # whose it is, for rules of access
    persistent: bool = True
    autostart: bool = False  # whenever the board comes up
    autostart_once: bool = False  # the next time it does, and not again


@dataclass(frozen=True)
class ExportIdentity:
    """The names by which a host's initiator knows a disk. Derived once and stored, so that a rebuilt
    export is bit-equal (promise 2).
    """

    uuid: str
    nqn: str  # of the subsystem that holds it
    nsid: int
    nguid: str  # 32 hex digits
    eui64: str  # 16 hex digits
    serial: str  # at most 20 ASCII characters


@dataclass(frozen=True)
class Export:
    """A volume to be made visible to one host, and under which identity."""

    disk: Disk
    identity: ExportIdentity


class JobKind(StrEnum):
    """What a block job does to the files of a disk while the host goes on using it."""

    COPY = "copy"  # all, or the written layer alone, to another file; ready once both are the same
    COMMIT = "commit"  # a layer below the written one into one below that
    ACTIVE_COMMIT = "active-commit"  # the written layer into one below; ready once they are the same
    PULL = "pull"  # what is below the written layer into that


class JobState(StrEnum):
    """How far a block job is."""

    RUNNING = "running"
    READY = "ready"  # copy and active commit: from now on both sides are kept the same
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class BlockJob:
    """A block job as it was asked for. It outlives the agent, so this must too."""

    domain: str  # UUID
    target: str  # the disk
    kind: JobKind
    path: str = ""  # where to: the copy; what to commit into; the layer that a pull leaves below ("": none)
    format: VolumeFormat = VolumeFormat.QCOW2  # of the copy
    top: str = ""  # commit: the layer that goes
    shallow: bool = False  # copy: the written layer alone
    speed: int = 0  # bytes a second, 0: as fast as it goes


@dataclass(frozen=True)
class JobFacts:
    """A block job as the engine tells it. `done` of `total` bytes, which grow while the host writes."""

    target: str
    kind: JobKind
    state: JobState
    done: int = 0
    total: int = 0
    speed: int = 0
    trouble: str = ""


@dataclass(frozen=True)
class Initiator:
    """The one initiator that may connect to a host's exports."""

    hostnqn: str
    hostid: str  # a UUID


@dataclass(frozen=True)
class Credentials:
    """DH-HMAC-CHAP secrets (DHHC-1:…): what a host proves itself with, and what its exports do."""

    host: str = field(repr=False)
    controller: str = field(default="", repr=False)  # empty: the exports prove nothing


@dataclass(frozen=True)
class ExportStatus:
    """Counters of one export since it came up. `None` means not known, never zero."""

    target: str
    transport: Transport
    connected: bool | None = None
    read_ops: int | None = None
    read_bytes: int | None = None
    write_ops: int | None = None
    write_bytes: int | None = None
    flush_ops: int | None = None
    first_read: float | None = None  # Unix seconds of the host's first read


@dataclass(frozen=True)
class PortBinding:
    """A port as it must be on the wire: resolved to a device, a MAC and an address."""

    port: Port
    device: str  # the agent's netdev that leads to the host's NIC
    mac: str
    ipv4: str
    hostname: str


@dataclass(frozen=True)
class DisplayBinding:
    """A display where its viewers find it."""

    display: Display
    address: str
    port: int


@dataclass(frozen=True)
class PortStatus:
    """Facts and counters of one port, from the host's point of view (rx = what the host received)."""

    name: str
    device: str
    link: bool
    rx_bytes: int | None = None
    rx_packets: int | None = None
    tx_bytes: int | None = None
    tx_packets: int | None = None


@dataclass(frozen=True)
class HostStatus:
    """What the controller knows of a host; published whole on every change."""

    name: str
    state: HostState
    power: Power
    reason: str  # why it is in this state
    since: float  # Unix seconds of the last state change
    domain: str | None = None  # UUID of the domain that occupies it
    marks: Mapping[str, float] = field(default_factory=dict)  # "power-good": Unix seconds, of this run
    trouble: str = ""  # why its power cannot be read, while it cannot and that is known


@dataclass(frozen=True)
class DomainStatus:
    """A domain with what the controller knows of its run. `id` is None while it is off."""

    domain: Domain
    id: int | None
    host: str | None
    state: HostState  # of its host, FREE while it has none
    reason: str
    bindings: tuple[PortBinding, ...] = ()
    exports: tuple[Export, ...] = ()
    transport: Transport | None = None
    was_running: bool = False  # this run has seen power-good
    ended: DomainEvent | None = None  # how the last run ended
    display: DisplayBinding | None = None


class DomainEvent(StrEnum):
    """What happened to a domain; a face maps it to its own event numbers."""

    DEFINED = "defined"
    UPDATED = "updated"
    UNDEFINED = "undefined"
    STARTED = "started"
    SHUTDOWN = "shutdown"  # the OS has gone down, the domain is about to be stopped
    STOPPED = "stopped"  # asked for by shutdown, or by the OS itself
    DESTROYED = "destroyed"
    CRASHED = "crashed"
    FAILED = "failed"  # a start that was rolled back
    REBOOT = "reboot"
    RENAMED_FROM = "renamed-from"  # told with the old name, right before…
    RENAMED = "renamed"  # …this one with the new name


@dataclass(frozen=True)
class Change:
    """One item of the controller's change stream."""

    serial: int  # grows by one with every change
    host: HostStatus | None = None
    event: DomainEvent | None = None
    domain: DomainStatus | None = None
