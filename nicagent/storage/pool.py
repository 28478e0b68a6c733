"""A directory pool: a directory whose files are volumes.

A volume's format is what it was declared as, else told by its name, never by its content (`*.qcow2` is qcow2,
all else raw), because a tenant writes the content. New volumes are made under a hidden name, made durable,
and linked to their own name as the last step: there is never half a volume, and never one over another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nicagent import proc
from nicagent.errors import Kind, NicagentError, Thing
from nicagent.model import Preallocation, VolumeFormat
from nicagent.storage import volume
from nicagent.threads import in_thread

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")
QCOW2_SUFFIX = ".qcow2"
PARTIAL_PREFIX = ".new-"  # then the agent that makes it, then something random
WIPING_PREFIX = ".wipe-"  # likewise: content that is no volume's any more and is yet to be overwritten
LIST_LIMIT = 100_000  # files looked at in one pool
CREATE_SECONDS = 600.0  # a preallocated volume on a slow disk


@dataclass(frozen=True)
class Backing:
    """The volume under a qcow2 overlay. The format is said, not guessed."""

    path: Path
    format: VolumeFormat


@dataclass(frozen=True)
class Volume:
    """One volume of a pool. Sizes in bytes."""

    name: str
    path: Path
    format: VolumeFormat
    capacity: int  # what a host sees
    allocation: int  # what it takes of the pool now
    physical: int = 0  # the file's length
    backing: Backing | None = None


@dataclass(frozen=True)
class PoolInfo:
    """Room of the file system that holds the pool, in bytes."""

    capacity: int
    allocation: int
    available: int


@dataclass(frozen=True)
class DirectoryPool:
    """A pool by its name and directory. `allowed` are all the agent's pools: overlays may cross them.
    `formats` are those of volumes whose name says another; `owner` names the agent in unfinished files, so
    that each agent clears away its own where several share a directory.
    """

    name: str
    path: Path
    allowed: Sequence[Path]
    formats: Mapping[str, VolumeFormat] = field(default_factory=dict)
    owner: str = ""

    def format(self, name: str) -> VolumeFormat:
        """The format that a volume was declared as, else the one that its name states."""
        return self.formats.get(name) or format_of(name)

    def info(self) -> PoolInfo:
        """Raises NOT_FOUND when the directory is missing."""
        try:
            facts = os.statvfs(self.path)
        except OSError as e:
            raise self._missing(e) from None
        capacity = facts.f_blocks * facts.f_frsize
        available = facts.f_bavail * facts.f_frsize
        return PoolInfo(capacity, capacity - facts.f_bfree * facts.f_frsize, available)

    def list(self) -> tuple[Volume, ...]:
        """All volumes by name. Files that no host could be given (damaged, forged) are left out."""
        try:
            names = sorted(entry.name for entry in self.path.iterdir())[:LIST_LIMIT]
        except OSError as e:
            raise self._missing(e) from None
        found = []
        for name in names:
            if NAME.fullmatch(name):
                with contextlib.suppress(NicagentError):
                    found.append(self.look_up(name))
        return tuple(found)

    def look_up(self, name: str) -> Volume:
        """One volume. Raises NOT_FOUND, and what `volume.resolve` raises."""
        path = self.place(name)
        format = self.format(name)
        try:
            chain = volume.resolve(path, format, self.allowed)
            facts = path.stat()
        except (NicagentError, FileNotFoundError):
            if path.is_symlink() or path.exists():
                raise
            raise self.missing_volume(name) from None
        return Volume(
            name=name,
            path=path,
            format=format,
            capacity=chain[0].size,
            allocation=facts.st_blocks * 512,  # stat(2): in units of 512 bytes whatever the file system
            physical=facts.st_size,
            backing=Backing(chain[1].path, chain[1].format) if len(chain) > 1 else None,
        )

    async def create(
        self,
        name: str,
        capacity: int = 0,
        *,
        format: VolumeFormat | None = None,
        backing: Backing | None = None,
        preallocate: Preallocation = Preallocation.NONE,
        mode: int = 0o600,
        owner: int = -1,
        group: int = -1,
    ) -> Volume:
        """Make a volume of `capacity` bytes. Without `format` the name says it; one that differs from that
        must be among `formats` afterwards, too. With `backing`, capacity 0 means its size.

        Raises EXISTS, INVALID (size, name, backing), NO_SPACE.
        """
        path = self.place(name)
        format = format or format_of(name)
        self.info()
        if path.exists():
            raise self.exists(name)
        if backing is not None:
            if format is not VolumeFormat.QCOW2:
                raise NicagentError(
                    Kind.INVALID,
                    f"volume {name} cannot have a backing file",
                    f"call it {name}{QCOW2_SUFFIX}: only qcow2 can",
                )
            chain = volume.resolve(backing.path, backing.format, self.allowed)
            capacity = capacity or chain[0].size
            backing = Backing(chain[0].path, backing.format)
        if capacity <= 0 or capacity % volume.SECTOR or capacity > 1 << 62:
            raise NicagentError(
                Kind.INVALID,
                f"volume {name}: {capacity} bytes is no size for a disk",
                f"give a multiple of {volume.SECTOR}",
            )
        async with self.partial(name) as partial:
            if format is VolumeFormat.RAW:
                await in_thread(_make_raw, partial, capacity, preallocate)
            else:
                await _make_qcow2(partial, capacity, backing, preallocate)
            await in_thread(_give_rights, partial, mode, owner, group)
            await in_thread(publish, partial, path)
        return self.look_up(name)

    def delete(self, name: str) -> None:
        """Remove a volume. Raises NOT_FOUND. Whether a domain still uses it is the caller's to know."""
        path = self.place(name)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise NicagentError(Kind.INVALID, f"{path} is not a volume", "remove it by hand")
            path.unlink()
        except FileNotFoundError:
            raise self.missing_volume(name) from None
        sync(self.path)

    def unfinished(self, prefix: str) -> tuple[Path, ...]:
        """What a death of this agent has left of such a kind."""
        return tuple(self.path.glob(f"{prefix}{self.owner}-*")) if self.owner else ()

    @contextlib.asynccontextmanager
    async def partial(self, name: str) -> AsyncIterator[Path]:
        """Where to make what is to become volume `name`; what is left there is removed at the end."""
        partial = self.path / f"{PARTIAL_PREFIX}{self.owner}-{secrets.token_hex(6)}"
        try:
            yield partial
        except FileExistsError:
            raise self.exists(name) from None
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise self._full(name) from None
            raise NicagentError(
                Kind.UNAVAILABLE, f"cannot create volume {name} in {self.path}: {e.strerror}", "mend the pool"
            ) from None
        except NicagentError as e:
            if "No space left" in e.message or "Disk quota" in e.message:
                raise self._full(name) from None
            raise
        finally:
            partial.unlink(missing_ok=True)

    def place(self, name: str) -> Path:
        """Where a volume of that name lies. Raises INVALID for a name that no volume can have."""
        if not NAME.fullmatch(name):
            raise NicagentError(
                Kind.INVALID,
                f"{name!r} is no name for a volume",
                "use letters, digits and _ . + - (at most 128), a letter or digit first",
            )
        return self.path / name

    def _missing(self, error: OSError) -> NicagentError:
        return NicagentError(
            Kind.NOT_FOUND,
            f"pool {self.name}: cannot use {self.path}: {error.strerror}",
            "create or mount the directory",
        )

    def missing_volume(self, name: str) -> NicagentError:
        return NicagentError(
            Kind.NOT_FOUND,
            f"pool {self.name} has no volume {name}",
            "list the pool's volumes",
            of=Thing.VOLUME,
        )

    def exists(self, name: str) -> NicagentError:
        return NicagentError(
            Kind.EXISTS,
            f"pool {self.name} already has a volume {name}",
            "choose another name",
            of=Thing.VOLUME,
        )

    def _full(self, name: str) -> NicagentError:
        free = self.info().available
        return NicagentError(
            Kind.NO_SPACE,
            f"no room for volume {name} in pool {self.name}: {free >> 20} MiB are free in {self.path}",
            "delete volumes or choose a smaller size",
        )


