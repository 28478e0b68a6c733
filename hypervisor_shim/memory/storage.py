"""Pools and volumes that exist in memory only: sizes are added up, content there is none.

What the test driver of libvirt refuses (resize, wipe, upload, download) is refused here as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypervisor_shim.driver.events import Defined, Event, PoolEvent, PoolRefreshEvent
from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.driver.storage import (
    BuildFlags,
    PoolInfo,
    PoolRoom,
    PoolState,
    StartFlags,
    Storage,
    VolumeCreateFlags,
    VolumeDeleteFlags,
    VolumeInfo,
    VolumeRef,
    VolumeType,
    no_pool,
    no_pool_named,
    no_volume,
    pool_not_active,
)
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.read import read_document
from hypervisor_shim.xml.storage_pool import PoolDef, format_pool, parse_pool
from hypervisor_shim.xml.storage_volume import VolumeDef, format_volume

DEFAULT_POOL = """\
<pool type='dir'>
  <name>default-pool</name>
  <uuid>dfe224cb-28fb-8dd0-c4b2-64eb3f0f4566</uuid>
  <target>
    <path>/default-pool</path>
  </target>
</pool>
"""

_CAPACITY = 100 << 30  # bytes of every pool
_NETFS_SOURCES = """\
<sources>
  <source>
    <host name='{host}'/>
    <dir path='/testshare'/>
    <format type='nfs'/>
  </source>
</sources>
"""
_LOGICAL_SOURCES = """\
<sources>
  <source>
    <device path='/dev/sda20'/>
    <name>testvg1</name>
    <format type='lvm2'/>
  </source>
  <source>
    <device path='/dev/sda21'/>
    <name>testvg2</name>
    <format type='lvm2'/>
  </source>
