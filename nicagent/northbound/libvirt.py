"""The libvirt face: the shim's driver interface on top of the controller.

Reading calls answer from two dictionaries that follow the controller's change stream; acting calls become
intents. Nothing here knows hardware.
"""

from __future__ import annotations

import functools
import logging
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from hypervisor_shim.driver import (
    AgentLifecycleEvent,
    ByteStream,
    Caller,
    ConsoleFlags,
    CreateFlags,
    DestroyFlags,
    DomainInfo,
    Driver,
    Event,
    EventSink,
    HandoverEvent,
    Impact,
    LifecycleEvent,
    Metadata,
    MetadataChangeEvent,
    MetadataKind,
    NodeInfo,
    RebootEvent,
    ShutdownFlags,
    UndefineFlags,
)
from hypervisor_shim.errors import Code, error, no_domain, uuid_text
from hypervisor_shim.xml import domain as domain_xml
from hypervisor_shim.xml.domain_def import DomainDef
from nicagent.config import Config
from nicagent.console.contract import Phase, Viewing
from nicagent.console.serial import ConsoleSession, SerialConsole
from nicagent.controller import Controller
from nicagent.counters import Counters
from nicagent.errors import Kind, NicagentError
from nicagent.filters import Filters
from nicagent.hostlink.contract import GuestLink
from nicagent.inventories import Inventories
from nicagent.keyring import Keyring
from nicagent.model import Cause, Change, Domain, DomainEvent, DomainStatus
from nicagent.netdevs import Netdevs
from nicagent.northbound import machine_xml
from nicagent.northbound.libvirt_block import MetalBlock
from nicagent.northbound.libvirt_control import Front, MetalControl, viewed
from nicagent.northbound.libvirt_devices import MetalDevices
from nicagent.northbound.libvirt_domain import (
    EVENTS,
    MacHolders,
    bridges_of,
    live_part,
    missed,
    tenant_of,
    to_domain,
    to_info,
    with_nic_macs,
)
from nicagent.northbound.libvirt_ground import Documents, Ground
from nicagent.northbound.libvirt_guest import MetalGuest
from nicagent.northbound.libvirt_interface import MetalInterfaces
from nicagent.northbound.libvirt_migration import MetalMigration
from nicagent.northbound.libvirt_network import MetalNetworks
from nicagent.northbound.libvirt_node import MetalNode
from nicagent.northbound.libvirt_nodedev import MetalNodeDevices
from nicagent.northbound.libvirt_nwfilter import MetalNwFilters
from nicagent.northbound.libvirt_secret import MetalSecrets
from nicagent.northbound.libvirt_snapshot import MetalSnapshots
from nicagent.northbound.libvirt_statistics import MetalStatistics
from nicagent.northbound.libvirt_storage import MetalStorage
from nicagent.northbound.libvirt_words import cause_of, translated
from nicagent.pools import Pools
from nicagent.segments import Segments
from nicagent.volumes import Volumes

log = logging.getLogger("nicagent.libvirt")


@dataclass(frozen=True)
class Hosts:
    """What is wired to each host beside power, disks and ports."""

    consoles: Mapping[str, SerialConsole]
    guests: Mapping[str, GuestLink]
    counters: Counters
    front: Front


