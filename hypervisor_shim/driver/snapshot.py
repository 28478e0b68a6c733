"""Snapshots of domains: what a domain was at a moment, and the files that keep it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntFlag

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.errors import Code, LibvirtError, Origin, error


class SnapshotCreateFlags(IntFlag):
    """libvirt: virDomainSnapshotCreateFlags."""

    NONE = 0
    REDEFINE = 1
    CURRENT = 2
    NO_METADATA = 4
    HALT = 8
    DISK_ONLY = 16
    REUSE_EXT = 32
    QUIESCE = 64
    ATOMIC = 128
    LIVE = 256
    VALIDATE = 512


class SnapshotDeleteFlags(IntFlag):
    """libvirt: virDomainSnapshotDeleteFlags."""

    NONE = 0
    CHILDREN = 1
    METADATA_ONLY = 2
    CHILDREN_ONLY = 4


class SnapshotRevertFlags(IntFlag):
    """libvirt: virDomainSnapshotRevertFlags."""

    NONE = 0
    RUNNING = 1
    PAUSED = 2
    FORCE = 4
    RESET_NVRAM = 8


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """A disk in a snapshot. `how`: no, internal, external; then `path` and `format` are of the new file."""

    target: str
    how: str
    path: str | None = None
    format: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """A `<domainsnapshot>` as a client sent it; what it left open is None. `disks`: what it says of some."""

    name: str | None
    description: str | None
    memory: str | None  # no, internal, external
    memory_file: str | None
    disks: tuple[SnapshotDisk, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as it is kept. `domain` is the whole document of the domain as it was."""

    name: str
    parent: str | None
    state: str  # running, shutoff, disk-snapshot
    created: int  # Unix seconds
    domain: str
    description: str | None = None
    memory: str = "no"
    disks: tuple[SnapshotDisk, ...] = ()

    @property
    def external(self) -> bool:
        """Whether any of it lies in a file of its own."""
        return self.memory == "external" or any(disk.how == "external" for disk in self.disks)


class Snapshots(ABC):
    """Found by name within their domain. Raises NO_DOMAIN_SNAPSHOT for one that is not there."""

    @abstractmethod
    def snapshots(self, uuid: bytes) -> Sequence[Snapshot]:
        """All of a domain's, parents before children."""

    @abstractmethod
    def current(self, uuid: bytes) -> str | None:
        """The name of the one that the domain stands on."""

    @abstractmethod
    async def create(
        self, caller: Caller, uuid: bytes, request: SnapshotRequest, flags: SnapshotCreateFlags
    ) -> str:
        """Returns the name."""

    @abstractmethod
    async def revert(self, caller: Caller, uuid: bytes, name: str, flags: SnapshotRevertFlags) -> None: ...

    @abstractmethod
    async def delete(self, caller: Caller, uuid: bytes, name: str, flags: SnapshotDeleteFlags) -> None: ...


def no_snapshot(name: str) -> LibvirtError:
    """The answer to a call on a snapshot that is not there."""
    return error(
        Code.NO_DOMAIN_SNAPSHOT,
        f"no domain snapshot with matching name '{name}'",
        origin=Origin.DOMAIN_SNAPSHOT,
    )


@dataclass(frozen=True, slots=True)
class Tree:
    """A domain's snapshots, parents before children, and the one that it stands on."""

    snapshots: tuple[Snapshot, ...] = ()
    current: str | None = None

    def named(self, name: str) -> Snapshot:
        """Raises NO_DOMAIN_SNAPSHOT."""
        for each in self.snapshots:
            if each.name == name:
                return each
        raise no_snapshot(name)

    def with_one(self, snapshot: Snapshot) -> Tree:
        """A new one on top of the current one. Raises OPERATION_FAILED for a name that is taken."""
        if any(each.name == snapshot.name for each in self.snapshots):
            raise error(
                Code.OPERATION_FAILED,
                f"domain moment {snapshot.name} already exists",
                origin=Origin.DOMAIN_SNAPSHOT,
            )
        return Tree((*self.snapshots, replace(snapshot, parent=self.current)), snapshot.name)

    def again(self, request: SnapshotRequest, flags: SnapshotCreateFlags) -> Tree:
        """One that is there is defined again, which may make it the current one and changes nothing else.

        Raises OPERATION_UNSUPPORTED for one that is not there: no document brings back a moment.
        """
        if not any(each.name == request.name for each in self.snapshots):
            raise error(
                Code.OPERATION_UNSUPPORTED, "a snapshot is taken, and cannot be made from its document alone"
            )
        return replace(self, current=request.name) if flags & SnapshotCreateFlags.CURRENT else self

    def descendants(self, name: str) -> set[str]:
        """The names of all that come after one."""
        found = {name}
        for each in self.snapshots:
            if each.parent in found:
                found.add(each.name)
        return found - {name}

    def without(self, name: str, flags: SnapshotDeleteFlags) -> Tree:
        """What is left; children of one that goes are its parent's from now on."""
        own = self.named(name)
        gone = {name}
        if flags & (SnapshotDeleteFlags.CHILDREN | SnapshotDeleteFlags.CHILDREN_ONLY):
            gone |= self.descendants(name)
        if flags & SnapshotDeleteFlags.CHILDREN_ONLY:
            gone.discard(name)
        left = tuple(
            replace(each, parent=own.parent) if each.parent == name and name in gone else each
            for each in self.snapshots
            if each.name not in gone
        )
        current = self.current
        if current in gone:
            current = name if flags & SnapshotDeleteFlags.CHILDREN_ONLY else own.parent
        return Tree(left, current)
