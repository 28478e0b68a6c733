"""Our target: subsystems, associations and listeners in one event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from dataclasses import dataclass, field

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp import config as cfg
from nicagent.storage.nvmetcp import fabrics, io
from nicagent.storage.nvmetcp.contract import (
    Changes,
    ControllerStatus,
    NamespaceStatus,
    NvmeTarget,
    SubsystemStatus,
    TargetStatus,
)
from nicagent.storage.nvmetcp.controller import ADMIN, DISCOVERY, Controller
from nicagent.storage.nvmetcp.pdu import Phase, Sqe
from nicagent.storage.nvmetcp.queue import IN_CAPSULE_MAX, QUEUE_ENTRIES, Queue, TransmitBuffer
from nicagent.storage.nvmetcp.spec import CNTLID_DYNAMIC, DISCOVERY_NQN, DNR, NvmeError, Status
from nicagent.storage.nvmetcp.subsystem import Namespace, Subsystem, make_backend

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 1024
UNCONNECTED_MAX = 32  # connections of one peer address without a successful Connect
CONTROLLERS_PER_HOST = 16
CNTLID_MAX = 0xFFEF  # above are reserved (NVMe-oF 1.1, section 4.2)
SETTLE_TIMEOUT = 30.0  # seconds a Connect waits for what an earlier association left in flight
BACKLOG = 128


@dataclass(slots=True)
class _Plan:
    """A configuration opened but not yet shown."""

    subsystems: dict[str, dict[int, Namespace]] = field(default_factory=dict)
    opened: list[Namespace] = field(default_factory=list)
    bound: dict[cfg.Listen, asyncio.Server] = field(default_factory=dict)


class Target(NvmeTarget):
    """See `NvmeTarget`. `queue_entries` and `in_capsule` (bytes) are what every queue offers."""

    def __init__(self) -> None:
        self.queue_entries = QUEUE_ENTRIES
        self.in_capsule = IN_CAPSULE_MAX
        self.tx = TransmitBuffer()
        self.subsystems: dict[str, Subsystem] = {}
        self.controllers: dict[int, Controller] = {}
        self.generation = 0  # of the discovery log
        self._queues: set[Queue] = set()
        self._servers: dict[cfg.Listen, asyncio.Server] = {}
        self._applying = asyncio.Lock()
        self._next_cntlid = 1

    # The contract ------------------------------------------------------------------------------------------

    async def apply(self, config: cfg.TargetConfig) -> Changes:
        async with self._applying:
            plan = _Plan()
            try:
                await self._prepare(config, plan)
            except BaseException:
                for server in plan.bound.values():
                    server.close()
                for namespace in plan.opened:
                    await namespace.backend.close()
                raise
            return await self._commit(config, plan)

    def status(self) -> TargetStatus:
        return TargetStatus(
            pid=os.getpid(),
            listen=[f"{listen.host}:{listen.port}" for listen in self.listeners()],
            connections=len(self._queues),
            controllers=[
                ControllerStatus(
                    cntlid=controller.cntlid,
                    hostnqn=controller.hostnqn,
                    subnqn=controller.subsystem.nqn if controller.subsystem else DISCOVERY_NQN,
                    peer=controller.queues[0].peer if 0 in controller.queues else "",
                    queues=sorted(controller.queues),
                    kato=controller.kato,
                    header_digest=any(queue.header_digest for queue in controller.queues.values()),
                    data_digest=any(queue.data_digest for queue in controller.queues.values()),
                )
                for controller in self.controllers.values()
            ],
            subsystems=[
                SubsystemStatus(
                    nqn=subsystem.nqn,
                    hosts=list(subsystem.config.hosts),
                    namespaces=[_namespace_status(one) for _, one in sorted(subsystem.namespaces.items())],
                )
                for subsystem in self.subsystems.values()
            ],
        )

    async def close(self) -> None:
        servers, self._servers = self._servers, {}
        for server in servers.values():
            server.close()
        for controller in list(self.controllers.values()):
            controller.end("the target stops")
        for queue in list(self._queues):
            queue.close()
        subsystems, self.subsystems = self.subsystems, {}
        for subsystem in subsystems.values():
            for namespace in subsystem.namespaces.values():
                await namespace.backend.close()

    # Convergence -------------------------------------------------------------------------------------------

    async def _prepare(self, config: cfg.TargetConfig, plan: _Plan) -> None:
        """Opens what is new. Nothing a host can see changes here."""
        for wanted in config.subsystems:
            current = self.subsystems.get(wanted.nqn)
            namespaces = plan.subsystems.setdefault(wanted.nqn, {})
            for namespace in wanted.namespaces:
                known = current.namespaces.get(namespace.nsid) if current else None
                if known is None or known.config != namespace:
                    known = Namespace(namespace, make_backend(namespace))
                    await known.backend.open()
                    plan.opened.append(known)
                namespaces[namespace.nsid] = known
        for listen in config.listen:
            if listen not in self._servers:
                plan.bound[listen] = await self._bind(listen)

    async def _bind(self, listen: cfg.Listen) -> asyncio.Server:
        try:
            return await asyncio.get_running_loop().create_server(
                lambda: Queue(self, discovery_only=listen.discovery),
                listen.host,
                listen.port,
                backlog=BACKLOG,
            )
        except OSError as error:
            where = f"{listen.host}:{listen.port}"
            if error.errno == errno.EADDRINUSE:
                raise NicagentError(
                    Kind.UNAVAILABLE,
                    f"cannot listen on {where}: the address is taken",
                    "another target may be running there; stop it or choose another port",
                ) from None
            raise NicagentError(
                Kind.UNAVAILABLE, f"cannot listen on {where}: {error.strerror or error}", "check `listen`"
            ) from None

    async def _commit(self, config: cfg.TargetConfig, plan: _Plan) -> Changes:
        changes = Changes([], [], [])
        unused: list[Namespace] = []
        discovery_before = self._discovery_content()
        for nqn in [nqn for nqn in self.subsystems if nqn not in plan.subsystems]:
            gone = self.subsystems.pop(nqn)
            changes.removed.append(nqn)
            unused.extend(gone.namespaces.values())
            for controller in self._controllers_of(gone):
                controller.end("its subsystem was removed")
        for wanted in config.subsystems:
            current = self.subsystems.get(wanted.nqn)
            namespaces = plan.subsystems[wanted.nqn]
            if current is None:
                self.subsystems[wanted.nqn] = Subsystem(wanted, namespaces)
                changes.added.append(wanted.nqn)
            else:
                unused.extend(await self._converge(current, wanted, namespaces, changes))
        for listen in [listen for listen in self._servers if listen not in config.listen]:
            self._servers.pop(listen).close()
        self._servers.update(plan.bound)
        if self._discovery_content() != discovery_before:
            self.generation += 1
            for controller in self.controllers.values():
                if controller.subsystem is None:
                    controller.discovery_changed()
        for namespace in unused:
            await namespace.backend.close()
        return changes

    async def _converge(
        self,
        current: Subsystem,
        wanted: cfg.Subsystem,
        namespaces: dict[int, Namespace],
        changes: Changes,
    ) -> list[Namespace]:
        """Makes a live subsystem what is wanted; returns the namespaces that are no longer in use."""
        before, current.namespaces = current.namespaces, namespaces
        identity_changed = (current.config.serial, current.config.model) != (wanted.serial, wanted.model)
        current.config = wanted
        differing: list[int] = []
        for nsid in sorted(before.keys() | namespaces.keys()):
            name = f"{wanted.nqn}/{nsid}"
            if nsid not in before:
                changes.added.append(name)
            elif nsid not in namespaces:
                changes.removed.append(name)
            elif before[nsid] is not namespaces[nsid] or await namespaces[nsid].backend.refresh():
                changes.changed.append(name)
            else:
                continue
            differing.append(nsid)
        for controller in self._controllers_of(current):
            if not current.allows(controller.hostnqn):
                controller.end("its host is no longer allowed")
            elif identity_changed:
                controller.end("the identity of its subsystem changed")
            else:
                for nsid in differing:
                    controller.namespace_changed(nsid)
        return [one for nsid, one in before.items() if namespaces.get(nsid) is not one]

    def _controllers_of(self, subsystem: Subsystem) -> list[Controller]:
        return [one for one in self.controllers.values() if one.subsystem is subsystem]

    def _discovery_content(self) -> list[object]:
        content: list[object] = [(one.nqn, one.config.hosts) for one in self.subsystems.values()]
        content.extend(self._servers)
        return content

    # For queues and controllers ----------------------------------------------------------------------------

    def listeners(self) -> list[cfg.Listen]:
        """Where we listen; port 0 of the configuration is shown as the port it became."""
        return [
            cfg.Listen(listen.host, server.sockets[0].getsockname()[1] if server.sockets else listen.port,
                       listen.discovery)
            for listen, server in self._servers.items()
        ]  # fmt: skip

    def advertised(self, listen: cfg.Listen, queue: Queue) -> str:
        """The address a host is told: the listener's, or for a wildcard the one it reached us by."""
        return queue.local_address if listen.host in ("", "0.0.0.0", "::") else listen.host  # noqa: S104

    def admit(self, queue: Queue) -> bool:
        """Whether one more connection is within the limits."""
        unconnected = sum(one.phase < Phase.LIVE and one.address == queue.address for one in self._queues)
        if len(self._queues) >= CONNECTIONS_MAX or unconnected >= UNCONNECTED_MAX:
            return False
        self._queues.add(queue)
        return True

    def forget(self, queue: Queue) -> None:
        """A connection is gone."""
        self._queues.discard(queue)

    def connect(self, queue: Queue, sqe: Sqe, data: memoryview) -> None:
        """The Connect command (NVMe-oF 1.1, section 3.3)."""
        wish = fabrics.parse_connect(sqe, data)
        if not 2 <= wish.entries <= self.queue_entries:
            raise NvmeError(Status.CONNECT_INVALID | DNR, fabrics.AT_SQSIZE)
        if wish.qid:
            controller = self._owner(wish)
            self._take(queue, controller, wish)
            queue.respond(sqe.cid, 0, controller.cntlid)
            return
        subsystem = self._subsystem(queue, wish)
        if subsystem is None:
            queue.respond(sqe.cid, 0, self._associate(queue, wish, None).cntlid)
            return
        wait = asyncio.ensure_future(self._settle_and_associate(queue, wish, subsystem))

        def done() -> None:
            if queue.controller is not None:
                queue.respond(sqe.cid, 0, queue.controller.cntlid)

        queue.pend(sqe.cid, wait, Status.INTERNAL, done)

    def _subsystem(self, queue: Queue, wish: fabrics.Connect) -> Subsystem | None:
        """The subsystem an admin Connect names, None for discovery. Raises what the host is to be told."""
        if wish.cntlid != CNTLID_DYNAMIC:
            raise NvmeError(Status.CONNECT_INVALID | DNR, fabrics.AT_CNTLID)
        if wish.subnqn == DISCOVERY_NQN:
            return None
        subsystem = self.subsystems.get(wish.subnqn)
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
        while self._next_cntlid in self.controllers:
            self._next_cntlid = self._next_cntlid % CNTLID_MAX + 1
        controller = Controller(
            target=self,
            cntlid=self._next_cntlid,
            hostnqn=wish.hostnqn,
            hostid=wish.hostid,
            subsystem=subsystem,
            kato=wish.kato,
            heard=asyncio.get_running_loop().time(),
        )
        self._next_cntlid = self._next_cntlid % CNTLID_MAX + 1
        self.controllers[controller.cntlid] = controller
        self._take(queue, controller, wish)
        log.info("%s: %s connects to %s as controller %d", queue.peer, wish.hostnqn, wish.subnqn,
                 controller.cntlid)  # fmt: skip
        return controller

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
        if not controller.csts & fabrics.CSTS_READY:
            raise NvmeError(Status.COMMAND_SEQUENCE | DNR)
        if wish.qid > controller.io_queues or wish.qid in controller.queues:
            raise NvmeError(Status.CONNECT_INVALID | DNR, fabrics.AT_QID)
        return controller

    def _take(self, queue: Queue, controller: Controller, wish: fabrics.Connect) -> None:
        if wish.qid:
            queue.handlers = io.IO
            queue.allow_in_capsule(self.in_capsule)
        else:
            queue.handlers = ADMIN if controller.subsystem is not None else DISCOVERY
        queue.sq_flow_control = wish.sq_flow_control
        controller.attach(queue, wish.qid, wish.entries)


def _namespace_status(namespace: Namespace) -> NamespaceStatus:
    counters = namespace.counters
    return NamespaceStatus(
        nsid=namespace.nsid,
        uuid=str(namespace.config.uuid),
        size=namespace.backend.size,
        read_ops=counters.read_ops,
        read_bytes=counters.read_bytes,
        write_ops=counters.write_ops,
        write_bytes=counters.write_bytes,
        flush_ops=counters.flush_ops,
        write_zeroes_ops=counters.write_zeroes_ops,
        discard_ops=counters.discard_ops,
        errors=counters.errors,
        first_read_time=counters.first_read_time,
    )
