"""A host for tests: speaks NVMe/TCP over a plain socket, and can break every rule on purpose.

Written from NVMe/TCP transport 1.0 and NVMe-oF 1.1; shares only the digest's C library with the target.
"""

from __future__ import annotations

import itertools
import socket
import struct
from dataclasses import dataclass, field

import google_crc32c

ICREQ, ICRESP, H2C_TERM, C2H_TERM, CAPSULE, RESPONSE, H2C_DATA, C2H_DATA, R2T = 0, 1, 2, 3, 4, 5, 6, 7, 9
HDGST, DDGST, LAST, SUCCESS = 1, 2, 4, 8
DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"
TIMEOUT = 20.0  # seconds for any answer
DNR = 0x4000

FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM = 0x00, 0x01, 0x02, 0x05, 0x08, 0x09
GET_LOG, IDENTIFY, ABORT, SET_FEATURES, GET_FEATURES, AER, KEEP_ALIVE = (
    0x02,
    0x06,
    0x08,
    0x09,
    0x0A,
    0x0C,
    0x18,
)
FABRICS = 0x7F


def crc(data: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(bytes(data)))


class Closed(Exception):
    """The target closed the connection."""


@dataclass
class Pdu:
    """A PDU from the target, digests checked and removed."""

    kind: int
    flags: int
    header: bytes
    data: bytes


@dataclass
class Completion:
    """A completed command."""

    cid: int
    status: int  # without the phase bit, DNR included
    result: int
    sqhd: int
    data: bytes = b""


def sqe(
    opcode: int,
    cid: int,
    *,
    nsid: int = 0,
    length: int = 0,
    address: int = 0,
    sgl: int = 0x5A,
    cdw: tuple[int, ...] = (),
    flags: int = 0x40,
) -> bytes:
    words = (*cdw, 0, 0, 0, 0, 0, 0)[:6]
    return struct.pack("<BBHI16xQI3xB6I", opcode, flags, cid, nsid, address, length, sgl, *words)


@dataclass
class Options:
    """How the host wants to talk."""

    header_digest: bool = False
    data_digest: bool = False
    hpda: int = 0
    sq_flow_control: bool = True
    kato: int = 0  # milliseconds
    in_capsule: int = 8192  # bytes of a write up to which its data goes into the capsule
    piece: int = 1 << 20  # bytes of an H2CData PDU