@contextlib.contextmanager
def told(doing: str) -> Iterator[None]:
    """What a file system refuses, in a sentence. `doing`: "write to PLACE"."""
    try:
        yield
    except FileNotFoundError:
        raise NicagentError(
            Kind.NOT_FOUND, f"cannot {doing}: it is gone", "list the pool's volumes", of=Thing.VOLUME
        ) from None
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise NicagentError(
            Kind.NO_SPACE if full else Kind.UNAVAILABLE,
            f"cannot {doing}: {e.strerror}",
            "free some space in the pool" if full else "mend the pool",
        ) from None


def format_of(name: str) -> VolumeFormat:
    """The format that a volume's name states."""
    return VolumeFormat.QCOW2 if name.endswith(QCOW2_SUFFIX) else VolumeFormat.RAW


def _make_raw(path: Path, capacity: int, preallocate: Preallocation) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if preallocate is Preallocation.ALL:
            os.posix_fallocate(descriptor, 0, capacity)
        else:
            os.ftruncate(descriptor, capacity)
    finally:
        os.close(descriptor)


async def _make_qcow2(path: Path, capacity: int, backing: Backing | None, preallocate: Preallocation) -> None:
    argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if backing is not None:
        # -u: the chain is checked already, and qemu-img has no reason to open it.
        argv += ["-u", "-b", str(backing.path), "-F", backing.format.value]
    argv += ["-o", f"preallocation={preallocate.value}"]
    await proc.run([*argv, str(path), str(capacity)], timeout=CREATE_SECONDS)


def _give_rights(path: Path, mode: int, owner: int, group: int) -> None:
    if (owner, group) != (-1, -1):
        os.chown(path, owner, group)
    path.chmod(mode)


def publish(partial: Path, path: Path) -> None:
    """Make a finished file durable and give it its name, unless that is taken (then FileExistsError)."""
    sync(partial)
    os.link(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's or a directory's content durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
