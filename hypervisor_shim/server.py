"""Listeners, and the clients behind them."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import itertools
import logging
import os
import select
import socket
import stat
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypervisor_shim.access import Policy
from hypervisor_shim.audit import Audit, to_log
from hypervisor_shim.calls import (
    block,
    connect,
    devices,
    domain,
    guest,
    interface,
    lifecycle,
    migration,
    network,
    node,
    nodedev,
    nwfilter,
    secret,
    snapshot,
    statistics,
    storage,
    tuning,
)
from hypervisor_shim.connection import Connection, Limits
from hypervisor_shim.driver import Caller, Driver, Event
from hypervisor_shim.events import encode
from hypervisor_shim.procedure_names import known_numbers
from hypervisor_shim.procedures import Tables, build_tables
from hypervisor_shim.sasl import Authenticator
from hypervisor_shim.session import Session
from hypervisor_shim.sockets import Sockets
from hypervisor_shim.tls import Tls

log = logging.getLogger(__name__)

_BACKLOG = 128
_READ_SIZE = 256 * 1024  # bytes taken from a socket at once
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED
_SO_PEERGROUPS = 59  # Linux 4.13: the peer's other groups
_GROUPS_SIZE = 1024  # bytes of the answer, four a group: the most that Python takes
_FAMILIES = (
    connect, domain, lifecycle, tuning, guest, devices, block, snapshot, migration,
    node, network, nwfilter, interface, storage, nodedev, secret,
)  # fmt: skip
_FINISHING_TIME = 10.0  # seconds that acting calls get at the server's end before they are cancelled


def make_tables() -> Tables:
    """The tables of every procedure this library serves."""
    rows = [*statistics.rows(), *(row for family in _FAMILIES for row in family.ROWS)]
    return build_tables(rows, known_numbers((row.program, row.number, row.api) for row in rows))


@dataclass(slots=True, eq=False)
class _Listener:
    sock: socket.socket
    read_only: bool
    tls: Tls | None = None
    authenticator: Authenticator | None = None
    path: Path | None = None
    inode: int = 0
    unopened: dict[Connection, float] = field(
        default_factory=dict
    )  # since when (the loop's clock), oldest first
    accepting: bool = False
    pressing: asyncio.TimerHandle | None = None  # when to look whether room must be made


class Server:
    """Serves one driver to libvirt clients, on any number of listeners.

        server = Server(driver)
        await server.listen_unix(Path("/run/x/libvirt-sock"), mode=0o660, group="libvirt")
        await server.listen_tcp("127.0.0.1", 16509)
        …
        await server.close()

    All of it runs in the event loop that called; `driver` is called in that loop only. `policy` says who may
    do what (default: whoever gets in, everything); `audit` gets each call that changes something.
    """

    def __init__(
        self,
        driver: Driver,
        limits: Limits | None = None,
        *,
        policy: Policy | None = None,
        audit: Audit = to_log,
    ) -> None:
        self.limits = limits or Limits()
        self.policy = policy or Policy()
        self.audit = audit
        self.tables = make_tables()
        self.partial_bytes = 0
        self._sockets: Sockets | None = None
        self.buffer = memoryview(bytearray(_READ_SIZE))
        self._driver = driver
        self._listeners: list[_Listener] = []
        self._clients: dict[Connection, _Listener] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._shaking: set[asyncio.Task[None]] = set()  # of these, the TLS handshakes
        self._numbers = itertools.count(1)
        self._closing = False
        self._unsubscribe: Callable[[], None] | None = driver.subscribe(self)

    # ---- listening -------------------------------------------------------------------------------

    async def listen_unix(
        self,
        path: Path,
        *,
        read_only: bool = False,
        mode: int = 0o600,
        group: str | None = None,
        authenticator: Authenticator | None = None,
    ) -> None:
        """Listen at `path`. A socket that a dead server left there is replaced; one that answers is an
        OSError (EADDRINUSE), as is anything there that is no socket. Until `mode` is set it is 0600."""
        _clear_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            before = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(before)
            if group is not None:
                os.chown(path, -1, grp.getgrnam(group).gr_gid)
            path.chmod(mode)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        self._listen(_Listener(sock, read_only, None, authenticator, path, path.stat().st_ino))

    async def listen_tcp(self, host: str, port: int, *, read_only: bool = False) -> int:
        """Listen at `host` (an address) and `port` (0: any free one, returned). Nothing is encrypted and
        nobody is asked who he is: for loopback and networks that are guarded otherwise. (libvirt's clients
        refuse to log in by SCRAM where nothing is encrypted, so there is no use in asking.)"""
        return self.adopt(_bound(host, port), read_only=read_only)

    async def listen_tls(
        self,
        host: str,
        port: int,
        tls: Tls,
        *,
        read_only: bool = False,
        authenticator: Authenticator | None = None,
    ) -> int:
        """Listen like `listen_tcp`, for clients with a certificate; with `authenticator` they log in, too."""
        return self.adopt(_bound(host, port), read_only=read_only, tls=tls, authenticator=authenticator)

    def adopt(
        self,
        sock: socket.socket,
        *,
        read_only: bool = False,
        tls: Tls | None = None,
        authenticator: Authenticator | None = None,
    ) -> int:
        """Serve a socket that listens already, such as one from `activation`; its port, 0 for a unix one."""
        if authenticator is not None and tls is None and sock.family != socket.AF_UNIX:
            raise ValueError("a login needs TLS or a unix socket: clients refuse it where others read along")
        self._listen(_Listener(sock, read_only, tls, authenticator))
        return 0 if sock.family == socket.AF_UNIX else int(sock.getsockname()[1])

    def _listen(self, listener: _Listener) -> None:
        listener.sock.setblocking(False)
        if self._sockets is None:
            self._sockets = Sockets()
        self._listeners.append(listener)
        self._accept_or_not(listener)

    def _accept_or_not(self, listener: _Listener) -> None:
        """Take clients while there is room for them; otherwise leave them in the kernel's queue."""
        room = (
            not self._closing
            and len(self._clients) < self.limits.clients
            and len(listener.unopened) < self.limits.unopened
        )
        if room == listener.accepting:
            return
        listener.accepting = room
        loop = asyncio.get_running_loop()
        if room:
            loop.add_reader(listener.sock.fileno(), self._accept, listener)
        else:
            loop.remove_reader(listener.sock.fileno())
            self._press(listener, self.limits.unopened_pressed)

    def _make_room(self, listener: _Listener) -> None:
        """Those who have not been let in for long make way for those who wait outside, if there are any: a
        crowd that never opens delays a newcomer and does not keep him out."""
        listener.pressing = None
        if listener.accepting or self._closing:
            return
        loop = asyncio.get_running_loop()
        if select.select([listener.sock], [], [], 0)[0]:
            late = loop.time() - self.limits.unopened_pressed
            for connection in [each for each, since in listener.unopened.items() if since <= late]:
                connection.give_way()
        self._press(listener, self.limits.unopened_pressed / 2)

    def _press(self, listener: _Listener, seconds: float) -> None:
        if listener.pressing is None and not self._closing:
            loop = asyncio.get_running_loop()
            listener.pressing = loop.call_later(seconds, self._make_room, listener)

    def _accept(self, listener: _Listener) -> None:
        try:
            sock, _ = listener.sock.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as failed:  # out of file descriptors: clients wait until some are given back
            log.error("cannot accept a client: %s", failed)
            listener.accepting = False
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener.sock.fileno())
            loop.call_later(1.0, self._accept_or_not, listener)
            return
        sock.setblocking(False)
        session = self._session(sock, listener)
        connection = Connection(self, session, listener.tls)
        self._clients[connection] = listener
        listener.unopened[connection] = asyncio.get_running_loop().time()
        self._accept_or_not(listener)
        if listener.tls is None:
            assert self._sockets is not None, "they began with the first listener"
            self._sockets.add(sock, connection)
            return
        shaking = self.spawn(self._shake_hands(connection, sock, listener.tls, session.caller.peer))
        self._shaking.add(shaking)
        shaking.add_done_callback(self._shaking.discard)

    async def _shake_hands(self, connection: Connection, sock: socket.socket, tls: Tls, peer: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=tls.context(),
                ssl_handshake_timeout=self.limits.opening_time,
            )
        except OSError as failed:
            if not self._closing:
                log.warning("client %s got no TLS connection: %s", peer, failed)
            sock.close()
            self.gone(connection)

    def _session(self, sock: socket.socket, listener: _Listener) -> Session:
        if sock.family == socket.AF_UNIX:
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, gid = _CREDENTIALS.unpack(raw)
            peer = f"unix:uid={uid},pid={pid}"
            identities = (f"uid:{uid}", *(f"gid:{each}" for each in (gid, *_other_groups(sock))))
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kind = "tcp" if listener.tls is None else "tls"
            peer, identities = f"{kind}:gone", (f"{kind}:anonymous",)
            with contextlib.suppress(OSError):
                host, port, *_ = sock.getpeername()
                peer = f"{kind}:{host}:{port}"
        secure = sock.family == socket.AF_UNIX or listener.tls is not None
        caller = Caller(identities[0], peer, listener.read_only, secure, next(self._numbers))
        return Session(
            self._driver,
            caller,
            listener.read_only,
            self.policy,
            identities,
            listener.authenticator,
            authenticated=listener.authenticator is None,
        )

    # ---- what connections need -------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def opened(self, connection: Connection) -> None:
        listener = self._clients.get(connection)
        if listener is not None:
            listener.unopened.pop(connection, None)
            self._accept_or_not(listener)

    def gone(self, connection: Connection) -> None:
        listener = self._clients.pop(connection, None)
        if listener is None:
            return
        listener.unopened.pop(connection, None)
        for each in self._listeners:
            self._accept_or_not(each)

    def event(self, event: Event) -> None:
        for encoded in encode(event):
            for connection in list(self._clients):
                connection.event(encoded)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    # ---- the end ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop listening, let acting calls finish for a while, hang up, leave no socket behind."""
        self._closing = True
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for listener in self._listeners:
            self._accept_or_not(listener)
            listener.sock.close()
            _unlink_own(listener)
        self._listeners.clear()
        for connection in list(self._clients):
            connection.close()
        if self._sockets is not None:
            self._sockets.close()
        for task in list(self._shaking):  # a handshake is nothing to wait for
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_FINISHING_TIME)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _other_groups(sock: socket.socket) -> list[int]:
    """The supplementary groups of who is at the other end of a unix socket, unless they are too many."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError:
        return []
    return [gid for (gid,) in struct.iter_unpack("I", raw)]


def _clear_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return  # bind will say EADDRINUSE
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return


def _unlink_own(listener: _Listener) -> None:
    """Remove the socket file, unless a successor has already put its own there."""
    if listener.path is None:
        return
    with contextlib.suppress(FileNotFoundError):
        if listener.path.stat().st_ino == listener.inode:
            listener.path.unlink()
