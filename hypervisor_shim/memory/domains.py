"""A driver of domains that exist in memory only, in the likeness of libvirt's `test:///default`.

For trying the library, for tests of clients, and as the simplest complete example of a `Driver`. A console
echoes what is written to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from hypervisor_shim.driver import (
    ByteStream,
    Caller,
    ConsoleFlags,
    CreateFlags,
    DefinedDetail,
    DestroyFlags,
    DomainInfo,
    Driver,
    Event,
    EventSink,
    HandoverEvent,
    Identity,
    Impact,
    Lifecycle,
    LifecycleEvent,
    Metadata,
    MetadataChangeEvent,
    MetadataKind,
    NodeInfo,
    RebootEvent,
    RunningReason,
    ShutdownDetail,
    ShutdownFlags,
    ShutoffReason,
    StartedDetail,
    State,
    StoppedDetail,
    UndefinedDetail,
    UndefineFlags,
)
from hypervisor_shim.errors import (
    Code,
    Origin,
    already_running,
    error,
    no_domain,
    not_running,
    uuid_text,
)
from hypervisor_shim.memory.block import MemoryBlock
from hypervisor_shim.memory.control import MemoryControl
from hypervisor_shim.memory.devices import MemoryDevices
from hypervisor_shim.memory.guest import MemoryGuest
from hypervisor_shim.memory.interface import MemoryInterfaces
from hypervisor_shim.memory.network import MemoryNetworks
from hypervisor_shim.memory.node import MemoryNode
from hypervisor_shim.memory.nodedev import MemoryNodeDevices
from hypervisor_shim.memory.nwfilter import MemoryNwFilters
from hypervisor_shim.memory.secret import MemorySecrets
from hypervisor_shim.memory.snapshot import MemorySnapshots
from hypervisor_shim.memory.statistics import MemoryStatistics
from hypervisor_shim.memory.storage import MemoryStorage
from hypervisor_shim.xml.domain import format_domain, get_metadata, parse_domain, set_metadata
from hypervisor_shim.xml.domain_def import DomainDef
from hypervisor_shim.xml.domain_live import Live
from hypervisor_shim.xml.metadata import word

DEFAULT_DOMAIN = """\
<domain type='test'>
  <name>test</name>
  <uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
  <memory unit='KiB'>8388608</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type>hvm</type>
  </os>
</domain>
"""

#: A definition's metadata element of this namespace may say whose the domain is: <x:tenant>blue</x:tenant>.
WISHES = "urn:hypervisor-shim:domain:1"

_TICKS = 100  # a second
_CONSOLE_BACKLOG = 64 * 1024  # bytes of an echo that nobody reads


@dataclass(slots=True)
class _Domain:
    info: DomainInfo
    config: DomainDef | None  # what the next start uses; None for a transient domain
    live: DomainDef | None = None  # what the running domain was started from
    started: float = 0.0
    ticks: int = 0
    console: EchoConsole | None = None


class EchoConsole:
    """Gives back what it is given."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._changed = asyncio.Condition()
        self._closed = False

    async def read(self, limit: int) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: self._kept or self._closed)
            data = bytes(self._kept[:limit])
            del self._kept[:limit]
            self._changed.notify_all()
            return data

    async def write(self, data: bytes) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._kept) < _CONSOLE_BACKLOG or self._closed)
            self._kept += data
            self._changed.notify_all()

    async def finish(self) -> None:
        """What was written is kept: there is nothing to wait for."""

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()


