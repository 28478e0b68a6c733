"""What must survive the agent: SQLite in WAL mode with `synchronous=FULL`, one writer, a versioned schema.

Records are JSON of frozen dataclasses; a column exists only where the database itself has to look (keys,
uniqueness). All calls run on one thread of their own: an fsync on a tired SD card takes 100 ms, and the event
loop answers libvirt meanwhile.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

import msgspec

from nicagent.errors import Kind, NicagentError
from nicagent.model import (
    Cause,
    DisplayBinding,
    Domain,
    DomainEvent,
    Export,
    ExportIdentity,
    HostState,
    Initiator,
    PortBinding,
)
from nicagent.reserve import Reserve, is_full

log = logging.getLogger("nicagent.store")

T = TypeVar("T")

# Version n is reached from n - 1 by running MIGRATIONS[n - 1]. Released entries are never edited.
MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE domain (uuid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL) STRICT;
    CREATE TABLE host (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE initiator (host TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE identity (
        domain TEXT NOT NULL, target TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (domain, target)
    ) STRICT;
    CREATE TABLE lease (
        segment TEXT NOT NULL, ipv4 TEXT NOT NULL, domain TEXT NOT NULL, port TEXT NOT NULL,
        PRIMARY KEY (segment, ipv4), UNIQUE (domain, port)
    ) STRICT;
    """,
    """
    CREATE TABLE object (
        kind TEXT NOT NULL, uuid TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (kind, uuid), UNIQUE (kind, name)
    ) STRICT;
    """,
)


@dataclass(frozen=True)
class Run:
    """A domain on a host, from the intent to start it until the host is free again."""

    domain: Domain  # as it was defined at the start
    id: int  # libvirt's domain id of this run
    bindings: tuple[PortBinding, ...] = ()
    exports: tuple[Export, ...] = ()
    ending: DomainEvent | None = None  # how it ends, once that is decided
    failure: str = ""  # why, when the ending is a failure
    display: DisplayBinding | None = None  # where its screen is shown


