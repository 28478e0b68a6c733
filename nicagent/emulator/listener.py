"""A unix socket of a chassis, and those who have connected to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

LINE_LIMIT = 64 << 10  # bytes, asyncio's own

#: What is done for one client. It ends when he hangs up, sends more than a line may hold, or is hung up on.
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """Serves each client with `serve` from `open` until `close`, which hangs up on all of them; or as long as
    an `async with` lasts.
    """

    def __init__(self, path: Path, serve: Serve, *, limit: int = LINE_LIMIT) -> None:
        self._path = path
        self._serve = serve
        self._limit = limit
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self, mode: int | None = None) -> None:
        """Listen, in place of what a dead chassis left there. `mode`: of the socket, if not as usual."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._client, self._path, limit=self._limit)
        if mode is not None:
            self._path.chmod(mode)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)
        for task in tuple(self._clients):
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients)

    async def __aenter__(self) -> Listener:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._clients.add(task)
        try:
            await self._serve(reader, writer)
        except (ValueError, EOFError, ConnectionError, asyncio.CancelledError):  # too long, gone, or we leave
            pass
        finally:
            self._clients.discard(task)
            writer.close()