class MemoryDriver(Driver):
    """Starts with the domains of `documents`, running if `running`."""

    def __init__(
        self,
        documents: Iterable[str] = (DEFAULT_DOMAIN,),
        *,
        running: bool = True,
        identity: Identity | None = None,
        uri: str = "nic:///system",
        hostname: str = "localhost",
        capabilities: str | None = None,
        node: NodeInfo | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity or Identity()
        self._uri = uri
        self._hostname = hostname
        self._capabilities = capabilities or _capabilities(self.identity.arch)
        self._node = node or NodeInfo(
            model=self.identity.arch,
            memory_kib=3 << 20,
            cpus=16,
            mhz=1400,
            nodes=2,
            sockets=2,
            cores=2,
            threads=2,
        )
        self._clock = clock
        self.statistics = MemoryStatistics(self)
        self.control = MemoryControl(self)
        self.guest = MemoryGuest(self)
        self._domains: dict[bytes, _Domain] = {}
        self._sinks: list[EventSink] = []
        self._next_id = 1
        self.devices = MemoryDevices(self._find, self._publish)
        self.block = MemoryBlock(self._find)
        self.snapshots = self._snapshots = MemorySnapshots(self._find, self._run, self._stop_at_snapshot)
        self.storage = MemoryStorage(self._publish)
        self.node = MemoryNode()
        self.node_devices = MemoryNodeDevices(self._publish)
        self.secrets = MemorySecrets(self._publish)
        self.networks = MemoryNetworks(self._publish)
        self.interfaces = MemoryInterfaces()
        self.nwfilters = MemoryNwFilters()
        for document in documents:
            definition = parse_domain(document, arch=self.identity.arch)
            domain = _Domain(_described(definition), definition)
            self._domains[definition.uuid] = domain
            if running:
                self._run(domain, definition)

    # ---- reading ---------------------------------------------------------------------------------

    def hostname(self) -> str:
        return self._hostname

    def uri(self) -> str:
        return self._uri

    def capabilities(self) -> str:
        return self._capabilities

    def node_info(self) -> NodeInfo:
        return self._node

    def domains(self) -> list[DomainInfo]:
        return [self._now(domain) for domain in self._domains.values()]

    def domain(self, uuid: bytes) -> DomainInfo | None:
        domain = self._domains.get(uuid)
        return None if domain is None else self._now(domain)

    def domain_by_name(self, name: str) -> DomainInfo | None:
        return next((self._now(d) for d in self._domains.values() if d.info.name == name), None)

    def domain_by_id(self, id: int) -> DomainInfo | None:
        return next((self._now(d) for d in self._domains.values() if d.info.id == id), None)

    def domain_xml(self, uuid: bytes, *, inactive: bool, secure: bool) -> str:
        domain = self._find(uuid)
        if domain.live is not None and not inactive:
            live = Live(domain.info.id, aliases=False)
            return format_domain(domain.live, live, secure=secure)
        definition = domain.config or domain.live
        assert definition is not None
        return format_domain(definition, secure=secure)

    def metadata(self, uuid: bytes, kind: MetadataKind, uri: str | None, impact: Impact) -> str:
        domain = self._find(uuid)
        live = domain.live is not None and impact is not Impact.CONFIG
        definition = domain.live if live else domain.config
        assert definition is not None
        return get_metadata(definition, kind, uri)

    def tenant(self, definition: DomainDef) -> str | None:
        return word(definition, WISHES, "tenant")

    def _now(self, domain: _Domain) -> DomainInfo:
        """With the tenant that its definition names now, and the time it has run, which moves on by ticks, as
        a scheduler's accounting does."""
        info = domain.info
        definition = domain.config or domain.live
        if definition is not None and (tenant := self.tenant(definition)) != info.tenant:
            info = domain.info = replace(info, tenant=tenant)
        if info.id < 0:
            return info
        ticks = int((self._clock() - domain.started) * _TICKS)
        if ticks != domain.ticks:
            domain.ticks = ticks
            info = domain.info = replace(info, cpu_time_ns=ticks * (1_000_000_000 // _TICKS))
        return info

    # ---- acting ----------------------------------------------------------------------------------

    async def define(self, caller: Caller, definition: DomainDef) -> DomainInfo:
        domain = self._domains.get(definition.uuid)
        holder = self.domain_by_name(definition.name)
        if holder is not None and holder.uuid != definition.uuid:
            raise error(
                Code.OPERATION_FAILED,
                f"domain '{definition.name}' already exists with uuid {uuid_text(holder.uuid)}",
                origin=Origin.DOMAIN,
            )
        if domain is None:
            domain = self._domains[definition.uuid] = _Domain(_described(definition), definition)
            detail = DefinedDetail.ADDED
        else:
            if domain.info.name != definition.name:
                raise error(
                    Code.OPERATION_FAILED,
                    f"domain '{domain.info.name}' is already defined with uuid {uuid_text(definition.uuid)}",
                    origin=Origin.DOMAIN,
                )
            self._take(domain, definition)
            detail = DefinedDetail.UPDATED
        self._tell(domain, Lifecycle.DEFINED, detail)
        return domain.info

    async def redefine(self, caller: Caller, definition: DomainDef) -> None:
        self._take(self._find(definition.uuid), definition)

    def _take(self, domain: _Domain, definition: DomainDef) -> None:
        domain.config = definition
        if domain.live is None:
            was = domain.info  # its tenant stays until that is told
            domain.info = replace(_described(definition), autostart=was.autostart, tenant=was.tenant)
        else:
            domain.info = replace(domain.info, persistent=True, updated=True)

    async def undefine(self, caller: Caller, uuid: bytes, flags: UndefineFlags) -> None:
        domain = self._find(uuid)
        if domain.config is None:
            raise error(Code.OPERATION_INVALID, "cannot undefine transient domain")
        count = len(self._snapshots.snapshots(uuid))
        if count and domain.live is None and not flags & UndefineFlags.SNAPSHOTS_METADATA:
            raise error(Code.OPERATION_INVALID, f"cannot delete inactive domain with {count} snapshots")
        domain.config = None
        domain.info = replace(domain.info, persistent=False, autostart=False)
        self._tell(domain, Lifecycle.UNDEFINED, 0)
        if domain.live is None:
            del self._domains[uuid]
            self._snapshots.forget(uuid)

    async def create(self, caller: Caller, uuid: bytes, flags: CreateFlags) -> DomainInfo:
        domain = self._find(uuid)
        if domain.live is not None or domain.config is None:
            raise already_running()
        self._run(domain, domain.config)
        self._tell(domain, Lifecycle.STARTED, StartedDetail.BOOTED)
        return domain.info

    async def create_xml(self, caller: Caller, definition: DomainDef, flags: CreateFlags) -> DomainInfo:
        domain = self._domains.get(definition.uuid)
        if domain is not None and domain.live is not None:
            raise error(Code.OPERATION_INVALID, f"domain is already active as '{domain.info.name}'")
        if domain is None:
            domain = self._domains[definition.uuid] = _Domain(
                replace(_described(definition), persistent=False), None
            )
        self._run(domain, definition)
        self._tell(domain, Lifecycle.STARTED, StartedDetail.BOOTED)
        return domain.info

    async def destroy(self, caller: Caller, uuid: bytes, flags: DestroyFlags) -> None:
        domain = self._running(uuid)
        await self._stop(domain, ShutoffReason.DESTROYED, StoppedDetail.DESTROYED)

    async def shutdown(self, caller: Caller, uuid: bytes, flags: ShutdownFlags) -> None:
        domain = self._running(uuid)
        await self._stop(domain, ShutoffReason.SHUTDOWN, StoppedDetail.SHUTDOWN)

    async def reboot(self, caller: Caller, uuid: bytes, flags: ShutdownFlags) -> None:
        domain = self._running(uuid)
        self._publish(RebootEvent(domain.info))

    async def reset(self, caller: Caller, uuid: bytes) -> None:
        domain = self._running(uuid)
        self._publish(RebootEvent(domain.info))

    async def inject_nmi(self, caller: Caller, uuid: bytes) -> None:
        self._running(uuid)

    async def set_autostart(self, caller: Caller, uuid: bytes, autostart: bool) -> None:
        domain = self._find(uuid)
        if domain.config is None:
            raise error(Code.OPERATION_INVALID, "cannot set autostart for transient domain")
        domain.info = replace(domain.info, autostart=autostart)

    async def set_metadata(self, caller: Caller, uuid: bytes, metadata: Metadata, impact: Impact) -> None:
        domain = self._find(uuid)
        impact = self._now(domain).meant(impact)
        if domain.live is not None and impact & Impact.LIVE:
            domain.live = set_metadata(domain.live, metadata)
        if domain.config is not None and impact & Impact.CONFIG:
            domain.config = set_metadata(domain.config, metadata)
        self._hand_over(domain)
        self._publish(MetadataChangeEvent(self._now(domain), metadata.kind, metadata.uri))

    async def open_console(
        self, caller: Caller, uuid: bytes, device: str | None, flags: ConsoleFlags
    ) -> ByteStream:
        domain = self._running(uuid)
        assert domain.live is not None
        known = [*domain.live.serials, *domain.live.consoles]
        if not known or (device is not None and device not in {char.alias for char in known}):
            raise error(Code.INTERNAL_ERROR, f"cannot find console device '{device or 'default'}'")
        if domain.console is not None and not domain.console._closed:
            if not flags & ConsoleFlags.FORCE:
                raise error(Code.OPERATION_FAILED, "Active console session exists for this domain")
            await domain.console.close()
        domain.console = EchoConsole()
        return domain.console

    # ---- for the other families --------------------------------------------------------------------

    def described(self, uuid: bytes, *, inactive: bool = False) -> DomainDef:
        """What the domain runs under; what its next start will use if it does not run, or with `inactive`."""
        domain = self._find(uuid)
        found = (domain.config or domain.live) if inactive else (domain.live or domain.config)
        assert found is not None
        return found

    def change_live(self, uuid: bytes, change: Callable[[DomainDef], DomainDef]) -> None:
        """The running domain is another from now on; its definition stays."""
        domain = self._running(uuid)
        assert domain.live is not None
        live = domain.live = change(domain.live)
        domain.info = replace(domain.info, vcpus=live.vcpus, mem_kib=live.mem_kib)

    def change_state(self, uuid: bytes, state: State, reason: int, event: Lifecycle, detail: int = 0) -> None:
        """Of a domain that runs, and goes on to have its id."""
        domain = self._running(uuid)
        domain.info = replace(domain.info, state=state, reason=reason)
        self._tell(domain, event, detail)

    def rename(self, uuid: bytes, definition: DomainDef) -> None:
        """The same domain, which does not run, under the name that `definition` has."""
        domain = self._find(uuid)
        self._tell(domain, Lifecycle.UNDEFINED, UndefinedDetail.RENAMED)
        domain.config = definition
        domain.info = replace(domain.info, name=definition.name)
        self._tell(domain, Lifecycle.DEFINED, DefinedDetail.RENAMED)

    # ---- events ------------------------------------------------------------------------------------

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        self._sinks.append(sink)
        return lambda: self._sinks.remove(sink)

    def _publish(self, event: Event) -> None:
        for sink in list(self._sinks):
            sink.event(event)

    def _tell(self, domain: _Domain, event: Lifecycle, detail: int) -> None:
        self._hand_over(domain)
        self._publish(LifecycleEvent(self._now(domain), event, detail))

    def _hand_over(self, domain: _Domain) -> None:
        was = domain.info
        if self._now(domain).tenant != was.tenant:
            self._publish(HandoverEvent(domain.info, was))

    # ---- within ------------------------------------------------------------------------------------

    def _find(self, uuid: bytes) -> _Domain:
        domain = self._domains.get(uuid)
        if domain is None:
            raise no_domain(uuid)
        return domain

    def _running(self, uuid: bytes) -> _Domain:
        domain = self._find(uuid)
        if domain.live is None:
            raise not_running()
        return domain

    def _run(self, domain: _Domain, definition: DomainDef) -> None:
        domain.live = definition
        domain.started = self._clock()
        domain.ticks = 0
        domain.info = replace(
            domain.info, id=self._next_id, state=State.RUNNING, reason=RunningReason.BOOTED, updated=False
        )
        self._next_id += 1

    async def _stop_at_snapshot(self, domain: _Domain) -> None:
        await self._stop(domain, ShutoffReason.FROM_SNAPSHOT, StoppedDetail.FROM_SNAPSHOT)

    async def _stop(self, domain: _Domain, reason: ShutoffReason, detail: StoppedDetail) -> None:
        if domain.console is not None:
            await domain.console.close()
            domain.console = None
        domain.live = None
        off = replace(domain.info, id=-1, state=State.SHUTOFF, reason=reason, cpu_time_ns=0, updated=False)
        domain.info = off
        if detail is StoppedDetail.SHUTDOWN:
            self._tell(domain, Lifecycle.SHUTDOWN, ShutdownDetail.FINISHED)
        self._tell(domain, Lifecycle.STOPPED, detail)
        if domain.config is None:
            self._domains.pop(off.uuid, None)
            self._snapshots.forget(off.uuid)
        else:
            # what was defined meanwhile is what the domain is from now on
            domain.info = replace(_described(domain.config), reason=reason, autostart=off.autostart)


def _described(definition: DomainDef) -> DomainInfo:
    return DomainInfo(
        uuid=definition.uuid,
        name=definition.name,
        max_mem_kib=definition.max_mem_kib,
        mem_kib=definition.mem_kib,
        vcpus=definition.vcpus,
        max_vcpus=definition.max_vcpus,
        os_type=definition.os_type,
        tenant=word(definition, WISHES, "tenant"),
    )


def _capabilities(arch: str) -> str:
    return f"""\
<capabilities>

  <host>
    <cpu>
      <arch>{arch}</arch>
    </cpu>
  </host>

  <guest>
    <os_type>hvm</os_type>
    <arch name='{arch}'>
      <wordsize>{64 if "64" in arch else 32}</wordsize>
      <domain type='test'/>
    </arch>
  </guest>

</capabilities>
"""
