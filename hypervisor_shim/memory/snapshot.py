"""Snapshots of domains in memory, in the likeness of libvirt's test driver: a document, a state, a place in
the tree.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from hypervisor_shim.driver import Caller
from hypervisor_shim.driver.snapshot import (
    Snapshot,
    SnapshotCreateFlags,
    SnapshotDeleteFlags,
    SnapshotDisk,
    SnapshotRequest,
    SnapshotRevertFlags,
    Snapshots,
    Tree,
)
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.memory.devices import Holder
from hypervisor_shim.xml.domain import format_domain, parse_domain
from hypervisor_shim.xml.domain_change import with_name
from hypervisor_shim.xml.domain_def import DomainDef

_CREATE = SnapshotCreateFlags
_KNOWN = _CREATE.REDEFINE | _CREATE.CURRENT | _CREATE.HALT | _CREATE.QUIESCE | _CREATE.ATOMIC | _CREATE.LIVE
_KNOWN |= _CREATE.VALIDATE
_DELETE = SnapshotDeleteFlags


H = TypeVar("H", bound=Holder)


class MemorySnapshots(Snapshots, Generic[H]):
    """`run` and `stop` start a domain from a definition and end it."""

    def __init__(
        self,
        find: Callable[[bytes], H],
        run: Callable[[H, DomainDef], None],
        stop: Callable[[H], Awaitable[None]],
    ) -> None:
        self._find = find
        self._run = run
        self._stop = stop
        self._trees: dict[bytes, Tree] = {}

    def snapshots(self, uuid: bytes) -> Sequence[Snapshot]:
        return self._tree(uuid).snapshots

    def current(self, uuid: bytes) -> str | None:
        return self._tree(uuid).current

    def forget(self, uuid: bytes) -> None:
        """The domain is gone."""
        self._trees.pop(uuid, None)

    async def create(
        self, caller: Caller, uuid: bytes, request: SnapshotRequest, flags: SnapshotCreateFlags
    ) -> str:
        _only(flags, _KNOWN, "testDomainSnapshotCreateXML")
        if flags & _CREATE.REDEFINE:
            self._trees[uuid] = self._tree(uuid).again(request, flags)
            return request.name or ""
        domain = self._find(uuid)
        definition = domain.live or domain.config
        assert definition is not None
        running = domain.live is not None
        if request.memory == "external":
            raise error(Code.CONFIG_UNSUPPORTED, "there is no memory that could go to a file")
        known = {disk.target for disk in definition.disks}
        for asked in request.disks:
            if asked.target not in known:
                detail = f"no disk named '{asked.target}'"
                raise error(Code.CONFIG_UNSUPPORTED, detail, origin=Origin.DOMAIN_SNAPSHOT)
            if asked.how not in ("", "internal"):
                detail = f"disk '{asked.target}' must use snapshot mode 'internal'"
                raise error(Code.CONFIG_UNSUPPORTED, detail, origin=Origin.DOMAIN_SNAPSHOT)
        created = int(time.time())
        snapshot = Snapshot(
            request.name or str(created),
            None,
            "running" if running else "shutoff",
            created,
            format_domain(definition, secure=True),
            request.description,
            "internal" if running else "no",
            tuple(SnapshotDisk(disk.target, "internal") for disk in definition.disks),
        )
        self._trees[uuid] = self._tree(uuid).with_one(snapshot)
        if running and flags & _CREATE.HALT:
            await self._stop(domain)
        return snapshot.name

    async def revert(self, caller: Caller, uuid: bytes, name: str, flags: SnapshotRevertFlags) -> None:
        domain = self._find(uuid)
        snapshot = self._tree(uuid).named(name)
        now = domain.config or domain.live
        assert now is not None
        definition = with_name(parse_domain(snapshot.domain), now.name)
        wanted = snapshot.state == "running" or bool(
            flags & (SnapshotRevertFlags.RUNNING | SnapshotRevertFlags.PAUSED)
        )
        if domain.config is not None:
            domain.config = definition
        if wanted and domain.live is None:
            self._run(domain, definition)
        elif wanted:
            domain.live = definition
        elif domain.live is not None:
            await self._stop(domain)
        self._trees[uuid] = replace(self._tree(uuid), current=name)

    async def delete(self, caller: Caller, uuid: bytes, name: str, flags: SnapshotDeleteFlags) -> None:
        _only(flags, _DELETE.CHILDREN | _DELETE.CHILDREN_ONLY, "testDomainSnapshotDelete")
        self._trees[uuid] = self._tree(uuid).without(name, flags)

    def _tree(self, uuid: bytes) -> Tree:
        return self._trees.get(uuid, Tree())


def _only(flags: int, known: int, function: str) -> None:
    if flags & ~known:
        raise LibvirtError(
            Code.INVALID_ARG, f"unsupported flags (0x{flags & ~known:x}) in function {function}"
        )
