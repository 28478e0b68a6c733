"""What transports over the block engine have in common under a running host: sizes and block jobs."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Sequence

from nicagent import proc
from nicagent.errors import Kind, NicagentError
from nicagent.model import BlockJob, Disk, Export, JobFacts
from nicagent.storage.contract import HostStorage
from nicagent.storage.qsd import UNDER_WAY, BlockEngine

RESIZE_SECONDS = 60.0  # qemu-img only writes a header, but its disk may be busy


class EngineStorage(HostStorage):
    """Storage whose exports all stand on one `BlockEngine`. Everything holds `_lock`."""

    _engine: BlockEngine
    _lock: asyncio.Lock
    _exports: tuple[Export, ...]

    @abc.abstractmethod
    async def _again(self) -> None:
        """Present once more what is presented: the engine may have let go of some of it."""

    @abc.abstractmethod
    async def _through_engine(self, targets: Sequence[str]) -> None:
        """Have every byte of these disks go through the engine from now on, beside those that do already."""

    @abc.abstractmethod
    async def _tell_sizes(self) -> None:
        """Have hosts look at the sizes of their disks."""

    async def resize(self, target: str, size: int) -> None:
        async with self._lock:
            disk = self._disk(target)
            if target in await self._under_way():
                raise NicagentError(
                    Kind.WRONG_STATE,
                    f"disk {target} has a block job",
                    "end that first: virsh blockjob --abort",
                )
            await self._engine.release(self._disks(), target)
            try:
                await proc.run(
                    ["qemu-img", "resize", "-q", "-f", disk.format.value, disk.path, str(size)],
                    timeout=RESIZE_SECONDS,
                )
            finally:
                await self._again()
            await self._tell_sizes()

    async def jobs(self) -> tuple[JobFacts, ...]:
        async with self._lock:
            return tuple((await self._engine.jobs()).values())

    async def start_job(self, job: BlockJob) -> None:
        async with self._lock:
            disk = self._disk(job.target)
            await self._through_engine([job.target])
            try:
                await self._engine.start_job(job, disk)
            except BaseException:
                await self._again()
                raise

    async def set_job_speed(self, target: str, speed: int) -> None:
        async with self._lock:
            job = (await self._engine.jobs()).get(target)
            if job is None:
                raise NicagentError(Kind.NOT_FOUND, f"disk {target} has no block job")
            await self._engine.set_job_speed(job, speed)

    async def end_job(self, target: str) -> None:
        async with self._lock:
            try:
                await self._engine.end_job(target)
            except BaseException:
                await self._again()
                raise

    async def give_up_job(self, target: str) -> None:
        async with self._lock:
            try:
                await self._engine.give_up_job(target)
            finally:
                await self._again()

    async def _under_way(self) -> set[str]:
        """The disks that have a job which has not ended."""
        return {job.target for job in (await self._engine.jobs()).values() if job.state in UNDER_WAY}

    def _disks(self) -> list[Disk]:
        return [export.disk for export in self._exports]

    def _disk(self, target: str) -> Disk:
        disk = next((disk for disk in self._disks() if disk.target == target), None)
        if disk is None:
            raise NicagentError(
                Kind.NOT_FOUND, f"the host has no disk {target}", "virsh domblklist shows them"
            )
        return disk
