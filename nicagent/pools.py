"""The storage pools of an agent: those of its config, and those that clients define.

A pool of the config is always active and belongs to the config: no client changes it. Pools of clients are
directories below the roots that the config allows; each is durable before it is told of. What is active stays
so when the agent starts again, and after a boot of the board what is marked autostart is.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from nicagent.config import Config
from nicagent.errors import Kind, NicagentError, Thing
from nicagent.model import Cause, VolumeFormat
from nicagent.storage.pool import PARTIAL_PREFIX, WIPING_PREFIX, DirectoryPool, format_of
from nicagent.store import Store, if_there_is_room

log = logging.getLogger("nicagent.pools")

POOL, VOLUME = "pool", "volume-format"  # kinds of objects in the store
BOOT = "pools-boot-id"
POOLS_LIMIT = 1024
BUILT_MODE = 0o711  # of a directory that is made, as libvirt makes them


@dataclass(frozen=True)
class PoolRecord:
    """A pool as it is stored. `configured`: it is one of the config's, and `path` is what it says."""

    uuid: str
    name: str
    path: str
    configured: bool = False
    persistent: bool = True
    active: bool = False
    autostart: bool = False
    mode: int | None = None  # of its directory, when that is built
    owner: int | None = None
    group: int | None = None


@dataclass(frozen=True)
class Declared:
    """A volume whose format is not the one that its name states."""

    pool: str  # UUID
    name: str
    format: VolumeFormat


