"""One TCP connection, which is one queue: frames PDUs, moves data, hands commands to their table.

Many commands arrive in one wake-up and leave in one write. Their answers are laid side by side into a
transmit buffer that all queues share (a wake-up runs to its end before the next begins), and a read fills its
place in it straight from the page cache. Write data lands straight in the buffer of its command.

Source: NVMe/TCP transport 1.0, section 3 (PDUs) and 3.3 (data transfer).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

from nicagent.storage.nvmetcp import pdu
from nicagent.storage.nvmetcp.backend import BackendError
from nicagent.storage.nvmetcp.crc import crc32c
from nicagent.storage.nvmetcp.pdu import Fes, Flag, Phase, ProtocolError, Sqe, Type
from nicagent.storage.nvmetcp.spec import DNR, AdminOp, FabricsType, NvmeError, Status

if TYPE_CHECKING:
    from nicagent.storage.nvmetcp.controller import Controller
    from nicagent.storage.nvmetcp.target import Target

log = logging.getLogger(__name__)

QUEUE_ENTRIES = 128  # CAP.MQES + 1
ADMIN_DATA_MAX = 8 << 10  # bytes of in-capsule data on the admin queue (NVMe/TCP 1.0, section 3.2)
IN_CAPSULE_MAX = 64 << 10  # bytes on an I/O queue: writes up to here need no R2T round trip
TRANSFER_MAX = 1 << 20  # bytes of one command: MDTS, MAXH2CDATA
RX_SIZE = 192 << 10  # bytes: a whole capsule with its data, padding and digests, and more
TX_FLUSH = 256 << 10  # bytes laid before a write goes out in mid-wake-up, so that the host can start on it
TX_SIZE = TX_FLUSH + TRANSFER_MAX + (64 << 10)
TX_HIGH_WATER = 4 << 20  # bytes the host may leave unread before its queue is stalled
JOIN_MAX = 64 << 10  # bytes of answers from between wake-ups that are worth copying into one write
PENDING_BYTES = 8 << 20  # bytes a queue may have waiting for back ends; the same again for R2T
CONNECT_DEADLINE = 10.0  # seconds from accept to a Connect command
TERM_LINGER = 5.0  # seconds the host gets to read a termination request and close

Handler = Callable[["Queue", Sqe, memoryview], None]

_NO_DATA = memoryview(b"")
# From 3.12 on a transport keeps references to what it could not send at once; before, it copies.
_TRANSPORT_KEEPS = sys.version_info >= (3, 12)


class TransmitBuffer:
    """Answers of the wake-up that runs."""

    def __init__(self) -> None:
        self.replace()

    def replace(self) -> None:
        """Starts afresh where a transport still holds the old memory."""
        self.data = bytearray(TX_SIZE)
        self.view = memoryview(self.data)
        self.used = 0


@dataclass(slots=True)
class Transfer:
    """A command that waits for its data by R2T. The buffer has room for a data digest behind the data."""

    sqe: Sqe
    ttag: int
    length: int  # bytes
    buffer: memoryview = field(default=_NO_DATA)
    done: int = 0  # bytes received
    intact: bool = True  # no data digest failed


@dataclass(slots=True)
class Landing:
    """The payload of an H2CData PDU on its way."""

    transfer: Transfer
    length: int  # bytes
    rest: memoryview  # where the bytes that follow go, digest included


class Queue(asyncio.BufferedProtocol):
    """See the module. `controller` is set by a successful Connect."""

    def __init__(self, target: Target, *, discovery_only: bool = False) -> None:
        self.target = target
        self.discovery_only = discovery_only
        self.phase = Phase.INIT
        self.controller: Controller | None = None
        self.qid = 0
        self.entries = QUEUE_ENTRIES
        self.handlers: Mapping[int, Handler] = {}
        self.sq_flow_control = True
        self.peer = self.address = "?"
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._header_digest = 0  # bytes: 0 or 4
        self._data_digest = 0
        self._data_offset = pdu.DATA_HLEN  # PDO of C2HData: header, digest, padding to HPDA
        self._capsule_min = self._capsule_max = pdu.CAPSULE_HLEN
        self._sqhd = 0
        self._rx = bytearray(RX_SIZE)
        self._rx_view = memoryview(self._rx)
        self._have = 0  # bytes received and not consumed
        self._landing: Landing | None = None
        self._transfers: dict[int, Transfer] = {}  # by TTAG, R2T sent
        self._ungranted: deque[Transfer] = deque()
        self._granted_bytes = 0
        self._next_ttag = 0
        self._pending: dict[int, asyncio.Future[None]] = {}  # by CID
        self._pending_bytes = 0
        self._host_slow = False
        self._stalled = False
        self._pumping = False
        self._late: list[bytearray | bytes] = []

    # What asyncio calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if peer:
            self.peer, self.address = f"{peer[0]}:{peer[1]}", str(peer[0])
        if not self.target.admit(self):
            log.warning("%s: refused, too many connections", self.peer)
            self.phase = Phase.CLOSING
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=TX_HIGH_WATER)
        self._timer = self._loop.call_later(CONNECT_DEADLINE, self._connect_overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = Phase.CLOSING
        self._transport = None
        self._let_go()
        self.target.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._landing is not None:
            return self._landing.rest
        return self._rx_view[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.phase is Phase.CLOSING:
            return
        if self.controller is not None:
            self.controller.heard = self._loop.time()
        landing = self._landing
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

    @property
    def header_digest(self) -> bool:
        """Whether headers carry CRC32C."""
        return bool(self._header_digest)

    @property
    def data_digest(self) -> bool:
        """Whether data carries CRC32C."""
        return bool(self._data_digest)

    @property
    def local_address(self) -> str:
        """The address the host reached us by."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if name else "0.0.0.0"  # noqa: S104

    # Reception ---------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Consumes every complete PDU at hand, then sends what came of it."""
        at, have = 0, self._have
        self._pumping = True
        try:
            if self._landing is not None and not self._landing.rest:
                self._landed(self._landing)
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
            self.target.tx.used = 0
            self.close()
        finally:
            self._pumping = False
        self._flush()
        if self.phase is Phase.CLOSING:
            self._have = 0
            return
        if at:
            self._rx_view[: have - at] = self._rx_view[at:have]
            self._have = have - at

    def _take(self, at: int, have: int) -> int:
        """Consumes the PDU at `at`; returns its length so far as it is here, 0 if more of it must come."""
        kind, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(self._rx, at)
        if (
            kind != Type.CAPSULE_CMD
            or hlen != pdu.CAPSULE_HLEN
            or not self._capsule_min <= plen <= self._capsule_max
            or self.phase is Phase.INIT
        ):  # anything but the hot path's one good case
            self._check_common(kind, hlen, plen)
        if kind == Type.CAPSULE_CMD:
            if have - at < plen:
                return 0
            self._check_header(at, flags, hlen)
            self._capsule(at, flags, pdo, plen)
            return int(plen)
        if kind == Type.H2C_DATA:
            if have - at < max(pdo, hlen + self._header_digest):
                return 0
            self._check_header(at, flags, hlen)
            return self._h2c_data(at, have, flags, pdo, plen)
        if have - at < plen:
            return 0
        if kind == Type.ICREQ:
            self._icreq(at, pdo)
        else:
            _, _, _, _, _, fes, fei = pdu.TERM.unpack_from(self._rx, at)
            log.warning("%s: the host ends the connection: FES %#x, FEI %#x", self.peer, fes, fei)
            self.close()
        return int(plen)

    def _check_common(self, kind: int, hlen: int, plen: int) -> None:
        rule = pdu.RULES.get(kind)
        if rule is None:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_TYPE, f"PDU type {kind:#x} is none of a host's")
        if self.phase not in rule.phases:
            raise ProtocolError(Fes.SEQUENCE, 0, f"PDU type {kind:#x} in phase {self.phase.name}")
        if hlen != rule.hlen:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_HLEN, f"HLEN {hlen} in PDU type {kind:#x}")
        if kind == Type.CAPSULE_CMD:
            least, most = self._capsule_min, self._capsule_max
        elif kind == Type.H2C_DATA:
            least = pdu.DATA_HLEN + self._header_digest
            most = least + pdu.PAD_MAX + TRANSFER_MAX + self._data_digest
        elif kind == Type.ICREQ:
            least = most = pdu.IC_LEN
        else:
            least, most = pdu.TERM_HLEN, rule.plen_max
        if not least <= plen <= most:
            # More data than was negotiated is a limit; anything else is a header that cannot be.
            fes = Fes.LIMIT_EXCEEDED if kind == Type.H2C_DATA and plen > most else Fes.INVALID_HEADER
            raise ProtocolError(fes, pdu.AT_PLEN, f"PLEN {plen} in PDU type {kind:#x}")

    def _check_header(self, at: int, flags: int, hlen: int) -> None:
        if bool(flags & Flag.HDGST) != bool(self._header_digest):
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_FLAGS, "HDGSTF differs from what ICResp agreed")
        if self._header_digest:
            (stated,) = pdu.DIGEST_FIELD.unpack_from(self._rx, at + hlen)
            if stated != crc32c(self._rx_view[at : at + hlen]):
                raise ProtocolError(Fes.HEADER_DIGEST, stated, "header digest differs")

    def _check_data_place(self, flags: int, hlen: int, pdo: int, plen: int) -> None:
        """PDO and DDGSTF of a PDU that carries data. CPDA is 0: data is aligned to a dword."""
        least = hlen + self._header_digest
        if not least <= pdo <= least + pdu.PAD_MAX or pdo % 4 or pdo + self._data_digest > plen:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_PDO, f"PDO {pdo}, PLEN {plen}")
        if bool(flags & Flag.DDGST) != bool(self._data_digest):
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_FLAGS, "DDGSTF differs from what ICResp agreed")

    def _icreq(self, at: int, pdo: int) -> None:
        pfv, hpda, digests, _maxr2t = pdu.ICREQ.unpack_from(self._rx, at + 8)
        if pdo:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_PDO, f"PDO {pdo} in ICReq")
        if pfv:
            raise ProtocolError(Fes.UNSUPPORTED, pdu.AT_PFV, f"PDU format version {pfv}")
        if hpda > 31:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_HPDA, f"HPDA {hpda}")
        if digests & ~(pdu.DIGEST_HEADER | pdu.DIGEST_DATA):
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_DGST, f"DGST {digests:#x}")
        self._header_digest = pdu.DIGEST if digests & pdu.DIGEST_HEADER else 0
        self._data_digest = pdu.DIGEST if digests & pdu.DIGEST_DATA else 0
        align = (hpda + 1) * 4
        self._data_offset = -(-(pdu.DATA_HLEN + self._header_digest) // align) * align
        self.allow_in_capsule(ADMIN_DATA_MAX)
        self.phase = Phase.CONNECT
        answer = pdu.ICRESP.pack(Type.ICRESP, 0, pdu.IC_LEN, 0, pdu.IC_LEN, 0, 0, digests, TRANSFER_MAX)
        self._lay(answer)

    def allow_in_capsule(self, limit: int) -> None:
        """Takes command capsules with up to `limit` bytes of data."""
        self._capsule_min = pdu.CAPSULE_HLEN + self._header_digest
        self._capsule_max = self._capsule_min + pdu.PAD_MAX + limit + self._data_digest

    def _capsule(self, at: int, flags: int, pdo: int, plen: int) -> None:
        sqe = Sqe._make(pdu.SQE.unpack_from(self._rx, at + 8))
        if self.sq_flow_control:
            self._sqhd = (self._sqhd + 1) % self.entries
        data = _NO_DATA
        if plen > pdu.CAPSULE_HLEN + self._header_digest:
            self._check_data_place(flags, pdu.CAPSULE_HLEN, pdo, plen)
            end = at + plen - self._data_digest
            data = self._rx_view[at + pdo : end]
            if self._data_digest and pdu.DIGEST_FIELD.unpack_from(self._rx, end)[0] != crc32c(data):
                self.respond(sqe.cid, Status.TRANSIENT_TRANSPORT)
                return
        if sqe.cid in self._pending:
            self.respond(sqe.cid, Status.CID_CONFLICT | DNR)
            return
        if len(self._pending) + len(self._transfers) > self.entries:
            raise ProtocolError(Fes.SEQUENCE, 0, f"more than {self.entries} commands at once")
        try:
            self._execute(sqe, data)
        except NvmeError as error:
            self.respond(sqe.cid, error.status, error.result)

    def _execute(self, sqe: Sqe, in_capsule: memoryview) -> None:
        if self.controller is not None and sqe.opcode not in self.handlers:
            raise NvmeError(Status.INVALID_OPCODE | DNR)
        if sqe.sgl_length:
            if sqe.flags & 0xC3 != 0x40:  # PSDT: SGL; FUSE: none
                raise NvmeError(Status.INVALID_FIELD | DNR)
            to_controller = (sqe.nsid if sqe.opcode == AdminOp.FABRICS else sqe.opcode) & 3 == 1
            if to_controller:
                if sqe.sgl_type == pdu.SGL_TRANSPORT:
                    self._request_data(sqe)
                    return
                if sqe.sgl_type != pdu.SGL_IN_CAPSULE:
                    raise NvmeError(Status.SGL_TYPE | DNR)
                end = sqe.sgl_address + sqe.sgl_length
                if end > len(in_capsule):
                    raise NvmeError(Status.SGL_OFFSET | DNR)
                self._dispatch(sqe, in_capsule[sqe.sgl_address : end])
                return
            if sqe.sgl_type != pdu.SGL_TRANSPORT:
                raise NvmeError(Status.SGL_TYPE | DNR)
        self._dispatch(sqe, _NO_DATA)

    def _dispatch(self, sqe: Sqe, data: memoryview) -> None:
        if self.controller is None:
            # Before a Connect succeeded nothing else is legal (NVMe-oF 1.1, section 3.3).
            if sqe.opcode != AdminOp.FABRICS or sqe.nsid & 0xFF != FabricsType.CONNECT:
                raise NvmeError(Status.COMMAND_SEQUENCE | DNR)
            self.target.connect(self, sqe, data)
            return
        self.handlers[sqe.opcode](self, sqe, data)

    # Data from the host ------------------------------------------------------------------------------------

    def _request_data(self, sqe: Sqe) -> None:
        limit = TRANSFER_MAX if self.qid else ADMIN_DATA_MAX
        if sqe.sgl_length > limit or sqe.sgl_length % 4:
            raise NvmeError(Status.INVALID_FIELD | DNR)
        while self._next_ttag in self._transfers:
            self._next_ttag = (self._next_ttag + 1) % 0xFFFF
        transfer = Transfer(sqe, self._next_ttag, sqe.sgl_length)
        self._next_ttag = (self._next_ttag + 1) % 0xFFFF
        self._transfers[transfer.ttag] = transfer
        self._ungranted.append(transfer)
        self._grant()

    def _grant(self) -> None:
        """Sends R2Ts as far as memory allows."""
        while self._ungranted and self._granted_bytes + self._ungranted[0].length <= PENDING_BYTES:
            transfer = self._ungranted.popleft()
            self._granted_bytes += transfer.length
            transfer.buffer = memoryview(bytearray(transfer.length + pdu.DIGEST))
            plen = pdu.DATA_HLEN + self._header_digest
            flags = Flag.HDGST if self._header_digest else 0
            header = pdu.DATA.pack(
                Type.R2T, flags, pdu.DATA_HLEN, 0, plen,
                transfer.sqe.cid, transfer.ttag, 0, transfer.length,
            )  # fmt: skip
            self._lay(header + pdu.DIGEST_FIELD.pack(crc32c(header)) if self._header_digest else header)

    def _h2c_data(self, at: int, have: int, flags: int, pdo: int, plen: int) -> int:
        _, _, _, _, _, cccid, ttag, offset, length = pdu.DATA.unpack_from(self._rx, at)
        transfer = self._transfers.get(ttag)
        if transfer is None or not transfer.buffer:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_TTAG, f"TTAG {ttag} is not outstanding")
        if cccid != transfer.sqe.cid:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_CCCID, f"CCCID {cccid} is not TTAG {ttag}'s")
        if length > TRANSFER_MAX:
            raise ProtocolError(Fes.LIMIT_EXCEEDED, pdu.AT_DATAL, f"DATAL {length} is over MAXH2CDATA")
        if offset != transfer.done or offset + length > transfer.length:
            raise ProtocolError(
                Fes.OUT_OF_RANGE, pdu.AT_DATAO, f"data {offset}+{length}, expected from {transfer.done}"
            )
        self._check_data_place(flags, pdu.DATA_HLEN, pdo, plen)
        if not length or plen != pdo + length + self._data_digest:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_PLEN, f"PLEN {plen} for {length} bytes of data")
        if bool(flags & Flag.LAST) != (offset + length == transfer.length):
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_FLAGS, "LAST_PDU disagrees with the R2T")
        whole = length + self._data_digest
        here = min(have - at - pdo, whole)
        transfer.buffer[offset : offset + here] = self._rx_view[at + pdo : at + pdo + here]
        self._landing = Landing(transfer, length, transfer.buffer[offset + here : offset + whole])
        if here == whole:
            self._landed(self._landing)
        return int(pdo + here)

    def _landed(self, landing: Landing) -> None:
        self._landing = None
        transfer, start = landing.transfer, landing.transfer.done
        transfer.done += landing.length
        if self._data_digest:
            (stated,) = pdu.DIGEST_FIELD.unpack_from(transfer.buffer, transfer.done)
            transfer.intact &= stated == crc32c(transfer.buffer[start : transfer.done])
        if transfer.done < transfer.length:
            return
        del self._transfers[transfer.ttag]
        cid = transfer.sqe.cid
        try:
            if not transfer.intact:
                raise NvmeError(Status.TRANSIENT_TRANSPORT)
            self._dispatch(transfer.sqe, transfer.buffer[: transfer.length])
        except NvmeError as error:
            self.respond(cid, error.status, error.result)
        waits = self._pending.get(cid)
        if waits is None:
            self._release(transfer.length)
        else:
            waits.add_done_callback(lambda _: self._release(transfer.length))

    def _release(self, length: int) -> None:
        self._granted_bytes -= length
        if self.phase is not Phase.CLOSING:
            self._grant()

    # Answers -----------------------------------------------------------------------------------------------

    def respond(self, cid: int, status: int = 0, result: int = 0) -> None:
        """Completes a command (CapsuleResp)."""
        size = pdu.RESPONSE_LEN + self._header_digest
        data, view, at = self._room(size)
        self._lay_response(data, view, at, cid, status, result)

    def respond_data(self, sqe: Sqe, payload: bytes) -> None:
        """Sends `payload` as far as the host asked for it, and completes the command."""
        payload = payload[: sqe.sgl_length]
        data, view, at = self._room(self._frame_size(len(payload)))
        start = at + self._data_offset
        view[start : start + len(payload)] = payload
        self._lay_frame(data, view, at, sqe.cid, len(payload))

    def read_now(self, cid: int, length: int, fill: Callable[[int, memoryview], bool], offset: int) -> bool:
        """Sends what `fill(offset, …)` delivers at once; False if it cannot, and nothing is sent."""
        tx = self.target.tx
        if tx.used >= TX_FLUSH:
            self._flush()
        at = tx.used
        start = at + self._data_offset
        if not fill(offset, tx.view[start : start + length]):
            return False
        tx.used = at + self._frame_size(length)
        self._lay_frame(tx.data, tx.view, at, cid, length)
        return True

    def read_later(
        self, cid: int, length: int, start: Callable[[memoryview], asyncio.Future[None]], failure: int
    ) -> None:
        """Sends what the Future of `start(view)` delivers; `failure` is the status of a medium error."""
        frame = bytearray(self._frame_size(length))
        view = memoryview(frame)

        def done() -> None:
            self._lay_frame(frame, view, 0, cid, length)
            self._late.append(frame)

        future = start(view[self._data_offset : self._data_offset + length])
        self.pend(cid, future, failure, done, length)

    def pend(
        self,
        cid: int,
        future: asyncio.Future[None],
        failure: int,
        done: Callable[[], None] | None = None,
        weight: int = 0,
    ) -> None:
        """Completes `cid` when `future` ends: by `done()` if it went well, else with a status for its error.

        `weight`: bytes of memory held meanwhile; beyond PENDING_BYTES the queue is stalled.
        """
        self._pending[cid] = future
        self._pending_bytes += weight
        future.add_done_callback(partial(self._finish, cid, failure, done, weight))
        if self._pending_bytes > PENDING_BYTES:
            self._balance()

    def keep(self, data: memoryview) -> memoryview:
        """`data` for longer than its handler runs: a copy if it lies in the receive buffer."""
        return memoryview(bytes(data)) if data.obj is self._rx else data

    def _finish(
        self,
        cid: int,
        failure: int,
        done: Callable[[], None] | None,
        weight: int,
        future: asyncio.Future[None],
    ) -> None:
        if self.phase is Phase.CLOSING:  # nobody waits; the error, if there is one, counts as seen
            if not future.cancelled():
                future.exception()
            return
        error: BaseException | None
        if future.cancelled():  # not by us: its back end was closed before it began
            error = BackendError(errno.ESHUTDOWN, "the disk was taken away")
        else:
            error = future.exception()
        del self._pending[cid]
        self._pending_bytes -= weight
        if not self._late:
            self._loop.call_soon(self._flush_late)
        if error is not None:
            if not isinstance(error, NvmeError | BackendError):
                log.error("%s: command %#x failed: %r", self.peer, cid, error)
            self.respond(cid, *_status_of(error, failure))
        elif done is None:
            self.respond(cid)
        else:
            done()
        if self._stalled:
            self._balance()

    def _room(self, size: int) -> tuple[bytearray, memoryview, int]:
        """Where an answer of `size` bytes goes: the wake-up's buffer, or one of its own between wake-ups."""
        if not self._pumping:
            own = bytearray(size)
            if not self._late:
                self._loop.call_soon(self._flush_late)
            self._late.append(own)
            return own, memoryview(own), 0
        tx = self.target.tx
        if tx.used >= TX_FLUSH:
            self._flush()
        at = tx.used
        tx.used += size
        return tx.data, tx.view, at

    def _lay(self, packet: bytes) -> None:
        _, view, at = self._room(len(packet))
        view[at : at + len(packet)] = packet

    def _frame_size(self, length: int) -> int:
        size = self._data_offset + length + self._data_digest
        return size + pdu.RESPONSE_LEN + self._header_digest if self.sq_flow_control else size

    def _lay_frame(self, data: bytearray, view: memoryview, at: int, cid: int, length: int) -> None:
        """C2HData around `length` bytes already in place, and the response unless SUCCESS stands for it."""
        flags = Flag.LAST if self.sq_flow_control else Flag.LAST | Flag.SUCCESS
        start = at + self._data_offset
        end = start + length + self._data_digest
        if self._header_digest or self._data_digest:
            flags |= Flag.HDGST if self._header_digest else 0
            flags |= Flag.DDGST if self._data_digest else 0
        pdu.DATA.pack_into(
            data, at, Type.C2H_DATA, flags, pdu.DATA_HLEN, self._data_offset, end - at, cid, 0, 0, length
        )
        if self._header_digest:
            digest = crc32c(view[at : at + pdu.DATA_HLEN])
            pdu.DIGEST_FIELD.pack_into(data, at + pdu.DATA_HLEN, digest)
        if self._data_digest:
            pdu.DIGEST_FIELD.pack_into(data, start + length, crc32c(view[start : start + length]))
        if self.sq_flow_control:
            self._lay_response(data, view, end, cid, 0, 0)

    def _lay_response(
        self, data: bytearray, view: memoryview, at: int, cid: int, status: int, result: int
    ) -> None:
        flags = Flag.HDGST if self._header_digest else 0
        plen = pdu.RESPONSE_LEN + self._header_digest
        sqhd = self._sqhd if self.sq_flow_control else 0xFFFF
        pdu.RESPONSE.pack_into(
            data, at, Type.CAPSULE_RESP, flags, pdu.RESPONSE_LEN, 0, plen,
            result, sqhd, 0, cid, status << 1,
        )  # fmt: skip
        if self._header_digest:
            digest = crc32c(view[at : at + pdu.RESPONSE_LEN])
            pdu.DIGEST_FIELD.pack_into(data, at + pdu.RESPONSE_LEN, digest)

    def _flush(self) -> None:
        tx = self.target.tx
        used, tx.used = tx.used, 0
        if used and self._transport is not None:
            self._transport.write(tx.view[:used])
            if _TRANSPORT_KEEPS and self._transport.get_write_buffer_size():
                tx.replace()

    def _flush_late(self) -> None:
        late, self._late = self._late, []
        if self._transport is not None and late and self.phase is not Phase.CLOSING:
            if sum(map(len, late)) <= JOIN_MAX:
                self._transport.write(b"".join(late))
            else:
                for frame in late:
                    self._transport.write(frame)

    # Flow, and the end -------------------------------------------------------------------------------------

    def _balance(self) -> None:
        """Stalls or resumes reception: memory for answers is bounded."""
        stalled = self._host_slow or self._pending_bytes > PENDING_BYTES
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

    def connected(self) -> None:
        """A Connect succeeded: its deadline is met."""
        self.phase = Phase.LIVE
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _connect_overdue(self) -> None:
        if self._pending:  # the command is here; what it waits for has a bound of its own
            return
        log.warning("%s: no Connect within %g s", self.peer, CONNECT_DEADLINE)
        self.close()

    def _terminate(self, error: ProtocolError, header: bytes) -> None:
        log.warning(
            "%s: %s; the connection ends with FES %#x, FEI %#x", self.peer, error, error.fes, error.fei
        )
        self._flush()
        if self._transport is None:
            return
        self._transport.write(pdu.termination(error, header))
        self.phase = Phase.CLOSING
        self._let_go()
        # Closing at once, with input unread, would send RST and could cost the host our reason.
        self._transport.resume_reading()
        self._timer = self._loop.call_later(TERM_LINGER, self._transport.abort)

    def close(self) -> None:
        """Ends the connection, after what is laid has been sent. Idempotent."""
        if self._transport is not None and not self._transport.is_closing():
            if self._pumping:
                self._flush()
            else:
                self._flush_late()
            self._transport.close()
        self.phase = Phase.CLOSING
        self._let_go()

    def _let_go(self) -> None:
        """Nobody waits for answers on this connection any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, {}
        for future in pending.values():
            future.cancel()
        self._transfers.clear()
        self._ungranted.clear()
        self._landing = None
        controller, self.controller = self.controller, None
        if controller is not None:
            controller.detach(self)


def _status_of(error: BaseException, failure: int) -> tuple[int, int]:
    """Status and result for an error of a back end or of a deferred command."""
    if isinstance(error, NvmeError):
        return error.status, error.result
    if isinstance(error, BackendError):
        return {
            errno.ENOSPC: Status.CAPACITY_EXCEEDED,
            errno.EDQUOT: Status.CAPACITY_EXCEEDED,
            errno.EROFS: Status.WRITE_PROTECTED | DNR,
            # The server behind the disk is away: the host may well try again.
            errno.ESHUTDOWN: Status.NAMESPACE_NOT_READY,
            errno.ETIMEDOUT: Status.NAMESPACE_NOT_READY,
        }.get(error.errno, failure), 0
    return Status.INTERNAL, 0
