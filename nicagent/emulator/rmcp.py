"""RMCP+ as a BMC speaks it: packets, the RAKP handshake and session protection (IPMI 2.0, section 13). No
I/O.

Cipher suites 3 (HMAC-SHA1) and 17 (HMAC-SHA256), both with AES-CBC-128: what clients of today ask for.
Weaker ones, IPMI 1.5 sessions and the null user do not exist here.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

RMCP_IPMI = b"\x06\x00\xff\x07"  # version 1.0, no RMCP ACK, class IPMI (13.1.3)
RMCP_ASF = 0x06
ASF_IANA = b"\x00\x00\x11\xbe"
AUTH_NONE, AUTH_RMCPPLUS = 0x00, 0x06
ADMINISTRATOR = 4
PACKET_LIMIT = 1024  # bytes; IPMI messages over LAN are far shorter

# Payload types (table 13-16).
IPMI, SOL, OPEN_REQUEST, OPEN_RESPONSE, RAKP1, RAKP2, RAKP3, RAKP4 = 0x00, 0x01, *range(0x10, 0x16)

# RMCP+ status codes (table 13-15).
OK, NO_RESOURCES, INVALID_SESSION, BAD_NAME, BAD_PRIVILEGE, BAD_INTEGRITY, NO_CIPHER_MATCH = (
    *(0x00, 0x01, 0x02),
    *(0x0D, 0x0A, 0x0F, 0x11),
)


class Garbage(ValueError):
    """Not a packet that a BMC answers; it is dropped without a word, as the specification wants."""


@dataclass(frozen=True)
class Suite:
    """A cipher suite: its number, its three algorithms (tables 13-17 to 13-19), hash, length of a check
    value.
    """

    number: int
    auth: int
    integrity: int
    confidentiality: int
    digest: Callable[..., object]
    check_length: int

    def mac(self, key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, self.digest).digest()  # type: ignore[arg-type]


SUITES = (
    Suite(3, 0x01, 0x01, 0x01, hashlib.sha1, 12),
    Suite(17, 0x03, 0x04, 0x01, hashlib.sha256, 16),
)


@dataclass(frozen=True)
class Message:
    """An IPMI message to the BMC, addresses and checksums stripped (13.8)."""

    netfn: int
    command: int
    data: bytes
    seq: int
    rq_addr: int
    rs_addr: int
    rq_lun: int = 0

    def response(self, code: int, data: bytes = b"") -> bytes:
        """The response message with both checksums."""
        head = bytes([self.rq_addr, (self.netfn | 1) << 2 | self.rq_lun])
        body = bytes([self.rs_addr, self.seq << 2, self.command, code]) + data
        return head + bytes([checksum(head)]) + body + bytes([checksum(body)])


def checksum(data: bytes) -> int:
    """Two's complement of the sum of all bytes (13.8)."""
    return -sum(data) & 0xFF


def parse_message(data: bytes) -> Message:
    """An IPMI request. Raises Garbage on a short one or a wrong checksum."""
    if len(data) < 7 or checksum(data[:2]) != data[2] or checksum(data[3:-1]) != data[-1]:
        raise Garbage("not an IPMI message")
    return Message(
        netfn=data[1] >> 2,
        command=data[5],
        data=bytes(data[6:-1]),
        seq=data[4] >> 2,
        rq_addr=data[3],
        rs_addr=data[0],
        rq_lun=data[4] & 3,
    )


@dataclass(frozen=True)
class Packet:
    """A packet as it came: IPMI 1.5 without a session, or RMCP+. `sealed` covers what the check value
    covers.
    """

    auth: int
    payload_type: int
    encrypted: bool
    authenticated: bool
    session: int
    seq: int
    payload: bytes
    sealed: bytes = b""
    trailer: bytes = b""


