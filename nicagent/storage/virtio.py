"""Disks as virtio devices on the host's PCIe bus: the way of a SmartNIC.

The host's PCIe slot is a directory. A device in it is a pair of entries, written in this order:

- `NN-<target>.json`: {"export", "serial", "bootindex", "readonly"};
- `NN-<target>.nbd`: where to connect for export `export`: a symbolic link to the block engine's NBD socket.

Whoever provides the PCIe side (the emulated chassis, a DPU's firmware) attaches each `.nbd` at power-on and
reconnects when the socket goes away and comes back. The links are relative, so a slot may be seen under
another path. Vhost-user sockets for hosts that can take them (KVM, metal) would be a third kind of entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nicagent.model import Export, ExportStatus, Initiator, Transport
from nicagent.storage.engine import EngineStorage
from nicagent.storage.keeper import Keeper
from nicagent.storage.qsd import BlockEngine

SOCKET = "server.sock"
UNORDERED = 1 << 30  # a disk without a boot order comes after all that have one
ENTRY = re.compile(r"\d{2,}-.+\.(nbd|json)")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON file beside a device's socket. `bootindex` is its place in the firmware's order, from 1."""

    export: str
    serial: str
    bootindex: int
    readonly: bool


class VirtioStorage(EngineStorage):
    """A host's storage as virtio-blk devices in its PCIe slot."""

    transport = Transport.VIRTIO

    def __init__(self, host: str, *, slot: Path, run: Path, logs: Path, pools: Sequence[Path]) -> None:
        """`slot` is the PCIe slot, `run` and `logs` directories of this host's own."""
        self._slot = slot
        self._engine = BlockEngine(host, run, logs / "qsd.log", slot / SOCKET, pools)
        self._lock = asyncio.Lock()
        self._exports: tuple[Export, ...] = ()
        self._keeper = Keeper(host, lambda: [self._engine.daemon.pid()], self._mend)

    async def present(self, exports: Sequence[Export], initiator: Initiator) -> None:
        """As the contract says. Whoever is plugged into the slot is the initiator; its NQN has no meaning."""
        async with self._lock:
            before, shown = self._exports, bool(self._exports) and self._keeper.met
            self._exports = tuple(exports)
            if not exports:
                self._keeper.want(False)  # its processes are about to end
            try:
                await self._converge(exports)
            except BaseException:
                if shown:
                    self._exports = before  # still there: they are what must not die
                else:
                    self._keeper.want(bool(exports), met=False)
                raise
            self._keeper.want(bool(exports))

    async def withdraw(self) -> None:
        async with self._lock:
            self._keeper.want(False)
            self._exports = ()
            await self._take_down()

    async def status(self) -> tuple[ExportStatus, ...]:
        """NBD exports have no counters in the block engine, so all but their presence is not known."""
        async with self._lock:
            shown = self._exports if self._keeper.met else ()
            return tuple(ExportStatus(export.disk.target, self.transport) for export in shown)

    async def watch_over(self) -> None:
        await self._keeper.watch()

    async def close(self) -> None:
        self._keeper.want(False)

    async def resize(self, target: str, size: int) -> None:
        """What is plugged into the slot reads a disk's size at power-on only."""
        raise self._cannot("tell a running host that a disk has grown; resize its volume while it is off")

    async def _again(self) -> None:
        await self._converge(self._exports)

    async def _through_engine(self, targets: Sequence[str]) -> None:
        """They all do."""

    async def _tell_sizes(self) -> None:
        """Nobody would hear it."""

    async def _mend(self) -> None:
        async with self._lock:
            if self._exports and (not self._keeper.met or self._engine.daemon.pid() is None):
                await self._converge(self._exports)
                self._keeper.met = True

    async def _converge(self, exports: Sequence[Export]) -> None:
        if not exports:
            await self._take_down()
            return
        entries = {f"{place:02}-{e.disk.target}": e for place, e in enumerate(exports)}
        # A boot order is said for some disks only; firmware wants a place for each, no two the same.
        order = sorted(entries, key=lambda name: entries[name].disk.boot_order or UNORDERED)
        self._slot.mkdir(parents=True, exist_ok=True)
        self._remove_entries(keep=entries)
        await self._engine.present([export.disk for export in exports])
        for name, export in entries.items():
            self._plug(name, export, order.index(name) + 1)

    async def _take_down(self) -> None:
        self._remove_entries(keep=())
        await self._engine.stop()

    def _remove_entries(self, keep: Sequence[str] | dict[str, Export]) -> None:
        """Sockets go before descriptions, as they come after them."""
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(self._slot.iterdir(), key=lambda path: path.suffix != ".nbd"):
                if ENTRY.fullmatch(entry.name) and entry.stem not in keep:
                    entry.unlink(missing_ok=True)

    def _plug(self, name: str, export: Export, bootindex: int) -> None:
        disk = export.disk
        device = Device(
            export=disk.target,
            serial=export.identity.serial,
            bootindex=bootindex,
            readonly=disk.readonly,
        )
        description = self._slot / f"{name}.json"
        partial = self._slot / f".{name}.new"
        partial.write_bytes(msgspec.json.encode(device))
        partial.replace(description)
        with contextlib.suppress(FileExistsError):
            (self._slot / f"{name}.nbd").symlink_to(SOCKET)
