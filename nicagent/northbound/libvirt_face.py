"""The listeners of the libvirt face: where clients come in, how they show who they are, what each may do."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hypervisor_shim.access import Policy, Right, Rule, resolve
from hypervisor_shim.audit import Audited
from hypervisor_shim.sasl import Scram, UserFile
from hypervisor_shim.server import Server
from hypervisor_shim.tls import Tls, TlsFiles
from nicagent import config as settings
from nicagent.errors import Kind, NicagentError
from nicagent.northbound.libvirt import MetalDriver

log = logging.getLogger("nicagent.libvirt")
audit_log = logging.getLogger("nicagent.audit")

#: Names of sockets that systemd may hand over (`FileDescriptorName=`), and the key each stands in for.
SOCKETS = {
    "libvirt": "libvirt.socket",
    "libvirt-ro": "libvirt.socket_ro",
    "libvirt-tcp": "libvirt.tcp",
    "libvirt-tls": "libvirt.tls.listen",
}


class LibvirtFace:
    """The listeners as the config asks for them, in front of a driver that ends with them. `sockets` that
    systemd opened stand in for our own.
    """

    def __init__(
        self,
        config: settings.Libvirt,
        driver: MetalDriver,
        sockets: Mapping[str, Sequence[socket.socket]],
    ) -> None:
        self._config = config
        self._sockets = sockets
        self._driver = driver
        self._server = Server(driver, policy=policy(config), audit=_audit)

    async def start(self) -> None:
        """Listen. Raises UNAVAILABLE when a place is taken, INVALID when a group or a file is not there."""
        config = self._config
        login = Scram(UserFile(Path(config.sasl.users))) if config.sasl is not None else None
        at = config.sasl.at if config.sasl is not None else ()
        unix_login = login if "unix" in at else None
        if not self._adopted("libvirt", authenticator=unix_login):
            mode, group = (0o660, config.group) if config.group else (0o600, None)
            with _listening(config.socket):
                await self._server.listen_unix(
                    Path(config.socket), mode=mode, group=group, authenticator=unix_login
                )
        if not self._adopted("libvirt-ro", read_only=True, authenticator=unix_login):
            with _listening(config.socket_ro):
                await self._server.listen_unix(
                    Path(config.socket_ro), read_only=True, mode=0o666, authenticator=unix_login
                )
        if not self._adopted("libvirt-tcp") and config.tcp:
            with _listening(config.tcp):
                await self._server.listen_tcp(*_address(config.tcp))
            if not config.access:
                log.warning("libvirt over TCP at %s: anybody who reaches it may do everything", config.tcp)
        if config.tls is not None:
            tls, tls_login = _tls(config.tls), login if "tls" in at else None
            if not self._adopted("libvirt-tls", tls=tls, authenticator=tls_login):
                with _listening(config.tls.listen):
                    await self._server.listen_tls(*_address(config.tls.listen), tls, authenticator=tls_login)

    def _adopted(
        self,
        name: str,
        *,
        read_only: bool = False,
        tls: Tls | None = None,
        authenticator: Scram | None = None,
    ) -> bool:
        """Whether systemd opened sockets of that name; they are served then."""
        given = self._sockets.get(name, ())
        for sock in given:
            try:
                self._server.adopt(sock, read_only=read_only, tls=tls, authenticator=authenticator)
            except ValueError as unfit:
                raise NicagentError(
                    Kind.INVALID, f"socket {name}: {unfit}", "mend its .socket unit"
                ) from None
        return bool(given)

    async def stop(self) -> None:
        """Let acting calls end, hang up on every client."""
        await self._server.close()
        self._driver.close()


def policy(config: settings.Libvirt) -> Policy:
    """The rules of the config. Root and the agent's own user may do everything: its files are theirs anyway.
    Raises INVALID for a user or group that does not exist."""
    if not config.access:
        return Policy()
    rules = [Rule(("uid:0", f"uid:{os.geteuid()}"), Right.ALL)]
    for index, rule in enumerate(config.access):
        try:
            who = tuple(resolve(each) for each in rule.who)
        except KeyError:
            raise NicagentError(
                Kind.INVALID,
                f"libvirt.access[{index}].who: a user or group of {', '.join(rule.who)} does not exist",
                "create it, or mend the rule",
            ) from None
        shared = None if rule.shared is None else Right.named(rule.shared)
        rules.append(Rule(who, Right.named(rule.may), rule.domains, shared, rule.tenants))
    return Policy(rules)


def _audit(record: Audited) -> None:
    audit_log.info("%s", record)


def _tls(config: settings.LibvirtTls) -> Tls:
    crl = Path(config.crl) if config.crl else None
    files = TlsFiles(Path(config.ca), Path(config.certificate), Path(config.key), crl)
    try:
        return Tls(files, config.allowed or None)
    except ssl.SSLError as unfit:
        what = f"the TLS files of the libvirt face do not fit: {unfit.reason or unfit}"
    except OSError as missing:
        what = f"cannot read {missing.filename}: {os.strerror(missing.errno or 0)}"
    raise NicagentError(
        Kind.INVALID, what, "make them with `nicagent libvirt certs NAME`, or mend [libvirt.tls]"
    )


def _address(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def _listening(place: str) -> Iterator[None]:
    try:
        yield
    except KeyError:
        raise NicagentError(
            Kind.INVALID, "the group in libvirt.group does not exist", "create it, or leave the key out"
        ) from None
    except OSError as e:
        hints = {
            errno.EADDRINUSE: "another program listens there; stop it, or choose another place in [libvirt]",
            errno.EADDRNOTAVAIL: "no interface has that address; mend [libvirt] in the config",
            errno.EACCES: "this user may not; choose another place in [libvirt], or run as root",
        }
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"cannot listen for libvirt clients at {place}: {os.strerror(e.errno or 0)}",
            hints.get(e.errno or 0, "mend [libvirt] in the config"),
        ) from None
