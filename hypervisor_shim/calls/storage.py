"""Storage pools and volumes."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypervisor_shim.calls.checks import known_flags, passes
from hypervisor_shim.calls.documents import parsed
from hypervisor_shim.driver import served
from hypervisor_shim.driver.storage import (
    BuildFlags,
    PoolInfo,
    ResizeFlags,
    StartFlags,
    Storage,
    VolumeCreateFlags,
    VolumeDeleteFlags,
    VolumeInfo,
    VolumeRef,
    no_pool,
    no_pool_named,
)
from hypervisor_shim.errors import Code, LibvirtError, Origin
from hypervisor_shim.frame import NONNULL_NETWORK
from hypervisor_shim.procedures import Kind, Procedure
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import INT, OPTIONAL_TEXT, TEXT, UHYPER, UINT, UUID, Array, Record
from hypervisor_shim.xml.storage_pool import parse_pool
from hypervisor_shim.xml.storage_volume import parse_volume

_POOL = NONNULL_NETWORK  # name, uuid
_VOLUME = Record(TEXT, TEXT, TEXT)  # pool's name, name, key
_POOLS, _VOLUMES, _NAMES = Array(_POOL), Array(_VOLUME), Array(TEXT)

PoolArg = tuple[str, bytes]
VolumeArg = tuple[str, str, str]

#: Groups of filters of virConnectListAllStoragePools: a pool must match one bit of each group that has any.
_INACTIVE, _ACTIVE, _PERSISTENT, _TRANSIENT, _AUTOSTART, _NO_AUTOSTART = (1 << bit for bit in range(6))
_STATES = (_INACTIVE | _ACTIVE, _PERSISTENT | _TRANSIENT, _AUTOSTART | _NO_AUTOSTART)
_TYPE_BITS = {
    name: 1 << bit
    for bit, name in enumerate(
        ("dir", "fs", "netfs", "logical", "disk", "iscsi", "scsi", "mpath", "rbd", "sheepdog", "gluster",
         "zfs", "vstorage", "iscsi-direct"), start=6
    )
}  # fmt: skip
_ALL_TYPES = sum(_TYPE_BITS.values())
_LIST_FLAGS = sum(_STATES) | _ALL_TYPES
_XML_INACTIVE = 1
_INFO_GET_PHYSICAL = 1
_SPARSE_STREAM = 1


_flags = partial(known_flags, origin=Origin.STORAGE)


def _storage(session: Session, function: str) -> Storage:
    return served(session.driver.storage, function)


def _of_pool(session: Session, ref: PoolArg, function: str) -> tuple[Storage, PoolInfo]:
    storage = _storage(session, function)
    info = storage.pool(ref[1])
    if info is None:
        raise no_pool(ref[1], ref[0])
    return storage, info


def _pool_value(info: PoolInfo) -> PoolArg:
    return info.name, info.uuid


def _volume_value(volume: VolumeRef) -> VolumeArg:
    return volume.pool, volume.name, volume.key


# ---- the connection's -----------------------------------------------------------------------------


def _capabilities(session: Session, flags: int) -> str:
    _flags(flags, 0, "virConnectGetStoragePoolCapabilities")
    return _storage(session, "virConnectGetStoragePoolCapabilities").capabilities()


def _matches(info: PoolInfo, flags: int) -> bool:
    facts = _ACTIVE if info.active else _INACTIVE
    facts |= _PERSISTENT if info.persistent else _TRANSIENT
    facts |= _AUTOSTART if info.autostart else _NO_AUTOSTART
    facts |= _TYPE_BITS.get(info.type, 0)
    return passes(facts, flags, (*_STATES, _ALL_TYPES))


def _list_all(session: Session, need_results: int, flags: int) -> tuple[list[PoolArg], int]:
    storage = _storage(session, "virConnectListAllStoragePools")
    _flags(flags, _LIST_FLAGS, "virConnectListAllStoragePools")
    found = [_pool_value(info) for info in storage.pools() if _matches(info, flags)]
    return (found if need_results else []), len(found)


def _names(session: Session, active: bool, function: str) -> list[str]:
    return [info.name for info in _storage(session, function).pools() if info.active is active]


def _num(session: Session) -> int:
    return len(_names(session, True, "virConnectNumOfStoragePools"))


def _list(session: Session, limit: int) -> list[str]:
    return _names(session, True, "virConnectListStoragePools")[: max(0, limit)]


def _num_defined(session: Session) -> int:
    return len(_names(session, False, "virConnectNumOfDefinedStoragePools"))


def _list_defined(session: Session, limit: int) -> list[str]:
    return _names(session, False, "virConnectListDefinedStoragePools")[: max(0, limit)]


async def _sources(session: Session, type: str, spec: str | None, flags: int) -> str:
    _flags(flags, 0, "virConnectFindStoragePoolSources")
    return await _storage(session, "virConnectFindStoragePoolSources").sources(type, spec)


# ---- pools ----------------------------------------------------------------------------------------


def _by_name(session: Session, name: str) -> PoolArg:
    info = _storage(session, "virStoragePoolLookupByName").pool_by_name(name)
    if info is None:
        raise no_pool_named(name)
    return _pool_value(info)


def _by_uuid(session: Session, uuid: bytes) -> PoolArg:
    info = _storage(session, "virStoragePoolLookupByUUID").pool(uuid)
    if info is None:
        raise no_pool(uuid)
    return _pool_value(info)


def _by_volume(session: Session, ref: VolumeArg) -> PoolArg:
    info = _storage(session, "virStoragePoolLookupByVolume").pool_by_name(ref[0])
    if info is None:
        raise no_pool_named(ref[0])
    return _pool_value(info)


async def _by_target_path(session: Session, path: str) -> PoolArg:
    return _pool_value(await _storage(session, "virStoragePoolLookupByTargetPath").pool_by_path(path))


def _is_active(session: Session, ref: PoolArg) -> int:
    return int(_of_pool(session, ref, "virStoragePoolIsActive")[1].active)


def _is_persistent(session: Session, ref: PoolArg) -> int:
    return int(_of_pool(session, ref, "virStoragePoolIsPersistent")[1].persistent)


def _autostart(session: Session, ref: PoolArg) -> int:
    return int(_of_pool(session, ref, "virStoragePoolGetAutostart")[1].autostart)


async def _info(session: Session, ref: PoolArg) -> tuple[int, int, int, int]:
    storage, info = _of_pool(session, ref, "virStoragePoolGetInfo")
    room = await storage.room(info.uuid)
    return room.state, room.capacity, room.allocation, room.available


async def _xml(session: Session, ref: PoolArg, flags: int) -> str:
    storage, info = _of_pool(session, ref, "virStoragePoolGetXMLDesc")
    _flags(flags, _XML_INACTIVE, "virStoragePoolGetXMLDesc")
    return await storage.pool_xml(info.uuid, inactive=bool(flags & _XML_INACTIVE))


async def _define(session: Session, xml: str, flags: int) -> PoolArg:
    storage = _storage(session, "virStoragePoolDefineXML")
    _flags(flags, 1, "virStoragePoolDefineXML")  # 1: validate, which is done anyway
    return _pool_value(await storage.define_pool(session.caller, await parsed(parse_pool, xml)))


async def _create_xml(session: Session, xml: str, flags: int) -> PoolArg:
    storage = _storage(session, "virStoragePoolCreateXML")
    how = StartFlags(_flags(flags, 7, "virStoragePoolCreateXML"))
    return _pool_value(await storage.create_pool(session.caller, await parsed(parse_pool, xml), how))


async def _start(session: Session, ref: PoolArg, flags: int) -> None:
    storage, info = _of_pool(session, ref, "virStoragePoolCreate")
    how = StartFlags(_flags(flags, 7, "virStoragePoolCreate"))
    await storage.start_pool(session.caller, info.uuid, how)


async def _build(session: Session, ref: PoolArg, flags: int) -> None:
    storage, info = _of_pool(session, ref, "virStoragePoolBuild")
    how = BuildFlags(_flags(flags, 15, "virStoragePoolBuild"))
    await storage.build_pool(session.caller, info.uuid, how)


async def _stop(session: Session, ref: PoolArg) -> None:
    storage, info = _of_pool(session, ref, "virStoragePoolDestroy")
    await storage.stop_pool(session.caller, info.uuid)


async def _delete(session: Session, ref: PoolArg, flags: int) -> None:
    storage, info = _of_pool(session, ref, "virStoragePoolDelete")
    await storage.delete_pool(session.caller, info.uuid, _flags(flags, 1, "virStoragePoolDelete"))


async def _undefine(session: Session, ref: PoolArg) -> None:
    storage, info = _of_pool(session, ref, "virStoragePoolUndefine")
    await storage.undefine_pool(session.caller, info.uuid)


async def _refresh(session: Session, ref: PoolArg, flags: int) -> None:
    storage, info = _of_pool(session, ref, "virStoragePoolRefresh")
    _flags(flags, 0, "virStoragePoolRefresh")
    await storage.refresh_pool(session.caller, info.uuid)


async def _set_autostart(session: Session, ref: PoolArg, autostart: int) -> None:
    storage, info = _of_pool(session, ref, "virStoragePoolSetAutostart")
    await storage.set_pool_autostart(session.caller, info.uuid, bool(autostart))


# ---- volumes of a pool ----------------------------------------------------------------------------


async def _num_volumes(session: Session, ref: PoolArg) -> int:
    storage, info = _of_pool(session, ref, "virStoragePoolNumOfVolumes")
    return len(await storage.volumes(info.uuid))


async def _list_volumes(session: Session, ref: PoolArg, limit: int) -> list[str]:
    storage, info = _of_pool(session, ref, "virStoragePoolListVolumes")
    return [volume.name for volume in await storage.volumes(info.uuid)][: max(0, limit)]


async def _list_all_volumes(
    session: Session, ref: PoolArg, need_results: int, flags: int
) -> tuple[list[VolumeArg], int]:
    storage, info = _of_pool(session, ref, "virStoragePoolListAllVolumes")
    _flags(flags, 0, "virStoragePoolListAllVolumes")
    found = [_volume_value(volume) for volume in await storage.volumes(info.uuid)]
    return (found if need_results else []), len(found)


async def _volume_by_name(session: Session, ref: PoolArg, name: str) -> VolumeArg:
    storage, info = _of_pool(session, ref, "virStorageVolLookupByName")
    return _volume_value(await storage.volume(info.uuid, name))


async def _volume_by_key(session: Session, key: str) -> VolumeArg:
    return _volume_value(await _storage(session, "virStorageVolLookupByKey").volume_by_key(key))


async def _volume_by_path(session: Session, path: str) -> VolumeArg:
    return _volume_value(await _storage(session, "virStorageVolLookupByPath").volume_by_path(path))


async def _create_volume(session: Session, ref: PoolArg, xml: str, flags: int) -> VolumeArg:
    storage, info = _of_pool(session, ref, "virStorageVolCreateXML")
    how = VolumeCreateFlags(_flags(flags, 3, "virStorageVolCreateXML"))
    made = await storage.create_volume(session.caller, info.uuid, await parsed(parse_volume, xml), how)
    return _volume_value(made)


async def _create_volume_from(
    session: Session, ref: PoolArg, xml: str, source: VolumeArg, flags: int
) -> VolumeArg:
    storage, info = _of_pool(session, ref, "virStorageVolCreateXMLFrom")
    how = VolumeCreateFlags(_flags(flags, 3, "virStorageVolCreateXMLFrom"))
    definition = await parsed(parse_volume, xml, capacity_needed=False)
    made = await storage.clone_volume(session.caller, info.uuid, definition, VolumeRef(*source), how)
    return _volume_value(made)


# ---- one volume -----------------------------------------------------------------------------------


async def _volume_info(session: Session, ref: VolumeArg) -> tuple[int, int, int]:
    info = await _storage(session, "virStorageVolGetInfo").volume_info(VolumeRef(*ref))
    return info.type, info.capacity, info.allocation


async def _volume_info_flags(session: Session, ref: VolumeArg, flags: int) -> tuple[int, int, int]:
    function = "virStorageVolGetInfoFlags"
    info: VolumeInfo = await _storage(session, function).volume_info(VolumeRef(*ref))
    if info.physical is None:
        raise LibvirtError(
            Code.NO_SUPPORT,
            f"this function is not supported by the connection driver: {function}",
            origin=Origin.STORAGE,
        )
    _flags(flags, _INFO_GET_PHYSICAL, function)
    return info.type, info.capacity, info.physical if flags & _INFO_GET_PHYSICAL else info.allocation


async def _volume_xml(session: Session, ref: VolumeArg, flags: int) -> str:
    _flags(flags, 0, "virStorageVolGetXMLDesc")
    return await _storage(session, "virStorageVolGetXMLDesc").volume_xml(VolumeRef(*ref))


async def _volume_path(session: Session, ref: VolumeArg) -> str:
    return await _storage(session, "virStorageVolGetPath").volume_path(VolumeRef(*ref))


async def _delete_volume(session: Session, ref: VolumeArg, flags: int) -> None:
    how = VolumeDeleteFlags(_flags(flags, 3, "virStorageVolDelete"))
    await _storage(session, "virStorageVolDelete").delete_volume(session.caller, VolumeRef(*ref), how)


async def _resize(session: Session, ref: VolumeArg, capacity: int, flags: int) -> None:
    how = ResizeFlags(_flags(flags, 7, "virStorageVolResize"))
    storage = _storage(session, "virStorageVolResize")
    await storage.resize_volume(session.caller, VolumeRef(*ref), capacity, how)


async def _wipe(session: Session, ref: VolumeArg, flags: int) -> None:
    await _wipe_pattern(session, ref, 0, flags)


async def _wipe_pattern(session: Session, ref: VolumeArg, algorithm: int, flags: int) -> None:
    storage = _storage(session, "virStorageVolWipePattern")
    _flags(flags, 0, "virStorageVolWipePattern")
    await storage.wipe_volume(session.caller, VolumeRef(*ref), algorithm)


async def _upload(session: Session, ref: VolumeArg, offset: int, length: int, flags: int) -> Any:
    storage = _storage(session, "virStorageVolUpload")
    sparse = bool(_flags(flags, _SPARSE_STREAM, "virStorageVolUpload"))
    return await storage.upload(session.caller, VolumeRef(*ref), offset, length, sparse=sparse)


async def _download(session: Session, ref: VolumeArg, offset: int, length: int, flags: int) -> Any:
    storage = _storage(session, "virStorageVolDownload")
    sparse = bool(_flags(flags, _SPARSE_STREAM, "virStorageVolDownload"))
    return await storage.download(session.caller, VolumeRef(*ref), offset, length, sparse=sparse)


_ACT = Kind.ACT
_ONE_POOL, _ONE_VOLUME = Record(_POOL), Record(_VOLUME)
_POOL_FLAGS, _VOLUME_FLAGS = Record(_POOL, UINT), Record(_VOLUME, UINT)

ROWS = [
    # the connection's
    Procedure(71, "virConnectNumOfStoragePools", _num, reply=INT, read_only=True),
    Procedure(72, "virConnectListStoragePools", _list, args=Record(INT), reply=_NAMES, read_only=True),
    Procedure(73, "virConnectNumOfDefinedStoragePools", _num_defined, reply=INT, read_only=True),
    Procedure(74, "virConnectListDefinedStoragePools", _list_defined, args=Record(INT), reply=_NAMES,
              read_only=True),
    Procedure(75, "virConnectFindStoragePoolSources", _sources, kind=_ACT, reply=TEXT,
              args=Record(TEXT, OPTIONAL_TEXT, UINT)),
    Procedure(281, "virConnectListAllStoragePools", _list_all, args=Record(INT, UINT),
              reply=Record(_POOLS, UINT), read_only=True),
    Procedure(403, "virConnectGetStoragePoolCapabilities", _capabilities, args=Record(UINT), reply=TEXT,
              read_only=True),
    # pools
    Procedure(84, "virStoragePoolLookupByName", _by_name, args=Record(TEXT), reply=_POOL,
              read_only=True),
    Procedure(85, "virStoragePoolLookupByUUID", _by_uuid, args=Record(UUID), reply=_POOL,
              read_only=True),
    Procedure(86, "virStoragePoolLookupByVolume", _by_volume, args=_ONE_VOLUME, reply=_POOL,
              read_only=True),
    Procedure(391, "virStoragePoolLookupByTargetPath", _by_target_path, args=Record(TEXT),
              reply=_POOL, kind=_ACT, read_only=True),
    Procedure(87, "virStoragePoolGetInfo", _info, args=_ONE_POOL, kind=_ACT, read_only=True,
              reply=Record(INT, UHYPER, UHYPER, UHYPER)),
    Procedure(88, "virStoragePoolGetXMLDesc", _xml, args=_POOL_FLAGS, reply=TEXT, kind=_ACT, read_only=True),
    Procedure(89, "virStoragePoolGetAutostart", _autostart, args=_ONE_POOL, reply=INT, read_only=True),
    Procedure(154, "virStoragePoolIsActive", _is_active, args=_ONE_POOL, reply=INT, read_only=True),
    Procedure(155, "virStoragePoolIsPersistent", _is_persistent, args=_ONE_POOL, reply=INT, read_only=True),
    Procedure(76, "virStoragePoolCreateXML", _create_xml, args=Record(TEXT, UINT), reply=_POOL,
              kind=_ACT),
    Procedure(77, "virStoragePoolDefineXML", _define, args=Record(TEXT, UINT), reply=_POOL, kind=_ACT),
    Procedure(78, "virStoragePoolCreate", _start, args=_POOL_FLAGS, kind=_ACT),
    Procedure(79, "virStoragePoolBuild", _build, args=_POOL_FLAGS, kind=_ACT),
    Procedure(80, "virStoragePoolDestroy", _stop, args=_ONE_POOL, kind=_ACT),
    Procedure(81, "virStoragePoolDelete", _delete, args=_POOL_FLAGS, kind=_ACT),
    Procedure(82, "virStoragePoolUndefine", _undefine, args=_ONE_POOL, kind=_ACT),
    Procedure(83, "virStoragePoolRefresh", _refresh, args=_POOL_FLAGS, kind=_ACT),
    Procedure(90, "virStoragePoolSetAutostart", _set_autostart, args=Record(_POOL, INT), kind=_ACT),
    # volumes of a pool
    Procedure(91, "virStoragePoolNumOfVolumes", _num_volumes, args=_ONE_POOL, reply=INT, kind=_ACT,
              read_only=True),
    Procedure(92, "virStoragePoolListVolumes", _list_volumes, args=Record(_POOL, INT), reply=_NAMES,
              kind=_ACT, read_only=True),
    Procedure(282, "virStoragePoolListAllVolumes", _list_all_volumes, args=Record(_POOL, INT, UINT),
              reply=Record(_VOLUMES, UINT), kind=_ACT, read_only=True),
    Procedure(95, "virStorageVolLookupByName", _volume_by_name, args=Record(_POOL, TEXT),
              reply=_VOLUME, kind=_ACT, read_only=True),
    Procedure(96, "virStorageVolLookupByKey", _volume_by_key, args=Record(TEXT), reply=_VOLUME,
              kind=_ACT, read_only=True),
    Procedure(97, "virStorageVolLookupByPath", _volume_by_path, args=Record(TEXT), reply=_VOLUME,
              kind=_ACT, read_only=True),
    Procedure(93, "virStorageVolCreateXML", _create_volume, args=Record(_POOL, TEXT, UINT),
              reply=_VOLUME, kind=_ACT),
    Procedure(125, "virStorageVolCreateXMLFrom", _create_volume_from, kind=_ACT, reply=_VOLUME,
              args=Record(_POOL, TEXT, _VOLUME, UINT)),
    # one volume
    Procedure(98, "virStorageVolGetInfo", _volume_info, args=_ONE_VOLUME, kind=_ACT, read_only=True,
              reply=Record(INT, UHYPER, UHYPER)),
    Procedure(378, "virStorageVolGetInfoFlags", _volume_info_flags, args=_VOLUME_FLAGS, kind=_ACT,
              read_only=True, reply=Record(INT, UHYPER, UHYPER)),
    Procedure(99, "virStorageVolGetXMLDesc", _volume_xml, args=_VOLUME_FLAGS, reply=TEXT, kind=_ACT,
              read_only=True),
    Procedure(100, "virStorageVolGetPath", _volume_path, args=_ONE_VOLUME, reply=TEXT, kind=_ACT,
              read_only=True),
    Procedure(94, "virStorageVolDelete", _delete_volume, args=_VOLUME_FLAGS, kind=_ACT),
    Procedure(260, "virStorageVolResize", _resize, args=Record(_VOLUME, UHYPER, UINT), kind=_ACT),
    Procedure(165, "virStorageVolWipe", _wipe, args=_VOLUME_FLAGS, kind=_ACT),
    Procedure(259, "virStorageVolWipePattern", _wipe_pattern, args=Record(_VOLUME, UINT, UINT), kind=_ACT),
    Procedure(208, "virStorageVolUpload", _upload, args=Record(_VOLUME, UHYPER, UHYPER, UINT),
              kind=Kind.STREAM),
    Procedure(209, "virStorageVolDownload", _download, args=Record(_VOLUME, UHYPER, UHYPER, UINT),
              kind=Kind.STREAM),
]  # fmt: skip
