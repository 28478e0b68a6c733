"""QEMU's image locks, taken by ourselves: nobody opens a volume while we change it, and none that is open
anywhere is changed.

QEMU locks single bytes of an image (open file description locks, fcntl(2)): at 100 + n what it does with
the file, at 200 + n what it does not let others do. Whoever holds all of them for writing is alone, among the
agents on the same storage too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from nicagent.errors import Kind, NicagentError, Thing

FIRST, COUNT = 100, 200  # bytes
FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid: struct flock of 64-bit Linux


@contextlib.contextmanager
def alone(path: Path, *, write: bool = True) -> Iterator[int]:
    """A descriptor of a volume that nobody else has open, nor can open as an image meanwhile.

    Raises NOT_FOUND, WRONG_STATE when it is open.
    """
    try:
        flags = os.O_RDWR if write else os.O_RDONLY
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise NicagentError(
            Kind.NOT_FOUND,
            f"cannot open volume {path}: {e.strerror}",
            "list the pool's volumes",
            of=Thing.VOLUME,
        ) from None
    try:
        kind = fcntl.F_WRLCK if write else fcntl.F_RDLCK
        lock = FLOCK.pack(kind, os.SEEK_SET, FIRST, COUNT, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        except (BlockingIOError, PermissionError):
            raise NicagentError(
                Kind.WRONG_STATE, f"volume {path} is open in another process", "stop what uses it first"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)
