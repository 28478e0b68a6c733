"""Disk snapshots of metal: a file goes on top of each disk, under the running server or while it is off.

What is below stays as it was at one moment for all disks of the call. What a server has in its memory cannot
be kept, so all that would need it is refused. Metadata lie in the agent's store.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from hypervisor_shim.driver import Caller, UndefineFlags
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
from hypervisor_shim.errors import Code, Origin, error, uuid_text
from hypervisor_shim.xml.domain import format_domain, parse_domain
from hypervisor_shim.xml.domain_change import with_name
from nicagent.model import Disk, VolumeFormat
from nicagent.northbound.libvirt_block import MetalBlock, on_files
from nicagent.northbound.libvirt_ground import Ground
from nicagent.northbound.libvirt_words import cause_of, translated

_CREATE, _DELETE = SnapshotCreateFlags, SnapshotDeleteFlags


class MetalSnapshots(Snapshots):
    """Reading calls answer from memory."""

    def __init__(self, ground: Ground, block: MetalBlock) -> None:
        self._ground = ground
        self._block = block
        self._files = ground.controller.files
        self._read: Callable[[str | None], Tree] = functools.lru_cache(maxsize=256)(_read)

    def snapshots(self, uuid: bytes) -> Sequence[Snapshot]:
        return self._tree(uuid).snapshots

    def current(self, uuid: bytes) -> str | None:
        return self._tree(uuid).current

    async def forget(self, uuid: bytes, flags: UndefineFlags) -> None:
        """The domain is about to be undefined: its snapshots are files and nothing else from then on, if that
        is what the client wants.
        """
        count = len(self._tree(uuid).snapshots)
        if count and not flags & UndefineFlags.SNAPSHOTS_METADATA and self._ground.status(uuid).id is None:
            raise error(Code.OPERATION_INVALID, f"cannot delete inactive domain with {count} snapshots")
        if count and self._ground.status(uuid).id is None:
            await self._keep(uuid, Tree())

    # ---- create

    async def create(
        self, caller: Caller, uuid: bytes, request: SnapshotRequest, flags: SnapshotCreateFlags
    ) -> str:
        ground = self._ground
        async with ground.controller.devices.changing(uuid_text(uuid)):
            if flags & _CREATE.REDEFINE:
                await self._keep(uuid, self._tree(uuid).again(request, flags))
                return request.name or ""
            running = ground.status(uuid).id is not None
            _refuse(request, flags, running)
            definition = ground.live(uuid) if running else ground.persistent(uuid)
            created = int(time.time())
            name = request.name or str(created)
            if not flags & _CREATE.NO_METADATA:
                self._tree(uuid).with_one(Snapshot(name, None, "", created, ""))  # the name is free
            with translated(Origin.DOMAIN_SNAPSHOT):
                known = ground.to_domain(definition).disks
            disks = _chosen(known, request, name)
            made: list[str] = []
            try:
                with translated(Origin.DOMAIN_SNAPSHOT):
                    for disk, new in disks:
                        self._block.refuse_busy(uuid, disk.target)
                        await self._overlay(
                            disk, str(new.path), reuse=bool(flags & _CREATE.REUSE_EXT), made=made
                        )
                    files = {disk.target: (str(new.path), VolumeFormat.QCOW2) for disk, new in disks}
                    live, config = self._block.moved(uuid, files)
                    cause = cause_of(caller, f"snapshot {name}")
                    await ground.controller.devices.change(uuid_text(uuid), live, config, cause)
            except BaseException:
                for path in made:
                    self._files.remove(path)
                raise
            if not flags & _CREATE.NO_METADATA:
                shown = {disk.target: new for disk, new in disks}
                whole = tuple(shown.get(disk.target, SnapshotDisk(disk.target, "no")) for disk in known)
                state = "disk-snapshot" if running else "shutoff"
                document = format_domain(definition, secure=True)
                snapshot = Snapshot(name, None, state, created, document, request.description, "no", whole)
                await self._keep(uuid, self._tree(uuid).with_one(snapshot))
            return name

    async def _overlay(self, disk: Disk, path: str, *, reuse: bool, made: list[str]) -> None:
        below = (await self._files.chain(disk.path, disk.format))[0]
        if reuse:
            self._files.check_place(path, there=True)
            chain = await self._files.chain(path, VolumeFormat.QCOW2)
            if len(chain) < 2 or chain[1].path != below.path:
                raise error(
                    Code.CONFIG_UNSUPPORTED,
                    f"{path} does not stand on {below.path}, the file of disk {disk.target}; make it so: "
                    "qemu-img create -b",
                )
            return
        await self._files.create(path, VolumeFormat.QCOW2, below.size, below)
        made.append(path)

    # ---- revert and delete

    async def revert(self, caller: Caller, uuid: bytes, name: str, flags: SnapshotRevertFlags) -> None:
        """The definition of then, on new files on top of those that were kept."""
        ground = self._ground
        async with ground.controller.devices.changing(uuid_text(uuid)):
            status = ground.status(uuid)
            if status.id is not None:
                raise error(
                    Code.OPERATION_UNSUPPORTED,
                    "the disks of a running server cannot be taken back under its OS; destroy it first",
                )
            if flags & (SnapshotRevertFlags.RUNNING | SnapshotRevertFlags.PAUSED):
                raise error(Code.OPERATION_UNSUPPORTED, "a server is started by itself: virsh start")
            tree = self._tree(uuid)
            snapshot = tree.named(name)
            now = ground.persistent(uuid)
            before = with_name(parse_domain(snapshot.domain), now.name)  # it may have been renamed since
            made: list[str] = []
            try:
                with translated(Origin.DOMAIN_SNAPSHOT):
                    kept = {disk.target for disk in snapshot.disks if disk.how == "external"}
                    domain = ground.to_domain(before)
                    files = {}
                    for disk in domain.disks:
                        if disk.target in kept:
                            path = _path(disk.path, f"{name}-{int(time.time())}")
                            await self._overlay(disk, path, reuse=False, made=made)
                            files[disk.target] = (path, VolumeFormat.QCOW2)
                    config = ground.to_domain(on_files(before, files))
                    cause = cause_of(caller, f"revert to {name}")
                    await ground.controller.devices.change(uuid_text(uuid), None, config, cause)
            except BaseException:
                for path in made:
                    self._files.remove(path)
                raise
            await self._keep(uuid, replace(tree, current=name))

    async def delete(self, caller: Caller, uuid: bytes, name: str, flags: SnapshotDeleteFlags) -> None:
        async with self._ground.controller.devices.changing(uuid_text(uuid)):
            tree = self._tree(uuid)
            left = tree.without(name, flags)
            gone = len(tree.snapshots) - len(left.snapshots)
            if gone and not flags & _DELETE.METADATA_ONLY:
                raise error(
                    Code.CONFIG_UNSUPPORTED,
                    f"deletion of {gone} external disk snapshots not supported yet: bring the files together "
                    "with blockcommit or blockpull, then delete the snapshot with --metadata",
                )
            await self._keep(uuid, left)

    # ---- within

    def _tree(self, uuid: bytes) -> Tree:
        return self._read(self._ground.controller.snapshots.of(uuid_text(uuid)))

    async def _keep(self, uuid: bytes, tree: Tree) -> None:
        text = msgspec.json.encode(tree).decode() if tree.snapshots else None
        with translated(Origin.DOMAIN_SNAPSHOT):
            await self._ground.controller.snapshots.keep(uuid_text(uuid), text)


def _read(text: str | None) -> Tree:
    return Tree() if text is None else msgspec.json.decode(text, type=Tree)


def _refuse(request: SnapshotRequest, flags: SnapshotCreateFlags, running: bool) -> None:
    """What needs a server's memory, a halt of it, or its OS's help."""
    if request.memory not in (None, "no") or (running and not flags & _CREATE.DISK_ONLY):
        raise error(
            Code.OPERATION_UNSUPPORTED,
            "the memory of a physical server cannot be kept; take a snapshot of its disks: --disk-only",
        )
    if flags & _CREATE.QUIESCE:
        raise error(
            Code.OPERATION_UNSUPPORTED,
            "file systems are not frozen here; freeze them with domfsfreeze where the OS has a guest agent",
        )
    if flags & _CREATE.HALT and running:
        raise error(Code.OPERATION_UNSUPPORTED, "a snapshot does not switch a server off; virsh destroy does")
    if any(disk.how in ("internal", "manual") for disk in request.disks):
        raise error(
            Code.CONFIG_UNSUPPORTED, "a snapshot of metal's disks lies in files of its own (external)"
        )


def _chosen(disks: Sequence[Disk], request: SnapshotRequest, name: str) -> list[tuple[Disk, SnapshotDisk]]:
    """The disks that get a new file, and which: all that can be written, less what the client leaves out."""
    asked = {each.target: each for each in request.disks}
    by_name = {disk.target: disk for disk in disks} | {disk.path: disk for disk in disks}
    for target in asked:
        if target not in by_name:
            raise error(Code.CONFIG_UNSUPPORTED, f"no disk named '{target}'", origin=Origin.DOMAIN_SNAPSHOT)
    asked = {by_name[target].target: each for target, each in asked.items()}
    chosen = []
    for disk in disks:
        wish = asked.get(disk.target, SnapshotDisk(disk.target, ""))
        if wish.how == "no" or (disk.readonly and not wish.how):
            continue
        if wish.format not in (None, "qcow2"):
            raise error(
                Code.CONFIG_UNSUPPORTED,
                f"external snapshot format for disk {disk.target} is unsupported: {wish.format}",
            )
        path = wish.path or _path(disk.path, name)
        chosen.append((disk, SnapshotDisk(disk.target, "external", path, "qcow2")))
    if not chosen:
        raise error(Code.CONFIG_UNSUPPORTED, "nothing selected for snapshot", origin=Origin.DOMAIN_SNAPSHOT)
    return chosen


def _path(base: str, name: str) -> str:
    """Beside the file that it stands on, under the name that libvirt gives it."""
    return f"{Path(base).with_suffix('')}.{name}"
