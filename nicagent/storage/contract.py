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
UNAVAILABLE (missing program, taken port, dead process that does not come back), UNSUPPORTED (encryption,
external data, readonly on a transport that cannot).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

from nicagent.model import Export, ExportStatus, Initiator, Transport


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

    @abc.abstractmethod
    async def status(self) -> tuple[ExportStatus, ...]:
        """Counters of what is visible now; empty when nothing is."""

    @abc.abstractmethod
    async def watch_over(self) -> None:
        """Run until cancelled: see to it that the data path's processes live while exports are presented, and
        restart a dead one within a second. Never raises for a process that fails to come back: it logs, backs
        off (to 30 s) and tries again.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of connections to the data path's processes; they go on."""
