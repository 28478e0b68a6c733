"""The arithmetic of DH-HMAC-CHAP: secrets, responses, and Diffie-Hellman groups. No I/O, no state.

Source: NVM Express base 2.0, section 8.13.5 (DH-HMAC-CHAP); RFC 7919.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache

SECRET_SIZES = (32, 48, 64)  # bytes
SECRET_TEXT_MAX = 128  # characters; the longest secret has 104
CRC = 4  # bytes

_FORM = re.compile(r"DHHC-1:(0[0-3]):([A-Za-z0-9+/]+={0,2}):")
_FORM_WORDS = "is no DH-HMAC-CHAP secret: it looks like DHHC-1:00:…: (nvme gen-dhchap-key makes one)"


class Hash(IntEnum):
    """Hash functions by their identifier."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3

    @property
    def digest(self) -> str:
        """Its name in hashlib."""
        return self.name.lower()

    @property
    def size(self) -> int:
        """Of its digest, in bytes."""
        return SECRET_SIZES[self - 1]


class Group(IntEnum):
    """Diffie-Hellman groups by their identifier.

    Larger ones exist: 6144 and 8192 bits cost 50 to 125 ms for each of the two powers, and every other queue
    of the target would wait for that.
    """

    NULL = 0
    FFDHE2048 = 1
    FFDHE3072 = 2
    FFDHE4096 = 3

    @property
    def size(self) -> int:
        """Of a public value, in bytes; 0 for the null group."""
        return _GROUPS[self].bits // 8 if self else 0


@dataclass(frozen=True)
class _Numbers:
    """Of a group of RFC 7919, appendix A. `exponent` bits are as strong as the group is."""

    bits: int
    offset: int
    exponent: int


_GROUPS = {
    Group.FFDHE2048: _Numbers(2048, 560316, 225),
    Group.FFDHE3072: _Numbers(3072, 2625351, 275),
    Group.FFDHE4096: _Numbers(4096, 5736041, 325),
}


@cache
def prime(group: Group) -> int:
    """p = 2^b - 2^(b-64) + ([2^(b-130) e] + X) 2^64 - 1, as RFC 7919 defines it."""
    numbers = _GROUPS[group]
    b = numbers.bits
    return (1 << b) - (1 << b - 64) + (_e(b - 130) + numbers.offset << 64) - 1


def _e(bits: int) -> int:
    """The whole part of 2^bits e."""
    guard = 64
    total = term = 1 << bits + guard
    divisor = 1
    while term:
        term //= divisor
        total += term
        divisor += 1
    return total >> guard


class Exchange:
    """One side of a Diffie-Hellman exchange. Making one costs one power (3 to 20 ms), `shared` another."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._exponent = secrets.randbits(_GROUPS[group].exponent) | 1 << _GROUPS[group].exponent - 1
        self.public = pow(2, self._exponent, prime(group)).to_bytes(group.size, "big")

    def shared(self, peer: bytes) -> bytes:
        """The session's secret, as long as the prime. Raises ValueError for a public value that is none."""
        p, value = prime(self._group), int.from_bytes(peer, "big")
        if len(peer) != self._group.size or not 1 < value < p - 1:
            raise ValueError("no public value of the group")
        return pow(value, self._exponent, p).to_bytes(self._group.size, "big")


@dataclass(frozen=True)
class Key:
    """A secret. `transform` is the hash it goes through together with its owner's NQN, None for none."""

    secret: bytes = field(repr=False)
    transform: Hash | None

    def of(self, nqn: str) -> bytes:
        """The key that answers challenges for `nqn`."""
        if self.transform is None:
            return self.secret
        return hmac.digest(self.secret, nqn.encode() + b"NVMe-over-Fabrics", self.transform.digest)


def parse_key(text: str) -> Key:
    """A secret from its representation. Raises ValueError with words that do not repeat it."""
    form = _FORM.fullmatch(text) if len(text) <= SECRET_TEXT_MAX else None
    if form is None:
        raise ValueError(_FORM_WORDS)
    try:
        raw = base64.b64decode(form[2], validate=True)
    except binascii.Error:
        raise ValueError("is no DH-HMAC-CHAP secret: what is between its colons is no base64") from None
    secret, crc = raw[:-CRC], raw[-CRC:]
    if len(secret) not in SECRET_SIZES:
        raise ValueError("is no DH-HMAC-CHAP secret: it has 32, 48 or 64 bytes and a CRC-32 behind them")
    if zlib.crc32(secret).to_bytes(CRC, "little") != crc:
        raise ValueError("is a DH-HMAC-CHAP secret with a wrong CRC-32: was it copied whole?")
    transform = Hash(int(form[1])) if form[1] != "00" else None
    if transform is not None and transform.size != len(secret):
        raise ValueError(
            f"is a DH-HMAC-CHAP secret of {len(secret)} bytes, but {transform.name} takes {transform.size}"
        )
    return Key(secret, transform)


def key_text(key: Key) -> str:
    """The representation of a secret."""
    coded = base64.b64encode(key.secret + zlib.crc32(key.secret).to_bytes(CRC, "little")).decode()
    return f"DHHC-1:{key.transform or 0:02d}:{coded}:"


@dataclass(frozen=True)
class Challenge:
    """What one side answers: its value, and the numbers of the transaction that go into the answer."""

    value: bytes
    sequence: int  # S1, S2
    transaction: int  # T_ID
    concatenation: int = 0  # SC_C


def augmented(hash_: Hash, shared: bytes, challenge: bytes) -> bytes:
    """A challenge tied to the session's secret: Ca = HMAC(H(g^xy mod p), C)."""
    return hmac.digest(hashlib.new(hash_.digest, shared).digest(), challenge, hash_.digest)


def host_response(hash_: Hash, key: bytes, challenge: Challenge, hostnqn: str, subnqn: str) -> bytes:
    """R1, the host's proof. `challenge.value` is augmented where the group is not null."""
    return _response(hash_, key, challenge, b"HostHost", hostnqn, subnqn)


def controller_response(hash_: Hash, key: bytes, challenge: Challenge, hostnqn: str, subnqn: str) -> bytes:
    """R2, the controller's proof."""
    return _response(hash_, key, challenge, b"Controller", subnqn, hostnqn)


def _response(hash_: Hash, key: bytes, challenge: Challenge, role: bytes, own: str, other: str) -> bytes:
    numbers = challenge.sequence.to_bytes(4, "little") + challenge.transaction.to_bytes(2, "little")
    numbers += bytes([challenge.concatenation])
    names = own.encode() + b"\0" + other.encode()
    return hmac.digest(key, challenge.value + numbers + role + names, hash_.digest)
