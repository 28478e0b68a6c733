"""What a program implements to be driven by libvirt clients.

Two kinds of calls, and the difference is the reason this library is fast:

* **Reading** calls are plain methods. They run inside the event loop, between two packets, and must answer
  from memory: no I/O, no lock that anyone holds across I/O.
* **Acting** calls are coroutines. Each runs as a task of its own, so a power-on that takes a minute blocks
  neither other clients nor other calls of the same client. They get a `Caller` for the audit log. When the
  client goes away the task is *not* cancelled: what was asked for is carried out, its answer is thrown away.

Domains are named by their UUID, 16 raw bytes, in every call: that is what is on the wire, and it makes a good
dictionary key. Errors are `errors.LibvirtError`; `errors.no_domain(uuid)` answers a call for an unknown one.

`Driver` itself is about domains as such. Each further family of objects or calls is a contract of its own and
an attribute of `Driver`; None, the default, refuses the whole family with code 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from hypervisor_shim.driver.block import Block
from hypervisor_shim.driver.control import Control
from hypervisor_shim.driver.devices import Devices
from hypervisor_shim.driver.events import EventSink
from hypervisor_shim.driver.facts import (
    Caller,
    ConsoleFlags,
    CreateFlags,
    DestroyFlags,
    DomainInfo,
    Impact,
    Metadata,
    MetadataKind,
    NodeInfo,
    ShutdownFlags,
    UndefineFlags,
)
from hypervisor_shim.driver.guest import Guest
from hypervisor_shim.driver.interface import Interfaces
from hypervisor_shim.driver.migration import Migration
from hypervisor_shim.driver.network import Networks
from hypervisor_shim.driver.node import Node
from hypervisor_shim.driver.nodedev import NodeDevices
from hypervisor_shim.driver.nwfilter import NwFilters
from hypervisor_shim.driver.secret import Secrets
from hypervisor_shim.driver.snapshot import Snapshots
from hypervisor_shim.driver.statistics import Statistics
from hypervisor_shim.driver.storage import Storage
from hypervisor_shim.driver.stream import ByteStream
from hypervisor_shim.errors import unsupported
from hypervisor_shim.xml.domain_def import DomainDef

Family = TypeVar("Family")


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

    networks: Networks | None = None
    storage: Storage | None = None
    node: Node | None = None
    node_devices: NodeDevices | None = None
    nwfilters: NwFilters | None = None
    secrets: Secrets | None = None
    interfaces: Interfaces | None = None
    control: Control | None = None
    statistics: Statistics | None = None
    guest: Guest | None = None
    devices: Devices | None = None
    block: Block | None = None
    snapshots: Snapshots | None = None
    migration: Migration | None = None

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

    def tenant(self, definition: DomainDef) -> str | None:
        """Whose a domain of that definition is; its `DomainInfo` says the same. For a running domain the
        persistent definition counts, if it has one."""
        return None

    # ---- acting: coroutines, a task each ---------------------------------------------------------

    @abstractmethod
    async def define(self, caller: Caller, definition: DomainDef) -> DomainInfo:
        """Create or replace the persistent definition. `definition` is parsed, checked and normalised."""

    async def redefine(self, caller: Caller, definition: DomainDef) -> None:
        """Replace a persistent definition by one that differs in a figure, of which libvirtd tells nobody."""
        await self.define(caller, definition)

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

    async def set_autostart_once(self, caller: Caller, uuid: bytes, once: bool) -> None:
        """Start it the next time the machine comes up, and only then."""
        raise unsupported("virDomainSetAutostartOnce")

    async def set_metadata(self, caller: Caller, uuid: bytes, metadata: Metadata, impact: Impact) -> None:
        """Of a running domain's own document, of the one that its next start uses, or of both; CURRENT means
        whatever it is now. To be told of as a MetadataChangeEvent."""
        raise unsupported("virDomainSetMetadata")

    async def open_console(
        self, caller: Caller, uuid: bytes, device: str | None, flags: ConsoleFlags
    ) -> ByteStream:
        """`device` is an alias such as `serial0`; None means the first one."""
        raise unsupported("virDomainOpenConsole")

    # ---- events ----------------------------------------------------------------------------------

    @abstractmethod
    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Report every event, of all families, to `sink` until the returned function is called."""


def served(family: Family | None, function: str) -> Family:
    """The part of a driver that serves `function`, or code 3 where it has none."""
    if family is None:
        raise unsupported(function)
    return family
