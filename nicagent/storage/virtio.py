"""Disks as virtio devices on the host's PCIe bus: the way of a SmartNIC.

The host's PCIe slot is a directory. A device in it is a pair of entries, written in this order:

- `NN-<target>.json`: {"export", "serial", "bootindex", "readonly", "size"};
- `NN-<target>.nbd`: where to connect for export `export`: a symbolic link to the block engine's NBD socket.

Whoever provides the PCIe side (the emulated chassis, a DPU's firmware) attaches each `.nbd` at power-on and
reconnects when the socket goes away and comes back. One that can plug disks into a running host says so
itself (`slotwire`): it is then told of every change, and an export goes only after the host let go of it.

The links are relative, so a slot may be seen under another path. Vhost-user sockets for hosts that can take
them (KVM, metal) would be a third kind of entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from nicagent.errors import Kind, NicagentError, NotReleased
from nicagent.model import Export, ExportStatus, Initiator, Transport
from nicagent.storage.engine import EngineStorage
from nicagent.storage.keeper import Keeper
from nicagent.storage.qsd import BlockEngine
from nicagent.storage.slot import Card, card_in
from nicagent.storage.slotwire import Stage, State

SOCKET = "server.sock"
UNORDERED = 1 << 30  # a disk without a boot order comes after all that have one
RELEASE_SECONDS = 20.0  # an OS waits five of them for a change of mind (PCI Express, 6.7.1.5), and then works
TAKE_SECONDS = 10.0  # for a card to attach a disk
ENTRY = re.compile(r"\d{2,}-.+\.(nbd|json)")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON file beside a device's socket. `bootindex` is its place in the firmware's order, from 1."""

    export: str
    serial: str
    bootindex: int
    readonly: bool
    size: int = 0  # bytes; another one says that the disk has grown


