"""Hosts' screens at TCP ports, as libvirt's clients expect a domain's VNC server.

Each viewer has a relay: it opens the protocol at both ends (`rfb`), asks for the password, and from there on
carries bytes. It reads from one end only what the other has taken, so a viewer that does not read costs a few
buffers, and the screen's own server waits for it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import cast

from nicagent.config import Graphics
from nicagent.console.contract import Displays, Phase, Screen, Stream, Viewing, Watcher
from nicagent.console.rfb import Password, RfbError, Viewer
from nicagent.errors import Kind, NicagentError
from nicagent.model import Display, DisplayBinding, Sharing

log = logging.getLogger("nicagent.screen")

CHUNK = 1 << 16  # bytes carried at once
BACKLOG = 1 << 18  # bytes that an end may leave unread before the other is not read any more
OPENING_SECONDS = 20.0  # for a viewer to show that it may look: somebody may be typing a password meanwhile
LAST_WORDS_SECONDS = 1.0  # for a viewer that is turned away to read why
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class ScreenDisplays(Displays):
    """Every screen that streams, by its host."""

    def __init__(self, screens: Mapping[str, Screen], graphics: Graphics) -> None:
        self._screens = {host: screen for host, screen in screens.items() if screen.streams}
        self._graphics = graphics
        self._shown: dict[str, _Shown] = {}
        self._watchers: list[Watcher] = []

    def shows(self, host: str) -> bool:
        return host in self._screens

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    async def bind(self, host: str, display: Display, taken: Collection[int]) -> DisplayBinding:
        address = display.address or self._graphics.listen
        first, last = self._graphics.ports
        self._check_address(address)
        if display.port is not None:
            if not first <= display.port <= last:
                # Any other is somebody's own: of the agent's services, or of a program that starts later.
                raise NicagentError(
                    Kind.UNSUPPORTED,
                    f"port {display.port} is none that a screen may have here: {first} to {last}",
                    "choose one of these, or have the operator widen graphics.ports in nicagent.toml",
                )
            if display.port in taken:
                raise _taken(address, display.port, "another domain's screen")
            _try(address, display.port)
            return DisplayBinding(display, address, display.port)
        for port in range(first, last + 1):
            if port not in taken:
                with contextlib.suppress(_PortTakenError):
                    _try(address, port)
                    return DisplayBinding(display, address, port)
        raise NicagentError(
            Kind.NO_SPACE,
            f"no port from {first} to {last} is free for the screen of host {host}",
            "widen graphics.ports in nicagent.toml, or end what listens there",
        )

    def _check_address(self, address: str) -> None:
        allowed = {self._graphics.listen, *self._graphics.allow}
        try:
            if ipaddress.ip_address(address) in map(ipaddress.ip_address, allowed):
                return
        except ValueError:
            pass
        raise NicagentError(
            Kind.UNSUPPORTED,
            f"screens are not shown at '{address}' here, only at {' or '.join(sorted(allowed))}",
            "leave the address out, or have the operator add it to graphics.allow in nicagent.toml",
        )

    async def present(self, host: str, binding: DisplayBinding | None) -> None:
        shown = self._shown.get(host)
        if shown is not None:
            if binding is not None and (binding.address, binding.port) == shown.place:
                shown.binding = binding
                return
            await self.withdraw(host)
        if binding is None:
            return
        screen = self._screens.get(host)
        if screen is None:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"the screen of host {host} can no longer be shown",
                f"set hosts.{host}.screen.rfb again, or end its domain",
            )
        shown = _Shown(host, screen, binding, self._graphics.viewers, self._tell)
        await shown.open()
        self._shown[host] = shown

    async def withdraw(self, host: str) -> None:
        shown = self._shown.pop(host, None)
        if shown is not None:
            await shown.close()

    async def close(self) -> None:
        for host in list(self._shown):
            await self.withdraw(host)

    def _tell(self, host: str, phase: Phase, who: Viewing) -> None:
        for watcher in self._watchers:
            try:
                watcher(host, phase, who)
            except Exception:
                log.exception("a watcher of screens failed; the others are still told")


class _PortTakenError(NicagentError):
    """Somebody else listens there."""


def _taken(address: str, port: int, by: str) -> _PortTakenError:
    return _PortTakenError(
        Kind.UNAVAILABLE,
        f"port {port} at {address} is taken by {by}, the screen cannot be shown there",
        "choose another port, or autoport='yes'",
    )


def _refused(address: str, port: int, error: OSError) -> NicagentError:
    if error.errno == errno.EADDRINUSE:
        return _taken(address, port, "another program")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return NicagentError(
        Kind.UNAVAILABLE,
        f"the screen cannot be shown at {address} port {port}: {reason}",
        "choose another address or port",
    )


def _try(address: str, port: int) -> None:
    """Raise what listening there would. Between this and that somebody may come; then the start fails."""
    _socket(address, port).close()


def _socket(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # What is left of viewers before a crash of ours keeps no port; another's listener does.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise _refused(address, port, error) from None
    return sock


@dataclass(eq=False)
class _Seat:
    """A viewer, and the task that serves it."""

    task: asyncio.Task[None]
    inside: bool = False  # it sees the screen


class _Shown:
    """One screen at one port. `binding` may be replaced: the next viewer is asked by the new one."""

    def __init__(
        self,
        host: str,
        screen: Screen,
        binding: DisplayBinding,
        limit: int,
        tell: Callable[[str, Phase, Viewing], None],
    ) -> None:
        self.binding = binding
        self.place = (binding.address, binding.port)
        self._host = host
        self._screen = screen
        self._limit = limit
        self._tell = tell
        self._server: asyncio.Server | None = None
        self._closed = False
        self._seats: set[_Seat] = set()

    async def open(self) -> None:
        sock = _socket(*self.place)
        try:
            self._server = await asyncio.start_server(
                self._serve, sock=sock, backlog=self._limit, limit=CHUNK
            )
        except OSError as error:
            sock.close()
            raise _refused(*self.place, error) from None
        log.info("screen of %s at %s port %d", self._host, *self.place)

    async def close(self) -> None:
        self._closed = True
        if self._server is not None:
            self._server.close()
        tasks = [seat.task for seat in self._seats]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seat = _Seat(cast("asyncio.Task[None]", asyncio.current_task()))
        if self._closed:  # it was accepted at the last moment
            writer.transport.abort()
            return
        who = self._who(writer)
        if len(self._seats) >= self._limit:
            log.warning("%s: viewer %s is one too many (%d)", self._host, who.remote[0], self._limit)
            writer.transport.abort()
            return
        self._seats.add(seat)
        self._tell(self._host, Phase.CONNECT, who)
        try:
            async with _ending(writer):
                async with asyncio.timeout(OPENING_SECONDS):
                    source = await self._let_in(seat, (reader, writer))
                seat.inside = True
                log.info("%s: %s looks at the screen", self._host, who.remote[0])
                self._tell(self._host, Phase.INITIALIZE, who)
                async with _ending(source[1]):
                    await _carry((reader, writer), source)
        except TimeoutError:
            what = "answers no more" if seat.inside else "took too long to show that it may look"
            log.info("%s: viewer %s %s", self._host, who.remote[0], what)
        except asyncio.IncompleteReadError:
            log.info("%s: viewer %s hung up before it saw anything", self._host, who.remote[0])
        except (RfbError, NicagentError, OSError) as error:
            log.info("%s: viewer %s: %s", self._host, who.remote[0], error)
        except asyncio.CancelledError:
            pass  # the screen is shown no longer, or another viewer wants to be alone: that is all
        finally:
            self._seats.discard(seat)
            self._tell(self._host, Phase.DISCONNECT, who)

    def _who(self, writer: asyncio.StreamWriter) -> Viewing:
        local, remote = (writer.get_extra_info(end) or ("", 0) for end in ("sockname", "peername"))
        scheme = "none" if self.binding.display.password is None else "vnc"
        sock = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it may be gone already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        return Viewing((local[0], local[1]), (remote[0], remote[1]), scheme)

    async def _let_in(self, seat: _Seat, stream: Stream) -> Stream:
        """Both openings; the screen's own only for who may look."""
        viewer, display = Viewer(*stream), self.binding.display
        password = None if display.password is None else Password(display.password, display.valid_to)
        await viewer.admit(password)
        try:
            source = await self._screen.stream()
        except NicagentError as dark:
            viewer.turn_away(dark.message)
            raise
        try:
            shares = await viewer.let_in()
            if not shares and display.sharing is Sharing.SHARED:
                raise RfbError("it asks to be alone, which this screen's sharing forbids")
            if not shares and display.sharing is Sharing.EXCLUSIVE:
                for other in self._seats - {seat}:
                    if other.inside:
                        other.task.cancel()
        except BaseException:
            source[1].transport.abort()
            raise
        return source


async def _carry(viewer: Stream, source: Stream) -> None:
    """Bytes both ways until either end is through."""
    ways = [
        asyncio.create_task(_copy(viewer[0], source[1])),
        asyncio.create_task(_copy(source[0], viewer[1])),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)
    for way in ways:
        if not way.cancelled() and (error := way.exception()) is not None:
            raise error


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.set_write_buffer_limits(high=BACKLOG)
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def _ending(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close at the end. What is left to be said is given a moment, unless we are told to stop."""
    try:
        yield
    except asyncio.CancelledError:
        raise
    except BaseException:
        await _last_words(writer)
        raise
    finally:
        writer.transport.abort()


async def _last_words(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            await writer.wait_closed()
