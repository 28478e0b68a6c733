"""NVMe/TCP PDUs: layouts, and the table of which is legal when (NVMe/TCP transport 1.0, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import NamedTuple


class Type(IntEnum):
    """PDU-Type. Even numbers come from the host, odd ones from the controller."""

    ICREQ = 0x00
    ICRESP = 0x01
    H2C_TERM = 0x02
    C2H_TERM = 0x03
    CAPSULE_CMD = 0x04
    CAPSULE_RESP = 0x05
    H2C_DATA = 0x06
    C2H_DATA = 0x07
    R2T = 0x09


class Flag(IntEnum):
    """Bits of FLAGS in the common header. Plain integers: an IntFlag costs a microsecond a PDU."""

    HDGST = 0x01
    DDGST = 0x02
    LAST = 0x04  # H2CData, C2HData
    SUCCESS = 0x08  # C2HData: no response capsule follows


class Fes(IntEnum):
    """Fatal Error Status of a termination request sent by a controller (figure 31)."""

    INVALID_HEADER = 0x01  # FEI: byte offset of the field
    SEQUENCE = 0x02
    HEADER_DIGEST = 0x03  # FEI: the digest received
    OUT_OF_RANGE = 0x04
    LIMIT_EXCEEDED = 0x05
    UNSUPPORTED = 0x06  # FEI: byte offset of the field


class Phase(IntEnum):
    """Life of one connection; it only moves forward."""

    INIT = 0  # waits for ICReq
    CONNECT = 1  # waits for the Connect command
    LIVE = 2
    CLOSING = 3  # a termination request is out, or the peer is gone: input is discarded


@dataclass(frozen=True)
class Rule:
    """What a PDU from the host must look like."""

    hlen: int  # bytes
    phases: frozenset[Phase]
    plen_max: int  # bytes, without in-capsule data and H2CData, whose limits are negotiated


DIGEST = 4  # bytes
CAPSULE_HLEN = 72
RESPONSE_LEN = 24
DATA_HLEN = 24
IC_LEN = 128
TERM_HLEN = 24
TERM_DATA_MAX = 128  # a termination request is at most 152 bytes (section 3.6.2.2)
PAD_MAX = 128  # HPDA and CPDA are 0..31, in dwords

RULES: dict[int, Rule] = {
    Type.ICREQ: Rule(IC_LEN, frozenset({Phase.INIT}), IC_LEN),
    Type.H2C_TERM: Rule(
        TERM_HLEN, frozenset({Phase.INIT, Phase.CONNECT, Phase.LIVE}), TERM_HLEN + TERM_DATA_MAX
    ),
    Type.CAPSULE_CMD: Rule(CAPSULE_HLEN, frozenset({Phase.CONNECT, Phase.LIVE}), 0),
    Type.H2C_DATA: Rule(DATA_HLEN, frozenset({Phase.CONNECT, Phase.LIVE}), 0),
}

# Offsets of fields, as FEI names them.
AT_TYPE, AT_FLAGS, AT_HLEN, AT_PDO, AT_PLEN = 0, 1, 2, 3, 4
AT_PFV, AT_HPDA, AT_DGST = 8, 10, 11
AT_CCCID, AT_TTAG, AT_DATAO, AT_DATAL = 8, 10, 12, 16

COMMON = Struct("<BBBBI")  # type, flags, hlen, pdo, plen
ICREQ = Struct("<HBBI")  # at 8: pfv, hpda, dgst, maxr2t
ICRESP = Struct("<BBBBIHBBI112x")  # common header, pfv, cpda, dgst, maxh2cdata
TERM = Struct("<BBBBIHI10x")  # common header, fes, fei
DATA = Struct("<BBBBIHHII4x")  # common header, cccid, ttag, offset, length: H2CData, C2HData and R2T alike
RESPONSE = Struct("<BBBBIQHHHH")  # common header, result, sqhd, sqid, cid, status << 1
DIGEST_FIELD = Struct("<I")
SQE = Struct("<BBHI16xQI3xBIIIIII")


class Sqe(NamedTuple):
    """A submission queue entry, 64 bytes (base 1.4, figure 104)."""

    opcode: int
    flags: int
    cid: int
    nsid: int
    sgl_address: int
    sgl_length: int
    sgl_type: int  # descriptor type << 4 | subtype
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int


SGL_IN_CAPSULE = 0x01  # data block, offset into the capsule
SGL_TRANSPORT = 0x5A  # transport data block: R2T, or data to the host

DIGEST_HEADER = 0x01  # bits of DGST in ICReq and ICResp
DIGEST_DATA = 0x02


class ProtocolError(Exception):
    """The peer broke the transport: the connection ends with this termination request."""

    def __init__(self, fes: Fes, fei: int, reason: str) -> None:
        super().__init__(reason)
        self.fes = fes
        self.fei = fei


def termination(error: ProtocolError, header: bytes) -> bytes:
    """C2HTermReq for a PDU whose header is `header` (section 3.6.2.4)."""
    quoted = header[:TERM_DATA_MAX]
    plen = TERM_HLEN + len(quoted)
    return TERM.pack(Type.C2H_TERM, 0, TERM_HLEN, 0, plen, error.fes, error.fei & 0xFFFF_FFFF) + quoted
