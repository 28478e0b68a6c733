"""How a connection becomes a queue of a controller: the Connect command (NVMe-oF 1.1, section 3.3)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from nicagent.storage.nvmetcp import fabrics, login
from nicagent.storage.nvmetcp.admin import ADMIN, DISCOVERY
from nicagent.storage.nvmetcp.auth import Authentication
from nicagent.storage.nvmetcp.controller import Controller
from nicagent.storage.nvmetcp.io import IO
from nicagent.storage.nvmetcp.limits import ADMIN_DATA_MAX, IN_CAPSULE_MAX, QUEUE_ENTRIES
from nicagent.storage.nvmetcp.operation import running
from nicagent.storage.nvmetcp.pdu import Sqe
from nicagent.storage.nvmetcp.queue import Queue
from nicagent.storage.nvmetcp.spec import (
    CNTLID_DYNAMIC,
    CSTS_READY,
    DISCOVERY_NQN,
    DNR,
    FabricsType,
    NvmeError,
    Status,
)
from nicagent.storage.nvmetcp.subsystem import Catalogue, Subsystem

log = logging.getLogger(__name__)

CONTROLLERS_PER_HOST = 16
CNTLID_MAX = 0xFFEF  # above are reserved (NVMe-oF 1.1, section 4.2)
SETTLE_TIMEOUT = 30.0  # seconds a Connect waits for what an earlier association left in flight


@dataclass(slots=True)
class Associations:
    """Every host's association with what the catalogue shows."""

    catalogue: Catalogue
    controllers: dict[int, Controller] = field(default_factory=dict)  # by CNTLID
    _next_cntlid: int = 1

    def of(self, subsystem: Subsystem) -> list[Controller]:
        """The controllers of a subsystem."""
        return [one for one in self.controllers.values() if one.subsystem is subsystem]

    def connect(self, queue: Queue, sqe: Sqe, data: memoryview) -> None:
        """Connect, the one command of a connection that is no queue yet."""
        if sqe.nsid & 0xFF != FabricsType.CONNECT:
            raise NvmeError(Status.COMMAND_SEQUENCE | DNR)
        wish = fabrics.parse_connect(sqe, data)
        if not 2 <= wish.entries <= QUEUE_ENTRIES:
            raise NvmeError(Status.CONNECT_INVALID | DNR, fabrics.AT_SQSIZE)
        if wish.qid:
            controller = self._owner(wish)
            _join(queue, controller, wish)
            queue.answers.respond(sqe.cid, 0, _told(queue, controller))
            return
        subsystem = self._subsystem(queue, wish)
        if subsystem is None:
            queue.answers.respond(sqe.cid, 0, self._associate(queue, wish, None).cntlid)
            return

        def done() -> None:
            if queue.controller is not None:
                queue.answers.respond(sqe.cid, 0, _told(queue, queue.controller))

        associated = running(self._settle_and_associate(queue, wish, subsystem))
        queue.pending.add(sqe.cid, associated, Status.INTERNAL, done)

    def _subsystem(self, queue: Queue, wish: fabrics.Connect) -> Subsystem | None:
        """The subsystem an admin Connect names, None for discovery. Raises what the host is to be told."""
        if wish.cntlid != CNTLID_DYNAMIC:
            raise NvmeError(Status.CONNECT_INVALID | DNR, fabrics.AT_CNTLID)
        if wish.subnqn == DISCOVERY_NQN:
            return None
        subsystem = self.catalogue.subsystems.get(wish.subnqn)
        if subsystem is None or queue.discovery_only:
            # Without DNR: a Linux host that is told not to retry gives up its root disk for good, and the
            # subsystem may be back with the next reload.
            log.warning("%s: %s asks for unknown subsystem %r", queue.peer, wish.hostnqn, wish.subnqn)
            raise NvmeError(Status.CONNECT_INVALID, fabrics.AT_SUBNQN)
        if not subsystem.allows(wish.hostnqn):
            log.warning("%s: host %r is not allowed on %s", queue.peer, wish.hostnqn, wish.subnqn)
            raise NvmeError(Status.CONNECT_HOST | DNR)
        return subsystem

    async def _settle_and_associate(self, queue: Queue, wish: fabrics.Connect, subsystem: Subsystem) -> None:
        """Lets what earlier associations left in flight end: an old write must not land on a newer one."""
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT):
                for namespace in list(subsystem.namespaces.values()):
                    await namespace.backend.settled()
        except TimeoutError:
            raise NvmeError(Status.CONNECT_BUSY) from None
        if self._subsystem(queue, wish) is not subsystem:
            raise NvmeError(Status.CONNECT_INVALID, fabrics.AT_SUBNQN)
        self._associate(queue, wish, subsystem)

    def _associate(self, queue: Queue, wish: fabrics.Connect, subsystem: Subsystem | None) -> Controller:
        if sum(one.hostnqn == wish.hostnqn for one in self.controllers.values()) >= CONTROLLERS_PER_HOST:
            raise NvmeError(Status.CONNECT_BUSY)
        controller = Controller(
            cntlid=self._free_cntlid(),
            hostnqn=wish.hostnqn,
            hostid=wish.hostid,
            subsystem=subsystem,
            catalogue=self.catalogue,
            kato=wish.kato,
            heard=asyncio.get_running_loop().time(),
            on_end=self._ended,
        )
        self.controllers[controller.cntlid] = controller
        _join(queue, controller, wish)
        log.info("%s: %s connects to %s as controller %d", queue.peer, wish.hostnqn, wish.subnqn,
                 controller.cntlid)  # fmt: skip
        return controller

    def _free_cntlid(self) -> int:
        while self._next_cntlid in self.controllers:
            self._next_cntlid = self._next_cntlid % CNTLID_MAX + 1
        cntlid = self._next_cntlid
        self._next_cntlid = cntlid % CNTLID_MAX + 1
        return cntlid

    def _ended(self, controller: Controller) -> None:
        self.controllers.pop(controller.cntlid, None)

    def _owner(self, wish: fabrics.Connect) -> Controller:
        """The controller an I/O queue belongs to."""
        controller = self.controllers.get(wish.cntlid)
        if (
            controller is None
            or controller.subsystem is None
            or (
                (controller.hostnqn, controller.hostid, controller.subsystem.nqn)
                != (wish.hostnqn, wish.hostid, wish.subnqn)
            )
        ):
            # Without DNR: the association may have ended between the two Connects, by a restart of ours.
            raise NvmeError(Status.CONNECT_INVALID, fabrics.AT_CNTLID)
        if not controller.csts & CSTS_READY:
            raise NvmeError(Status.COMMAND_SEQUENCE | DNR)
        if wish.qid > controller.io_queues or wish.qid in controller.queues:
            raise NvmeError(Status.CONNECT_INVALID | DNR, fabrics.AT_QID)
        return controller


def _join(queue: Queue, controller: Controller, wish: fabrics.Connect) -> None:
    if wish.qid:
        handlers, in_capsule = IO, IN_CAPSULE_MAX
    else:
        handlers, in_capsule = ADMIN if controller.subsystem is not None else DISCOVERY, ADMIN_DATA_MAX
    authentication = None
    if (subsystem := controller.subsystem) is not None and subsystem.requirement() is not None:
        authentication = Authentication(subsystem.requirement, controller.hostnqn, subsystem.nqn)
    queue.join(
        controller,
        handlers,
        qid=wish.qid,
        entries=wish.entries,
        sq_flow_control=wish.sq_flow_control,
        in_capsule=in_capsule,
        authentication=authentication,
        meanwhile=login.HANDLERS,
    )


def _told(queue: Queue, controller: Controller) -> int:
    """Dword 0 of a Connect's completion: the controller, and whether the host is to authenticate."""
    return controller.cntlid | (login.REQUIRED if queue.authentication is not None else 0)