</sources>
"""


@dataclass(slots=True)
class _Volume:
    definition: VolumeDef
    path: str
    allocation: int


@dataclass(slots=True)
class _Pool:
    definition: PoolDef
    active: bool = False
    persistent: bool = True
    autostart: bool = False
    volumes: dict[str, _Volume] = field(default_factory=dict)

    @property
    def info(self) -> PoolInfo:
        definition = self.definition
        return PoolInfo(
            definition.uuid, definition.name, definition.type, self.active, self.persistent, self.autostart
        )

    @property
    def allocation(self) -> int:
        return sum(volume.allocation for volume in self.volumes.values())


def _refused(code: Code, detail: str) -> LibvirtError:
    return error(code, detail, origin=Origin.STORAGE)


def _no_flags(flags: int, function: str) -> None:
    if flags:
        message = f"unsupported flags (0x{flags:x}) in function {function}"
        raise LibvirtError(Code.INVALID_ARG, message, origin=Origin.STORAGE)


class MemoryStorage(Storage):
    """Starts with `default-pool`, running. `tell` is called with every event."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        default = parse_pool(DEFAULT_POOL)
        self._pools: dict[bytes, _Pool] = {default.uuid: _Pool(default, active=True)}

    # ---- reading ---------------------------------------------------------------------------------

    def pools(self) -> list[PoolInfo]:
        return [pool.info for pool in self._pools.values()]

    def pool(self, uuid: bytes) -> PoolInfo | None:
        pool = self._pools.get(uuid)
        return None if pool is None else pool.info

    def pool_by_name(self, name: str) -> PoolInfo | None:
        return next((pool.info for pool in self._pools.values() if pool.definition.name == name), None)

    async def room(self, uuid: bytes) -> PoolRoom:
        pool = self._find(uuid)
        state = PoolState.RUNNING if pool.active else PoolState.INACTIVE
        return PoolRoom(state, _CAPACITY, pool.allocation, _CAPACITY - pool.allocation)

    async def pool_xml(self, uuid: bytes, *, inactive: bool) -> str:
        pool = self._find(uuid)
        return format_pool(pool.definition, _CAPACITY, pool.allocation, _CAPACITY - pool.allocation)

    async def sources(self, type: str, source: str | None) -> str:
        if type == "logical":
            return _LOGICAL_SOURCES
        if type == "netfs":
            root = None
            if source is not None:
                root = read_document(source, "storage_source", Origin.STORAGE)
            host = root.find("host") if root is not None else None
            if host is None or not host.get("name"):
                raise _refused(Code.INVALID_ARG, "hostname must be specified for netfs sources")
            return _NETFS_SOURCES.format(host=host.get("name"))
        if type in ("dir", "fs", "disk", "iscsi", "scsi", "mpath", "rbd", "sheepdog", "gluster", "zfs"):
            raise _refused(Code.INTERNAL_ERROR, f"unknown storage pool type {type}")
        raise _refused(Code.NO_SUPPORT, f"pool type '{type}' does not support source discovery")

    async def volumes(self, uuid: bytes) -> list[VolumeRef]:
        pool = self._active(uuid)
        return [self._ref(pool, volume) for volume in pool.volumes.values()]

    async def volume(self, uuid: bytes, name: str) -> VolumeRef:
        pool = self._active(uuid)
        volume = pool.volumes.get(name)
        if volume is None:
            raise no_volume(name)
        return self._ref(pool, volume)

    async def volume_by_key(self, key: str) -> VolumeRef:
        return self._at(key, "key")

    async def volume_by_path(self, path: str) -> VolumeRef:
        return self._at(path, "path")

    async def volume_info(self, volume: VolumeRef) -> VolumeInfo:
        found = self._volume(volume)[1]
        kind = VolumeType.DIR if found.definition.type == "dir" else VolumeType.FILE
        return VolumeInfo(found.definition.capacity or 0, found.allocation, type=kind)

    async def volume_xml(self, volume: VolumeRef) -> str:
        found = self._volume(volume)[1]
        return format_volume(found.definition, found.path, allocation=found.allocation)

    async def volume_path(self, volume: VolumeRef) -> str:
        return self._volume(volume)[1].path

    # ---- pools -----------------------------------------------------------------------------------

    async def define_pool(self, caller: Caller, definition: PoolDef) -> PoolInfo:
        self._check(definition)
        pool = self._pools.get(definition.uuid)
        if pool is None:
            pool = self._pools[definition.uuid] = _Pool(definition)
        else:
            pool.persistent = True
            if not pool.active:
                pool.definition = definition
        self._publish(pool, Defined.DEFINED)
        return pool.info

    async def create_pool(self, caller: Caller, definition: PoolDef, flags: StartFlags) -> PoolInfo:
        _no_flags(flags, "virStoragePoolCreateXML")
        self._check(definition)
        pool = self._pools.get(definition.uuid)
        if pool is None:
            pool = self._pools[definition.uuid] = _Pool(definition, persistent=False)
        elif pool.active:
            detail = f"pool is already active as '{pool.definition.name}'"
            raise _refused(Code.OPERATION_INVALID, detail)
        pool.active = True
        self._publish(pool, Defined.STARTED)
        return pool.info

    async def start_pool(self, caller: Caller, uuid: bytes, flags: StartFlags) -> None:
        _no_flags(flags, "virStoragePoolCreate")
        pool = self._inactive(uuid)
        pool.active = True
        self._publish(pool, Defined.STARTED)

    async def build_pool(self, caller: Caller, uuid: bytes, flags: BuildFlags) -> None:
        _no_flags(flags, "virStoragePoolBuild")
        self._publish(self._inactive(uuid), Defined.CREATED)

    async def stop_pool(self, caller: Caller, uuid: bytes) -> None:
        pool = self._active(uuid)
        pool.active = False
        self._publish(pool, Defined.STOPPED)
        if not pool.persistent:
            del self._pools[uuid]

    async def delete_pool(self, caller: Caller, uuid: bytes, flags: int) -> None:
        _no_flags(flags, "virStoragePoolDelete")
        self._publish(self._inactive(uuid), Defined.DELETED)

    async def undefine_pool(self, caller: Caller, uuid: bytes) -> None:
        pool = self._inactive(uuid)
        del self._pools[uuid]
        self._publish(pool, Defined.UNDEFINED)

    async def refresh_pool(self, caller: Caller, uuid: bytes) -> None:
        pool = self._active(uuid)
        self._tell(PoolRefreshEvent(pool.definition.name, uuid))

    async def set_pool_autostart(self, caller: Caller, uuid: bytes, autostart: bool) -> None:
        pool = self._find(uuid)
        if not pool.persistent:
            raise _refused(Code.INVALID_ARG, "pool has no config file")
        pool.autostart = autostart

    def _check(self, definition: PoolDef) -> None:
        """That no other pool has its place, its name or its UUID."""
        for other in self._pools.values():
            if other.definition.name != definition.name and (
                other.definition.type == definition.type == "dir" and other.definition.path == definition.path
            ):
                detail = f"Storage source conflict with pool: '{other.definition.name}'"
                raise _refused(Code.OPERATION_FAILED, detail)
        for other in self._pools.values():
            same_name = other.definition.name == definition.name
            same_uuid = other.definition.uuid == definition.uuid
            if same_name and not same_uuid:
                detail = (
                    f"pool '{definition.name}' already exists with uuid {uuid_text(other.definition.uuid)}"
                )
                raise _refused(Code.OPERATION_FAILED, detail)
            if same_uuid and not same_name:
                uuid = uuid_text(definition.uuid)
                detail = f"pool '{other.definition.name}' is already defined with uuid {uuid}"
                raise _refused(Code.OPERATION_FAILED, detail)

    # ---- volumes ---------------------------------------------------------------------------------

    async def create_volume(
        self, caller: Caller, uuid: bytes, definition: VolumeDef, flags: VolumeCreateFlags
    ) -> VolumeRef:
        _no_flags(flags, "virStorageVolCreateXML")
        return self._add(self._active(uuid), definition)

    async def clone_volume(
        self, caller: Caller, uuid: bytes, definition: VolumeDef, source: VolumeRef, flags: VolumeCreateFlags
    ) -> VolumeRef:
        _no_flags(flags, "virStorageVolCreateXMLFrom")
        pool = self._active(uuid)
        if definition.name not in pool.volumes:
            self._volume(source)
        return self._add(pool, definition)

    def _add(self, pool: _Pool, definition: VolumeDef) -> VolumeRef:
        if definition.capacity is None:
            raise _refused(Code.XML_ERROR, "missing capacity element")
        if definition.name in pool.volumes:
            raise _refused(Code.OPERATION_FAILED, "storage vol already exists")
        allocation = definition.capacity if definition.allocation is None else definition.allocation
        if pool.allocation + allocation > _CAPACITY:
            detail = f"Not enough free space in pool for volume '{definition.name}'"
            raise _refused(Code.INTERNAL_ERROR, detail)
        volume = _Volume(definition, f"{pool.definition.path}/{definition.name}", allocation)
        pool.volumes[definition.name] = volume
        return self._ref(pool, volume)

    async def delete_volume(self, caller: Caller, volume: VolumeRef, flags: VolumeDeleteFlags) -> None:
        pool, _ = self._volume(volume)
        _no_flags(flags, "virStorageVolDelete")
        del pool.volumes[volume.name]

    # ---- within ----------------------------------------------------------------------------------

    def _publish(self, pool: _Pool, event: Defined) -> None:
        self._tell(PoolEvent(pool.definition.name, pool.definition.uuid, event))

    def _find(self, uuid: bytes) -> _Pool:
        pool = self._pools.get(uuid)
        if pool is None:
            raise no_pool(uuid)
        return pool

    def _active(self, uuid: bytes) -> _Pool:
        pool = self._find(uuid)
        if not pool.active:
            raise pool_not_active(pool.definition.name)
        return pool

    def _inactive(self, uuid: bytes) -> _Pool:
        pool = self._find(uuid)
        if pool.active:
            raise _refused(Code.OPERATION_INVALID, f"storage pool '{pool.definition.name}' is active")
        return pool

    def _volume(self, ref: VolumeRef) -> tuple[_Pool, _Volume]:
        info = self.pool_by_name(ref.pool)
        if info is None:
            raise no_pool_named(ref.pool)
        pool = self._active(info.uuid)
        volume = pool.volumes.get(ref.name)
        if volume is None:
            raise no_volume(ref.name)
        return pool, volume

    def _at(self, path: str, what: str) -> VolumeRef:
        for pool in self._pools.values():
            for volume in pool.volumes.values():
                if pool.active and volume.path == path:
                    return self._ref(pool, volume)
        raise no_volume(path, what)

    @staticmethod
    def _ref(pool: _Pool, volume: _Volume) -> VolumeRef:
        return VolumeRef(pool.definition.name, volume.definition.name, volume.path)
