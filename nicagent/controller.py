"""Intents in; the only writer of state.

Faces call the methods of `Controller`; reading ones answer from memory, acting ones return once the intent is
durable and, where the docstring says so, carried out. Everything that changes is published as one stream of
`Change`s. The walking itself is one `Walker` a host; what comes and goes under a domain is in `devices`, what
a technician asks of a host in `technician`, and work that takes its time in `jobs`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from nicagent.actions import Parts
from nicagent.blockjobs import BlockJobs
from nicagent.changes import Changes, Watcher
from nicagent.devices import Devices
from nicagent.domains import Domains, definition_after
from nicagent.errors import Kind, NicagentError
from nicagent.lifecycle import Event
from nicagent.model import (
    Cause,
    Domain,
    DomainEvent,
    DomainStatus,
    ExportStatus,
    HostState,
    HostStatus,
    PortBinding,
    PortStatus,
    Power,
    PowerAction,
)
from nicagent.placement import DeriveExports, Placement
from nicagent.segments import Segments
from nicagent.snapshots import Snapshots
from nicagent.storage.contract import DiskFiles, HostStorage
from nicagent.store import HostRecord, Store
from nicagent.technician import Technician, not_now
from nicagent.walker import AGENT, AT_REST, STOPPED, Walker

log = logging.getLogger("nicagent.controller")

ROOM_SECONDS = 10.0  # between two looks whether a full disk has room again
FIRST_LOOK_SECONDS = 5.0
AUTOSTART_SECONDS = 60.0  # a host whose power cannot be read for so long after the boot is passed over


class Controller:
    """All hosts and domains of one agent."""

    def __init__(
        self,
        store: Store,
        parts: Mapping[str, Parts],
        derive: DeriveExports,
        files: DiskFiles,
        segments: Segments,
    ) -> None:
        self._store = store
        self._parts = parts
        self._placement = Placement(store, derive, segments)
        self._walkers: dict[str, Walker] = {}
        self._domains = Domains(store, self._walkers)
        self._changes = Changes()
        self.files = files
        self.snapshots = Snapshots(store, self._domains.is_there)
        self.jobs = BlockJobs(store, self._storage_of, self._path_of)
        self._placing = asyncio.Lock()  # placement and definition see one another's results
        self.devices = Devices(self._domains, self._placement, self._placing, self.jobs, self._changes)
        self.technician = Technician(self._walker, self.host)

    # ---- life

    async def load(self) -> None:
        """Read the store. Faces may be opened once this returns: they answer from what was acknowledged."""
        await self._domains.load()
        records = await self._store.hosts()
        for name, record in records.items():
            if name not in self._parts and record.state is not HostState.FREE:
                raise NicagentError(
                    Kind.INVALID,
                    f"host {name} is {record.state.value} but no longer in the config",
                    "put it back, stop its domain, then remove it",
                )
        for name, parts in self._parts.items():
            record = records.get(name, HostRecord(name))
            self._walkers[name] = Walker(parts, record, self._store, self._publish)
            if record.run is not None:
                self._domains.occupied(record)
        await self.jobs.load()
        await self.snapshots.load()

    async def run(self) -> None:
        """Walk the hosts until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.jobs.run())
            group.create_task(self.snapshots.run())
            for walker in self._walkers.values():
                group.create_task(walker.run())

    async def autostart(self, boot_id: str) -> None:
        """Start what is marked autostart: once per boot of the board, never on an agent restart."""
        last = await self._store.meta("boot-id")
        marked = [each for each in self._domains.defined() if each.autostart or each.autostart_once]
        if last not in (None, boot_id):
            # The agent has just started too: a run that ended with the power is cleaned up first.
            async with asyncio.TaskGroup() as group:
                for walker in self._walkers.values():
                    group.create_task(walker.at_rest(AUTOSTART_SECONDS))
            for domain in marked:
                if self._domains.walker(domain.uuid) is None:
                    try:
                        await self.start(domain.uuid, Cause(AGENT, "autostart after the board came up"))
                    except NicagentError as e:
                        log.error("autostart of %s: %s", domain.name, e)
        if last != boot_id:
            await self._note_boot(boot_id, [domain.uuid for domain in marked if domain.autostart_once])

    async def _note_boot(self, boot_id: str, once: Iterable[str]) -> None:
        """Remember that this boot's autostart is done, also of those that are started `once`; it waits until
        there is room for that."""
        told = False
        while True:
            try:
                async with self._placing:
                    for uuid in once:
                        if self._domains.is_defined(uuid):
                            await self._domains.keep(replace(self.definition(uuid), autostart_once=False))
                await self._store.put_meta("boot-id", boot_id)
            except NicagentError as e:  # a full disk must not end an agent that watches over running hosts
                if not told:
                    log.error("this boot cannot be noted: %s", e)
                told = True
                await asyncio.sleep(ROOM_SECONDS)
            else:
                return

    # ---- the change stream

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have `watcher` called with every change, in order, in the event loop. Returns how to end that."""
        return self._changes.watch(watcher)

    def _publish(self, record: HostRecord, power: Power, event: DomainEvent | None) -> None:
        domain: DomainStatus | None = None
        if record.run is not None:
            if record.state is HostState.FREE:
                self._domains.released(record)
            else:
                self._domains.occupied(record)
            domain = self._domains.running(record)
            # With the run goes the id: what is told last is the domain as it is then, off.
            if record.state is HostState.FREE:
                domain = replace(domain, id=None, host=None)
                self.snapshots.look_at(domain.domain.uuid)
        self._changes.emit(host=_host_status(record, power), event=event if domain else None, domain=domain)

    # ---- reading, from memory

    def hosts(self) -> list[HostStatus]:
        """Every host, in the order of the config."""
        return [self._host_status(walker) for walker in self._walkers.values()]

    def host(self, name: str) -> HostStatus:
        """One host. Raises NOT_FOUND."""
        return self._host_status(self._walker(name))

    @staticmethod
    def _host_status(walker: Walker) -> HostStatus:
        return replace(_host_status(walker.record, walker.watch.power), trouble=walker.watch.trouble)

    def domains(self) -> list[DomainStatus]:
        """Every domain: the persistent ones and the running transient ones."""
        return self._domains.all()

    def domain(self, uuid: str) -> DomainStatus:
        """One domain, with the definition it runs under if it runs. Raises NOT_FOUND."""
        return self._domains.status(uuid)

    def definition(self, uuid: str) -> Domain:
        """The persistent definition, or the run's where the domain is transient. Raises NOT_FOUND."""
        return self._domains.definition(uuid)

    def users_of_segment(self, name: str) -> list[str]:
        """Who has a port on a segment, in words."""
        return self._domains.users_of_segment(name)

    def ports(self) -> list[tuple[str, PortBinding]]:
        """Every port that there is, and whose it is, in words."""
        return self._domains.ports()

    def _walker(self, name: str) -> Walker:
        walker = self._walkers.get(name)
        if walker is None:
            known = ", ".join(self._walkers)
            raise NicagentError(Kind.NOT_FOUND, f"no host is called {name!r}", f"known hosts: {known}")
        return walker

    # ---- of running domains, from the drivers

    async def statistics(self, uuid: str) -> tuple[tuple[ExportStatus, ...], tuple[PortStatus, ...]]:
        """Counters of a running domain's disks and ports; empty while it does not run. Raises NOT_FOUND."""
        walker = self._domains.walker(uuid)
        if walker is None:
            self.definition(uuid)
            return (), ()
        parts = walker.parts
        ports = await parts.network.status(parts.name) if parts.network is not None else ()
        return await parts.storage.status(), ports

    def _storage_of(self, uuid: str) -> HostStorage | None:
        walker = self._domains.walker(uuid)
        return None if walker is None else walker.parts.storage

    def _path_of(self, uuid: str, target: str) -> str | None:
        run = self._domains.run(uuid)
        disks = () if run is None else run.domain.disks
        return next((disk.path for disk in disks if disk.target == target), None)

    # ---- definitions

    def misfit(self, uuid: str) -> str | None:
        """Why no host could ever run the domain as it is defined; None when one could. Raises NOT_FOUND."""
        return self._placement.never(self.definition(uuid), self._walkers)

    async def define(self, domain: Domain, cause: Cause) -> DomainStatus:
        """Make a definition durable; a running domain gets it at its next start.

        Raises EXISTS (name or UUID taken by another), INVALID (pinned to a host that is not there).
        """
        async with self._placing:
            self._domains.check(domain)
            old = self.definition(domain.uuid) if self._domains.is_defined(domain.uuid) else None
            domain = definition_after(old, domain)
            await self.snapshots.settle(domain.uuid)
            await self._domains.keep(domain)
        log.info("domain %s defined (%s)", domain.name, cause)
        if (misfit := self.misfit(domain.uuid)) is not None:
            log.warning("domain %s: no host could run it: %s", domain.name, misfit)
        status = self.domain(domain.uuid)
        self._changes.emit(event=DomainEvent.UPDATED if old else DomainEvent.DEFINED, domain=status)
        return status

    async def rename(self, domain: Domain, cause: Cause) -> None:
        """Keep this definition in place of that of the same UUID, under its new name.

        Raises NOT_FOUND, WRONG_STATE (it runs, or is transient), EXISTS (the name is another's).
        """
        async with self._placing:
            old = self.definition(domain.uuid)
            if self._domains.walker(domain.uuid) is not None:
                raise NicagentError(Kind.WRONG_STATE, "cannot rename active domain")
            if any(other.name == domain.name for other in self._domains.known()):
                raise NicagentError(Kind.EXISTS, f"domain with name '{domain.name}' already exists")
            before = self.domain(domain.uuid)
            domain = definition_after(old, domain)
            await self._domains.keep(domain)
        log.info("domain %s renamed to %s (%s)", old.name, domain.name, cause)
        self._changes.emit(event=DomainEvent.RENAMED_FROM, domain=before)
        self._changes.emit(event=DomainEvent.RENAMED, domain=self.domain(domain.uuid))

    async def undefine(self, uuid: str, cause: Cause) -> None:
        """Forget a definition; a running domain goes on as a transient one."""
        async with self._placing:
            domain = self._domains.persistent(uuid, "cannot undefine transient domain")
            status = self.domain(uuid)
            await self._domains.drop(uuid)
            self.snapshots.look_at(uuid)
            if status.id is not None:
                status = self.domain(uuid)  # it goes on, as a transient one
        log.info("domain %s undefined (%s)", domain.name, cause)
        self._changes.emit(event=DomainEvent.UNDEFINED, domain=status)

    async def set_autostart(self, uuid: str, autostart: bool, cause: Cause) -> None:
        """Mark a persistent domain to be started when the board comes up."""
        async with self._placing:
            domain = self._domains.persistent(uuid, "cannot set autostart for transient domain")
            await self._domains.keep(replace(domain, autostart=autostart))
        log.info("domain %s autostart %s (%s)", domain.name, autostart, cause)

    async def set_autostart_once(self, uuid: str, once: bool, cause: Cause) -> None:
        """Mark a persistent domain to be started the next time the board comes up, and only then."""
        async with self._placing:
            domain = self._domains.persistent(uuid, "cannot set autostart for transient domain")
            await self._domains.keep(replace(domain, autostart_once=once))
        log.info("domain %s autostart once %s (%s)", domain.name, once, cause)

    # ---- power of domains

    async def start(self, uuid: str, cause: Cause) -> DomainStatus:
        """Start a defined domain; returns at power-good. A failed start is rolled back, then raised."""
        return await self._start(self.definition(uuid), cause)

    async def create(self, domain: Domain, cause: Cause) -> DomainStatus:
        """Start a transient domain (or a defined one by its XML)."""
        return await self._start(domain, cause, check=True)

    async def _first_look(self, domain: Domain) -> None:
        """A client may come before power was read for the first time, where its domain may run."""
        unread = [
            walker
            for name, walker in self._walkers.items()
            if domain.host in (None, name)
            and walker.watch.power is Power.UNKNOWN
            and not walker.watch.trouble
        ]
        await asyncio.gather(*(walker.watch.until_known(FIRST_LOOK_SECONDS) for walker in unread))

    async def _start(self, domain: Domain, cause: Cause, *, check: bool = False) -> DomainStatus:
        await self._first_look(domain)
        async with self._placing:
            if check:
                self._domains.check(domain)
                domain = replace(domain, persistent=self._domains.is_defined(domain.uuid))
            if self._domains.walker(domain.uuid) is not None:
                raise NicagentError(Kind.WRONG_STATE, "domain is already running")
            walker = self._placement.place(domain, self._walkers)
            await self._domains.forget_derived(domain.uuid)
            await self.snapshots.settle(domain.uuid)
            runs = [each.record.run for each in self._walkers.values() if each.record.run is not None]
            run = await self._placement.plan(domain, walker.parts, runs)
            step = await walker.ask(Event.START, cause, run=run, until=AT_REST)
        state = await step.reached
        if state is HostState.RUNNING:
            return self.domain(domain.uuid)
        failure = walker.record.reason
        if state is HostState.FREE:
            failure = (walker.last.failure if walker.last else "") or "it was stopped meanwhile"
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"domain {domain.name} did not start on {walker.parts.name}: {failure}",
            "the host stays in fault until its power reads off or the domain is destroyed"
            if state is HostState.FAULT
            else "",
        )

    async def destroy(self, uuid: str, cause: Cause) -> None:
        """Power off hard; returns once the host is free again and nothing of the domain is left on it."""
        walker = self._domains.running_on(uuid)
        step = await walker.ask(Event.STOP, cause, until=STOPPED)
        if await step.reached is HostState.FAULT:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"host {walker.parts.name} could not be stopped: {walker.record.reason}",
                "look at its power, then destroy the domain again",
            )

    async def shutdown(self, uuid: str, cause: Cause) -> None:
        """Ask the OS to go down; returns once asked. A SHUTDOWN change tells when it has."""
        step = await self._domains.running_on(uuid).ask(Event.SHUTDOWN, cause)
        await step.acted

    async def reboot(self, uuid: str, cause: Cause) -> None:
        """Ask the OS to go down and switch the host on again once it has; returns once asked."""
        step = await self._domains.running_on(uuid).ask(Event.REBOOT, cause)
        await step.acted

    async def reset(self, uuid: str, cause: Cause) -> None:
        """Hard reset; returns once the line was worked."""
        step = await self._domains.running_on(uuid).ask(Event.RESET, cause)
        await step.acted

    async def interrupt(self, uuid: str, cause: Cause) -> None:
        """A diagnostic interrupt (NMI); returns once the BMC has agreed. Raises UNSUPPORTED without one."""
        walker = self._domains.running_on(uuid)
        if walker.record.state is not HostState.RUNNING:
            raise not_now(walker)
        await walker.parts.power.apply(PowerAction.INTERRUPT, cause)


def _host_status(record: HostRecord, power: Power) -> HostStatus:
    run = record.run if record.state is not HostState.FREE else None
    return HostStatus(
        record.name,
        record.state,
        power,
        record.reason,
        record.since,
        run.domain.uuid if run else None,
        record.marks,
    )
