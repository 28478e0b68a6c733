"""Storage pools and the volumes in them.

What is asked of files is a coroutine: pools lie on disks, and a disk may be slow. Only what a pool is called
and whether it is active is answered from memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.driver.stream import ByteStream, Opened
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.storage_pool import PoolDef
from hypervisor_shim.xml.storage_volume import VolumeDef


class PoolState(IntEnum):
    """libvirt: virStoragePoolState."""

    INACTIVE = 0
    BUILDING = 1
    RUNNING = 2
    DEGRADED = 3
    INACCESSIBLE = 4


class VolumeType(IntEnum):
    """libvirt: virStorageVolType."""

    FILE = 0
    BLOCK = 1
    DIR = 2
    NETWORK = 3
    NETDIR = 4
    PLOOP = 5


class BuildFlags(IntFlag):
    """How a pool's place is made (libvirt: virStoragePoolBuildFlags)."""

    NEW = 0
    REPAIR = 1
    RESIZE = 2
    NO_OVERWRITE = 4
    OVERWRITE = 8


class StartFlags(IntFlag):
    """What starting a pool does beside (libvirt: virStoragePoolCreateFlags)."""

    NORMAL = 0
    WITH_BUILD = 1
    WITH_BUILD_OVERWRITE = 2
    WITH_BUILD_NO_OVERWRITE = 4


class VolumeCreateFlags(IntFlag):
    NONE = 0
    PREALLOC_METADATA = 1
    REFLINK = 2  # share blocks with what it is made from; fail where that cannot be


class ResizeFlags(IntFlag):
    NONE = 0
    ALLOCATE = 1
    DELTA = 2
    SHRINK = 4


class VolumeDeleteFlags(IntFlag):
    NORMAL = 0
    ZEROED = 1
    WITH_SNAPSHOTS = 2


WIPE_ZERO = 0  # the algorithm (virStorageVolWipeAlgorithm) that is one pass of zeros


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool as short answers tell it."""

    uuid: bytes
    name: str
    type: str = "dir"
    active: bool = True
    persistent: bool = True
    autostart: bool = False


@dataclass(frozen=True, slots=True)
class PoolRoom:
    """Sizes in bytes."""

    state: PoolState
    capacity: int
    allocation: int
    available: int


@dataclass(frozen=True, slots=True)
class VolumeRef:
    """How calls name a volume: the pool's name, its own name there, and a key unique to this server."""

    pool: str
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """Sizes in bytes. `physical`: the length of the container, None where the driver does not tell it."""

    capacity: int
    allocation: int
    physical: int | None = None
    type: VolumeType = VolumeType.FILE


