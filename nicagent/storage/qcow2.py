"""The header of a qcow2 file: what it refers to, read without opening what it refers to.

Source: QEMU's docs/interop/qcow2.txt, "Header" and "Header extensions". Read here and not by `qemu-img info`
because the answer decides whether the file may be opened at all, and an image from a stranger must not
make a program of ours open a second file first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from nicagent.errors import Kind, NicagentError

MAGIC = b"QFI\xfb"
NAME_LIMIT = 1023  # backing_file_size, by the specification
BASE = struct.Struct(">4sIQIIQI")  # magic, version, backing offset and size, cluster bits, size, crypt method
FEATURES = struct.Struct(">Q")  # incompatible features, at 72 (version 3)
HEADER_LENGTH = struct.Struct(">I")  # at 100 (version 3)
EXTENSION = struct.Struct(">II")
EXTENSION_BACKING_FORMAT = 0xE2792ACA
EXTENSION_LIMIT = 256  # extensions walked at most
INCOMPATIBLE_CORRUPT = 1 << 1
INCOMPATIBLE_EXTERNAL_DATA = 1 << 2


@dataclass(frozen=True)
class Header:
    """What concerns us of a qcow2 header. Sizes in bytes."""

    size: int  # virtual size
    backing_file: str | None
    backing_format: str | None
    encrypted: bool
    corrupt: bool
    external_data: bool


def read_header(file: BinaryIO, origin: str) -> Header:
    """Parse the header of an open file; `origin` names it in errors. Raises INVALID when it is no qcow2."""
    file.seek(0)
    head = file.read(112).ljust(112, b"\0")
    magic, version, name_offset, name_size, cluster_bits, size, crypt = BASE.unpack_from(head)
    if magic != MAGIC:
        raise NicagentError(
            Kind.INVALID,
            f"{origin} is not in qcow2 format",
            "say type='raw' for it, or convert it: qemu-img convert -O qcow2",
        )
    if version not in (2, 3) or not 9 <= cluster_bits <= 21 or name_size > NAME_LIMIT:
        raise _damaged(origin)
    cluster = 1 << cluster_bits
    features, start = 0, 72
    if version == 3:
        (features,) = FEATURES.unpack_from(head, 72)
        (start,) = HEADER_LENGTH.unpack_from(head, 100)
    file.seek(0)
    first = file.read(cluster)
    name = None
    if name_offset:
        raw = first[name_offset : name_offset + name_size]
        if not name_size or len(raw) < name_size or b"\0" in raw:
            raise _damaged(origin)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise _damaged(origin) from None
    return Header(
        size=size,
        backing_file=name,
        backing_format=_backing_format(first, start, origin),
        encrypted=crypt != 0,
        corrupt=bool(features & INCOMPATIBLE_CORRUPT),
        external_data=bool(features & INCOMPATIBLE_EXTERNAL_DATA),
    )


def _backing_format(cluster: bytes, position: int, origin: str) -> str | None:
    for _ in range(EXTENSION_LIMIT):
        if position + EXTENSION.size > len(cluster):
            return None
        kind, length = EXTENSION.unpack_from(cluster, position)
        position += EXTENSION.size
        if kind == 0:
            return None
        data = cluster[position : position + length]
        if len(data) < length:
            raise _damaged(origin)
        if kind == EXTENSION_BACKING_FORMAT:
            return data.decode(errors="replace")
        position += (length + 7) & ~7
    raise _damaged(origin)


def _damaged(origin: str) -> NicagentError:
    return NicagentError(
        Kind.INVALID, f"the qcow2 header of {origin} is damaged", "check it: qemu-img check -f qcow2"
    )
