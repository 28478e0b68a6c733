"""Answers of one connection: laid side by side, and sent in as few writes as may be.

Many commands arrive in one wake-up and leave in one write. Their answers are laid into a transmit buffer that
all queues share (a wake-up runs to its end before the next begins), and a read fills its place in it straight
from the page cache. Answers that come between wake-ups, from back ends, bring memory of their own.

Source: NVMe/TCP transport 1.0, sections 3.6.2.7 (CapsuleResp) and 3.6.2.9 (C2HData).
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable

from nicagent.storage.nvmetcp import pdu
from nicagent.storage.nvmetcp.crc import crc32c
from nicagent.storage.nvmetcp.limits import TRANSFER_MAX
from nicagent.storage.nvmetcp.pdu import Flag, Sqe, Type
from nicagent.storage.nvmetcp.terms import Terms
from nicagent.storage.nvmetcp.wakeup import WakeUp

TX_FLUSH = 256 << 10  # bytes laid before a write goes out in mid-wake-up, so that the host can start on it
TX_SIZE = TX_FLUSH + TRANSFER_MAX + (64 << 10)
JOIN_MAX = 32 << 10  # bytes of an answer with memory of its own that is cheaper copied than written alone
SPARE_FRAMES = 8  # larger ones kept for the next reads: fresh memory costs as much as filling it

# From 3.12 on a transport keeps references to what it could not send at once; before, it copies.
_TRANSPORT_KEEPS = sys.version_info >= (3, 12)


class TransmitBuffer:
    """Answers of the connection whose wake-up runs."""

    def __init__(self) -> None:
        self.replace()

    def replace(self) -> None:
        """Starts afresh where a transport still holds the old memory."""
        self.data = bytearray(TX_SIZE)
        self.view = memoryview(self.data)
        self.used = 0


class Answers:
    """Of one connection. `sqhd` is the head of its submission queue, reported unless flow control is off."""

    __slots__ = (
        "_late",
        "_spare",
        "_terms",
        "_tx",
        "_wake_up",
        "in_wake_up",
        "sq_flow_control",
        "sqhd",
        "transport",
    )

    def __init__(self, tx: TransmitBuffer, wake_up: WakeUp, terms: Terms) -> None:
        self.transport: asyncio.Transport | None = None  # None: nobody is there to hear
        self.in_wake_up = False  # the shared buffer is ours now, and `flush` will follow
        self.sq_flow_control = True
        self.sqhd = 0
        self._tx = tx
        self._terms = terms
        self._wake_up = wake_up
        self._late: list[bytearray] = []
        self._spare: deque[bytearray] = deque(maxlen=SPARE_FRAMES)

    def respond(self, cid: int, status: int = 0, result: int = 0) -> None:
        """Completes a command (CapsuleResp)."""
        data, view, at = self._room(self._terms.response_size)
        self._lay_response(data, view, at, cid, status, result)

    def respond_data(self, sqe: Sqe, payload: bytes) -> None:
        """Sends `payload` as far as the host asked for it, and completes the command."""
        payload = payload[: sqe.sgl_length]
        data, view, at = self._room(self._frame_size(len(payload)))
        start = at + self._terms.data_offset
        view[start : start + len(payload)] = payload
        self._lay_frame(data, view, at, sqe.cid, len(payload))

    def read_now(self, cid: int, length: int, fill: Callable[[int, memoryview], bool], offset: int) -> bool:
        """Sends what `fill(offset, …)` delivers at once; False if it cannot, and nothing is sent."""
        tx = self._tx
        if tx.used >= TX_FLUSH:
            self.flush()
        at = tx.used
        start = at + self._terms.data_offset
        if not fill(offset, tx.view[start : start + length]):
            return False
        tx.used = at + self._frame_size(length)
        self._lay_frame(tx.data, tx.view, at, cid, length)
        return True

    def frame(self, length: int) -> tuple[bytearray, memoryview]:
        """Memory for a read of `length` bytes that will end later, and the data's place in it."""
        size = self._frame_size(length)
        spare = self._spare.pop() if self._spare and size > JOIN_MAX else None
        frame = spare if spare is not None and len(spare) == size else bytearray(size)
        start = self._terms.data_offset
        return frame, memoryview(frame)[start : start + length]

    def respond_frame(self, cid: int, frame: bytearray, length: int) -> None:
        """Sends a `frame` whose data is in place, and completes the command."""
        self._lay_frame(frame, memoryview(frame), 0, cid, length)
        self._send_late(frame)

    def lay(self, packet: bytes) -> None:
        """Sends a PDU as it is."""
        _, view, at = self._room(len(packet))
        view[at : at + len(packet)] = packet

    def flush(self) -> None:
        """Sends what is laid."""
        if self._late:
            self._flush_late()
        if not self.in_wake_up:
            return  # the shared buffer is another connection's
        tx = self._tx
        used, tx.used = tx.used, 0
        if used and self.transport is not None:
            self.transport.write(tx.view[:used])
            if _TRANSPORT_KEEPS and self.transport.get_write_buffer_size():
                tx.replace()

    def discard(self) -> None:
        """Forgets what this wake-up has laid."""
        self._tx.used = 0

    def _room(self, size: int) -> tuple[bytearray, memoryview, int]:
        """Where an answer of `size` bytes goes: the wake-up's buffer, or one of its own between wake-ups."""
        if not self.in_wake_up:
            own = bytearray(size)
            self._send_late(own)
            return own, memoryview(own), 0
        tx = self._tx
        if tx.used >= TX_FLUSH:
            self.flush()
        at = tx.used
        tx.used += size
        return tx.data, tx.view, at

    def _frame_size(self, length: int) -> int:
        terms = self._terms
        size = terms.data_offset + length + terms.data_digest
        return size + terms.response_size if self.sq_flow_control else size

    def _lay_frame(self, data: bytearray, view: memoryview, at: int, cid: int, length: int) -> None:
        """C2HData around `length` bytes already in place, and the response unless SUCCESS stands for it."""
        terms = self._terms
        start = at + terms.data_offset
        end = start + length + terms.data_digest
        flags = terms.data_flags | (Flag.LAST if self.sq_flow_control else Flag.LAST | Flag.SUCCESS)
        pdu.DATA.pack_into(
            data, at, Type.C2H_DATA, flags, pdu.DATA_HLEN, terms.data_offset, end - at, cid, 0, 0, length
        )
        if terms.header_digest:
            digest = crc32c(view[at : at + pdu.DATA_HLEN])
            pdu.DIGEST_FIELD.pack_into(data, at + pdu.DATA_HLEN, digest)
        if terms.data_digest:
            pdu.DIGEST_FIELD.pack_into(data, start + length, crc32c(view[start : start + length]))
        if self.sq_flow_control:
            self._lay_response(data, view, end, cid, 0, 0)

    def _lay_response(
        self, data: bytearray, view: memoryview, at: int, cid: int, status: int, result: int
    ) -> None:
        terms = self._terms
        sqhd = self.sqhd if self.sq_flow_control else 0xFFFF
        pdu.RESPONSE.pack_into(
            data, at, Type.CAPSULE_RESP, terms.header_flags, pdu.RESPONSE_LEN, 0, terms.response_size,
            result, sqhd, 0, cid, status << 1,
        )  # fmt: skip
        if terms.header_digest:
            digest = crc32c(view[at : at + pdu.RESPONSE_LEN])
            pdu.DIGEST_FIELD.pack_into(data, at + pdu.RESPONSE_LEN, digest)

    def _send_late(self, frame: bytearray) -> None:
        if not self._late:
            self._wake_up.at_end(self._flush_late)
        self._late.append(frame)

    def _flush_late(self) -> None:
        late, self._late = self._late, []
        if self.transport is None or not late:
            return
        small = [frame for frame in late if len(frame) <= JOIN_MAX]
        if small:
            self.transport.write(b"".join(small))
        for frame in late:
            if len(frame) > JOIN_MAX:
                self.transport.write(memoryview(frame))
                if not _TRANSPORT_KEEPS or not self.transport.get_write_buffer_size():
                    self._spare.append(frame)