class VirtioStorage(EngineStorage):
    """A host's storage as virtio-blk devices in its PCIe slot."""

    transport = Transport.VIRTIO

    def __init__(self, host: str, *, slot: Path, run: Path, logs: Path, pools: Sequence[Path]) -> None:
        """`slot` is the PCIe slot, `run` and `logs` directories of this host's own."""
        self._host = host
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
        # Without the lock: an OS may take its time to let go of a disk.
        shown = self._exports if self._keeper.met else ()
        return tuple(ExportStatus(export.disk.target, self.transport) for export in shown)

    async def watch_over(self) -> None:
        await self._keeper.watch()

    async def close(self) -> None:
        self._keeper.want(False)

    async def check_pluggable(self, *, more: int = 0, gone: Collection[str] = ()) -> None:
        async with card_in(self._slot) as card:
            if card is None:
                raise NicagentError(
                    Kind.UNSUPPORTED,
                    f"the PCIe slot of host {self._host} takes and gives up disks at power-on only",
                    "change the definition (--config) and cycle the power",
                )
            state = card.state
            if more > state.free:
                raise NicagentError(
                    Kind.UNSUPPORTED,
                    f"none of the {state.ports} ports of host {self._host}'s PCIe slot is free",
                    "detach a disk, or change the definition (--config) and cycle the power",
                )
            for name, disk in state.disks.items():
                if not disk.removable and _target(name) in gone:
                    raise NicagentError(
                        Kind.UNSUPPORTED,
                        f"disk {_target(name)} is in none of the ports of host {self._host}'s PCIe slot that "
                        "give up a disk while it runs",
                        "change the definition (--config) and cycle the power",
                    )

    async def resize(self, target: str, size: int) -> None:
        async with card_in(self._slot) as card:
            if card is None:
                raise NicagentError(
                    Kind.UNSUPPORTED,
                    f"a disk in the PCIe slot of host {self._host} has the size that it had at power-on",
                    "resize its volume while the server is off",
                )
        await super().resize(target, size)

    async def _again(self) -> None:
        await self._converge(self._exports)

    async def _through_engine(self, targets: Sequence[str]) -> None:
        """They all do."""

    async def _tell_sizes(self) -> None:
        """They are in the slot's descriptions."""

    async def _mend(self) -> None:
        async with self._lock:
            if self._exports and (not self._keeper.met or self._engine.daemon.pid() is None):
                await self._converge(self._exports)
                self._keeper.met = True

    async def _converge(self, exports: Sequence[Export]) -> None:
        self._slot.mkdir(parents=True, exist_ok=True)
        names = self._names([export.disk.target for export in exports])
        self._remove_entries(keep=names.values())
        async with card_in(self._slot) as card:
            if card is not None and self._engine.daemon.pid() is not None:
                await self._let_go(card, names.values())
            if not exports:
                await self._engine.stop()
                return
            await self._engine.present([export.disk for export in exports])
            # A boot order is said for some disks only; firmware wants a place for each, no two the same.
            order = sorted(exports, key=lambda export: export.disk.boot_order or UNORDERED)
            sizes = {}
            for place, export in enumerate(order, start=1):
                name = names[export.disk.target]
                sizes[name] = self._engine.size_of(export.disk)
                self._plug(name, export, place, sizes[name])
            if card is not None:
                await self._take(card, sizes)

    async def _let_go(self, card: Card, keep: Collection[str]) -> None:
        """Wait until the host has no other disks than these. Raises NotReleased, and it has them still."""

        def others(state: State) -> list[str]:
            return [name for name, disk in state.disks.items() if disk.removable and name not in keep]

        if not others(card.state):
            return
        if not await card.settle(lambda state: not others(state), RELEASE_SECONDS):
            which = ", ".join(map(_target, others(card.state)))
            raise NotReleased(
                f"the OS of host {self._host} was asked to let go of disk {which} and has not within "
                f"{RELEASE_SECONDS:g} s",
                "an OS without PCIe hot-plug, or one that has not come up yet, cannot; try again later",
            )

    async def _take(self, card: Card, sizes: Mapping[str, int]) -> None:
        """Wait until a host that has power has these disks, in their sizes."""

        def has(state: State, name: str) -> bool:
            disk = state.disks.get(name)
            return disk is not None and disk.stage is Stage.ATTACHED and disk.size == sizes[name]

        def lacks(state: State) -> list[str]:
            return [name for name in sizes if state.powered and not has(state, name)]

        def trouble(state: State) -> str:
            return next((d.trouble for n in lacks(state) if (d := state.disks.get(n)) and d.trouble), "")

        await card.settle(lambda state: not lacks(state) or bool(trouble(state)), TAKE_SECONDS)
        if missing := lacks(card.state):
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"disk {', '.join(map(_target, missing))} does not get into the PCIe slot of host "
                f"{self._host}: {trouble(card.state) or 'its card does not say why'}",
                "look at the log of whoever provides it",
            )

    async def _take_down(self) -> None:
        self._remove_entries(keep=())
        await self._engine.stop()

    def _names(self, targets: Sequence[str]) -> dict[str, str]:
        """The entry of each disk. One that has an entry keeps it: its host may be running."""
        names = {_target(path.stem): path.stem for path in self._slot.iterdir() if ENTRY.fullmatch(path.name)}
        taken = {int(names[target].partition("-")[0]) for target in targets if target in names}
        free = (place for place in itertools.count() if place not in taken)
        return {target: names.get(target) or f"{next(free):02}-{target}" for target in targets}

    def _remove_entries(self, keep: Collection[str]) -> None:
        """Sockets go before descriptions, as they come after them."""
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(self._slot.iterdir(), key=lambda path: path.suffix != ".nbd"):
                if ENTRY.fullmatch(entry.name) and entry.stem not in keep:
                    entry.unlink(missing_ok=True)

    def _plug(self, name: str, export: Export, bootindex: int, size: int) -> None:
        disk = export.disk
        device = Device(
            export=disk.target,
            serial=export.identity.serial,
            bootindex=bootindex,
            readonly=disk.readonly,
            size=size,
        )
        description = self._slot / f"{name}.json"
        partial = self._slot / f".{name}.new"
        partial.write_bytes(msgspec.json.encode(device))
        partial.replace(description)
        with contextlib.suppress(FileExistsError):
            (self._slot / f"{name}.nbd").symlink_to(SOCKET)


def _target(name: str) -> str:
    """The disk of an entry."""
    return name.partition("-")[2]
