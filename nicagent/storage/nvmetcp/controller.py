"""A controller: what one host's association with a subsystem remembers, its keep alive and its events."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from nicagent.storage.nvmetcp.answers import Answers
from nicagent.storage.nvmetcp.auth import Authentication
from nicagent.storage.nvmetcp.limits import AER_LIMIT, IO_QUEUES_MAX
from nicagent.storage.nvmetcp.spec import (
    DNR,
    EVENT_DISCOVERY,
    EVENT_NAMESPACES,
    NSID_ALL,
    Feature,
    LogPage,
    NvmeError,
    Status,
)
from nicagent.storage.nvmetcp.subsystem import Catalogue, Subsystem
from nicagent.storage.nvmetcp.terms import Terms

log = logging.getLogger(__name__)

CHANGED_MAX = 1024  # entries of the changed namespace list
KATO_GRACE = 1.0  # seconds: timer granularity (KAS) on top of the host's own time-out

NOTICE = 2  # asynchronous event type (base 1.4, figure 146)
NAMESPACE_CHANGED = 0x00
DISCOVERY_CHANGED = 0xF0


class Connection(Protocol):
    """A queue, as its controller needs it."""

    qid: int
    peer: str
    answers: Answers
    terms: Terms
    authentication: Authentication | None

    def close(self) -> None:
        """Ends the connection. Idempotent."""


@dataclass(slots=True)
class Controller:
    """One association. `subsystem` is None for a discovery controller."""

    cntlid: int
    hostnqn: str
    hostid: bytes
    subsystem: Subsystem | None
    catalogue: Catalogue
    kato: int  # milliseconds, 0: no keep alive
    heard: float  # loop time of the last bytes on any queue (traffic based keep alive, CTRATT.TBKAS)
    on_end: Callable[[Controller], None]
    queues: dict[int, Connection] = field(default_factory=dict)
    cc: int = 0
    csts: int = 0
    io_queues: int = IO_QUEUES_MAX
    features: dict[int, int] = field(default_factory=dict)
    async_requests: deque[int] = field(default_factory=deque)  # CIDs
    events: deque[int] = field(default_factory=deque)  # dword 0 of completions that found no request
    masked: set[int] = field(default_factory=set)  # log pages with an event the host has not read yet
    changed: set[int] = field(default_factory=set)  # NSIDs for the changed namespace list
    ended: bool = False
    _watchdog: asyncio.TimerHandle | None = None

    # Life --------------------------------------------------------------------------------------------------

    def attach(self, queue: Connection) -> None:
        """Takes a connection whose Connect succeeded."""
        self.queues[queue.qid] = queue
        if queue.qid == 0:
            self.watch()

    def detach(self, queue: Connection) -> None:
        """A connection is gone. Without its admin queue a controller is gone too."""
        if self.queues.get(queue.qid) is queue:
            del self.queues[queue.qid]
        if queue.qid == 0:
            self.end("the admin connection ended")

    def end(self, reason: str) -> None:
        """Ends the association: every connection closes, nothing waits. Idempotent."""
        self._stop_watch()
        if not self.ended:
            self.ended = True
            log.info("controller %d of %s ends: %s", self.cntlid, self.hostnqn, reason)
            self.on_end(self)
        queues, self.queues = self.queues, {}
        for queue in queues.values():
            queue.close()

    def watch(self) -> None:
        """(Re)starts the keep alive timer."""
        self._stop_watch()
        if self.kato and not self.ended:
            loop = asyncio.get_running_loop()
            self._watchdog = loop.call_at(self.heard + self.kato / 1000 + KATO_GRACE, self._check_alive)

    def _stop_watch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _check_alive(self) -> None:
        self._watchdog = None
        silence = asyncio.get_running_loop().time() - self.heard
        if silence >= self.kato / 1000 + KATO_GRACE:
            self.end(f"nothing heard for {silence:.1f} s, keep alive time-out {self.kato} ms")
        else:
            self.watch()

    # Events ------------------------------------------------------------------------------------------------

    def namespace_changed(self, nsid: int) -> None:
        """A namespace came, went, or has another size."""
        if len(self.changed) >= CHANGED_MAX:
            self.changed = {NSID_ALL}  # "more than fit" (base 1.4, section 5.14.1.4)
        elif NSID_ALL not in self.changed:
            self.changed.add(nsid)
        if self.features.get(Feature.ASYNC_EVENTS, 0) & EVENT_NAMESPACES:
            self._notice(NAMESPACE_CHANGED, LogPage.CHANGED_NAMESPACES)

    def discovery_changed(self) -> None:
        """The discovery log has another content."""
        if self.features.get(Feature.ASYNC_EVENTS, 0) & EVENT_DISCOVERY:
            self._notice(DISCOVERY_CHANGED, LogPage.DISCOVERY)

    def _notice(self, info: int, page: int) -> None:
        if page in self.masked:
            return
        self.masked.add(page)
        self.events.append(NOTICE | info << 8 | page << 16)
        self._deliver()

    def _deliver(self) -> None:
        admin = self.queues.get(0)
        while admin is not None and self.events and self.async_requests:
            admin.answers.respond(self.async_requests.popleft(), 0, self.events.popleft())

    def request_event(self, cid: int) -> None:
        """An Asynchronous Event Request waits for an event."""
        if len(self.async_requests) >= AER_LIMIT:
            raise NvmeError(Status.AER_LIMIT | DNR)
        self.async_requests.append(cid)
        self._deliver()

    def page_was_read(self, page: int) -> None:
        """Reading a page without RAE re-enables its event."""
        self.masked.discard(page)

    def drop_requests(self) -> None:
        """A controller reset aborts outstanding event requests without completion."""
        self.async_requests.clear()
        self.events.clear()
        self.masked.clear()