@dataclass(frozen=True)
class HostRecord:
    """A host's place in the lifecycle, as it must survive."""

    name: str
    state: HostState = HostState.FREE
    reason: str = ""
    cause: Cause = field(default_factory=lambda: Cause("nicagent", "first start"))
    since: float = 0.0
    run: Run | None = None
    marks: dict[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def if_there_is_room(what: str) -> Iterator[None]:
    """For a write at the start of an agent that the next start comes to again: a full disk must not keep it
    from watching over running hosts.
    """
    try:
        yield
    except NicagentError as e:
        if e.kind is not Kind.NO_SPACE:
            raise
        log.error("%s cannot be noted: %s", what, e)


class Store:
    """The database of one agent. Open it once; a second agent on the same file is refused."""

    def __init__(
        self, connection: sqlite3.Connection, reserve: Reserve, thread: ThreadPoolExecutor, path: Path
    ) -> None:
        self._db = connection
        self._reserve = reserve
        self._thread = thread
        self._path = path

    @classmethod
    async def open(cls, path: Path) -> Store:
        """Open or create, and migrate. Raises UNAVAILABLE: locked, from a newer version, broken."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        reserve = Reserve(path.with_name(f"{path.name}-reserve"))
        await asyncio.get_running_loop().run_in_executor(thread, reserve.keep)
        return cls(connection, reserve, thread, path)

    async def close(self) -> None:
        """Close the database; every acknowledged write is already on disk."""
        await self._do(lambda db: db.close())
        self._thread.shutdown()

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def guarded() -> T:
            try:
                return work(self._db)
            except sqlite3.IntegrityError:
                raise  # a constraint: the caller knows what it means
            except sqlite3.DatabaseError as e:
                raise _readable(e, self._path) from None

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)

    async def _change(self, work: Callable[[sqlite3.Connection], T], *, must: bool = False) -> T:
        """Like `_do`, for work that writes. `must`: on a full disk the room that is kept may be used; all
        else waits until that is kept again."""

        def change(db: sqlite3.Connection) -> T:
            reserve = self._reserve
            if not must and reserve.missing and not reserve.keep():
                raise _full(self._path)
            try:
                result = work(db)
            except sqlite3.OperationalError as e:
                if not must or not _wants_room(e, self._path):
                    raise
                reserve.lend()
                result = work(db)
            if reserve.missing:
                with contextlib.suppress(sqlite3.OperationalError):
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the journal takes no more than it needs
                reserve.keep_if_plenty()
            return result

        return await self._do(change)

    async def _write(self, sql: str, *values: object, must: bool = False) -> None:
        def work(db: sqlite3.Connection) -> None:
            with db:
                db.execute(sql, values)

        await self._change(work, must=must)

    # ---- domains

    async def domains(self) -> list[Domain]:
        """Every persistent domain."""
        rows = await self._do(lambda db: db.execute("SELECT body FROM domain").fetchall())
        return [msgspec.json.decode(body, type=Domain) for (body,) in rows]

    async def put_domain(self, domain: Domain) -> None:
        """Add or replace a domain. Raises EXISTS when another one has its name."""
        try:
            await self._write(
                "INSERT INTO domain VALUES (?1, ?2, ?3) "
                "ON CONFLICT (uuid) DO UPDATE SET name = ?2, body = ?3",
                domain.uuid,
                domain.name,
                _json(domain),
            )
        except sqlite3.IntegrityError:
            raise NicagentError(
                Kind.EXISTS, f"domain '{domain.name}' already exists with another uuid"
            ) from None

    async def drop_domain(self, uuid: str) -> None:
        """Forget a definition. What was derived for it goes by `forget_derived`, once nothing runs by it."""
        await self._write("DELETE FROM domain WHERE uuid = ?", uuid)

    async def forget_derived(self, known: Collection[str]) -> None:
        """Forget identities and leases of every domain that is not among `known`."""

        def work(db: sqlite3.Connection) -> None:
            keep = (msgspec.json.encode(sorted(known)).decode(),)
            with db:
                for table in ("identity", "lease"):
                    # Not interpolated input: the two names above.
                    statement = f"DELETE FROM {table} WHERE domain NOT IN (SELECT value FROM json_each(?))"  # noqa: S608
                    db.execute(statement, keep)

        await self._change(work)

    # ---- hosts

    async def hosts(self) -> dict[str, HostRecord]:
        """Every host that was ever recorded."""
        rows = await self._do(lambda db: db.execute("SELECT body FROM host").fetchall())
        records = [msgspec.json.decode(body, type=HostRecord) for (body,) in rows]
        return {record.name: record for record in records}

    async def put_host(self, record: HostRecord, *, must: bool = False) -> None:
        """Durable when it returns: this is the "intent first" of every transition. `must`: it takes power
        away, which has to be possible on a full disk."""
        await self._write("INSERT OR REPLACE INTO host VALUES (?, ?)", record.name, _json(record), must=must)

    # ---- identities: derived once, stored

    async def initiator(self, host: str, derive: Callable[[], Initiator]) -> Initiator:
        """The host's initiator; derived and stored at the first call."""

        row = await self._do(
            lambda db: db.execute("SELECT body FROM initiator WHERE host = ?", (host,)).fetchone()
        )
        if row is not None:
            return msgspec.json.decode(row[0], type=Initiator)
        value = derive()
        await self._write("INSERT INTO initiator VALUES (?, ?)", host, _json(value))
        return value

    async def identities(self, domain: str) -> dict[str, ExportIdentity]:
        """The identities of a domain's disks, by target."""
        rows = await self._do(
            lambda db: db.execute("SELECT target, body FROM identity WHERE domain = ?", (domain,)).fetchall()
        )
        return {target: msgspec.json.decode(body, type=ExportIdentity) for target, body in rows}

    async def put_identities(self, domain: str, exports: Sequence[Export]) -> None:
        """Keep the identities that a start derived; those that are there already never change."""

        def work(db: sqlite3.Connection) -> None:
            with db:
                db.executemany(
                    "INSERT OR IGNORE INTO identity VALUES (?, ?, ?)",
                    [(domain, export.disk.target, _json(export.identity)) for export in exports],
                )

        await self._change(work)

    # ---- addresses

    async def lease(
        self, segment: str, domain: str, port: str, first: str, last: str, avoid: Collection[str] = ()
    ) -> str:
        """The address of a port on a segment: the one it had, else the first free one of the range; none of
        `avoid`, which are kept for others.

        Raises EXISTS when the one that is asked for is another's, NO_SPACE when all of several are taken.
        """
        low, high = int(IPv4Address(first)), int(IPv4Address(last))
        kept = {int(IPv4Address(address)) for address in avoid}

        def work(db: sqlite3.Connection) -> str:
            held = db.execute(
                "SELECT ipv4 FROM lease WHERE domain = ? AND port = ? AND segment = ?",
                (domain, port, segment),
            ).fetchone()
            if held is not None and low <= (value := int(IPv4Address(held[0]))) <= high and value not in kept:
                return str(held[0])
            rows = db.execute("SELECT ipv4, domain FROM lease WHERE segment = ?", (segment,))
            taken = {int(IPv4Address(address)): holder for address, holder in rows}
            free = next((v for v in range(low, high + 1) if v not in taken and v not in kept), None)
            if free is None and low == high:
                raise NicagentError(
                    Kind.EXISTS,
                    f"{first} on segment {segment} is the address of domain {taken[low]}",
                    "take another, or leave it to the agent",
                )
            if free is None:
                raise NicagentError(
                    Kind.NO_SPACE,
                    f"segment {segment} has no free address for {port}",
                    "widen its range in the config, or undefine domains that are not needed",
                )
            address = str(IPv4Address(free))
            with db:
                db.execute("DELETE FROM lease WHERE domain = ? AND port = ?", (domain, port))
                db.execute("INSERT INTO lease VALUES (?, ?, ?, ?)", (segment, address, domain, port))
            return address

        return await self._change(work)

    # ---- objects that clients define: pools, segments, filters, secrets, snapshots

    async def objects(self, kind: str, type: builtins.type[T]) -> list[T]:
        """Every object of a kind, by name."""
        rows = await self._do(
            lambda db: db.execute("SELECT body FROM object WHERE kind = ? ORDER BY name", (kind,)).fetchall()
        )
        return [msgspec.json.decode(body, type=type) for (body,) in rows]

    async def put_object(self, kind: str, uuid: str, name: str, body: object) -> None:
        """Add or replace an object (a dataclass of JSON's types). Raises EXISTS when another has its name."""
        try:
            await self._write(
                "INSERT INTO object VALUES (?1, ?2, ?3, ?4) "
                "ON CONFLICT (kind, uuid) DO UPDATE SET name = ?3, body = ?4",
                kind,
                uuid,
                name,
                _json(body),
            )
        except sqlite3.IntegrityError:
            raise NicagentError(Kind.EXISTS, f"{kind} '{name}' already exists with another uuid") from None

    async def drop_object(self, kind: str, uuid: str) -> None:
        """Forget an object, if it is there."""
        await self._write("DELETE FROM object WHERE kind = ? AND uuid = ?", kind, uuid)

    # ---- small facts

    async def next_domain_id(self) -> int:
        """libvirt's domain ids grow and are never used twice."""

        def work(db: sqlite3.Connection) -> int:
            with db:
                row = db.execute(
                    "INSERT INTO meta VALUES ('domain-id', '1') "
                    "ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) "
                    "RETURNING value"
                ).fetchone()
            return int(row[0])

        return await self._change(work)

    async def meta(self, key: str) -> str | None:
        """A small fact, if it is known."""
        row = await self._do(lambda db: db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone())
        return None if row is None else str(row[0])

    async def put_meta(self, key: str, value: str) -> None:
        """Remember a small fact."""
        await self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _connect(path: Path) -> sqlite3.Connection:
    with contextlib.ExitStack() as on_failure:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Keys are in it. SQLite gives its journals the rights that the file itself has.
            # (One that is there is not opened here: closing it would drop the locks this process has on it.)
            if path.exists():
                path.chmod(0o600)
            else:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(path, timeout=2.0, check_same_thread=False)
            on_failure.callback(db.close)
            db.execute("PRAGMA locking_mode = EXCLUSIVE")  # one writer: a second agent fails here
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")  # a key that is forgotten is overwritten
            _migrate(db, path)
        except (OSError, sqlite3.DatabaseError) as e:
            raise _readable(e, path) from None
        on_failure.pop_all()
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"{path} was written by a newer nicagent (schema {version}, this one knows {len(MIGRATIONS)})",
            "upgrade nicagent, or point agent.state_dir elsewhere",
        )
    for number in range(version, len(MIGRATIONS)):
        # One transaction a version, its number included: a crash leaves the old version whole.
        db.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")
    db.execute("BEGIN IMMEDIATE")  # takes the lock now, so that a second agent is told at once
    db.commit()


def _full(path: Path) -> NicagentError:
    return NicagentError(
        Kind.NO_SPACE,
        f"the disk that holds the state {path} is full",
        "free some space, then ask again; nothing was lost",
    )


def _wants_room(error: Exception, path: Path) -> bool:
    """A full disk has a code of SQLite's own; a spent quota is an error of input and output to it."""
    code = getattr(error, "sqlite_errorcode", None)
    return code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR_WRITE and is_full(path.parent))


def _readable(error: Exception, path: Path) -> NicagentError:
    text = str(error)
    if "locked" in text:
        return NicagentError(
            Kind.UNAVAILABLE, f"the state {path} is in use by another nicagent", "stop that one first"
        )
    if _wants_room(error, path):
        return _full(path)
    return NicagentError(
        Kind.UNAVAILABLE, f"the state {path} cannot be used: {text}", "check agent.state_dir and its disk"
    )
