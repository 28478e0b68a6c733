"""Packets: a length that counts itself, six header words, a body.

Every field is a 32-bit big-endian number; the programs, types and statuses are those of libvirt's RPC.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

from hypervisor_shim.errors import LibvirtError
from hypervisor_shim.xdr import INT, OPTIONAL_TEXT, TEXT, UUID, Optional, Record, Remembered, XdrError

HEADER = Struct(">7I")  # length, program, version, procedure, type, serial, status
HEADER_SIZE = HEADER.size  # 28
PACKET_MAX = 32 * 1024 * 1024 + 4
STREAM_DATA_MAX = 262_120  # payload bytes in one stream packet


class Program(IntEnum):
    REMOTE = 0x20008086
    QEMU = 0x20008087
    LXC = 0x00068000
    ADMIN = 0x06900690
    KEEPALIVE = 0x6B656570


class Type(IntEnum):
    CALL = 0
    REPLY = 1
    MESSAGE = 2  # an event, or a keepalive
    STREAM = 3
    CALL_WITH_FDS = 4
    REPLY_WITH_FDS = 5
    STREAM_HOLE = 6


class Status(IntEnum):
    OK = 0
    ERROR = 1
    CONTINUE = 2  # of a stream: more to come


class Keepalive(IntEnum):
    PING = 1
    PONG = 2


NONNULL_DOMAIN = Remembered(TEXT, UUID, INT)  # name, uuid, id
NONNULL_NETWORK = Record(TEXT, UUID)  # pools, filters have the same shape
NONNULL_SECRET = Record(UUID, INT, TEXT)  # uuid, usage type, usage id

# code, origin, message, level, domain, three strings, two numbers, network
_ERROR = Record(
    INT, INT, OPTIONAL_TEXT, INT, Optional(NONNULL_DOMAIN),
    OPTIONAL_TEXT, OPTIONAL_TEXT, OPTIONAL_TEXT, INT, INT, Optional(NONNULL_NETWORK),
)  # fmt: skip
_LEVEL_ERROR = 2
_MESSAGE_MAX = 16_384  # characters of an error's message


def packet(
    program: int, version: int, procedure: int, type: int, serial: int, status: int, body: bytes = b""
) -> bytes:
    """One packet, ready to send."""
    return HEADER.pack(HEADER_SIZE + len(body), program, version, procedure, type, serial, status) + body


def error_body(error: LibvirtError) -> bytes:
    """The body of an error reply. The two strings behind the message are, as libvirtd fills them, the message
    with a %s for its detail, and the detail. A message that quotes what a client sent is cut to a size that
    always fits."""
    message = _cut(error.message)
    detail = message if error.detail is None else _cut(error.detail)
    pattern = message.removesuffix(detail) + "%s"
    code, origin = error.code, error.origin
    out: list[bytes] = []
    _ERROR.write((code, origin, message, _LEVEL_ERROR, None, pattern, detail, None, -1, -1, None), out)
    return b"".join(out)


def _cut(text: str) -> str:
    return text if len(text) <= _MESSAGE_MAX else text[: _MESSAGE_MAX - 1] + "…"


def read_error(body: bytes) -> tuple[int, int, str | None]:
    """Code, origin and message of an error body (for clients and tests). XdrError if it is anything else, or
    has anything behind it."""
    (code, origin, message, *_), behind = _ERROR.read(body, 0, len(body))
    if behind != len(body):
        raise XdrError(f"{len(body) - behind} bytes behind an error")
    return code, origin, message
