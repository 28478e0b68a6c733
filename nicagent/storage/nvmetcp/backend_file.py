"""A raw file or block device behind the page cache.

What the cache holds is served inline: `preadv2(RWF_NOWAIT)` says so without waiting. A miss, a flush and
every hole goes to a thread: one slow disk stalls no other queue. Writes land in the page cache inline.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp.backend import Backend, BackendError
from nicagent.storage.nvmetcp.operation import Operation, ended

THREADS = 8  # concurrent slow operations on one disk
ZERO_CHUNK = 1 << 20  # bytes written at a time where the file system cannot zero a range

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
BLKDISCARD, BLKZEROOUT, BLKGETSIZE64 = 0x1277, 0x127F, 0x80081272  # linux/fs.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class FileBackend(Backend):
    """See `Backend`. The file's size is the disk's size; `size % block_size` must be 0."""

    discard_reads_zero = True

    def __init__(self, path: str, *, readonly: bool, block_size: int) -> None:
        self.path = path
        self.size = 0
        self._readonly = readonly
        self._block_size = block_size
        self._fd = -1
        self._is_device = False
        self._nowait = True
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[Future[BackendError | None]] = set()

    async def open(self) -> None:
        flags = (os.O_RDONLY if self._readonly else os.O_RDWR) | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags)
            mode = os.fstat(self._fd).st_mode
        except OSError as error:
            kind = Kind.DENIED if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else Kind.NOT_FOUND
            raise NicagentError(kind, f"cannot open disk {self.path}: {error.strerror}") from None
        self._is_device = stat.S_ISBLK(mode)
        self.discard_reads_zero = not self._is_device  # a punched hole is zero; a device promises nothing
        if not self._is_device and not stat.S_ISREG(mode):
            await self.close()
            raise NicagentError(
                Kind.INVALID, f"disk {self.path} is neither a regular file nor a block device"
            )
        self.size = self._measure()
        if self.size == 0 or self.size % self._block_size:
            size = self.size
            await self.close()
            raise NicagentError(
                Kind.INVALID,
                f"disk {self.path} has {size} bytes, no multiple of its {self._block_size}-byte blocks",
            )
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="disk")

    async def close(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def refresh(self) -> bool:
        size = self._measure()
        if size == self.size or size == 0 or size % self._block_size:
            return False
        self.size = size
        return True

    def read_now(self, offset: int, into: memoryview) -> bool:
        if not self._nowait:
            return False
        try:
            return os.preadv(self._fd, (into,), offset, os.RWF_NOWAIT) == len(into)
        except BlockingIOError:
            return False
        except OSError as error:
            # A file system that cannot tell what is cached (EOPNOTSUPP) is always read in a thread; any other
            # error is met there again, and reported.
            self._nowait = error.errno != errno.EOPNOTSUPP
            return False

    def write_now(self, offset: int, data: memoryview) -> bool:
        try:
            return os.pwrite(self._fd, data, offset) == len(data)
        except OSError:
            return False  # the thread meets the same error and reports it

    def read(self, offset: int, into: memoryview) -> Operation:
        return self._slow(lambda: self._read_all(offset, into))

    def write(self, offset: int, data: memoryview, *, durable: bool) -> Operation:
        return self._slow(lambda: self._write_all(offset, data, durable))

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool, durable: bool) -> Operation:
        return self._slow(lambda: self._zero(offset, length, may_unmap, durable))

    def discard(self, offset: int, length: int) -> Operation:
        return self._slow(lambda: self._discard(offset, length))

    def flush(self) -> Operation:
        return self._slow(lambda: os.fdatasync(self._fd))

    async def settled(self) -> None:
        running = tuple(self._running)
        if running:
            await asyncio.to_thread(wait, running)

    def _slow(self, work: Callable[[], None]) -> Operation:
        if self._pool is None:
            return ended(self._closed())
        loop = asyncio.get_running_loop()
        job = self._pool.submit(self._guarded, work)
        operation = Operation(job.cancel)
        self._running.add(job)

        def over() -> None:
            self._running.discard(job)
            operation.end(self._closed() if job.cancelled() else job.result())

        job.add_done_callback(lambda _: loop.call_soon_threadsafe(over))
        return operation

    def _closed(self) -> BackendError:
        return BackendError(errno.ESHUTDOWN, f"disk {self.path} is closed")

    def _guarded(self, work: Callable[[], None]) -> BackendError | None:
        try:
            work()
        except OSError as error:
            return BackendError(error.errno or errno.EIO, f"disk {self.path}: {error.strerror}")
        return None

    def _measure(self) -> int:
        if self._is_device:
            answer = fcntl.ioctl(self._fd, BLKGETSIZE64, bytes(8))
            return int.from_bytes(answer, "little")
        return os.fstat(self._fd).st_size

    def _read_all(self, offset: int, into: memoryview) -> None:
        while into:
            count = os.preadv(self._fd, (into,), offset)
            if count == 0:
                raise OSError(errno.EIO, "the file is shorter than the disk")
            into, offset = into[count:], offset + count

    def _write_all(self, offset: int, data: memoryview, durable: bool) -> None:
        while data:
            count = os.pwrite(self._fd, data, offset)
            data, offset = data[count:], offset + count
        if durable:
            os.fdatasync(self._fd)

    def _zero(self, offset: int, length: int, may_unmap: bool, durable: bool) -> None:
        if not self._zero_range(offset, length, may_unmap):
            zeroes = memoryview(bytes(min(length, ZERO_CHUNK)))
            for at in range(offset, offset + length, ZERO_CHUNK):
                self._write_all(at, zeroes[: offset + length - at], False)
        if durable:
            os.fdatasync(self._fd)

    def _zero_range(self, offset: int, length: int, may_unmap: bool) -> bool:
        if self._is_device:
            return self._ioctl(BLKZEROOUT, offset, length)
        if may_unmap and self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length):
            return True
        return self._fallocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)

    def _discard(self, offset: int, length: int) -> None:
        if self._is_device:
            self._ioctl(BLKDISCARD, offset, length)
        else:
            self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        if _libc.fallocate(self._fd, mode, offset, length) == 0:
            return True
        return self._unsupported(ctypes.get_errno())

    def _ioctl(self, request: int, offset: int, length: int) -> bool:
        try:
            fcntl.ioctl(self._fd, request, struct.pack("=QQ", offset, length))
        except OSError as error:
            return self._unsupported(error.errno or errno.EIO)
        return True

    def _unsupported(self, number: int) -> bool:
        """False when the disk merely cannot do it; any other error is real."""
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL):
            return False
        raise OSError(number, os.strerror(number))
