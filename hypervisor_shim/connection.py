"""One client: packets in, packets out, and the limits between.

Reading calls are answered while the packet lies in the buffer; what one wake-up brought is answered with one
write. Three things stop the reading, as in libvirtd: calls in flight at their limit, a socket that does not
take what was written, and a stream whose console is slow. No more is kept than has been read by then.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, cast

from hypervisor_shim.audit import Audit, Audited, target
from hypervisor_shim.driver import Opened
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.events import Encoded
from hypervisor_shim.frame import (
    HEADER,
    HEADER_SIZE,
    PACKET_MAX,
    Keepalive,
    Program,
    Status,
    Type,
    error_body,
    packet,
)
from hypervisor_shim.procedures import Entry, Kind, Procedure, Tables
from hypervisor_shim.session import Session
from hypervisor_shim.streams import STREAMS_MAX, Stream
from hypervisor_shim.tls import CONFIRMED, Tls, distinguished_name
from hypervisor_shim.xdr import XdrError

log = logging.getLogger(__name__)

_unpack = HEADER.unpack_from
_REMOTE = int(Program.REMOTE)  # plain numbers compare faster than an enum's
_PIECE_MIN = (
    4096  # bytes: smaller pieces of a packet are joined, or keeping them would cost more than they hold
)
_TURN = 0.002  # seconds that the calls of one client are answered before other clients have their turn


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all together, may cost. Times in seconds, sizes in bytes."""

    in_flight: int = 5  # acting calls per client
    clients: int = 5000  # connections per server
    unopened: int = 20  # connections per listener that have not been let in yet
    opening_time: float = 30.0  # from accept to CONNECT_OPEN
    unopened_pressed: float = 1.0  # the same, while there is no room for others
    packet_time: float = 60.0  # from the first byte of a packet to its last
    stalled_time: float = 60.0  # a client that takes nothing of what was written
    unopened_packet: int = 262_144  # the largest packet before CONNECT_OPEN
    packet: int = PACKET_MAX
    partial_total: int = 256 * 1024 * 1024  # all clients' unfinished packets together
    write_high: int = 1024 * 1024  # unsent bytes at which nothing more is read
    event_backlog: int = 4 * 1024 * 1024  # unsent bytes at which a client that gets events is dropped
    keepalive_interval: float = 5.0
    keepalive_count: int = 5


