"""A real TLS listener, and what comes to it: handshakes, right ones and broken ones, garbage before, in the
middle and behind, certificates that are ours, others', too old, or not there at all.

Nobody without a certificate of ours makes the server run a single call, or say a word of the protocol;
whoever ends his side is hung up on; and a client that does everything right is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypervisor_shim.frame import Program, Status, Type, packet
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.procedure_names import known_numbers
from hypervisor_shim.procedures import Procedure, build_tables
from hypervisor_shim.server import Server, make_tables
from hypervisor_shim.session import Session
from hypervisor_shim.tls import CONFIRMED, Tls, TlsFiles
from tests.hypervisor_shim.pki import NOW, Authority, server_files
from tests.hypervisor_shim.serving import number, optional, text

from .rig import Complaints, Violation, until
from .source import Source

ENDS_WITHIN = 5.0  # seconds in which the server hangs up on a client that has ended its side
_ROUNDS = 6  # of a handshake
_OURS, _OTHERS, _OLD, _NONE = range(4)
_OPEN = packet(Program.REMOTE, 1, 1, Type.CALL, 1, Status.OK, optional(text("nic:///system")) + number(0))
_GARBAGE = (
    b"", b"\0" * 28, b"GET / HTTP/1.1\r\n\r\n", _OPEN, b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\0\0" * 40,
    b"\x15\x03\x03\0\2\2\50", b"\x15\x03\x03\0\2\1\0", b"\x14\x03\x03\0\1\1", b"\x17\x03\x03\0\1x",
    b"\x80\x2e\x01\0\2", b"\xff" * 5000,
)  # fmt: skip


class Door:
    """One server, on a port of loopback, for all runs."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._complaints = Complaints()
        self._loop.set_exception_handler(lambda _, context: self._complaints.heard.append(str(context)))
        self._home = tempfile.TemporaryDirectory(prefix="fuzz-tls-")
        self._port = 0
        self._server: Any = None
        self._contexts = self._certificates(Path(self._home.name))

    def _certificates(self, home: Path) -> list[ssl.SSLContext]:
        ours, others = Authority(), Authority("others' CA")
        files = server_files(home, ours, ours.issue(("CN", "agent"), client=False))
        self._tls = Tls(TlsFiles(*files))
        old = NOW - datetime.timedelta(hours=1)
        issued = (
            ours.issue(("CN", "nova"), client=True),
            others.issue(("CN", "nova"), client=True),
            ours.issue(("CN", "nova"), client=True, until=old),
            None,
        )
        contexts = []
        for each in issued:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if each is not None:
                (home / "client.pem").write_bytes(b"".join(each.pem()))
                context.load_cert_chain(home / "client.pem")
            contexts.append(context)
        return contexts

    def run(self, data: bytes) -> None:
        """One client, with choices from `data`."""
        self._complaints.heard.clear()
        with self._complaints.alone("hypervisor_shim"):  # a broken handshake is but a warning
            self._loop.run_until_complete(self._client(Source(data)))
        if self._complaints.heard:
            raise Violation("\n".join(self._complaints.heard))

    async def _client(self, source: Source) -> None:
        if self._server is None:
            self._server = Server(MemoryDriver())
            self._server.tables = _watched()
            self._port = await self._server.listen_tls("127.0.0.1", 0, self._tls)
        descriptors = _descriptors()
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await self._loop.sock_connect(sock, ("127.0.0.1", self._port))
            try:
                async with asyncio.timeout(ENDS_WITHIN):
                    await _Client(sock, self._contexts, source).talk()
            except TimeoutError:
                raise Violation("the server does not hang up on a client that has ended") from None
        finally:
            sock.close()
        if not await until(lambda: not self._server.clients and _descriptors() <= descriptors, ENDS_WITHIN):
            raise Violation(f"left behind: {self._server.clients} clients, {_descriptors()} descriptors")


class _Client:
    """Does what the source says, until the server hangs up."""

    def __init__(self, sock: socket.socket, contexts: list[ssl.SSLContext], source: Source) -> None:
        self._sock = sock
        self._source = source
        self._whose = source.below(len(contexts))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = contexts[self._whose].wrap_bio(self._in, self._out)
        self._spoilt = False

    async def talk(self) -> None:
        source = self._source
        if source.one_in(4):
            await self._send(self._garbage())
        if not self._spoilt and await self._shake_hands():
            if source.one_in(4):
                await self._send(self._garbage())  # not in a record, which is what comes now
            else:
                for each in (_OPEN, source.blob(), source.rest())[: 1 + source.below(3)]:
                    self._tls.write(each or b"\0")
                await self._send(self._out.read())
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        while await self._received():
            pass
        self._judge()

    async def _shake_hands(self) -> bool:
        for _ in range(_ROUNDS):
            done = True
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError:
                return False
            await self._send(self._out.read(), spoil=True)
            if done or self._spoilt:
                return done and not self._spoilt
            if not await self._received():
                return False
        return False

    async def _send(self, data: bytes, *, spoil: bool = False) -> None:
        """Now and then with something changed, added or left out: from then on nothing fits any more."""
        source = self._source
        if spoil and data and source.one_in(4):
            at = source.below(len(data))
            behind = data[at + source.below(3) :]
            data = data[:at] + source.pick((b"", source.take(1), self._garbage())) + behind
            self._spoilt = True
        with contextlib.suppress(OSError):  # it may have hung up
            await asyncio.get_running_loop().sock_sendall(self._sock, data)

    def _garbage(self) -> bytes:
        self._spoilt = True
        return self._source.pick(_GARBAGE) if self._source.one_in(2) else self._source.blob()

    async def _received(self) -> bool:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, 65_536)
        except OSError:
            return False
        self._in.write(data)
        return bool(data)

    def _judge(self) -> None:
        """What the server said inside of TLS."""
        said = b""
        with contextlib.suppress(ssl.SSLError):
            while piece := self._tls.read(65_536):
                said += piece
        if said and self._whose != _OURS:
            raise Violation(f"a client without a certificate of ours was told {said!r}")
        if self._whose == _OURS and not self._spoilt and not said.startswith(CONFIRMED):
            raise Violation("a client that did everything right was not let in")


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _watched() -> Any:
    rows = [entry.procedure for table in make_tables().by_program.values() for entry in table.values()]
    watched = [replace(row, handler=_watching(row)) for row in rows]
    return build_tables(watched, known_numbers((row.program, row.number, row.api) for row in rows))


def _watching(row: Procedure) -> Any:
    def enter(session: Session, *arguments: Any) -> Any:
        if not session.identities[0].startswith("x509:"):
            raise Violation(f"{row.api} ran for a client without a certificate")
        return row.handler(session, *arguments)

    return enter
