"""Pools and volumes as libvirt clients see them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

from hypervisor_shim.driver import Caller, Event, Opened, PoolEvent, PoolRefreshEvent
from hypervisor_shim.driver.events import Defined
from hypervisor_shim.driver.storage import (
    WIPE_ZERO,
    BuildFlags,
    PoolInfo,
    PoolRoom,
    PoolState,
    ResizeFlags,
    StartFlags,
    Storage,
    VolumeCreateFlags,
    VolumeDeleteFlags,
    VolumeInfo,
    VolumeRef,
    no_pool,
    no_volume,
)
from hypervisor_shim.driver.stream import Hole
from hypervisor_shim.errors import Code, Origin, error
from hypervisor_shim.xml.storage_pool import Permissions, PoolDef, format_pool
from hypervisor_shim.xml.storage_volume import Backing, VolumeDef, format_volume
from nicagent.errors import NicagentError
from nicagent.northbound import libvirt_storage_words as words
from nicagent.northbound.libvirt_storage_words import (
    builds,
    info_of,
    record_of,
    ref_of,
    rights_of,
    times_of,
    unsupported,
    uuid_of,
    wish_of,
)
from nicagent.northbound.libvirt_words import cause_of, translated
from nicagent.pools import PoolChange, PoolRecord, Pools
from nicagent.volumes import Download, Upload, Volume, Volumes

_EVENTS: Mapping[PoolChange, Defined] = {
    PoolChange.DEFINED: Defined.DEFINED,
    PoolChange.UNDEFINED: Defined.UNDEFINED,
    PoolChange.STARTED: Defined.STARTED,
    PoolChange.STOPPED: Defined.STOPPED,
    PoolChange.CREATED: Defined.CREATED,
    PoolChange.DELETED: Defined.DELETED,
}

#: libvirt's wiping algorithms by number.
_ALGORITHMS = (
    "zero", "nnsa", "dod", "bsi", "gutmann", "schneier", "pfitzner7", "pfitzner33", "random", "trim",
)  # fmt: skip


class MetalStorage(Storage):
    """The storage family of an agent. `tell` is called with every event."""

    def __init__(self, pools: Pools, volumes: Volumes, tell: Callable[[Event], None]) -> None:
        self._pools = pools
        self._volumes = volumes
        self._tell = tell
        self.close = pools.watch(self._changed)

    def _changed(self, change: PoolChange, record: PoolRecord) -> None:
        raw = uuid.UUID(record.uuid).bytes
        if change is PoolChange.REFRESHED:
            self._tell(PoolRefreshEvent(record.name, raw))
        else:
            self._tell(PoolEvent(record.name, raw, _EVENTS[change]))

    # ---- reading ---------------------------------------------------------------------------------

    def pools(self) -> Iterable[PoolInfo]:
        return [info_of(record) for record in self._pools.records()]

    def pool(self, uuid: bytes) -> PoolInfo | None:
        try:
            return info_of(self._pools.record(uuid_of(uuid)))
        except NicagentError:
            return None

    def pool_by_name(self, name: str) -> PoolInfo | None:
        try:
            return info_of(self._pools.named(name))
        except NicagentError:
            return None

    def capabilities(self) -> str:
        return words.capabilities()

    async def room(self, uuid: bytes) -> PoolRoom:
        """A pool whose directory is gone (a mount that is missing) is told so, without sizes."""
        record = self._record(uuid)
        if not record.active:
            return PoolRoom(PoolState.INACTIVE, 0, 0, 0)
        try:
            room = await self._volumes.room(record.uuid)
        except NicagentError:
            return PoolRoom(PoolState.INACCESSIBLE, 0, 0, 0)
        return PoolRoom(PoolState.RUNNING, room.capacity, room.allocation, room.available)

    async def pool_xml(self, uuid: bytes, *, inactive: bool) -> str:
        record = self._record(uuid)
        room = await self.room(uuid)
        definition = PoolDef(
            record.name, uuid, "dir", record.path, Permissions(record.mode, record.owner, record.group)
        )
        rights = None
        if room.state is PoolState.RUNNING:
            rights = rights_of(Path(record.path))
        return format_pool(definition, room.capacity, room.allocation, room.available, rights)

    async def pool_by_path(self, path: str) -> PoolInfo:
        for record in self._pools.records():
            if Path(record.path) == Path(path):
                return info_of(record)
        detail = f"no storage pool with matching target path '{path}'"
        raise error(Code.NO_STORAGE_POOL, detail, origin=Origin.STORAGE)

    async def sources(self, type: str, source: str | None) -> str:
        detail = f"pool type '{type}' does not support source discovery"
        raise unsupported(detail, Code.NO_SUPPORT)

    async def volumes(self, uuid: bytes) -> Sequence[VolumeRef]:
        record = self._record(uuid)
        with translated(Origin.STORAGE):
            return [ref_of(record, found) for found in await self._volumes.list(record.uuid)]

    async def volume(self, uuid: bytes, name: str) -> VolumeRef:
        record = self._record(uuid)
        with translated(Origin.STORAGE):
            return ref_of(record, await self._volumes.look_up(record.uuid, name))

    async def volume_by_key(self, key: str) -> VolumeRef:
        return await self._at(key, "key")

    async def volume_by_path(self, path: str) -> VolumeRef:
        return await self._at(path, "path")

    async def _at(self, path: str, what: str) -> VolumeRef:
        try:
            pool, found = await self._volumes.at(path)
        except NicagentError:
            raise no_volume(path, what) from None
        return ref_of(self._pools.record(pool), found)

    async def volume_info(self, volume: VolumeRef) -> VolumeInfo:
        _, found = await self._find(volume)
        return VolumeInfo(found.capacity, found.allocation, found.physical)

    async def volume_xml(self, volume: VolumeRef) -> str:
        _, found = await self._find(volume)
        backing = None
        if found.backing is not None:
            path = found.backing.path
            backing = Backing(str(path), found.backing.format.value, rights_of(path))
        definition = VolumeDef(
            found.name,
            found.capacity,
            format=found.format.value,
            backing=backing,
            permissions=rights_of(found.path),
        )
        return format_volume(
            definition,
            str(found.path),
            allocation=found.allocation,
            physical=found.physical,
            timestamps=times_of(found.path),
        )

    async def volume_path(self, volume: VolumeRef) -> str:
        _, found = await self._find(volume)
        return str(found.path)

    # ---- acting on pools -------------------------------------------------------------------------

    async def define_pool(self, caller: Caller, definition: PoolDef) -> PoolInfo:
        with translated(Origin.STORAGE):
            wanted = record_of(definition)
            return info_of(await self._pools.define(wanted, cause_of(caller, "pool-define")))

    async def create_pool(self, caller: Caller, definition: PoolDef, flags: StartFlags) -> PoolInfo:
        with translated(Origin.STORAGE):
            wanted = record_of(definition)
            cause = cause_of(caller, "pool-create")
            return info_of(await self._pools.create(wanted, cause, build=builds(flags)))

    async def start_pool(self, caller: Caller, uuid: bytes, flags: StartFlags) -> None:
        with translated(Origin.STORAGE):
            cause = cause_of(caller, "pool-start")
            await self._pools.start(uuid_of(uuid), cause, build=builds(flags))

    async def build_pool(self, caller: Caller, uuid: bytes, flags: BuildFlags) -> None:
        if flags:
            detail = "a directory is made, it is not formatted, resized or repaired"
            raise unsupported(detail, Code.ARGUMENT_UNSUPPORTED)
        with translated(Origin.STORAGE):
            await self._pools.build(uuid_of(uuid), cause_of(caller, "pool-build"))

    async def stop_pool(self, caller: Caller, uuid: bytes) -> None:
        record = self._record(uuid)
        domain = await self._volumes.in_use(record.uuid) if not record.configured else None
        if domain is not None:
            detail = f"storage pool '{record.name}' is in use by the running domain {domain}"
            raise error(Code.OPERATION_INVALID, detail, origin=Origin.STORAGE)
        with translated(Origin.STORAGE):
            await self._pools.stop(record.uuid, cause_of(caller, "pool-destroy"))

    async def delete_pool(self, caller: Caller, uuid: bytes, flags: int) -> None:
        if flags:
            detail = "a pool's directory is removed when it is empty, there is nothing to overwrite"
            raise unsupported(detail, Code.ARGUMENT_UNSUPPORTED)
        with translated(Origin.STORAGE):
            await self._pools.delete(uuid_of(uuid), cause_of(caller, "pool-delete"))

    async def undefine_pool(self, caller: Caller, uuid: bytes) -> None:
        with translated(Origin.STORAGE):
            await self._pools.undefine(uuid_of(uuid), cause_of(caller, "pool-undefine"))

    async def refresh_pool(self, caller: Caller, uuid: bytes) -> None:
        with translated(Origin.STORAGE):
            await self._pools.refresh(uuid_of(uuid))

    async def set_pool_autostart(self, caller: Caller, uuid: bytes, autostart: bool) -> None:
        with translated(Origin.STORAGE):
            await self._pools.set_autostart(uuid_of(uuid), autostart, cause_of(caller, "pool-autostart"))

    # ---- acting on volumes -----------------------------------------------------------------------

    async def create_volume(
        self, caller: Caller, uuid: bytes, definition: VolumeDef, flags: VolumeCreateFlags
    ) -> VolumeRef:
        record = self._record(uuid)
        wish = wish_of(definition, flags)
        with translated(Origin.STORAGE):
            made = await self._volumes.create(record.uuid, wish, cause_of(caller, "vol-create"))
        return ref_of(record, made)

    async def clone_volume(
        self, caller: Caller, uuid: bytes, definition: VolumeDef, source: VolumeRef, flags: VolumeCreateFlags
    ) -> VolumeRef:
        record = self._record(uuid)
        wish = wish_of(definition, flags)
        original, _ = await self._find(source)
        with translated(Origin.STORAGE):
            named = (original.uuid, source.name)
            made = await self._volumes.clone(record.uuid, wish, named, cause_of(caller, "vol-clone"))
        return ref_of(record, made)

    async def delete_volume(self, caller: Caller, volume: VolumeRef, flags: VolumeDeleteFlags) -> None:
        record, found = await self._find(volume)
        if flags & VolumeDeleteFlags.WITH_SNAPSHOTS:
            raise unsupported("snapshots are not kept inside of volumes here", Code.ARGUMENT_UNSUPPORTED)
        with translated(Origin.STORAGE):
            cause = cause_of(caller, "vol-delete")
            if flags & VolumeDeleteFlags.ZEROED:
                await self._volumes.wipe(record.uuid, found.name, cause)
            await self._volumes.delete(record.uuid, found.name, cause)

    async def resize_volume(
        self, caller: Caller, volume: VolumeRef, capacity: int, flags: ResizeFlags
    ) -> None:
        record, found = await self._find(volume)
        size = capacity
        if flags & ResizeFlags.DELTA:
            size = found.capacity + (-capacity if flags & ResizeFlags.SHRINK else capacity)
        if size < found.capacity and not flags & ResizeFlags.SHRINK:
            detail = "Can't shrink capacity below current capacity unless shrink flag explicitly specified"
            raise error(Code.INVALID_ARG, detail, origin=Origin.STORAGE)
        allocate = bool(flags & ResizeFlags.ALLOCATE)
        with translated(Origin.STORAGE):
            cause = cause_of(caller, "vol-resize")
            await self._volumes.resize(record.uuid, found.name, size, cause, allocate=allocate)

    async def wipe_volume(self, caller: Caller, volume: VolumeRef, algorithm: int) -> None:
        if algorithm >= len(_ALGORITHMS):
            raise error(
                Code.INVALID_ARG, f"wiping algorithm {algorithm} not supported", origin=Origin.STORAGE
            )
        if algorithm != WIPE_ZERO:
            detail = f"'{_ALGORITHMS[algorithm]}' algorithm not supported; volumes are overwritten with zeros"
            raise unsupported(detail, Code.ARGUMENT_UNSUPPORTED)
        record, found = await self._find(volume)
        with translated(Origin.STORAGE):
            await self._volumes.wipe(record.uuid, found.name, cause_of(caller, "vol-wipe"))

    async def upload(
        self, caller: Caller, volume: VolumeRef, offset: int, length: int, *, sparse: bool
    ) -> Opened:
        record, found = await self._find(volume)
        with translated(Origin.STORAGE):
            cause = cause_of(caller, "vol-upload")
            upload = await self._volumes.upload(record.uuid, found.name, offset, length, cause)

        async def finished() -> None:
            await self._pools.refresh(record.uuid)

        taking = _Taking(upload, finished, lambda: self._volumes.uploaded(found))
        return Opened(taking, skip=taking.skip if sparse else None)

    async def download(
        self, caller: Caller, volume: VolumeRef, offset: int, length: int, *, sparse: bool
    ) -> Opened:
        record, found = await self._find(volume)
        with translated(Origin.STORAGE):
            download = await self._volumes.download(record.uuid, found.name, offset, length, sparse=sparse)
        return Opened(_Giving(download))

    # ---- within ----------------------------------------------------------------------------------

    def _record(self, raw: bytes) -> PoolRecord:
        try:
            return self._pools.record(uuid_of(raw))
        except NicagentError:
            raise no_pool(raw) from None

    async def _find(self, volume: VolumeRef) -> tuple[PoolRecord, Volume]:
        with translated(Origin.STORAGE):
            record = self._pools.named(volume.pool)
            return record, await self._volumes.look_up(record.uuid, volume.name)


class _Taking:
    """An upload as a stream of the client."""

    def __init__(
        self, upload: Upload, finished: Callable[[], Awaitable[None]], closed: Callable[[], None]
    ) -> None:
        self._upload = upload
        self._finished = finished
        self._closed: Callable[[], None] | None = closed  # None once it was called
        self._over = asyncio.Event()

    async def read(self, limit: int) -> bytes:
        await self._over.wait()
        return b""

    async def write(self, data: bytes) -> None:
        with translated(Origin.STORAGE):
            await self._upload.write(data)

    async def skip(self, length: int) -> None:
        with translated(Origin.STORAGE):
            await self._upload.skip(length)

    async def finish(self) -> None:
        with translated(Origin.STORAGE):
            await self._upload.finish()
            self._free()  # the client may go on with the volume as soon as it is told
            await self._finished()

    async def close(self) -> None:
        self._over.set()
        try:
            await self._upload.close()
        finally:
            self._free()

    def _free(self) -> None:
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()


class _Giving:
    """A download as a stream of the client."""

    def __init__(self, download: Download) -> None:
        self._download = download

    async def read(self, limit: int) -> bytes | Hole:
        piece = await self._download.read(limit)
        return Hole(piece) if isinstance(piece, int) else piece

    async def write(self, data: bytes) -> None:
        raise error(Code.OPERATION_INVALID, "this stream is a download", origin=Origin.STREAMS)

    async def finish(self) -> None:
        """What was read is read: there is nothing to wait for."""

    async def close(self) -> None:
        await self._download.close()
