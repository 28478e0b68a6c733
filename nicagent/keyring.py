"""Secrets that clients define: CHAP and DH-HMAC-CHAP keys, Ceph keys, passphrases. The only writer of them.

Values are in the store, which the agent's user alone may read, and in this process; they are in no log, error
or document, and `repr` leaves them out. An ephemeral secret lives as long as the agent's process.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from nicagent.errors import Kind, NicagentError, Thing
from nicagent.store import Store

SECRETS_MAX = 4096
WORDS_MAX = 4096  # characters of a description, or of what a secret is for
_KIND = "secret"  # of the objects in the store


@dataclass(frozen=True)
class Secret:
    """A key's definition and, once it was given one, its value (base64)."""

    uuid: str
    usage: str = "none"  # none, volume, ceph, iscsi, tls, vtpm
    usage_id: str = ""
    description: str | None = None
    ephemeral: bool = False
    private: bool = False
    value: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Unique among secrets: what it is for, or else its UUID."""
        return f"{self.usage}:{self.usage_id}" if self.usage != "none" else self.uuid


class Keyring:
    """Every secret of the agent."""

    def __init__(self, store: Store, users: Callable[[Secret], Iterable[str]] = lambda _: ()) -> None:
        """`users` tells the keys of the config that name a secret."""
        self._store = store
        self._users = users
        self._secrets: dict[str, Secret] = {}
        self._writing = asyncio.Lock()  # so that no value comes back after its secret was undefined

    async def load(self) -> None:
        """Remember what is kept."""
        self._secrets = {each.uuid: each for each in await self._store.objects(_KIND, Secret)}

    def secrets(self) -> Iterable[Secret]:
        """All of them, the oldest first."""
        return self._secrets.values()

    def secret(self, uuid: str) -> Secret | None:
        return self._secrets.get(uuid)

    def value(self, uuid: str) -> bytes:
        """The key itself. Raises NOT_FOUND: no such secret, or it was never given a value."""
        value = self._known(uuid).value
        if value is None:
            raise NicagentError(
                Kind.NOT_FOUND,
                f"secret '{uuid}' does not have a value",
                "give it one with virsh secret-set-value",
                of=Thing.SECRET,
            )
        return base64.b64decode(value)

    async def define(self, secret: Secret) -> None:
        """Add or replace a definition; the value stays. Durable when it returns. Raises EXISTS when another
        secret is for the same use, NO_SPACE for too many, INVALID for too long words."""
        if max(len(secret.usage_id), len(secret.description or "")) > WORDS_MAX:
            raise NicagentError(Kind.INVALID, f"the words of a secret have at most {WORDS_MAX} characters")
        async with self._writing:
            present = self._secrets.get(secret.uuid)
            if present is None and len(self._secrets) >= SECRETS_MAX:
                raise NicagentError(
                    Kind.NO_SPACE, f"there are {SECRETS_MAX} secrets", "undefine those that nobody needs"
                )
            for other in self._secrets.values():
                if other.name == secret.name and other.uuid != secret.uuid:
                    raise NicagentError(
                        Kind.EXISTS,
                        f"secret {other.uuid} is for the same use, {secret.name}",
                        of=Thing.SECRET,
                    )
            await self._keep(replace(secret, value=present.value if present is not None else None))

    async def set_value(self, uuid: str, value: bytes) -> None:
        """Durable when it returns. Raises NOT_FOUND."""
        async with self._writing:
            await self._keep(replace(self._known(uuid), value=base64.b64encode(value).decode()))

    async def undefine(self, uuid: str) -> None:
        """Forget a secret and its value. Raises NOT_FOUND, WRONG_STATE for one that a host needs to start."""
        async with self._writing:
            users = ", ".join(self._users(self._known(uuid)))
            if users:
                raise NicagentError(
                    Kind.WRONG_STATE,
                    f"secret {uuid} is named by {users}; without it the host could not be started",
                    "take it out of the config first",
                )
            await self._store.drop_object(_KIND, uuid)
            del self._secrets[uuid]

    async def _keep(self, secret: Secret) -> None:
        if secret.ephemeral:
            await self._store.drop_object(_KIND, secret.uuid)  # it may have been a lasting one
        else:
            await self._store.put_object(_KIND, secret.uuid, secret.name, secret)
        self._secrets[secret.uuid] = secret

    def _known(self, uuid: str) -> Secret:
        secret = self._secrets.get(uuid)
        if secret is None:
            raise NicagentError(
                Kind.NOT_FOUND,
                f"no secret with matching uuid '{uuid}'",
                "see virsh secret-list",
                of=Thing.SECRET,
            )
        return secret
