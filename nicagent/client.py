"""The other end of the local control socket: what the `nicagent` command talks with.

Plain HTTP of the standard library for calls, so that `nicagent hosts` answers at once; aiohttp only where a
WebSocket is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import os
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from nicagent.errors import Kind, NicagentError

ESCAPE = b"\x1d"  # Ctrl-], as in telnet and virsh console
CALL_SECONDS = 200.0  # above the longest deadline of a host's state


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _unreachable(path: Path, error: OSError) -> NicagentError:
    hints = {
        errno.ENOENT: "is the agent running? start it: nicagent serve",
        errno.ECONNREFUSED: "the agent has died; start it again: nicagent serve",
        errno.EACCES: "run it as the agent's own user (sudo)",
    }
    return NicagentError(
        Kind.UNAVAILABLE,
        f"no agent answers at {path}: {error.strerror or error}",
        hints.get(error.errno or 0, "name its socket with --socket"),
    )


def call(path: Path, method: str, route: str, body: object = None, *, seconds: float = CALL_SECONDS) -> Any:
    """One call; returns the decoded answer. Raises what the agent answered, or UNAVAILABLE."""
    connection = _UnixConnection(path, seconds)
    try:
        connection.request(method, route, None if body is None else msgspec.json.encode(body))
        response = connection.getresponse()
        answer = msgspec.json.decode(response.read() or b"null")
    except (OSError, http.client.HTTPException) as e:
        raise _unreachable(path, e if isinstance(e, OSError) else OSError(str(e))) from None
    except msgspec.DecodeError:
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"what answers at {path} is no agent, or one of another version",
            "name the agent's socket with --socket",
        ) from None
    finally:
        connection.close()
    if response.status >= 400:
        raise NicagentError(Kind(answer["error"]), answer["message"], answer["hint"])
    return answer


async def console(path: Path, host: str, *, force: bool) -> None:
    """Join this terminal with a host's console until Ctrl-] or the console's end."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, connect=10)
    url = f"http://localhost/v1/hosts/{quote(host, safe='')}/console?force={int(force)}"
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), timeout=timeout) as session:
        try:
            ws = await session.ws_connect(url, max_msg_size=1 << 20)
        except aiohttp.WSServerHandshakeError:
            call(path, "GET", f"/v1/hosts/{quote(host, safe='')}")  # says so if the host is not known
            raise NicagentError(
                Kind.UNSUPPORTED, f"host {host} has no console wired", f"add [hosts.{host}.console]"
            ) from None
        except OSError as e:
            raise _unreachable(path, e) from None
        print(f"Connected to the console of {host}; leave with Ctrl-]", file=sys.stderr)
        with _raw_terminal():
            typing = asyncio.create_task(_type(ws))
            try:
                async for message in ws:
                    if message.type is not aiohttp.WSMsgType.BINARY:
                        break
                    sys.stdout.buffer.write(message.data)
                    sys.stdout.buffer.flush()
                    if typing.done():
                        break
            finally:
                typing.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await typing
                await ws.close()


async def _type(ws: Any) -> None:
    loop = asyncio.get_running_loop()
    keys: asyncio.Queue[bytes] = asyncio.Queue()
    try:
        loop.add_reader(0, lambda: keys.put_nowait(os.read(0, 4096)))
    except PermissionError:  # a file or /dev/null (epoll_ctl(2), EPERM): nobody types, the console is shown
        await asyncio.Event().wait()
    try:
        while data := await keys.get():
            before, escape, _ = data.partition(ESCAPE)
            if before:
                await ws.send_bytes(before)
            if escape:
                await ws.close()
                return
    finally:
        loop.remove_reader(0)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    old = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, old)
        print(file=sys.stderr)
