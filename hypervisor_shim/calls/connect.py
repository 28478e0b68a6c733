"""The connection's own calls: opening, authentication, identity, the node, keepalive, event registration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import urlsplit

from hypervisor_shim.driver import Family
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.frame import NONNULL_DOMAIN, NONNULL_NETWORK, NONNULL_SECRET
from hypervisor_shim.procedures import Kind, Phase, Procedure
from hypervisor_shim.sasl import Authenticator, AuthFailed
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import (
    INT,
    OPTIONAL_TEXT,
    TEXT,
    UHYPER,
    UINT,
    Array,
    Chars,
    Optional,
    Record,
    WideChars,
)

log = logging.getLogger(__name__)

_AUTH_NONE, _AUTH_SASL = 0, 1
_OPEN_READ_ONLY = 1
_SASL_DATA_MAX = 65_536

#: Features a client may ask for (libvirt: virDrvFeature). Passing file descriptors (8) is not among them.
_TYPED_PARAM_STRINGS, _KEEPALIVE, _EVENT_CALLBACK, _CLOSE_CALLBACK = 9, 10, 14, 15
_NETWORK_UPDATE_ORDER = 16  # virNetworkUpdate's arguments come in the order in which they are named
#: Migration protocol 3, of domains that do not run, with typed parameters: of a driver with `migration`.
_COLD_MOVES = frozenset((6, 12, 13))
_FEATURES = frozenset(
    (_TYPED_PARAM_STRINGS, _KEEPALIVE, _EVENT_CALLBACK, _CLOSE_CALLBACK, _NETWORK_UPDATE_ORDER)
)


def _auth_list(session: Session) -> list[int]:
    return [_AUTH_NONE if session.authenticator is None else _AUTH_SASL]


def _auth_failed() -> LibvirtError:
    return error(Code.AUTH_FAILED, "authentication failed", origin=Origin.RPC)


def _auth_refused(session: Session, *ignored: object) -> NoReturn:
    raise _auth_failed()


def _sasl_init(session: Session) -> str:
    if session.authenticator is None or session.authenticated:
        raise _auth_failed()
    return ",".join(session.authenticator.mechanisms)


async def _sasl_start(session: Session, mechanism: str, nil: int, data: bytes) -> tuple[int, int, bytes]:
    authenticator = session.authenticator
    if authenticator is None or session.authenticated or session.exchange is not None:
        raise _auth_failed()
    if session.attempts >= authenticator.attempts:  # calls that were on their way before the last one failed
        raise _auth_failed()
    try:
        session.exchange = authenticator.begin(mechanism)
    except AuthFailed as failed:
        raise await _punished(session, authenticator, failed) from None
    return await _sasl_step(session, nil, data)


async def _sasl_step(session: Session, nil: int, data: bytes) -> tuple[int, int, bytes]:
    exchange, session.exchange = session.exchange, None
    authenticator = session.authenticator
    if exchange is None or authenticator is None:
        raise _auth_failed()
    try:
        answer, user = exchange.step(data)
    except (AuthFailed, OSError, ValueError) as failed:
        raise await _punished(session, authenticator, failed) from None
    if user is None:
        session.exchange = exchange
    else:
        session.authenticate(f"sasl:{user}")
        log.info("client %s is sasl:%s", session.caller.peer, user)
    return int(user is not None), 0, answer


async def _punished(session: Session, authenticator: Authenticator, failed: Exception) -> LibvirtError:
    """The answer to a failed attempt, after a while; the last one ends the connection."""
    session.attempts += 1
    attempt = session.attempts
    log.warning("client %s failed to log in: %s", session.caller.peer, failed)
    await asyncio.sleep(authenticator.penalty * 2 ** (attempt - 1))
    if attempt >= authenticator.attempts:
        session.hang_up()
    return _auth_failed()


def _open(session: Session, name: str | None, flags: int) -> None:
    if session.opened:
        raise error(Code.INTERNAL_ERROR, "connection already open", origin=Origin.RPC)
    if name:
        try:
            uri = urlsplit(name)
        except ValueError:
            raise error(Code.NO_CONNECT, name, origin=Origin.NONE) from None
        identity = session.driver.identity
        if uri.scheme not in identity.schemes:
            raise error(Code.NO_CONNECT, name, origin=Origin.NONE)
        if uri.path not in identity.paths:
            raise LibvirtError(
                Code.INTERNAL_ERROR,
                f"internal error: unexpected {uri.scheme} URI path '{uri.path}', try "
                f"{uri.scheme}://{sorted(identity.paths)[0]}",
            )
    access = session.policy.access(session.identities)
    if access is None:
        log.warning("client %s is let in by no rule (%s)", session.caller.peer, ", ".join(session.identities))
        detail = f"no rule lets {session.caller.identity} in"
        raise error(Code.ACCESS_DENIED, detail, origin=Origin.ACCESS)
    session.enter(access, read_only=session.listener_read_only or bool(flags & _OPEN_READ_ONLY))


def _close(session: Session) -> None:
    session.hang_up()


def _supports_feature(session: Session, feature: int) -> int:
    if feature == _KEEPALIVE:
        session.want_keepalive()
    if feature in _COLD_MOVES:
        return int(session.driver.migration is not None)
    return int(feature in _FEATURES)


def _get_type(session: Session) -> str:
    return session.driver.identity.hypervisor


def _get_version(session: Session) -> int:
    return session.driver.identity.hypervisor_version


def _get_lib_version(session: Session) -> int:
    return session.driver.identity.library_version


def _get_hostname(session: Session) -> str:
    return session.driver.hostname()


def _get_uri(session: Session) -> str:
    return session.driver.uri()


def _get_capabilities(session: Session) -> str:
    return session.driver.capabilities()


def _is_secure(session: Session) -> int:
    return int(session.caller.secure)


def _node_info(session: Session) -> tuple[str, int, int, int, int, int, int, int]:
    n = session.driver.node_info()
    return n.model, n.memory_kib, n.cpus, n.mhz, n.nodes, n.sockets, n.cores, n.threads


def _security_model(session: Session) -> tuple[str, str]:
    return "", ""


def _domain_capabilities(
    session: Session,
    emulator: str | None,
    arch: str | None,
    machine: str | None,
    virt_type: str | None,
    flags: int,
) -> str:
    return session.driver.domain_capabilities(emulator, arch, machine, virt_type)


def _watch_close(session: Session) -> None:
    """Accepted, and never told of: what is beneath a driver here is in this process and closes with it."""


def _registering(family: Family, key: int | None) -> Callable[[Session, int, tuple[Any, ...] | None], int]:
    """A handler of *EventRegisterAny: `key` is the member of the object's reference that names it, None
    where the reference is the name alone."""

    def register(session: Session, event_id: int, ref: Any) -> int:
        named = ref if ref is None or key is None else ref[key]
        return session.registrations.add(family, event_id, named)

    return register


def _deregistering(family: Family) -> Callable[[Session, int], None]:
    return lambda session, callback: session.registrations.remove(family, callback)


_LIFECYCLE = 0  # the one event there was at first


def _register_lifecycle(session: Session) -> int:
    session.registrations.add_old(_LIFECYCLE)
    return 0


def _deregister_lifecycle(session: Session) -> int:
    session.registrations.remove_old(_LIFECYCLE)
    return 0


def _register_old(session: Session, event_id: int) -> None:
    session.registrations.add_old(event_id)


def _deregister_old(session: Session, event_id: int) -> None:
    session.registrations.remove_old(event_id)


def _event_rows() -> Iterator[Procedure]:
    """Registering and its end, per family of objects."""
    for family, name, first, ref, key in (
        (Family.DOMAIN, "Domain", 316, NONNULL_DOMAIN, 1),
        (Family.NETWORK, "Network", 313, NONNULL_NETWORK, 1),
        (Family.POOL, "StoragePool", 368, NONNULL_NETWORK, 1),
        (Family.NODE_DEVICE, "NodeDevice", 374, TEXT, None),
        (Family.SECRET, "Secret", 380, NONNULL_SECRET, 0),
    ):
        yield Procedure(
            first,
            f"virConnect{name}EventRegisterAny",
            _registering(family, key),
            args=Record(INT, Optional(ref)),
            reply=INT,
            read_only=True,
        )
        yield Procedure(
            first + 1,
            f"virConnect{name}EventDeregisterAny",
            _deregistering(family),
            args=Record(INT),
            read_only=True,
        )


_SASL_DATA = Chars(_SASL_DATA_MAX)
_SASL_ANSWER = Record(INT, INT, _SASL_DATA)  # complete?, nothing there?, what is

ROWS = [
    Procedure(66, "virAuthList", _auth_list, reply=Array(INT, 20), phase=Phase.CONNECTED),
    Procedure(67, "virAuthSaslInit", _sasl_init, reply=TEXT, phase=Phase.CONNECTED),
    Procedure(68, "virAuthSaslStart", _sasl_start, Record(TEXT, INT, _SASL_DATA), _SASL_ANSWER, kind=Kind.ACT,
              phase=Phase.CONNECTED),
    Procedure(69, "virAuthSaslStep", _sasl_step, Record(INT, _SASL_DATA), _SASL_ANSWER, kind=Kind.ACT,
              phase=Phase.CONNECTED),
    Procedure(70, "virAuthPolkit", _auth_refused, phase=Phase.CONNECTED),
    Procedure(1, "virConnectOpen", _open, args=Record(OPTIONAL_TEXT, UINT), phase=Phase.AUTHENTICATED),
    Procedure(2, "virConnectClose", _close, phase=Phase.AUTHENTICATED),
    Procedure(60, "virConnectSupportsFeature", _supports_feature, args=Record(INT), reply=INT,
              phase=Phase.AUTHENTICATED),
    Procedure(3, "virConnectGetType", _get_type, reply=TEXT, read_only=True),
    Procedure(4, "virConnectGetVersion", _get_version, reply=UHYPER, read_only=True),
    Procedure(157, "virConnectGetLibVersion", _get_lib_version, reply=UHYPER, read_only=True),
    Procedure(59, "virConnectGetHostname", _get_hostname, reply=TEXT, read_only=True),
    Procedure(110, "virConnectGetURI", _get_uri, reply=TEXT, read_only=True),
    Procedure(7, "virConnectGetCapabilities", _get_capabilities, reply=TEXT, read_only=True),
    Procedure(149, "virConnectIsSecure", _is_secure, reply=INT, read_only=True),
    Procedure(6, "virNodeGetInfo", _node_info, read_only=True,
              reply=Record(WideChars(32, counted=False), UHYPER, INT, INT, INT, INT, INT, INT)),
    Procedure(122, "virNodeGetSecurityModel", _security_model, read_only=True,
              reply=Record(WideChars(257, counted=True), WideChars(257, counted=True))),
    Procedure(342, "virConnectGetDomainCapabilities", _domain_capabilities, read_only=True, reply=TEXT,
              args=Record(OPTIONAL_TEXT, OPTIONAL_TEXT, OPTIONAL_TEXT, OPTIONAL_TEXT, UINT)),
    Procedure(360, "virConnectRegisterCloseCallback", _watch_close, read_only=True),
    Procedure(361, "virConnectUnregisterCloseCallback", _watch_close, read_only=True),
    Procedure(105, "virConnectDomainEventRegister", _register_lifecycle, reply=INT, read_only=True),
    Procedure(106, "virConnectDomainEventDeregister", _deregister_lifecycle, reply=INT, read_only=True),
    Procedure(167, "virConnectDomainEventRegisterAny", _register_old, args=Record(INT), read_only=True),
    Procedure(168, "virConnectDomainEventDeregisterAny", _deregister_old, args=Record(INT), read_only=True),
    *_event_rows(),
]  # fmt: skip
