"""A server in a thread of its own, so that blocking clients run beside it; and a client of raw packets."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from hypervisor_shim.connection import Limits
from hypervisor_shim.driver import Driver
from hypervisor_shim.frame import HEADER, HEADER_SIZE, Program, Status, Type, packet, read_error
from hypervisor_shim.server import Server


@dataclass
class Served:
    driver: Driver
    server: Server
    loop: asyncio.AbstractEventLoop
    path: Path
    read_only_path: Path
    tcp_port: int
    problems: list[str] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"nic+unix:///system?socket={self.path}"

    @property
    def read_only_uri(self) -> str:
        return f"nic+unix:///system?socket={self.read_only_path}"

    def run(self, work: Any) -> Any:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


@contextmanager
def _collecting_elsewhere() -> Iterator[None]:
    """While a server runs in this process, its thread collects no cycles: a client's connection that is part
    of one would be closed there, by a call that waits for the answer of that very thread.
    """
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def serving(
    driver: Driver, directory: Path, limits: Limits | None = None, make: Any = Server, **how: Any
) -> Iterator[Served]:
    """`how`: the server's policy and audit. `make`: a server of another class."""
    started: list[Served] = []
    ready, stop = threading.Event(), None
    problems: list[str] = []

    async def main() -> None:
        nonlocal stop
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(str(context)))
        stop = asyncio.Event()
        server = make(driver, limits, **how)
        path, read_only = directory / "sock", directory / "sock-ro"
        await server.listen_unix(path)
        await server.listen_unix(read_only, read_only=True)
        port = await server.listen_tcp("127.0.0.1", 0)
        started.append(Served(driver, server, loop, path, read_only, port, problems))
        ready.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    with _collecting_elsewhere():
        thread.start()
        try:
            assert ready.wait(10), "the server did not start"
            served = started[0]
            yield served
        finally:
            assert stop is not None
            served.loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            assert not thread.is_alive(), "the server did not end"
    assert not problems, f"the event loop reported: {problems}"


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(raw)) + raw + bytes(-len(raw) % 4)


def optional(value: bytes | None) -> bytes:
    return struct.pack(">I", 0) if value is None else struct.pack(">I", 1) + value


def number(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


TEST_UUID = bytes.fromhex("6695eb01f6a4830479aa97f2502e193f")


def domain(name: str | bytes = "test", uuid: bytes = TEST_UUID, id: int = 1) -> bytes:
    return text(name) + uuid + number(id)


@dataclass(frozen=True)
class Answer:
    program: int
    version: int
    procedure: int
    type: int
    serial: int
    status: int
    body: bytes

    @property
    def code(self) -> int:
        """libvirt's error code; 0 for success."""
        return read_error(self.body)[0] if self.status == Status.ERROR else 0

    @property
    def origin(self) -> int:
        return read_error(self.body)[1] if self.status == Status.ERROR else 0

    @property
    def message(self) -> str:
        return (read_error(self.body)[2] or "") if self.status == Status.ERROR else ""


class Closed(Exception):
    """The server hung up."""


class RawClient:
    """Sends whatever it is told to; serials count up from 1."""

    def __init__(self, path: Path, timeout: float = 15.0) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.sock.settimeout(timeout)
        self.serial = 0
        self._kept = b""

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self,
        procedure: int,
        body: bytes = b"",
        *,
        program: int = Program.REMOTE,
        version: int = 1,
        type: int = Type.CALL,
        status: int = 0,
        serial: int | None = None,
    ) -> int:
        self.serial += 1
        used = self.serial if serial is None else serial
        self.sock.sendall(packet(program, version, procedure, type, used, status, body))
        return used

    def receive(self) -> Answer:
        head = self._take(HEADER_SIZE)
        size, program, version, procedure, type_, serial, status = HEADER.unpack(head)
        return Answer(program, version, procedure, type_, serial, status, self._take(size - HEADER_SIZE))

    def _take(self, size: int) -> bytes:
        while len(self._kept) < size:
            try:
                data = self.sock.recv(262_144)
            except ConnectionError:
                data = b""
            if not data:
                raise Closed
            self._kept += data
        taken, self._kept = self._kept[:size], self._kept[size:]
        return taken

    def call(self, procedure: int, body: bytes = b"", **how: int) -> Answer:
        self.send(procedure, body, **how)
        return self.receive()

    def open(self, uri: str | None = "nic:///system", flags: int = 0) -> RawClient:
        answer = self.call(1, optional(None if uri is None else text(uri)) + number(flags))
        assert answer.code == 0, f"CONNECT_OPEN failed: {answer.message}"
        return self

    def silent(self, seconds: float = 0.3) -> bool:
        """Whether nothing comes within `seconds`."""
        if self._kept:
            return False
        before = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            self._kept += (data := self.sock.recv(65536))
            if not data:
                raise Closed
        except TimeoutError:
            return True
        except ConnectionError:
            raise Closed from None
        finally:
            self.sock.settimeout(before)
        return False
