"""HTTP on one provision link: the host's iPXE script, rendered when asked for, the files it names, and what
its stage-1 has to tell."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Interface
from pathlib import Path

from aiohttp import web

from nicagent.errors import Kind, NicagentError
from nicagent.provision.contract import HTTP_PORT, REPORT_MAX, ProvisionLink

LOGIN = "login"
PRIVILEGED_PORTS = 1024
REPORT_SECONDS = 10.0  # that a report may take to arrive


class BootServer:
    """Bound to the agent's address of one link, for the one host at its other end."""

    def __init__(
        self,
        link: ProvisionLink,
        files: Mapping[str, Path],
        script: Callable[[], str],
        report: Callable[[bytes], Awaitable[None]],
        login: Callable[[], Awaitable[str]],
    ) -> None:
        """`files` may be fetched under their names; `script` renders the host's script of this moment;
        `report` takes what the host tells of itself, and raises what is wrong with it; `login` tells what it
        proves itself with, and raises when it has done so."""
        self._link = link
        self._files = dict(files)
        self._script = script
        self._report = report
        self._login = login
        self._reporting = asyncio.Lock()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises UNAVAILABLE when the port is taken."""
        app = web.Application(middlewares=[self._only_this_host], client_max_size=REPORT_MAX)
        app.router.add_get("/boot/{name}", self._serve)
        app.router.add_post("/report", self._take_report)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        address = str(IPv4Interface(self._link.agent_address).ip)
        try:
            await web.TCPSite(self._runner, address, HTTP_PORT, shutdown_timeout=1.0).start()
        except OSError as error:
            await self.stop()
            hint = "see ss -lntp" if error.errno == errno.EADDRINUSE else "see ip address"
            what = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"TCP port {HTTP_PORT} of {address}, for the boot files of {self._link.host}, {what}",
                hint,
            ) from None

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _only_this_host(
        self, request: web.Request, handler: Callable[[web.Request], object]
    ) -> web.StreamResponse:
        # The agent's own kernel would route here from any of its other networks.
        if request.remote != self._link.host_address:
            raise web.HTTPForbidden
        response = await handler(request)  # type: ignore[misc]
        assert isinstance(response, web.StreamResponse)
        return response

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name == f"{self._link.host}.ipxe":
            return web.Response(text=self._script(), headers={"Cache-Control": "no-store"})
        if name == LOGIN:
            return await self._serve_login(request)
        path = self._files.get(name)
        if path is None or not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path)

    async def _serve_login(self, request: web.Request) -> web.StreamResponse:
        """For whoever may use a port below 1024 on the host, while it boots: stage-1. Root in the tenant's OS
        has it anyway; any other process there would be root with it."""
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        if peer is None or peer[1] >= PRIVILEGED_PORTS:
            raise web.HTTPForbidden(text="ask from a port below 1024\n")
        try:
            login = await self._login()
        except NicagentError as refused:
            raise web.HTTPConflict(text=f"{refused}\n") from None
        if not login:
            raise web.HTTPNotFound
        return web.Response(text=login, headers={"Cache-Control": "no-store"})

    async def _take_report(self, request: web.Request) -> web.StreamResponse:
        """What stage-1 has found. From here on it is the host's word against nobody's: see `report`."""
        if self._reporting.locked():
            raise web.HTTPTooManyRequests
        async with self._reporting:
            try:
                async with asyncio.timeout(REPORT_SECONDS):
                    body = await request.read()
            except TimeoutError:
                raise web.HTTPRequestTimeout from None
            try:
                await self._report(body)
            except NicagentError as refused:
                status = web.HTTPConflict if refused.kind is Kind.WRONG_STATE else web.HTTPBadRequest
                raise status(text=f"{refused}\n") from None
        return web.Response(status=204)
