"""Block jobs outlive the agent: what is told of each, and where the disk is, after whatever has happened."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nicagent.blockjobs import BlockJobs, JobNews
from nicagent.errors import Kind, NicagentError
from nicagent.model import BlockJob, JobFacts, JobKind, JobState
from nicagent.store import Store
from tests.conformance.storage_rig import until as within
from tests.fakes import Body, BodyStorage
from tests.rig import TESTER

DOMAIN = "0d7f4f4e-4b7e-4d0e-9a53-0c2f6f5b8a01"
COPY = BlockJob(DOMAIN, "vda", JobKind.COPY, "/pool/copy")
PULL = BlockJob(DOMAIN, "vda", JobKind.PULL)


class Engine(BodyStorage):
    """The block engine's side: it goes on whatever becomes of the agent. `path` is what the disk is on."""

    def __init__(self) -> None:
        super().__init__(Body())
        self.job: JobFacts | None = None
        self.path = "/pool/disk"
        self.acts: list[str] = []

    async def jobs(self) -> tuple[JobFacts, ...]:
        return () if self.job is None else (self.job,)

    async def start_job(self, job: BlockJob) -> None:
        await self.body.act("start")
        self.job = JobFacts(job.target, job.kind, JobState.RUNNING)

    async def end_job(self, target: str) -> None:
        if self.job is None or self.job.state is not JobState.READY:
            raise NicagentError(Kind.WRONG_STATE, "not ready")
        self.acts.append("held")
        self.job = None

    async def give_up_job(self, target: str) -> None:
        self.acts.append("presented")
        self.job = None

    def become(self, state: JobState) -> None:
        assert self.job is not None
        self.job = JobFacts(self.job.target, self.job.kind, state)


@contextlib.asynccontextmanager
async def life(
    place: Path, engine: Engine, *, runs: bool = True
) -> AsyncIterator[tuple[BlockJobs, list[JobNews]]]:
    """One life of an agent; leaving it is its death."""
    store = await Store.open(place / "db")
    jobs = BlockJobs(store, lambda _: engine if runs else None, lambda *_: engine.path)
    await jobs.load()
    told: list[JobNews] = []
    jobs.watch(lambda _, news: told.append(news))
    task = asyncio.create_task(jobs.run())
    try:
        yield jobs, told
    finally:
        task.cancel()
        await asyncio.wait([task])
        await store.close()


async def test_news_are_told_once_each_and_the_disk_moves(tmp_path: Path) -> None:
    engine = Engine()

    async def move() -> None:
        assert engine.acts == ["held"], "the record changes while somebody writes"
        engine.path = COPY.path

    async with life(tmp_path, engine) as (jobs, told):
        await jobs.start(COPY, TESTER)
        with pytest.raises(NicagentError, match="already"):
            await jobs.start(PULL, TESTER)
        with pytest.raises(NicagentError, match="not ready"):
            await jobs.pivot(DOMAIN, "vda", move, TESTER)
        engine.acts.clear()
        engine.become(JobState.READY)
        await within(lambda: bool(told), 5, "nothing was told")
        await asyncio.sleep(0.7)  # two more looks
        assert told == [JobNews.READY]
        await jobs.pivot(DOMAIN, "vda", move, TESTER)
        assert told == [JobNews.READY, JobNews.COMPLETED] and jobs.of(DOMAIN, "vda") is None


async def test_a_job_is_seen_again_by_the_next_life(tmp_path: Path) -> None:
    engine = Engine()
    async with life(tmp_path, engine) as (jobs, _):
        await jobs.start(PULL, TESTER)
    engine.become(JobState.DONE)
    async with life(tmp_path, engine) as (jobs, told):
        await within(lambda: bool(told), 5, "nothing was told")
        assert told == [JobNews.COMPLETED] and engine.acts == ["presented"]
    async with life(tmp_path, engine) as (jobs, told):
        assert jobs.of(DOMAIN, "vda") is None, "a job that is over was kept"


@pytest.mark.parametrize(
    ("path", "news"),
    [("/pool/disk", JobNews.FAILED), (COPY.path, JobNews.COMPLETED)],
    ids=["before", "after"],
)
async def test_a_death_in_the_pivot_is_told_by_what_the_record_names(
    tmp_path: Path, path: str, news: JobNews
) -> None:
    engine = Engine()
    async with life(tmp_path, engine) as (jobs, _):
        await jobs.start(COPY, TESTER)
    engine.job, engine.path = None, path  # it had ended, and the agent died before or after the record
    async with life(tmp_path, engine) as (_, told):
        await within(lambda: bool(told), 5, "nothing was told")
        assert told == [news]


async def test_a_move_that_fails_leaves_the_disk_where_it_was(tmp_path: Path) -> None:
    engine = Engine()

    async def move() -> None:
        raise NicagentError(Kind.NO_SPACE, "the disk of the state is full")

    async with life(tmp_path, engine) as (jobs, told):
        await jobs.start(COPY, TESTER)
        engine.become(JobState.READY)
        with pytest.raises(NicagentError, match="full"):
            await jobs.pivot(DOMAIN, "vda", move, TESTER)
        assert engine.acts == ["held", "presented"], "the held disk was not brought back"
        assert told[-1] is JobNews.FAILED


async def test_what_does_not_begin_is_not_kept_and_a_stop_ends_all(tmp_path: Path) -> None:
    engine = Engine()
    engine.body.fail["start"] = 1
    async with life(tmp_path, engine) as (jobs, told):
        with pytest.raises(NicagentError, match="does not work today"):
            await jobs.start(COPY, TESTER)
        assert jobs.of(DOMAIN, "vda") is None and told == []
        await jobs.start(COPY, TESTER)
        await jobs.give_up(DOMAIN, "vda", TESTER)
        assert told == [JobNews.CANCELLED]
        await jobs.start(PULL, TESTER)
    async with life(tmp_path, engine, runs=False) as (jobs, told):
        await within(lambda: bool(told), 5, "nothing was told")
        assert told == [JobNews.CANCELLED]
        with pytest.raises(NicagentError, match="not running"):
            await jobs.start(COPY, TESTER)
