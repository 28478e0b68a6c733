"""What the store keeps, through whatever happens to the process, to its disk and to its version."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nicagent import store as store_module
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, Disk, DomainEvent, HostState, Initiator, PortBinding, VolumeFormat
from nicagent.storage import identity
from nicagent.store import MIGRATIONS, HostRecord, Run, Store
from tests.rig import domain

REPO = Path(__file__).parent.parent
VM = domain("vm")
EXPORTS = identity.exports(VM.uuid, "metal-1", VM.disks, {})


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "state" / "nicagent.db"


async def test_what_was_written_is_read_again_bit_equal(db: Path) -> None:
    binding = PortBinding(VM.ports[0], "nic1", "52:54:00:00:00:01", "10.100.0.10", "vm")
    record = HostRecord(
        "metal-1",
        HostState.STOPPING,
        "stop asked",
        Cause("virsh", "destroy"),
        1234.5,
        Run(VM, 7, (binding,), EXPORTS, DomainEvent.DESTROYED, "it was on fire"),
        {"power-good": 1.25},
    )
    store = await Store.open(db)
    await store.put_domain(VM)
    await store.put_host(record)
    await store.put_identities(VM.uuid, EXPORTS)
    await store.close()
    store = await Store.open(db)
    try:
        assert await store.domains() == [VM]
        assert await store.hosts() == {"metal-1": record}
        assert await store.identities(VM.uuid) == {each.disk.target: each.identity for each in EXPORTS}
    finally:
        await store.close()


async def test_an_identity_never_changes_once_it_is_stored(db: Path) -> None:
    store = await Store.open(db)
    try:
        await store.put_identities(VM.uuid, EXPORTS)
        other = identity.exports(VM.uuid, "metal-2", (Disk("vda", "/x", VolumeFormat.RAW, serial="NEW"),), {})
        await store.put_identities(VM.uuid, other)
        assert (await store.identities(VM.uuid))["vda"] == EXPORTS[0].identity
        first = Initiator("nqn.2014-08.org.example:a", "a")
        assert await store.initiator("metal-1", lambda: first) == first
        assert await store.initiator("metal-1", lambda: Initiator("other", "b")) == first
    finally:
        await store.close()


async def test_what_was_derived_goes_with_the_domains_that_are_gone(db: Path) -> None:
    store = await Store.open(db)
    try:
        for uuid in ("kept", "gone"):
            await store.put_identities(uuid, EXPORTS)
            await store.lease("blue", uuid, "port0", "10.0.0.1", "10.0.0.2")
        await store.forget_derived(["kept"])
        assert await store.identities("kept")
        assert not await store.identities("gone")
        assert await store.lease("blue", "kept", "port0", "10.0.0.1", "10.0.0.2") == "10.0.0.1"
        assert await store.lease("blue", "new", "port0", "10.0.0.1", "10.0.0.2") == "10.0.0.2"
        with pytest.raises(NicagentError, match="segment blue has no free address for port0"):
            await store.lease("blue", "one too many", "port0", "10.0.0.1", "10.0.0.2")
    finally:
        await store.close()


async def test_a_lease_moves_with_the_range_of_its_segment(db: Path) -> None:
    store = await Store.open(db)
    try:
        assert await store.lease("blue", "a", "port0", "10.0.0.1", "10.0.0.1") == "10.0.0.1"
        assert await store.lease("blue", "a", "port0", "10.9.0.1", "10.9.0.1") == "10.9.0.1"
        assert await store.lease("red", "a", "port0", "10.9.0.1", "10.9.0.1") == "10.9.0.1", (
            "segments are apart"
        )
        assert await store.lease("blue", "b", "port0", "10.0.0.1", "10.0.0.1") == "10.0.0.1", (
            "the old one is free"
        )
    finally:
        await store.close()


async def test_a_name_belongs_to_one_uuid(db: Path) -> None:
    store = await Store.open(db)
    try:
        await store.put_domain(VM)
        await store.put_domain(VM)
        with pytest.raises(NicagentError) as caught:
            await store.put_domain(replace(domain("other"), name="vm"))
        assert caught.value.kind is Kind.EXISTS
        assert await store.domains() == [VM]
    finally:
        await store.close()


# ---- death


def test_every_acknowledged_write_survives_sigkill(db: Path) -> None:
    """A writer is killed at random moments, eight lives long; what it had said was written, is."""
    clock = random.Random(7)
    known_id = 0
    for life in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.store_writer", str(db)], cwd=REPO, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(clock.uniform(0.0, 0.12))
        writer.kill()
        said += writer.stdout.read().splitlines()
        writer.wait()
        whole = [line.split() for line in said if len(line.split()) == 2]
        number, identifier = int(whole[-1][0]), int(whole[-1][1])
        record, next_id = asyncio.run(_what_is_there(db))
        assert int(record.reason) >= number, f"life {life}: write {number} was acknowledged and lost"
        assert next_id > identifier, f"life {life}: domain id {identifier} would be given twice"
        assert identifier > known_id
        known_id = next_id


async def _what_is_there(db: Path) -> tuple[HostRecord, int]:
    store = await Store.open(db)
    try:
        return (await store.hosts())["metal-1"], await store.next_domain_id()
    finally:
        await store.close()


async def test_writes_are_fsynced_and_the_journal_is_a_wal(db: Path) -> None:
    """SIGKILL shows nothing of a power cut: that needs these two, and they are settings."""
    store = await Store.open(db)
    try:
        assert await store._do(lambda c: c.execute("PRAGMA synchronous").fetchone()) == (2,), "FULL"
        assert await store._do(lambda c: c.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
    finally:
        await store.close()


# ---- versions


def at_version(db: Path, version: int) -> None:
    """A database as the release with that schema left it."""
    db.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(db)
    for number in range(version):
        connection.executescript(MIGRATIONS[number])
    connection.execute(f"PRAGMA user_version = {version}")
    if version >= 1:
        connection.execute("INSERT INTO domain VALUES (?, ?, ?)", (VM.uuid, VM.name, store_module._json(VM)))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
async def test_every_released_schema_is_migrated_with_what_is_in_it(db: Path, version: int) -> None:
    at_version(db, version)
    store = await Store.open(db)
    try:
        assert await store.domains() == ([VM] if version else [])
        assert await store._do(lambda c: c.execute("PRAGMA user_version").fetchone()) == (len(MIGRATIONS),)
    finally:
        await store.close()


async def test_a_migration_that_fails_leaves_the_old_version_whole(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version(db, len(MIGRATIONS))
    broken = "CREATE TABLE half (x TEXT) STRICT; DROP TABLE nothing_of_this_name;"
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, broken))
        with pytest.raises(NicagentError, match="cannot be used"):
            await Store.open(db)
    store = await Store.open(db)
    try:
        assert await store.domains() == [VM]
        tables = await store._do(lambda c: c.execute("SELECT name FROM sqlite_master").fetchall())
        assert ("half",) not in tables
    finally:
        await store.close()


async def test_a_newer_schema_is_refused_and_not_touched(db: Path) -> None:
    at_version(db, len(MIGRATIONS))
    connection = sqlite3.connect(db)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(NicagentError, match="was written by a newer nicagent") as caught:
        await Store.open(db)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert "upgrade" in caught.value.hint
    assert sqlite3.connect(db).execute("PRAGMA user_version").fetchone() == (99,)


# ---- others, and other people's files


async def test_a_second_agent_is_told_that_there_is_a_first(db: Path) -> None:
    store = await Store.open(db)
    try:
        with pytest.raises(NicagentError, match="is in use by another nicagent; stop that one first"):
            await Store.open(db)
        await store.put_domain(VM)
    finally:
        await store.close()
    second = await Store.open(db)
    assert await second.domains() == [VM]
    await second.close()


async def test_a_file_that_is_no_database_is_refused(db: Path) -> None:
    db.parent.mkdir()
    db.write_bytes(b"[this is not a database]" * 100)
    with pytest.raises(NicagentError, match="cannot be used: file is not a database"):
        await Store.open(db)
    assert db.read_bytes().startswith(b"[this"), "it is somebody's file"


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NicagentError, match=f"{tmp_path}/file/nicagent.db"):
        await Store.open(tmp_path / "file" / "nicagent.db")


FULL_DISK = """
import asyncio, os, signal, sys
from pathlib import Path
from nicagent import reserve
from nicagent.errors import Kind, NicagentError
from nicagent.model import HostState
from nicagent.store import HostRecord, Store

