"""What a program implements to be driven by libvirt clients.

Two kinds of calls, and the difference is the reason this library is fast:

* **Reading** calls are plain methods. They run inside the event loop, between two packets, and must answer
  from memory: no I/O, no lock that anyone holds across I/O.
* **Acting** calls are coroutines. Each runs as a task of its own, so a power-on that takes a minute blocks
  neither other clients nor other calls of the same client. They get a `Caller` for the audit log. When the
  client goes away the task is *not* cancelled: what was asked for is carried out, its answer is thrown away.

Domains are named by their UUID, 16 raw bytes, in every call: that is what is on the wire, and it makes a good
dictionary key. Errors are `errors.LibvirtError`; `errors.no_domain(uuid)` answers a call for an unknown one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Protocol

from hypervisor_shim.domain_def import DomainDef
from hypervisor_shim.errors import Code, LibvirtError, error


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
    updated: bool = False  # the definition changed since start: DOMAIN_IS_UPDATED
    os_type: str = "hvm"

    @property
    def active(self) -> bool:
        return self.id >= 0


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


class ConsoleStream(Protocol):
    """One client's hold on a console. The library closes it exactly once."""

    async def read(self, limit: int) -> bytes:
        """At least 1 and at most `limit` bytes; b"" when the console is at its end."""

    async def write(self, data: bytes) -> None:
        """Take all of `data`. Returning late is the backpressure: the client's socket is not read."""

    async def close(self) -> None:
        """Give the console back. A pending read may raise or return b""."""


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """`detail` is the value of the matching *Detail enum above."""

    domain: DomainInfo
    event: Lifecycle
    detail: int = 0


@dataclass(frozen=True, slots=True)
class RebootEvent:
    """The guest was reset or restarted itself."""

    domain: DomainInfo


DomainEvent = LifecycleEvent | RebootEvent


class EventSink(Protocol):
    """Where a driver reports what happened; to be called in the event loop's thread."""

    def domain_event(self, event: DomainEvent) -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What the server says it is. Versions as major*1,000,000 + minor*1,000 + release.

    The defaults satisfy clients that check: nova wants libvirt ≥ 10.0 and QEMU ≥ 8.2.2.
    """

    hypervisor: str = "QEMU"
    hypervisor_version: int = 8_002_002
    library_version: int = 10_000_000
    schemes: frozenset[str] = field(default_factory=lambda: frozenset({"nic", "qemu"}))
    paths: frozenset[str] = frozenset({"/system"})
    arch: str = "x86_64"  # of a guest whose definition names none


class Driver(ABC):
    """The program behind the server. Must: the abstract methods. May: the rest (default: code 3)."""

    identity: Identity = Identity()

    # ---- reading: synchronous, from memory -------------------------------------------------------

    @abstractmethod
    def hostname(self) -> str: ...

    @abstractmethod
    def uri(self) -> str:
        """The canonical URI of this connection, e.g. `nic:///system`."""

    @abstractmethod
    def capabilities(self) -> str:
        """The `<capabilities>` document."""

    @abstractmethod
    def node_info(self) -> NodeInfo: ...

    @abstractmethod
    def domains(self) -> Iterable[DomainInfo]:
        """All domains, active or not, in a stable order."""

    @abstractmethod
    def domain(self, uuid: bytes) -> DomainInfo | None: ...

    @abstractmethod
    def domain_by_name(self, name: str) -> DomainInfo | None: ...

    @abstractmethod
    def domain_by_id(self, id: int) -> DomainInfo | None: ...

    @abstractmethod
    def domain_xml(self, uuid: bytes, *, inactive: bool, secure: bool) -> str:
        """The domain's document. `inactive`: what the next start will use. `secure`: with its secrets."""

    def metadata(self, uuid: bytes, kind: MetadataKind, uri: str | None, impact: Impact) -> str:
        """Title, description, or the element of namespace `uri`; NO_DOMAIN_METADATA (80) when not there."""
        raise unsupported("virDomainGetMetadata")

    def domain_capabilities(
        self, emulator: str | None, arch: str | None, machine: str | None, virt_type: str | None
    ) -> str:
        """The `<domainCapabilities>` document."""
        raise unsupported("virConnectGetDomainCapabilities")

    def messages(self, uuid: bytes) -> list[str]:
        """Sentences about the domain for `virsh dominfo` (a fault that was kept, a fact that disagrees)."""
        return []

    # ---- acting: coroutines, a task each ---------------------------------------------------------

    @abstractmethod
    async def define(self, caller: Caller, definition: DomainDef) -> DomainInfo:
        """Create or replace the persistent definition. `definition` is parsed, checked and normalised."""

    @abstractmethod
    async def undefine(self, caller: Caller, uuid: bytes, flags: UndefineFlags) -> None: ...

    @abstractmethod
    async def create(self, caller: Caller, uuid: bytes, flags: CreateFlags) -> DomainInfo:
        """Start a defined domain; returns when it runs."""

    async def create_xml(self, caller: Caller, definition: DomainDef, flags: CreateFlags) -> DomainInfo:
        """Start a domain that is gone once it stops (transient)."""
        raise unsupported("virDomainCreateXML")

    @abstractmethod
    async def destroy(self, caller: Caller, uuid: bytes, flags: DestroyFlags) -> None:
        """Power off at once; returns when off."""

    @abstractmethod
    async def shutdown(self, caller: Caller, uuid: bytes, flags: ShutdownFlags) -> None:
        """Ask the OS to switch itself off; returns when asked, not when off."""

    async def reboot(self, caller: Caller, uuid: bytes, flags: ShutdownFlags) -> None:
        raise unsupported("virDomainReboot")

    async def reset(self, caller: Caller, uuid: bytes) -> None:
        raise unsupported("virDomainReset")

    async def inject_nmi(self, caller: Caller, uuid: bytes) -> None:
        raise unsupported("virDomainInjectNMI")

    async def set_autostart(self, caller: Caller, uuid: bytes, autostart: bool) -> None:
        raise unsupported("virDomainSetAutostart")

    async def set_metadata(
        self,
        caller: Caller,
        uuid: bytes,
        kind: MetadataKind,
        text: str | None,
        key: str | None,
        uri: str | None,
        impact: Impact,
    ) -> None:
        """Replace (`text` None: remove) the title, the description, or the element of namespace `uri`."""
        raise unsupported("virDomainSetMetadata")

    async def open_console(
        self, caller: Caller, uuid: bytes, device: str | None, flags: ConsoleFlags
    ) -> ConsoleStream:
        """`device` is an alias such as `serial0`; None means the first one."""
        raise unsupported("virDomainOpenConsole")

    # ---- events ----------------------------------------------------------------------------------

    @abstractmethod
    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Report every domain event to `sink` until the returned function is called."""


def unsupported(function: str) -> LibvirtError:
    """Code 3, as libvirt words it. `function` is the public API name, e.g. `virDomainSuspend`."""
    return error(Code.NO_SUPPORT, function)