class Storage(ABC):
    """The storage family of a driver. Must: the abstract methods. May: the rest (default: code 3).

    Pools are named by UUID; `no_pool` and `no_volume` answer for unknown ones. A pool's volumes are told only
    while it is active (OPERATION_INVALID).
    """

    # ---- reading: synchronous, from memory -------------------------------------------------------

    @abstractmethod
    def pools(self) -> Iterable[PoolInfo]:
        """All pools, active or not, in a stable order."""

    @abstractmethod
    def pool(self, uuid: bytes) -> PoolInfo | None: ...

    @abstractmethod
    def pool_by_name(self, name: str) -> PoolInfo | None: ...

    def capabilities(self) -> str:
        """The `<storagepoolCapabilities>` document."""
        raise _unsupported("virConnectGetStoragePoolCapabilities")

    # ---- reading what lies on disks --------------------------------------------------------------

    @abstractmethod
    async def room(self, uuid: bytes) -> PoolRoom: ...

    @abstractmethod
    async def pool_xml(self, uuid: bytes, *, inactive: bool) -> str: ...

    async def pool_by_path(self, path: str) -> PoolInfo:
        """The pool whose target path it is."""
        raise _unsupported("virStoragePoolLookupByTargetPath")

    async def sources(self, type: str, source: str | None) -> str:
        """The `<sources>` document: what pools of a type could be made of."""
        raise _unsupported("virConnectFindStoragePoolSources")

    @abstractmethod
    async def volumes(self, uuid: bytes) -> Sequence[VolumeRef]: ...

    @abstractmethod
    async def volume(self, uuid: bytes, name: str) -> VolumeRef: ...

    @abstractmethod
    async def volume_by_key(self, key: str) -> VolumeRef: ...

    @abstractmethod
    async def volume_by_path(self, path: str) -> VolumeRef: ...

    @abstractmethod
    async def volume_info(self, volume: VolumeRef) -> VolumeInfo: ...

    @abstractmethod
    async def volume_xml(self, volume: VolumeRef) -> str: ...

    @abstractmethod
    async def volume_path(self, volume: VolumeRef) -> str: ...

    # ---- acting on pools -------------------------------------------------------------------------

    @abstractmethod
    async def define_pool(self, caller: Caller, definition: PoolDef) -> PoolInfo:
        """Create or replace a persistent definition."""

    @abstractmethod
    async def create_pool(self, caller: Caller, definition: PoolDef, flags: StartFlags) -> PoolInfo:
        """Start a pool that is gone once it stops (transient), or one that is defined so."""

    @abstractmethod
    async def start_pool(self, caller: Caller, uuid: bytes, flags: StartFlags) -> None: ...

    @abstractmethod
    async def build_pool(self, caller: Caller, uuid: bytes, flags: BuildFlags) -> None:
        """Make the pool's place."""

    @abstractmethod
    async def stop_pool(self, caller: Caller, uuid: bytes) -> None:
        """What libvirt calls destroy: the volumes stay, they are no longer told."""

    @abstractmethod
    async def delete_pool(self, caller: Caller, uuid: bytes, flags: int) -> None:
        """Remove the pool's place."""

    @abstractmethod
    async def undefine_pool(self, caller: Caller, uuid: bytes) -> None: ...

    @abstractmethod
    async def refresh_pool(self, caller: Caller, uuid: bytes) -> None: ...

    @abstractmethod
    async def set_pool_autostart(self, caller: Caller, uuid: bytes, autostart: bool) -> None: ...

    # ---- acting on volumes -----------------------------------------------------------------------

    @abstractmethod
    async def create_volume(
        self, caller: Caller, uuid: bytes, definition: VolumeDef, flags: VolumeCreateFlags
    ) -> VolumeRef: ...

    @abstractmethod
    async def clone_volume(
        self,
        caller: Caller,
        uuid: bytes,
        definition: VolumeDef,
        source: VolumeRef,
        flags: VolumeCreateFlags,
    ) -> VolumeRef:
        """A new volume with the content of `source`, which may lie in another pool."""

    @abstractmethod
    async def delete_volume(self, caller: Caller, volume: VolumeRef, flags: VolumeDeleteFlags) -> None: ...

    async def resize_volume(
        self, caller: Caller, volume: VolumeRef, capacity: int, flags: ResizeFlags
    ) -> None:
        """`capacity` in bytes; with DELTA the difference (with SHRINK, how much less)."""
        raise _unsupported("virStorageVolResize")

    async def wipe_volume(self, caller: Caller, volume: VolumeRef, algorithm: int) -> None:
        """Make its content unreadable; returns once it is."""
        raise _unsupported("virStorageVolWipePattern")

    async def upload(
        self, caller: Caller, volume: VolumeRef, offset: int, length: int, *, sparse: bool
    ) -> ByteStream | Opened:
        """A stream that takes the content from `offset` on; at most `length` bytes unless that is 0. Its
        `finish` returns once all of it is durable. `sparse`: holes may come (`Opened.skip`)."""
        raise _unsupported("virStorageVolUpload")

    async def download(
        self, caller: Caller, volume: VolumeRef, offset: int, length: int, *, sparse: bool
    ) -> ByteStream | Opened:
        """A stream that gives `length` bytes (0: all) from `offset` on; with `sparse`, holes as such."""
        raise _unsupported("virStorageVolDownload")


def _unsupported(function: str) -> LibvirtError:
    return error(Code.NO_SUPPORT, function, origin=Origin.STORAGE)


def no_pool(uuid: bytes, name: str | None = None) -> LibvirtError:
    """The answer to any call on a pool that is not (or no longer) there."""
    named = f" ({name})" if name is not None else ""
    detail = f"no storage pool with matching uuid '{uuid_text(uuid)}'{named}"
    return error(Code.NO_STORAGE_POOL, detail, origin=Origin.STORAGE)


def no_pool_named(name: str) -> LibvirtError:
    detail = f"no storage pool with matching name '{name}'"
    return error(Code.NO_STORAGE_POOL, detail, origin=Origin.STORAGE)


def no_volume(name: str, what: str = "name") -> LibvirtError:
    """`what`: by which it was looked for: name, key or path."""
    detail = f"no storage vol with matching {what} '{name}'"
    return error(Code.NO_STORAGE_VOL, detail, origin=Origin.STORAGE)


def pool_not_active(name: str) -> LibvirtError:
    return error(Code.OPERATION_INVALID, f"storage pool '{name}' is not active", origin=Origin.STORAGE)
