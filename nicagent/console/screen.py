"""A host's screen by a capture source: a grabber card whose server offers `GET /snapshot`, as ustreamer does.

The source listens on a unix socket. What it says is a picture of the tenant's screen: bounded, and passed on
without being looked into.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from nicagent.console.contract import Picture, Screen
from nicagent.errors import Kind, NicagentError

PICTURE_LIMIT = 32 << 20  # bytes: a 4K screen without compression
SECONDS = 10.0  # for one picture
KINDS = frozenset({"image/png", "image/jpeg", "image/x-portable-pixmap"})


class CaptureScreen(Screen):
    def __init__(self, host: str, path: Path) -> None:
        self._host = host
        self._path = path

    async def picture(self) -> Picture:
        try:
            async with asyncio.timeout(SECONDS):
                return await self._fetch()
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            raise self._unavailable(f"gives no picture ({error or 'timeout'})") from None

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

    def _unavailable(self, what: str) -> NicagentError:
        return NicagentError(
            Kind.UNAVAILABLE,
            f"the capture source of host {self._host} {what}",
            f"see that something serves GET /snapshot on {self._path}",
        )
