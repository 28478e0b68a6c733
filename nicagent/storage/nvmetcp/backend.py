"""What a namespace needs from the thing that holds its bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from nicagent.storage.nvmetcp.operation import Operation

DRAIN_SECONDS = 10.0


class BackendError(Exception):
    """An operation failed for good. `errno` as errno(3); the target turns it into an NVMe status."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno


class Backend(ABC):
    """Bytes `0 .. size` of a disk, driven from one event loop.

    Offsets and lengths are in bytes, inside the disk, multiples of the namespace's block size; callers check.

    An implementation
    - MUST do any number of operations at once, in any order; nothing orders two operations in flight.
    - MUST make everything that completed before `flush` was called durable when `flush` completes; it MUST
      survive SIGKILL of this process without losing what was flushed.
    - MUST read back zeroes after `write_zeroes`, whatever `may_unmap` says.
    - MUST NOT block the event loop for a device: `read_now` and `write_now` only touch memory (page cache);
      everything slower returns an Operation.
    - MUST take a cancelled Operation as "nobody waits": it MAY still happen, but it MUST be over, or never
      happen, once `settled` completes. A host that reconnects writes again what got no answer, and an old
      write must not land on a newer one.
    - MAY refuse `read_now` and `write_now` always (return False), and MAY do nothing in `discard`.
    - MAY hold operations while its server restarts, with a bound on their time.

    Order: `open`, operations, `close`. Operations end with None or a BackendError.
    """

    size: int  # bytes; may change between operations only through `refresh`
    discard_reads_zero: bool  # discarded blocks read as zeroes until written

    @abstractmethod
    async def open(self) -> None:
        """Ready for operations. Raises NicagentError (not found, wrong size, server does not answer)."""

    @abstractmethod
    async def close(self) -> None:
        """Ends everything; operations still in flight end with ESHUTDOWN. Idempotent."""

    async def refresh(self) -> bool:
        """Looks for a new size; True when it changed."""
        return False

    def read_now(self, offset: int, into: memoryview) -> bool:
        """Fills `into` without waiting, or returns False with `into` in any state."""
        return False

    def write_now(self, offset: int, data: memoryview) -> bool:
        """Writes without waiting, or returns False with the range in any state. `data` is free on return."""
        return False

    @abstractmethod
    def read(self, offset: int, into: memoryview) -> Operation:
        """Fills `into`."""

    @abstractmethod
    def write(self, offset: int, data: memoryview, *, durable: bool) -> Operation:
        """Writes `data`, which stays untouched until the end; `durable` adds a flush of this write (FUA)."""

    @abstractmethod
    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool, durable: bool) -> Operation:
        """Zeroes a range; `may_unmap` allows to give its space back."""

    @abstractmethod
    def discard(self, offset: int, length: int) -> Operation:
        """A hint that the range's content is no longer needed."""

    @abstractmethod
    def flush(self) -> Operation:
        """Makes completed writes durable."""

    async def drained(self) -> None:
        """Returns when no operation is in flight; none may begin meanwhile. At the latest after
        DRAIN_SECONDS, when a server stays away: those still held then end with ESHUTDOWN at `close`.
        """
        await self.settled()

    @abstractmethod
    async def settled(self) -> None:
        """Returns when no cancelled operation can touch the disk any more."""
