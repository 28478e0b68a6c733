"""A chassis' control socket: what a tech in front of the machine could do, for people, tests and the CLI.

JSON lines on `control.sock`. Requests: {"op": …}; replies {"ok": true, "data": …} or {"ok": false, "error":
…}.

| op       | fields                | data                                                    |
|----------|-----------------------|---------------------------------------------------------|
| status   |                       | power, lines, faults, paths, BMC                        |
| fault    | fault, value?         | faults now                                              |
| clear    | fault? (none: all)    | faults now                                              |
| waveform | line?, since?, limit? | list of edges                                           |
| history  |                       | list of power events: who asked, what came of it        |
| disks    |                       | list of disks with their counters since power-on        |
| mains    | on                    | what the body did: done, nothing                        |
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from nicagent.emulator import faults
from nicagent.emulator.chassis import Chassis
from nicagent.emulator.listener import Listener
from nicagent.errors import Kind, NicagentError
from nicagent.power.linewire import WAVEFORM_LIMIT

REQUEST_LIMIT = 64 << 10  # bytes of one request
CLIENT_TIMEOUT = 30.0  # seconds the client waits; cutting mains waits for QEMU to end

More = Callable[[], Mapping[str, object]]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request; fields that an op does not use are ignored."""

    op: Literal["status", "fault", "clear", "waveform", "history", "disks", "mains"]
    fault: str | None = None
    value: float | None = None
    line: int | None = None
    since: int = 0
    limit: int = WAVEFORM_LIMIT
    on: bool = True


def serve_control(chassis: Chassis, more: More = dict) -> Listener:
    """The chassis' control socket, `async with` it. `more` adds to what `status` says (the BMC's side)."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(msgspec.json.encode(await _answer(chassis, more, line)) + b"\n")
            await writer.drain()

    return Listener(chassis.directory / "control.sock", client, limit=REQUEST_LIMIT)


async def _answer(chassis: Chassis, more: More, line: bytes) -> Mapping[str, object]:
    try:
        return {"ok": True, "data": await _do(chassis, more, msgspec.json.decode(line, type=Request))}
    except msgspec.DecodeError as error:
        return {"ok": False, "error": f"not a request: {error}"}
    except NicagentError as error:
        return {"ok": False, "error": str(error)}


async def _do(chassis: Chassis, more: More, request: Request) -> object:
    match request.op:
        case "status":
            return {**chassis.status(), **more()}
        case "fault":
            chassis.set_fault(*faults.parse(request.fault or "", request.value))
        case "clear":
            named = None if request.fault is None else faults.parse(request.fault, 1)[0]
            chassis.clear_fault(named)
        case "waveform":
            return chassis.bank.waveform(request.line, request.since, min(request.limit, WAVEFORM_LIMIT))
        case "history":
            return [dataclasses.asdict(each) for each in chassis.history]
        case "disks":
            return await chassis.disks()
        case "mains":
            return await chassis.mains(request.on, "control socket")
    return {str(fault): value for fault, value in chassis.faults.items()}


class ChassisControl:
    """The client: one connection a call, synchronous. Raises NicagentError when the chassis refuses or is
    gone.
    """

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    @classmethod
    def of(cls, run_dir: Path, host: str) -> ChassisControl:
        """The chassis of `host` in the lab that runs in `run_dir`."""
        return cls(run_dir / host / "control.sock")

    def status(self) -> dict[str, Any]:
        return cast(dict[str, Any], self._ask(Request("status")))

    def fault(self, name: str, value: float | None = None) -> dict[str, float]:
        """Inject a fault (see `faults`); returns those that are now set."""
        return cast(dict[str, float], self._ask(Request("fault", fault=name, value=value)))

    def clear(self, name: str | None = None) -> dict[str, float]:
        """Mend one fault, or all; returns those that are left."""
        return cast(dict[str, float], self._ask(Request("clear", fault=name)))

    def waveform(self, line: int | None = None, since: int = 0) -> list[dict[str, Any]]:
        """All kept edges after `since`, oldest first: seq, t_ns, line, level, cause, who, pid."""
        edges: list[dict[str, Any]] = []
        while True:
            more = cast(list[dict[str, Any]], self._ask(Request("waveform", line=line, since=since)))
            edges += more
            if len(more) < WAVEFORM_LIMIT:
                return edges
            since = more[-1]["seq"]

    def history(self) -> list[dict[str, Any]]:
        """Power events, oldest first: t_ns, event, who, before, after, verdict, note."""
        return cast(list[dict[str, Any]], self._ask(Request("history")))

    def disks(self) -> list[dict[str, Any]]:
        """What the host has read and written: disk, rd_bytes, rd_operations, wr_bytes, … of each."""
        return cast(list[dict[str, Any]], self._ask(Request("disks")))

    def mains(self, on: bool) -> str:
        """Pull or plug the power cord."""
        return str(self._ask(Request("mains", on=on)))

    def _ask(self, request: Request) -> object:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(CLIENT_TIMEOUT)
                link.connect(str(self._path))
                link.sendall(msgspec.json.encode(request) + b"\n")
                with link.makefile("rb") as answers:
                    answer = msgspec.json.decode(answers.readline() or b"{}", type=dict[str, object])
        except (OSError, msgspec.DecodeError) as error:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"the chassis does not answer on {self._path} ({error})",
                "check that its lab runs (nicagent emulate) and that the host's name is right",
            ) from None
        if not answer.get("ok"):
            raise NicagentError(Kind.INVALID, str(answer.get("error", "the chassis ended")))
        return answer["data"]
