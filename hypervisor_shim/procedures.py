"""How a call becomes an answer: a row per procedure, compiled once into a function.

To serve another procedure, add a row where its family lives (a module of `calls`); nothing here
changes. A row that is not there is refused as `refusals` says, or with 39 for a number never given out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from struct import Struct
from typing import Any

from hypervisor_shim.access import Right, denied, guarded, needed
from hypervisor_shim.audit import finder, is_audited
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, rpc_error
from hypervisor_shim.frame import HEADER, HEADER_SIZE, Program, Status
from hypervisor_shim.refusals import refused
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import Codec, Record, XdrError


class Phase(Enum):
    """From when on a call may be made."""

    CONNECTED = 0  # at once, before authentication
    AUTHENTICATED = 1  # before CONNECT_OPEN
    OPENED = 2


class Kind(Enum):
    READ = 0  # answered inline, from memory
    ACT = 1  # the handler is a coroutine function; a task of its own
    STREAM = 2  # like ACT, and its result is the ByteStream (or Opened) that the reply's serial then carries


@dataclass(frozen=True, slots=True)
class Procedure:
    """`handler(session, *args)` gets the members of `args`; what it returns is what `reply` writes (a tuple
    for a Record, the bare value for anything else, None without a reply body).

    `read_only` says whether a read-only client may call it: nothing may unless its row says so. The right
    that a call takes follows from the row (`access.needed`).
    """

    number: int
    api: str  # the public function's name, which error messages carry
    handler: Callable[..., Any]
    args: Record | None = None
    reply: Codec | None = None
    read_only: bool = False
    kind: Kind = Kind.READ
    phase: Phase = Phase.OPENED
    program: Program = Program.REMOTE


_UNDECODABLE = "Unable to decode message payload"

#: From a packet's body (buffer, start, end) to the handler's result: a value or a coroutine.
Serve = Callable[[Session, bytes, int, int], Any]
#: From a result and the call's serial to the whole reply packet.
Reply = Callable[[Any, int], bytes]
#: Both at once: session, buffer, start, end, serial.
Answer = Callable[[Session, bytes, int, int, int], bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row made ready to run."""

    procedure: Procedure
    serve: Serve
    reply: Reply
    answer: Answer | None  # of a call that is answered inline
    audited: bool
    target: Callable[[bytes, int, int], str]  # the object that a call's body names, for the audit


def _compile_serve(row: Procedure) -> Serve:
    handler, args = row.handler, row.args
    if args is None:
        return lambda session, buf, pos, end: handler(session)
    if len(args.members) == 1:
        read_one = args.members[0].read

        def serve_one(session: Session, buf: bytes, pos: int, end: int) -> Any:
            try:
                value, _ = read_one(buf, pos, end)
            except XdrError as bad:
                raise rpc_error(_UNDECODABLE) from bad
            return handler(session, value)

        return serve_one

    read = args.read

    def serve(session: Session, buf: bytes, pos: int, end: int) -> Any:
        try:
            values, _ = read(buf, pos, end)
        except XdrError as bad:
            raise rpc_error(_UNDECODABLE) from bad
        return handler(session, *values)

    return serve


def _compile_reply(row: Procedure) -> Reply:
    codec, head = row.reply, _REPLY.pack
    if codec is None:
        empty = _before_serial(row, 0)
        return lambda _, serial: head(empty, serial, 0)
    if codec.fixed is not None:
        body = Struct(">" + codec.fixed)
        before, pack = _before_serial(row, body.size), body.pack
        if isinstance(codec, Record):
            return lambda result, serial: head(before, serial, 0) + pack(*result)
        return lambda result, serial: head(before, serial, 0) + pack(result)

    write, header, program, number = codec.write, HEADER.pack, int(row.program), row.number

    def reply(result: Any, serial: int) -> bytes:
        out: list[bytes] = []
        try:
            write(result, out)
        except XdrError as too_big:
            raise rpc_error(f"The answer does not fit a packet: {too_big}") from too_big
        body = b"".join(out)
        return header(HEADER_SIZE + len(body), program, 1, number, 1, serial, 0) + body

    return reply


_REPLY = Struct(">20sII")  # a header: what stands before the serial, the serial, the status


def _before_serial(row: Procedure, size: int) -> bytes:
    """The header of a reply with a body of `size` bytes, up to its serial."""
    return HEADER.pack(HEADER_SIZE + size, row.program, 1, row.number, 1, 0, 0)[:20]