class PoolChange(StrEnum):
    """What happened to a pool; a face maps it to its own event numbers."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    STOPPED = "stopped"
    CREATED = "created"  # its directory was made
    DELETED = "deleted"
    REFRESHED = "refreshed"


Watcher = Callable[[PoolChange, PoolRecord], None]


class Pools:
    """Records and life of all pools. Raises NOT_FOUND of POOL for an unknown UUID."""

    def __init__(self, config: Config, store: Store) -> None:
        self._configured = {name: pool.path for name, pool in config.pools.items()}
        self._roots = [Path(root) for root in (*config.libvirt.pool_roots, *self._configured.values())]
        self._store = store
        self._owner = ""
        self._records: dict[str, PoolRecord] = {}
        self._formats: dict[str, dict[str, VolumeFormat]] = {}  # pool's UUID → volume → declared format
        self._watchers: list[Watcher] = []
        self._directories: list[Path] = []
        self._paths: dict[str, Path] = {}
        #: Directories from which volumes may come now; it follows what clients define.
        self.directories: Sequence[Path] = self._directories
        #: Every pool's directory by its name; likewise.
        self.paths: Mapping[str, Path] = MappingProxyType(self._paths)

    async def load(self, owner: str, boot_id: str) -> list[Path]:
        """Read the store. `owner` is the agent's own word for itself, unlike any other agent's. Returns what
        a death of the agent has left unfinished in the pools' directories.
        """
        self._owner = owner.replace("-", "")
        stored = {record.name: record for record in await self._store.objects(POOL, PoolRecord)}
        for name, path in self._configured.items():
            known = stored.pop(name, None) or PoolRecord(str(uuid.uuid4()), name, path)
            record = PoolRecord(
                known.uuid, name, path, configured=True, persistent=True, active=True, autostart=True
            )
            if record != known or known.path != path:
                with if_there_is_room(f"pool {name}"):
                    await self._store.put_object(POOL, record.uuid, name, record)
            self._records[record.uuid] = record
        booted = await self._store.meta(BOOT) != boot_id
        for record in stored.values():
            if record.configured or (booted and not record.persistent):
                with if_there_is_room(f"pool {record.name}"):  # it went from the config, or with the boot
                    await self._store.drop_object(POOL, record.uuid)
                continue
            if booted and record.active != record.autostart:
                record = replace(record, active=record.autostart)
                with if_there_is_room(f"pool {record.name}"):
                    await self._store.put_object(POOL, record.uuid, record.name, record)
            self._records[record.uuid] = record
        if booted:
            with if_there_is_room("this boot of the pools"):
                await self._store.put_meta(BOOT, boot_id)
        await self._load_formats()
        self._follow()
        pools = [self.pool(record.uuid) for record in self._records.values()]
        return [
            path
            for pool in pools
            for kind in (PARTIAL_PREFIX, WIPING_PREFIX)
            for path in pool.unfinished(kind)
        ]

    async def _load_formats(self) -> None:
        for declared in await self._store.objects(VOLUME, Declared):
            record = self._records.get(declared.pool)
            directory = Path(record.path) if record else None
            if directory is None or (directory.is_dir() and not (directory / declared.name).exists()):
                with if_there_is_room(f"that volume {declared.name} is gone"):
                    await self._store.drop_object(VOLUME, _key(declared.pool, declared.name))
            else:
                self._formats.setdefault(declared.pool, {})[declared.name] = declared.format

    def _follow(self) -> None:
        self._directories[:] = [Path(record.path) for record in self._records.values() if record.active]
        self._paths.clear()
        self._paths.update((record.name, Path(record.path)) for record in self._records.values())

    # ---- reading

    def records(self) -> list[PoolRecord]:
        """Every pool: the config's first."""
        return list(self._records.values())

    def record(self, uuid: str) -> PoolRecord:
        record = self._records.get(uuid)
        if record is None:
            raise NicagentError(Kind.NOT_FOUND, f"no storage pool with matching uuid '{uuid}'", of=Thing.POOL)
        return record

    def named(self, name: str) -> PoolRecord:
        found = next((record for record in self._records.values() if record.name == name), None)
        if found is None:
            raise NicagentError(Kind.NOT_FOUND, f"no storage pool with matching name '{name}'", of=Thing.POOL)
        return found

    def active(self, uuid: str) -> PoolRecord:
        record = self.record(uuid)
        if not record.active:
            raise NicagentError(Kind.WRONG_STATE, f"storage pool '{record.name}' is not active")
        return record

    def pool(self, uuid: str) -> DirectoryPool:
        """The directory behind a pool."""
        record = self.record(uuid)
        formats = self._formats.setdefault(uuid, {})
        return DirectoryPool(record.name, Path(record.path), self.directories, formats, self._owner)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have `watcher` called with every change. Returns how to end that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def _tell(self, change: PoolChange, record: PoolRecord) -> None:
        for watcher in list(self._watchers):
            watcher(change, record)

    # ---- definitions

    async def define(self, wanted: PoolRecord, cause: Cause) -> PoolRecord:
        """Add or replace a persistent pool; one that is active keeps its directory until it is stopped."""
        self._check(wanted)
        old = self._records.get(wanted.uuid)
        record = replace(wanted, persistent=True)
        if old is not None:
            record = replace(record, active=old.active, autostart=old.autostart)
            if old.active and old.path != record.path:
                raise NicagentError(
                    Kind.WRONG_STATE,
                    f"storage pool '{old.name}' is active in {old.path}",
                    "stop it before you give it another directory",
                )
        await self._put(record)
        log.info("pool %s defined in %s (%s)", record.name, record.path, cause)
        self._tell(PoolChange.DEFINED, record)
        return record

    async def create(self, wanted: PoolRecord, cause: Cause, *, build: bool = False) -> PoolRecord:
        """Start a transient pool, or a defined one by its document."""
        self._check(wanted)
        old = self._records.get(wanted.uuid)
        if old is not None and old.active:
            raise NicagentError(Kind.WRONG_STATE, f"pool is already active as '{old.name}'")
        record = replace(wanted, persistent=old is not None, autostart=bool(old and old.autostart))
        if build:
            _build(record)
        self._usable(record)
        record = replace(record, active=True)
        await self._put(record)
        log.info("pool %s started in %s (%s)", record.name, record.path, cause)
        self._tell(PoolChange.STARTED, record)
        return record

    def _check(self, wanted: PoolRecord) -> None:
        if any(ord(letter) < 32 for letter in wanted.name) or len(wanted.name) > 128:
            raise NicagentError(Kind.INVALID, f"{wanted.name!r} is no name for a pool", "take a plain one")
        self._may_lie(wanted)
        for other in self._records.values():
            if other.name != wanted.name and Path(other.path).resolve() == Path(wanted.path).resolve():
                raise NicagentError(
                    Kind.EXISTS, f"Storage source conflict with pool: '{other.name}'", of=Thing.POOL
                )
        for other in self._records.values():
            if other.name == wanted.name and other.uuid != wanted.uuid:
                raise NicagentError(
                    Kind.EXISTS, f"pool '{wanted.name}' already exists with uuid {other.uuid}", of=Thing.POOL
                )
            if other.uuid == wanted.uuid and other.name != wanted.name:
                raise NicagentError(
                    Kind.EXISTS,
                    f"pool '{other.name}' is already defined with uuid {wanted.uuid}",
                    of=Thing.POOL,
                )
        known = self._records.get(wanted.uuid)
        if known is not None:
            _own(known)
        elif len(self._records) >= POOLS_LIMIT:
            raise NicagentError(
                Kind.NO_SPACE, f"there are {POOLS_LIMIT} pools already", "undefine one that is not needed"
            )

    def _may_lie(self, wanted: PoolRecord) -> None:
        path = Path(wanted.path)
        places = ", ".join(str(root) for root in self._roots) or "none"
        if not path.is_absolute() or ".." in path.parts:
            raise NicagentError(
                Kind.INVALID,
                f"pool {wanted.name}: {path} is no absolute path",
                "give the directory's own path",
            )
        if not any(path.resolve().is_relative_to(root.resolve()) for root in self._roots):
            raise NicagentError(
                Kind.DENIED,
                f"pool {wanted.name}: clients may not have pools in {path} (but below: {places})",
                "choose a directory there, or add one to libvirt.pool_roots in the config",
            )

    def _usable(self, record: PoolRecord) -> None:
        self._may_lie(record)  # a link may have been put in its way
        if not Path(record.path).is_dir():
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"cannot open directory '{record.path}': it is not there",
                "build the pool (virsh pool-build), or mount it",
            )

    async def start(self, uuid: str, cause: Cause, *, build: bool = False) -> None:
        record = self.record(uuid)
        if record.active:
            raise NicagentError(Kind.WRONG_STATE, f"storage pool '{record.name}' is already active")
        if build:
            _build(record)
        self._usable(record)
        await self._put(replace(record, active=True))
        log.info("pool %s started (%s)", record.name, cause)
        self._tell(PoolChange.STARTED, self.record(uuid))

    async def stop(self, uuid: str, cause: Cause) -> None:
        """The volumes stay where they are, and are no longer told. That none of them runs is the caller's to
        know.
        """
        record = _own(self.active(uuid))
        stopped = replace(record, active=False)
        if record.persistent:
            await self._put(stopped)
        else:
            await self._drop(record)
        log.info("pool %s stopped (%s)", record.name, cause)
        self._tell(PoolChange.STOPPED, stopped)

    async def undefine(self, uuid: str, cause: Cause) -> None:
        record = _own(self.record(uuid))
        if record.active:
            raise NicagentError(
                Kind.WRONG_STATE, f"storage pool '{record.name}' is still active", "stop it first"
            )
        await self._drop(record)
        log.info("pool %s undefined (%s)", record.name, cause)
        self._tell(PoolChange.UNDEFINED, record)

    async def build(self, uuid: str, cause: Cause) -> None:
        """Make the pool's directory; one that is there already is left as it is, but for its rights."""
        record = self._stopped(uuid)
        self._may_lie(record)
        _build(record)
        log.info("pool %s: %s made (%s)", record.name, record.path, cause)
        self._tell(PoolChange.CREATED, record)

    async def delete(self, uuid: str, cause: Cause) -> None:
        """Remove the pool's directory, which must be empty."""
        record = self._stopped(uuid)
        try:
            Path(record.path).rmdir()
        except OSError as e:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"failed to remove pool '{record.path}': {e.strerror}",
                "delete its volumes first",
            ) from None
        log.info("pool %s: %s removed (%s)", record.name, record.path, cause)
        self._tell(PoolChange.DELETED, record)

    def _stopped(self, uuid: str) -> PoolRecord:
        record = _own(self.record(uuid))
        if record.active:
            raise NicagentError(
                Kind.WRONG_STATE, f"storage pool '{record.name}' is still active", "stop it first"
            )
        return record

    async def refresh(self, uuid: str) -> None:
        """Nothing is remembered of volumes, so nothing is read again: that it was asked for is told."""
        record = self.active(uuid)
        self.pool(uuid).info()
        self._tell(PoolChange.REFRESHED, record)

    async def set_autostart(self, uuid: str, autostart: bool, cause: Cause) -> None:
        record = self.record(uuid)
        if not record.persistent:
            raise NicagentError(Kind.INVALID, "pool has no config file", "define it first")
        if record.autostart != autostart:
            await self._put(replace(_own(record), autostart=autostart))
            log.info("pool %s autostart %s (%s)", record.name, autostart, cause)

    async def _put(self, record: PoolRecord) -> None:
        await self._store.put_object(POOL, record.uuid, record.name, record)
        self._records[record.uuid] = record
        self._follow()

    async def _drop(self, record: PoolRecord) -> None:
        await self._store.drop_object(POOL, record.uuid)
        for name in list(self._formats.get(record.uuid, ())):
            await self.undeclare(record.uuid, name)
        self._records.pop(record.uuid, None)
        self._formats.pop(record.uuid, None)
        self._follow()

    # ---- formats that names do not tell

    async def declare(self, uuid: str, name: str, format: VolumeFormat) -> None:
        """Remember a volume's format, where its name says another."""
        if format is format_of(name):
            await self.undeclare(uuid, name)
            return
        await self._store.put_object(VOLUME, _key(uuid, name), _key(uuid, name), Declared(uuid, name, format))
        self._formats.setdefault(uuid, {})[name] = format

    async def declare_at(self, path: Path, format: VolumeFormat) -> None:
        """The same by a volume's path; nothing where that lies in no pool's own directory."""
        for record in self._records.values():
            if Path(record.path).resolve() == path.parent.resolve():
                await self.declare(record.uuid, path.name, format)

    async def undeclare(self, uuid: str, name: str) -> None:
        """The volume is gone, or its name tells its format."""
        if self._formats.get(uuid, {}).pop(name, None) is not None:
            await self._store.drop_object(VOLUME, _key(uuid, name))


def _key(uuid: str, name: str) -> str:
    return f"{uuid}/{name}"


def _own(record: PoolRecord) -> PoolRecord:
    """A pool that clients may change."""
    if record.configured:
        raise NicagentError(
            Kind.WRONG_STATE,
            f"storage pool '{record.name}' belongs to the agent's config",
            f"change [pools.{record.name}] there and restart the agent",
        )
    return record


def _build(record: PoolRecord) -> None:
    path = Path(record.path)
    try:
        made = not path.is_dir()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if record.owner is not None or record.group is not None:
            os.chown(
                path,
                -1 if record.owner is None else record.owner,
                -1 if record.group is None else record.group,
            )
        if made or record.mode is not None:
            path.chmod(BUILT_MODE if record.mode is None else record.mode)
    except OSError as e:
        raise NicagentError(
            Kind.UNAVAILABLE, f"cannot make {path}: {e.strerror}", "mend the path, or its parent's rights"
        ) from None
