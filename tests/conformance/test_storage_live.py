"""Disks change under a host that writes all the time: other files, other sizes, limits, block jobs.

The host takes no error, and on NVMe/TCP it never reconnects. Whatever it wrote is there afterwards, byte for
byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from nicagent import proc
from nicagent.errors import Kind, NicagentError
from nicagent.model import BlockJob, Disk, Export, JobKind, JobState, Limits, VolumeFormat
from nicagent.storage.contract import HostStorage
from tests.conformance.storage_rig import MIB, RIGS, HostDisk, Rig, disk, short_directory

RAW, QCOW2 = VolumeFormat.RAW, VolumeFormat.QCOW2
SIZE = 16 * MIB
BLOCK = 4096
DOMAIN = "0d7f4f4e-4b7e-4d0e-9a53-0c2f6f5b8a01"


@pytest.fixture(params=RIGS)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    with short_directory() as place:
        yield RIGS[request.param](place)


@pytest.fixture
async def storage(rig: Rig) -> AsyncIterator[HostStorage]:
    driver = rig.driver()
    yield driver
    await driver.withdraw()
    await driver.close()


class Writer:
    """A host at work: it knows what every block must hold."""

    def __init__(self, host_disk: HostDisk) -> None:
        self._disk = host_disk
        self._holds: dict[int, bytes] = {}
        self._choose = random.Random(7)
        self.turns = 0

    async def fill(self) -> None:
        """Every eighth block, so that there is something to copy."""
        for number in range(0, SIZE // BLOCK, 8):
            await self._write(number)

    async def turn(self) -> None:
        number = self._choose.randrange(SIZE // BLOCK)
        await self._write(number)
        other = self._choose.choice(list(self._holds))
        assert await self._disk.read(other * BLOCK, BLOCK) == self._holds[other], (
            f"block {other} is not as written"
        )
        self.turns += 1

    async def _write(self, number: int) -> None:
        data = f"{number}/{self.turns}/".encode().ljust(64, b".") * (BLOCK // 64)
        await self._disk.write(number * BLOCK, data)
        self._holds[number] = data

    async def check(self) -> None:
        for number, data in self._holds.items():
            assert await self._disk.read(number * BLOCK, BLOCK) == data, f"block {number} is lost"

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        done = asyncio.Event()

        async def work() -> None:
            while not done.is_set():
                await self.turn()

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            done.set()
            await task
        before = self.turns
        assert before, "the host did nothing meanwhile"
        await self.check()


async def image(path: Path, format: VolumeFormat, *backing: str) -> Path:
    await proc.run(["qemu-img", "create", "-q", "-f", format.value, *backing, str(path), str(SIZE)])
    return path


async def until_job(storage: HostStorage, state: JobState, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not (found := await storage.jobs()) or found[0].state is not state:
        assert time.monotonic() < deadline, f"the job is not {state.value}: {found}"
        assert not found or found[0].state is not JobState.FAILED, f"the job failed: {found}"
        await asyncio.sleep(0.02)


async def presented(
    rig: Rig, storage: HostStorage, format: VolumeFormat
) -> tuple[tuple[Export, ...], Writer]:
    path = rig.pool / ("disk.qcow2" if format is QCOW2 else "disk.raw")
    deep = await image(rig.pool / "deep.raw", RAW)
    below = ("-b", deep.name, "-F", "raw") if format is QCOW2 else ()
    await image(path, format, *below)
    exports = rig.exports([disk("vda", path, format)])
    await storage.present(exports, rig.initiator)
    writer = Writer(await rig.patient(exports, "vda"))
    await writer.fill()
    return exports, writer


def over(exports: tuple[Export, ...], path: Path, format: VolumeFormat) -> tuple[Export, ...]:
    """The same disk, by name and identity, on another file."""
    return (replace(exports[0], disk=replace(exports[0].disk, path=str(path), format=format)),)


@pytest.mark.parametrize("format", [RAW, QCOW2])
async def test_an_overlay_comes_under_the_hosts_writes_and_the_file_below_stays_as_it_is(
    rig: Rig, storage: HostStorage, format: VolumeFormat
) -> None:
    exports, writer = await presented(rig, storage, format)
    base = Path(exports[0].disk.path)
    async with writer.working():
        await asyncio.sleep(0.2)
        overlay = await image(rig.pool / "over.qcow2", QCOW2, "-b", base.name, "-F", format.value)
        await storage.present(over(exports, overlay, QCOW2), rig.initiator)
        frozen = base.read_bytes() if format is RAW else None
        await asyncio.sleep(0.4)
        if frozen is not None:
            assert base.read_bytes() == frozen, "the host still writes to what is below the overlay"


@pytest.mark.parametrize("format", [RAW, QCOW2])
async def test_a_copy_becomes_the_disk_under_the_hosts_writes(
    rig: Rig, storage: HostStorage, format: VolumeFormat
) -> None:
    exports, writer = await presented(rig, storage, format)
    to = QCOW2 if format is RAW else RAW
    copy = await image(rig.pool / "copy", to)
    async with writer.working():
        await storage.start_job(BlockJob(DOMAIN, "vda", JobKind.COPY, str(copy), to))
        with pytest.raises(NicagentError) as twice:
            await storage.start_job(BlockJob(DOMAIN, "vda", JobKind.PULL))
        assert twice.value.kind is Kind.EXISTS
        await until_job(storage, JobState.READY)
        await storage.present(exports, rig.initiator)  # as an agent does that comes back
        assert (await storage.jobs())[0].state is JobState.READY, "presenting the disk again ended its job"
        await asyncio.sleep(0.2)
        await storage.end_job("vda")
        Path(exports[0].disk.path).rename(rig.pool / "old")  # nobody may need it any more
        await storage.present(over(exports, copy, to), rig.initiator)
        await asyncio.sleep(0.3)
    assert await storage.jobs() == ()


async def test_a_copy_that_is_given_up_leaves_the_disk_where_it_was(rig: Rig, storage: HostStorage) -> None:
    _, writer = await presented(rig, storage, RAW)
    copy = await image(rig.pool / "copy", RAW)
    async with writer.working():
        await storage.start_job(BlockJob(DOMAIN, "vda", JobKind.COPY, str(copy), RAW, speed=MIB))
        assert (await storage.jobs())[0].speed == MIB
        with pytest.raises(NicagentError, match="not ready"):
            await storage.end_job("vda")
        await storage.set_job_speed("vda", 2 * MIB)
        assert (await storage.jobs())[0].speed == 2 * MIB
        await asyncio.sleep(0.1)
        await storage.give_up_job("vda")
        copy.unlink()
        await asyncio.sleep(0.2)
    assert await storage.jobs() == ()


@pytest.mark.parametrize("format", [RAW, QCOW2])
async def test_the_written_layer_is_committed_under_the_hosts_writes(
    rig: Rig, storage: HostStorage, format: VolumeFormat
) -> None:
    exports, writer = await presented(rig, storage, format)
    base = Path(exports[0].disk.path)
    overlay = await image(rig.pool / "over.qcow2", QCOW2, "-b", base.name, "-F", format.value)
    async with writer.working():
        await storage.present(over(exports, overlay, QCOW2), rig.initiator)
        await asyncio.sleep(0.2)
        await storage.start_job(BlockJob(DOMAIN, "vda", JobKind.ACTIVE_COMMIT, str(base)))
        await until_job(storage, JobState.READY)
        await storage.end_job("vda")
        overlay.unlink()
        await storage.present(exports, rig.initiator)
        await asyncio.sleep(0.2)


async def test_layers_between_are_committed_and_pulled(rig: Rig, storage: HostStorage) -> None:
    exports, writer = await presented(rig, storage, QCOW2)
    base = Path(exports[0].disk.path)
    middle = await image(rig.pool / "middle.qcow2", QCOW2, "-b", base.name, "-F", "qcow2")
    top = await image(rig.pool / "top.qcow2", QCOW2, "-b", middle.name, "-F", "qcow2")
    await storage.present(over(exports, middle, QCOW2), rig.initiator)
    for _ in range(100):
        await writer.turn()
    last = over(exports, top, QCOW2)
    async with writer.working():
        await storage.present(last, rig.initiator)
        with pytest.raises(NicagentError, match="no layer of disk vda"):
            await storage.start_job(BlockJob(DOMAIN, "vda", JobKind.PULL, str(rig.pool / "else.qcow2")))
        job = BlockJob(DOMAIN, "vda", JobKind.COMMIT, str(base), top=str(middle))
        await storage.start_job(job)
        await until_job(storage, JobState.DONE)
        await storage.give_up_job("vda")
        assert b"json:" not in top.read_bytes()[:4096], (
            "the header names its backing file in the engine's words"
        )
        middle.unlink()
        await asyncio.sleep(0.1)
        await storage.start_job(BlockJob(DOMAIN, "vda", JobKind.PULL, str(rig.pool / "deep.raw")))
        await until_job(storage, JobState.DONE)
        await storage.give_up_job("vda")
        base.unlink()
        await storage.present(last, rig.initiator)
        await storage.start_job(BlockJob(DOMAIN, "vda", JobKind.PULL))
        await until_job(storage, JobState.DONE)
        await storage.give_up_job("vda")
        (rig.pool / "deep.raw").unlink()
        await storage.present(last, rig.initiator)
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("format", [RAW, QCOW2])
async def test_a_disk_grows_and_the_host_is_told(
    rig: Rig, storage: HostStorage, format: VolumeFormat
) -> None:
    exports, writer = await presented(rig, storage, format)
    async with rig.running(), writer.working():
        await asyncio.sleep(0.1)
        await storage.resize("vda", 2 * SIZE)
        assert (await rig.attach(exports, "vda")).size == 2 * SIZE  # as the host reads it when it is told


async def test_limits_hold_and_change_and_go(rig: Rig, storage: HostStorage) -> None:
    exports, writer = await presented(rig, storage, RAW)

    def limited(limits: Limits | None) -> tuple[Export, ...]:
        slow: Disk = replace(exports[0].disk, limits=limits)
        return (replace(exports[0], disk=slow),)

    async def rate(seconds: float = 0.5) -> float:
        before = writer.turns
        await asyncio.sleep(seconds)
        return (writer.turns - before) / seconds * 2  # a read and a write each

    async def until_rate(wanted: float, otherwise: str) -> None:
        """Operations a second; the machine may be busy with something else."""
        deadline = time.monotonic() + 15
        while (now := await rate()) <= wanted:
            assert time.monotonic() < deadline, f"{otherwise}: {now:.0f} operations a second"

    async with writer.working():
        free = await rate()
        await storage.present(limited(Limits(total_iops_sec=100)), rig.initiator)
        await rate(0.3)  # what the bucket let through at once
        slow = await rate(1.0)
        assert slow <= 130, f"limited to 100 operations a second, the host does {slow:.0f}"
        await storage.present(limited(Limits(total_iops_sec=400)), rig.initiator)
        await until_rate(140, "a wider limit did not come into force")
        await storage.present(exports, rig.initiator)
        await until_rate(free / 3, "the limit has not gone")
