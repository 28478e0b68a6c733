"""What of a domain comes and goes: disks, ports and words about it, in its run, its definition, or both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from weakref import WeakValueDictionary

from nicagent.blockjobs import BlockJobs
from nicagent.changes import Changes
from nicagent.domains import Domains, definition_after
from nicagent.errors import Kind, NicagentError
from nicagent.lifecycle import Event
from nicagent.model import Cause, Domain, DomainStatus, HostState
from nicagent.placement import Placement
from nicagent.store import Run
from nicagent.walker import AGENT, Walker

log = logging.getLogger("nicagent.controller")


class Devices:
    """The controller's own, with its parts; `placing` is the lock of whoever places or defines."""

    def __init__(
        self, domains: Domains, placement: Placement, placing: asyncio.Lock, jobs: BlockJobs, changes: Changes
    ) -> None:
        self._domains = domains
        self._placement = placement
        self._placing = placing
        self._jobs = jobs
        self._changes = changes
        # domain uuid → one change of its disks or ports at a time; a lock is gone with its last holder
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def changing(self, uuid: str) -> AsyncIterator[None]:
        """Hold a domain's disks and ports still while a change of them is thought out and made."""
        lock = self._changing.get(uuid)
        if lock is None:
            lock = self._changing[uuid] = asyncio.Lock()
        async with lock:
            yield

    async def change(
        self, uuid: str, live: Domain | None, config: Domain | None, cause: Cause
    ) -> DomainStatus:
        """Give a domain other disks or ports: `live` to its run, `config` to its definition, or both. To be
        called within `changing`, with domains made of what holds there.

        Returns once they are there. Durable before anything is touched; what a driver refuses is rolled back
        and raised. Raises WRONG_STATE (not running, transient), UNSUPPORTED (the host does not have it), and
        what placement and the drivers raise.
        """
        async with self._placing:
            if config is not None:
                self._check_config(uuid, config)
            if live is not None:
                walker, run = self._running(uuid)
                self._check_jobs(run, live)
                before, after = run, await self._placement.replan(run, live, walker.parts)
        if live is not None:
            await walker.change(after, cause)
        if config is not None:
            try:
                await self._redefine(config)
            except BaseException:
                if live is not None:
                    with contextlib.suppress(NicagentError):
                        await walker.change(before, Cause(AGENT, "a change could not be made durable"))
                raise
        status = self._domains.status(uuid)
        log.info("domain %s has other disks or ports (%s)", status.domain.name, cause)
        self._changes.emit(domain=status)
        return status

    async def describe(self, uuid: str, live: Domain | None, config: Domain | None, cause: Cause) -> None:
        """Give a domain another document, of which no driver knows anything: `live` to its run, `config` to
        its definition, or both. To be called within `changing`.

        Raises WRONG_STATE (not running, transient), UNSUPPORTED (pinned to another host than it runs on).
        """
        if config is not None:
            self._check_config(uuid, config)
        if live is not None:
            walker, run = self._running(uuid)
            if live.host not in (None, walker.parts.name):
                raise NicagentError(
                    Kind.UNSUPPORTED,
                    f"domain {live.name} runs on host {walker.parts.name} and stays there while it runs",
                    "pin its next start (--config)",
                )
            told = replace(run.domain, xml=live.xml, tenant=live.tenant, host=live.host)
            await walker.ask(Event.CHANGE, cause, run=replace(run, domain=told))
        if config is not None:
            await self._redefine(config)
        status = self._domains.status(uuid)
        log.info("domain %s is described otherwise (%s)", status.domain.name, cause)
        self._changes.emit(domain=status)

    def _check_config(self, uuid: str, config: Domain) -> None:
        self._domains.persistent(uuid, "transient domains do not have any persistent config")
        self._domains.check(config)

    def _running(self, uuid: str) -> tuple[Walker, Run]:
        walker = self._domains.running_on(uuid)
        assert walker.record.run is not None
        return walker, walker.record.run

    def _check_jobs(self, run: Run, wanted: Domain) -> None:
        """A disk that a job works on stays as it is until the job has ended."""
        held = {disk.target: disk for disk in wanted.disks}
        for disk in run.domain.disks:
            if held.get(disk.target) != disk and self._jobs.busy(run.domain.uuid, disk.target):
                raise NicagentError(
                    Kind.WRONG_STATE,
                    f"disk '{disk.target}' already in active block job",
                    "end that first: virsh blockjob --abort",
                )

    async def _redefine(self, config: Domain) -> None:
        async with self._placing:
            old = self._domains.persistent(config.uuid, f"domain {config.name} was undefined meanwhile")
            await self._domains.keep(definition_after(old, config))

    async def check_pluggable(self, uuid: str, *, more: int = 0, gone: Collection[str] = ()) -> None:
        """Raises UNSUPPORTED when disks of the running domain's host do not come and go, or not so many
        `more`, or not the targets `gone`; WRONG_STATE when it does not run.
        """
        await self._domains.running_on(uuid).parts.storage.check_pluggable(more=more, gone=gone)

    async def resize(self, uuid: str, target: str, size: int, cause: Cause) -> None:
        """Give a disk of a running host another size, in bytes. Raises WRONG_STATE, NOT_FOUND, NO_SPACE."""
        walker = self._domains.running_on(uuid)
        if walker.record.state is not HostState.RUNNING:
            raise NicagentError(Kind.WRONG_STATE, "domain is not running")
        await walker.parts.storage.resize(target, size)
        log.info("disk %s of %s has %d bytes now (%s)", target, uuid, size, cause)
