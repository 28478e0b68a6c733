"""Block jobs of all domains: which there are, how far they are, and what their end means for a disk.

The engine does the work and outlives the agent; what is kept here is what was asked for, durable before it is
begun. A disk moves to another file in one way only: the job is ready, the disk is held, both files are the
same, the run's record names the other one, the disk goes on. Whatever dies at whatever moment, the record
names a file that is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum

from nicagent.errors import Kind, NicagentError
from nicagent.model import BlockJob, Cause, JobFacts, JobKind, JobState
from nicagent.storage.contract import HostStorage
from nicagent.store import Store

log = logging.getLogger("nicagent.blockjobs")

OBJECT = "block-job"  # the store's kind of object
LOOK_SECONDS = 0.3  # between two looks at jobs that are under way

TWO_PHASED = frozenset({JobKind.COPY, JobKind.ACTIVE_COMMIT})


class JobNews(StrEnum):
    """What is told of a job."""

    READY = "ready"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


Key = tuple[str, str]  # domain UUID, disk
Watcher = Callable[[BlockJob, JobNews], None]
FindStorage = Callable[[str], HostStorage | None]  # of the host that a domain occupies
PathOf = Callable[[str, str], str | None]  # the file of a domain's disk, by its run's record


class BlockJobs:
    """The block jobs of one agent; the controller's, who lends it what it needs to know of runs."""

    def __init__(self, store: Store, storage_of: FindStorage, path_of: PathOf) -> None:
        self._store = store
        self._storage_of = storage_of
        self._path_of = path_of
        self._jobs: dict[Key, BlockJob] = {}
        self._ready: set[Key] = set()
        self._held: set[Key] = set()  # in the hands of a call: not looked after meanwhile
        self._watchers: list[Watcher] = []
        self._some = asyncio.Event()

    async def load(self) -> None:
        """Read what was asked for in an earlier life."""
        for job in await self._store.objects(OBJECT, BlockJob):
            self._jobs[job.domain, job.target] = job
        if self._jobs:
            self._some.set()

    async def run(self) -> None:
        """Look after jobs until cancelled."""
        while True:
            await self._some.wait()
            for key in list(self._jobs):
                if key not in self._held:
                    try:
                        await self._look(key)
                    except NicagentError as e:
                        log.warning("block job of disk %s: %s", key[1], e)
            await asyncio.sleep(LOOK_SECONDS)
            if not self._jobs:
                self._some.clear()

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have `watcher` called with every piece of news. Returns how to end that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    # ---- what the faces ask

    def of(self, uuid: str, target: str) -> BlockJob | None:
        """The job of a disk, from memory."""
        return self._jobs.get((uuid, target))

    def of_domain(self, uuid: str) -> list[BlockJob]:
        """The jobs of a domain's disks, from memory."""
        return [job for job in self._jobs.values() if job.domain == uuid]

    def ready(self, uuid: str, target: str) -> bool:
        """Whether the disk's job is known to keep both files the same."""
        return (uuid, target) in self._ready

    def busy(self, uuid: str, target: str) -> bool:
        """Whether a job works on the disk; not one that is just moving it."""
        return (uuid, target) in self._jobs and (uuid, target) not in self._held

    async def facts(self, uuid: str, target: str) -> JobFacts | None:
        """How far it is; None when there is none (any more)."""
        job = self._jobs.get((uuid, target))
        storage = self._storage_of(uuid)
        if job is None or storage is None:
            return None
        found = await self._facts(storage, job)
        if found is not None and self._jobs.get((uuid, target)) is job:
            self._see_ready(job, found)  # what is told here holds for the document and the events too
        return found if found is None or found.state in (JobState.RUNNING, JobState.READY) else None

    async def start(self, job: BlockJob, cause: Cause) -> None:
        """Begin a job. Raises WRONG_STATE (not running), EXISTS (it has one), and what the engine does."""
        key = job.domain, job.target
        if key in self._jobs:
            raise NicagentError(Kind.EXISTS, f"disk {job.target} has a block job already", "end that first")
        storage = self._running(job.domain)
        self._held.add(key)
        try:
            self._jobs[key] = job
            await self._store.put_object(OBJECT, _name(key), _name(key), job)
            try:
                await storage.start_job(job)
            except BaseException:
                await self._forget(key)
                raise
        except BaseException:
            self._jobs.pop(key, None)
            raise
        finally:
            self._held.discard(key)
        self._some.set()
        log.info("block job %s of disk %s begun (%s)", job.kind.value, job.target, cause)

    async def set_speed(self, uuid: str, target: str, speed: int) -> None:
        """In bytes a second, 0 for no limit. Raises NOT_FOUND."""
        self._known(uuid, target)
        await self._running(uuid).set_job_speed(target, speed)

    async def give_up(self, uuid: str, target: str, cause: Cause) -> None:
        """End a job; the disk goes on where it was. Raises NOT_FOUND."""
        job = self._known(uuid, target)
        async with self._in_hand((uuid, target)):
            await self._running(uuid).give_up_job(target)
            log.info("block job %s of disk %s given up (%s)", job.kind.value, target, cause)
            await self._over(job, JobNews.CANCELLED)

    @contextlib.asynccontextmanager
    async def _in_hand(self, key: Key) -> AsyncIterator[None]:
        """Nobody else looks after the job meanwhile."""
        self._held.add(key)
        try:
            yield
        finally:
            self._held.discard(key)

    async def pivot(
        self, uuid: str, target: str, move: Callable[[], Awaitable[object]], cause: Cause
    ) -> None:
        """Have the disk go on in the job's other file. `move` has the run's record name it and presents it.

        Raises NOT_FOUND, WRONG_STATE (not ready), and what `move` raises: then the disk goes on where it was.
        """
        job = self._known(uuid, target)
        if job.kind not in TWO_PHASED:
            raise NicagentError(Kind.WRONG_STATE, f"the {job.kind.value} of disk {target} moves it nowhere")
        storage = self._running(uuid)
        async with self._in_hand((uuid, target)):
            await storage.end_job(target)
            try:
                await move()
            except BaseException:
                await storage.give_up_job(target)  # it is over; this brings the held disk back
                await self._over(job, JobNews.FAILED)
                raise
            log.info("disk %s goes on in %s (%s)", target, job.path, cause)
            await self._over(job, JobNews.COMPLETED)

    # ---- looking after

    async def _look(self, key: Key) -> None:
        job = self._jobs[key]
        storage = self._storage_of(job.domain)
        if storage is None:
            await self._over(job, JobNews.CANCELLED)  # it ended with the run
            return
        found = await self._facts(storage, job)
        if key in self._held or self._jobs.get(key) is not job:
            return
        if found is None:
            moved = job.kind in TWO_PHASED and self._path_of(job.domain, job.target) == job.path
            await self._over(job, JobNews.COMPLETED if moved else JobNews.FAILED)
            return
        self._see_ready(job, found)
        if found.state in (JobState.DONE, JobState.FAILED):
            # Looked at once more by the engine: its chain has changed, and the record of it is in the files.
            await storage.give_up_job(job.target)
            done = found.state is JobState.DONE and job.kind not in TWO_PHASED
            if found.trouble:
                log.error("block job %s of disk %s: %s", job.kind.value, job.target, found.trouble)
            await self._over(job, JobNews.COMPLETED if done else JobNews.FAILED)

    def _see_ready(self, job: BlockJob, found: JobFacts) -> None:
        key = job.domain, job.target
        if found.state is JobState.READY and key not in self._ready:
            self._ready.add(key)
            self._tell(job, JobNews.READY)

    async def _facts(self, storage: HostStorage, job: BlockJob) -> JobFacts | None:
        return next((each for each in await storage.jobs() if each.target == job.target), None)

    async def _over(self, job: BlockJob, news: JobNews) -> None:
        await self._forget((job.domain, job.target))
        log.info("block job %s of disk %s: %s", job.kind.value, job.target, news.value)
        self._tell(job, news)

    async def _forget(self, key: Key) -> None:
        await self._store.drop_object(OBJECT, _name(key))
        self._jobs.pop(key, None)
        self._ready.discard(key)

    def _tell(self, job: BlockJob, news: JobNews) -> None:
        for watcher in list(self._watchers):
            try:
                watcher(job, news)
            except Exception:
                log.exception("a watcher failed; the others are still told")

    def _known(self, uuid: str, target: str) -> BlockJob:
        job = self._jobs.get((uuid, target))
        if job is None:
            raise NicagentError(Kind.NOT_FOUND, f"disk {target} has no block job")
        return job

    def _running(self, uuid: str) -> HostStorage:
        storage = self._storage_of(uuid)
        if storage is None:
            raise NicagentError(Kind.WRONG_STATE, "domain is not running")
        return storage


def _name(key: Key) -> str:
    return f"{key[0]}/{key[1]}"
