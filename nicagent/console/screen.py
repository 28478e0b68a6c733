"""A host's screen by a capture source: a grabber card whose server offers `GET /snapshot`, as ustreamer does,
and perhaps an RFB server that shows the same screen live.

Both listen on unix sockets. What they say is a picture of the tenant's screen: bounded, and passed on without
being looked into.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from nicagent.console import rfb
from nicagent.console.contract import Picture, Screen, Stream
from nicagent.errors import Kind, NicagentError

PICTURE_LIMIT = 32 << 20  # bytes: a 4K screen without compression
SECONDS = 10.0  # for one picture
OPENING_SECONDS = 5.0  # for the opening of a stream
READ_AHEAD = 1 << 16  # bytes of a stream that are read before they are asked for, at most twice that
KINDS = frozenset({"image/png", "image/jpeg", "image/x-portable-pixmap"})


class CaptureScreen(Screen):
    def __init__(self, host: str, path: Path, rfb: Path | None = None) -> None:
        self._host = host
        self._path = path
        self._rfb = rfb

    @property
    def streams(self) -> bool:
        return self._rfb is not None

    async def picture(self) -> Picture:
        try:
            async with asyncio.timeout(SECONDS):
                return await self._fetch()
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            raise self._unavailable(f"gives no picture ({str(error) or 'timeout'})") from None

    async def _fetch(self) -> Picture:
        connector = aiohttp.UnixConnector(str(self._path))
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            session.get("http://capture/snapshot", allow_redirects=False) as answer,
        ):
            if answer.status != 200 or answer.content_type not in KINDS:
                raise self._unavailable(f"answers {answer.status} with {answer.content_type}")
            data = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 16):
                data += chunk
                if len(data) > PICTURE_LIMIT:
                    raise self._unavailable(f"gives more than {PICTURE_LIMIT} bytes")
            return Picture(answer.content_type, bytes(data))

    async def stream(self) -> Stream:
        if self._rfb is None:
            raise NicagentError(
                Kind.UNSUPPORTED,
                f"the screen of host {self._host} has pictures only",
                f"wire an RFB server that shows it and set hosts.{self._host}.screen.rfb",
            )
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._rfb), limit=READ_AHEAD)
                try:
                    await rfb.enter(reader, writer)
                except BaseException:
                    writer.transport.abort()
                    raise
        except (TimeoutError, OSError, asyncio.IncompleteReadError, rfb.RfbError) as error:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"the screen of host {self._host} is dark ({str(error) or 'its server does not answer'})",
                f"see that the host is switched on, and that an RFB server listens on {self._rfb}",
            ) from None
        return reader, writer

    def _unavailable(self, what: str) -> NicagentError:
        return NicagentError(
            Kind.UNAVAILABLE,
            f"the capture source of host {self._host} {what}",
            f"see that something serves GET /snapshot on {self._path}",
        )
