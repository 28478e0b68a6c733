"""A directory pool: whole volumes or none, sizes told right, a full disk told clearly."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nicagent.errors import Kind, NicagentError
from nicagent.model import Preallocation, VolumeFormat
from nicagent.storage.pool import Backing, DirectoryPool

MIB = 1 << 20


@pytest.fixture
def pool(tmp_path: Path) -> DirectoryPool:
    return DirectoryPool("default", tmp_path, [tmp_path])


@pytest.fixture
def small(tmp_path: Path) -> Iterator[DirectoryPool]:
    """A pool on a file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=2m", "nicagent-test", str(place)]
    subprocess.run(argv, check=True)
    yield DirectoryPool("small", place, [place])
    subprocess.run(["umount", str(place)], check=True)


async def failing(work: object) -> NicagentError:
    with pytest.raises(NicagentError) as caught:
        await work  # type: ignore[misc]
    assert caught.value.hint, "an error says what to do next"
    return caught.value


async def test_a_raw_volume_is_sparse_unless_asked_otherwise(pool: DirectoryPool) -> None:
    thin = await pool.create("thin", 8 * MIB)
    thick = await pool.create("thick.img", MIB, preallocate=Preallocation.ALL)
    assert (thin.format, thin.capacity, thin.allocation) == (VolumeFormat.RAW, 8 * MIB, 0)
    assert (thick.capacity, thick.allocation) == (MIB, MIB)
    assert [volume.name for volume in pool.list()] == ["thick.img", "thin"]


async def test_a_qcow2_volume_with_its_tables_alone_keeps_the_disks_room(pool: DirectoryPool) -> None:
    """virt-install asks for it: a disk of 20 GiB must not fill the pool."""
    made = await pool.create("tables.qcow2", 64 * MIB, preallocate=Preallocation.METADATA)
    assert made.capacity == 64 * MIB and made.allocation < MIB
    full = await pool.create("full.qcow2", 8 * MIB, preallocate=Preallocation.ALL)
    assert full.allocation >= 8 * MIB


async def test_a_qcow2_volume_stands_on_its_backing_file(pool: DirectoryPool) -> None:
    base = await pool.create("base", 4 * MIB)
    overlay = await pool.create("over.qcow2", backing=Backing(base.path, base.format))
    stands_on = Backing(base.path.resolve(), VolumeFormat.RAW)
    assert (overlay.format, overlay.capacity, overlay.backing) == (VolumeFormat.QCOW2, 4 * MIB, stands_on)
    assert overlay.allocation < MIB
    assert pool.look_up("over.qcow2") == overlay


async def test_of_two_creators_one_wins_and_nothing_is_overwritten(pool: DirectoryPool) -> None:
    results = await asyncio.gather(
        *(pool.create("disk", size * MIB) for size in (1, 2, 3)), return_exceptions=True
    )
    won = [result for result in results if not isinstance(result, BaseException)]
    lost = [result.kind for result in results if isinstance(result, NicagentError)]
    assert len(won) == 1 and lost == [Kind.EXISTS, Kind.EXISTS]
    assert pool.look_up("disk").capacity == won[0].capacity
    assert [path.name for path in pool.path.iterdir()] == ["disk"], "no partial file may stay"


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "x" * 200, "new\nline"])
async def test_names_that_could_lead_elsewhere_are_refused(pool: DirectoryPool, name: str) -> None:
    assert (await failing(pool.create(name, MIB))).kind is Kind.INVALID
    with pytest.raises(NicagentError):
        pool.delete(name)


@pytest.mark.parametrize("size", [0, -512, 1000, 1 << 63])
async def test_sizes_no_disk_has_are_refused(pool: DirectoryPool, size: int) -> None:
    assert (await failing(pool.create("disk", size))).kind is Kind.INVALID
    assert pool.list() == ()


async def test_a_backing_file_must_lie_in_a_pool(pool: DirectoryPool) -> None:
    error = await failing(
        pool.create("evil.qcow2", MIB, backing=Backing(Path("/etc/passwd"), VolumeFormat.RAW))
    )
    assert error.kind is Kind.DENIED and pool.list() == ()


async def test_only_qcow2_can_have_a_backing_file(pool: DirectoryPool) -> None:
    base = await pool.create("base", MIB)
    error = await failing(pool.create("over", backing=Backing(base.path, base.format)))
    assert error.kind is Kind.INVALID and "over.qcow2" in str(error)


async def test_delete_removes_it_once(pool: DirectoryPool) -> None:
    await pool.create("disk", MIB)
    pool.delete("disk")
    with pytest.raises(NicagentError) as caught:
        pool.delete("disk")
    assert caught.value.kind is Kind.NOT_FOUND


async def test_a_pool_whose_directory_is_gone(tmp_path: Path) -> None:
    pool = DirectoryPool("lost", tmp_path / "lost", [tmp_path])
    for work in (pool.info, pool.list):
        with pytest.raises(NicagentError) as caught:
            work()
        assert caught.value.kind is Kind.NOT_FOUND and "lost" in str(caught.value)


async def test_a_forged_file_does_not_hide_the_others(pool: DirectoryPool) -> None:
    await pool.create("good", MIB)
    (pool.path / "bad.qcow2").write_bytes(b"QFI\xfb" + b"\xff" * 200)
    assert [volume.name for volume in pool.list()] == ["good"]


@pytest.mark.root
@pytest.mark.parametrize("name", ["big", "big.qcow2"])
async def test_a_full_disk_is_told_and_leaves_nothing_half_done(small: DirectoryPool, name: str) -> None:
    error = await failing(small.create(name, 64 * MIB, preallocate=Preallocation.ALL))
    assert error.kind is Kind.NO_SPACE, str(error)
    assert "small" in str(error) and "MiB are free" in str(error)
    assert list(small.path.iterdir()) == []
    assert (await small.create("fits", MIB, preallocate=Preallocation.ALL)).allocation == MIB


@pytest.mark.root
async def test_info_is_that_of_the_file_system(small: DirectoryPool) -> None:
    before = small.info()
    await small.create("disk", MIB, preallocate=Preallocation.ALL)
    after = small.info()
    assert before.capacity == after.capacity == 2 * MIB
    assert before.available - after.available == after.allocation - before.allocation == MIB
