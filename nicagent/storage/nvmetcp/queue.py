"""One TCP connection, which is one queue: frames PDUs, and hands commands to their table.

Answers are `answers`' work, data by R2T `transfers`', and commands that wait `pending`'s; here is what ties
them to the connection's life. Source: NVMe/TCP transport 1.0, section 3.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import cast

from nicagent.storage.nvmetcp import pdu
from nicagent.storage.nvmetcp.answers import Answers, TransmitBuffer
from nicagent.storage.nvmetcp.auth import Authentication
from nicagent.storage.nvmetcp.controller import Controller
from nicagent.storage.nvmetcp.crc import crc32c
from nicagent.storage.nvmetcp.limits import ADMIN_DATA_MAX, QUEUE_ENTRIES, TRANSFER_MAX
from nicagent.storage.nvmetcp.pdu import Fes, Phase, ProtocolError, Sqe, Type
from nicagent.storage.nvmetcp.pending import Pending
from nicagent.storage.nvmetcp.spec import DNR, AdminOp, NvmeError, Status
from nicagent.storage.nvmetcp.terms import Terms
from nicagent.storage.nvmetcp.transfers import Landing, Transfers
from nicagent.storage.nvmetcp.wakeup import WakeUp

log = logging.getLogger(__name__)

RX_SIZE = 192 << 10  # bytes: a whole capsule with its data, padding and digests, and more
TX_HIGH_WATER = 4 << 20  # bytes the host may leave unread before its queue is stalled
CONNECT_DEADLINE = 10.0  # seconds from accept to a Connect command
AUTHENTICATION_DEADLINE = 30.0  # seconds from a Connect, or from AUTH_Negotiate, to the end of the exchange
TERM_LINGER = 5.0  # seconds the host gets to read a termination request and close

Handler = Callable[["Queue", Sqe, memoryview], None]

_NO_DATA = memoryview(b"")


class Queue(asyncio.BufferedProtocol):
    """See the module. A successful Connect gives it its controller and its table of commands (`join`)."""

    def __init__(
        self,
        tx: TransmitBuffer,
        wake_up: WakeUp,
        handlers: Mapping[int, Handler],
        *,
        admit: Callable[[Queue], bool],
        forget: Callable[[Queue], None],
        discovery_only: bool = False,
    ) -> None:
        """`handlers` are those before a Connect. `admit` says whether there is room for one more connection,
        `forget` that it is gone."""
        self.discovery_only = discovery_only
        self.phase = Phase.INIT
        self.controller: Controller | None = None
        self.qid = 0
        self.peer = self.address = "?"
        self.terms = Terms()
        self.answers = Answers(tx, wake_up, self.terms)
        self.pending = Pending(self.answers, self._balance)
        self._transfers = Transfers(self.terms, self.answers.lay)
        self.authentication: Authentication | None = None
        self._handlers = self._open_handlers = handlers
        self._refusal = Status.COMMAND_SEQUENCE  # of what no handler takes (NVMe-oF 1.1, section 3.3)
        self._entries = QUEUE_ENTRIES
        self._wake_up = wake_up
        self._admit = admit
        self._forget = forget
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._rx = bytearray(RX_SIZE)
        self._rx_view = memoryview(self._rx)
        self._have = 0  # bytes received and not consumed
        self._host_slow = False
        self._stalled = False

    # What asyncio calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self.answers.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if peer:
            self.peer, self.address = f"{peer[0]}:{peer[1]}", str(peer[0])
        if not self._admit(self):
            log.warning("%s: refused, too many connections", self.peer)
            self.phase = Phase.CLOSING
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=TX_HIGH_WATER)
        self._timer = self._loop.call_later(CONNECT_DEADLINE, self._connect_overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._let_go()
        self._forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        landing = self._transfers.landing
        return self._rx_view[self._have :] if landing is None else landing.rest

    def buffer_updated(self, nbytes: int) -> None:
        if self.phase is Phase.CLOSING:
            return
        if self.controller is not None:
            self.controller.heard = self._loop.time()
        landing = self._transfers.landing
        if landing is None:
            self._have += nbytes
        else:
            landing.rest = landing.rest[nbytes:]
            if landing.rest:
                return
        self._pump()

    def pause_writing(self) -> None:
        self._host_slow = True
        self._balance()

    def resume_writing(self) -> None:
        self._host_slow = False
        self._balance()

    # Reception ---------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Consumes every complete PDU at hand, then sends what came of it."""
        at, have = 0, self._have
        self._wake_up.begin()
        self.answers.in_wake_up = True
        try:
            landing = self._transfers.landing
            if landing is not None and not landing.rest:
                self._landed(landing)
            while have - at >= 8 and not self._stalled and self.phase is not Phase.CLOSING:
                taken = self._take(at, have)
                if not taken:
                    break
                at += taken
        except ProtocolError as error:
            self._terminate(error, bytes(self._rx_view[at : min(have, at + pdu.TERM_DATA_MAX)]))
        except Exception:
            # Our own fault ends this connection only; what it laid must not reach the next one.
            log.exception("%s: internal error, the connection ends", self.peer)
            self.answers.discard()
            self.close()
        self.answers.flush()
        self.answers.in_wake_up = False
        self._wake_up.end()
        if self.phase is Phase.CLOSING:
            self._have = 0
            return
        if at:
            self._rx_view[: have - at] = self._rx_view[at:have]
            self._have = have - at

    def _take(self, at: int, have: int) -> int:
        """Consumes the PDU at `at`; returns its length so far as it is here, 0 if more of it must come."""
        kind, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(self._rx, at)
        terms = self.terms
        if (
            kind != Type.CAPSULE_CMD
            or hlen != pdu.CAPSULE_HLEN
            or not terms.capsule_min <= plen <= terms.capsule_max
            or self.phase is Phase.INIT
        ):  # anything but the hot path's one good case
            terms.check_common(self.phase, kind, hlen, plen)
        if kind == Type.CAPSULE_CMD:
            if have - at < plen:
                return 0
            terms.check_header(self._rx, at, flags, hlen)
            self._capsule(at, flags, pdo, plen)
            return int(plen)
        if kind == Type.H2C_DATA:
            if have - at < max(pdo, hlen + terms.header_digest):
                return 0
            terms.check_header(self._rx, at, flags, hlen)
            taken = self._transfers.take(self._rx, at, have, flags, pdo, plen)
            landing = self._transfers.landing
            if landing is not None and not landing.rest:
                self._landed(landing)
            return taken
        if have - at < plen:
            return 0
        if kind == Type.ICREQ:
            answer = terms.agree(self._rx, at, pdo)
            self.phase = Phase.CONNECT
            self.answers.lay(answer)
        else:
            _, _, _, _, _, fes, fei = pdu.TERM.unpack_from(self._rx, at)
            log.warning("%s: the host ends the connection: FES %#x, FEI %#x", self.peer, fes, fei)
            self.close()
        return int(plen)

    def _capsule(self, at: int, flags: int, pdo: int, plen: int) -> None:
        sqe = Sqe._make(pdu.SQE.unpack_from(self._rx, at + 8))
        answers, terms = self.answers, self.terms
        if answers.sq_flow_control:
            answers.sqhd = (answers.sqhd + 1) % self._entries
        data = _NO_DATA
        if plen > terms.capsule_min:
            terms.check_data_place(flags, pdu.CAPSULE_HLEN, pdo, plen)
            end = at + plen - terms.data_digest
            data = self._rx_view[at + pdo : end]
            if terms.data_digest and pdu.DIGEST_FIELD.unpack_from(self._rx, end)[0] != crc32c(data):
                answers.respond(sqe.cid, Status.TRANSIENT_TRANSPORT)
                return
        pending = self.pending.operations
        if sqe.cid in pending:
            answers.respond(sqe.cid, Status.CID_CONFLICT | DNR)
            return
        if len(pending) + len(self._transfers) > self._entries:
            raise ProtocolError(Fes.SEQUENCE, 0, f"more than {self._entries} commands at once")
        try:
            self._execute(sqe, data)
        except NvmeError as error:
            answers.respond(sqe.cid, error.status, error.result)

    def _execute(self, sqe: Sqe, in_capsule: memoryview) -> None:
        handler = self._handlers.get(sqe.opcode)
        if handler is None:
            raise NvmeError(self._refusal | DNR)
        data = _NO_DATA
        if sqe.sgl_length:
            if sqe.flags & 0xC3 != 0x40:  # PSDT: SGL; FUSE: none
                raise NvmeError(Status.INVALID_FIELD | DNR)
            if (sqe.nsid if sqe.opcode == AdminOp.FABRICS else sqe.opcode) & 3 == 1:  # data to the controller
                if sqe.sgl_type == pdu.SGL_TRANSPORT:
                    most = TRANSFER_MAX if self.qid and sqe.opcode != AdminOp.FABRICS else ADMIN_DATA_MAX
                    if sqe.sgl_length > most or sqe.sgl_length % 4:
                        raise NvmeError(Status.INVALID_FIELD | DNR)
                    self._transfers.request(sqe)
                    return
                if sqe.sgl_type != pdu.SGL_IN_CAPSULE:
                    raise NvmeError(Status.SGL_TYPE | DNR)
                end = sqe.sgl_address + sqe.sgl_length
                if end > len(in_capsule):
                    raise NvmeError(Status.SGL_OFFSET | DNR)
                data = in_capsule[sqe.sgl_address : end]
            elif sqe.sgl_type != pdu.SGL_TRANSPORT:
                raise NvmeError(Status.SGL_TYPE | DNR)
        handler(self, sqe, data)

    def _landed(self, landing: Landing) -> None:
        """The payload of an H2CData is here; its command goes on once all of them are."""
        transfers = self._transfers
        transfer = transfers.landed(landing)
        if transfer is None:
            return
        sqe = transfer.sqe
        try:
            if not transfer.intact:
                raise NvmeError(Status.TRANSIENT_TRANSPORT)
            self._handlers[sqe.opcode](self, sqe, transfer.data)
        except NvmeError as error:
            self.answers.respond(sqe.cid, error.status, error.result)
        waits = self.pending.operations.get(sqe.cid)
        if waits is None:
            transfers.release(transfer.length)
        else:
            waits.then(lambda _: transfers.release(transfer.length))

    # For commands ------------------------------------------------------------------------------------------

    @property
    def local_address(self) -> str:
        """The address the host reached us by."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if name else "0.0.0.0"  # noqa: S104

    def keep(self, data: memoryview) -> memoryview:
        """`data` for longer than its handler runs: a copy if it lies in the receive buffer."""
        return memoryview(bytes(data)) if data.obj is self._rx else data

    def join(
        self,
        controller: Controller,
        handlers: Mapping[int, Handler],
        *,
        qid: int,
        entries: int,
        sq_flow_control: bool,
        in_capsule: int,
        authentication: Authentication | None = None,
        meanwhile: Mapping[int, Handler] | None = None,
    ) -> None:
        """A Connect succeeded: this is queue `qid` now; its capsules bring `in_capsule` bytes at most.

        With `authentication` the commands are those of `meanwhile` until its host has proved itself.
        """
        self.phase = Phase.LIVE
        self.controller = controller
        self.qid = qid
        self._open_handlers = handlers
        self.authentication = authentication
        self._entries = entries
        self.answers.sq_flow_control = sq_flow_control
        self.terms.allow_in_capsule(in_capsule)
        self._cancel_timer()  # its deadline is met
        if authentication is None or meanwhile is None:
            self._open()
        else:
            self._handlers, self._refusal = meanwhile, Status.AUTH_REQUIRED
            self._timer = self._loop.call_later(AUTHENTICATION_DEADLINE, self._authentication_overdue)
        controller.attach(self)

    @property
    def proved(self) -> bool:
        """Whether it is a queue whose host has proved itself as far as it has to."""
        return self.phase is Phase.LIVE and (self.authentication is None or self.authentication.authenticated)

    def authentication_moved(self) -> None:
        """A message of the exchange came or went."""
        exchange = self.authentication
        assert exchange is not None
        if exchange.over:
            log.warning("%s: the host did not authenticate: %s", self.peer, exchange.why.name)
            self.close()
            return
        if exchange.authenticated:
            self._open()
        if exchange.under_way and self._timer is None:
            self._timer = self._loop.call_later(AUTHENTICATION_DEADLINE, self._authentication_overdue)
        elif exchange.authenticated and not exchange.under_way:
            self._cancel_timer()

    def _open(self) -> None:
        self._handlers, self._refusal = self._open_handlers, Status.INVALID_OPCODE

    # Flow, and the end -------------------------------------------------------------------------------------

    def _balance(self) -> None:
        """Stalls or resumes reception: memory for answers is bounded."""
        stalled = self._host_slow or self.pending.full
        if stalled is self._stalled or self._transport is None or self.phase is Phase.CLOSING:
            return
        self._stalled = stalled
        if stalled:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
            if self._have:
                self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._stalled and self.phase is not Phase.CLOSING:
            self._pump()

    def _connect_overdue(self) -> None:
        if self.pending.operations:  # the command is here; what it waits for has a bound of its own
            return
        log.warning("%s: no Connect within %g s", self.peer, CONNECT_DEADLINE)
        self.close()

    def _authentication_overdue(self) -> None:
        log.warning("%s: not authenticated within %g s", self.peer, AUTHENTICATION_DEADLINE)
        self.close()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _terminate(self, error: ProtocolError, header: bytes) -> None:
        log.warning(
            "%s: %s; the connection ends with FES %#x, FEI %#x", self.peer, error, error.fes, error.fei
        )
        self.answers.flush()
        if self._transport is None:
            return
        self._transport.write(pdu.termination(error, header))
        self._let_go()
        # Closing at once, with input unread, would send RST and could cost the host our reason.
        self._transport.resume_reading()
        self._timer = self._loop.call_later(TERM_LINGER, self._transport.abort)

    def close(self) -> None:
        """Ends the connection, after what is laid has been sent. Idempotent."""
        if self._transport is not None and not self._transport.is_closing():
            self.answers.flush()
            self._transport.close()
        self._let_go()

    def _let_go(self) -> None:
        """Nobody waits for answers on this connection any more."""
        self.phase = Phase.CLOSING
        self.answers.transport = None
        self._cancel_timer()
        self.pending.drop()
        self._transfers.clear()
        controller, self.controller = self.controller, None
        if controller is not None:
            controller.detach(self)
