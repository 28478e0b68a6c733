"""The local control face over its real socket, with the command's own client at the other end."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nicagent import client
from nicagent.console.serial import SerialConsole
from nicagent.errors import Kind, NicagentError
from nicagent.model import Change, Power
from nicagent.northbound.api import STATUS_OF, ControlFace
from tests.rig import TESTER, Rig, bodies, domain


@dataclass
class Face:
    rig: Rig
    socket: Path
    console: SerialConsole
    line: asyncio.StreamWriter
    typed: asyncio.StreamReader

    async def call(self, method: str, route: str, body: object = None) -> Any:
        return await asyncio.to_thread(client.call, self.socket, method, route, body)

    async def refusal(self, method: str, route: str, body: object = None) -> NicagentError:
        with pytest.raises(NicagentError) as caught:
            await self.call(method, route, body)
        return caught.value


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[Face]:
    ends: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_unix_server(lambda r, w: ends.put_nowait((r, w)), tmp_path / "serial")
    console = SerialConsole("metal-1", tmp_path / "serial", 115200, tmp_path / "log" / "metal-1.log", 1 << 16)
    holding = asyncio.create_task(console.run())
    typed, line = await ends.get()
    async with Rig.live(tmp_path / "nicagent.db", bodies()) as rig:
        await rig.power_known()
        control = ControlFace(rig.controller, {"metal-1": console})
        await control.start(tmp_path / "nicagent.sock")
        yield Face(rig, tmp_path / "nicagent.sock", console, line, typed)
        await control.stop()
    holding.cancel()
    await asyncio.wait([holding])
    line.close()
    server.close()


async def test_the_socket_is_the_agents_users_alone(face: Face) -> None:
    assert stat.S_IMODE(face.socket.stat().st_mode) == 0o600


async def test_hosts_and_domains_are_told_whole(face: Face) -> None:
    await face.rig.controller.define(domain("vm", host="metal-1"), TESTER)
    await face.rig.controller.start(domain("vm").uuid, TESTER)
    first, second = await face.call("GET", "/v1/hosts")
    assert (first["name"], first["state"], first["power"]) == ("metal-1", "running", "on")
    assert (second["name"], second["state"], second["domain"]) == ("metal-2", "free", None)
    assert await face.call("GET", "/v1/hosts/metal-1") == first
    (status,) = await face.call("GET", "/v1/domains")
    assert status["domain"]["name"] == "vm"
    assert status["bindings"][0]["ipv4"] == "10.100.0.10"
    counters = await face.call("GET", f"/v1/domains/{domain('vm').uuid}/statistics")
    assert [each["target"] for each in counters["exports"]] == ["vda", "vdb"]


async def test_power_is_worked_and_who_asked_is_known_from_the_kernel(face: Face) -> None:
    told: list[Change] = []
    face.rig.controller.watch(told.append)
    status = await face.call("POST", "/v1/hosts/metal-1/power", {"action": "on"})
    assert status["power"] == "on"
    await face.call("POST", "/v1/hosts/metal-1/power", {"action": "press"})
    record = face.rig.controller._walkers["metal-1"].record
    assert record.cause.who == f"uid {os.getuid()}, pid {os.getpid()}"
    assert record.cause.why == "power press"
    assert (await face.call("POST", "/v1/hosts/metal-1/power", {"action": "cycle"}))["power"] == "on"
    assert face.rig.bodies["metal-1"].power is Power.ON
    assert told


async def test_mistakes_come_back_as_they_were_raised(face: Face) -> None:
    error = await face.refusal("GET", "/v1/hosts/metal-9")
    assert (error.kind, error.hint) == (Kind.NOT_FOUND, "known hosts: metal-1, metal-2")
    error = await face.refusal("POST", "/v1/hosts/metal-1/power", {"action": "explode"})
    assert error.kind is Kind.INVALID
    assert "use on, off, shutdown, reset, press, interrupt, cycle" in error.hint
    error = await face.refusal("GET", "/v1/domains/nothing/statistics")
    assert error.kind is Kind.NOT_FOUND
    face.rig.bodies["metal-1"].dead_button = True
    assert (await face.refusal("POST", "/v1/hosts/metal-1/power", {"action": "on"})).kind is Kind.UNAVAILABLE


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"", b'{"action": 3}', b'{"action": ["on"]}'])
async def test_a_body_that_is_none_is_a_mistake_not_a_fault(face: Face, body: bytes) -> None:
    async with session(face) as http, http.post("http://x/v1/hosts/metal-1/power", data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"] == "invalid"
    assert face.rig.bodies["metal-1"].acts == []


async def test_a_body_too_long_is_refused(face: Face) -> None:
    body = bytes(1 << 17)
    async with session(face) as http, http.post("http://x/v1/hosts/metal-1/power", data=body) as response:
        assert response.status == 413


def test_every_kind_of_error_has_a_status() -> None:
    assert set(STATUS_OF) == set(Kind)


# ---- the console


def session(face: Face) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(face.socket)))


CONSOLE = "http://x/v1/hosts/metal-1/console"


async def test_the_console_goes_both_ways_with_its_past_first(face: Face) -> None:
    watcher = face.console.attach()
    face.line.write(b"login: ")
    await watcher.read(100)
    async with session(face) as http, http.ws_connect(CONSOLE) as ws:
        assert (await ws.receive(5)).data == b"login: "
        await ws.send_bytes(b"root\r")
        assert await face.typed.readexactly(5) == b"root\r"


async def test_force_ends_other_sessions_and_they_are_closed(face: Face) -> None:
    async with (
        session(face) as http,
        http.ws_connect(CONSOLE) as first,
        http.ws_connect(CONSOLE + "?force=1") as second,
    ):
        assert (await first.receive(5)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        face.line.write(b"mine")
        assert (await second.receive(5)).data == b"mine"


@pytest.mark.parametrize("how", ["politely", "cut"])
async def test_a_session_ends_with_its_client(face: Face, how: str) -> None:
    """However it goes: a session that stays would be fed, and keep a megabyte, for ever."""
    http = session(face)
    ws = await http.ws_connect(CONSOLE)
    assert len(face.console._sessions) == 1
    if how == "politely":
        await ws.close()
    else:
        ws._writer.transport.abort()
    async with asyncio.timeout(5):
        while face.console._sessions:
            face.line.write(b"more output " * 1000)
            await asyncio.sleep(0.01)
    await http.close()


async def test_a_host_without_a_console_says_so(face: Face) -> None:
    async with session(face) as http, http.get("http://x/v1/hosts/metal-2/console") as response:
        assert response.status == 501
        assert (await response.json())["hint"] == "add [hosts.metal-2.console]"

    def join(host: str) -> None:  # as the command does, in a loop of its own
        asyncio.run(client.console(face.socket, host, force=False))

    with pytest.raises(NicagentError, match="no console wired"):
        await asyncio.to_thread(join, "metal-2")
    with pytest.raises(NicagentError, match="no host is called 'metal-9'"):
        await asyncio.to_thread(join, "metal-9")


async def test_a_socket_that_a_dead_agent_left_is_replaced(face: Face, tmp_path: Path) -> None:
    left = tmp_path / "left.sock"
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(left))
    control = ControlFace(face.rig.controller, {})
    await control.start(left)
    assert len(await asyncio.to_thread(client.call, left, "GET", "/v1/hosts")) == 2
    await control.stop()
