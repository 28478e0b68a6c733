"""The host's side of DH-HMAC-CHAP for tests, each message as bytes; it can break every rule on purpose.

Written from NVM Express base 2.0, section 8.13.5, apart from the target's own; that Linux agrees with both is
what test_nvmetcp_chap_guest shows.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
import zlib
from dataclasses import dataclass

from initiator import FABRICS, Completion, Connection
from target_process import HOST, NQN

ATR = 1 << 17
AUTH_REQUIRED = 0x191 | 0x4000
SHA256, SHA384, SHA512 = 1, 2, 3
NULL, FFDHE2048, FFDHE3072, FFDHE4096 = 0, 1, 2, 3
NAMES = {SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}
SIZES = {SHA256: 32, SHA384: 48, SHA512: 64}
SECURITY = 0xE9010100
# RFC 7919, appendix A.1, as `openssl genpkey -genparam -algorithm DH -pkeyopt group:ffdhe2048` tells it.
P2048 = int(
    "FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695A9E13641146433FBCC939DCE249B3EF9"
    "7D2FE363630C75D8F681B202AEC4617AD3DF1ED5D5FD65612433F51F5F066ED0856365553DED1AF3B557135E7F57C935"
    "984F0C70E0E68B77E2A689DAF3EFE8721DF158A136ADE73530ACCA4F483A797ABC0AB182B324FB61D108A94BB2C8E3FB"
    "B96ADAB760D7F4681D4F42A3DE394DF4AE56EDE76372BB190B07A7C8EE0A6D709E02FCE1CDF7E2ECC03404CD28342F61"
    "9172FE9CE98583FF8E4F1232EEF28183C3FE3B1B4C6FAD733BB5FCBC2EC22005C58EF1837D1683B2C6F34A26C1B2EFFA"
    "886B423861285C97FFFFFFFFFFFFFFFF",
    16,
)


def secret(seed: int, size: int = 32, transform: int = 0) -> str:
    """A secret's representation."""
    raw = bytes((seed + at * 7) % 256 for at in range(size))
    return f"DHHC-1:{transform:02d}:{base64.b64encode(raw + struct.pack('<I', zlib.crc32(raw))).decode()}:"


def transformed(text: str, nqn: str) -> bytes:
    """The key behind a representation, for `nqn`."""
    _, transform, coded, _ = text.split(":")
    key = base64.b64decode(coded)[:-4]
    if transform == "00":
        return key
    return hmac.digest(key, nqn.encode() + b"NVMe-over-Fabrics", NAMES[int(transform)])


def send(
    connection: Connection, message: bytes, *, length: int | None = None, security: int = SECURITY
) -> Completion:
    words = (security, len(message) if length is None else length)
    return connection.fabrics(5, words, message)


def receive(connection: Connection, length: int = 4096) -> Completion:
    return connection.command(FABRICS, nsid=6, cdw=(SECURITY, length), want=length)


def negotiate(
    hashes: tuple[int, ...] = (SHA256, SHA384, SHA512),
    groups: tuple[int, ...] = (NULL, FFDHE2048, FFDHE3072, FFDHE4096, 4, 5),
    *,
    tid: int = 7,
    concatenation: int = 0,
    protocol: int = 1,
) -> bytes:
    lists = bytes(hashes).ljust(30, b"\0") + bytes(groups).ljust(30, b"\0")
    descriptor = bytes([protocol, 0, len(hashes), len(groups)]) + lists
    return struct.pack("<BBHHBB", 0, 0, 0, tid, concatenation, 1) + descriptor


@dataclass
class Challenge:
    """What the controller asks."""

    tid: int
    hash: int
    group: int
    sequence: int
    value: bytes
    public: bytes

    @classmethod
    def of(cls, data: bytes) -> Challenge:
        kind, message, tid, size, hash_, group, public, sequence = struct.unpack_from("<BBxxHBxBBHI", data)
        assert (kind, message) == (1, 1), f"not AUTH_Challenge: {data[:16].hex()}"
        assert size == SIZES[hash_] and sequence, "HL is the hash's, S1 is never zero"
        end = 16 + size
        assert not any(data[end + public :]), "nothing behind the message"
        return cls(tid, hash_, group, sequence, data[16:end], data[end : end + public])


def failure(data: bytes) -> tuple[int, int, int]:
    """T_ID, reason and explanation of AUTH_Failure1."""
    kind, message, tid, reason, explanation = struct.unpack_from("<BBxxHBB", data)
    assert (kind, message) == (0, 0xF1), f"not AUTH_Failure1: {data[:16].hex()}"
    return tid, reason, explanation


@dataclass
class Prover:
    """A host that has a key, and maybe believes nobody without a proof."""

    key: str
    controller_key: str = ""
    hostnqn: str = HOST
    subnqn: str = NQN
    exponent: int = 0x1234_5678_9ABC_DEF0 << 160 | 1
    counter: bytes = bytes(range(64))

    def reply(self, asked: Challenge) -> bytes:
        """AUTH_Reply."""
        size = SIZES[asked.hash]
        public, self.shared = b"", b""
        if asked.group:
            assert asked.group == FFDHE2048, "the one group this host can"
            public = pow(2, self.exponent, P2048).to_bytes(256, "big")
            self.shared = pow(int.from_bytes(asked.public, "big"), self.exponent, P2048).to_bytes(256, "big")
        proof = self._response(self.key, self.hostnqn, asked, asked.value, asked.sequence, b"HostHost")
        self.expected = b""
        sequence, wanted = 9, bool(self.controller_key)
        if self.controller_key:
            theirs = self.counter[:size]
            self.expected = self._response(
                self.controller_key, self.subnqn, asked, theirs, sequence, b"Controller"
            )
        head = struct.pack("<BBxxHBxBxHI", 1, 2, asked.tid, size, wanted, len(public), sequence)
        return head + proof + self.counter[:size] + public

    def _response(
        self, key: str, owner: str, asked: Challenge, value: bytes, sequence: int, role: bytes
    ) -> bytes:
        name = NAMES[asked.hash]
        if self.shared:
            value = hmac.digest(hashlib.new(name, self.shared).digest(), value, name)
        names = (self.hostnqn, self.subnqn) if role == b"HostHost" else (self.subnqn, self.hostnqn)
        said = value + struct.pack("<IHB", sequence, asked.tid, 0) + role
        said += names[0].encode() + b"\0" + names[1].encode()
        return hmac.digest(transformed(key, owner), said, name)

    def login(self, connection: Connection, offer: bytes | None = None) -> Challenge:
        """The whole exchange. Asserts that it succeeds; returns what was asked."""
        assert send(connection, offer or negotiate()).status == 0
        asked = Challenge.of(receive(connection).data)
        assert send(connection, self.reply(asked)).status == 0
        data = receive(connection).data
        kind, message, tid, size, proved = struct.unpack_from("<BBxxHBxB", data)
        assert (kind, message) == (1, 3), f"not AUTH_Success1: {data[:16].hex()}"
        assert tid == asked.tid and size == SIZES[asked.hash]
        assert bool(proved) == bool(self.controller_key), "the controller proves itself when it is asked to"
        if self.controller_key:
            assert data[16 : 16 + size] == self.expected, "the controller's proof"
            assert send(connection, struct.pack("<BBxxH10x", 1, 4, tid)).status == 0
        return asked
