"""Volumes made from others, made larger or smaller, made unreadable. All of it blocks or takes long; none of
it asks whether somebody uses the volume, but what another process has open is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nicagent import proc
from nicagent.errors import Kind, NicagentError
from nicagent.model import VolumeFormat
from nicagent.storage import imagelock
from nicagent.storage.pool import PARTIAL_PREFIX, WIPING_PREFIX, Backing, DirectoryPool, Volume, publish, sync
from nicagent.storage.transfer import stored
from nicagent.storage.volume import SECTOR, Layer, resolve
from nicagent.threads import in_thread

COPY_SECONDS = 24 * 3600.0  # a clone of terabytes from a slow disk
RESIZE_SECONDS = 600.0
BLOCK = 1 << 20  # bytes written or read back at once

# qemu-img dies with the agent: nobody would give what it makes its name.
QEMU_IMG = ("setpriv", "--pdeathsig=KILL", "--", "qemu-img")


def rounded(capacity: int) -> int:
    """To whole sectors, upwards."""
    return -(-capacity // SECTOR) * SECTOR


async def clone(
    pool: DirectoryPool,
    name: str,
    source: Sequence[Layer],
    *,
    format: VolumeFormat,
    capacity: int = 0,
    backing: Backing | None = None,
    mode: int = 0o600,
) -> Volume:
    """A new volume with the content of a chain, at least as large as it. With `backing` only what differs
    from that is stored. Raises EXISTS, NO_SPACE, WRONG_STATE when the source is being written.
    """
    place = pool.place(name)
    pool.info()
    if place.exists():
        raise pool.exists(name)
    size = max(source[0].size, rounded(capacity))
    async with pool.partial(name) as partial:
        argv = [*QEMU_IMG, "convert", "-q", "-O", format.value]
        if backing is not None:
            resolve(backing.path, backing.format, pool.allowed)
            argv += ["-B", str(backing.path), "-F", backing.format.value]
        try:
            await proc.run([*argv, described(source), str(partial)], timeout=COPY_SECONDS)
            if size > source[0].size:
                await _qemu_resize(partial, format, size)
        except NicagentError as e:
            if "lock" in e.message:
                raise NicagentError(
                    Kind.WRONG_STATE, f"volume {source[0].path} is being written", "stop what uses it first"
                ) from None
            raise
        partial.chmod(mode)
        await in_thread(publish, partial, place)
    return pool.look_up(name)


def described(chain: Sequence[Layer]) -> str:
    """A chain as QEMU takes it (qemu-img(1), json:): every layer named, so that no header is followed."""
    below: dict[str, Any] | None = None
    for layer in reversed(chain):
        node: dict[str, Any] = {"driver": layer.format.value}
        node["file"] = {"driver": "file", "filename": str(layer.path)}
        if layer.format is VolumeFormat.QCOW2:
            node["backing"] = below
        below = node
    return "json:" + json.dumps(below)


async def resize(pool: DirectoryPool, found: Volume, capacity: int, *, allocate: bool) -> None:
    """Give a volume another capacity; what lies beyond it is gone. Durable when it returns."""
    if found.format is VolumeFormat.RAW:
        await in_thread(_resize_raw, found.path, capacity, allocate)
        return
    with imagelock.alone(found.path):
        pass
    await _qemu_resize(found.path, found.format, capacity, shrink=True, allocate=allocate)
    await in_thread(sync, found.path)


def _resize_raw(path: Path, capacity: int, allocate: bool) -> None:
    with imagelock.alone(path) as descriptor:
        try:
            before = os.fstat(descriptor).st_size
            if allocate and capacity > before:
                os.posix_fallocate(descriptor, before, capacity - before)
            os.ftruncate(descriptor, capacity)
            os.fsync(descriptor)
        except OSError as e:
            raise NicagentError(
                Kind.NO_SPACE, f"cannot resize {path}: {e.strerror}", "choose a smaller size"
            ) from None


async def _qemu_resize(
    path: Path, format: VolumeFormat, capacity: int, *, shrink: bool = False, allocate: bool = False
) -> None:
    argv = [*QEMU_IMG, "resize", "-q", "-f", format.value]
    argv += ["--shrink"] if shrink else []
    argv += ["--preallocation=falloc"] if allocate else []
    await proc.run([*argv, str(path), str(capacity)], timeout=RESIZE_SECONDS)


async def wipe(pool: DirectoryPool, found: Volume) -> None:
    """Overwrite all that a volume stores with zeros, and read them back. What stays is an empty volume of the
    same capacity; an overlay no longer stands on anything.
    """
    if found.format is VolumeFormat.RAW:
        await in_thread(zero, found.path)
        return
    async with pool.partial(found.name) as partial:
        argv = [*QEMU_IMG, "create", "-q", "-f", found.format.value, str(partial), str(found.capacity)]
        await proc.run(argv, timeout=RESIZE_SECONDS)
        wiping = partial.with_name(WIPING_PREFIX + partial.name.removeprefix(PARTIAL_PREFIX))
        await in_thread(_exchange, found.path, partial, wiping)
    await in_thread(_end_wiping, wiping)


def _exchange(place: Path, fresh: Path, wiping: Path) -> None:
    """`place` becomes `fresh`; what it was is called `wiping`. A death in between leaves two names of it."""
    facts = place.stat()
    os.chown(fresh, facts.st_uid, facts.st_gid)
    fresh.chmod(facts.st_mode & 0o7777)
    sync(fresh)
    with imagelock.alone(place):
        os.link(place, wiping)
        fresh.replace(place)
    sync(place.parent)


def _end_wiping(wiping: Path) -> None:
    if wiping.stat().st_nlink == 1:  # else the volume still has it: the wipe was not begun
        zero(wiping)
    wiping.unlink()
    sync(wiping.parent)


def zero(path: Path) -> None:
    """Overwrite what a file stores with zeros, durably, and see that they are there."""
    zeros = memoryview(bytes(BLOCK))
    with imagelock.alone(path) as descriptor:
        size = os.fstat(descriptor).st_size
        ranges = list(stored(descriptor, 0, size))
        for first, last in ranges:
            at = first
            while at < last:
                at += os.pwrite(descriptor, zeros[: last - at], at)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # read back from the disk
        for first, last in ranges:
            for at in range(first, last, BLOCK):
                data = os.pread(descriptor, min(BLOCK, last - at), at)
                if data != zeros[: len(data)] or not data:
                    raise NicagentError(
                        Kind.INTERNAL, f"{path} does not read as zeros after it was wiped", "replace the disk"
                    )


def tidy(leftovers: Sequence[Path]) -> None:
    """Finish what a death of the agent has left: new files are removed, wiping is ended."""
    for path in leftovers:
        if path.name.startswith(WIPING_PREFIX):
            _end_wiping(path)
        else:
            path.unlink(missing_ok=True)