def _compile_answer(row: Procedure, serve: Serve, reply: Reply) -> Answer | None:
    """What `serve` and `reply` do one after the other; in one piece for the calls that clients make most:
    about one object, with an answer of fixed size."""
    if row.kind is not Kind.READ:
        return None
    args, codec = row.args, row.reply
    if args is None or len(args.members) != 1 or not isinstance(codec, Record) or codec.fixed is None:
        return lambda session, buf, pos, end, serial: reply(serve(session, buf, pos, end), serial)
    read, handler, head, body = args.members[0].read, row.handler, _REPLY.pack, Struct(">" + codec.fixed)
    before, pack = _before_serial(row, body.size), body.pack

    def answer(session: Session, buf: bytes, pos: int, end: int, serial: int) -> bytes:
        try:
            value, _ = read(buf, pos, end)
        except XdrError as bad:
            raise rpc_error(_UNDECODABLE) from bad
        return head(before, serial, 0) + pack(*handler(session, value))

    return answer


@dataclass(frozen=True, slots=True)
class Tables:
    """For each phase the calls that are permitted in it, by (program and) number: a positive list each."""

    by_program: dict[int, dict[int, Entry]]
    known: dict[int, Callable[[int], str | None]]  # program → number → API name, None if never given out
    connected: dict[int, Entry]
    authenticated: dict[int, Entry]
    opened: dict[int, Entry]
    opened_read_only: dict[int, Entry]
    limited: dict[Right, dict[int, Entry]]  # for the rights a session has anywhere; each call is checked

    def permitted(self, session: Session) -> dict[int, Entry]:
        """The calls that `session` may make now."""
        if not session.authenticated:
            return self.connected
        if not session.opened:
            return self.authenticated
        read_only = session.caller.read_only
        if session.access.unlimited:
            return self.opened_read_only if read_only else self.opened
        return self.limited[Right.READ if read_only else session.access.anywhere]

    def of_other(self, program: int, number: int, session: Session) -> Entry | None:
        """The call of a program other than the main one, if this session may make it now."""
        entry = self.by_program.get(program, {}).get(number) if program != Program.REMOTE else None
        if entry is None or not session.opened:
            return None
        right = needed(entry.procedure)
        if session.access.unlimited:
            return entry if right is Right.READ or not session.caller.read_only else None
        rights = Right.READ if session.caller.read_only else session.access.anywhere
        return _checked(entry) if right & rights else None

    def refusal(self, program: int, version: int, number: int, status: int, session: Session) -> LibvirtError:
        """Why a CALL that is in no table of this session's phase is not served, in libvirtd's order."""
        known = self.known.get(program)
        if known is None or version != 1:
            return rpc_error(f"Cannot find program {program} version {version}")
        if status != Status.OK:
            return rpc_error(f"Unexpected message status {status}")
        name = known(number)
        if name is None:
            return rpc_error(f"unknown procedure: {number}")
        if not session.authenticated:
            return rpc_error("authentication required")
        if not session.opened:
            return error(Code.INTERNAL_ERROR, "hypervisor connection not open", origin=Origin.RPC)
        entry = self.by_program.get(program, {}).get(number)
        if entry is None:
            return refused(name)
        right = needed(entry.procedure)
        if session.caller.read_only and right is not Right.READ:
            return error(Code.OPERATION_DENIED, f"read only access prevents {name}", origin=Origin.DOMAIN)
        return denied(session, right, name)


def _entry(row: Procedure) -> Entry:
    serve, reply = _compile_serve(row), _compile_reply(row)
    return Entry(row, serve, reply, _compile_answer(row, serve, reply), is_audited(row), finder(row))


def _checked(entry: Entry) -> Entry:
    """The same call for a session whose rights are limited."""
    row = entry.procedure
    if row.phase is not Phase.OPENED:
        return entry
    row = replace(row, handler=guarded(row))
    serve = _compile_serve(row)
    return replace(entry, serve=serve, answer=_compile_answer(row, serve, entry.reply))


def build_tables(rows: Iterable[Procedure], known: dict[int, Callable[[int], str | None]]) -> Tables:
    """Compile the rows. Two rows of one number are a mistake of the programmer."""
    by_program: dict[int, dict[int, Entry]] = {}
    for row in rows:
        table = by_program.setdefault(row.program, {})
        assert row.number not in table, f"procedure {row.number} has two rows"
        table[row.number] = _entry(row)
    remote = by_program[Program.REMOTE]

    def choose(test: Callable[[Procedure], bool]) -> dict[int, Entry]:
        return {number: entry for number, entry in remote.items() if test(entry.procedure)}

    checked = {number: _checked(entry) for number, entry in remote.items()}

    def limited(rights: Right) -> dict[int, Entry]:
        return {
            number: entry
            for number, entry in checked.items()
            if entry.procedure.phase is not Phase.OPENED or needed(entry.procedure) & rights
        }

    return Tables(
        by_program,
        known,
        connected=choose(lambda row: row.phase is Phase.CONNECTED),
        authenticated=choose(lambda row: row.phase is not Phase.OPENED),
        opened=remote,
        opened_read_only=choose(lambda row: row.read_only or row.phase is not Phase.OPENED),
        limited={Right(rights): limited(Right(rights)) for rights in range(Right.ALL + 1)},
    )
