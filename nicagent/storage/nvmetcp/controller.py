"""A controller: what one host's association with a subsystem remembers, and the admin commands.

The admin commands are a table of opcodes; a discovery controller has a smaller one (NVMe-oF 1.1, figure 34).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nicagent.storage.nvmetcp import fabrics, features, identify, logpages
from nicagent.storage.nvmetcp.pdu import Sqe
from nicagent.storage.nvmetcp.spec import DNR, AdminOp, LogPage, NvmeError, Status
from nicagent.storage.nvmetcp.subsystem import Subsystem

if TYPE_CHECKING:
    from nicagent.storage.nvmetcp.queue import Handler, Queue
    from nicagent.storage.nvmetcp.target import Target

log = logging.getLogger(__name__)

AER_LIMIT = 4  # AERL + 1
IO_QUEUES_MAX = 16
CHANGED_MAX = 1024  # entries of the changed namespace list
KATO_GRACE = 1.0  # seconds: timer granularity (KAS) on top of the host's own time-out

NOTICE = 2  # asynchronous event type (base 1.4, figure 146)
NAMESPACE_CHANGED = 0x00
DISCOVERY_CHANGED = 0xF0
EVENT_NAMESPACES = 1 << 8  # bits of Asynchronous Event Configuration and of OAES
EVENT_DISCOVERY = 1 << 31


@dataclass(slots=True)
class Controller:
    """One association. `subsystem` is None for a discovery controller."""

    target: Target
    cntlid: int
    hostnqn: str
    hostid: bytes
    subsystem: Subsystem | None
    kato: int  # milliseconds, 0: no keep alive
    heard: float  # loop time of the last bytes on any queue (traffic based keep alive, CTRATT.TBKAS)
    queues: dict[int, Queue] = field(default_factory=dict)
    cc: int = 0
    csts: int = 0
    io_queues: int = IO_QUEUES_MAX
    features: dict[int, int] = field(default_factory=dict)
    async_requests: deque[int] = field(default_factory=deque)  # CIDs
    events: deque[int] = field(default_factory=deque)  # dword 0 of completions that found no request
    masked: set[int] = field(default_factory=set)  # log pages with an event the host has not read yet
    changed: set[int] = field(default_factory=set)  # NSIDs for the changed namespace list
    _watchdog: asyncio.TimerHandle | None = None

    # Life --------------------------------------------------------------------------------------------------

    def attach(self, queue: Queue, qid: int, entries: int) -> None:
        """Takes a connection whose Connect succeeded as queue `qid`."""
        queue.controller = self
        queue.qid = qid
        queue.entries = entries
        self.queues[qid] = queue
        queue.connected()
        if qid == 0:
            self.watch()

    def detach(self, queue: Queue) -> None:
        """A connection is gone. Without its admin queue a controller is gone too."""
        if self.queues.get(queue.qid) is queue:
            del self.queues[queue.qid]
        if queue.qid == 0:
            self.end("the admin connection ended")

    def end(self, reason: str) -> None:
        """Ends the association: every connection closes, nothing waits. Idempotent."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self.target.controllers.pop(self.cntlid, None) is not None:
            log.info("controller %d of %s ends: %s", self.cntlid, self.hostnqn, reason)
        queues, self.queues = self.queues, {}
        for queue in queues.values():
            queue.close()

    def watch(self) -> None:
        """(Re)starts the keep alive timer."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self.kato and self.cntlid in self.target.controllers:
            loop = asyncio.get_running_loop()
            self._watchdog = loop.call_at(self.heard + self.kato / 1000 + KATO_GRACE, self._check_alive)

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
            self.changed = {0xFFFF_FFFF}  # "more than fit" (base 1.4, section 5.14.1.4)
        elif 0xFFFF_FFFF not in self.changed:
            self.changed.add(nsid)
        if self.features.get(features.ASYNC_EVENTS, 0) & EVENT_NAMESPACES:
            self._notice(NAMESPACE_CHANGED, LogPage.CHANGED_NAMESPACES)

    def discovery_changed(self) -> None:
        """The discovery log has another content."""
        if self.features.get(features.ASYNC_EVENTS, 0) & EVENT_DISCOVERY:
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
            admin.respond(self.async_requests.popleft(), 0, self.events.popleft())

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


def _identify(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    controller = fabrics.enabled(queue)
    if sqe.sgl_length < identify.SIZE:
        raise NvmeError(Status.SGL_LENGTH | DNR)
    queue.respond_data(sqe, identify.identify(controller, sqe))


def _get_log_page(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    controller = fabrics.enabled(queue)
    queue.respond_data(sqe, logpages.read(controller, queue, sqe))


def _get_features(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    result, payload = features.get(fabrics.enabled(queue), sqe)
    if payload:
        queue.respond_data(sqe, payload)
    else:
        queue.respond(sqe.cid, 0, result)


def _set_features(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    queue.respond(sqe.cid, 0, features.set_(fabrics.enabled(queue), sqe))


def _async_event(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    fabrics.enabled(queue).request_event(sqe.cid)


def _keep_alive(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    if queue.controller is None or queue.controller.kato == 0:
        raise NvmeError(Status.INVALID_FIELD | DNR)
    queue.respond(sqe.cid)


def _abort(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    # Abort is best effort (base 1.4, section 5.1): bit 0 of dword 0 says "not aborted", and the command it
    # names completes as if nothing had been asked.
    fabrics.enabled(queue)
    queue.respond(sqe.cid, 0, 1)


ADMIN: Mapping[int, Handler] = {
    AdminOp.GET_LOG_PAGE: _get_log_page,
    AdminOp.IDENTIFY: _identify,
    AdminOp.ABORT: _abort,
    AdminOp.SET_FEATURES: _set_features,
    AdminOp.GET_FEATURES: _get_features,
    AdminOp.ASYNC_EVENT: _async_event,
    AdminOp.KEEP_ALIVE: _keep_alive,
    AdminOp.FABRICS: fabrics.command,
}

DISCOVERY: Mapping[int, Handler] = {op: handler for op, handler in ADMIN.items() if op != AdminOp.ABORT}
