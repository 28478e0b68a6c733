"""The PCIe slot of a chassis: which disks lie there, and what each of them is to QEMU.

A disk is a virtio device on a block node. Where it sits in a port of its own, that node stands on its
connection, which another one takes the place of when the disk has grown; else it is the connection itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from nicagent.errors import Kind, NicagentError

RECONNECT_DELAY = 300  # seconds a request waits for a disk that went away before the host sees an error
SERIAL_LIMIT = 20  # bytes of a virtio disk's serial number
SLOT_LIMIT = 16  # disks in one PCIe slot directory


class SlotDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`NAME.json` beside the socket `NAME.nbd` in a PCIe slot: what the card says about that disk."""

    serial: str = ""  # as the guest reads it; 20 bytes at most (virtio 1.2, 5.2.6)
    bootindex: Annotated[int, Meta(ge=0)] = 0  # place in the boot order among the slot's disks
    readonly: bool = False
    export: str = ""  # the NBD export's name
    size: int = 0  # bytes; another one than before says that the disk has grown


def slot_disks(slot: Path) -> list[tuple[Path, SlotDisk]]:
    """Disks that are plugged into a PCIe slot now, in boot order. Raises NicagentError on a bad side file."""
    found = []
    for path in sorted(slot.glob("*.nbd"))[:SLOT_LIMIT]:
        side = path.with_suffix(".json")
        try:
            found.append((path, msgspec.json.decode(side.read_bytes(), type=SlotDisk)))
        except FileNotFoundError:
            found.append((path, SlotDisk()))
        except (OSError, msgspec.DecodeError) as error:
            raise NicagentError(Kind.INVALID, f"{side}: {error}", "mend or remove the file") from None
    return sorted(found, key=lambda each: each[1].bootindex)


def connection(node: str, path: Path, disk: SlotDisk) -> dict[str, object]:
    """The block node through which a disk is reached (QAPI: BlockdevOptionsNbd)."""
    return {
        "driver": "nbd",
        "node-name": node,
        "read-only": disk.readonly,
        "server": {"type": "unix", "path": str(path)},
        "export": disk.export,
        "reconnect-delay": RECONNECT_DELAY,
    }


def above(connection: str, node: str, disk: SlotDisk) -> dict[str, object]:
    """The block node `node` on a connection (QAPI: BlockdevOptionsRaw); it can be put on another one."""
    return {"driver": "raw", "node-name": node, "file": connection, "read-only": disk.readonly}


def device_name(node: str) -> str:
    return f"disk-{node}"


def device(node: str, *, serial: str, bus: str = "") -> dict[str, object]:
    """The host's device on a block node; `bus`: the port that it sits in, if any."""
    return {
        "driver": "virtio-blk-pci",
        "id": device_name(node),
        "drive": node,
        "disable-legacy": "on",
        **({"bus": bus} if bus else {}),
        **({"serial": serial[:SERIAL_LIMIT]} if serial else {}),
    }
