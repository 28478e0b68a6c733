"""Disks as NVMe namespaces over TCP: volume → block engine → NBD → our user-space target → the host.

The block engine opens every volume and so holds the image locks that keep a second writer out. The bytes of a
raw volume need nothing else of it, while it has neither limits nor a block job: the target reads and writes
the file itself, three to four times as fast as by way of the engine.

One subsystem holds a domain's disks; only the host's own NQN may connect, with its key where it has one. The
target listens on the agent's address of the provision link and nowhere else.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path

from nicagent.model import Credentials, Export, ExportStatus, Initiator, Transport, VolumeFormat
from nicagent.storage.engine import EngineStorage
from nicagent.storage.keeper import Keeper
from nicagent.storage.nvmetcp.config import (
    Auth,
    FileBackend,
    Listen,
    Namespace,
    NbdBackend,
    Subsystem,
    TargetConfig,
)
from nicagent.storage.nvmetcp.contract import NamespaceStatus, TargetStatus
from nicagent.storage.qsd import BlockEngine
from nicagent.storage.runkeys import RunKeys
from nicagent.storage.target import TargetProcess


class NvmeTcpStorage(EngineStorage):
    """A host's storage as namespaces of an NVMe/TCP subsystem."""

    transport = Transport.NVME_TCP

    def __init__(
        self,
        host: str,
        *,
        address: str,
        port: int,
        discovery_port: int,
        run: Path,
        logs: Path,
        pools: Sequence[Path],
        keys: RunKeys,
    ) -> None:
        """`address` is the agent's on the provision link; `run` and `logs` directories of this host's own."""
        self._listen: tuple[Listen, ...] = (Listen(address, port),)  # answers discovery too
        if discovery_port != port:
            self._listen += (Listen(address, discovery_port, discovery=True),)
        self._engine = BlockEngine(host, run, logs / "qsd.log", run / "nbd.sock", pools)
        self._keys = keys
        self._target = TargetProcess(host, run, logs / "nvmetcp.log")
        self._lock = asyncio.Lock()
        self._exports: tuple[Export, ...] = ()
        self._initiator: Initiator | None = None
        self._keeper = Keeper(host, self._pids, self._mend)

    async def present(self, exports: Sequence[Export], initiator: Initiator) -> None:
        async with self._lock:
            before, shown = (self._exports, self._initiator), bool(self._exports) and self._keeper.met
            self._exports, self._initiator = tuple(exports), initiator
            if not exports:
                self._keeper.want(False)  # its processes are about to end
            try:
                await self._converge(exports, initiator)
            except BaseException:
                if shown:
                    self._exports, self._initiator = before  # still there: they are what must not die
                else:
                    self._keeper.want(bool(exports), met=False)
                raise
            self._keeper.want(bool(exports))

    async def withdraw(self) -> None:
        async with self._lock:
            self._keeper.want(False)
            self._exports, self._initiator = (), None
            await self._take_down()

    def credentials(self) -> Credentials | None:
        return self._keys.held()

    async def status(self) -> tuple[ExportStatus, ...]:
        async with self._lock:
            if not self._exports or not self._keeper.met:
                return ()
            return _statuses(self._exports, await self._target.status())

    async def watch_over(self) -> None:
        await self._keeper.watch()

    async def close(self) -> None:
        self._keeper.want(False)

    def _pids(self) -> list[int | None]:
        return [self._engine.daemon.pid(), self._target.daemon.pid()]

    async def _mend(self) -> None:
        async with self._lock:
            if self._exports and self._initiator and (not self._keeper.met or None in self._pids()):
                await self._converge(self._exports, self._initiator)
                self._keeper.met = True

    async def _converge(self, exports: Sequence[Export], initiator: Initiator) -> None:
        if not exports:
            await self._take_down()
            return
        await self._keys.take(running=bool(self._target.serials()))
        await self._engine.present([export.disk for export in exports])
        await self._target.converge(self._config(exports, initiator, await self._under_way()))

    async def check_pluggable(self, *, more: int = 0, gone: Collection[str] = ()) -> None:
        """Namespaces come and go by events, as many as there are NSIDs."""

    async def _again(self) -> None:
        assert self._initiator is not None
        await self._converge(self._exports, self._initiator)

    async def _through_engine(self, targets: Sequence[str]) -> None:
        assert self._initiator is not None
        busy = {*targets, *await self._under_way()}
        await self._target.converge(self._config(self._exports, self._initiator, busy))

    async def _tell_sizes(self) -> None:
        await self._target.look_again()

    async def _take_down(self) -> None:
        # The target first: it would wait for a block engine that is gone.
        await self._target.stop()
        await self._engine.stop()
        self._keys.forget()

    def _config(self, exports: Sequence[Export], initiator: Initiator, busy: Collection[str]) -> TargetConfig:
        by_nqn: dict[str, list[Export]] = {}
        for export in exports:
            by_nqn.setdefault(export.identity.nqn, []).append(export)
        serials, keys = self._target.serials(), self._keys.held()
        subsystems = (
            Subsystem(
                nqn=nqn,
                # A controller has one serial for all its namespaces: that of the first disk. A host that is
                # connected must not see it change when another disk becomes the first.
                serial=serials.get(nqn) or min(members, key=_nsid).identity.serial,
                hosts=(initiator.hostnqn,),
                namespaces=tuple(self._namespace(export, busy) for export in members),
                auth=Auth(keys.host, keys.controller) if keys is not None else None,
            )
            for nqn, members in by_nqn.items()
        )
        return TargetConfig(self._listen, str(self._target.control), tuple(subsystems))

    def _namespace(self, export: Export, busy: Collection[str]) -> Namespace:
        identity, disk = export.identity, export.disk
        # The engine counts and copies only what passes through it.
        direct = disk.format is VolumeFormat.RAW and disk.limits is None and disk.target not in busy
        return Namespace(
            nsid=identity.nsid,
            uuid=uuid.UUID(identity.uuid),
            nguid=identity.nguid,
            eui64=identity.eui64,
            readonly=disk.readonly,
            backend=(
                FileBackend(str(Path(disk.path).resolve()))
                if direct
                else NbdBackend(str(self._engine.nbd), disk.target)
            ),
        )


def _nsid(export: Export) -> int:
    return export.identity.nsid


def _statuses(exports: Sequence[Export], target: TargetStatus) -> tuple[ExportStatus, ...]:
    connected = {controller.subnqn for controller in target.controllers}
    shown = {(one.nqn, space.nsid): space for one in target.subsystems for space in one.namespaces}
    return tuple(
        _status(export, shown.get((export.identity.nqn, export.identity.nsid)), connected)
        for export in exports
    )


def _status(export: Export, space: NamespaceStatus | None, connected: set[str]) -> ExportStatus:
    if space is None:
        return ExportStatus(export.disk.target, Transport.NVME_TCP)
    return ExportStatus(
        target=export.disk.target,
        transport=Transport.NVME_TCP,
        connected=export.identity.nqn in connected,
        read_ops=space.read_ops,
        read_bytes=space.read_bytes,
        write_ops=space.write_ops,
        write_bytes=space.write_bytes,
        flush_ops=space.flush_ops,
        first_read=space.first_read_time or None,
    )
