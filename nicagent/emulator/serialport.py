"""The serial port's outer end: it outlives power cycles, as the connector on a server's back does.

The chassis serves it on a unix socket: one client at a time, reconnectable. What the host says while nobody
listens is only in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

BACKLOG_LIMIT = 1 << 20  # bytes a slow client may leave unread; a UART would have dropped far fewer
LOG_LIMIT = 16 << 20  # bytes of log before it is set aside as `.1`


class _End(asyncio.Protocol):
    """One side of the port: what it receives goes to `deliver` of the port."""

    def __init__(self, port: SerialPort, *, host: bool) -> None:
        self._port = port
        self._host = host
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self._host and not self._port.attach(self):
            transport.write(b"nicagent: this console is in use by another client\r\n")
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._host:
            self._port.from_host(data)
        else:
            self._port.from_client(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._port.detach(self)

    def write(self, data: bytes) -> None:
        if self.transport is not None and self.transport.get_write_buffer_size() < BACKLOG_LIMIT:
            self.transport.write(data)


class SerialPort:
    """`async with` it; `plug()` gives QEMU's end of a fresh wire for each power-on."""

    def __init__(self, path: Path, log: Path | None) -> None:
        self.path = path
        self._log_path = log
        self._log = log.open("ab", buffering=0) if log is not None else None
        self._server: asyncio.Server | None = None
        self._client: _End | None = None
        self._hosted: _End | None = None

    async def __aenter__(self) -> SerialPort:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _End(self, host=False), str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.unplug()
        if self._client is not None and self._client.transport is not None:
            self._client.transport.abort()
        if self._log is not None:
            self._log.close()

    async def plug(self) -> socket.socket:
        """A new wire; the caller passes the returned end to QEMU and closes its own copy."""
        self.unplug()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        loop = asyncio.get_running_loop()
        _, self._hosted = await loop.create_unix_connection(lambda: _End(self, host=True), sock=ours)
        return theirs

    def unplug(self) -> None:
        if self._hosted is not None and self._hosted.transport is not None:
            self._hosted.transport.close()
        self._hosted = None

    def attach(self, client: _End) -> bool:
        if self._client is not None:
            return False
        self._client = client
        return True

    def detach(self, end: _End) -> None:
        if self._client is end:
            self._client = None
        if self._hosted is end:
            self._hosted = None

    def from_host(self, data: bytes) -> None:
        if self._log is not None and self._log_path is not None and not self._log.closed:
            self._log.write(data)
            if self._log.tell() > LOG_LIMIT:
                self._log.close()
                self._log_path.replace(self._log_path.with_suffix(self._log_path.suffix + ".1"))
                self._log = self._log_path.open("ab", buffering=0)
        if self._client is not None:
            self._client.write(data)

    def from_client(self, client: _End, data: bytes) -> None:
        if client is self._client and self._hosted is not None:
            self._hosted.write(data)