HOSTS = [f"host-{number}" for number in range(16)]

async def refused(store):
    try:
        await store.put_meta("key", "value")
    except NicagentError as e:
        assert e.kind is Kind.NO_SPACE, e
        return str(e)
    raise SystemExit("something was written on a full disk")

async def first(where):
    store = await Store.open(where / "nicagent.db")
    kept = where / "nicagent.db-reserve"
    assert kept.stat().st_blocks * 512 >= reserve.SIZE, "no room is kept"
    for name in HOSTS:
        await store.put_host(HostRecord(name, HostState.RUNNING, "x" * 10_000))
    fill(where / "others-first")
    print(await refused(store), flush=True)  # before it is killed
    assert len(await store.hosts()) == len(HOSTS), "reading on a full disk"
    for name in HOSTS:  # the stop of every host
        for state in (HostState.STOPPING, HostState.CLEANING, HostState.FREE):
            await store.put_host(HostRecord(name, state, "x" * 10_000), must=True)
    assert not kept.exists()
    fill(where / "others-second")
    await refused(store)  # until there is room to keep again
    os.kill(os.getpid(), signal.SIGKILL)

async def second(where):
    store = await Store.open(where / "nicagent.db")
    assert {each.state for each in (await store.hosts()).values()} == {HostState.FREE}, "a stop was lost"
    await refused(store)
    for path in where.glob("others-*"):
        path.unlink()
    await store.put_meta("key", "value")
    assert (where / "nicagent.db-reserve").stat().st_blocks * 512 >= reserve.SIZE, "no room is kept again"
    await store.close()

