"""A BMC: IPMI 2.0 over UDP, in a process of its own, as it is a processor of its own in metal.

It owns no truth but its sessions: power and boot flags live in the chassis, which it asks over the socket
that it was started with (`bmclink` is the other end). What it must do wrong on purpose (`bmc-silent`,
`bmc-slow`) it is told over that socket too; `bmc-lies` is the chassis' part, the BMC itself believes what
it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, cast

import msgspec

from nicagent.emulator import rmcp
from nicagent.emulator.netns import inside
from nicagent.emulator.rmcp import Garbage, Message, Packet, Session
from nicagent.errors import NicagentError

SESSION_LIMIT = 16
SESSION_IDLE = 60.0  # seconds (6.11.13, session inactivity timeout)
CHASSIS_TIMEOUT = 30.0  # seconds the chassis may take for an order; cutting power waits for QEMU
MESSAGE_LIMIT = 64 << 10  # bytes of one message of the chassis

# Completion codes (table 5-2).
DONE, BUSY, UNKNOWN_COMMAND, SHORT, BAD_FIELD, DENIED = 0x00, 0xC0, 0xC1, 0xC7, 0xCC, 0xD4
NOT_NOW, NO_PARAMETER, BAD_PRIVILEGE = 0xD5, 0x80, 0x81

OrderName = Literal["on", "off", "cycle", "reset", "interrupt", "soft"]
CONTROL: Mapping[int, OrderName] = {  # table 28-4
    0: "off", 1: "on", 2: "cycle", 3: "reset", 4: "interrupt", 5: "soft",
}  # fmt: skip


class Setup(msgspec.Struct, frozen=True):
    """The chassis' first message: where to listen, and who may log in. Secrets travel here, never in argv."""

    address: str
    port: int
    netns: str | None
    user: str
    password: str
    guid: str  # 32 hexadecimal digits


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """BMC → chassis."""

    id: int
    op: Literal["power", "order", "boot", "set-boot", "ready", "failed"]
    order: OrderName | None = None
    boot: tuple[int, ...] = ()
    error: str = ""


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """Chassis → BMC: an answer (`id` of the question), or faults (`id` 0)."""

    id: int = 0
    on: bool = False
    verdict: str = ""
    boot: tuple[int, ...] = ()
    silent: bool = False
    slow: float = 0.0


