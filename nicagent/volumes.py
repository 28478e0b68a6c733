"""What clients do with volumes, and what keeps it from breaking a running host.

A volume that a running domain uses, itself or as the backing file of another, is not changed here; nor is one
on which other volumes stand. Of two that would change one volume, the second is refused.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nicagent.errors import Kind, NicagentError, Thing
from nicagent.model import Cause, Disk, Preallocation, VolumeFormat
from nicagent.pools import Pools
from nicagent.storage import imagelock, reshape, volume
from nicagent.storage.pool import Backing, DirectoryPool, PoolInfo, Volume, told
from nicagent.storage.transfer import Download, Piece, Upload
from nicagent.threads import in_thread

__all__ = ["Backing", "Download", "Piece", "PoolInfo", "Upload", "Volume", "VolumeWish", "Volumes"]

log = logging.getLogger("nicagent.volumes")

#: The disks of every domain that occupies a host, with the domain's name.
Running = Callable[[], Iterable[tuple[str, Disk]]]


@dataclass(frozen=True)
class VolumeWish:
    """A volume to be made. Sizes in bytes; `capacity` 0: that of what it stands on or is made from."""

    name: str
    capacity: int
    format: VolumeFormat
    backing: tuple[Path, VolumeFormat | None] | None = None
    preallocate: Preallocation = Preallocation.NONE
    mode: int | None = None
    owner: int = -1
    group: int = -1


class Volumes:
    """The volumes of all active pools, named by their pool's UUID and their own name."""

    def __init__(self, pools: Pools, running: Running) -> None:
        self._pools = pools
        self._running = running
        self._changing: dict[Path, str] = {}  # what is done to a volume
        self._reading: dict[Path, int] = {}  # how many copy from it

    async def tidy(self, leftovers: Sequence[Path]) -> None:
        """Finish what a death of the agent has left (`Pools.load`)."""
        for path in leftovers:
            try:
                await in_thread(reshape.tidy, [path])
            except (NicagentError, OSError) as e:
                log.error("%s was left by an agent that died and stays: %s", path, e)
            else:
                log.info("%s, left by an agent that died, is removed", path)

    # ---- reading

    async def room(self, pool: str) -> PoolInfo:
        return await in_thread(self._pools.pool(pool).info)

    async def list(self, pool: str) -> tuple[Volume, ...]:
        self._pools.active(pool)
        return await in_thread(self._pools.pool(pool).list)

    async def look_up(self, pool: str, name: str) -> Volume:
        self._pools.active(pool)
        try:
            return await in_thread(self._pools.pool(pool).look_up, name)
        except NicagentError as e:
            if e.kind is Kind.INVALID and e.of is None and not _is_there(self._pools.pool(pool), name):
                raise _missing("name", name) from None  # a name that no volume can have
            raise

    async def at(self, path: str) -> tuple[str, Volume]:
        """A volume by its path: its pool's UUID, and it. Links are followed."""
        asked = Path(path)
        for place in dict.fromkeys((asked, Path(_real(asked)))):
            for record in self._pools.records():
                if record.active and Path(record.path) in (place.parent, Path(_real(place.parent))):
                    with contextlib.suppress(NicagentError):
                        return record.uuid, await self.look_up(record.uuid, place.name)
        raise _missing("path", path)

    # ---- making and unmaking

    async def create(self, pool: str, wish: VolumeWish, cause: Cause) -> Volume:
        """Raises EXISTS, INVALID, NO_SPACE, DENIED (a backing file outside of the pools)."""
        self._pools.active(pool)
        backing = self._backing(wish)
        beneath = self._read(backing.path) if backing is not None else contextlib.nullcontext()
        with beneath:
            made = await self._create(pool, wish, backing)
        log.info("volume %s created (%s)", made.path, cause)
        return made

    async def _create(self, pool: str, wish: VolumeWish, backing: Backing | None) -> Volume:
        async with self._made(pool, wish) as place:
            return await place.create(
                wish.name,
                reshape.rounded(wish.capacity),
                format=wish.format,
                backing=backing,
                preallocate=wish.preallocate,
                mode=0o600 if wish.mode is None else wish.mode,
                owner=wish.owner,
                group=wish.group,
            )

    async def clone(self, pool: str, wish: VolumeWish, source: tuple[str, str], cause: Cause) -> Volume:
        """A volume with the content of `source`, at least as large as it."""
        self._pools.active(pool)
        found = await self.look_up(*source)
        await self._not_written(found)
        with self._read(found.path):
            chain = await in_thread(volume.resolve, found.path, found.format, self._pools.directories)
            async with self._made(pool, wish) as place:
                made = await reshape.clone(
                    place,
                    wish.name,
                    chain,
                    format=wish.format,
                    capacity=wish.capacity,
                    backing=self._backing(wish),
                    mode=0o600 if wish.mode is None else wish.mode,
                )
        log.info("volume %s of pool %s cloned from %s (%s)", wish.name, place.name, found.path, cause)
        return made

    @contextlib.asynccontextmanager
    async def _made(self, pool: str, wish: VolumeWish) -> AsyncIterator[DirectoryPool]:
        """The format is durable before the volume is there, and goes again when that fails."""
        place = self._pools.pool(pool)
        path = place.place(wish.name)
        if path.exists():
            raise place.exists(wish.name)
        with self._change(path, "made"):
            await self._pools.declare(pool, wish.name, wish.format)
            try:
                yield place
            except BaseException:
                if not path.exists():
                    await self._pools.undeclare(pool, wish.name)
                raise

    def _backing(self, wish: VolumeWish) -> Backing | None:
        """What the volume stands on. Its format is declared, or that of the pool's volume of that path."""
        if wish.backing is None:
            return None
        if wish.format is not VolumeFormat.QCOW2:
            raise NicagentError(
                Kind.UNSUPPORTED, "backing storage not supported for raw volumes", "make it qcow2"
            )
        path, format = wish.backing
        for record in self._pools.records():
            if record.active and Path(record.path) == path.parent:
                known = self._pools.pool(record.uuid).format(path.name)
                if format not in (None, known):
                    raise NicagentError(
                        Kind.INVALID, f"{path} is {known}, not {format}", "say the format that it has"
                    )
                format = known
        if format is None:
            raise NicagentError(
                Kind.INVALID, f"the format of {path} is not said, and formats are never guessed", "say it"
            )
        return Backing(path, format)

    async def delete(self, pool: str, name: str, cause: Cause) -> None:
        found = await self.look_up(pool, name)
        with self._change(found.path, "deleted"):
            await self._unused(found)
            await in_thread(_delete, self._pools.pool(pool), found)
            await self._pools.undeclare(pool, name)
        log.info("volume %s deleted (%s)", found.path, cause)

    # ---- changing

    async def resize(
        self, pool: str, name: str, capacity: int, cause: Cause, *, allocate: bool = False
    ) -> None:
        """Another capacity, in bytes; what lies beyond it is gone."""
        found = await self.look_up(pool, name)
        size = reshape.rounded(capacity)
        if not 0 < size < 1 << 62:
            raise NicagentError(Kind.INVALID, f"{capacity} bytes is no size for a disk", "choose another")
        with self._change(found.path, "resized"):
            await self._unused(found, hint="resize the disk of the domain instead: virsh blockresize")
            await reshape.resize(self._pools.pool(pool), found, size, allocate=allocate)
        log.info("volume %s resized to %d bytes (%s)", found.path, size, cause)

    async def wipe(self, pool: str, name: str, cause: Cause) -> None:
        """Overwrite what it stores with zeros; returns once they have been read back."""
        found = await self.look_up(pool, name)
        with self._change(found.path, "wiped"):
            await self._unused(found)
            with told(f"wipe {found.path}"):
                await reshape.wipe(self._pools.pool(pool), found)
        log.info("volume %s wiped (%s)", found.path, cause)

    async def upload(self, pool: str, name: str, offset: int, length: int, cause: Cause) -> Upload:
        """An open stream into a volume; `closed` must be called with it at its end."""
        found = await self.look_up(pool, name)
        if offset > found.physical:
            raise NicagentError(
                Kind.INVALID, f"volume {name} has {found.physical} bytes, none at {offset}", "resize it first"
            )
        await self._unused(found)
        self._begin(found.path, "written to")
        upload = Upload(self._pools.pool(pool), name, offset, length, functools.partial(self._unused, found))
        try:
            await upload.open()
        except BaseException:
            await upload.close()
            self.uploaded(found)
            raise
        log.info("upload into volume %s begins (%s)", found.path, cause)
        return upload

    def uploaded(self, found: Volume) -> None:
        """An upload into it is over."""
        self._changing.pop(found.path, None)

    async def download(self, pool: str, name: str, offset: int, length: int, *, sparse: bool) -> Download:
        """An open stream of a volume's bytes."""
        found = await self.look_up(pool, name)
        await self._not_written(found)
        if found.path in self._changing:
            raise self._busy(found.path)
        layer = await in_thread(volume.resolve, found.path, found.format, self._pools.directories)
        return await in_thread(functools.partial(Download, layer[0].path, offset, length, sparse=sparse))

    # ---- who uses it

    @contextlib.contextmanager
    def _change(self, path: Path, what: str) -> Iterator[None]:
        self._begin(path, what)
        try:
            yield
        finally:
            self._changing.pop(path, None)

    def _begin(self, path: Path, what: str) -> None:
        if path in self._changing or self._reading.get(path):
            raise self._busy(path)
        self._changing[path] = what

    @contextlib.contextmanager
    def _read(self, path: Path) -> Iterator[None]:
        if path in self._changing:
            raise self._busy(path)
        self._reading[path] = self._reading.get(path, 0) + 1
        try:
            yield
        finally:
            self._reading[path] -= 1
            if not self._reading[path]:
                del self._reading[path]

    def _busy(self, path: Path) -> NicagentError:
        what = self._changing.get(path, "copied")
        return NicagentError(Kind.WRONG_STATE, f"volume {path} is being {what}", "wait until that is over")

    async def in_use(self, pool: str) -> str | None:
        """The name of a running domain that uses something in the pool's directory; None when none does."""
        directory = Path(_real(Path(self._pools.record(pool).path)))
        for domain, layers in await self._chains():
            if any(layer.path.is_relative_to(directory) for layer in layers):
                return domain
        return None

    async def _chains(self) -> Sequence[tuple[str, Sequence[volume.Layer]]]:
        disks = [*self._running()]
        return await in_thread(self._resolve, disks)

    def _resolve(self, disks: Sequence[tuple[str, Disk]]) -> Sequence[tuple[str, Sequence[volume.Layer]]]:
        found = []
        for domain, disk in disks:
            with contextlib.suppress(NicagentError):
                found.append((domain, volume.resolve(Path(disk.path), disk.format, self._pools.directories)))
        return found

    async def _unused(self, found: Volume, hint: str = "stop the domain first") -> None:
        """Raises WRONG_STATE when a running domain uses the volume, or other volumes stand on it."""
        with told(f"look at {found.path}"):
            facts = found.path.stat()
        for domain, layers in await self._chains():
            if any((layer.device, layer.inode) == (facts.st_dev, facts.st_ino) for layer in layers):
                raise NicagentError(
                    Kind.WRONG_STATE, f"volume {found.name} is in use by the running domain {domain}", hint
                )
        above = await in_thread(self._standing_on, found)
        if above:
            names = ", ".join(above[:3]) + (f" and {len(above) - 3} more" if len(above) > 3 else "")
            raise NicagentError(
                Kind.WRONG_STATE, f"volume {found.name} is the backing file of {names}", "delete those first"
            )

    def _standing_on(self, found: Volume) -> Sequence[str]:
        real = _real(found.path)
        return [
            each.name
            for record in self._pools.records()
            if record.active
            for each in self._pools.pool(record.uuid).list()
            if each.backing is not None and str(each.backing.path) == real
        ]

    async def _not_written(self, found: Volume) -> None:
        """Raises WRONG_STATE when a running domain writes to it: what is read would be of no one moment."""
        real = _real(found.path)
        for domain, disk in self._running():
            if not disk.readonly and _real(Path(disk.path)) == real:
                raise NicagentError(
                    Kind.WRONG_STATE,
                    f"volume {found.name} is being written by the running domain {domain}",
                    "stop it, or take a snapshot and copy what that leaves alone",
                )


def _real(path: Path) -> str:
    try:
        return str(path.resolve())
    except (OSError, RuntimeError, ValueError):
        return str(path)


def _delete(pool: DirectoryPool, found: Volume) -> None:
    with imagelock.alone(found.path):
        pool.delete(found.name)


def _is_there(pool: DirectoryPool, name: str) -> bool:
    return "/" not in name and "\0" not in name and (pool.path / name).exists()


def _missing(what: str, value: str) -> NicagentError:
    return NicagentError(Kind.NOT_FOUND, f"no storage vol with matching {what} '{value}'", of=Thing.VOLUME)
