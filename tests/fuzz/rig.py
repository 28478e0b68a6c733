"""The library without a network around it: connections without sockets, so that a run makes thousands.

Everything is the real thing but the transport, the server's listeners and what lies behind the driver. What
must never happen raises `Violation`: a mistake logged, a reply that does not decode, a handler entered by a
call that was undecodable or not permitted, something left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

from hypervisor_shim.access import Policy
from hypervisor_shim.audit import Audit, Audited
from hypervisor_shim.connection import Connection, Limits
from hypervisor_shim.driver import Caller, Driver, Event
from hypervisor_shim.events import encode
from hypervisor_shim.frame import HEADER, HEADER_SIZE, Program, Status, Type, packet, read_error
from hypervisor_shim.procedure_names import known_numbers
from hypervisor_shim.procedures import Kind, Phase, Procedure, Tables, build_tables
from hypervisor_shim.sasl import Authenticator
from hypervisor_shim.server import make_tables
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import Codec, Record, WideChars, XdrError

from .source import Source
from .worlds import InMemory, World

_LIMITS = Limits(keepalive_interval=3600.0, write_high=256 * 1024)
_SETTLE = 5.0  # seconds after which work that a gone client left is stuck
_NAME_MAX = 100  # characters: a longer text is no name
_TURNS = 50  # of the loop, for streams that wait for more


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for what nobody tells of; False when the time is spent."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() >= end:
            return False
        await asyncio.sleep(0.001)
    return True


class Violation(AssertionError):
    """What no input may bring about."""


class Complaints(logging.Handler):
    """What the library logs as its own mistake."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or not record.name.startswith(
            "nicagent"
        ):  # an agent's errors are also the world's
            self.heard.append(self.format(record))

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Nobody else hears that logger meanwhile: a run makes many lines, and only mistakes matter."""
        logger = logging.getLogger(name)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate


class _Pipe(asyncio.Transport):
    """Keeps what was written for as long as nobody looks."""

    def __init__(self, protocol: Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._protocol = protocol
        self._loop = loop
        self.written = bytearray()
        self.reading = True
        self.closed = False

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)


def _write(record: Audited) -> None:
    str(record)


class Rig:
    """One driver at a time, one table of procedures whose handlers tell when they are entered; clients."""

    def __init__(self, world: World | None = None) -> None:
        self.limits = _LIMITS
        self.partial_bytes = 0
        self.buffer = memoryview(bytearray(256 * 1024))
        self.audit: Audit = _write
        self.rows: dict[tuple[int, int], Procedure] = {}
        self.tables = self._watched()
        self.world = world or InMemory()
        self.driver: Driver
        self.names: list[str] = []  # that answers have told in this run, the latest at the end
        self.uuids: list[bytes] = []
        self.ran: list[int] = []  # procedures whose handlers the last call entered
        self.codes: list[int] = []  # of the answers it got
        self._clients: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self._complaints.heard.append(str(context)))
        self._complaints = Complaints()

    # ---- what connections need of a server ---------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def opened(self, connection: Connection) -> None: ...

    def gone(self, connection: Connection) -> None:
        self._clients.discard(connection)

    def event(self, event: Event) -> None:
        for encoded in encode(event):
            for connection in list(self._clients):
                connection.event(encoded)

    # ---- runs ------------------------------------------------------------------------------------------

    def run(self, scenario: Callable[[Rig, Source], Coroutine[Any, Any, None]], data: bytes) -> None:
        """One run of `scenario` with choices from `data`, on a fresh driver."""
        self._complaints.heard.clear()
        with self._complaints.alone("hypervisor_shim"), self._complaints.alone("nicagent"):
            self._loop.run_until_complete(self._run(scenario, data))
        if self._complaints.heard:
            raise Violation("\n".join(self._complaints.heard))

    async def _run(self, scenario: Callable[[Rig, Source], Coroutine[Any, Any, None]], data: bytes) -> None:
        try:
            self.driver = await self.world.begin()
            await self._scenario(scenario, data)
        finally:
            await self.world.end()

    async def _scenario(
        self, scenario: Callable[[Rig, Source], Coroutine[Any, Any, None]], data: bytes
    ) -> None:
        self.names.clear(), self.uuids.clear()
        unsubscribe = self.driver.subscribe(self)
        try:
            await scenario(self, Source(data))
        finally:
            unsubscribe()
            for connection in list(self._clients):
                connection.close()
            await asyncio.sleep(0)
            if self._tasks:
                _, stuck = await asyncio.wait(self._tasks, timeout=_SETTLE)
                for task in stuck:
                    task.cancel()
                if stuck:
                    raise Violation(f"work that never ends: {stuck}")
        if self._clients or self.partial_bytes:
            raise Violation(
                f"left behind: {len(self._clients)} clients, {self.partial_bytes} bytes of packets"
            )

    def client(
        self,
        *,
        read_only: bool = False,
        authenticator: Authenticator | None = None,
        policy: Policy | None = None,
    ) -> Client:
        """One that is connected; what it sends comes after. `authenticator`: who asks it first."""
        caller = Caller("uid:0", "rig", read_only, True, 1)
        session = Session(
            self.driver,
            caller,
            read_only,
            policy or Policy(),
            ("uid:0",),
            authenticator,
            authenticated=authenticator is None,
        )
        connection = Connection(self, session)
        self._clients.add(connection)
        return Client(self, session, connection, _Pipe(connection, self._loop))

    def learn(self, value: Any) -> None:
        """Names and UUIDs that were told may be asked about."""
        if isinstance(value, str) and len(value) < _NAME_MAX:
            self.names.append(value)
        elif isinstance(value, bytes) and len(value) == 16:
            self.uuids.append(value)
        elif isinstance(value, list | tuple):
            for each in value:
                self.learn(each)

    def _watched(self) -> Tables:
        rows = []
        for table in make_tables().by_program.values():
            for entry in table.values():
                row = entry.procedure
                self.rows[row.program, row.number] = row
                rows.append(replace(row, handler=self._watching(row)))
        return build_tables(rows, known_numbers((row.program, row.number, row.api) for row in rows))

    def _watching(self, row: Procedure) -> Callable[..., Any]:
        def enter(session: Session, *arguments: Any) -> Any:
            self.ran.append(row.number)
            if row.phase is not Phase.CONNECTED and not session.authenticated:
                raise Violation(f"{row.api} ran for a client that has not logged in")
            if row.phase is Phase.OPENED and not session.opened:
                raise Violation(f"{row.api} ran for a client that has not opened a connection")
            if session.caller.read_only and not row.read_only and row.phase is Phase.OPENED:
                raise Violation(f"{row.api} ran for a client that may only read")
            return row.handler(session, *arguments)

        return enter


class Client:
    """One end of a connection."""

    def __init__(self, rig: Rig, session: Session, connection: Connection, pipe: _Pipe) -> None:
        self._rig = rig
        self._connection = connection
        self._pipe = pipe
        self.session = session
        self.answers: dict[int, Any] = {}  # of the last call or settling: what calls that succeeded were told
        self.said = bytearray()  # all that the server has told this client
        self._serial = 0
        connection.connection_made(pipe)

    @property
    def connected(self) -> bool:
        return not self._pipe.closed

    async def feed(self, data: bytes) -> None:
        """Bytes arrive, as many at a time as a read takes; none while the server does not read."""
        view = memoryview(data)
        while view and self.connected:
            for _ in range(_TURNS):
                if self._pipe.reading:
                    break
                await asyncio.sleep(0)
            else:
                return
            buffer = self._connection.get_buffer(-1)
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]
            view = view[size:]
            self._connection.buffer_updated(size)

    async def call(self, number: int, body: bytes, *, program: int = Program.REMOTE, serial: int = 0) -> int:
        """Send a call, wait for what comes of it; its serial."""
        self._serial += 1
        used = serial or self._serial
        self._rig.ran.clear(), self._rig.codes.clear()
        await self.feed(packet(program, 1, number, Type.CALL, used, Status.OK, body))
        await self.settle()
        self._check_entered(program, number, body)
        return used

    def _check_entered(self, program: int, number: int, body: bytes) -> None:
        row = self._rig.rows.get((program, number))
        if row is None or row.args is None or not self._rig.ran:
            return
        try:
            row.args.read(body, 0, len(body))
        except XdrError:
            raise Violation(f"{row.api} ran though its arguments do not decode") from None

    async def settle(self) -> None:
        """Until nothing more happens, or a stream waits for its client."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            if not self._rig._tasks:
                break
        await until(lambda: not self._connection._in_flight, self._rig.world.patience)
        self.check_packets()

    def check_packets(self) -> None:
        """Everything the server said is whole, and what its row says it is."""
        self.answers.clear()
        said = bytes(self._pipe.written)
        self._pipe.written.clear()
        self.said += said
        pos = 0
        while pos < len(said):
            size, program, _, number, type_, serial, status = HEADER.unpack_from(said, pos)
            if size < HEADER_SIZE or pos + size > len(said):
                raise Violation(f"a packet of {size} bytes, of which {len(said) - pos} were sent")
            body = said[pos + HEADER_SIZE : pos + size]
            pos += size
            if type_ == Type.REPLY and status == Status.ERROR:
                self._rig.codes.append(read_error(body)[0])
            elif type_ == Type.REPLY:
                self._rig.codes.append(0)
                answer = self.answers[serial] = _checked_reply(self._rig.rows[program, number], body)
                self._rig.learn(answer)


def _checked_reply(row: Procedure, body: bytes) -> Any:
    """What it says, None where that cannot be read."""
    if row.reply is None:
        if body:
            raise Violation(f"{row.api} answers {len(body)} bytes, where it has no answer")
        return None
    if _unreadable(row.reply):
        return None
    try:
        value, behind = row.reply.read(body, 0, len(body))
    except (XdrError, struct.error) as bad:
        raise Violation(f"the answer of {row.api} does not decode: {bad}") from bad
    if behind != len(body):
        raise Violation(f"the answer of {row.api} is {len(body)} bytes, of which {behind} mean something")
    return value


def _unreadable(codec: Codec) -> bool:
    """Whether it is for writing only."""
    if isinstance(codec, Record):
        return any(map(_unreadable, codec.members))
    inner = getattr(codec, "inner", None)
    return isinstance(codec, WideChars) or (inner is not None and _unreadable(inner))


def is_stream(row: Procedure) -> bool:
    """Whether a call of `row` opens a stream."""
    return row.kind is Kind.STREAM
