"""Every storage driver keeps the promises of `nicagent/storage/contract.py`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nicagent import proc
from nicagent.errors import Kind, NicagentError
from nicagent.model import Disk, VolumeFormat
from nicagent.storage.contract import HostStorage
from tests.conformance.storage_rig import (
    MIB,
    RIGS,
    HostDisk,
    NvmeTcpRig,
    Rig,
    disk,
    short_directory,
    small_file_system,
    until,
)

QCOW2 = VolumeFormat.QCOW2
PATTERN = bytes(range(256)) * 16  # 4 KiB


@pytest.fixture(params=list(RIGS))
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    with short_directory() as place:
        rig = RIGS[request.param](place)
        yield rig
        for host in ("metal-1", "metal-2"):
            rig.host = host
            await rig.driver().withdraw()


@pytest.fixture
async def storage(rig: Rig) -> AsyncIterator[HostStorage]:
    driver = rig.driver()
    yield driver
    await driver.withdraw()
    await driver.close()


@contextlib.asynccontextmanager
async def watched(storage: HostStorage) -> AsyncIterator[None]:
    watch = asyncio.create_task(storage.watch_over())
    try:
        yield
    finally:
        assert not watch.done(), "watch_over must run until it is cancelled"
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch


@contextlib.asynccontextmanager
async def busy(host_disk: HostDisk) -> AsyncIterator[None]:
    """A host that writes and reads back all the time, and never reconnects: any disturbance is an error."""
    done = asyncio.Event()

    async def work() -> None:
        turn = 0
        while not done.is_set():
            data = turn.to_bytes(8, "big") * 512
            await host_disk.write(turn % 16 * 4096, data)
            assert await host_disk.read(turn % 16 * 4096, 4096) == data
            turn += 1
        assert turn > 0

    worker = asyncio.create_task(work())
    try:
        yield
    finally:
        done.set()
        await worker


async def refusal(storage: HostStorage, rig: Rig, disks: list[Disk]) -> NicagentError:
    with pytest.raises(NicagentError) as caught:
        await storage.present(rig.exports(disks), rig.initiator)
    assert caught.value.hint, f"says what to do next: {caught.value}"
    return caught.value


async def test_what_is_presented_is_found_at_once_with_its_size(rig: Rig, storage: HostStorage) -> None:
    base = rig.raw("base.raw", 8 * MIB)
    base.write_bytes(PATTERN.ljust(8 * MIB, b"\0"))
    top = await rig.qcow2("top.qcow2", base)
    exports = rig.exports([disk("vda", top, QCOW2), disk("vdb", rig.raw("data.raw"))])
    await storage.present(exports, rig.initiator)
    root, data = [await rig.attach(exports, target) for target in ("vda", "vdb")]
    assert (root.size, data.size) == (8 * MIB, 4 * MIB)
    assert await root.read(0, 4096) == PATTERN, "the base image shows through its overlay"
    await root.write(0, bytes(4096))
    await root.flush()
    assert base.read_bytes()[:4096] == PATTERN, "and is never written"
    await root.close()
    await data.close()


async def test_what_names_initiators_and_volumes_is_the_agents_alone(rig: Rig, storage: HostStorage) -> None:
    logs = rig.place / "state/hosts" / rig.host
    logs.mkdir(parents=True)
    (logs / "nvmetcp.log").touch(0o644)  # of an earlier release
    await storage.present(rig.exports([disk("vda", rig.raw("one.raw"))]), rig.initiator)
    names = [rig.run, rig.run / "nvmetcp.json", rig.run / "qmp.sock", rig.run / "nvmetcp.sock", logs]
    for path in [*names, *logs.iterdir()]:
        if path.exists() and (path.name != "nvmetcp.log" or "nvmetcp" in rig.data_path):
            assert path.stat().st_mode & 0o077 == 0, f"others may open {path}"


async def test_presenting_again_disturbs_nothing(rig: Rig, storage: HostStorage) -> None:
    exports = rig.exports([disk("vda", await rig.qcow2("top.qcow2", rig.raw("base.raw")), QCOW2)])
    await storage.present(exports, rig.initiator)
    host_disk, pids = await rig.attach(exports, "vda"), rig.pids()
    async with busy(host_disk):
        for _ in range(5):
            await storage.present(exports, rig.initiator)
    assert rig.pids() == pids, "no process may be replaced"
    await host_disk.close()


async def test_other_disks_come_and_go_beside_a_busy_one(rig: Rig, storage: HostStorage) -> None:
    one, two = disk("vda", rig.raw("one.raw")), disk("vdb", rig.raw("two.raw"))
    both = rig.exports([one, two])
    await storage.present(both[:1], rig.initiator)
    host_disk = await rig.attach(both, "vda")
    async with busy(host_disk):
        await storage.present(both, rig.initiator)
        other = await rig.attach(both, "vdb")
        assert other.size == 4 * MIB
        await other.close()
        await storage.present(both[:1], rig.initiator)
        with pytest.raises(OSError):
            await rig.attach(both, "vdb")
    await host_disk.close()
    assert [status.target for status in await storage.status()] == ["vda"]


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_killed_process_is_back_within_a_second(rig: Rig, storage: HostStorage, victim: int) -> None:
    if victim >= len(rig.data_path):
        pytest.skip("this transport has one process only")
    exports = rig.exports([disk("vda", await rig.qcow2("top.qcow2", rig.raw("base.raw")), QCOW2)])
    await storage.present(exports, rig.initiator)
    times = []
    async with watched(storage):
        for turn in range(3):
            host_disk = await rig.attach_soon(exports, "vda", 5)
            await host_disk.write(turn * 4096, PATTERN)
            await host_disk.flush()
            before = rig.pids()
            pid = before[rig.data_path[victim]]
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            start = time.monotonic()
            await host_disk.close()
            await until(lambda old=pid: old not in rig.pids().values(), 1, "it was killed")  # type: ignore[misc]
            again = await rig.attach_soon(exports, "vda", 5)
            times.append(time.monotonic() - start)
            for done in range(turn + 1):
                assert await again.read(done * 4096, 4096) == PATTERN, "a flushed block is lost"
            await again.close()
            after = rig.pids()
            assert {k for k in before if before[k] != after[k]} == {rig.data_path[victim]}, (
                "only what was dead is restarted"
            )
    # The best of three, as the machine that runs the tests may have other work.
    assert min(times) < 1.0, f"{rig.data_path[victim]} came back only after {min(times):.2f} s"


@pytest.mark.parametrize("format", list(VolumeFormat))
async def test_a_flush_means_every_write_before_it_also_over_a_dead_block_engine(
    rig: Rig, storage: HostStorage, format: VolumeFormat
) -> None:
    """The host lives on when the engine dies, so a write that was answered must not live in the engine."""
    path = rig.raw("one.raw", 16 * MIB)
    if format is QCOW2:
        path = await rig.qcow2("top.qcow2", path)
    exports = rig.exports([disk("vda", path, format)])
    await storage.present(exports, rig.initiator)
    host_disk = await rig.attach(exports, "vda")
    for offset in range(0, 16 * MIB, MIB // 4):
        await host_disk.write(offset, PATTERN)
    pid = rig.pids()["qsd"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with watched(storage):
        await until(lambda: rig.pids()["qsd"] not in (None, pid), 3, "the block engine is started again")
        again = await rig.attach_soon(exports, "vda", 3)
        await again.flush()
        lost = [o for o in range(0, 16 * MIB, MIB // 4) if await again.read(o, 4096) != PATTERN]
        assert not lost, f"{len(lost)} writes are lost that were answered and then flushed"
        await again.close()
    await host_disk.close()


async def test_the_data_path_outlives_the_agent(rig: Rig) -> None:
    disks = [disk("vda", rig.raw("one.raw"))]
    exports = rig.exports(disks)
    async with rig.agent(disks) as agent:
        assert agent.stdout is not None
        assert await agent.stdout.readline() == b"presenting\n"
        assert await agent.stdout.readline() == b"presented\n"
        host_disk, pids = await rig.attach(exports, "vda"), rig.pids()
        async with busy(host_disk):
            agent.send_signal(signal.SIGKILL)
            await agent.wait()
            await asyncio.sleep(0.2)
            successor = rig.driver()
            await successor.present(exports, rig.initiator)
            assert rig.pids() == pids, "a new agent finds the processes of the old one"
        await host_disk.close()
        await successor.withdraw()
    assert rig.remains() == []


async def test_an_agent_killed_at_any_moment_of_present_is_recovered_from(rig: Rig) -> None:
    disks = [
        disk("vda", await rig.qcow2("top.qcow2", rig.raw("base.raw")), QCOW2),
        disk("vdb", rig.raw("b.raw")),
    ]
    exports = rig.exports(disks)
    for delay in (0.002, 0.02, 0.04, 0.08, 0.15, 0.3):
        async with rig.agent(disks) as agent:
            assert agent.stdout is not None
            await agent.stdout.readline()
            await asyncio.sleep(delay)
            agent.send_signal(signal.SIGKILL)
            await agent.wait()
        successor = rig.driver()
        await successor.present(exports, rig.initiator)
        for target in ("vda", "vdb"):
            host_disk = await rig.attach(exports, target)
            assert host_disk.size == 4 * MIB, f"killed after {delay} s"
            await host_disk.close()
        await successor.withdraw()
        assert rig.remains() == [] and not [*rig.run.iterdir()], f"killed after {delay} s"


@pytest.mark.parametrize("process", [0, 1])
async def test_a_process_that_no_pidfile_knows_is_ended(rig: Rig, process: int) -> None:
    """The agent died between starting it and writing the pidfile; it still holds locks and ports."""
    if process >= len(rig.data_path):
        pytest.skip("this transport has one process only")
    exports = rig.exports([disk("vda", rig.raw("one.raw"))])
    await rig.driver().present(exports, rig.initiator)
    name = rig.data_path[process]
    lost = rig.pids()[name]
    assert lost is not None
    (rig.run / f"{name}.pid").unlink()
    await rig.driver().present(exports, rig.initiator)
    assert proc.start_time(lost) is None, "two of them must not live"
    assert rig.pids()[name] not in (None, lost)
    host_disk = await rig.attach_soon(exports, "vda", 3)
    await host_disk.write(0, PATTERN)
    await host_disk.close()
    await rig.driver().withdraw()
    assert rig.remains() == []


async def test_withdraw_leaves_nothing_and_may_be_repeated(rig: Rig, storage: HostStorage) -> None:
    exports = rig.exports([disk("vda", rig.raw("one.raw")), disk("vdb", rig.raw("two.raw"))])
    await storage.present(exports, rig.initiator)
    pids = [pid for pid in rig.pids().values() if pid is not None]
    assert len(pids) == len(rig.data_path)
    async with watched(storage):
        await storage.withdraw()
        await storage.withdraw()
        await asyncio.sleep(0.2)  # the watch must not bring anything back
    assert set(rig.pids().values()) == {None}
    assert rig.remains() == []
    assert list(rig.run.iterdir()) == [], "no socket, pidfile or configuration stays"
    assert await storage.status() == ()
    with pytest.raises(OSError):
        await rig.attach(exports, "vda")


async def test_presenting_nothing_is_withdrawing(rig: Rig, storage: HostStorage) -> None:
    await storage.present(rig.exports([disk("vda", rig.raw("one.raw"))]), rig.initiator)
    await storage.present((), rig.initiator)
    assert set(rig.pids().values()) == {None} and rig.remains() == []


async def test_a_readonly_disk_cannot_be_written(rig: Rig, storage: HostStorage) -> None:
    path = rig.raw("one.raw")
    exports = rig.exports([disk("vda", path, readonly=True)])
    await storage.present(exports, rig.initiator)
    host_disk = await rig.attach(exports, "vda")
    with pytest.raises(OSError):
        await host_disk.write(0, PATTERN)
    assert path.read_bytes() == bytes(4 * MIB)
    await host_disk.close()


async def test_two_hosts_share_a_readonly_disk(rig: Rig, storage: HostStorage) -> None:
    shared = disk("vda", rig.raw("one.raw"), readonly=True)
    await storage.present(rig.exports([shared]), rig.initiator)
    other = type(rig)(rig.place, "metal-2")
    neighbour = other.driver()
    await neighbour.present(other.exports([shared]), other.initiator)
    await neighbour.withdraw()


async def test_mistakes_are_told_and_leave_other_disks_alone(rig: Rig, storage: HostStorage) -> None:
    good = disk("vda", rig.raw("good.raw"))
    exports = rig.exports([good])
    await storage.present(exports, rig.initiator)
    host_disk = await rig.attach(exports, "vda")
    async with busy(host_disk):
        for bad, kind, word in (
            (disk("vdb", rig.pool / "gone.raw"), Kind.NOT_FOUND, "gone.raw"),
            (disk("vdb", rig.raw("x.raw"), QCOW2), Kind.INVALID, "not in qcow2 format"),
            (disk("vdb", Path("/etc/passwd")), Kind.DENIED, "/etc/passwd"),
            (disk("vdb", Path(good.path)), Kind.WRONG_STATE, "good.raw"),
        ):
            error = await refusal(storage, rig, [good, bad])
            assert error.kind is kind, str(error)
            assert word in str(error)
    await host_disk.close()
    assert [status.target for status in await storage.status()] == ["vda"]
    pid = rig.pids()["qsd"]
    assert pid is not None
    async with watched(storage):
        os.kill(pid, signal.SIGKILL)
        await (await rig.attach_soon(exports, "vda", 3)).close()


async def test_a_volume_in_use_on_another_host_is_refused(rig: Rig, storage: HostStorage) -> None:
    wanted = disk("vda", rig.raw("one.raw"))
    await storage.present(rig.exports([wanted]), rig.initiator)
    other = type(rig)(rig.place, "metal-2")
    neighbour = other.driver()
    error = await refusal(neighbour, other, [wanted])
    assert error.kind is Kind.WRONG_STATE and "another process uses it" in str(error)
    await neighbour.withdraw()
    host_disk = await rig.attach(rig.exports([wanted]), "vda")
    await host_disk.write(0, PATTERN)
    await host_disk.close()
    await storage.withdraw()
    await neighbour.present(other.exports([wanted]), other.initiator)
    await neighbour.withdraw()


async def test_a_refused_first_present_leaves_nothing_after_withdraw(rig: Rig, storage: HostStorage) -> None:
    await refusal(storage, rig, [disk("vda", rig.pool / "gone.raw")])
    await storage.withdraw()
    assert rig.remains() == [] and set(rig.pids().values()) == {None}


async def test_what_cannot_come_back_is_tried_until_it_can(
    rig: Rig, storage: HostStorage, caplog: pytest.LogCaptureFixture
) -> None:
    path = rig.raw("one.raw")
    path.write_bytes(PATTERN.ljust(4 * MIB, b"\0"))
    exports = rig.exports([disk("vda", path)])
    await storage.present(exports, rig.initiator)
    async with watched(storage):
        hidden = path.rename(path.with_suffix(".hidden"))
        pid = rig.pids()["qsd"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: "does not come back" in caplog.text, 3, "the failure is logged")
        assert "one.raw does not exist" in caplog.text
        hidden.rename(path)
        host_disk = await rig.attach_soon(exports, "vda", 5)
        assert await host_disk.read(0, 4096) == PATTERN
        await host_disk.close()


async def test_a_first_present_that_failed_is_tried_until_it_is_met(
    rig: Rig, storage: HostStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """As at recovery: the pool is not mounted yet, and the host runs."""
    path = rig.pool / "late.raw"
    exports = rig.exports([disk("vda", path)])
    async with watched(storage):
        await refusal(storage, rig, [disk("vda", path)])
        assert await storage.status() == (), "what is not visible is not told"
        await until(lambda: "late.raw does not exist" in caplog.text, 3, "a further failure is logged")
        rig.raw("late.raw")
        await (await rig.attach_soon(exports, "vda", 5)).close()
        pid = rig.pids()[rig.data_path[-1]]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: rig.pids()[rig.data_path[-1]] not in (None, pid), 5, "it is watched over")
        await (await rig.attach_soon(exports, "vda", 5)).close()
        await refusal(storage, rig, [disk("vda", rig.pool / "never.raw")])
        await storage.withdraw()
        await asyncio.sleep(0.5)
        assert set(rig.pids().values()) == {None}, "withdrawn is withdrawn"


async def test_a_successor_whose_present_failed_watches_over_what_lives(
    rig: Rig, storage: HostStorage
) -> None:
    """The former agent's processes go on; the new one could not look at the volume just now."""
    path = rig.raw("one.raw")
    exports = rig.exports([disk("vda", path)])
    await rig.driver().present(exports, rig.initiator)
    hidden = path.rename(path.with_suffix(".hidden"))
    async with watched(storage):
        await refusal(storage, rig, [disk("vda", path)])
        hidden.rename(path)
        async with asyncio.timeout(5):
            while not await storage.status():  # noqa: ASYNC110 (a status is asked for, not told)
                await asyncio.sleep(0.01)
        pid = rig.pids()["qsd"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: rig.pids()["qsd"] not in (None, pid), 5, "a process that died later stays dead")


