"""What is said of domains and of the node: libvirt's states, reasons and flags, and plain data.

The numbers are those of libvirt's public headers; clients compare them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag


class State(IntEnum):
    """A domain's state (libvirt: virDomainState)."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4  # being shut down
    SHUTOFF = 5
    CRASHED = 6
    PMSUSPENDED = 7


class RunningReason(IntEnum):
    """Why a domain is RUNNING."""

    UNKNOWN = 0
    BOOTED = 1
    MIGRATED = 2
    RESTORED = 3
    FROM_SNAPSHOT = 4
    UNPAUSED = 5
    MIGRATION_CANCELED = 6
    SAVE_CANCELED = 7
    WAKEUP = 8
    CRASHED = 9
    POSTCOPY = 10


class ShutdownReason(IntEnum):
    """Why a domain is in SHUTDOWN."""

    UNKNOWN = 0
    USER = 1


class ShutoffReason(IntEnum):
    """Why a domain is SHUTOFF."""

    UNKNOWN = 0
    SHUTDOWN = 1
    DESTROYED = 2
    CRASHED = 3
    MIGRATED = 4
    SAVED = 5
    FAILED = 6
    FROM_SNAPSHOT = 7
    DAEMON = 8


class CrashedReason(IntEnum):
    """Why a domain is CRASHED."""

    UNKNOWN = 0
    PANICKED = 1


class Lifecycle(IntEnum):
    """What a lifecycle event says happened (libvirt: virDomainEventType)."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    SUSPENDED = 3
    RESUMED = 4
    STOPPED = 5
    SHUTDOWN = 6
    PMSUSPENDED = 7
    CRASHED = 8


class DefinedDetail(IntEnum):
    ADDED = 0
    UPDATED = 1
    RENAMED = 2
    FROM_SNAPSHOT = 3


class UndefinedDetail(IntEnum):
    REMOVED = 0
    RENAMED = 1


class StartedDetail(IntEnum):
    BOOTED = 0
    MIGRATED = 1
    RESTORED = 2
    FROM_SNAPSHOT = 3
    WAKEUP = 4


class StoppedDetail(IntEnum):
    SHUTDOWN = 0
    DESTROYED = 1
    CRASHED = 2
    MIGRATED = 3
    SAVED = 4
    FAILED = 5
    FROM_SNAPSHOT = 6


class ShutdownDetail(IntEnum):
    FINISHED = 0
    GUEST = 1
    HOST = 2


class ShutdownFlags(IntFlag):
    """How a client wants the OS asked (SHUTDOWN and REBOOT share the bits). 0 = as the driver likes."""

    DEFAULT = 0
    ACPI_POWER_BTN = 1
    GUEST_AGENT = 2
    INITCTL = 4
    SIGNAL = 8
    PARAVIRT = 16


class DestroyFlags(IntFlag):
    DEFAULT = 0
    GRACEFUL = 1
    REMOVE_LOGS = 2


class CreateFlags(IntFlag):
    NONE = 0
    PAUSED = 1
    AUTODESTROY = 2
    BYPASS_CACHE = 4
    FORCE_BOOT = 8
    VALIDATE = 16
    RESET_NVRAM = 32


class UndefineFlags(IntFlag):
    """0 = refuse when managed-save state, snapshots or NVRAM exist."""

    NONE = 0
    MANAGED_SAVE = 1
    SNAPSHOTS_METADATA = 2
    NVRAM = 4
    KEEP_NVRAM = 8
    CHECKPOINTS_METADATA = 16
    TPM = 32
    KEEP_TPM = 64


class ConsoleFlags(IntFlag):
    """FORCE: throw out whoever holds the console. SAFE: only if exclusive access is enforced."""

    NONE = 0
    FORCE = 1
    SAFE = 2


class Impact(IntFlag):
    """Which definition a call means. CURRENT = LIVE when the domain runs, else CONFIG."""

    CURRENT = 0
    LIVE = 1
    CONFIG = 2


class MetadataKind(IntEnum):
    DESCRIPTION = 0
    TITLE = 1
    ELEMENT = 2


@dataclass(frozen=True, slots=True)
class Metadata:
    """The title, the description or the element of namespace `uri`, to be replaced, or removed if `text` is
    None. The element's tags get the prefix `key`."""

    kind: MetadataKind
    text: str | None
    key: str | None = None
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """A domain at one moment. Sizes in KiB, time in ns. `id` is -1 while the domain does not run."""

    uuid: bytes
    name: str
    id: int = -1
    state: State = State.SHUTOFF
    reason: int = 0
    max_mem_kib: int = 0
    mem_kib: int = 0
    vcpus: int = 1
    max_vcpus: int = 1
    cpu_time_ns: int | None = None  # None: not known, as of metal without an agent in its OS
    persistent: bool = True
    autostart: bool = False
    autostart_once: bool | None = None  # None: the driver has no such mark
    updated: bool = False  # the definition changed since start: DOMAIN_IS_UPDATED
    os_type: str = "hvm"
    tenant: str | None = None  # whose it is, as its definition says (`Driver.tenant`); access rules go by it

    @property
    def active(self) -> bool:
        return self.id >= 0

    def meant(self, impact: Impact) -> Impact:
        """LIVE, CONFIG or both: CURRENT means whatever the domain is now."""
        return impact or (Impact.LIVE if self.active else Impact.CONFIG)


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The machine behind the connection (libvirt: virNodeInfo). Memory in KiB; model at most 31 bytes."""

    model: str = "x86_64"
    memory_kib: int = 0
    cpus: int = 1
    mhz: int = 0
    nodes: int = 1
    sockets: int = 1
    cores: int = 1
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for the audit log. `peer` is text such as `unix:uid=0,pid=4711` or `tcp:192.0.2.7:50312`."""

    identity: str
    peer: str
    read_only: bool
    secure: bool  # nobody else can read along: a unix socket, or TLS
    connection: int  # unique within the server's life
