"""A client of qemu-guest-agent (QEMU, docs/interop/qemu-ga-ref): JSON objects, a line each, over a channel.

The channel is a unix socket (an emulated host, or whatever else offers one) or a tty: a USB gadget that the
server sees as a serial port does. What a former conversation left in it is skipped by guest-sync-delimited:
its answer is the first that follows a byte 0xFF and carries our number.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import stat
import termios
import tty
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nicagent.hostlink.contract import ANSWER_SECONDS, Answer, GuestLink, GuestRefused, GuestSilent

ANSWER_LIMIT = 1 << 20  # bytes of one answer
SYNC_SECONDS = 5.0  # for the agent to show that it is there
LOOK_SECONDS = 10.0  # between two looks at an agent that nobody asks anything
GRACE_SECONDS = 1.0  # in which a command that is not answered when it works may be refused

Result = TypeVar("Result")

log = logging.getLogger("nicagent.hostlink")


class Fault(msgspec.Struct, frozen=True):
    """An answer that is an error; `class` is its kind (QAPI's QapiErrorClass)."""

    kind: str = msgspec.field(default="GenericError", name="class")
    desc: str = ""


class Reply(msgspec.Struct, frozen=True):
    value: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="return")  # empty: there is none
    error: Fault | None = None


class QgaLink(GuestLink):
    """A host's guest agent at the other end of `path`."""

    def __init__(self, host: str, path: Path) -> None:
        self._host = host
        self._path = path
        self._turn = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ends: Sequence[asyncio.BaseTransport] = ()
        self._watchers: list[Callable[[bool], None]] = []
        self.connected = False

    # ---- asking

    async def ask(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        kind: type[Answer],
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        reply = await self._exchange(command, _line(command, arguments), seconds)
        if reply is None or not bytes(reply.value):
            raise GuestSilent(f"the guest agent of host {self._host} gave no answer to {command}")
        try:
            return msgspec.json.decode(reply.value, type=kind)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise GuestSilent(
                f"the guest agent of host {self._host} answers {command} with something else"
            ) from None

    async def tell(self, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        await self._exchange(command, _line(command, arguments), GRACE_SECONDS, optional=True)

    async def ask_raw(self, text: str, seconds: float) -> str:
        try:
            asked = msgspec.json.decode(text, type=dict[str, Any])
            command = str(asked["execute"])
        except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError):
            raise GuestRefused("the command is no JSON object with an 'execute'") from None
        reply = await self._exchange(command, _encode(asked), seconds)
        value = b"{}" if reply is None else bytes(reply.value) or b"{}"
        try:
            return '{"return":' + value.decode() + "}"
        except UnicodeDecodeError:
            raise GuestSilent(f"the guest agent of host {self._host} does not answer in UTF-8") from None

    async def _exchange(
        self, command: str, line: bytes, seconds: float, *, optional: bool = False
    ) -> Reply | None:
        async with self._turn:
            await self._within(SYNC_SECONDS, self._synchronise(), "is not connected")
            self._note(True)
            try:
                assert self._writer is not None
                self._writer.write(line)
                reply = await self._within(seconds, self._receive(), f"does not answer {command}")
            except GuestSilent:
                if optional:
                    return None
                raise
        if reply.error is not None:
            unknown = reply.error.kind == "CommandNotFound" or "has been disabled" in reply.error.desc
            told = reply.error.desc[:500] or reply.error.kind[:100]
            raise GuestRefused(f"unable to execute QEMU agent command '{command}': {told}", unknown=unknown)
        return reply

    async def _within(self, seconds: float, work: Awaitable[Result], failure: str) -> Result:
        """Until its deadline; whatever goes wrong, the conversation starts anew the next time."""
        try:
            async with asyncio.timeout(seconds):
                return await work
        except (TimeoutError, OSError, EOFError, ValueError) as error:
            self._hang_up()
            self._note(False)
            detail = f": {error}" if isinstance(error, OSError) and error.errno else ""
            raise GuestSilent(f"the guest agent of host {self._host} {failure}{detail}") from None
        except BaseException:  # cancelled in mid-sentence
            self._hang_up()
            raise

    async def _synchronise(self) -> None:
        if self._writer is None:
            self._reader, self._writer, self._ends = await _open(self._path)
        number = secrets.randbits(31)
        self._writer.write(b"\xff" + _line("guest-sync-delimited", {"id": number}))
        assert self._reader is not None
        while True:
            await _skip_to_mark(self._reader)
            with contextlib.suppress(ValueError):
                reply = _decode(await _read_line(self._reader))
                if bytes(reply.value) == str(number).encode():
                    return

    async def _receive(self) -> Reply:
        assert self._reader is not None
        while True:
            line = (await _read_line(self._reader)).lstrip(b"\xff").strip()
            if line:
                return _decode(line)

    # ---- whether it is there

    def watch(self, watcher: Callable[[bool], None]) -> None:
        self._watchers.append(watcher)

    def _note(self, connected: bool) -> None:
        if connected is self.connected:
            return
        self.connected = connected
        log.info("%s: its guest agent %s", self._host, "answers" if connected else "does not answer")
        for watcher in list(self._watchers):
            watcher(connected)

    async def run(self) -> None:
        try:
            while True:
                with contextlib.suppress(GuestSilent, GuestRefused):
                    await self.ask("guest-ping", kind=dict)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        for end in self._ends:
            end.close()
        self._reader, self._writer, self._ends = None, None, ()


def _line(command: str, arguments: Mapping[str, Any] | None) -> bytes:
    asked: dict[str, Any] = {"execute": command}
    if arguments:
        asked["arguments"] = arguments
    return _encode(asked)


def _encode(asked: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(asked) + b"\n"
    except UnicodeError:  # a client's bytes that are no text
        raise GuestRefused("the request cannot be written as JSON") from None


def _decode(line: bytes) -> Reply:
    """Raises ValueError for what is no answer."""
    try:
        return msgspec.json.decode(line, type=Reply)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


async def _skip_to_mark(reader: asyncio.StreamReader) -> None:
    """Past a byte 0xFF, throwing away what comes before it, however long."""
    while True:
        try:
            await reader.readuntil(b"\xff")
        except asyncio.LimitOverrunError as noise:
            await reader.readexactly(noise.consumed)
        else:
            return


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """Raises ValueError beyond ANSWER_LIMIT, EOFError at the end."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return line


async def _open(
    path: Path,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Sequence[asyncio.BaseTransport]]:
    """A unix socket, or a tty in raw mode; and what is to be closed in the end. Raises OSError."""
    if stat.S_ISSOCK(path.stat().st_mode):
        reader, writer = await asyncio.open_unix_connection(str(path), limit=ANSWER_LIMIT)
        return reader, writer, (writer.transport,)
    loop = asyncio.get_running_loop()
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with contextlib.suppress(termios.error):
            tty.setraw(fd)
        port = os.fdopen(fd, "r+b", buffering=0)
    except BaseException:
        os.close(fd)
        raise
    twin = os.fdopen(os.dup(fd), "wb", buffering=0)
    reader = asyncio.StreamReader(limit=ANSWER_LIMIT)
    source, protocol = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), port)
    sink, _ = await loop.connect_write_pipe(asyncio.Protocol, twin)
    return reader, asyncio.StreamWriter(sink, protocol, reader, loop), (source, sink)
