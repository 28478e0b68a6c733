"""The card in a chassis' PCIe slot: it plugs disks into the running host, takes them out, makes them larger.

Each of its ports is a PCIe root port with native hot-plug. The OS has the last word on a disk that goes: it
hears the attention button, waits five seconds for it to be pressed again (PCI Express, 6.7.1.5), and lets go,
or never answers. The card always brings the host to what the slot's files say, so a disk that was let go of
late, and is wanted again by then, is plugged in again. `nicagent/storage/slotwire.py` is how it talks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from nicagent.emulator import slot
from nicagent.emulator.listener import Listener
from nicagent.emulator.qemu import Board
from nicagent.emulator.slot import SlotDisk, slot_disks
from nicagent.errors import NicagentError
from nicagent.storage import slotwire
from nicagent.storage.slotwire import InSlot, Stage, State

ASK_AGAIN = 10.0  # seconds until an OS that did not hear (its firmware still ran) is asked once more
BUSY = 0.5  # seconds between two tries at a port whose OS is just about something
BACKLOG = 1 << 18  # bytes that a client may leave unread

log = logging.getLogger(__name__)


@dataclass
class _Disk:
    """A disk that the host has. `described` is what it was last told."""

    bay: int  # its port; from the number of ports on, it is wired to the board itself
    path: Path
    described: SlotDisk
    generation: int = 1  # of its connection, another one after each growth; no two are ever called the same
    leaving: bool = False
    asked: float | None = None  # when its OS was last asked to let go of it, monotonic
    trouble: str = ""

    @property
    def node(self) -> str:
        return f"slot{self.bay}"

    @property
    def device(self) -> str:
        return slot.device_name(self.node)

    @property
    def below(self) -> str:
        return f"{self.node}-{self.generation}"

    def connection(self) -> dict[str, object]:
        return slot.connection(self.below, self.path, self.described)

    def above(self) -> dict[str, object]:
        return slot.above(self.below, self.node, self.described)


class Card:
    """`async with` it: serves the slot's socket for as long as the chassis stands there."""

    def __init__(self, directory: Path, ports: int) -> None:
        self._slot = directory
        self._ports = ports
        self._board: Board | None = None
        self._disks: dict[str, _Disk] = {}
        self._failed: dict[str, str] = {}
        self._generations = itertools.count(2)  # the first are those of power-on
        self._lock = asyncio.Lock()
        self._listener = Listener(directory / slotwire.SOCKET, self._client, limit=slotwire.LINE_LIMIT)
        self._clients: dict[asyncio.StreamWriter, int] = {}
        self._following: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Card:
        await self._listener.open(mode=0o660)
        return self

    async def __aexit__(self, *_: object) -> None:
        ending = self._stop()
        await self._listener.close()
        if ending:
            await asyncio.wait(ending)

    def powered_on(self, board: Board, disks: list[tuple[Path, SlotDisk]]) -> None:
        """A board is up with these disks, in this order, as `qemu.arguments` gave them their ports."""
        self._board = board
        self._disks = {path.stem: _Disk(bay, path, disk) for bay, (path, disk) in enumerate(disks)}
        self._following = asyncio.create_task(self._follow(board), name="slot card")
        self._tell()

    def powered_off(self) -> None:
        """The board is gone, and what was plugged into it with it."""
        self._board = None
        self._disks, self._failed = {}, {}
        self._stop()
        self._tell()

    def _stop(self) -> list[asyncio.Task[None]]:
        tasks = [task for task in (self._following, self._asking) if task is not None]
        self._following = self._asking = None
        for task in tasks:
            task.cancel()
        return tasks

    # ---- its clients

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients[writer] = 0
        try:
            self._write(writer)
            while await reader.readline() == slotwire.LOOK:
                await self.look()
                self._clients[writer] += 1
                self._write(writer)
        finally:
            del self._clients[writer]

    def _tell(self) -> None:
        for writer in tuple(self._clients):
            self._write(writer)

    def _write(self, writer: asyncio.StreamWriter) -> None:
        if writer.transport.get_write_buffer_size() > BACKLOG:
            writer.transport.abort()
        elif not writer.is_closing():
            writer.write(slotwire.encode(msgspec.structs.replace(self.state(), looks=self._clients[writer])))

    def state(self) -> State:
        """What clients are told."""
        disks = {
            name: InSlot(
                stage=Stage.LEAVING if disk.leaving else Stage.ATTACHED,
                removable=disk.bay < self._ports,
                size=disk.described.size,
                trouble=disk.trouble,
            )
            for name, disk in self._disks.items()
        }
        disks |= {name: InSlot(stage=Stage.FAILED, trouble=why) for name, why in self._failed.items()}
        return State(
            powered=self._board is not None, ports=self._ports, free=len(self._free_bays()), disks=disks
        )

    # ---- its host

    async def look(self) -> None:
        """Read the slot, and bring the host to it as far as it goes."""
        async with self._lock:
            board = self._board
            if board is None:
                return
            try:
                wanted = {path.stem: (path, disk) for path, disk in slot_disks(self._slot)}
            except NicagentError as error:
                log.error("the slot is left as it is: %s", error)
                return
            self._failed = {}
            for name, disk in tuple(self._disks.items()):
                disk.leaving = name not in wanted and disk.bay < self._ports
                if disk.leaving:
                    await self._ask(board, disk)
            for name, (path, described) in wanted.items():
                known = self._disks.get(name)
                if known is None:
                    await self._plug(board, path, described)
                elif known.described.size != described.size:
                    await self._grow(board, known, described)
        if any(disk.leaving for disk in self._disks.values()) and self._asking is None:
            self._asking = asyncio.create_task(self._keep_asking(), name="slot card asks")
        self._tell()

    async def _keep_asking(self) -> None:
        while any(disk.leaving for disk in self._disks.values()):
            await asyncio.sleep(BUSY)
            async with self._lock:
                for disk in tuple(self._disks.values()):
                    if disk.leaving and self._board is not None:
                        await self._ask(self._board, disk)
        self._asking = None

    async def _ask(self, board: Board, disk: _Disk) -> None:
        if disk.asked is not None and time.monotonic() - disk.asked < ASK_AGAIN:
            return
        try:
            await board.command("device_del", {"id": disk.device})
        except NicagentError as error:
            disk.trouble = str(error)  # the OS is just plugging it in, or taking it out: in a moment, then
        else:
            disk.asked, disk.trouble = time.monotonic(), ""

    async def _plug(self, board: Board, path: Path, described: SlotDisk) -> None:
        name, bays = path.stem, self._free_bays()
        if not bays:
            self._failed[name] = f"none of the slot's {self._ports} ports is free"
            return
        disk = _Disk(bays[0], path, described, generation=next(self._generations))
        try:
            await board.command("blockdev-add", disk.connection())
            await board.command("blockdev-add", disk.above())
            device = slot.device(disk.node, serial=described.serial, bus=f"port{disk.bay}")
            await board.command("device_add", device)
        except NicagentError as error:
            await self._drop(board, disk.node)
            await self._drop_unused(board, disk)
            if self._board is board:
                self._failed[name] = str(error)
        else:
            if self._board is board:
                self._disks[name] = disk

    async def _grow(self, board: Board, disk: _Disk, described: SlotDisk) -> None:
        """A connection keeps the size that its export had when it was made (QEMU 7.2). So the disk goes on
        over another one, and then its host is told.
        """
        fresh = replace(disk, generation=next(self._generations))
        try:
            await board.command("blockdev-add", fresh.connection())
            await board.command("blockdev-reopen", {"options": [fresh.above()]})
            disk.generation = fresh.generation
            size = (await board.nodes())[disk.below]
            await board.command("block_resize", {"node-name": disk.node, "size": size})
        except NicagentError as error:
            disk.trouble = str(error)
        else:
            disk.described, disk.trouble = described, ""
        await self._drop_unused(board, disk)

    async def _follow(self, board: Board) -> None:
        with board.listener("DEVICE_DELETED") as gone:
            while True:
                data = (await gone.get())["data"]
                assert isinstance(data, dict)
                for name, disk in tuple(self._disks.items()):
                    if disk.device == data.get("device"):
                        async with self._lock:
                            await self._drop(board, disk.node)
                            await self._drop_unused(board, disk)
                            self._disks.pop(name, None)
                        await self.look()  # it may be wanted again by now

    async def _drop(self, board: Board, *nodes: str) -> None:
        for node in nodes:
            with contextlib.suppress(NicagentError):
                await board.command("blockdev-del", {"node-name": node})

    async def _drop_unused(self, board: Board, disk: _Disk) -> None:
        """Connections that the disk does not stand on; QEMU knows best, and lets go of no other."""
        with contextlib.suppress(NicagentError):
            await self._drop(
                board, *(each for each in await board.nodes() if each.startswith(f"{disk.node}-"))
            )

    def _free_bays(self) -> list[int]:
        used = {disk.bay for disk in self._disks.values()}
        return [bay for bay in range(self._ports) if bay not in used]
