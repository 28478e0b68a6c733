"""Counters of running domains, gathered side by side, kept for a moment, never waited for longer than that.

A client asks for those of a thousand domains at once. Behind them are targets, kernels and guests, and one
that does not answer must not keep the others' figures back: what is at hand is told, the rest is absent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nicagent.controller import Controller
from nicagent.errors import NicagentError
from nicagent.hostlink.contract import GuestLink, GuestRefused, GuestSilent, answers
from nicagent.model import Disk, DomainStatus, ExportStatus, PortStatus
from nicagent.storage import volume
from nicagent.threads import in_thread

FRESH_SECONDS = 1.0  # figures are not gathered again within this
WAIT_SECONDS = 0.5  # that one call waits for those who are asked
GUEST_SECONDS = 2.0  # for a guest's own figures, which nobody waits for that long
AT_ONCE = 32  # domains asked about side by side


@dataclass(frozen=True)
class Sizes:
    """Of a volume, bytes: as the host sees it, as the pool gives room for it, as its file is long."""

    capacity: int
    allocation: int
    physical: int


@dataclass(frozen=True)
class Reading:
    """What was found out about one run of a domain. Keys are targets of disks."""

    exports: tuple[ExportStatus, ...] = ()
    ports: tuple[PortStatus, ...] = ()
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    guest_disks: Mapping[str, answers.DiskFigures] = field(default_factory=dict)
    guest_cpus: Sequence[answers.CpuStats] = ()


class Counters:
    """Of one agent's domains. `links`: the guest agents of the hosts that have a channel."""

    def __init__(
        self,
        controller: Controller,
        links: Mapping[str, GuestLink],
        pools: Callable[[], Sequence[Path]],
    ) -> None:
        self._controller = controller
        self._links = links
        self._pools = pools
        self._known: dict[tuple[str, int], tuple[float, Reading]] = {}  # UUID and id of a run → when, what
        self._asking: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def of(self, uuids: Iterable[str], *, wait: bool = True) -> dict[str, Reading]:
        """Of those among these that run, as far as it is known within WAIT_SECONDS (not `wait`: now)."""
        runs = {}
        for uuid in uuids:
            with contextlib.suppress(NicagentError):
                status = self._controller.domain(uuid)
                if status.id is not None and status.host is not None:
                    runs[uuid, status.id] = status
        now = time.monotonic()
        for run, status in runs.items():
            then, _ = self._known.get(run, (float("-inf"), None))
            if now - then > FRESH_SECONDS and run not in self._asking:
                task = asyncio.create_task(self._gather(run, status), name=f"counters of {run[0]}")
                self._asking[run] = task
                task.add_done_callback(lambda _, run=run: self._asking.pop(run, None))  # type: ignore[misc]
        asked = [self._asking[run] for run in runs if run in self._asking]
        if wait and asked:
            await asyncio.wait(asked, timeout=WAIT_SECONDS)
        return {run[0]: self._known[run][1] for run in runs if run in self._known}

    async def sizes(self, disks: Sequence[Disk]) -> dict[str, Sizes]:
        """Of these volumes, those that can be looked at."""
        return await in_thread(_sizes, disks, self._pools())

    async def close(self) -> None:
        """End what is being asked."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _gather(self, run: tuple[str, int], status: DomainStatus) -> None:
        async with self._turns:
            exports: tuple[ExportStatus, ...] = ()
            ports: tuple[PortStatus, ...] = ()
            with contextlib.suppress(NicagentError):
                exports, ports = await self._controller.statistics(run[0])
            sizes = await self.sizes([export.disk for export in status.exports])
            self._forget_ended()
            _, before = self._known.get(run, (0.0, Reading()))
            ours = replace(before, exports=exports, ports=ports, sizes=sizes)
            self._known[run] = time.monotonic(), ours
            disks, cpus = await self._of_guest(status)
        self._known[run] = time.monotonic(), replace(ours, guest_disks=disks, guest_cpus=cpus)

    async def _of_guest(
        self, status: DomainStatus
    ) -> tuple[Mapping[str, answers.DiskFigures], Sequence[answers.CpuStats]]:
        """The OS's own figures, where its agent answers: nobody else knows them on some transports."""
        link = self._links.get(status.host or "")
        if link is None or not link.connected:
            return {}, ()
        serials = {export.identity.serial: export.disk.target for export in status.exports}
        try:
            async with asyncio.timeout(GUEST_SECONDS):
                cpus = await link.ask("guest-get-cpustats", kind=answers.CpusStats)
                known = await link.ask("guest-get-disks", kind=answers.Disks)
                stats = await link.ask("guest-get-diskstats", kind=answers.DisksStats)
        except (TimeoutError, GuestSilent, GuestRefused):
            return {}, ()
        devices = {
            Path(disk.name).name: serials.get(disk.address.serial or "")
            for disk in known
            if disk.address is not None and not disk.partition
        }
        figures = {target: each.stats for each in stats if (target := devices.get(each.name)) is not None}
        return figures, cpus

    def _forget_ended(self) -> None:
        """What ran once and does not any more."""
        if len(self._known) > 2 * len(self._asking) + 64:
            running = {(s.domain.uuid, s.id) for s in self._controller.domains()}
            self._known = {run: known for run, known in self._known.items() if run in running}


def _sizes(disks: Sequence[Disk], pools: Sequence[Path]) -> dict[str, Sizes]:
    found = {}
    for disk in disks:
        with contextlib.suppress(NicagentError, OSError):
            top = volume.resolve(Path(disk.path), disk.format, pools)[0]
            facts = top.path.stat()
            found[disk.target] = Sizes(top.size, facts.st_blocks * 512, facts.st_size)
    return found
