"""Bytes that flow beside the calls: a console, a volume's content, a picture of the screen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hypervisor_shim.errors import Code, error


@dataclass(frozen=True, slots=True)
class Hole:
    """So many bytes that are zero and not stored: of a stream whose client knows holes."""

    length: int


class ByteStream(Protocol):
    """One client's hold on a stream of bytes. The library closes it exactly once.

    Of a one-way stream, what only takes (an upload) lets a `read` wait until it is closed; what only gives
    (a download) raises from `write`.
    """

    async def read(self, limit: int) -> bytes | Hole:
        """At least 1 and at most `limit` bytes; b"" at the end. A hole only where the client asked for
        holes to be told."""

    async def write(self, data: bytes) -> None:
        """Take all of `data`. Returning late is the backpressure: the client's socket is not read."""

    async def finish(self) -> None:
        """The client has sent everything and wants to know whether it arrived: returns once it is durable,
        raises LibvirtError if it is not. Not called when the client aborts or goes away."""

    async def close(self) -> None:
        """Give back what is held. A pending read may raise or return b""."""


class Whole:
    """A stream that gives bytes which are there already, and takes none."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    async def read(self, limit: int) -> bytes:
        taken, self._left = self._left[:limit], self._left[limit:]
        return bytes(taken)

    async def write(self, data: bytes) -> None:
        raise error(Code.OPERATION_INVALID, "this stream is for reading only")

    async def finish(self) -> None:
        """Nothing was sent."""

    async def close(self) -> None:
        self._left = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Opened:
    """The result of a call that opens a stream, and what else there is to it: something the reply answers (a
    screenshot's MIME type); how the stream takes a hole of so many bytes (None: holes are not expected)."""

    stream: ByteStream
    value: Any = None
    skip: Callable[[int], Awaitable[None]] | None = None
