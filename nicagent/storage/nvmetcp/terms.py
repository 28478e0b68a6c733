"""What ICReq and ICResp agreed on, and whether a PDU keeps to it.

Source: NVMe/TCP transport 1.0, sections 3.1 (digests), 3.6.2.2 and 3.6.2.3 (ICReq, ICResp).
"""

from __future__ import annotations

from dataclasses import dataclass

from nicagent.storage.nvmetcp import pdu
from nicagent.storage.nvmetcp.crc import crc32c
from nicagent.storage.nvmetcp.limits import ADMIN_DATA_MAX, TRANSFER_MAX
from nicagent.storage.nvmetcp.pdu import Fes, Flag, Phase, ProtocolError, Type


@dataclass(slots=True)
class Terms:
    """Of one connection. Sizes in bytes; what answers are laid out by is computed once."""

    header_digest: int = 0  # 0 or 4
    data_digest: int = 0
    data_offset: int = pdu.DATA_HLEN  # PDO of C2HData: header, digest, padding to HPDA
    capsule_min: int = pdu.CAPSULE_HLEN
    capsule_max: int = pdu.CAPSULE_HLEN
    response_size: int = pdu.RESPONSE_LEN
    header_flags: int = 0  # of a PDU without data
    data_flags: int = 0  # of one with data

    def agree(self, rx: bytearray, at: int, pdo: int) -> bytes:
        """Takes the ICReq at `at`; returns the ICResp."""
        pfv, hpda, digests, _maxr2t = pdu.ICREQ.unpack_from(rx, at + 8)
        if pdo:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_PDO, f"PDO {pdo} in ICReq")
        if pfv:
            raise ProtocolError(Fes.UNSUPPORTED, pdu.AT_PFV, f"PDU format version {pfv}")
        if hpda > 31:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_HPDA, f"HPDA {hpda}")
        if digests & ~(pdu.DIGEST_HEADER | pdu.DIGEST_DATA):
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_DGST, f"DGST {digests:#x}")
        self.header_digest = pdu.DIGEST if digests & pdu.DIGEST_HEADER else 0
        self.data_digest = pdu.DIGEST if digests & pdu.DIGEST_DATA else 0
        align = (hpda + 1) * 4
        self.data_offset = -(-(pdu.DATA_HLEN + self.header_digest) // align) * align
        self.response_size = pdu.RESPONSE_LEN + self.header_digest
        self.header_flags = int(Flag.HDGST) if self.header_digest else 0
        self.data_flags = self.header_flags | (int(Flag.DDGST) if self.data_digest else 0)
        self.allow_in_capsule(ADMIN_DATA_MAX)
        return pdu.ICRESP.pack(Type.ICRESP, 0, pdu.IC_LEN, 0, pdu.IC_LEN, 0, 0, digests, TRANSFER_MAX)

    def allow_in_capsule(self, limit: int) -> None:
        """Takes command capsules with up to `limit` bytes of data."""
        self.capsule_min = pdu.CAPSULE_HLEN + self.header_digest
        self.capsule_max = self.capsule_min + pdu.PAD_MAX + limit + self.data_digest

    def check_common(self, phase: Phase, kind: int, hlen: int, plen: int) -> None:
        """Type, HLEN and PLEN of a common header, and whether its time is now."""
        rule = pdu.RULES.get(kind)
        if rule is None:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_TYPE, f"PDU type {kind:#x} is none of a host's")
        if phase not in rule.phases:
            raise ProtocolError(Fes.SEQUENCE, 0, f"PDU type {kind:#x} in phase {phase.name}")
        if hlen != rule.hlen:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_HLEN, f"HLEN {hlen} in PDU type {kind:#x}")
        if kind == Type.CAPSULE_CMD:
            least, most = self.capsule_min, self.capsule_max
        elif kind == Type.H2C_DATA:
            least = pdu.DATA_HLEN + self.header_digest
            most = least + pdu.PAD_MAX + TRANSFER_MAX + self.data_digest
        elif kind == Type.ICREQ:
            least = most = pdu.IC_LEN
        else:
            least, most = pdu.TERM_HLEN, rule.plen_max
        if not least <= plen <= most:
            # More data than was negotiated is a limit; anything else is a header that cannot be.
            fes = Fes.LIMIT_EXCEEDED if kind == Type.H2C_DATA and plen > most else Fes.INVALID_HEADER
            raise ProtocolError(fes, pdu.AT_PLEN, f"PLEN {plen} in PDU type {kind:#x}")

    def check_header(self, rx: bytearray, at: int, flags: int, hlen: int) -> None:
        """HDGSTF and the header digest of the PDU at `at`."""
        if flags & Flag.HDGST != self.header_flags:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_FLAGS, "HDGSTF differs from what ICResp agreed")
        if self.header_digest:
            (stated,) = pdu.DIGEST_FIELD.unpack_from(rx, at + hlen)
            if stated != crc32c(rx[at : at + hlen]):
                raise ProtocolError(Fes.HEADER_DIGEST, stated, "header digest differs")

    def check_data_place(self, flags: int, hlen: int, pdo: int, plen: int) -> None:
        """PDO and DDGSTF of a PDU that carries data. CPDA is 0: data is aligned to a dword."""
        least = hlen + self.header_digest
        if not least <= pdo <= least + pdu.PAD_MAX or pdo % 4 or pdo + self.data_digest > plen:
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_PDO, f"PDO {pdo}, PLEN {plen}")
        if bool(flags & Flag.DDGST) != bool(self.data_digest):
            raise ProtocolError(Fes.INVALID_HEADER, pdu.AT_FLAGS, "DDGSTF differs from what ICResp agreed")