def parse_packet(data: bytes) -> Packet:
    """Take a UDP datagram apart. Raises Garbage on anything that is not IPMI over RMCP."""
    if not 14 <= len(data) <= PACKET_LIMIT or data[:2] != b"\x06\x00" or data[3] != 0x07:
        raise Garbage("not RMCP")
    if data[4] == AUTH_NONE:
        seq, session, length = struct.unpack_from("<IIB", data, 5)
        payload = data[14 : 14 + length]
        if session != 0 or len(payload) != length:
            raise Garbage("an IPMI 1.5 session")
        return Packet(AUTH_NONE, IPMI, False, False, 0, seq, payload)
    if data[4] != AUTH_RMCPPLUS or len(data) < 16:
        raise Garbage("an authentication type of IPMI 1.5")
    kind, session, seq, length = struct.unpack_from("<BIIH", data, 5)
    payload, trailer = data[16 : 16 + length], data[16 + length :]
    if len(payload) != length:
        raise Garbage("a truncated payload")
    return Packet(
        auth=AUTH_RMCPPLUS,
        payload_type=kind & 0x3F,
        encrypted=bool(kind & 0x80),
        authenticated=bool(kind & 0x40),
        session=session,
        seq=seq,
        payload=payload,
        sealed=data[4:],
        trailer=trailer,
    )


def sessionless(payload: bytes) -> bytes:
    """An IPMI 1.5 packet outside any session."""
    return RMCP_IPMI + struct.pack("<BIIB", AUTH_NONE, 0, 0, len(payload)) + payload


def setup(kind: int, payload: bytes) -> bytes:
    """An RMCP+ packet of session set-up: neither protected nor numbered."""
    return RMCP_IPMI + struct.pack("<BBIIH", AUTH_RMCPPLUS, kind, 0, 0, len(payload)) + payload


def pong(ping: bytes) -> bytes | None:
    """The answer to an RMCP presence ping (13.2.3), or None if it is not one."""
    if len(ping) < 12 or ping[0] != 0x06 or ping[3] != RMCP_ASF or ping[4:9] != ASF_IANA + b"\x80":
        return None
    body = ASF_IANA + b"\x00\x00\x00\x00" + b"\x81\x00" + bytes(6)
    return bytes([0x06, 0x00, 0xFF, RMCP_ASF]) + ASF_IANA + bytes([0x40, ping[9], 0x00, len(body)]) + body


def offered_suite(payload: bytes) -> Suite | None:
    """The suite that an Open Session Request asks for (13.17), or None when we do not have it."""
    if len(payload) != 32:
        raise Garbage("not an open session request")
    wanted = (payload[12], payload[20], payload[28])
    return next((s for s in SUITES if (s.auth, s.integrity, s.confidentiality) == wanted), None)


def open_refused(payload: bytes, status: int) -> bytes:
    """RMCP+ Open Session Response with an error (13.18)."""
    return setup(OPEN_RESPONSE, bytes([payload[0], status, 0, 0]) + payload[4:8])


