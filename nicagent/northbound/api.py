"""The local control face: HTTP with JSON over a unix socket, for the `nicagent` command.

A client of the controller and nothing else. Whoever may open the socket (mode 0600: the agent's own user) may
do everything; who that was goes into the cause of every act, taken from the kernel (SO_PEERCRED), not from
the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
from aiohttp import WSMsgType, web

from nicagent.console.serial import SerialConsole
from nicagent.controller import Controller
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, DomainStatus, PowerAction

STATUS_OF: Mapping[Kind, int] = {
    Kind.INVALID: 400,
    Kind.DENIED: 403,
    Kind.NOT_FOUND: 404,
    Kind.EXISTS: 409,
    Kind.WRONG_STATE: 409,
    Kind.UNSUPPORTED: 501,
    Kind.UNAVAILABLE: 503,
    Kind.NO_SPACE: 507,
    Kind.INTERNAL: 500,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ControlFace:
    """The routes. `consoles` are looked up by host name."""

    def __init__(self, controller: Controller, consoles: Mapping[str, SerialConsole]) -> None:
        self._controller = controller
        self._consoles = consoles
        self._runner: web.AppRunner | None = None

    async def start(self, path: Path) -> None:
        """Listen. A socket file that a dead agent left is replaced; the store's lock keeps out a live one."""
        app = web.Application(middlewares=[_errors], client_max_size=1 << 16)
        app.add_routes(
            [
                web.get("/v1/hosts", self._hosts),
                web.get("/v1/hosts/{host}", self._host),
                web.post("/v1/hosts/{host}/power", self._power),
                web.get("/v1/hosts/{host}/console", self._console),
                web.get("/v1/domains", self._domains),
                web.get("/v1/domains/{uuid}/statistics", self._statistics),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runner = runner
        old_mask = os.umask(0o177)  # the socket must never exist with wider rights, not even for a moment
        try:
            await web.UnixSite(runner, str(path)).start()
        finally:
            os.umask(old_mask)

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _hosts(self, request: web.Request) -> web.Response:
        return _json(self._controller.hosts())

    async def _host(self, request: web.Request) -> web.Response:
        return _json(self._controller.host(request.match_info["host"]))

    async def _domains(self, request: web.Request) -> web.Response:
        return _json([_without_secrets(status) for status in self._controller.domains()])

    async def _statistics(self, request: web.Request) -> web.Response:
        exports, ports = await self._controller.statistics(request.match_info["uuid"])
        return _json({"exports": exports, "ports": ports})

    async def _power(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked = msgspec.json.decode(body or b"{}")
        action = asked.get("action") if isinstance(asked, dict) else None
        host = request.match_info["host"]
        cause = Cause(_peer(request), f"power {action}")
        if action == "cycle":
            return _json(await self._controller.technician.cycle(host, cause))
        try:
            wanted = PowerAction(str(action))
        except ValueError:
            known = ", ".join([*PowerAction, "cycle"])
            raise NicagentError(
                Kind.INVALID, f"no power action is called {action!r}", f"use {known}"
            ) from None
        return _json(await self._controller.technician.power(host, wanted, cause))

    async def _console(self, request: web.Request) -> web.StreamResponse:
        """A WebSocket of binary messages, both ways. `?force=1` ends other sessions."""
        host = request.match_info["host"]
        self._controller.host(host)
        console = self._consoles.get(host)
        if console is None:
            raise NicagentError(
                Kind.UNSUPPORTED, f"host {host} has no console wired", f"add [hosts.{host}.console]"
            )
        ws = web.WebSocketResponse(heartbeat=20.0, max_msg_size=1 << 16)
        await ws.prepare(request)
        session = console.attach(replay=True, force=request.query.get("force") == "1")
        out = asyncio.create_task(_copy_out(session.read, ws))
        try:
            async for message in ws:
                if message.type is WSMsgType.BINARY:
                    await session.write(message.data)
        except NicagentError as e:
            with contextlib.suppress(ConnectionError):
                await ws.close(code=1011, message=str(e).encode()[:120])
        finally:
            await session.close()  # whatever comes of the rest: a session that stays is memory that stays
            out.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await out
        return ws


async def _copy_out(read: Callable[[int], Awaitable[bytes]], ws: web.WebSocketResponse) -> None:
    while data := await read(16384):
        await ws.send_bytes(data)
    await ws.close()


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except NicagentError as e:
        body = {"error": e.kind.value, "message": e.message, "hint": e.hint}
        return _json(body, status=STATUS_OF[e.kind])
    except msgspec.DecodeError as e:
        return _json({"error": "invalid", "message": f"the body is not JSON: {e}", "hint": ""}, status=400)


def _without_secrets(status: DomainStatus) -> object:
    """A domain as it is told: its document has the password of its screen, as clients defined it."""
    shown = msgspec.to_builtins(status)
    domain = shown["domain"]
    del domain["xml"]
    for display in (domain["display"], (shown["display"] or {}).get("display")):
        if display is not None:
            del display["password"]
    return shown


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", status=status)


def _peer(request: web.Request) -> str:
    sock = request.transport.get_extra_info("socket") if request.transport else None
    if sock is None:
        return "a local client"
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"uid {uid}, pid {pid}"