class MetalDriver(Driver):
    """What libvirt clients see of this agent."""

    def __init__(
        self,
        config: Config,
        controller: Controller,
        segments: Segments,
        filters: Filters,
        pools: Pools,
        volumes: Volumes,
        hosts: Hosts,
        host_uuid: str,
        inventories: Inventories,
        keyring: Keyring,
    ) -> None:
        self._config = config
        self._controller = controller
        self._filters = filters
        self._consoles = hosts.consoles
        self._pools = pools.paths
        self._bridges = bridges_of(config.segments)
        self._infos: dict[bytes, DomainInfo] = {}
        self._by_name: dict[str, bytes] = {}
        self._by_id: dict[int, bytes] = {}
        self._macs = MacHolders()
        self._sinks: list[EventSink] = []
        self._sessions: dict[bytes, list[ConsoleSession]] = {}
        self._inventories = inventories
        self._host_uuid = host_uuid
        self._see_machines()
        for status in controller.domains():
            self._remember(status)
        self._unwatch = controller.watch(self._on_change)
        self._documents = Documents()
        ground = self._ground = Ground(
            *(config, controller, self._domain, self._infos.__getitem__, self._publish, self._documents)
        )
        self.devices = MetalDevices(ground)
        self.block = self._block = MetalBlock(ground)
        self._networks = self.networks = MetalNetworks(segments, controller, self._publish)
        self.storage = self._storage = MetalStorage(pools, volumes, self._publish)
        self.node = MetalNode(lambda: self._machines, self._free_hosts)
        self.node_devices = self._shown = MetalNodeDevices(lambda: self._machines, host_uuid, self._publish)
        self.secrets = MetalSecrets(keyring, self._publish)
        self._unwatch_inventories = inventories.watch(self._on_inventory)
        self.snapshots = self._snapshots = MetalSnapshots(ground, self._block)
        self.nwfilters = MetalNwFilters(controller, filters)
        self.interfaces = MetalInterfaces(Netdevs())
        self.statistics = MetalStatistics(ground, hosts.counters)
        self._guest = self.guest = MetalGuest(ground, segments, hosts.guests)
        self.migration = MetalMigration(ground, hosts.counters)
        self.control = MetalControl(ground, hosts.front, self._rename)
        if hosts.front.displays is not None:
            hosts.front.displays.watch(self._viewer_came_or_went)
        for host, link in hosts.guests.items():
            link.watch(functools.partial(self._guest_came_or_went, host))

    def close(self) -> None:
        """Stop following the controller and the inventories."""
        self._unwatch()
        self._block.close()
        self._networks.close()
        self._storage.close()
        self._unwatch_inventories()

    # ---- the machines

    def _see_machines(self) -> None:
        self._machines = machine_xml.machines(self._config, self._inventories)
        self._capabilities = machine_xml.capabilities(self._machines, self._host_uuid)
        self._node = machine_xml.node_info(self._machines)

    def _on_inventory(self, host: str) -> None:
        self._see_machines()
        self._shown.refresh()

    def _free_hosts(self) -> frozenset[str]:
        return frozenset(each.name for each in self._controller.hosts() if each.domain is None)

    # ---- following the change stream

    def _on_change(self, change: Change) -> None:
        status = change.domain
        if status is None:
            return
        left = change.event in (DomainEvent.UNDEFINED, DomainEvent.RENAMED_FROM) and status.id is None
        # A stopped transient domain is gone from the controller once it is told so.
        if left or not self._exists(status):
            info = self._forget(status)
        else:
            was = self._infos.get(uuid.UUID(status.domain.uuid).bytes)
            info = self._remember(status)
            if was is not None and was.tenant != info.tenant:
                self._publish(HandoverEvent(info, was))
        if info.id < 0:
            for session in self._sessions.pop(info.uuid, []):
                session.end()  # a domain's console ends with its run; the host's line goes on
        if change.event is None:
            return
        for sink in list(self._sinks):
            if change.event is DomainEvent.REBOOT:
                sink.event(RebootEvent(info))
            else:
                kind, detail = EVENTS[change.event]
                sink.event(LifecycleEvent(info, kind, detail))

    def _guest_came_or_went(self, host: str, connected: bool) -> None:
        info = self._running_on(host)
        if info is not None:
            self._publish(AgentLifecycleEvent(info, 1 if connected else 2, 2))

    def _viewer_came_or_went(self, host: str, phase: Phase, who: Viewing) -> None:
        info = self._running_on(host)
        if info is not None:
            self._publish(viewed(info, phase, who))

    def _running_on(self, host: str) -> DomainInfo | None:
        domain = self._controller.host(host).domain
        info = None if domain is None else self._infos.get(uuid.UUID(domain).bytes)
        return info if info is not None and info.id >= 0 else None

    def _exists(self, status: DomainStatus) -> bool:
        try:
            self._controller.definition(status.domain.uuid)
        except NicagentError:
            return False
        return True

    def _remember(self, status: DomainStatus) -> DomainInfo:
        tenant = self._controller.definition(status.domain.uuid).tenant
        info = to_info(status, updated=self._updated(status), tenant=tenant)
        self._forget_id(info.uuid)
        self._infos[info.uuid] = info
        self._by_name[info.name] = info.uuid
        if info.id >= 0:
            self._by_id[info.id] = info.uuid
        self._macs.put(info.uuid, frozenset(port.mac for port in status.domain.ports if port.mac))
        return info

    def _updated(self, status: DomainStatus) -> bool:
        if status.id is None or not status.domain.persistent:
            return False
        return self._controller.definition(status.domain.uuid).xml != status.domain.xml

    def _forget(self, status: DomainStatus) -> DomainInfo:
        info = to_info(status, tenant=status.domain.tenant)
        self._forget_id(info.uuid)
        self._infos.pop(info.uuid, None)
        self._by_name.pop(info.name, None)
        self._macs.put(info.uuid, frozenset())
        return info

    def _forget_id(self, uuid: bytes) -> None:
        known = self._infos.get(uuid)
        if known is not None:
            self._by_id.pop(known.id, None)

    # ---- reading

    def hostname(self) -> str:
        return socket.gethostname()

    def uri(self) -> str:
        return "nic:///system"

    def capabilities(self) -> str:
        return self._capabilities

    def node_info(self) -> NodeInfo:
        return self._node

    def domain_capabilities(
        self, emulator: str | None, arch: str | None, machine: str | None, virt_type: str | None
    ) -> str:
        arches = [each.host.arch for each in self._machines]
        if arch is not None and arch not in arches:
            raise error(Code.INVALID_ARG, f"no host here has the architecture {arch}")
        return machine_xml.domain_capabilities(self._machines, arch or arches[0])

    def domains(self) -> Iterable[DomainInfo]:
        return self._infos.values()

    def domain(self, uuid: bytes) -> DomainInfo | None:
        return self._infos.get(uuid)

    def domain_by_name(self, name: str) -> DomainInfo | None:
        found = self._by_name.get(name)
        return None if found is None else self._infos[found]

    def domain_by_id(self, id: int) -> DomainInfo | None:
        found = self._by_id.get(id)
        return None if found is None else self._infos[found]

    def domain_xml(self, uuid: bytes, *, inactive: bool, secure: bool) -> str:
        status, persistent = self._ground.status(uuid), self._definition(uuid)
        if status.id is None or self._infos[uuid].id < 0 or (inactive and status.domain.persistent):
            return domain_xml.format_domain(self._documents.parsed(persistent.xml), secure=secure)
        live = (
            None
            if inactive
            else live_part(status, self._ground.port_names(status), self._block.mirrors(uuid))
        )
        return domain_xml.format_domain(self._documents.parsed(status.domain.xml), live, secure=secure)

    def metadata(self, uuid: bytes, kind: MetadataKind, uri: str | None, impact: Impact) -> str:
        status, persistent = self._ground.status(uuid), self._definition(uuid)
        known = status.domain if self._infos[uuid].meant(impact) & Impact.LIVE else persistent
        return domain_xml.get_metadata(self._documents.parsed(known.xml), kind, uri)

    def tenant(self, definition: DomainDef) -> str | None:
        return tenant_of(definition)

    def messages(self, uuid: bytes) -> list[str]:
        status = self._ground.status(uuid)
        return [*self._run_messages(status), *missed(self._documents.parsed(status.domain.xml))]

    def _run_messages(self, status: DomainStatus) -> list[str]:
        if status.host is not None:
            told = [f"on host {status.host}: {status.state.value}: {status.reason}"]
            if status.domain.display is not None and status.display is None:
                told.append(
                    f"its graphics are not shown: the screen of host {status.host} is wired to no stream"
                )
            return told
        told = [f"last run: {status.reason}"] if status.reason else []
        if (misfit := self._controller.misfit(status.domain.uuid)) is not None:
            told.append(f"no host here could run it: {misfit}")
        return told

    def _definition(self, uuid: bytes) -> Domain:
        try:
            return self._controller.definition(uuid_text(uuid))
        except NicagentError:
            raise no_domain(uuid) from None

    # ---- acting

    def _domain(self, definition: DomainDef) -> Domain:
        """A NIC has the MAC that it has: an address that the client left open becomes the NIC's own."""
        whole = with_nic_macs(
            definition, self._config.hosts, lambda mac: self._macs.others(mac, definition.uuid)
        )
        return to_domain(whole, self._pools, self._bridges)

    def _with_filters(self, domain: Domain) -> Domain:
        """The domain, whose ports name filters that there are."""
        for number, port in enumerate(domain.ports):
            if port.filter is not None:
                self._filters.require(port.filter, f"interface {number}")
        return domain

    async def define(self, caller: Caller, definition: DomainDef) -> DomainInfo:
        with translated():
            domain = self._with_filters(self._domain(definition))
            await self._controller.define(domain, cause_of(caller, "define"))
        return self._infos[definition.uuid]

    async def redefine(self, caller: Caller, definition: DomainDef) -> None:
        known = uuid_text(definition.uuid)
        with translated():
            async with self._controller.devices.changing(known):
                await self._controller.devices.describe(
                    known, None, self._domain(definition), cause_of(caller, "redefine")
                )

    async def undefine(self, caller: Caller, uuid: bytes, flags: UndefineFlags) -> None:
        self._definition(uuid)
        await self._snapshots.forget(uuid, flags)
        await self._act(uuid, self._controller.undefine, cause_of(caller, "undefine"))

    async def create(self, caller: Caller, uuid: bytes, flags: CreateFlags) -> DomainInfo:
        _only_plain(flags)
        self._definition(uuid)
        with translated():
            await self._controller.start(uuid_text(uuid), cause_of(caller, "start"))
        return self._infos[uuid]

    async def create_xml(self, caller: Caller, definition: DomainDef, flags: CreateFlags) -> DomainInfo:
        _only_plain(flags)
        with translated():
            domain = self._with_filters(self._domain(definition))
            await self._controller.create(domain, cause_of(caller, "create"))
        return self._infos[definition.uuid]

    async def destroy(self, caller: Caller, uuid: bytes, flags: DestroyFlags) -> None:
        await self._act(uuid, self._controller.destroy, cause_of(caller, "destroy"))

    async def shutdown(self, caller: Caller, uuid: bytes, flags: ShutdownFlags) -> None:
        if flags & ShutdownFlags.GUEST_AGENT:
            await self._guest.power_down(caller, uuid, "powerdown")
            return
        _only_acpi(flags, "shutdown")
        await self._act(uuid, self._controller.shutdown, cause_of(caller, "shutdown"))

    async def reboot(self, caller: Caller, uuid: bytes, flags: ShutdownFlags) -> None:
        """Graceful, as libvirt means it: the OS goes down by the power button, then the host comes up."""
        if flags & ShutdownFlags.GUEST_AGENT:
            await self._guest.power_down(caller, uuid, "reboot")
            return
        _only_acpi(flags, "reboot")
        await self._act(uuid, self._controller.reboot, cause_of(caller, "reboot"))

    async def reset(self, caller: Caller, uuid: bytes) -> None:
        await self._act(uuid, self._controller.reset, cause_of(caller, "reset"))

    async def inject_nmi(self, caller: Caller, uuid: bytes) -> None:
        """By the BMC's diagnostic interrupt, where there is a BMC."""
        self._definition(uuid)
        with translated():
            try:
                await self._controller.interrupt(uuid_text(uuid), cause_of(caller, "inject-nmi"))
            except NicagentError as e:
                if e.kind is not Kind.UNSUPPORTED:
                    raise
                raise error(Code.OPERATION_UNSUPPORTED, str(e)) from None

    async def _rename(self, domain: Domain, caller: Caller) -> None:
        await self._controller.rename(domain, cause_of(caller, "rename"))

    async def set_autostart(self, caller: Caller, uuid: bytes, autostart: bool) -> None:
        self._definition(uuid)
        with translated():
            await self._controller.set_autostart(uuid_text(uuid), autostart, cause_of(caller, "autostart"))
        self._remember(self._ground.status(uuid))

    async def set_autostart_once(self, caller: Caller, uuid: bytes, once: bool) -> None:
        self._definition(uuid)
        with translated():
            await self._controller.set_autostart_once(uuid_text(uuid), once, cause_of(caller, "autostart"))
        self._remember(self._ground.status(uuid))

    async def set_metadata(self, caller: Caller, uuid: bytes, metadata: Metadata, impact: Impact) -> None:
        def changed(known: Domain) -> Domain:
            document = domain_xml.set_metadata(self._documents.parsed(known.xml), metadata)
            return to_domain(document, self._pools, self._bridges)

        async with self._controller.devices.changing(uuid_text(uuid)):
            status, persistent = self._ground.status(uuid), self._definition(uuid)
            impact = self._infos[uuid].meant(impact)
            with translated():
                await self._controller.devices.describe(
                    uuid_text(uuid),
                    changed(status.domain) if impact & Impact.LIVE else None,
                    changed(persistent) if impact & Impact.CONFIG else None,
                    cause_of(caller, "metadata"),
                )
        if (info := self._infos.get(uuid)) is not None:  # it may have ended meanwhile
            self._publish(MetadataChangeEvent(info, metadata.kind, metadata.uri))

    async def open_console(
        self, caller: Caller, uuid: bytes, device: str | None, flags: ConsoleFlags
    ) -> ByteStream:
        status = self._ground.status(uuid)
        if self._infos[uuid].id < 0 or status.host is None:
            raise error(Code.OPERATION_INVALID, "domain is not running")
        console = self._consoles.get(status.host)
        if console is None:
            raise error(Code.OPERATION_UNSUPPORTED, f"host {status.host} has no console wired")
        log.info("console of %s opened by %s", status.domain.name, caller.peer)
        session = console.attach(force=bool(flags & ConsoleFlags.FORCE))
        sessions = self._sessions.setdefault(uuid, [])
        sessions[:] = [each for each in sessions if not each.ended] + [session]
        return session

    async def _act(self, uuid: bytes, act: Callable[[str, Cause], Awaitable[None]], cause: Cause) -> None:
        self._definition(uuid)  # an unknown UUID has a code of its own
        with translated():
            await act(uuid_text(uuid), cause)

    # ---- events

    def _publish(self, event: Event) -> None:
        for sink in list(self._sinks):
            sink.event(event)

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        self._sinks.append(sink)
        return lambda: self._sinks.remove(sink)


def _only_plain(flags: CreateFlags) -> None:
    """What metal cannot do is refused, not silently left out."""
    if flags & CreateFlags.PAUSED:
        raise error(Code.ARGUMENT_UNSUPPORTED, "a physical server cannot start paused")
    if flags & CreateFlags.AUTODESTROY:
        raise error(Code.ARGUMENT_UNSUPPORTED, "a physical server does not stop with its client's connection")


def _only_acpi(flags: ShutdownFlags, what: str) -> None:
    """Metal has the ACPI power button; asking for another way only is refused, not silently replaced."""
    if flags and not flags & ShutdownFlags.ACPI_POWER_BTN:
        raise error(Code.ARGUMENT_UNSUPPORTED, f"{what} of a physical server works by its power button only")
