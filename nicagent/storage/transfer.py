"""A volume's content on its way in or out, with a bounded number of bytes in memory.

What comes in is kept in a file beside the volume and takes its place in one step once all of it has come and
is durable: whoever dies meanwhile leaves the volume as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path

from nicagent.errors import Kind, NicagentError
from nicagent.model import VolumeFormat
from nicagent.storage import imagelock, volume
from nicagent.storage.pool import DirectoryPool, sync, told
from nicagent.threads import in_thread

CHUNK = 1 << 20  # bytes of one request to the file system; two are in memory at most
PIECES = 256  # or so many of a client's, however small
COPY = 1 << 30  # bytes of one copy_file_range(2)

Piece = bytes | int  # data, or the length of a hole


class Upload:
    """New content for `length` bytes (0: as many as come) of a volume from `offset` on; what is outside of
    that stays as it is. `permitted` raises when the volume must not change now.
    """

    def __init__(
        self,
        pool: DirectoryPool,
        name: str,
        offset: int,
        length: int,
        permitted: Callable[[], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._name = name
        self._start = self._position = offset
        self._limit = offset + length if length else None
        self._permitted = permitted
        self._stack = contextlib.AsyncExitStack()
        self._partial = Path()
        self._descriptor = -1
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._flushing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make ready. Raises NO_SPACE, UNAVAILABLE."""
        self._partial = await self._stack.enter_async_context(self._pool.partial(self._name))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with told(f"write to {self._pool.path}"):
            self._descriptor = os.open(self._partial, flags, 0o600)
        self._stack.callback(os.close, self._descriptor)

    async def write(self, data: bytes) -> None:
        """Take data. Raises NO_SPACE, also for more than `length` bytes."""
        self._count(len(data))
        self._kept.append(data)
        self._kept_size += len(data)
        if self._kept_size >= CHUNK or len(self._kept) >= PIECES:
            await self._flush()

    async def skip(self, length: int) -> None:
        """Take a hole."""
        await self._flush()
        self._count(length)
        self._position += length

    def _count(self, more: int) -> None:
        end = self._position + self._kept_size + more
        if (self._limit is not None and end > self._limit) or end >= 1 << 62:
            raise NicagentError(
                Kind.NO_SPACE,
                f"more came for volume {self._name} than was announced",
                "give the right length",
            )

    async def _flush(self) -> None:
        """Begin to write what was taken, once the write before has ended."""
        await self._flushed()
        if self._kept:
            pieces, self._kept, at = self._kept, [], self._position
            self._position += self._kept_size
            self._kept_size = 0
            self._flushing = asyncio.create_task(in_thread(self._write, pieces, at))

    async def _flushed(self) -> None:
        if self._flushing is not None:
            task, self._flushing = self._flushing, None
            with told(f"write to {self._pool.path}"):
                await task

    def _write(self, pieces: list[bytes], at: int) -> None:
        size = sum(map(len, pieces))
        done = os.pwritev(self._descriptor, pieces, at)
        if done < size:  # the disk is nearly full; the next write says so
            left = memoryview(b"".join(pieces))
            while done < size:
                done += os.pwrite(self._descriptor, left[done:], at + done)
        # Begin to bring it to the disk, while more comes: it has to be there at the end.
        os.posix_fadvise(self._descriptor, at, size, os.POSIX_FADV_DONTNEED)

    async def finish(self) -> None:
        """Put the new content in place; durable when it returns.

        Raises WRONG_STATE (the volume is used), INVALID and others when what came is no volume of its format.
        """
        await self._flush()
        await self._flushed()
        place = self._pool.place(self._name)
        with told(f"write to {self._pool.path}"):
            await in_thread(self._complete, place)
        await self._permitted()
        await in_thread(self._replace, place)

    def _complete(self, place: Path) -> None:
        with place.open("rb") as old:
            facts = os.fstat(old.fileno())
            copy_range(old.fileno(), self._descriptor, 0, min(self._start, facts.st_size))
            copy_range(old.fileno(), self._descriptor, self._position, facts.st_size)
        size = max(facts.st_size, self._position)
        if self._pool.format(self._name) is VolumeFormat.RAW:
            size = -(-size // volume.SECTOR) * volume.SECTOR
        os.ftruncate(self._descriptor, size)
        os.fchown(self._descriptor, facts.st_uid, facts.st_gid)
        os.fchmod(self._descriptor, facts.st_mode & 0o7777)
        os.fsync(self._descriptor)
        volume.resolve(self._partial, self._pool.format(self._name), self._pool.allowed)

    def _replace(self, place: Path) -> None:
        with imagelock.alone(place):
            self._partial.replace(place)
        sync(place.parent)

    async def close(self) -> None:
        """Give up what has not been put in place."""
        with contextlib.suppress(NicagentError):
            await self._flushed()
        await self._stack.aclose()


def copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copy what is stored of a file's bytes [start, end) to the same place of another."""
    for first, last in stored(source, start, end):
        at = first
        while at < last:
            done = os.copy_file_range(source, target, min(last - at, COPY), at, at)
            if done == 0:
                return
            at += done


def stored(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges of [start, end) that are not holes."""
    while start < end:
        try:
            first = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # nothing but a hole to the end
                return
            raise
        if first >= end:
            return
        last = min(os.lseek(descriptor, first, os.SEEK_HOLE), end)
        yield first, last
        start = last


class Download:
    """The bytes of a volume's file: `length` of them (0: all) from `offset` on, as they are when read. With
    `sparse`, holes come as such.
    """

    def __init__(self, path: Path, offset: int, length: int, *, sparse: bool) -> None:
        with told(f"read {path}"):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        size = os.fstat(self._descriptor).st_size
        self._position = min(offset, size)
        self._end = min(size, offset + length) if length else size
        self._sparse = sparse
        self._pieces = self._read_ahead()
        self._rest = memoryview(b"")

    async def read(self, limit: int) -> Piece:
        """At most `limit` bytes, b"" at the end; or the length of a hole."""
        if not self._rest:
            piece = await anext(self._pieces, b"")
            if isinstance(piece, int):
                return piece
            self._rest = memoryview(piece)
        data = bytes(self._rest[:limit])
        self._rest = self._rest[limit:]
        return data

    async def _read_ahead(self) -> AsyncGenerator[Piece, None]:
        """One piece is read while the one before it is on its way."""
        coming: asyncio.Task[Piece] | None = None
        try:
            while self._position < self._end or coming is not None:
                piece = await (coming if coming is not None else in_thread(self._read))
                self._position += piece if isinstance(piece, int) else len(piece)
                if piece == b"":
                    return  # cut short meanwhile
                coming = None
                if self._position < self._end:
                    coming = asyncio.create_task(in_thread(self._read))
                yield piece
        finally:
            if coming is not None:
                await asyncio.gather(coming, return_exceptions=True)

    def _read(self) -> Piece:
        start, size = self._position, min(CHUNK, self._end - self._position)
        if self._sparse:
            first, last = next(stored(self._descriptor, start, self._end), (self._end, self._end))
            if first > start:
                return first - start
            size = min(size, last - start)
        return os.pread(self._descriptor, size, start)

    async def close(self) -> None:
        await self._pieces.aclose()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
