"""A small NBD client, for looking at the block engine as a chassis does.

Written from the protocol's own document (NetworkBlockDevice/nbd, doc/proto.md): fixed newstyle negotiation
with NBD_OPT_GO, simple replies, one request at a time.
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
FLAGS = 1 | 2  # fixed newstyle, no zeroes
OPT_GO, REP_ACK, REP_INFO, INFO_EXPORT = 7, 1, 3, 0
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
READ_ONLY = 1 << 1  # transmission flag


class NbdError(OSError):
    """The server refused or failed a request."""


class NbdClient:
    """One connection to one export. `size` in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._cookie = 0
        self.size = 0
        self.read_only = False

    @classmethod
    async def connect(cls, path: Path, export: str) -> NbdClient:
        client = cls(*await asyncio.open_unix_connection(str(path)))
        try:
            await client._negotiate(export)
        except asyncio.IncompleteReadError:
            raise NbdError("the server hung up") from None
        return client

    async def _negotiate(self, export: str) -> None:
        magic, option_magic, _ = struct.unpack(">QQH", await self._reader.readexactly(18))
        assert (magic, option_magic) == (INIT_MAGIC, OPTION_MAGIC), "no newstyle NBD server"
        name = export.encode()
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._writer.write(
            struct.pack(">I", FLAGS) + struct.pack(">QII", OPTION_MAGIC, OPT_GO, len(body)) + body
        )
        while True:
            magic, _, kind, length = struct.unpack(">QIII", await self._reader.readexactly(20))
            assert magic == OPTION_REPLY
            data = await self._reader.readexactly(length)
            if kind == REP_ACK:
                return
            if kind != REP_INFO:
                raise NbdError(f"no export {export!r}: {data.decode(errors='replace')}")
            if int.from_bytes(data[:2], "big") == INFO_EXPORT:
                _, self.size, flags = struct.unpack(">HQH", data)
                self.read_only = bool(flags & READ_ONLY)

    async def _request(self, kind: int, offset: int, length: int, data: bytes = b"") -> bytes:
        self._cookie += 1
        self._writer.write(
            struct.pack(">IHHQQI", REQUEST_MAGIC, 0, kind, self._cookie, offset, length) + data
        )
        try:
            magic, error, cookie = struct.unpack(">IIQ", await self._reader.readexactly(16))
            assert (magic, cookie) == (REPLY_MAGIC, self._cookie)
            if error:
                raise NbdError(error, f"NBD error {error}")
            return await self._reader.readexactly(length) if kind == READ else b""
        except asyncio.IncompleteReadError:
            raise NbdError("the server hung up") from None

    async def read(self, offset: int, length: int) -> bytes:
        return await self._request(READ, offset, length)

    async def write(self, offset: int, data: bytes) -> None:
        await self._request(WRITE, offset, len(data), data)

    async def flush(self) -> None:
        await self._request(FLUSH, 0, 0)

    async def close(self) -> None:
        self._writer.close()
