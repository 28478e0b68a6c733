"""The slot protocol: how disks come and go in a PCIe slot while its host runs.

The slot's files say what the host shall have (`storage.virtio`). Whoever provides the PCIe side, the card
(the emulated chassis, a DPU's firmware), reads them at power-on. A card that can more serves a unix stream
socket beside them, `card.sock`; where nobody serves it, power-on is all there is.

Each connection gets the card's `State` as a line of JSON: at once, after every change, and as the answer to
the one thing that it may say, `look`: have the slot's files read again and the host brought to them. `looks`
counts the answers of this connection: whoever asked knows the answer from what came before it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

SOCKET = "card.sock"
LOOK = b"look\n"
LINE_LIMIT = 1 << 16  # bytes in one line


class Stage(StrEnum):
    """How far a disk is."""

    ATTACHED = "attached"  # a device of the host
    LEAVING = "leaving"  # gone from the slot; its OS was asked to let go of it and has not yet
    FAILED = "failed"  # in the slot, and could not be attached; `trouble` says why


class InSlot(msgspec.Struct, frozen=True, kw_only=True):
    """One disk. `size` is that of its description when the host was last told, bytes."""

    stage: Stage
    removable: bool = True  # False: wired to the board, it comes and goes at power-on only
    size: int = 0
    trouble: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the card tells. `disks` go by the names of their entries, `NN-<target>`; none while it is dark."""

    powered: bool
    ports: int  # how many disks can come and go
    free: int  # ports without a disk
    looks: int = 0
    disks: dict[str, InSlot] = {}


def encode(state: State) -> bytes:
    """A line."""
    return msgspec.json.encode(state) + b"\n"


def decode(line: bytes) -> State:
    """Raises msgspec.DecodeError, and ValidationError, which is one."""
    return msgspec.json.decode(line, type=State)