class Connection:
    """One TCP connection. `options` None leaves it without ICReq."""

    def __init__(self, port: int, options: Options | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.options = options or Options()
        self.header_digest = self.data_digest = False
        self.maxh2cdata = 0
        self._cids = itertools.count(1)
        self._parked: dict[int, Completion] = {}
        self._data: dict[int, bytearray] = {}
        self._writes: dict[int, bytes] = {}
        if options is not None:
            self.initialize()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # PDUs ----------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        o = self.options
        digests = (1 if o.header_digest else 0) | (2 if o.data_digest else 0)
        self.send(struct.pack("<BBBBIHBBI112x", ICREQ, 0, 128, 0, 128, 0, o.hpda, digests, 0))
        answer = self.receive()
        assert answer.kind == ICRESP, f"ICReq was answered by PDU type {answer.kind}"
        _, cpda, agreed, self.maxh2cdata = struct.unpack_from("<HBBI", answer.header, 8)
        assert agreed == digests, "the target must take the digests it can do"
        assert cpda == 0
        self.header_digest, self.data_digest = o.header_digest, o.data_digest

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def pdu(self, kind: int, header: bytes, data: bytes = b"", *, flags: int = 0) -> bytes:
        """A correct PDU around the type-specific `header` (without the common 8 bytes)."""
        hlen = 8 + len(header)
        start = hlen + (4 if self.header_digest else 0)
        plen = start + len(data) + (4 if self.data_digest and data else 0)
        flags |= (HDGST if self.header_digest else 0) | (DDGST if self.data_digest and data else 0)
        head = struct.pack("<BBBBI", kind, flags, hlen, start if data else 0, plen) + header
        raw = head + (crc(head) if self.header_digest else b"") + data
        return raw + (crc(data) if self.data_digest and data else b"")

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                got = self.socket.recv(count - len(parts))
            except ConnectionError:
                got = b""
            if not got:
                raise Closed
            parts += got
        return bytes(parts)

    def receive(self) -> Pdu:
        """The next PDU. Raises Closed at the end of the connection, TimeoutError when nothing comes."""
        common = self._exactly(8)
        kind, flags, hlen, pdo, plen = struct.unpack("<BBBBI", common)
        assert plen < 1 << 22 and hlen <= plen, f"nonsense from the target: {common.hex()}"
        raw = common + self._exactly(plen - 8)
        header, end = raw[:hlen], plen
        assert bool(flags & HDGST) == (self.header_digest and kind not in (ICRESP, C2H_TERM)), "HDGSTF"
        if flags & HDGST:
            assert raw[hlen : hlen + 4] == crc(header), "the target's header digest is wrong"
        if kind == C2H_TERM:
            return Pdu(kind, flags, header, raw[hlen:])
        if not pdo:
            return Pdu(kind, flags, header, b"")
        assert pdo % ((self.options.hpda + 1) * 4) == 0, f"PDO {pdo} is not aligned to HPDA"
        assert bool(flags & DDGST) == self.data_digest, "DDGSTF"
        if flags & DDGST:
            end -= 4
            assert raw[end:] == crc(raw[pdo:end]), "the target's data digest is wrong"
        return Pdu(kind, flags, header, raw[pdo:end])

    def termination(self) -> tuple[int, int, bytes]:
        """FES, FEI and the quoted header of the termination request that must come now, and then the end."""
        answer = self.receive()
        while answer.kind != C2H_TERM:
            answer = self.receive()
        fes, fei = struct.unpack_from("<HI", answer.header, 8)
        self.socket.shutdown(socket.SHUT_WR)
        try:
            self.receive()
        except Closed:
            return fes, fei, answer.data
        raise AssertionError("the target goes on after a termination request")

    # Commands ------------------------------------------------------------------------------------------

    def submit(
        self,
        opcode: int,
        *,
        nsid: int = 0,
        cdw: tuple[int, ...] = (),
        want: int = 0,
        data: bytes = b"",
        in_capsule: bool | None = None,
        cid: int | None = None,
    ) -> int:
        """Sends a command that wants `want` bytes or brings `data`; returns its CID."""
        cid = next(self._cids) % 0x8000 if cid is None else cid
        if not data:
            entry = sqe(opcode, cid, nsid=nsid, cdw=cdw, length=want)
            self.send(self.pdu(CAPSULE, entry))
        elif in_capsule if in_capsule is not None else len(data) <= self.options.in_capsule:
            entry = sqe(opcode, cid, nsid=nsid, cdw=cdw, length=len(data), sgl=0x01)
            self.send(self.pdu(CAPSULE, entry, data))
        else:
            self._writes[cid] = data
            self.send(self.pdu(CAPSULE, sqe(opcode, cid, nsid=nsid, cdw=cdw, length=len(data))))
        return cid

    def complete(self, cid: int) -> Completion:
        """Serves the connection until `cid` is complete."""
        while cid not in self._parked:
            self.step()
        return self._parked.pop(cid)

    def step(self) -> Pdu:
        """Takes one PDU and does what a host does with it."""
        pdu = self.receive()
        if pdu.kind == RESPONSE:
            result, sqhd, _, cid, status = struct.unpack_from("<QHHHH", pdu.header, 8)
            data = bytes(self._data.pop(cid, b""))
            self._parked[cid] = Completion(cid, status >> 1, result, sqhd, data)
        elif pdu.kind == C2H_DATA:
            cid, _, offset, length = struct.unpack_from("<HHII", pdu.header, 8)
            collected = self._data.setdefault(cid, bytearray())
            assert offset == len(collected) and length == len(pdu.data), "C2HData out of order"
            collected += pdu.data
            if pdu.flags & SUCCESS:
                assert pdu.flags & LAST, "SUCCESS without LAST_PDU"
                self._parked[cid] = Completion(cid, 0, 0, -1, bytes(self._data.pop(cid)))
        elif pdu.kind == R2T:
            cid, ttag, offset, length = struct.unpack_from("<HHII", pdu.header, 8)
            self.answer_r2t(cid, ttag, offset, length)
        else:
            raise AssertionError(f"unexpected PDU type {pdu.kind}: {pdu.header.hex()} {pdu.data.hex()}")
        return pdu

    def answer_r2t(self, cid: int, ttag: int, offset: int, length: int) -> None:
        data = self._writes[cid]
        step = min(self.options.piece, self.maxh2cdata)
        for at in range(offset, offset + length, step):
            part = data[at : min(at + step, offset + length)]
            last = LAST if at + len(part) == offset + length else 0
            self.send(self.pdu(H2C_DATA, struct.pack("<HHII4x", cid, ttag, at, len(part)), part, flags=last))

    def command(self, opcode: int, **how: object) -> Completion:
        return self.complete(self.submit(opcode, **how))  # type: ignore[arg-type]

    def fabrics(self, fctype: int, cdw: tuple[int, ...] = (), data: bytes = b"") -> Completion:
        return self.command(FABRICS, nsid=fctype, cdw=cdw, data=data)

    def connect(
        self,
        subnqn: str,
        hostnqn: str,
        *,
        qid: int = 0,
        cntlid: int = 0xFFFF,
        entries: int = 128,
        hostid: bytes = b"H" * 16,
        record_format: int = 0,
    ) -> Completion:
        data = hostid + struct.pack("<H", cntlid) + bytes(238)
        data += subnqn.encode().ljust(256, b"\0") + hostnqn.encode().ljust(256, b"\0") + bytes(256)
        attributes = 0 if self.options.sq_flow_control else 4
        words = (record_format | qid << 16, (entries - 1) & 0xFFFF | attributes << 16, self.options.kato)
        return self.fabrics(1, words, data)


@dataclass
class Host:
    """An association: admin queue, enabled, and `queues` I/O queues."""

    port: int
    subnqn: str
    hostnqn: str
    options: Options = field(default_factory=Options)
    queues: int = 1

    def __post_init__(self) -> None:
        self.admin = Connection(self.port, self.options)
        done = self.admin.connect(self.subnqn, self.hostnqn, entries=32)
        assert done.status == 0, f"Connect failed with status {done.status:#x}"
        self.cntlid = done.result & 0xFFFF
        self.enable()
        self.io = [self.open_queue(qid) for qid in range(1, self.queues + 1)]

    def open_queue(self, qid: int, *, entries: int = 128) -> Connection:
        queue = Connection(self.port, self.options)
        done = queue.connect(self.subnqn, self.hostnqn, qid=qid, cntlid=self.cntlid, entries=entries)
        assert done.status == 0, f"Connect of queue {qid} failed with status {done.status:#x}"
        return queue

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for connection in (*self.io, self.admin):
            connection.close()

    # Properties ----------------------------------------------------------------------------------------

    def property(self, offset: int, *, wide: bool = False) -> int:
        done = self.admin.fabrics(4, (int(wide), offset))
        assert done.status == 0, f"Property Get {offset:#x}: status {done.status:#x}"
        return done.result

    def set_property(self, offset: int, value: int) -> Completion:
        return self.admin.fabrics(0, (0, offset, value))

    def enable(self) -> None:
        assert self.set_property(0x14, 0x460001).status == 0
        assert self.property(0x1C) == 1, "CSTS.RDY after CC.EN"

    # Admin ---------------------------------------------------------------------------------------------

    def identify(self, cns: int, nsid: int = 0, *, csi: int = 0) -> Completion:
        return self.admin.command(IDENTIFY, nsid=nsid, cdw=(cns, csi << 24), want=4096)

    def log(self, page: int, length: int, *, offset: int = 0, retain: bool = False) -> Completion:
        dwords = length // 4 - 1
        words = (page | int(retain) << 15 | (dwords & 0xFFFF) << 16, dwords >> 16, offset)
        return self.admin.command(GET_LOG, nsid=0xFFFFFFFF, cdw=words, want=length)

    def feature(self, fid: int, value: int | None = None) -> Completion:
        if value is None:
            return self.admin.command(GET_FEATURES, cdw=(fid,))
        return self.admin.command(SET_FEATURES, cdw=(fid, value))

    # I/O, in bytes -------------------------------------------------------------------------------------

    def read(self, offset: int, length: int, *, nsid: int = 1, queue: int = 0, shift: int = 9) -> Completion:
        words = span(offset, length, shift)
        return self.io[queue].command(READ, nsid=nsid, cdw=words, want=length)

    def write(
        self,
        offset: int,
        data: bytes,
        *,
        nsid: int = 1,
        queue: int = 0,
        fua: bool = False,
        in_capsule: bool | None = None,
        shift: int = 9,
    ) -> Completion:
        words = span(offset, len(data), shift, int(fua) << 30)
        return self.io[queue].command(WRITE, nsid=nsid, cdw=words, data=data, in_capsule=in_capsule)

    def flush(self, *, nsid: int = 1) -> Completion:
        return self.io[0].command(FLUSH, nsid=nsid)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False, nsid: int = 1) -> Completion:
        return self.io[0].command(WRITE_ZEROES, nsid=nsid, cdw=span(offset, length, 9, int(unmap) << 25))

    def deallocate(self, *ranges: tuple[int, int], nsid: int = 1) -> Completion:
        data = b"".join(struct.pack("<IIQ", 0, length >> 9, offset >> 9) for offset, length in ranges)
        return self.io[0].command(DSM, nsid=nsid, cdw=(len(ranges) - 1, 4), data=data)


def span(offset: int, length: int, shift: int = 9, extra: int = 0) -> tuple[int, int, int]:
    """CDW10–12 of a command over bytes `offset .. offset + length`."""
    first, count = offset >> shift, (length >> shift) - 1
    return first & 0xFFFF_FFFF, first >> 32, count | extra
