"""The control socket: one JSON object a line, asked and answered. Both ends are here.

Requests: `{"cmd":"ping"}`, `{"cmd":"status"}`, `{"cmd":"reload"}`. Answers: `{"ok":true, …}` with the fields
of `TargetStatus` or `Changes` under `"status"` or `"changes"`, or `{"ok":false,"error":"a sentence"}`.
Who may open the socket may do all of it: its mode is 0600.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp.contract import Changes, TargetStatus

LINE_MAX = 1 << 20  # bytes, requests and answers
CLIENTS_MAX = 16

Reload = Callable[[], Awaitable[Changes]]


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """A line from a client."""

    cmd: str


class ControlServer:
    """Serves the socket at `path`. Order: `start`, `close`."""

    def __init__(self, path: Path, status: Callable[[], TargetStatus], reload: Reload) -> None:
        self.path = path
        self._status = status
        self._reload = reload
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises NicagentError when another process answers there, or the place is no good."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _remove_stale(self.path)
            listener.bind(str(self.path))
            self.path.chmod(0o600)  # before listen(): nobody can have connected yet
        except OSError as error:
            listener.close()
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"cannot make control socket {self.path}: {error.strerror}",
                "check `control`",
            ) from None
        except NicagentError:
            listener.close()
            raise
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LINE_MAX)

    async def close(self) -> None:
        """Ends the server and its clients, and removes the socket. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= CLIENTS_MAX:
            writer.close()
            return
        self._clients.add(task)
        try:
            while line := await reader.readline():
                writer.write(await self._answer(line) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # ValueError: a line beyond LINE_MAX
            pass
        except asyncio.CancelledError:  # the server ends; asyncio's own callback would log it as an error
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = msgspec.json.decode(line, type=Request)
        except msgspec.DecodeError as error:
            return _failure(f"not a request: {error}")
        match request.cmd:
            case "ping":
                return msgspec.json.encode({"ok": True, "pid": os.getpid()})
            case "status":
                return msgspec.json.encode({"ok": True, "status": self._status()})
            case "reload":
                try:
                    changes = await self._reload()
                except NicagentError as error:
                    return _failure(str(error))
                return msgspec.json.encode({"ok": True, "changes": changes})
        return _failure(f"unknown command {request.cmd!r}; there are ping, status, reload")


def _failure(sentence: str) -> bytes:
    return msgspec.json.encode({"ok": False, "error": sentence})


def _remove_stale(path: Path) -> None:
    """Removes the socket of a killed predecessor; a living one keeps it."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    with contextlib.closing(probe):
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                path.unlink(missing_ok=True)
                return
            raise
    raise NicagentError(
        Kind.UNAVAILABLE,
        f"a target is already running: it answers on {path}",
        "stop it, or give this one another `control`",
    )


async def ask(path: Path, command: str, *, timeout: float = 10.0) -> dict[str, Any]:
    """One command to a running target. Raises UNAVAILABLE after `timeout` seconds, INVALID if refused."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=LINE_MAX)
            try:
                writer.write(msgspec.json.encode(Request(command)) + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        raise NicagentError(
            Kind.UNAVAILABLE, f"no NVMe/TCP target answers on {path}", "see its log, or start it"
        ) from None
    answer: dict[str, Any] = msgspec.json.decode(line or b"{}", type=dict)
    if not answer.get("ok"):
        raise NicagentError(Kind.INVALID, str(answer.get("error", "the target closed the control socket")))
    return answer


async def ask_status(path: Path, *, timeout: float = 10.0) -> TargetStatus:
    """The status of a running target. Raises as `ask`."""
    return msgspec.convert((await ask(path, "status", timeout=timeout))["status"], TargetStatus)