class Link:
    """The BMC's end of the wire to its chassis."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, asyncio.Future[Told]] = {}
        self._count = 0
        self.silent = False
        self.slow = 0.0

    async def setup(self) -> Setup:
        return msgspec.json.decode(await self._reader.readline(), type=Setup)

    async def listen(self) -> None:
        """Until the chassis goes away; then the BMC ends too."""
        while line := await self._reader.readline():
            told = msgspec.json.decode(line, type=Told)
            waiting = self._waiting.pop(told.id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(told)
            elif told.id == 0:
                self.silent, self.slow = told.silent, told.slow

    def tell(self, ask: Ask) -> None:
        self._writer.write(msgspec.json.encode(ask) + b"\n")

    async def ask(
        self,
        op: Literal["power", "order", "boot", "set-boot"],
        order: OrderName | None = None,
        boot: bytes = b"",
    ) -> Told:
        self._count += 1
        answer: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._waiting[self._count] = answer
        self.tell(Ask(self._count, op, order, tuple(boot)))
        async with asyncio.timeout(CHASSIS_TIMEOUT):
            return await answer


Result = tuple[int, bytes]  # completion code, data
Command = Callable[[Message, Session], Awaitable[Result]]


class Bmc(asyncio.DatagramProtocol):
    """The UDP side: sessions and commands. Every datagram is handled in a task of `tasks`, in its session's
    turn.
    """

    def __init__(self, link: Link, setup: Setup, tasks: asyncio.TaskGroup) -> None:
        self._link = link
        self._tasks = tasks
        self._passwords = {setup.user.encode(): setup.password.encode()}
        self._guid = bytes.fromhex(setup.guid)
        self._sessions: dict[int, Session] = {}
        self._next = int.from_bytes(os.urandom(3)) + 1
        self._turn = asyncio.Lock()
        self._transport: asyncio.DatagramTransport | None = None
        # (netfn, command) → least privilege (2 user, 3 operator, 4 administrator; appendix G) and what does
        # it.
        self._commands: Mapping[tuple[int, int], tuple[int, Command]] = {
            (0x06, 0x01): (2, self._device_id),
            (0x06, 0x02): (4, self._cold_reset),
            (0x06, 0x37): (2, self._system_guid),
            (0x06, 0x38): (0, self._auth_capabilities),
            (0x06, 0x3B): (0, self._set_privilege),
            (0x06, 0x3C): (0, self._close_session),
            (0x06, 0x54): (0, self._cipher_suites),
            (0x00, 0x00): (2, self._chassis_capabilities),
            (0x00, 0x01): (2, self._chassis_status),
            (0x00, 0x02): (3, self._chassis_control),
            (0x00, 0x08): (3, self._set_boot_options),
            (0x00, 0x09): (3, self._get_boot_options),
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self._link.silent:
            self._tasks.create_task(self._handle(data, addr))

    async def _handle(self, data: bytes, peer: tuple[str, int]) -> None:
        if self._link.slow:
            await asyncio.sleep(self._link.slow)
        try:
            async with self._turn:
                answer = rmcp.pong(data) or await self._answer(rmcp.parse_packet(data), peer)
        except (Garbage, TimeoutError):
            return
        if answer and self._transport is not None and not self._link.silent:
            self._transport.sendto(answer, peer)

    async def _answer(self, packet: Packet, peer: object) -> bytes:
        match packet.payload_type:
            case rmcp.OPEN_REQUEST:
                return self._open(packet.payload, peer)
            case rmcp.RAKP1:
                return self._session(packet.payload[4:8]).rakp1(packet.payload, self._passwords)
            case rmcp.RAKP3:
                return self._session(packet.payload[4:8]).rakp3(packet.payload)
            case rmcp.IPMI if packet.session == 0:
                return await self._outside(packet)
            case rmcp.IPMI:
                return await self._within(packet)
        raise Garbage("a payload type that we do not speak")

    def _open(self, payload: bytes, peer: object) -> bytes:
        suite = rmcp.offered_suite(payload)
        if suite is None:
            return rmcp.open_refused(payload, rmcp.NO_CIPHER_MATCH)
        now = time.monotonic()
        for number, old in tuple(self._sessions.items()):
            if now - old.last_used > SESSION_IDLE or (old.peer == peer and not old.active):
                del self._sessions[number]
        if len(self._sessions) >= SESSION_LIMIT:
            return rmcp.open_refused(payload, rmcp.NO_RESOURCES)
        self._next = self._next % 0xFFFFFFFE + 1
        session = Session(suite, payload[4:8], self._next, self._guid, peer, last_used=now)
        self._sessions[session.number] = session
        return session.opened(payload)

    def _session(self, number: bytes | int) -> Session:
        session = self._sessions.get(number if isinstance(number, int) else int.from_bytes(number, "little"))
        if session is None:
            raise Garbage("no such session")
        session.last_used = time.monotonic()
        return session

    async def _outside(self, packet: Packet) -> bytes:
        """The few commands that are answered before any session (13.13 to 13.15)."""
        request = rmcp.parse_message(packet.payload)
        least, command = self._commands.get((request.netfn, request.command), (4, None))
        if command is None or (least > 0 and request.command != 0x37):
            raise Garbage("a command that needs a session")
        nobody = Session(rmcp.SUITES[0], bytes(4), 0, self._guid, None)
        response = request.response(*await command(request, nobody))
        if packet.auth == rmcp.AUTH_RMCPPLUS:
            return rmcp.setup(rmcp.IPMI, response)
        return rmcp.sessionless(response)

    async def _within(self, packet: Packet) -> bytes:
        session = self._session(packet.session)
        request = rmcp.parse_message(session.unseal(packet))
        # A retry has the sequence number of its first try: it gets the same answer and is not done twice
        # (6.12.8).
        again = (request.seq, request.netfn, request.command, request.data)
        if again != session.last_request:
            code, data = await self._execute(request, session)
            session.last_request, session.last_response = again, request.response(code, data)
        return session.seal(session.last_response)

    async def _execute(self, request: Message, session: Session) -> Result:
        least, command = self._commands.get((request.netfn, request.command), (0, None))
        if command is None:
            return UNKNOWN_COMMAND, b""
        if session.privilege < least:
            return DENIED, b""
        try:
            return await command(request, session)
        except IndexError:
            return SHORT, b""
        except TimeoutError:
            return BUSY, b""

    # App commands.

    async def _device_id(self, request: Message, session: Session) -> Result:
        # Device 0x20, IPMI 2.0, chassis device, no manufacturer of this world (20.1).
        return DONE, bytes([0x20, 0x01, 0x01, 0x00, 0x02, 0x80, 0, 0, 0, 0, 0])

    async def _cold_reset(self, request: Message, session: Session) -> Result:
        asyncio.get_running_loop().call_later(0.1, os._exit, 0)  # the chassis starts it again
        return DONE, b""

    async def _system_guid(self, request: Message, session: Session) -> Result:
        return DONE, self._guid

    async def _auth_capabilities(self, request: Message, session: Session) -> Result:
        # Channel 1, IPMI 2.0 only, no anonymous login, RMCP+ (22.13).
        return DONE, bytes([0x01, 0x80, 0x04, 0x02, 0, 0, 0, 0])

    async def _cipher_suites(self, request: Message, session: Session) -> Result:
        records = b"".join(
            bytes([0xC0, s.number, s.auth, 0x40 | s.integrity, 0x80 | s.confidentiality]) for s in rmcp.SUITES
        )
        start = (request.data[2] & 0x3F) * 16  # table 22-18: sixteen bytes at a time
        return DONE, b"\x01" + records[start : start + 16]

    async def _set_privilege(self, request: Message, session: Session) -> Result:
        wanted = request.data[0] & 0x0F
        if wanted > session.limit:
            return BAD_PRIVILEGE, b""
        session.privilege = wanted or session.privilege
        return DONE, bytes([session.privilege])

    async def _close_session(self, request: Message, session: Session) -> Result:
        self._sessions.pop(session.number, None)
        return DONE, b""

    # Chassis commands.

    async def _chassis_capabilities(self, request: Message, session: Session) -> Result:
        return DONE, bytes([0x00, 0x20, 0x20, 0x20, 0x20])

    async def _chassis_status(self, request: Message, session: Session) -> Result:
        told = await self._link.ask("power")
        return DONE, bytes([int(told.on), 0x00, 0x00, 0x00])

    async def _chassis_control(self, request: Message, session: Session) -> Result:
        order = CONTROL.get(request.data[0] & 0x0F)
        if order is None:
            return BAD_FIELD, b""
        told = await self._link.ask("order", order)
        return (NOT_NOW if told.verdict == "impossible" else DONE), b""

    async def _set_boot_options(self, request: Message, session: Session) -> Result:
        match request.data[0] & 0x7F:
            case 5:  # boot flags, five bytes (table 28-14)
                if len(request.data) < 6:
                    return SHORT, b""
                await self._link.ask("set-boot", boot=request.data[1:6])
            case 0 | 3 | 4:  # set-in-progress and the two "do not clear" parameters: nothing to keep
                pass
            case _:
                return NO_PARAMETER, b""
        return DONE, b""

    async def _get_boot_options(self, request: Message, session: Session) -> Result:
        parameter = request.data[0] & 0x7F
        values: dict[int, bytes] = {0: bytes(1), 3: bytes(1), 4: bytes(2)}
        if parameter == 5:
            values[5] = bytes((await self._link.ask("boot")).boot)
        if parameter not in values:
            return NO_PARAMETER, b""
        return DONE, bytes([0x01, parameter]) + values[parameter]


def main(fd: int) -> None:
    """The BMC's process: `fd` is its wire to the chassis. Ends when the chassis does."""
    asyncio.run(_run(socket.socket(fileno=fd)))


async def _run(wire: socket.socket) -> None:
    link = Link(*await asyncio.open_unix_connection(sock=wire, limit=MESSAGE_LIMIT))
    setup = await link.setup()
    try:
        bound = inside(setup.netns, lambda: _bind(setup))
    except (OSError, NicagentError) as error:
        link.tell(Ask(0, "failed", error=f"{setup.address}:{setup.port}: {error}"))
        sys.exit(1)
    async with asyncio.TaskGroup() as tasks:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Bmc(link, setup, tasks), sock=bound
        )
        link.tell(Ask(0, "ready"))
        with contextlib.suppress(ConnectionError):
            await link.listen()
        transport.close()
        os._exit(0)  # orders under way have nobody left to obey them


def _bind(setup: Setup) -> socket.socket:
    family = socket.AF_INET6 if ":" in setup.address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_DGRAM)
    bound.bind((setup.address, setup.port))
    bound.setblocking(False)
    return bound