class Home(Protocol):
    """What a connection needs of its server."""

    limits: Limits
    tables: Tables
    partial_bytes: int
    buffer: memoryview
    audit: Audit

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`; the server sees to its end."""

    def opened(self, connection: Connection) -> None: ...

    def gone(self, connection: Connection) -> None: ...


class Connection(asyncio.BufferedProtocol):
    def __init__(self, home: Home, session: Session, tls: Tls | None = None) -> None:
        self._home = home
        self._tls = tls
        self._limits = home.limits
        self._session = session
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._begun: list[bytes] = []  # of a packet that is not complete; it costs little more than it holds
        self._begun_size = 0
        self.missing = 0  # bytes until it is complete
        self._rest = b""  # read but not looked at, while the reading is stopped
        self._in_flight = 0
        self._holding_streams = 0
        self._waiting = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._stopped = False
        self._streams: dict[int, Stream] = {}
        self._heard = True
        self._unanswered = 0
        self._keepalive_timer: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None  # of opening, then of a packet
        self._stall_timer: asyncio.TimerHandle | None = None
        self._table: dict[int, Entry] = {}
        self._opened = False
        self._packet_max = min(self._limits.packet, self._limits.unopened_packet)
        session.changed = self._choose
        self._choose()

    # ---- asyncio's side --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._transport = transport
        transport.set_write_buffer_limits(high=self._limits.write_high)
        self._set_deadline(self._limits.opening_time, "did not open a connection")
        if self._tls is not None:
            self._confirm(self._tls, transport.get_extra_info("ssl_object"))

    def _confirm(self, tls: Tls, connection: ssl.SSLObject) -> None:
        """The handshake is done: the client's certificate is one of our CA's. Is he wanted, too?"""
        name = distinguished_name(connection)
        if not tls.allows(name):
            self._drop(f"has a certificate for {name}, which may not connect")
            return
        self._session.identify(f"x509:{name}")
        self._send([CONFIRMED])

    def get_buffer(self, sizehint: int) -> memoryview:
        """One buffer serves all TLS connections: it is emptied before the loop reads from another one."""
        return self._home.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received(bytes(self._home.buffer[:nbytes]))

    def received(self, data: bytes) -> None:
        """Bytes came in."""
        self._heard = True
        if self._begun:
            self._begin(data)
            if self.missing > 0:
                if self._home.partial_bytes > self._limits.partial_total:
                    self._drop("unfinished packets of all clients together are too large")
                return
            if self._take_data():
                return
            data = b"".join(self._begun)
            self._forget_begun()
        if not self._answer_one(data):
            self._answer_all(data)

    def _take_data(self) -> bool:
        """If what has come in pieces is one packet with a stream's data, give those on: copied once, and not
        once for the packet and once for the data."""
        first = self._begun[0]
        if self.missing or self._stopped or len(first) < HEADER_SIZE:
            return False
        _, program, _, number, type_, serial, status = _unpack(first)
        stream = self._streams.get(serial)
        if type_ != Type.STREAM or program != Program.REMOTE or stream is None or stream.procedure != number:
            return False
        data = b"".join((memoryview(first)[HEADER_SIZE:], *self._begun[1:]))
        self._forget_begun()
        stream.receive(status, data)
        return True

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable.clear()
        self._stall_timer = self._loop.call_later(
            self._limits.stalled_time, self._drop, "takes nothing of what it asked for"
        )
        self._stop_or_go()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._stall_timer:
            self._stall_timer.cancel()
            self._stall_timer = None
        self._stop_or_go()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self._forget_begun()
        self._rest = b""
        for timer in (self._keepalive_timer, self._deadline, self._stall_timer):
            if timer:
                timer.cancel()
        for stream in self._streams.values():
            stream.abandon()
        self._home.gone(self)

    # ---- packets in ------------------------------------------------------------------------------

    def _answer_one(self, data: bytes) -> bool:
        """Serve `data` if it is one call and nothing else, as it nearly always is: the short way, with the
        same outcome."""
        if len(data) < HEADER_SIZE or self._stopped:
            return False
        size, program, version, number, type_, serial, status = _unpack(data)
        if size != len(data) or size > self._packet_max:
            return False
        if type_ or status or version != 1 or program != _REMOTE:
            return False
        entry = self._table.get(number)
        if entry is None:
            return False
        reply = self._serve(entry, serial, data, HEADER_SIZE, size)
        if reply is not None and self._transport is not None:
            self._transport.write(reply)
            if self._session.closing:
                self._transport.close()
        return True

    def _answer_all(self, data: bytes) -> None:
        """Serve every complete packet of `data`; keep the rest."""
        pos, end, size = 0, len(data), 0
        out: list[bytes] = []
        unsent = 0
        now = self._loop.time
        turn_ends = now() + _TURN
        unpack = HEADER.unpack_from
        while not self._stopped:
            if pos and pos < end and now() > turn_ends:
                self._wait_a_turn()
                break
            left = end - pos
            if left < HEADER_SIZE:
                size = int.from_bytes(data[pos : pos + 4], "big") if left >= 4 else HEADER_SIZE
                if not HEADER_SIZE <= size <= self._packet_max:
                    self._send(out)
                    self._drop(f"sent a packet of {size} bytes")
                    return
                break
            size, program, version, number, type_, serial, status = unpack(data, pos)
            if not HEADER_SIZE <= size <= self._packet_max:
                self._send(out)
                self._drop(f"sent a packet of {size} bytes")
                return
            if left < size:
                break
            if type_ == 0 and status == 0 and program == _REMOTE and version == 1:
                reply = self._call(number, serial, data, pos + HEADER_SIZE, pos + size)
            else:
                reply = self._other(program, version, number, type_, serial, status, data, pos, pos + size)
            pos += size
            if reply:
                out.append(reply)
                unsent += len(reply)
                if unsent > self._limits.write_high:
                    self._send(out)
                    out, unsent = [], 0
            if self._transport is None or self._session.closing:
                break
        self._send(out)
        if self._session.closing and self._transport is not None:
            self._transport.close()
        elif self._stopped:
            self._rest = data[pos:] if pos else data
        elif pos < end:
            self._keep(data[pos:] if pos else data, size)
        elif self._deadline is not None and self._session.opened:
            self._deadline.cancel()
            self._deadline = None

    def _call(self, number: int, serial: int, data: bytes, pos: int, end: int) -> bytes | None:
        entry = self._table.get(number)
        if entry is None:
            return self._refuse(Program.REMOTE, 1, number, serial, Status.OK, data, pos, end)
        return self._serve(entry, serial, data, pos, end)

    def _serve(self, entry: Entry, serial: int, data: bytes, pos: int, end: int) -> bytes | None:
        answer = entry.answer
        try:
            if answer is not None:
                return answer(self._session, data, pos, end, serial)
            result = entry.serve(self._session, data, pos, end)
        except LibvirtError as refused:
            if entry.audited and refused.code is not Code.RPC:  # whose arguments were no arguments
                self._audit(entry, entry.target(data, pos, end), refused.code)
            return _refused(entry.procedure, serial, refused)
        except Exception:
            return _bug(entry.procedure, serial)
        self._in_flight += 1
        self._stop_or_go()
        named = entry.target(data, pos, end) if entry.audited else ""
        self._home.spawn(self._act(entry, result, serial, named))
        return None

    async def _act(self, entry: Entry, work: Coroutine[Any, Any, Any], serial: int, named: str) -> None:
        """Carry out an acting call. It goes on when the client leaves: what was asked for is done."""
        began, code = self._loop.time(), 0
        try:
            result = await work
            named = named or target(result)
            if entry.procedure.kind is Kind.STREAM:
                await self._open_stream(entry, result, serial)
            else:
                self._send([entry.reply(result, serial)])
        except LibvirtError as refused:
            code = refused.code
            self._send([_refused(entry.procedure, serial, refused)])
        except Exception:
            code = Code.INTERNAL_ERROR
            self._send([_bug(entry.procedure, serial)])
        finally:
            if entry.audited:
                self._audit(entry, named, code, self._loop.time() - began)
            self._in_flight -= 1
            self._stop_or_go()
        if self._session.closing and self._transport is not None:
            self._transport.close()

    def _audit(self, entry: Entry, named: str, code: int, seconds: float = 0.0) -> None:
        self._home.audit(Audited(self._session.caller, entry.procedure.api, named, code, seconds))

    async def _open_stream(self, entry: Entry, opened: Any, serial: int) -> None:
        if not isinstance(opened, Opened):
            opened = Opened(opened)
        if self._transport is None or len(self._streams) >= STREAMS_MAX or serial in self._streams:
            await opened.stream.close()
            detail = f"this client has {len(self._streams)} streams open"
            raise error(Code.OPERATION_FAILED, detail, origin=Origin.STREAMS)
        stream = Stream(
            entry.procedure.number,
            serial,
            opened,
            send=lambda data: self._send([data]),
            drained=self._drained,
            held=self._held,
        )
        self._streams[serial] = stream
        self._send([entry.reply(opened.value, serial)])
        self._home.spawn(self._pump(stream))

    async def _pump(self, stream: Stream) -> None:
        try:
            await stream.run()
        finally:
            self._streams.pop(stream.serial, None)

    def _other(
        self, program: int, version: int, number: int, type_: int, serial: int, status: int,
        data: bytes, pos: int, end: int,
    ) -> bytes | None:  # fmt: skip
        """Everything but a well-formed call of the main program."""
        if program == Program.KEEPALIVE and type_ == Type.MESSAGE:
            self._unanswered = 0
            if number == Keepalive.PING:
                return packet(Program.KEEPALIVE, 1, Keepalive.PONG, Type.MESSAGE, 0, Status.OK)
            return None
        if type_ in (Type.STREAM, Type.STREAM_HOLE):
            stream = self._streams.get(serial)
            if stream is not None and program == Program.REMOTE and stream.procedure == number:
                if type_ == Type.STREAM:
                    stream.receive(status, data[pos + HEADER_SIZE : end])
                else:
                    stream.receive_hole(data[pos + HEADER_SIZE : end])
            return None
        if type_ == Type.CALL:
            if version == 1 and status == Status.OK:
                entry = self._home.tables.of_other(program, number, self._session)
                if entry is not None:
                    return self._serve(entry, serial, data, pos + HEADER_SIZE, end)
            return self._refuse(program, version, number, serial, status, data, pos + HEADER_SIZE, end)
        return None  # replies and events are dropped in silence, as libvirtd does

    def _refuse(
        self, program: int, version: int, number: int, serial: int, status: int,
        data: bytes, pos: int, end: int,
    ) -> bytes:  # fmt: skip
        tables = self._home.tables
        refused = tables.refusal(program, version, number, status, self._session)
        if refused.code in (Code.ACCESS_DENIED, Code.OPERATION_DENIED):
            entry = tables.by_program[program][number]
            try:
                named = entry.target(data, pos, end)
            except XdrError:  # no arguments at all, which nobody has looked at yet
                named = ""
            self._audit(entry, named, refused.code)
        return packet(program, version, number, Type.REPLY, serial, Status.ERROR, error_body(refused))

    # ---- packets out -----------------------------------------------------------------------------

    def _send(self, packets: list[bytes]) -> None:
        if packets and self._transport is not None:
            self._transport.write(packets[0] if len(packets) == 1 else b"".join(packets))

    async def _drained(self) -> None:
        await self._writable.wait()

    def event(self, event: Encoded) -> None:
        """Tell this client, if it registered for such an event."""
        if self._transport is None or not self._session.opened:
            return
        access = self._session.access
        if not access.unlimited and not access.sees(event.domain):
            return
        if event.unless is not None and (access.unlimited or access.sees(event.unless)):
            return
        self._send(list(self._session.registrations.packets(event)))
        if self._transport and self._transport.get_write_buffer_size() > self._limits.event_backlog:
            self._drop("does not read its events")

    def give_way(self) -> None:
        """Not let in for long, while others wait for their turn."""
        self._drop("did not open a connection while others wait")

    def close(self) -> None:
        """The server ends: hang up after what was written."""
        if self._transport is not None:
            self._transport.close()

    # ---- phases, deadlines, flow -----------------------------------------------------------------

    def _choose(self) -> None:
        """The session moved on: take the table that goes with its phase."""
        session = self._session
        opening = session.opened and not self._opened
        if opening or not session.opened:
            self._table = self._home.tables.permitted(session)
        if opening:
            self._opened = True
            self._packet_max = self._limits.packet
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            self._home.opened(self)
        if session.keepalive and self._keepalive_timer is None and self._transport is not None:
            self._keepalive_timer = self._loop.call_later(self._limits.keepalive_interval, self._check_alive)

    def _check_alive(self) -> None:
        """Ask a client that was silent for an interval; give up after as many questions as allowed."""
        if self._heard or self._stopped:  # while it is not read, it is not its fault
            self._unanswered = 0
        elif self._unanswered >= self._limits.keepalive_count:
            self._drop("answers no keepalive")
            return
        else:
            self._unanswered += 1
            self._send([packet(Program.KEEPALIVE, 1, Keepalive.PING, Type.MESSAGE, 0, Status.OK)])
        self._heard = False
        self._keepalive_timer = self._loop.call_later(self._limits.keepalive_interval, self._check_alive)

    def _keep(self, data: bytes, needed: int) -> None:
        self.missing = max(needed, HEADER_SIZE) if len(data) >= 4 else 4
        self._begin(data)
        if self._session.opened and self._deadline is None:
            self._set_deadline(self._limits.packet_time, "did not finish a packet")

    def _begin(self, data: bytes) -> None:
        if self._begun and len(self._begun[-1]) < _PIECE_MIN:
            self._begun[-1] += data
        else:
            self._begun.append(data)
        self._begun_size += len(data)
        self.missing -= len(data)
        self._home.partial_bytes += len(data)

    def _forget_begun(self) -> None:
        self._home.partial_bytes -= self._begun_size
        self._begun_size = self.missing = 0
        self._begun.clear()
        if self._session.opened and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _set_deadline(self, seconds: float, failing: str) -> None:
        self._deadline = self._loop.call_later(seconds, self._drop, f"{failing} in {seconds:g} s")

    def _wait_a_turn(self) -> None:
        """This client's calls have taken long enough: the others' come before the rest of them."""
        self._waiting = True
        self._stop_or_go()
        self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._waiting = False
        self._stop_or_go()

    def _held(self, holding: bool) -> None:
        self._holding_streams += 1 if holding else -1
        self._stop_or_go()

    def _stop_or_go(self) -> None:
        stop = (
            self._in_flight >= self._limits.in_flight
            or self._holding_streams > 0
            or self._waiting
            or not self._writable.is_set()
        )
        if stop == self._stopped:
            return
        self._stopped = stop
        if self._transport is None or self._transport.is_closing():
            return
        if stop:
            self._transport.pause_reading()
        else:
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._stopped or self._transport is None or self._transport.is_closing():
            return
        rest, self._rest = self._rest, b""
        if rest:
            self._answer_all(rest)
        if not self._stopped and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _drop(self, why: str) -> None:
        """Hang up on a client that misbehaves; nothing more is sent."""
        if self._transport is not None:
            log.warning("client %s %s: disconnected", self._session.caller.peer, why)
            self._transport.abort()


def _refused(procedure: Procedure, serial: int, refused: LibvirtError) -> bytes:
    program, number = procedure.program, procedure.number
    return packet(program, 1, number, Type.REPLY, serial, Status.ERROR, error_body(refused))


def _bug(procedure: Procedure, serial: int) -> bytes:
    log.exception("procedure %d failed", procedure.number)
    bug = error(Code.INTERNAL_ERROR, "the server failed to answer; see its log", origin=Origin.RPC)
    return _refused(procedure, serial, bug)
