"""Our target: subsystems, associations and listeners in one event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp import config as cfg
from nicagent.storage.nvmetcp.answers import TransmitBuffer
from nicagent.storage.nvmetcp.association import Associations
from nicagent.storage.nvmetcp.backend import Backend
from nicagent.storage.nvmetcp.backend_file import FileBackend
from nicagent.storage.nvmetcp.backend_gate import GateBackend
from nicagent.storage.nvmetcp.backend_nbd import NbdBackend
from nicagent.storage.nvmetcp.contract import (
    Changes,
    ControllerStatus,
    NamespaceStatus,
    NvmeTarget,
    SubsystemStatus,
    TargetStatus,
)
from nicagent.storage.nvmetcp.controller import Connection
from nicagent.storage.nvmetcp.queue import Queue
from nicagent.storage.nvmetcp.spec import DISCOVERY_NQN, AdminOp
from nicagent.storage.nvmetcp.subsystem import Catalogue, Namespace, Subsystem
from nicagent.storage.nvmetcp.wakeup import WakeUp

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 1024
UNCONNECTED_MAX = 32  # connections of one peer address without a successful Connect and authentication
BACKLOG = 128


def make_backend(namespace: cfg.Namespace, wake_up: WakeUp) -> Backend:
    """The back end a namespace names, not yet open."""
    match namespace.backend:
        case cfg.FileBackend(path=path):
            return FileBackend(path, readonly=namespace.readonly, block_size=namespace.block_size)
        case cfg.NbdBackend(path=path, export=export, hold=hold):
            return NbdBackend(
                path,
                export,
                readonly=namespace.readonly,
                block_size=namespace.block_size,
                hold=hold,
                wake_up=wake_up,
            )


@dataclass(slots=True)
class _Plan:
    """A configuration opened but not yet shown."""

    subsystems: dict[str, dict[int, Namespace]] = field(default_factory=dict)
    opened: list[Namespace] = field(default_factory=list)
    bound: dict[cfg.Listen, asyncio.Server] = field(default_factory=dict)


class Target(NvmeTarget):
    """See `NvmeTarget`."""

    def __init__(self) -> None:
        self._tx = TransmitBuffer()
        self._wake_up = WakeUp()
        self._catalogue = Catalogue()
        self._associations = Associations(self._catalogue)
        self._queues: set[Queue] = set()
        self._servers: dict[cfg.Listen, asyncio.Server] = {}
        self._applying = asyncio.Lock()

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
                    header_digest=any(queue.terms.header_digest for queue in controller.queues.values()),
                    authenticated=_authenticated(controller.queues.values()),
                    data_digest=any(queue.terms.data_digest for queue in controller.queues.values()),
                )
                for controller in self._associations.controllers.values()
            ],
            subsystems=[
                SubsystemStatus(
                    nqn=subsystem.nqn,
                    hosts=list(subsystem.config.hosts),
                    namespaces=[_namespace_status(one) for _, one in sorted(subsystem.namespaces.items())],
                )
                for subsystem in self._catalogue.subsystems.values()
            ],
        )

    async def close(self) -> None:
        servers, self._servers = self._servers, {}
        for server in servers.values():
            server.close()
        for controller in list(self._associations.controllers.values()):
            controller.end("the target stops")
        for queue in list(self._queues):
            queue.close()
        subsystems, self._catalogue.subsystems = self._catalogue.subsystems, {}
        for subsystem in subsystems.values():
            for namespace in subsystem.namespaces.values():
                await namespace.backend.close()

    # Convergence -------------------------------------------------------------------------------------------

    async def _prepare(self, config: cfg.TargetConfig, plan: _Plan) -> None:
        """Opens what is new. Nothing a host can see changes here."""
        for wanted in config.subsystems:
            current = self._catalogue.subsystems.get(wanted.nqn)
            namespaces = plan.subsystems.setdefault(wanted.nqn, {})
            for namespace in wanted.namespaces:
                known = current.namespaces.get(namespace.nsid) if current else None
                if known is None or known.config != namespace:
                    known = Namespace(namespace, make_backend(namespace, self._wake_up))
                    await known.backend.open()
                    plan.opened.append(known)
                namespaces[namespace.nsid] = known
        for listen in config.listen:
            if listen not in self._servers:
                plan.bound[listen] = await self._bind(listen)

    async def _bind(self, listen: cfg.Listen) -> asyncio.Server:
        try:
            return await asyncio.get_running_loop().create_server(
                lambda: self._queue(listen),
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
        shown_before = self._catalogue.seen()
        for nqn in [nqn for nqn in self._catalogue.subsystems if nqn not in plan.subsystems]:
            gone = self._catalogue.subsystems.pop(nqn)
            changes.removed.append(nqn)
            unused.extend(gone.namespaces.values())
            for controller in self._associations.of(gone):
                controller.end("its subsystem was removed")
        for wanted in config.subsystems:
            current = self._catalogue.subsystems.get(wanted.nqn)
            namespaces = plan.subsystems[wanted.nqn]
            if current is None:
                self._catalogue.subsystems[wanted.nqn] = Subsystem(wanted, namespaces)
                changes.added.append(wanted.nqn)
            else:
                unused.extend(await self._converge(current, wanted, namespaces, changes))
        for listen in [listen for listen in self._servers if listen not in config.listen]:
            self._servers.pop(listen).close()
        self._servers.update(plan.bound)
        self._catalogue.listeners = self.listeners()
        if self._catalogue.seen() != shown_before:
            self._catalogue.generation += 1
            for controller in self._associations.controllers.values():
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
        before = current.namespaces
        gates = [
            (before[nsid], one, _gated(before[nsid], one))
            for nsid, one in namespaces.items()
            if nsid in before and before[nsid] is not one
        ]
        current.namespaces = namespaces
        for old, one, gate in gates:
            await old.backend.drained()
            one.backend = gate.inner
            gate.lift()
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
        for controller in self._associations.of(current):
            if not current.allows(controller.hostnqn):
                controller.end("its host is no longer allowed")
            elif identity_changed:
                controller.end("the identity of its subsystem changed")
            else:
                for nsid in differing:
                    controller.namespace_changed(nsid)
        return [one for nsid, one in before.items() if namespaces.get(nsid) is not one]

    def listeners(self) -> list[cfg.Listen]:
        """Where we listen; port 0 of the configuration is shown as the port it became."""
        return [
            cfg.Listen(listen.host, server.sockets[0].getsockname()[1] if server.sockets else listen.port,
                       listen.discovery)
            for listen, server in self._servers.items()
        ]  # fmt: skip

    # For connections ---------------------------------------------------------------------------------------

    def _queue(self, listen: cfg.Listen) -> Queue:
        return Queue(
            self._tx,
            self._wake_up,
            {AdminOp.FABRICS: self._associations.connect},
            admit=self._admit,
            forget=self._queues.discard,
            discovery_only=listen.discovery,
        )

    def _admit(self, queue: Queue) -> bool:
        """Whether one more connection is within the limits."""
        unconnected = sum(not one.proved and one.address == queue.address for one in self._queues)
        if len(self._queues) >= CONNECTIONS_MAX or unconnected >= UNCONNECTED_MAX:
            return False
        self._queues.add(queue)
        return True


def _gated(old: Namespace, new: Namespace) -> GateBackend:
    """Has what comes to `new` wait until what is in flight on `old` has landed. Counters go on."""
    gate = GateBackend(new.backend)
    new.backend = gate
    if old.config.uuid == new.config.uuid:
        new.counters = old.counters
    return gate


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


def _authenticated(queues: Collection[Connection]) -> bool:
    """Whether the host has proved itself on every queue."""
    exchanges = [queue.authentication for queue in queues]
    return bool(exchanges) and all(one is not None and one.authenticated for one in exchanges)
