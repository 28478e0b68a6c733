"""Write data that comes at our request: R2T out, H2CData in, each byte straight into its command's buffer.

Source: NVMe/TCP transport 1.0, section 3.3.2 and 3.6.2.8 to 3.6.2.10.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nicagent.storage.nvmetcp import pdu
from nicagent.storage.nvmetcp.crc import crc32c
from nicagent.storage.nvmetcp.limits import PENDING_BYTES, TRANSFER_MAX
from nicagent.storage.nvmetcp.pdu import Fes, Flag, ProtocolError, Sqe, Type
from nicagent.storage.nvmetcp.terms import Terms

_NO_DATA = memoryview(b"")


@dataclass(slots=True)
class Transfer:
    """A command that waits for its data. The buffer has room for a data digest behind the data."""

    sqe: Sqe
    ttag: int
    length: int  # bytes
    buffer: memoryview = field(default=_NO_DATA)  # empty until an R2T is sent
    done: int = 0  # bytes received
    intact: bool = True  # no data digest failed

    @property
    def data(self) -> memoryview:
        """What the host sent."""
        return self.buffer[: self.length]


@dataclass(slots=True)
class Landing:
    """The payload of an H2CData PDU on its way."""

    transfer: Transfer
    length: int  # bytes
    rest: memoryview  # where the bytes that follow go, digest included


class Transfers:
    """Of one connection. Memory is granted up to PENDING_BYTES at once; what is over that waits for it."""

    __slots__ = ("_by_ttag", "_granted", "_lay", "_next_ttag", "_terms", "_ungranted", "landing")

    def __init__(self, terms: Terms, lay: Callable[[bytes], None]) -> None:
        """`lay` sends a PDU."""
        self.landing: Landing | None = None
        self._terms = terms
        self._lay = lay
        self._by_ttag: dict[int, Transfer] = {}
        self._ungranted: deque[Transfer] = deque()
        self._granted = 0  # bytes
        self._next_ttag = 0

    def __len__(self) -> int:
        return len(self._by_ttag)

    def request(self, sqe: Sqe) -> None:
        """Asks for the data of a command: `sqe.sgl_length` bytes, at most TRANSFER_MAX."""
        while self._next_ttag in self._by_ttag:
            self._next_ttag = (self._next_ttag + 1) % 0xFFFF
        transfer = Transfer(sqe, self._next_ttag, sqe.sgl_length)
        self._next_ttag = (self._next_ttag + 1) % 0xFFFF
        self._by_ttag[transfer.ttag] = transfer
        self._ungranted.append(transfer)
        self._grant()

    def release(self, length: int) -> None:
        """The `length` bytes of a transfer that had landed are no longer needed."""
        self._granted -= length
        self._grant()

    def clear(self) -> None:
        """Nothing more will come."""
        self._by_ttag.clear()
        self._ungranted.clear()
        self.landing = None

    def _grant(self) -> None:
        """Sends R2Ts as far as memory allows."""
        terms = self._terms
        while self._ungranted and self._granted + self._ungranted[0].length <= PENDING_BYTES:
            transfer = self._ungranted.popleft()
            self._granted += transfer.length
            transfer.buffer = memoryview(bytearray(transfer.length + pdu.DIGEST))
            header = pdu.DATA.pack(
                Type.R2T, terms.header_flags, pdu.DATA_HLEN, 0, pdu.DATA_HLEN + terms.header_digest,
                transfer.sqe.cid, transfer.ttag, 0, transfer.length,
            )  # fmt: skip
            self._lay(header + pdu.DIGEST_FIELD.pack(crc32c(header)) if terms.header_digest else header)

    def take(self, rx: bytearray, at: int, have: int, flags: int, pdo: int, plen: int) -> int:
        """Takes the H2CData PDU at `at` as far as it is here, up to `have`; returns its length so far.

        `landing` is on its way afterwards; call `landed` once its `rest` is empty.
        """
        _, _, _, _, _, cccid, ttag, offset, length = pdu.DATA.unpack_from(rx, at)
        transfer = self._by_ttag.get(ttag)
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
        self._terms.check_data_place(flags, pdu.DATA_HLEN, pdo, plen)
        digest = self._terms.data_digest
        if not length or plen != pdo + length + digest:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_PLEN, f"PLEN {plen} for {length} bytes of data")
        if bool(flags & Flag.LAST) != (offset + length == transfer.length):
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_FLAGS, "LAST_PDU disagrees with the R2T")
        whole = length + digest
        here = min(have - at - pdo, whole)
        transfer.buffer[offset : offset + here] = memoryview(rx)[at + pdo : at + pdo + here]
        self.landing = Landing(transfer, length, transfer.buffer[offset + here : offset + whole])
        return int(pdo + here)

    def landed(self, landing: Landing) -> Transfer | None:
        """The payload is here; returns its transfer if that is complete."""
        self.landing = None
        transfer, start = landing.transfer, landing.transfer.done
        transfer.done += landing.length
        if self._terms.data_digest:
            (stated,) = pdu.DIGEST_FIELD.unpack_from(transfer.buffer, transfer.done)
            transfer.intact &= stated == crc32c(transfer.buffer[start : transfer.done])
        if transfer.done < transfer.length:
            return None
        del self._by_ttag[transfer.ttag]
        return transfer
