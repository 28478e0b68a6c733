"""A directory pool: a directory whose files are volumes.

A volume's format is told by its name, never by its content (`*.qcow2` is qcow2, all else raw), because a
tenant writes the content. New volumes are made under a hidden name, made durable, and linked to their own
name as the last step: there is never half a volume, and never one over another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nicagent import proc
from nicagent.errors import Kind, NicagentError
from nicagent.model import VolumeFormat
from nicagent.storage import volume

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")
QCOW2_SUFFIX = ".qcow2"
PARTIAL_PREFIX = ".new-"
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
    backing: Path | None = None


@dataclass(frozen=True)
class PoolInfo:
    """Room of the file system that holds the pool, in bytes."""

    capacity: int
    allocation: int
    available: int


@dataclass(frozen=True)
class DirectoryPool:
    """A pool by its name and directory. `allowed` are all the agent's pools: overlays may cross them."""

    name: str
    path: Path
    allowed: Sequence[Path]

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
        path = self._path(name)
        format = format_of(name)
        chain = volume.resolve(path, format, self.allowed)
        return Volume(
            name=name,
            path=path,
            format=format,
            capacity=chain[0].size,
            allocation=path.stat().st_blocks * 512,  # stat(2): in units of 512 bytes whatever the file system
            backing=chain[1].path if len(chain) > 1 else None,
        )

    async def create(
        self, name: str, capacity: int = 0, *, backing: Backing | None = None, preallocate: bool = False
    ) -> Volume:
        """Make a volume of `capacity` bytes; the name says the format. With `backing`, 0 means its size.

        Raises EXISTS, INVALID (size, name, backing), NO_SPACE.
        """
        path = self._path(name)
        format = format_of(name)
        self.info()
        if path.exists():
            raise self._exists(name)
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
        async with self._partial(name) as partial:
            if format is VolumeFormat.RAW:
                await asyncio.to_thread(_make_raw, partial, capacity, preallocate)
            else:
                await _make_qcow2(partial, capacity, backing, preallocate)
            await asyncio.to_thread(_publish, partial, path)
        return self.look_up(name)

    def delete(self, name: str) -> None:
        """Remove a volume. Raises NOT_FOUND. Whether a domain still uses it is the caller's to know."""
        path = self._path(name)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise NicagentError(Kind.INVALID, f"{path} is not a volume", "remove it by hand")
            path.unlink()
        except FileNotFoundError:
            raise NicagentError(
                Kind.NOT_FOUND, f"pool {self.name} has no volume {name}", "list the pool's volumes"
            ) from None

    @contextlib.asynccontextmanager
    async def _partial(self, name: str) -> AsyncIterator[Path]:
        partial = self.path / f"{PARTIAL_PREFIX}{secrets.token_hex(6)}"
        try:
            yield partial
        except FileExistsError:
            raise self._exists(name) from None
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

    def _path(self, name: str) -> Path:
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

    def _exists(self, name: str) -> NicagentError:
        return NicagentError(
            Kind.EXISTS, f"pool {self.name} already has a volume {name}", "choose another name"
        )

    def _full(self, name: str) -> NicagentError:
        free = self.info().available
        return NicagentError(
            Kind.NO_SPACE,
            f"no room for volume {name} in pool {self.name}: {free >> 20} MiB are free in {self.path}",
            "delete volumes or choose a smaller size",
        )


def format_of(name: str) -> VolumeFormat:
    """The format that a volume's name states."""
    return VolumeFormat.QCOW2 if name.endswith(QCOW2_SUFFIX) else VolumeFormat.RAW


def _make_raw(path: Path, capacity: int, preallocate: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if preallocate:
            os.posix_fallocate(descriptor, 0, capacity)
        else:
            os.ftruncate(descriptor, capacity)
    finally:
        os.close(descriptor)


async def _make_qcow2(path: Path, capacity: int, backing: Backing | None, preallocate: bool) -> None:
    argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if backing is not None:
        # -u: the chain is checked already, and qemu-img has no reason to open it.
        argv += ["-u", "-b", str(backing.path), "-F", backing.format.value]
    if preallocate:
        argv += ["-o", "preallocation=falloc"]
    await proc.run([*argv, str(path), str(capacity)], timeout=CREATE_SECONDS)
    path.chmod(0o600)


def _publish(partial: Path, path: Path) -> None:
    """Make a finished file durable and give it its name, unless that is taken (then FileExistsError)."""
    _sync(partial)
    os.link(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