def fill(path):
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

asyncio.run({"1": first, "2": second}[sys.argv[2]](Path(sys.argv[1])))
"""


#: What makes a full tmpfs say what a file system with a quota says, since not every kernel has one of those.
QUOTA = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <unistd.h>
#define REAL(name) ((typeof(name) *)dlsym(RTLD_NEXT, #name))
#define TOLD(error) ((error) == ENOSPC ? EDQUOT : (error))
extern int posix_fallocate64(int, off64_t, off64_t);

ssize_t write(int fd, const void *data, size_t size)
{ ssize_t done = REAL(write)(fd, data, size); if (done < 0) errno = TOLD(errno); return done; }

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{ ssize_t done = REAL(pwrite64)(fd, data, size, at); if (done < 0) errno = TOLD(errno); return done; }

int posix_fallocate64(int fd, off64_t at, off64_t size)
{ return TOLD(REAL(posix_fallocate64)(fd, at, size)); }

int posix_fallocate(int fd, off_t at, off_t size)
{ return TOLD(REAL(posix_fallocate64)(fd, at, size)); }
"""


@pytest.mark.root
@pytest.mark.parametrize("by_quota", [False, True], ids=["full", "quota-spent"])
def test_a_full_disk_is_told_loses_nothing_and_lets_power_be_taken_away(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, by_quota: bool
) -> None:
    """On a small tmpfs in a mount namespace of its own; the agent is killed in between."""
    run = f'{sys.executable} -c "$0" {tmp_path}'
    if by_quota:
        if shutil.which("cc") is None:
            pytest.skip("no C compiler")
        quota = tmp_path_factory.mktemp("quota") / "quota.so"
        argv = ["cc", "-x", "c", "-shared", "-fPIC", "-o", str(quota), "-", "-ldl"]
        subprocess.run(argv, input=QUOTA, text=True, check=True)
        run = f"LD_PRELOAD={quota} {run}"
    mount = f"mount -t tmpfs -o size=4m tmpfs {tmp_path} && {{ {run} 1; test $? = 137; }} && {run} 2"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, FULL_DISK], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "is full" in done.stdout
    assert "nothing was lost" in done.stdout