@dataclass
class Session:
    """One client's session at the BMC, from Open Session Request on."""

    suite: Suite
    client_id: bytes  # the remote console's session ID, SIDM
    number: int  # ours, SIDC
    guid: bytes
    peer: object
    active: bool = False
    privilege: int = 0
    limit: int = ADMINISTRATOR
    last_used: float = 0.0
    last_request: tuple[int, int, int, bytes] | None = None
    last_response: bytes = b""
    _rm: bytes = b""
    _rc: bytes = field(default_factory=lambda: os.urandom(16))
    _role_and_name: bytes = b""
    _kuid: bytes = b""
    _sik: bytes = b""
    _k1: bytes = b""
    _k2: bytes = b""
    _sent: int = 0

    @property
    def own_id(self) -> bytes:
        return struct.pack("<I", self.number)

    def opened(self, payload: bytes) -> bytes:
        """RMCP+ Open Session Response (13.18)."""
        suite = self.suite
        body = bytes([payload[0], OK, ADMINISTRATOR, 0]) + self.client_id + self.own_id
        for kind, algorithm in enumerate((suite.auth, suite.integrity, suite.confidentiality)):
            body += bytes([kind, 0, 0, 8, algorithm, 0, 0, 0])
        return setup(OPEN_RESPONSE, body)

    def rakp1(self, payload: bytes, passwords: Mapping[bytes, bytes]) -> bytes:
        """RAKP Message 1 → 2 (13.20, 13.21)."""
        if len(payload) < 28 or len(payload) != 28 + payload[27]:
            raise Garbage("not RAKP message 1")
        tag, role, name = payload[0], payload[24], payload[28:]
        password = passwords.get(name)
        if password is None:
            return setup(RAKP2, bytes([tag, BAD_NAME, 0, 0]) + self.client_id)
        self._rm, self._kuid = payload[8:24], password
        self.limit = role & 0x0F or ADMINISTRATOR
        self._role_and_name = bytes([role, len(name)]) + name
        proof = self.suite.mac(
            self._kuid,
            self.client_id + self.own_id + self._rm + self._rc + self.guid + self._role_and_name,
        )
        return setup(RAKP2, bytes([tag, OK, 0, 0]) + self.client_id + self._rc + self.guid + proof)

    def rakp3(self, payload: bytes) -> bytes:
        """RAKP Message 3 → 4 (13.22, 13.23). The session is active afterwards, or useless."""
        if len(payload) < 8 or not self._rm or payload[1] != OK:
            raise Garbage("not RAKP message 3")
        expected = self.suite.mac(self._kuid, self._rc + self.client_id + self._role_and_name)
        if not hmac.compare_digest(expected, payload[8:]):
            return setup(RAKP4, bytes([payload[0], BAD_INTEGRITY, 0, 0]) + self.client_id)
        self._sik = self.suite.mac(self._kuid, self._rm + self._rc + self._role_and_name)
        self._k1 = self.suite.mac(self._sik, b"\x01" * 20)
        self._k2 = self.suite.mac(self._sik, b"\x02" * 20)
        self.active, self.privilege = True, 2  # every session starts as user (13.25)
        check = self.suite.mac(self._sik, self._rm + self.own_id + self.guid)[: self.suite.check_length]
        return setup(RAKP4, bytes([payload[0], OK, 0, 0]) + self.client_id + check)

    def unseal(self, packet: Packet) -> bytes:
        """The payload of a packet of this session. Raises Garbage when it is not protected as agreed."""
        length = self.suite.check_length
        if not self.active or not packet.authenticated or not packet.encrypted:
            raise Garbage("an unprotected packet in a session")
        if len(packet.trailer) < length + 2:
            raise Garbage("a packet without check value")
        sealed, check = packet.sealed[:-length], packet.sealed[-length:]
        if not hmac.compare_digest(self.suite.mac(self._k1, sealed)[:length], check):
            raise Garbage("a wrong check value")
        return self._decrypt(packet.payload)

    def seal(self, payload: bytes, kind: int = IPMI) -> bytes:
        """A protected packet to the client (13.6, 13.28.4, 13.29)."""
        self._sent += 1
        padding = bytes(range(1, 16 - len(payload) % 16))
        iv = os.urandom(16)
        aes = Cipher(algorithms.AES(self._k2[:16]), modes.CBC(iv)).encryptor()
        body = iv + aes.update(payload + padding + bytes([len(padding)])) + aes.finalize()
        head = struct.pack("<BB4sIH", AUTH_RMCPPLUS, kind | 0xC0, self.client_id, self._sent, len(body))
        pad = -(len(head) + len(body) + 2) % 4
        sealed = head + body + b"\xff" * pad + bytes([pad, 0x07])
        return RMCP_IPMI + sealed + self.suite.mac(self._k1, sealed)[: self.suite.check_length]

    def _decrypt(self, data: bytes) -> bytes:
        if len(data) < 32 or len(data) % 16:
            raise Garbage("a ciphertext of odd length")
        aes = Cipher(algorithms.AES(self._k2[:16]), modes.CBC(data[:16])).decryptor()
        clear = aes.update(data[16:]) + aes.finalize()
        padding = clear[-1]
        if padding > 15:
            raise Garbage("wrong padding")
        return bytes(clear[: len(clear) - 1 - padding])