@pytest.mark.root
async def test_a_full_pool_fails_the_write_and_nothing_else(rig: Rig, storage: HostStorage) -> None:
    with small_file_system(rig.pool):
        exports = rig.exports([disk("vda", rig.raw("thin.raw", 8 * MIB))])
        await storage.present(exports, rig.initiator)
        host_disk = await rig.attach(exports, "vda")
        await host_disk.write(0, PATTERN)
        with pytest.raises(OSError):
            for offset in range(MIB, 8 * MIB, MIB // 4):
                await host_disk.write(offset, b"x" * (MIB // 4))
        assert await host_disk.read(0, 4096) == PATTERN, "what was there is still there"
        await host_disk.close()
        await storage.withdraw()


async def test_status_names_the_exports_and_never_invents_a_number(rig: Rig, storage: HostStorage) -> None:
    exports = rig.exports([disk("vda", rig.raw("one.raw")), disk("vdb", rig.raw("two.raw"))])
    await storage.present(exports, rig.initiator)
    host_disk = await rig.attach(exports, "vda")
    await host_disk.write(0, PATTERN)
    await host_disk.read(0, 4096)
    await host_disk.flush()
    one, two = await storage.status()
    assert (one.target, two.target) == ("vda", "vdb") and one.transport is rig.transport
    assert one.read_bytes is None or one.read_bytes >= 4096
    assert one.write_bytes is None or one.write_bytes >= 4096
    assert one.read_bytes is None or two.write_bytes == 0
    await host_disk.close()


STEPS = 12


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_after_any_history_exactly_what_was_last_asked_for_is_there(rig: Rig, seed: int) -> None:
    """Disks asked for at random, processes and agents dying at random: only the last wish counts."""
    chance = random.Random(seed)
    disks = [
        disk("vda", await rig.qcow2("top.qcow2", rig.raw("base.raw")), QCOW2),
        disk("vdb", rig.raw("b.raw")),
        disk("vdc", rig.raw("c.raw"), readonly=True),
    ]
    exports = rig.exports(disks)
    storage = rig.driver()
    for step in range(STEPS):
        pids = [pid for pid in rig.pids().values() if pid is not None]
        if pids and chance.random() < 0.5:
            os.kill(chance.choice(pids), signal.SIGKILL)
        if chance.random() < 0.3:
            storage = rig.driver()
        wanted = chance.sample(exports, chance.randint(0, len(exports)))
        await storage.present(wanted, rig.initiator)
        for export in exports:
            if export in wanted:
                await (await rig.attach(exports, export.disk.target)).close()
            else:
                with pytest.raises(OSError):
                    await rig.attach(exports, export.disk.target)
        assert (set(rig.pids().values()) == {None}) == (not wanted), f"step {step}"
    await storage.withdraw()
    assert rig.remains() == [] and not [*rig.run.iterdir()]


@pytest.fixture
async def nvme() -> AsyncIterator[NvmeTcpRig]:
    with short_directory() as place:
        rig = NvmeTcpRig(place)
        yield rig
        await rig.driver().withdraw()


async def test_io_goes_on_over_a_dead_block_engine(nvme: NvmeTcpRig) -> None:
    """The target holds what a host asks for meanwhile; the host notices a pause and nothing else."""
    storage = nvme.driver()
    exports = nvme.exports([disk("vda", await nvme.qcow2("top.qcow2", nvme.raw("base.raw")), QCOW2)])
    await storage.present(exports, nvme.initiator)
    host_disk = await nvme.attach(exports, "vda")
    async with watched(storage):
        for _ in range(3):
            async with busy(host_disk):
                pid = nvme.pids()["qsd"]
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await until(lambda old=pid: nvme.pids()["qsd"] not in (None, old), 3, "it comes back")  # type: ignore[misc]
    await host_disk.close()


async def test_a_raw_volume_does_not_even_pause_and_is_locked_again(nvme: NvmeTcpRig) -> None:
    storage, volume = nvme.driver(), disk("vda", nvme.raw("one.raw"))
    exports = nvme.exports([volume])
    await storage.present(exports, nvme.initiator)
    host_disk = await nvme.attach(exports, "vda")
    async with watched(storage), busy(host_disk):
        pid = nvme.pids()["qsd"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: nvme.pids()["qsd"] not in (None, pid), 3, "it comes back")
        await until((nvme.run / "nbd.sock").exists, 3, "it has the volume open")
        other = NvmeTcpRig(nvme.place, "metal-2")
        neighbour = other.driver()
        assert (await refusal(neighbour, other, [volume])).kind is Kind.WRONG_STATE
        await neighbour.withdraw()
    await host_disk.close()


async def test_only_the_hosts_own_initiator_may_connect(nvme: NvmeTcpRig) -> None:
    exports = nvme.exports([disk("vda", nvme.raw("one.raw"))])
    await nvme.driver().present(exports, nvme.initiator)
    stranger = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000000"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(nvme.attach_as, exports[0], stranger, exports)
    await (await nvme.attach(exports, "vda")).close()


async def test_counters_of_a_namespace(nvme: NvmeTcpRig) -> None:
    storage = nvme.driver()
    exports = nvme.exports([disk("vda", nvme.raw("one.raw")), disk("vdb", nvme.raw("two.raw"))])
    await storage.present(exports, nvme.initiator)
    before, _ = await storage.status()
    assert (before.connected, before.read_ops, before.first_read) == (False, 0, None)
    host_disk = await nvme.attach(exports, "vda")
    await host_disk.write(0, PATTERN)
    await host_disk.read(0, 4096)
    await host_disk.read(0, 512)
    await host_disk.flush()
    one, two = await storage.status()
    assert (one.read_ops, one.read_bytes, one.write_ops, one.write_bytes, one.flush_ops) == (
        2,
        4608,
        1,
        4096,
        1,
    )
    assert one.connected and one.first_read is not None
    assert (two.read_ops, two.write_ops, two.first_read) == (0, 0, None)
    await host_disk.close()


async def test_a_disk_that_comes_does_not_change_the_controller_of_a_busy_one(nvme: NvmeTcpRig) -> None:
    """A controller has one serial, the first disk's; a new first disk must not end the association."""
    storage = nvme.driver()
    both = nvme.exports([disk("vda", nvme.raw("one.raw")), disk("vdb", nvme.raw("two.raw"))])
    await storage.present(both[1:], nvme.initiator)
    host_disk = await nvme.attach(both[1:], "vdb")
    async with busy(host_disk):
        await storage.present(both, nvme.initiator)
        await nvme.driver().present(both, nvme.initiator)
    await host_disk.close()


async def test_a_taken_port_is_told(nvme: NvmeTcpRig) -> None:
    storage, port = nvme.driver(), nvme.ports[0]
    exports = nvme.exports([disk("vda", nvme.raw("one.raw"))])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(NicagentError) as caught:
        await storage.present(exports, nvme.initiator)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert f"127.0.0.1:{port}" in str(caught.value) and "taken" in str(caught.value)
    await storage.present(exports, nvme.initiator)
    await (await nvme.attach(exports, "vda")).close()
