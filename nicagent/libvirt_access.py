"""What an operator does for libvirt clients by hand: logins and certificates, in the files the config names.

The agent need not run; it takes up what changed with the next client.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypervisor_shim.sasl import UserFile
from nicagent.config import Libvirt, LibvirtTls
from nicagent.errors import Kind, NicagentError


def set_password(config: Libvirt, user: str, ask: Callable[[str], str]) -> None:
    """Add `user`, or change his password to what `ask` gives."""
    with _said():
        _file(config).put(user, ask(user))


def drop_user(config: Libvirt, user: str) -> None:
    """NOT_FOUND: there is no such user."""
    with _said():
        try:
            _file(config).drop(user)
        except KeyError:
            raise NicagentError(
                Kind.NOT_FOUND, f"no user {user} can log in", "nicagent libvirt users lists them"
            ) from None


def users(config: Libvirt) -> list[str]:
    with _said():
        return _file(config).users()


def make_certificates(config: Libvirt, names: Sequence[str]) -> str:
    """The agent's own certificate for `names`, by an authority that is made if there is none yet."""
    from nicagent import pki

    tls = _tls(config)
    directory = Path(tls.ca).parent
    pki.make_authority(directory)
    pki.issue_server(directory, names, Path(tls.certificate), Path(tls.key))
    return f"{tls.certificate}: for {', '.join(names)}, two years; clients: nicagent libvirt client NAME"


def make_client(config: Libvirt, name: str, to: Path) -> str:
    """A client's certificate in the directory `to`."""
    from nicagent import pki

    tls = _tls(config)
    pki.issue_client(Path(tls.ca).parent, name, to)
    return f"{to}: for CN={name}, two years; virsh -c 'nic+tls://AGENT/system?pkipath={to.absolute()}'"


def _file(config: Libvirt) -> UserFile:
    if config.sasl is None:
        raise NicagentError(Kind.INVALID, "no client is asked to log in", "add [libvirt.sasl] to the config")
    return UserFile(Path(config.sasl.users))


def _tls(config: Libvirt) -> LibvirtTls:
    if config.tls is None:
        raise NicagentError(Kind.INVALID, "TLS is off", "add [libvirt.tls] to the config")
    return config.tls


@contextmanager
def _said() -> Iterator[None]:
    """What the file or the name has against it, in our words."""
    try:
        yield
    except ValueError as bad:
        raise NicagentError(Kind.INVALID, str(bad), "see docs/access.md") from None
    except OSError as failed:
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"cannot use {failed.filename}: {os.strerror(failed.errno or 0)}",
            "run it as the agent's user; the directory must exist",
        ) from None
