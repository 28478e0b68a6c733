"""SASL, one mechanism: SCRAM-SHA-256 (RFC 5802, 7677), with its users' salted verifiers in a file.

What the file holds is of no use for logging in: no password, nothing that equals one. A user who does not
exist is taken through the same exchange as one who does, with a salt of his own that never changes.

The file has a line per user, `NAME:SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY` (base64; the form
that PostgreSQL keeps), and one `:decoy:BASE64` that salts of users who are not there are made from.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

MECHANISM = "SCRAM-SHA-256"
ITERATIONS = 65_536  # of PBKDF2, at the client, per login; the RFC asks for 4,096 at least
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_DECOY = ":decoy:"
_FILE_MAX = 1 << 20  # bytes


class AuthFailed(Exception):
    """Not proved. The reason is for the log; the client is not told."""


class Exchange(Protocol):
    """One login under way."""

    def step(self, data: bytes) -> tuple[bytes, str | None]:
        """What to answer, and the user's name once he has proved who he is. Raises AuthFailed."""


class Authenticator(Protocol):
    """What asks clients who they are. After `attempts` that fail a client is hung up on; the answer to the
    first one takes `penalty` seconds, and each further one twice as long."""

    mechanisms: tuple[str, ...]
    attempts: int
    penalty: float

    def begin(self, mechanism: str) -> Exchange:
        """Raises AuthFailed for a mechanism it does not have."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What the server keeps of a password."""

    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int = ITERATIONS

    @classmethod
    def of(cls, password: str) -> Verifier:
        """ValueError: the password is empty, or has characters that SASLprep forbids."""
        from scramp import ScramException, ScramMechanism

        if not password:
            raise ValueError("the password is empty")
        try:
            salt, stored, server, iterations = ScramMechanism(MECHANISM).make_auth_info(
                password, iteration_count=ITERATIONS
            )
        except ScramException as bad:
            raise ValueError(f"the password cannot be used: {bad}") from None
        return cls(salt, stored, server, iterations)

    def __str__(self) -> str:
        salt, stored, server = (
            base64.b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key)
        )
        return f"{MECHANISM}${self.iterations}:{salt}${stored}:{server}"

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """The reverse of `str`. ValueError: it is not one."""
        mechanism, cost, keys = text.split("$")
        iterations, salt = cost.split(":")
        stored, server = keys.split(":")
        if mechanism != MECHANISM:
            raise ValueError(f"the mechanism {mechanism} is not {MECHANISM}")
        return cls(_decoded(salt), _decoded(stored), _decoded(server), int(iterations))


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


@dataclass(slots=True)
class _Content:
    users: dict[str, Verifier] = field(default_factory=dict)
    decoy: bytes = b""

    def lines(self) -> str:
        decoy = f"{_DECOY}{base64.b64encode(self.decoy).decode()}\n"
        return decoy + "".join(f"{name}:{self.users[name]}\n" for name in sorted(self.users))


class UserFile:
    """The users of one file; a change of it holds from the next login on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._content = _Content(decoy=secrets.token_bytes(32))

    def users(self) -> list[str]:
        return sorted(self._read().users)

    def verifier(self, name: str) -> Verifier:
        """A user's, or for anybody else one that no password fits, the same each time."""
        content = self._read()
        known = content.users.get(name)
        if known is not None:
            return known
        salt = hmac.digest(content.decoy, name.encode("utf-8", "surrogateescape"), sha256)
        return Verifier(salt, secrets.token_bytes(32), secrets.token_bytes(32))

    def put(self, name: str, password: str) -> None:
        """Add a user or change his password. ValueError: the name or the password cannot be used."""
        if not _NAME.fullmatch(name):
            raise ValueError("a user's name is 1 to 64 letters, digits or . _ @ + -, and begins with no sign")
        self._write(self._read().users | {name: Verifier.of(password)})

    def drop(self, name: str) -> None:
        """KeyError: there is no such user."""
        users = dict(self._read().users)
        del users[name]
        self._write(users)

    def _read(self) -> _Content:
        """OSError or ValueError: it cannot be read, others could read it too, or it is not such a file."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
                if seen == self._seen:
                    return self._content
                if stat.S_IMODE(facts.st_mode) & 0o077:
                    raise ValueError(f"{self.path} may be read by others; make it 0600")
                text = file.read(_FILE_MAX).decode()
        except FileNotFoundError:
            return self._content
        users, decoy = {}, self._content.decoy
        for number, line in enumerate(text.splitlines(), 1):
            try:
                if line.startswith(_DECOY):
                    decoy = _decoded(line.removeprefix(_DECOY))
                elif line:
                    name, _, rest = line.partition(":")
                    users[name] = Verifier.parse(rest)
            except ValueError:
                raise ValueError(f"{self.path}, line {number}: no user's verifier") from None
        self._content, self._seen = _Content(users, decoy), seen
        return self._content

    def _write(self, users: dict[str, Verifier]) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")  # 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(_Content(users, self._content.decoy).lines())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class Scram:
    """The Authenticator of a UserFile."""

    mechanisms: tuple[str, ...] = (MECHANISM,)

    def __init__(self, users: UserFile, *, attempts: int = 3, penalty: float = 1.0) -> None:
        self._users = users
        self.attempts = attempts
        self.penalty = penalty

    def begin(self, mechanism: str) -> Exchange:
        if mechanism != MECHANISM:
            raise AuthFailed("the client wants a mechanism that was not offered")
        return _ScramExchange(self._users)


class _ScramExchange:
    def __init__(self, users: UserFile) -> None:
        from scramp import ScramMechanism

        self._users = users
        self._user = ""
        self._server: Any = ScramMechanism(MECHANISM).make_server(self._lookup)
        self._begun = False

    def _lookup(self, name: str) -> tuple[bytes, bytes, bytes, int]:
        self._user = name
        found = self._users.verifier(name)
        return found.salt, found.stored_key, found.server_key, found.iterations

    def step(self, data: bytes) -> tuple[bytes, str | None]:
        from scramp import ScramException

        try:
            text = data.decode()
            if not self._begun:
                self._begun = True
                self._server.set_client_first(text)
                return self._server.get_server_first().encode(), None
            self._server.set_client_final(text)
            return self._server.get_server_final().encode(), self._user
        except (ScramException, UnicodeDecodeError, ValueError) as bad:
            cause = bad.__cause__ or bad
            raise AuthFailed(f"user {self._user!r}: {cause}") from None
