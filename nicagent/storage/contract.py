"""What a host's storage is: exactly these volumes, visible to exactly this host.

Declarative on purpose: the controller says what must be visible, the driver makes it so, whatever it finds
(nothing, all of it, or the half that a crash left). So start, recovery and rollback are the same call.

An implementation **must**

- make `present(exports)` idempotent, and disturb no export that is already as asked: a running host does not
  notice;
- keep the data path in processes (or the kernel) that outlive the agent, find them again, and restart a dead
  one with bit-equal identity (`ExportIdentity` is given, never invented here);
- let only the given initiator connect;
- leave nothing of the tenant behind after `withdraw`: no process, no socket, no listening port;
- lose no byte that the host flushed, whatever dies.

It **may** hold a volume open for longer than it is visible. Legal order: any. Errors: NOT_FOUND (volume),
DENIED (outside the pools), WRONG_STATE (in use elsewhere), INVALID (format does not fit the file), NO_SPACE,
UNAVAILABLE (missing program, taken port, dead process that does not come back; as `NotReleased`: an OS was
asked to let go of a disk and has it still), UNSUPPORTED (encryption, external data, readonly on a transport
that cannot).
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Sequence

from nicagent.errors import Kind, NicagentError
from nicagent.model import (
    BlockJob,
    Credentials,
    DiskFile,
    Export,
    ExportStatus,
    Initiator,
    JobFacts,
    Transport,
    VolumeFormat,
)


class DiskFiles(abc.ABC):
    """The files behind disks, all inside the pools. Errors as of `HostStorage`, and EXISTS."""

    @abc.abstractmethod
    async def chain(self, path: str, format: VolumeFormat) -> tuple[DiskFile, ...]:
        """The files of a disk, the written one first."""

    @abc.abstractmethod
    def check_place(self, path: str, *, there: bool) -> None:
        """Raises INVALID for a path that is not absolute, DENIED outside the pools, EXISTS or NOT_FOUND."""

    @abc.abstractmethod
    async def create(
        self, path: str, format: VolumeFormat, size: int, backing: DiskFile | None = None
    ) -> None:
        """Make a file of `size` bytes, never over another one."""

    @abc.abstractmethod
    def remove(self, path: str) -> None:
        """Take away a file that was just made."""


class HostStorage(abc.ABC):
    """The storage of one host over its wired transport."""

    transport: Transport

    @abc.abstractmethod
    async def present(self, exports: Sequence[Export], initiator: Initiator) -> None:
        """Make exactly these exports visible, in this order. Returns when a host that looks finds them.

        If it raises, what was visible before is still watched over; and where nothing was, `watch_over` goes
        on trying these, until `withdraw`.
        """

    @abc.abstractmethod
    async def withdraw(self) -> None:
        """Take every export down and end the data path's processes. Idempotent."""

    def credentials(self) -> Credentials | None:
        """What the host proves itself with when it connects to what is visible now, None for nothing."""
        return None

    @abc.abstractmethod
    async def status(self) -> tuple[ExportStatus, ...]:
        """Counters of what is visible now; empty when nothing is."""

    # ---- under a running host; each raises UNSUPPORTED where the block engine cannot

    @abc.abstractmethod
    async def check_pluggable(self, *, more: int = 0, gone: Collection[str] = ()) -> None:
        """Raises UNSUPPORTED when disks of a host that runs do not come and go, or not so many `more`, or not
        the targets `gone`. Nothing is changed.
        """

    async def resize(self, target: str, size: int) -> None:
        """Give a presented disk another size, in bytes. Returns once the host was told. Requests of the host
        wait meanwhile; none fails. Raises WRONG_STATE while a block job works on it, NO_SPACE.
        """
        raise self._cannot("resize a disk of a running host")

    async def jobs(self) -> tuple[JobFacts, ...]:
        """Block jobs on presented disks, also those that were started before the agent was."""
        return ()

    async def start_job(self, job: BlockJob) -> None:
        """Start a block job on a presented disk; for a copy its file is there and large enough. Raises EXISTS
        when the disk has one, INVALID for a layer that is not in its chain.
        """
        raise self._cannot("work on a disk of a running host")

    async def set_job_speed(self, target: str, speed: int) -> None:
        """In bytes a second, 0 for no limit. Raises NOT_FOUND when there is no job."""
        raise self._cannot("work on a disk of a running host")

    async def end_job(self, target: str) -> None:
        """Bring a ready copy or active commit to its end: both sides are the same once this returns, and the
        disk is held, its host's requests wait, until the next `present`, which says which of the two it is
        from now on. Raises WRONG_STATE when it is not ready; then nothing has changed.
        """
        raise self._cannot("work on a disk of a running host")

    async def give_up_job(self, target: str) -> None:
        """End a job wherever it is, or forget one that has ended. The disk goes on as it is presented."""
        raise self._cannot("work on a disk of a running host")

    def _cannot(self, what: str) -> NicagentError:
        return NicagentError(Kind.UNSUPPORTED, f"the transport {self.transport.value} cannot {what}")

    @abc.abstractmethod
    async def watch_over(self) -> None:
        """Run until cancelled: see to it that the data path's processes live while exports are presented, and
        restart a dead one within a second. Never raises for a process that fails to come back: it logs, backs
        off (to 30 s) and tries again.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of connections to the data path's processes; they go on."""
