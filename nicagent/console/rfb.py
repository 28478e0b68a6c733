"""The opening of the remote framebuffer protocol (RFC 6143, section 7.1 to 7.3), from both ends.

What follows it is not looked into. A viewer's version is 3.3, 3.7 or 3.8; security is None (1) or VNC
authentication (2): a challenge of 16 bytes that is encrypted by DES under the password. That is weak, and it
is what every viewer knows; whoever can read along on the wire needs no password at all.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
import struct
import time
from dataclasses import dataclass, field

VERSION = b"RFB 003.008\n"
NONE, VNC = 1, 2  # security types
OK, FAILED = 0, 1  # security results
CHALLENGE = 16  # bytes
PASSWORD_LIMIT = 8  # bytes of a password that count
REASON_LIMIT = 4096  # bytes of a server's reason that are read
WRONG_PASSWORD_SECONDS = 1.0  # before a wrong password is told so: guessing takes its time


class RfbError(Exception):
    """The other end does not speak the protocol, or refuses; the sentence says what it did."""


class WrongPasswordError(RfbError):
    """A viewer that does not know the password, or one whose time is over."""


@dataclass(frozen=True)
class Password:
    """What a viewer must know. An empty one lets nobody in, and neither does one whose time is over."""

    text: str = field(repr=False)
    valid_to: float | None = None  # Unix seconds; None: for ever

    def accepts(self, challenge: bytes, response: bytes) -> bool:
        """Whether this is the answer to the challenge, now."""
        right = hmac.compare_digest(response, answer(self.text, challenge))
        return right and bool(self.text) and (self.valid_to is None or time.time() <= self.valid_to)


def answer(password: str, challenge: bytes) -> bytes:
    """The response of VNC authentication (RFC 6143, 7.2.2): DES in ECB, each byte of the key mirrored, as
    every implementation has it since the first (erratum 4951).
    """
    # Loaded here: an agent that asks nobody for a password does without these 7 MB.
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
    from cryptography.hazmat.primitives.ciphers import Cipher, modes

    key = password.encode()[:PASSWORD_LIMIT].ljust(PASSWORD_LIMIT, b"\0")
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    # Triple DES under one key three times over is DES. ECB is the protocol's, of a fresh random challenge.
    encryptor = Cipher(TripleDES(mirrored * 3), modes.ECB()).encryptor()  # noqa: S305
    return encryptor.update(challenge) + encryptor.finalize()


def minor_of(line: bytes) -> int:
    """The minor version that a viewer's answer means: 3, 7 or 8. Raises RfbError for what is none.

    Others than the three are to be taken for 3.3 (RFC 6143, 7.1.1); a newer one than was offered is ours.
    """
    found = re.fullmatch(rb"RFB (\d{3})\.(\d{3})\n", line)
    if found is None or int(found[1]) < 3:
        raise RfbError("it speaks no RFB")
    minor = int(found[2]) if int(found[1]) == 3 else 8
    return 8 if minor >= 8 else 7 if minor == 7 else 3


class Viewer:
    """The server's side of an opening: `admit`, then `let_in` or `turn_away`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._minor = 8
        self._tells = True  # whether a result is expected

    async def admit(self, password: Password | None) -> None:
        """Version and security, up to the result. Raises RfbError; a wrong password was told so by then."""
        self._writer.write(VERSION)
        self._minor = minor_of(await self._reader.readexactly(len(VERSION)))
        kind = NONE if password is None else VNC
        if self._minor == 3:
            self._writer.write(struct.pack(">I", kind))
        else:
            self._writer.write(bytes((1, kind)))
            chosen = (await self._reader.readexactly(1))[0]
            if chosen != kind:
                raise RfbError(f"it wants security type {chosen}, which was not offered")
        self._tells = self._minor == 8 or kind == VNC
        if password is not None:
            challenge = os.urandom(CHALLENGE)
            self._writer.write(challenge)
            response = await self._reader.readexactly(CHALLENGE)
            if not password.accepts(challenge, response):
                await asyncio.sleep(WRONG_PASSWORD_SECONDS)
                self.turn_away("Authentication failed")
                raise WrongPasswordError("it does not know the password")

    def turn_away(self, reason: str) -> None:
        """Tell a viewer that it gets no picture, and why, as far as its version has a place for that."""
        if self._tells:
            self._writer.write(struct.pack(">I", FAILED))
        if self._minor == 8:
            text = reason.encode()
            self._writer.write(struct.pack(">I", len(text)) + text)

    async def let_in(self) -> bool:
        """The result and ClientInit: whether the viewer is willing to share the screen with others."""
        if self._tells:
            self._writer.write(struct.pack(">I", OK))
        return bool((await self._reader.readexactly(1))[0])


async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The client's side, at a server that asks for no password, up to and with ClientInit: shared.

    Raises RfbError with what the server said.
    """
    minor = minor_of(await reader.readexactly(len(VERSION)))
    writer.write(f"RFB 003.{minor:03d}\n".encode())
    if minor == 3:
        (kind,) = struct.unpack(">I", await reader.readexactly(4))
        kinds = bytes((kind,)) if 0 < kind < 256 else b""
    else:
        kinds = await reader.readexactly((await reader.readexactly(1))[0])
    if not kinds:
        raise RfbError(await _reason(reader))
    if NONE not in kinds:
        raise RfbError("it asks for a password, and none is known here")
    if minor > 3:
        writer.write(bytes((NONE,)))
    if minor == 8:
        (result,) = struct.unpack(">I", await reader.readexactly(4))
        if result != OK:
            raise RfbError(await _reason(reader))
    writer.write(b"\1")


async def _reason(reader: asyncio.StreamReader) -> str:
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    text = await reader.readexactly(min(length, REASON_LIMIT))
    return "it says: " + "".join(c if c.isprintable() else "?" for c in text.decode(errors="replace"))
