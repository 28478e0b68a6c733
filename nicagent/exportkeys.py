"""Where the keys come from that a host and its exports prove themselves with (DH-HMAC-CHAP).

`hosts.NAME.storage.secret` names a secret of libvirt clients, by UUID or by the `<target>` of one with usage
type iscsi: the one usage of libvirt's that is about a storage target's CHAP. Or it is "fresh": keys of the
agent's own making, new at every start, that nobody else has ever seen.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping

from nicagent.config import Host, Storage
from nicagent.errors import Kind, NicagentError, Thing
from nicagent.keyring import Keyring, Secret
from nicagent.model import Credentials
from nicagent.storage.nvmetcp.dhchap import Key, key_text, parse_key

FRESH = "fresh"
KEY_BYTES = 32


def credentials(keyring: Keyring, host: str, storage: Storage) -> Credentials | None:
    """The keys of a start of `host`, None where nothing needs to be proved.

    Raises NOT_FOUND for a secret that is not there or has no value, INVALID for one that is no key.
    """
    if not storage.secret:
        return None
    if storage.secret == FRESH:
        return Credentials(_made(), _made())
    own = _value(keyring, f"hosts.{host}.storage.secret", storage.secret)
    key = f"hosts.{host}.storage.controller_secret"
    other = _value(keyring, key, storage.controller_secret) if storage.controller_secret else ""
    if own == other:
        raise NicagentError(
            Kind.INVALID, f"{key} has the same value as the host's own secret", "give each side its own"
        )
    return Credentials(own, other)


def users(hosts: Mapping[str, Host], secret: Secret) -> Iterator[str]:
    """The keys of the config that name a secret."""
    names = {secret.uuid} | ({secret.usage_id} if secret.usage == "iscsi" else set())
    for host, each in hosts.items():
        for key in ("secret", "controller_secret"):
            if getattr(each.storage, key) in names:
                yield f"hosts.{host}.storage.{key}"


def _made() -> str:
    return key_text(Key(secrets.token_bytes(KEY_BYTES), None))


def _value(keyring: Keyring, key: str, name: str) -> str:
    found = keyring.secret(name)
    if found is None:
        found = next((e for e in keyring.secrets() if e.usage == "iscsi" and e.usage_id == name), None)
    if found is None:
        raise NicagentError(
            Kind.NOT_FOUND,
            f"there is no secret {name!r}, which {key} names",
            "define it (virsh secret-define, secret-set-value), or mend the config",
            of=Thing.SECRET,
        )
    try:
        text = keyring.value(found.uuid).decode("ascii").removesuffix("\n")
        parse_key(text)
    except UnicodeDecodeError:
        raise _no_key(found, key, "is no DH-HMAC-CHAP secret: it is no text") from None
    except ValueError as problem:
        raise _no_key(found, key, str(problem)) from None
    return text


def _no_key(secret: Secret, key: str, problem: str) -> NicagentError:
    hint = "give it another value (nvme gen-dhchap-key, virsh secret-set-value)"
    what = f"the value of secret {secret.name}, which {key} names, {problem}"
    return NicagentError(Kind.INVALID, what, hint)
