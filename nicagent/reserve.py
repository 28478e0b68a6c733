"""Room that is kept on the disk of the state, for what must be written when there is none left.

A file that holds nothing lies beside the state. When a disk that others have filled refuses a write that
takes power away (who would leave a server burning for want of 4 KiB?), the file is removed and the write made
in its room. From then on nothing else is written until there is room for the file again: it is only lent. No
step of this can be half done: the file is there, or it is not, or it is shorter than it should be, which the
next start mends.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from pathlib import Path

log = logging.getLogger("nicagent.store")

SIZE = 1 << 20  # bytes: the stop of several hosts, each some 100 KiB of journal with a long definition
PLENTY = 4 * SIZE  # bytes free at which the file is made again without being asked for

PROBE = 1 << 16  # bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def is_full(folder: Path) -> bool:
    """Whether nothing more can be written there, for want of room or because a quota is spent."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, PROBE)
    except OSError as e:
        return e.errno in _NO_ROOM
    return False


class Reserve:
    """Not to be used by two threads at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.missing = False  # for want of room; a file system that cannot do it at all has none to miss

    def keep(self) -> bool:
        """Have the file there; False when there is no room for it."""
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(handle, 0, SIZE)
            finally:
                os.close(handle)
        except OSError as e:
            with contextlib.suppress(OSError):
                self._path.unlink()  # what there was room for is of no use
            was, self.missing = self.missing, e.errno in _NO_ROOM
            if self.missing and not was:
                log.error("no room is left to keep at %s: power can be taken away as long as there is any",
                          self._path)  # fmt: skip
        else:
            if self.missing:
                log.info("room is kept at %s again", self._path)
            self.missing = False
        return not self.missing

    def keep_if_plenty(self) -> None:
        """Have the file there again where that leaves room for others."""
        if not self.missing:
            return
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize >= PLENTY:
                self.keep()

    def lend(self) -> None:
        """Give the room away, if it was not given already."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            self.missing = True
            log.warning("the disk is full: the room kept at %s is used to take power away", self._path)
